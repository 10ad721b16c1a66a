// SPDX-License-Identifier: Apache-2.0
//! Section 4.7, and 4.8.2 of 5.0.

use crate::{InvalidTopic, TopicFilter, TopicName};

fn filter(text: &str) -> TopicFilter<'_> {
    TopicFilter::parse(text).unwrap()
}

fn matches(filter_text: &str, name: &str) -> bool {
    filter(filter_text).matches(TopicName::parse(name).unwrap())
}

// [MQTT-4.7.1-1] [MQTT5-4.7.0-1] [MQTT-4.7.3-1] [MQTT5-4.7.3-1] [MQTT-4.7.3-2] [MQTT5-4.7.3-2] [MQTT-4.7.3-3]
// [MQTT5-4.7.3-3]
#[test]
fn names_are_not_empty_and_free_of_wildcards_and_nul() {
    for name in ["", "+", "a/#", "a+b", "a\0b", &"x".repeat(65_536)] {
        assert_eq!(TopicName::parse(name), Err(InvalidTopic), "{name}");
    }
    for name in [
        "/",
        "a",
        "a/b",
        "//",
        "$SYS/x",
        "ä/\u{feff}",
        " ",
        &"x".repeat(65_535),
    ] {
        assert_eq!(TopicName::parse(name).map(TopicName::as_str), Ok(name));
    }
}

#[test]
fn what_a_name_must_not_hold_is_found_at_every_place() {
    for length in 1..40 {
        for at in 0..length {
            for byte in 0..128_u8 {
                let mut name = vec![b'a'; length];
                name[at] = byte;
                let valid = !matches!(byte, 0 | b'+' | b'#');
                let name = String::from_utf8(name).unwrap();
                assert_eq!(TopicName::parse(&name).is_ok(), valid, "{name:?}");
            }
        }
    }
}

// [MQTT-4.7.1-2] [MQTT-4.7.1-3] [MQTT5-4.7.1-1] [MQTT5-4.7.1-2] [MQTT-4.7.3-1] [MQTT5-4.7.3-1] [MQTT-4.7.3-2]
// [MQTT5-4.7.3-2] [MQTT-4.7.3-3] [MQTT5-4.7.3-3]
#[test]
fn wildcards_stand_alone_and_hash_is_last() {
    for text in [
        "",
        "a#",
        "a/#/b",
        "#/",
        "##",
        "a/b#",
        "a+",
        "+a",
        "a/+b",
        "a/b+/c",
        "++",
        "+#",
        "a\0",
        "\0",
        &"x".repeat(65_536),
    ] {
        assert_eq!(TopicFilter::parse(text), Err(InvalidTopic), "{text}");
    }
    for text in [
        "#",
        "+",
        "/",
        "+/+",
        "/+",
        "a/+/b/#",
        "sport/tennis/#",
        "$SYS/#",
        "//",
    ] {
        let filter = filter(text);
        assert_eq!(
            (filter.full(), filter.filter(), filter.group()),
            (text, text, None)
        );
        assert_eq!(filter, TopicFilter::trusted(text));
        assert!(!filter.is_shared());
    }
    assert!(filter("a/+/b").has_wildcard());
    assert!(filter("a/#").has_wildcard());
    assert!(!filter("a/b").has_wildcard());
}

// [MQTT5-4.8.2-1] [MQTT5-4.8.2-2]
#[test]
fn shared_filters_have_a_group_and_a_filter() {
    for text in [
        "$share/",
        "$share//",
        "$share//a",
        "$share/g",
        "$share/g/",
        "$share/+/a",
        "$share/g#/a",
        "$share/g/a#",
        "$share/g/#/b",
    ] {
        assert_eq!(TopicFilter::parse(text), Err(InvalidTopic), "{text}");
    }
    for (text, group, plain, wildcard) in [
        ("$share/g/a", "g", "a", false),
        ("$share/g//", "g", "/", false),
        ("$share/a group/a/+/b", "a group", "a/+/b", true),
        ("$share/g/#", "g", "#", true),
    ] {
        let filter = filter(text);
        assert_eq!(
            (filter.full(), filter.group(), filter.filter()),
            (text, Some(group), plain)
        );
        assert_eq!(
            (filter.is_shared(), filter.has_wildcard()),
            (true, wildcard)
        );
        assert_eq!(filter, TopicFilter::trusted(text));
    }
    // without the slash it is a filter like any other
    assert_eq!(filter("$share").group(), None);
    assert_eq!(filter("$shared/g/a").group(), None);
}

#[test]
fn levels_are_counted_with_the_empty_ones() {
    let name = TopicName::parse("/a//b").unwrap();
    assert_eq!(name.levels().collect::<Vec<_>>(), ["", "a", "", "b"]);
    assert_eq!(name.level_count(), 4);
    let filter = filter("$share/g/a/#");
    assert_eq!(filter.levels().collect::<Vec<_>>(), ["a", "#"]);
    assert_eq!(filter.level_count(), 2);
}

/// The examples of sections 4.7.1.2 and 4.7.1.3.
#[test]
fn filters_match_names() {
    for (text, name) in [
        ("sport/tennis/player1/#", "sport/tennis/player1"),
        ("sport/tennis/player1/#", "sport/tennis/player1/ranking"),
        (
            "sport/tennis/player1/#",
            "sport/tennis/player1/score/wimbledon",
        ),
        ("sport/#", "sport"),
        ("#", "sport/tennis"),
        ("#", "/"),
        ("sport/tennis/+", "sport/tennis/player1"),
        ("sport/+", "sport/"),
        ("+/+", "/finance"),
        ("/+", "/finance"),
        ("+", "finance"),
        ("+/tennis/#", "sport/tennis"),
        ("a//b", "a//b"),
        ("$share/g/sport/#", "sport/x"),
    ] {
        assert!(matches(text, name), "{text} {name}");
    }
    for (text, name) in [
        ("sport/tennis/+", "sport/tennis/player1/ranking"),
        ("sport/+", "sport"),
        ("+", "/finance"),
        ("sport/#", "sports"),
        ("a/b", "a"),
        ("a", "a/b"),
        ("a/b/#", "a"),
        // [MQTT-4.7.3-4] [MQTT5-4.7.3-4]: nothing is made equal
        ("Accounts", "accounts"),
        ("a/", "a"),
        ("/a", "a"),
    ] {
        assert!(!matches(text, name), "{text} {name}");
    }
}

// [MQTT-4.7.2-1] [MQTT5-4.7.2-1]
#[test]
fn a_wildcard_in_the_first_level_does_not_match_dollar_topics() {
    for text in ["#", "+/monitor/Clients", "+/#", "+"] {
        for name in ["$SYS/monitor/Clients", "$SYS"] {
            assert!(!matches(text, name), "{text} {name}");
        }
    }
    assert!(matches("$SYS/#", "$SYS/monitor/Clients"));
    assert!(matches("$SYS/monitor/+", "$SYS/monitor/Clients"));
    assert!(matches("+/$SYS", "a/$SYS"));
    assert!(!matches("$share/g/#", "$SYS/x"));
}
