// SPDX-License-Identifier: Apache-2.0
//! Time per match and bytes of memory per filter, each case in a process of its own.
//!
//! `cargo bench -p corqtt-topics --bench matching [-- CASE...]`; times are the best of several rounds, memory is growth of the resident set.
#![expect(clippy::disallowed_methods, reason = "a bench reads the clock")]

use std::hint::black_box;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use corqtt_codec::{Message, QoS, TopicFilter, TopicName};
use corqtt_topics::{
    ClientKey, Cursor, Interest, Matches, Partition, Publisher, Retained, ShardId, Stamp, Strategy,
    Subscription, Want,
};

const MILLION: u32 = 1_000_000;
const ROUNDS: usize = 7;

const CASES: [(&str, fn()); 11] = [
    ("exact-1k", || exact(1_000)),
    ("exact-1m", || exact(MILLION)),
    ("clients-1m", clients),
    ("remote-1", || remote(1)),
    ("remote-3", || remote(3)),
    ("local-and-remote-4x250k", quarters),
    ("wildcard", wildcards),
    ("overlap", overlap),
    ("fan-out", fan_out),
    ("shared", shared),
    ("retained-1m", retained),
];

fn main() {
    let asked: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with("--"))
        .collect();
    if let [child, case] = asked.as_slice()
        && child == "child"
    {
        let (_, run) = CASES
            .iter()
            .find(|(name, _)| name == case)
            .expect("a case that the parent named");
        return run();
    }
    // Run as a test there is nothing to find out.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let program = std::env::current_exe().expect("this program has a path");
    for (name, _) in CASES
        .iter()
        .filter(|(name, _)| asked.is_empty() || asked.iter().any(|case| case == name))
    {
        println!("{name}");
        let status = Command::new(&program)
            .args(["child", name])
            .status()
            .expect("this program starts");
        assert!(status.success(), "{name} failed");
    }
}

/// 24 bytes.
fn name(number: u32) -> String {
    format!("site/{:03}/device/{number:08}", number % 1_000)
}

fn filter(text: &str) -> TopicFilter<'_> {
    TopicFilter::parse(text).expect("a filter")
}

fn topic(text: &str) -> TopicName<'_> {
    TopicName::parse(text).expect("a topic")
}

fn partition() -> Partition {
    Partition::new(ShardId(0), 4, 0x5eed, Strategy::RoundRobin)
}

const QOS1: Subscription = Subscription::new(QoS::AtLeastOnce);

/// Resident bytes of this process.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux has /proc");
    let pages: usize = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .expect("the second field");
    pages * 4096
}

struct Memory(usize);

impl Memory {
    fn start() -> Self {
        Self(resident())
    }

    /// Bytes each.
    fn report(&self, what: &str, count: u32) -> f64 {
        let bytes = resident().saturating_sub(self.0);
        let mb = bytes as f64 / 1e6;
        let each = bytes as f64 / f64::from(count);
        println!("  {what:<58} {mb:8.1} MB {each:8.1} bytes each");
        each
    }
}

/// Ends the bench where a figure is not what it has to be.
fn judge(what: &str, figure: f64, limit: f64) {
    println!("  {what:<58} {figure:8.2}, at most {limit}");
    assert!(figure <= limit, "{what}: {figure:.2}, at most {limit}");
}

/// The best of several rounds, in ns per call.
fn time(what: &str, calls: usize, mut round: impl FnMut()) -> f64 {
    let mut best = f64::MAX;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        round();
        best = best.min(start.elapsed().as_nanos() as f64 / calls as f64);
    }
    println!("  {what:<58} {best:8.1} ns");
    best
}

fn time_matches(what: &str, partition: &mut Partition, topics: &[String], hits: usize) -> f64 {
    let mut matches = Matches::new();
    let repeats = (200_000 / (topics.len() * hits.max(1))).max(1);
    time(what, topics.len() * repeats, || {
        for _ in 0..repeats {
            for text in topics {
                partition.matches(TopicName::trusted(text), Publisher::default(), &mut matches);
                assert_eq!(black_box(&matches).hits.len(), hits);
            }
        }
    })
}

/// 0..count in an order that no prefetcher knows.
fn shuffled(count: u32) -> Vec<u32> {
    let mut order: Vec<u32> = (0..count).collect();
    let mut random = 1_u64;
    for at in (1..order.len()).rev() {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        order.swap(at, (random >> 33) as usize % (at + 1));
    }
    order
}

/// One client with so many exact filters.
fn exact(count: u32) {
    let same: Vec<String> = shuffled(1_000).into_iter().map(name).collect();
    let mut changes = Vec::new();
    let mut small = partition();
    small.client_changed(ClientKey(0), false, true, &mut changes);
    for name in &same {
        small.subscribe(ClientKey(0), filter(name), QOS1, &mut changes);
    }
    let of_small = time_matches("match among 1,000 filters", &mut small, &same, 1);
    let mut partition = partition();
    changes.clear();
    partition.client_changed(ClientKey(0), false, true, &mut changes);
    let memory = Memory::start();
    let start = Instant::now();
    for number in 0..count {
        partition.subscribe(ClientKey(0), filter(&name(number)), QOS1, &mut changes);
        changes.clear();
    }
    println!(
        "  {:<58} {:8.1} ns",
        "subscribe",
        start.elapsed().as_nanos() as f64 / f64::from(count)
    );
    let each = memory.report(&format!("{count} exact filters of one client"), count);
    if count == 1_000 {
        return;
    }
    let of_large = time_matches(
        "match, the 1,000 topics subscribed first",
        &mut partition,
        &same,
        1,
    );
    judge("bytes per filter", each, 200.0);
    judge("times the match among 1,000", of_large / of_small, 2.0);
    let spread: Vec<String> = shuffled(1_000)
        .into_iter()
        .map(|number| name(number * (count / 1_000)))
        .collect();
    time_matches(
        "match, 1,000 topics spread over all",
        &mut partition,
        &spread,
        1,
    );
    let all: Vec<String> = shuffled(count).into_iter().map(name).collect();
    let of_all = time_matches("match, all topics in random order", &mut partition, &all, 1);
    judge("ns of a match, over all topics", of_all, 1_000.0);
    let none: Vec<String> = shuffled(1_000)
        .into_iter()
        .map(|number| format!("{}/x", name(number)))
        .collect();
    time_matches(
        "match, 1,000 topics that nobody wants",
        &mut partition,
        &none,
        0,
    );
    let start = Instant::now();
    for text in &all[..all.len() / 2] {
        assert!(partition.unsubscribe(ClientKey(0), filter(text), &mut changes));
        changes.clear();
    }
    println!(
        "  {:<58} {:8.1} ns",
        "unsubscribe",
        start.elapsed().as_nanos() as f64 / f64::from(count / 2)
    );
    let start = Instant::now();
    partition.remove_client(ClientKey(0), &mut changes);
    println!(
        "  {:<58} {:8.1} ns",
        "remove_client, per filter",
        start.elapsed().as_nanos() as f64 / f64::from(count / 2)
    );
    assert_eq!(partition.len(), 0);
}

fn clients() {
    let mut partition = partition();
    let mut changes = Vec::new();
    let memory = Memory::start();
    for number in 0..MILLION {
        partition.client_changed(ClientKey(number), false, true, &mut changes);
        partition.subscribe(ClientKey(number), filter(&name(number)), QOS1, &mut changes);
        changes.clear();
    }
    memory.report("1,000,000 clients with an exact filter each", MILLION);
    let all: Vec<String> = shuffled(MILLION).into_iter().map(name).collect();
    time_matches("match, all topics in random order", &mut partition, &all, 1);
}

fn apply(partition: &mut Partition, from: u8, filter: &str) {
    let want = Want::Plain {
        any: true,
        persistent: true,
    };
    partition.apply_interest(
        ShardId(from),
        &Interest {
            filter: filter.into(),
            want,
        },
    );
}

fn remote(shards: u8) {
    let mut partition = partition();
    let memory = Memory::start();
    for shard in 1..=shards {
        for number in 0..MILLION {
            apply(&mut partition, shard, &name(number));
        }
    }
    let each = memory.report(
        &format!("1,000,000 filters that {shards} other shards want"),
        MILLION,
    );
    judge("bytes per filter and shard", each / f64::from(shards), 80.0);
    let mut matches = Matches::new();
    let all: Vec<String> = shuffled(MILLION).into_iter().map(name).collect();
    time("match, all topics in random order", all.len(), || {
        for text in &all {
            partition.matches(TopicName::trusted(text), Publisher::default(), &mut matches);
            assert_eq!(black_box(&matches).shards.count_ones(), u32::from(shards));
        }
    });
}

/// What one shard of four holds when the clients of all have a million distinct filters together.
fn quarters() {
    let mut partition = partition();
    let mut changes = Vec::new();
    partition.client_changed(ClientKey(0), false, true, &mut changes);
    let memory = Memory::start();
    for number in (0..MILLION).step_by(4) {
        partition.subscribe(ClientKey(0), filter(&name(number)), QOS1, &mut changes);
        changes.clear();
        for shard in 1..4 {
            apply(&mut partition, shard, &name(number + u32::from(shard)));
        }
    }
    memory.report(
        "250,000 filters of its own and of each other shard",
        MILLION,
    );
}

fn wildcards() {
    let mut partition = partition();
    let mut changes = Vec::new();
    partition.client_changed(ClientKey(0), false, true, &mut changes);
    let memory = Memory::start();
    for number in 0..100_000 {
        partition.subscribe(
            ClientKey(0),
            filter(&format!("{}/+", name(number))),
            QOS1,
            &mut changes,
        );
        changes.clear();
    }
    memory.report("100,000 filters of five levels that end with +", 100_000);
    let topics: Vec<String> = shuffled(100_000)
        .into_iter()
        .take(1_000)
        .map(|number| format!("{}/t", name(number)))
        .collect();
    time_matches("match, 1,000 topics", &mut partition, &topics, 1);
    let all: Vec<String> = shuffled(100_000)
        .into_iter()
        .map(|number| format!("{}/t", name(number)))
        .collect();
    time_matches("match, all topics in random order", &mut partition, &all, 1);
    let none: Vec<String> = shuffled(1_000)
        .into_iter()
        .map(|number| format!("other/{}/t", name(number)))
        .collect();
    time_matches(
        "match, 1,000 topics that nobody wants",
        &mut partition,
        &none,
        0,
    );
    let empty = ["/".repeat(60_000)];
    time_matches(
        "match, a topic of 60,001 empty levels",
        &mut partition,
        &empty,
        0,
    );
    for number in 0..10 {
        let text = format!("+/+/device/{number:08}/t");
        partition.subscribe(ClientKey(0), filter(&text), QOS1, &mut changes);
    }
    time_matches(
        "match, 1,000 topics, with ten filters that start with +",
        &mut partition,
        &topics,
        1,
    );
}

fn overlap() {
    let mut partition = partition();
    let mut changes = Vec::new();
    for client in 0..10 {
        partition.client_changed(ClientKey(client), false, true, &mut changes);
        for text in ["a/b/c", "a/+/c", "a/#"] {
            partition.subscribe(ClientKey(client), filter(text), QOS1, &mut changes);
        }
    }
    time_matches(
        "match, ten clients with three filters each",
        &mut partition,
        &["a/b/c".to_owned()],
        10,
    );
}

fn fan_out() {
    for count in [50, 1_000, 100_000] {
        let mut partition = partition();
        let mut changes = Vec::new();
        let memory = Memory::start();
        for client in 0..count {
            partition.client_changed(ClientKey(client), false, true, &mut changes);
            partition.subscribe(ClientKey(client), filter("a/b/c"), QOS1, &mut changes);
        }
        memory.report(&format!("{count} subscribers of one filter"), count);
        time_matches(
            "match",
            &mut partition,
            &["a/b/c".to_owned()],
            count as usize,
        );
        let start = Instant::now();
        for client in 0..count {
            partition.unsubscribe(ClientKey(client), filter("a/b/c"), &mut changes);
        }
        println!(
            "  {:<58} {:8.1} ns",
            "unsubscribe",
            start.elapsed().as_nanos() as f64 / f64::from(count)
        );
    }
}

fn shared() {
    let mut partition = partition();
    let mut changes = Vec::new();
    for client in 0..20 {
        partition.client_changed(ClientKey(client), false, true, &mut changes);
        partition.subscribe(
            ClientKey(client),
            filter("$share/g/a/b/c"),
            QOS1,
            &mut changes,
        );
    }
    let topics = ["a/b/c".to_owned()];
    time_matches(
        "match, one group of 20 members here",
        &mut partition,
        &topics,
        0,
    );
    for shard in 1..4 {
        let want = Want::Group {
            online: 20,
            offline: 0,
            persistent: false,
        };
        partition.apply_interest(
            ShardId(shard),
            &Interest {
                filter: "$share/g/a/b/c".into(),
                want,
            },
        );
    }
    time_matches(
        "match, one group of 20 members on each of four shards",
        &mut partition,
        &topics,
        0,
    );
}

fn retained() {
    let mut retained = Retained::new();
    let memory = Memory::start();
    let publish = |retained: &mut Retained, text: &str| {
        let message = Message {
            topic: text.into(),
            qos: QoS::AtLeastOnce,
            retain: true,
            properties: Box::default(),
            expires_at_ms: None,
            payload: Bytes::copy_from_slice(&[b'x'; 64]),
        };
        assert!(retained.set(Arc::new(message), Stamp { time: 1, origin: 0 }));
    };
    let start = Instant::now();
    for number in shuffled(MILLION) {
        let reading = if number % 100 == 0 { "status" } else { "volts" };
        publish(
            &mut retained,
            &format!("dev{:05}/{reading}/{}", number / 100, number % 100),
        );
    }
    println!(
        "  {:<58} {:8.1} ns",
        "set, random order",
        start.elapsed().as_nanos() as f64 / f64::from(MILLION)
    );
    memory.report("1,000,000 retained messages of 64 bytes", MILLION);
    let topics: Vec<String> = shuffled(MILLION / 100)
        .into_iter()
        .map(|number| format!("dev{number:05}/status/0"))
        .collect();
    time("get, random order", topics.len(), || {
        for text in &topics {
            assert!(black_box(retained.get(topic(text), 0)).is_some());
        }
    });
    for text in ["#", "+/status/+", "dev05000/#", "dev05000/+/0"] {
        let filter = filter(text);
        let mut found = Vec::new();
        let mut looks = 0;
        let start = Instant::now();
        let mut cursor = Cursor::new();
        let mut longest = 0;
        loop {
            let page = Instant::now();
            let finished = retained.page(filter, &mut cursor, 1_000, 0, &mut found);
            longest = longest.max(page.elapsed().as_micros());
            looks += 1;
            if finished {
                break;
            }
        }
        println!(
            "  {:<58} {:8.1} ms {:8} found, {looks} pages of 1,000 looks, longest {longest} µs",
            format!("pages for {text}"),
            start.elapsed().as_secs_f64() * 1e3,
            found.len()
        );
    }
}
