// SPDX-License-Identifier: Apache-2.0
//! What finding subscribers and retained messages costs, in instructions.

use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Arc;

use bytes::Bytes;
use corqtt_codec::{Message, QoS, TopicFilter, TopicName};
use corqtt_topics::{
    ClientKey, Interest, Matches, Partition, Publisher, Retained, ShardId, Stamp, Strategy,
    Subscription, Want,
};

#[path = "../../codec/benches/callgrind/mod.rs"]
mod callgrind;

fn main() -> ExitCode {
    callgrind::main(
        env!("CARGO_MANIFEST_DIR"),
        &[
            ("match, one of 1,000 exact filters", |n| {
                matches(n, &exact(), &topics(), 1);
            }),
            ("match, none of 1,000 exact filters", |n| {
                matches(n, &exact(), &["site/nobody/wants/0042".to_owned()], 0);
            }),
            ("match, one of 1,000 filters with +", |n| {
                matches(n, &below("+"), &topics(), 1);
            }),
            ("match, one of 1,000 filters with #", |n| {
                matches(n, &below("#"), &topics(), 1);
            }),
            ("match, an exact filter beside 1,000 with +", |n| {
                let mut filters = below("+");
                filters.push((ClientKey(0), "a/b/c".to_owned()));
                matches(n, &filters, &["a/b/c".to_owned()], 1);
            }),
            ("match, 50 subscribers of one filter", |n| {
                let filters: Vec<_> = (0..50)
                    .map(|client| (ClientKey(client), "a/b/c".to_owned()))
                    .collect();
                matches(n, &filters, &["a/b/c".to_owned()], 50);
            }),
            ("match, ten clients with three filters each", |n| {
                let filters: Vec<_> = (0..30)
                    .map(|number| {
                        let filter = ["a/b/c", "a/+/c", "a/#"][number as usize % 3];
                        (ClientKey(number / 3), filter.to_owned())
                    })
                    .collect();
                matches(n, &filters, &["a/b/c".to_owned()], 10);
            }),
            ("match, a group of 20", |n| {
                let filters: Vec<_> = (0..20)
                    .map(|client| (ClientKey(client), "$share/g/a/b/c".to_owned()))
                    .collect();
                matches(n, &filters, &["a/b/c".to_owned()], 0);
            }),
            ("match, one of 1,000 filters of other shards", remote),
            ("subscribe and unsubscribe", subscribe),
            ("set a retained message", set),
            ("get a retained message", get),
        ],
    )
}

fn name(number: u32) -> String {
    format!("site/{:03}/device/{number:08}", number % 10)
}

fn topics() -> Vec<String> {
    (0..1_000).map(name).collect()
}

fn exact() -> Vec<(ClientKey, String)> {
    topics()
        .into_iter()
        .map(|topic| (ClientKey(0), topic))
        .collect()
}

/// `site/S/+/N` or `site/S/device/N/#`.
fn below(wildcard: &str) -> Vec<(ClientKey, String)> {
    let filter = |topic: String| match wildcard {
        "+" => topic.replace("device", "+"),
        _ => format!("{topic}/{wildcard}"),
    };
    topics()
        .into_iter()
        .map(|topic| (ClientKey(0), filter(topic)))
        .collect()
}

fn filter(text: &str) -> TopicFilter<'_> {
    TopicFilter::parse(text).expect("a filter")
}

const QOS1: Subscription = Subscription::new(QoS::AtLeastOnce);

fn partition(filters: &[(ClientKey, String)]) -> Partition {
    let mut partition = Partition::new(ShardId(0), 2, 0x5eed, Strategy::RoundRobin);
    let mut changes = Vec::new();
    partition.client_changed(ClientKey(0), false, true, &mut changes);
    for (client, text) in filters {
        partition.client_changed(*client, false, true, &mut changes);
        partition.subscribe(*client, filter(text), QOS1, &mut changes);
    }
    partition
}

fn matches(n: u64, filters: &[(ClientKey, String)], topics: &[String], hits: usize) {
    let mut partition = partition(filters);
    let mut matches = Matches::new();
    for topic in topics.iter().cycle().take(n as usize) {
        partition.matches(
            TopicName::trusted(topic),
            Publisher::default(),
            &mut matches,
        );
        assert_eq!(black_box(&matches).hits.len(), hits);
    }
}

fn remote(n: u64) {
    let mut partition = partition(&[]);
    let topics = topics();
    for topic in &topics {
        let want = Want::Plain {
            any: true,
            persistent: true,
        };
        partition.apply_interest(
            ShardId(1),
            &Interest {
                filter: topic.into(),
                want,
            },
        );
    }
    let mut matches = Matches::new();
    for topic in topics.iter().cycle().take(n as usize) {
        partition.matches(
            TopicName::trusted(topic),
            Publisher::default(),
            &mut matches,
        );
        assert_eq!(black_box(&matches).shards, 0b10);
    }
}

fn subscribe(n: u64) {
    let mut partition = partition(&exact());
    let topics: Vec<String> = (1_000..2_000).map(name).collect();
    let mut changes = Vec::new();
    for topic in topics.iter().cycle().take(n as usize) {
        partition.subscribe(ClientKey(0), filter(topic), QOS1, &mut changes);
        partition.unsubscribe(ClientKey(0), filter(topic), &mut changes);
        assert_eq!(changes.len(), 2);
        changes.clear();
    }
}

fn kept() -> (Retained, Vec<Arc<Message>>) {
    let mut retained = Retained::new();
    let messages: Vec<_> = topics()
        .iter()
        .map(|topic| {
            Arc::new(Message {
                topic: topic.into(),
                qos: QoS::AtLeastOnce,
                retain: true,
                properties: Box::default(),
                expires_at_ms: None,
                payload: Bytes::from_static(&[b'x'; 64]),
            })
        })
        .collect();
    for message in &messages {
        retained.set(Arc::clone(message), Stamp::default());
    }
    (retained, messages)
}

fn set(n: u64) {
    let (mut retained, messages) = kept();
    for (message, time) in messages.iter().cycle().zip(0..n) {
        assert!(retained.set(Arc::clone(message), Stamp { time, origin: 0 }));
    }
}

fn get(n: u64) {
    let (retained, _) = kept();
    let topics = topics();
    for topic in topics.iter().cycle().take(n as usize) {
        assert!(black_box(retained.get(TopicName::trusted(topic), 0)).is_some());
    }
}
