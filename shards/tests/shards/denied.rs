// SPDX-License-Identifier: Apache-2.0
//! An authority that says no, at once and late.

use std::cell::Cell;

use corqtt_codec::ReasonCode;
use corqtt_port::auth::{Answer, Auth, Question, Verdict, Wish};
use corqtt_port::doubles::delaying;
use corqtt_port::lane::Sender;
use corqtt_shards::ToShard;

use crate::client::{Client, connect_bytes, packet, publish_bytes, text};
use crate::{ALL, Broker, Setup, each};

/// Topics and filters that begin with this, and a client with this name, are denied.
const NO: &str = "no";

#[derive(Debug)]
struct Strict {
    /// Whom to answer late.
    late: Option<Sender<ToShard>>,
}

impl Auth for Strict {
    fn checks_publish(&self) -> bool {
        true
    }

    fn checks_subscribe(&self) -> bool {
        true
    }

    fn knows_method(&self, _method: &str) -> bool {
        false
    }

    fn ask(&mut self, question: Question) -> Option<Verdict> {
        let denied = |what: &str, reason| what.starts_with(NO).then_some(reason);
        let deny = |reason: Option<_>| reason.map_or(Verdict::Allow, Verdict::Deny);
        let verdict = match &question.wish {
            Wish::Connect { .. } => deny(denied(
                &question.identity.client_id,
                ReasonCode::BAD_USER_NAME_OR_PASSWORD,
            )),
            Wish::Publish(topic) => deny(denied(topic, ReasonCode::NOT_AUTHORIZED)),
            Wish::Subscribe(filters) => match &filters[..] {
                // all of them by one word
                [(only, _)] => deny(denied(only, ReasonCode::NOT_AUTHORIZED)),
                filters => {
                    let each = filters.iter();
                    let each = each.map(|(filter, _)| denied(filter, ReasonCode::NOT_AUTHORIZED));
                    Verdict::Filters(each.collect())
                }
            },
            Wish::Continue { .. } => unreachable!("no method is known"),
        };
        let Some(to) = &self.late else {
            return Some(verdict);
        };
        to.push(ToShard::Auth(Answer {
            connection: question.connection,
            verdict,
        }));
        None
    }
}

fn strict(setup: Setup) -> Broker {
    let next = Cell::new(0);
    Broker::on(
        setup,
        |_| {},
        |ports| {
            let shard = next.replace(next.get() + 1);
            let own = ports.shards[shard].clone();
            let late = setup
                .doubles
                .then(|| delaying(own, shard as u64 * 100 + 7, false));
            ports.auth = Box::new(Strict { late });
        },
    )
}

fn open(broker: &Broker, level: u8, id: &str) -> Client {
    let mut client = Client::open(broker.address);
    client.send(&connect_bytes(level, id, 0x02, &[]));
    let (kind, body) = client.packet();
    assert_eq!((kind, &body[..2]), (0x20, &[0, 0][..]));
    client
}

/// SUBSCRIBE, without properties.
fn subscribe(level: u8, id: u16, filters: &[&str]) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    if level == 5 {
        body.push(0);
    }
    for filter in filters {
        body.extend(text(filter));
        body.push(1);
    }
    packet(0x82, &body)
}

/// [MQTT5-3.1.4-2]
#[test]
fn connect_is_refused_with_the_code_of_the_version() {
    each(&ALL, |setup| {
        let broker = strict(setup);
        for (level, code) in [(4, 4), (5, 0x86)] {
            for n in 0..setup.count(16) {
                let mut client = Client::open(broker.address);
                let mut bytes = connect_bytes(level, &format!("{NO}-{n}"), 0x02, &[]);
                // what comes behind it is not looked at [MQTT-3.1.4-5] [MQTT5-3.1.4-6]
                bytes.extend(publish_bytes(0x31, "kept", 0, b"x"));
                client.send(&bytes);
                let (kind, body) = client.packet();
                assert_eq!((kind, &body[..2]), (0x20, &[0, code][..]), "{setup:?}");
                client.expect_end();
            }
        }
        let mut late = open(&broker, 4, "late");
        late.subscribe(1, "#", 0);
        late.send(&publish_bytes(0x30, "end", 0, b""));
        assert_eq!(late.message().0, "end");
        broker.drain(late);
    });
}

/// [MQTT-3.3.5-2]: 3.1.1 has no code for it, so it is acknowledged. Allowed ones before and behind it are not held back,
/// and all acknowledgements keep their order.
#[test]
fn a_publish_that_is_denied_reaches_nobody_and_is_not_retained() {
    each(&ALL, |setup| {
        let broker = strict(setup);
        let mut watcher = open(&broker, 4, "watcher");
        watcher.subscribe(1, "+/t", 2);
        for level in [4, 5] {
            let mut publisher = open(&broker, level, &format!("publisher-{level}"));
            let publish = |first: u8, topic: &str, id: u16| {
                let mut bytes = text(topic);
                if first & 6 != 0 {
                    bytes.extend(id.to_be_bytes());
                }
                if level == 5 {
                    bytes.push(0);
                }
                bytes.extend(b"x");
                packet(first, &bytes)
            };
            let code = |denied: u8| if level == 5 { denied } else { 0 };
            for (kind, qos) in [(0x40, 0x02), (0x50, 0x04)] {
                for (id, topic) in (1..).zip(["yes/t", "no/t", "yes/t"]) {
                    publisher.send(&publish(0x31 | qos, topic, id));
                }
                for id in 1..=3 {
                    let (got, body) = publisher.packet();
                    let reason = body.get(2).copied().unwrap_or(0);
                    let denied = if id == 2 { code(0x87) } else { 0 };
                    assert_eq!((got, body[1], reason), (kind, id, denied), "{setup:?}");
                }
                if kind == 0x50 {
                    // of a denied one of 5.0 the exchange is over; that of 3.1.1 goes on
                    for id in [1, 2, 3] {
                        publisher.send(&[0x62, 2, 0, id]);
                        let (got, body) = publisher.packet();
                        let reason = body.get(2).copied().unwrap_or(0);
                        let unknown = if id == 2 { code(0x92) } else { 0 };
                        assert_eq!((got, body[1], reason), (0x70, id, unknown), "{setup:?}");
                    }
                }
            }
            publisher.send(&publish(0x31, "no/t", 0));
            publisher.send(&publish(0x31, "end/t", 0));
            let mut seen = 0;
            loop {
                let (kind, body) = watcher.packet();
                if kind & 0xF0 == 0x60 {
                    watcher.send(&[0x70, 2, body[0], body[1]]);
                    continue;
                }
                let (topic, _) = crate::client::parse(kind, &body);
                if topic == "end/t" {
                    break;
                }
                assert_eq!(topic, "yes/t", "{setup:?}");
                seen += 1;
                let id = [body[2 + topic.len()], body[3 + topic.len()]];
                let answer = if kind & 6 == 2 { 0x40 } else { 0x50 };
                watcher.send(&[answer, 2, id[0], id[1]]);
            }
            assert_eq!(seen, 4, "{setup:?}");
        }
        let mut late = open(&broker, 4, "late");
        late.subscribe(1, "+/t", 0);
        let mut topics = [late.message().0, late.message().0];
        topics.sort_unstable();
        assert_eq!(topics, ["end/t", "yes/t"]);
        late.send(&publish_bytes(0x30, "fence/t", 0, b""));
        assert_eq!(late.message().0, "fence/t", "{setup:?}");
        broker.drain((watcher, late));
    });
}

/// [MQTT-3.8.4-5] [MQTT5-3.8.4-7]: a code for each, in order; 3.1 has none for a failure, so its connection ends.
#[test]
fn filters_are_denied_one_by_one() {
    each(&ALL, |setup| {
        let broker = strict(setup);
        let mut publisher = open(&broker, 4, "publisher");
        for topic in ["no/a", "yes/a"] {
            publisher.send(&publish_bytes(0x33, topic, 1, b"x"));
            assert_eq!(publisher.packet().0, 0x40);
        }
        for (level, denied) in [(4, 0x80), (5, 0x87)] {
            let mut client = open(&broker, level, &format!("subscriber-{level}"));
            let properties = if level == 5 { &[0][..] } else { &[] };
            client.send(&subscribe(level, 7, &["yes/a", "no/a", "no/#", "yes/b"]));
            client.send(&subscribe(level, 8, &["no/a"]));
            for expected in [&[0, 7, 1, denied, denied, 1][..], &[0, 8, denied]] {
                let body = [&expected[..2], properties, &expected[2..]].concat();
                let mut got = client.packet();
                if got.0 & 0xF0 == 0x30 {
                    // what is retained follows its SUBACK
                    assert_eq!(got.1[2..7], *b"yes/a");
                    got = client.packet();
                }
                assert_eq!(got, (0x90, body), "{setup:?}");
            }
        }
        let mut old = Client::open(broker.address);
        let mut connect = text("MQIsdp");
        connect.extend([3, 2, 0, 0]);
        connect.extend(text("old"));
        old.send(&packet(0x10, &connect));
        assert_eq!(old.packet().0, 0x20);
        old.send(&subscribe(3, 7, &["yes/a", "no/a"]));
        old.expect_end();
        broker.drain((publisher, old));
    });
}

/// A will is asked about when it is due.
#[test]
fn a_will_that_is_denied_is_not_sent() {
    each(&ALL, |setup| {
        let broker = strict(setup);
        let mut heir = open(&broker, 4, "heir");
        heir.subscribe(1, "+/will", 1);
        for topic in ["no/will", "yes/will"] {
            let mut client = Client::open(broker.address);
            let rest = [text(topic), text("gone")].concat();
            client.send(&connect_bytes(
                4,
                topic.replace("no", "n").as_str(),
                0x06,
                &rest,
            ));
            assert_eq!(client.packet(), (0x20, vec![0, 0]));
        }
        assert_eq!(heir.message().0, "yes/will", "{setup:?}");
        // the other was asked about before this one is
        heir.send(&publish_bytes(0x30, "end/will", 0, b""));
        assert_eq!(heir.message().0, "end/will", "{setup:?}");
        broker.drain(heir);
    });
}
