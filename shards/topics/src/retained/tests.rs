// SPDX-License-Identifier: Apache-2.0
use bytes::Bytes;
use corqtt_codec::QoS;

use super::*;
use crate::hash::scatter;

fn message(topic: &str, payload: &'static str, expires_at_ms: Option<u64>) -> Arc<Message> {
    Arc::new(Message {
        topic: topic.into(),
        qos: QoS::AtLeastOnce,
        retain: true,
        properties: Box::default(),
        expires_at_ms,
        payload: Bytes::from_static(payload.as_bytes()),
    })
}

const fn at(time: u64) -> Stamp {
    Stamp { time, origin: 0 }
}

fn kept(topics: &[&str]) -> Retained {
    let mut retained = Retained::new();
    for topic in topics {
        assert!(retained.set(message(topic, "x", None), at(1)));
    }
    retained
}

fn topic(text: &str) -> TopicName<'_> {
    TopicName::parse(text).expect("a topic")
}

fn filter(text: &str) -> TopicFilter<'_> {
    TopicFilter::parse(text).expect("a filter")
}

/// All topics that match, in pages of `work_max`, and how many pages that took.
fn pages(retained: &Retained, text: &str, work_max: usize, now: u64) -> (Vec<String>, usize) {
    let mut cursor = Cursor::new();
    let mut found = Vec::new();
    let mut pages = 1;
    while !retained.page(filter(text), &mut cursor, work_max, now, &mut found) {
        pages += 1;
    }
    (
        found
            .iter()
            .map(|message| message.topic.to_string())
            .collect(),
        pages,
    )
}

fn found(retained: &Retained, text: &str) -> Vec<String> {
    pages(retained, text, 3, 0).0
}

// [MQTT-3.3.1-5] [MQTT5-3.3.1-5]
#[test]
fn the_last_message_of_a_topic_is_kept() {
    let mut retained = kept(&["a"]);
    assert!(retained.set(message("a", "second", None), at(2)));
    let (message, stamp) = retained.get(topic("a"), 0).expect("kept");
    assert_eq!((message.payload.as_ref(), stamp), (&b"second"[..], at(2)));
    assert_eq!((retained.len(), retained.bytes()), (1, 7));
}

// [MQTT-3.3.1-10] [MQTT-3.3.1-11] [MQTT5-3.3.1-6] [MQTT5-3.3.1-7]
#[test]
fn retain_with_empty_payload_clears_topic() {
    let mut retained = kept(&["a", "b"]);
    assert!(retained.set(message("a", "", None), at(2)));
    assert!(retained.get(topic("a"), 0).is_none());
    assert!(retained.set(message("never", "", None), at(2)));
    assert_eq!((retained.len(), retained.bytes()), (1, 2));
}

#[test]
fn growth_is_what_a_message_adds() {
    let mut retained = kept(&["a"]);
    for (name, payload, stamp, growth) in [
        ("b", "12", 2, (1, 3)),
        ("a", "12", 2, (0, 1)),
        ("a", "1", 2, (0, 0)),
        ("a", "", 2, (0, 0)),
        ("b", "", 2, (0, 0)),
        ("a", "much longer, but older", 0, (0, 0)),
    ] {
        let new = message(name, payload, None);
        assert_eq!(retained.growth(&new, at(stamp)), growth, "{name} {payload}");
        let mut after = kept(&["a"]);
        let before = (after.len(), after.bytes());
        after.set(new, at(stamp));
        let grown = (
            after.len().saturating_sub(before.0),
            after.bytes().saturating_sub(before.1),
        );
        assert_eq!(grown, growth, "{name} {payload}");
    }
    assert!(retained.set(message("a", "x", None), at(1)));
}

#[test]
fn an_older_message_or_clear_is_refused() {
    let mut retained = Retained::new();
    let newest = Stamp { time: 5, origin: 2 };
    assert!(retained.set(message("a", "new", None), newest));
    assert!(!retained.set(message("a", "old", None), Stamp { time: 5, origin: 1 }));
    assert!(!retained.set(message("a", "", None), at(4)));
    assert!(retained.set(message("a", "again", None), newest));
    assert_eq!(
        retained.get(topic("a"), 0).map(|(_, stamp)| stamp),
        Some(newest)
    );
}

#[test]
fn an_expired_message_is_not_found_and_then_removed() {
    let mut retained = kept(&["stays/1", "stays/2"]);
    retained.set(message("goes/1", "x", Some(100)), at(1));
    retained.set(message("goes/2", "x", Some(200)), at(1));
    assert!(retained.get(topic("goes/1"), 99).is_some());
    assert!(retained.get(topic("goes/1"), 100).is_none());
    assert_eq!(
        pages(&retained, "#", 10, 100).0,
        ["goes/2", "stays/1", "stays/2"]
    );
    let removed: usize = (0..4).map(|_| retained.expire_step(1, 100)).sum();
    assert_eq!((removed, retained.len()), (1, 3));
    assert_eq!(
        retained.expire_step(10, 300),
        0,
        "the sweep goes on where it was"
    );
    assert_eq!(retained.expire_step(10, 300), 1);
    assert_eq!((retained.len(), retained.bytes()), (2, 16));
}

#[test]
fn a_sweep_without_anything_that_expires_looks_at_nothing() {
    let mut retained = kept(&["a", "b"]);
    retained.set(message("c", "x", Some(1)), at(1));
    retained.set(message("c", "x", None), at(2));
    assert_eq!(retained.expire_step(2, 10), 0);
    assert_eq!(retained.sweep, Cursor::new());
}

#[test]
fn an_exact_filter_finds_its_topic() {
    let retained = kept(&["a", "a/b", "a/b/c"]);
    assert_eq!(found(&retained, "a/b"), ["a/b"]);
    assert_eq!(found(&retained, "b"), [""; 0]);
}

#[test]
fn levels_with_bytes_below_the_slash_do_not_hide_what_is_below_a_level() {
    let retained = kept(&["a", "a!", "a!/b", "a/b", "a/c", "a-b", "a0", "ab/b", " /b"]);
    assert_eq!(found(&retained, "a/+"), ["a/b", "a/c"]);
    assert_eq!(found(&retained, "a/#"), ["a", "a/b", "a/c"]);
    assert_eq!(found(&retained, "+/b"), [" /b", "a!/b", "a/b", "ab/b"]);
}

#[test]
fn empty_levels_are_levels() {
    let retained = kept(&["/", "//", "/a", "a/", "a//b"]);
    assert_eq!(found(&retained, "+/+"), ["/", "/a", "a/"]);
    assert_eq!(found(&retained, "/+"), ["/", "/a"]);
    assert_eq!(found(&retained, "a/+/b"), ["a//b"]);
    assert_eq!(found(&retained, "/#"), ["/", "//", "/a"]);
}

// [MQTT-4.7.2-1] [MQTT5-4.7.2-1]
#[test]
fn first_level_wildcards_do_not_see_dollar_topics() {
    let retained = kept(&["!", "$SYS/uptime", "$x", "%", "a/uptime"]);
    assert_eq!(found(&retained, "#"), ["!", "%", "a/uptime"]);
    assert_eq!(found(&retained, "+/uptime"), ["a/uptime"]);
    assert_eq!(found(&retained, "$SYS/#"), ["$SYS/uptime"]);
}

#[test]
fn what_cannot_match_is_skipped() {
    let mut retained = Retained::new();
    for device in 0..100 {
        for reading in 0..100 {
            retained.set(
                message(&format!("device{device}/sensors/{reading}"), "x", None),
                at(1),
            );
        }
        retained.set(message(&format!("device{device}/status"), "x", None), at(1));
    }
    let (topics, looks) = pages(&retained, "+/status", 1, 0);
    assert_eq!(topics.len(), 100);
    assert!(looks < 100 * 25, "{looks} of 10,100 topics were looked at");
    let (topics, looks) = pages(&retained, "device7/sensors/+", 1, 0);
    assert_eq!(topics.len(), 100);
    assert!(looks < 110, "{looks}");
}

#[test]
fn a_page_looks_at_no_more_than_it_may() {
    let topics: Vec<String> = (0..100).map(|number| format!("a/{number}/x")).collect();
    let retained = kept(&topics.iter().map(String::as_str).collect::<Vec<_>>());
    let mut cursor = Cursor::new();
    let mut found = Vec::new();
    assert!(!retained.page(filter("a/+/y"), &mut cursor, 40, 0, &mut found));
    assert!(!retained.page(filter("a/+/y"), &mut cursor, 40, 0, &mut found));
    assert!(retained.page(filter("a/+/y"), &mut cursor, 200, 0, &mut found));
    assert!(found.is_empty());
}

/// Changes between pages: what is there all the time is found once, what never is is not found.
fn run(seed: u64) {
    let mut random = seed;
    let mut draw = |below: u64| {
        random = scatter(random);
        random % below
    };
    let levels = ["a", "b", "", "a-", "$s", "~"];
    let name = |draw: &mut dyn FnMut(u64) -> u64| {
        let name: Vec<&str> = (0..=draw(4)).map(|_| levels[draw(6) as usize]).collect();
        name.join("/")
    };
    let mut retained = Retained::new();
    let mut model: BTreeMap<String, bool> = BTreeMap::new();
    let mut time = 0;
    for _ in 0..200 {
        let topic = name(&mut draw);
        if !topic.is_empty() {
            time += 1;
            retained.set(message(&topic, "x", None), at(time));
            model.insert(topic, true);
        }
    }
    for _ in 0..30 {
        let mut text = name(&mut draw).replace('b', "+");
        if draw(3) == 0 {
            text.push_str(if text.is_empty() { "#" } else { "/#" });
        }
        let Ok(parsed) = TopicFilter::parse(&text) else {
            continue;
        };
        let work_max = 1 + draw(20) as usize;
        let mut cursor = Cursor::new();
        let mut found = Vec::new();
        // true: there all the time.
        model.values_mut().for_each(|always| *always = true);
        let mut ever: Vec<String> = model.keys().cloned().collect();
        while !retained.page(parsed, &mut cursor, work_max, 0, &mut found) {
            let topic = name(&mut draw);
            if topic.is_empty() {
                continue;
            }
            time += 1;
            if draw(2) == 0 {
                retained.set(message(&topic, "", None), at(time));
                model.remove(&topic);
            } else {
                retained.set(message(&topic, "y", None), at(time));
                model.entry(topic.clone()).or_insert(false);
                ever.push(topic);
            }
        }
        let mut topics: Vec<&str> = found.iter().map(|message| message.topic.as_str()).collect();
        topics.sort_unstable();
        assert!(
            topics.windows(2).all(|pair| pair[0] != pair[1]),
            "seed {seed} {text}: found twice in {topics:?}"
        );
        for found in &topics {
            assert!(parsed.matches(topic(found)), "seed {seed} {text}: {found}");
            assert!(
                ever.iter().any(|known| known == found),
                "seed {seed} {text}: {found}"
            );
        }
        for (known, always) in &model {
            if *always && parsed.matches(topic(known)) {
                assert!(
                    topics.contains(&known.as_str()),
                    "seed {seed} {text}: missed {known}"
                );
            }
        }
    }
    assert_eq!(retained.len(), model.len());
    assert_eq!(
        retained.bytes(),
        model.keys().map(|topic| topic.len() + 1).sum::<usize>()
    );
}

#[test]
fn pages_agree_with_a_naive_list_while_messages_come_and_go() {
    for seed in 0..200 {
        run(seed);
    }
}

#[test]
fn what_the_broker_says_of_itself_counts_apart() {
    for (topic, expected) in [
        ("$SYS", true),
        ("$SYS/", true),
        ("$SYS/broker/uptime", true),
        ("$SYSTEM", false),
        ("$sys/broker", false),
        ("a/$SYS/b", false),
        ("SYS", false),
    ] {
        assert_eq!(is_system(topic), expected, "{topic}");
    }
    let mut retained = kept(&["a", "$SYS/broker/uptime", "$SYS/broker/time"]);
    assert_eq!((retained.len(), retained.of_clients()), (3, 1));
    let one = message("a", "x", None).size();
    assert_eq!(retained.bytes_of_clients(), one);
    // a new value, the end of one, and one that expires
    retained.set(message("$SYS/broker/uptime", "longer", None), at(2));
    retained.set(message("$SYS/broker/time", "", None), at(2));
    retained.set(message("b", "y", Some(10)), at(2));
    assert_eq!((retained.len(), retained.of_clients()), (3, 2));
    assert_eq!(retained.expire_step(100, 10), 1);
    assert_eq!((retained.len(), retained.of_clients()), (2, 1));
    assert_eq!(retained.bytes_of_clients(), one);
    let system = message("$SYS/broker/uptime", "longer", None).size();
    assert_eq!(retained.bytes(), one + system);
}
