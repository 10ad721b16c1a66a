// SPDX-License-Identifier: Apache-2.0
//! What is retained and what comes live, seen by one subscriber.

use crate::client::{Client, connect_bytes, packet, publish_bytes, subscribe_bytes, text};
use crate::{ALL, Broker, each};

/// The topics are on all shards, the clients wherever their names put them.
#[test]
fn what_is_published_after_suback_comes_behind_what_was_retained() {
    each(&ALL, |setup| {
        let broker = Broker::start(setup);
        let rounds = setup.count(400) as u16;
        for (number, filter) in ["{n}/r", "{n}/+", "{n}/#"].into_iter().enumerate() {
            let mut publisher = broker.client(&format!("publisher-{number}"));
            let mut subscriber = broker.client(&format!("subscriber-{number}"));
            for n in 1..=rounds {
                let topic = format!("{n}/r");
                publisher.send(&publish_bytes(0x31, &topic, 0, b"retained"));
                publisher.send(&[0xC0, 0]);
                assert_eq!(publisher.packet().0, 0xD0);
                subscriber.subscribe(n, &filter.replace("{n}", &n.to_string()), 0);
                publisher.send(&publish_bytes(0x30, &topic, 0, b"live"));
                let got = [subscriber.message(), subscriber.message()];
                let expected = ["retained", "live"].map(|it| (topic.clone(), it.into()));
                assert_eq!(got, expected, "{setup:?}, {filter}");
            }
            drop((publisher, subscriber));
        }
        broker.drain(());
    });
}

/// More than one page of each filter, filters that are there twice, and some with nothing retained.
#[test]
fn a_packet_of_several_filters_gets_what_each_retains() {
    each(&ALL, |setup| {
        let broker = Broker::start(setup);
        let topics = setup.count(1000);
        let mut publisher = broker.client("publisher");
        for n in 0..topics {
            publisher.send(&publish_bytes(0x31, &format!("many/{n}"), 0, b"x"));
        }
        publisher.send(&publish_bytes(0x31, "one", 0, b"x"));
        publisher.send(&[0xC0, 0]);
        assert_eq!(publisher.packet().0, 0xD0);
        for (client, filters) in [
            ("few", vec!["none", "one", "many/1", "one", "+/2"]),
            ("wide", vec!["one", "many/#", "none"]),
            ("too-many", (0..40).map(|_| "one").collect()),
        ] {
            let mut subscriber = broker.client(client);
            let mut body = vec![0, 1];
            for filter in &filters {
                body.extend(text(filter));
                body.push(0);
            }
            subscriber.send(&packet(0x82, &body));
            assert_eq!(
                subscriber.packet(),
                (0x90, [vec![0, 1], vec![0; filters.len()]].concat())
            );
            subscriber.send(&publish_bytes(0x30, "one", 0, b"last"));
            let mut got = Vec::new();
            let mut last = false;
            let expected = match client {
                "few" => 3,
                "wide" => 1 + topics as usize,
                _ => 1,
            };
            while got.len() < expected || !last {
                let (topic, payload) = subscriber.message();
                if payload == b"last" {
                    last = true;
                } else {
                    got.push(topic);
                }
            }
            got.sort_unstable();
            got.dedup();
            assert_eq!(got.len(), expected, "{setup:?}, {client}");
        }
        broker.drain(publisher);
    });
}

/// It goes while SUBACK waits for pages of other shards: its session can subscribe again.
#[test]
fn a_connection_that_ends_during_the_first_look_leaves_nothing_behind() {
    each(&ALL, |setup| {
        let broker = Broker::start(setup);
        let mut publisher = broker.client("publisher");
        for n in 0..16 {
            publisher.send(&publish_bytes(0x31, &format!("r/{n}"), 0, b"x"));
        }
        publisher.send(&[0xC0, 0]);
        assert_eq!(publisher.packet().0, 0xD0);
        for n in 0..setup.count(100) {
            let id = format!("kept-{}", n % 8);
            let mut first = Client::open(broker.address);
            let mut bytes = connect_bytes(4, &id, 0, &[]);
            bytes.extend(subscribe_bytes(1, "r/#", 0));
            first.send(&bytes);
            assert_eq!(first.packet().0, 0x20);
            let mut second = Client::open(broker.address);
            second.send(&connect_bytes(4, &id, 0, &[]));
            assert_eq!(second.packet().0, 0x20);
            second.send(&subscribe_bytes(2, "r/#", 0));
            loop {
                let (kind, body) = second.packet();
                if kind == 0x90 {
                    assert_eq!(body, [0, 2, 0], "{setup:?}");
                    break;
                }
                assert_eq!(kind & 0xF0, 0x30);
            }
            let mut messages = 0;
            while messages < 16 {
                messages += usize::from(second.message().1 == b"x");
            }
        }
        broker.drain(publisher);
    });
}
