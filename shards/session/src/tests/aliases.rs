// SPDX-License-Identifier: Apache-2.0
//! Topic aliases, both directions (section 3.3.2.3.4 of 5.0).

use super::*;
use QoS::{AtLeastOnce, AtMostOnce};

/// QoS 0 PUBLISH of 5.0 with an alias.
fn publish(name: &str, alias: u16) -> Vec<u8> {
    let mut bytes = vec![0x30, (2 + name.len() + 4) as u8, 0, name.len() as u8];
    bytes.extend(name.as_bytes());
    bytes.extend([3, 0x23, (alias >> 8) as u8, alias as u8]);
    bytes
}

fn refused(bench: &mut Bench, bytes: &[u8]) -> ReasonCode {
    bench.take(bytes).expect_err("a violation").reason
}

#[test]
fn an_alias_stands_for_the_topic_that_it_was_set_to_last() {
    let mut bench = Bench::persistent(Version::V5);
    for alias in [1, 7, 1024, 1025, 65_535] {
        assert_eq!(bench.take(&publish("a/b", alias)), Ok(Some("a/b".into())));
        assert_eq!(bench.take(&publish("", alias)), Ok(Some("a/b".into())));
        assert_eq!(bench.take(&publish("c", alias)), Ok(Some("c".into())));
        assert_eq!(bench.take(&publish("", alias)), Ok(Some("c".into())));
    }
}

#[test]
fn an_alias_that_was_never_set_is_a_protocol_error() {
    let mut bench = Bench::persistent(Version::V5);
    let reason = refused(&mut bench, &publish("", 3));
    assert_eq!(reason, ReasonCode::PROTOCOL_ERROR);
}

#[test]
fn an_alias_above_our_maximum_is_refused() {
    // [MQTT5-3.3.2-9]
    let mut bench = Bench::persistent(Version::V5);
    bench.limits.topic_alias_maximum = 10;
    assert_eq!(bench.take(&publish("a", 10)), Ok(Some("a".into())));
    let reason = refused(&mut bench, &publish("a", 11));
    assert_eq!(reason, ReasonCode::TOPIC_ALIAS_INVALID);
}

#[test]
fn inbound_aliases_end_with_their_connection() {
    // [MQTT5-3.3.2-7]
    let mut bench = Bench::persistent(Version::V5);
    bench.take(&publish("a/b", 1)).unwrap();
    bench.reconnect(opening(Version::V5));
    let reason = refused(&mut bench, &publish("", 1));
    assert_eq!(reason, ReasonCode::PROTOCOL_ERROR);
}

#[test]
fn the_topics_behind_aliases_have_a_limit_in_bytes() {
    let mut bench = Bench::persistent(Version::V5);
    bench.limits.alias_bytes_max = 6;
    bench.take(&publish("abc", 1)).unwrap();
    bench.take(&publish("def", 2000)).unwrap();
    bench.take(&publish("xyz", 1)).unwrap();
    let reason = refused(&mut bench, &publish("uvwx", 2000));
    assert_eq!(reason, ReasonCode::QUOTA_EXCEEDED);
}

#[test]
fn a_repeat_of_a_qos_2_message_sets_its_alias_too() {
    let mut bench = Bench::persistent(Version::V5);
    let set = b"\x34\x09\x00\x01t\x00\x05\x03\x23\x00\x01";
    assert_eq!(bench.take(set), Ok(Some("t".into())));
    bench.session.acknowledge(
        QoS::ExactlyOnce,
        Some(id(5)),
        ReasonCode::SUCCESS,
        0,
        &mut bench.out,
    );
    bench.reconnect(opening(Version::V5));
    assert_eq!(bench.take(set), Ok(None));
    assert_eq!(bench.take(&publish("", 1)), Ok(Some("t".into())));
}

fn aliasing(topic_alias_maximum: u16, packet_bytes_max: u32) -> Opening {
    Opening {
        topic_alias_maximum,
        packet_bytes_max,
        ..opening(Version::V5)
    }
}

fn send(bench: &mut Bench, name: &str, payload: &[u8]) -> Vec<u8> {
    bench.deliver_as(&message(name, payload, AtMostOnce), plain(AtMostOnce));
    bench.sent()
}

#[test]
fn the_first_topics_get_an_alias_and_keep_it() {
    // [MQTT5-3.1.2-26] [MQTT5-3.3.2-8] [MQTT5-3.3.2-11]
    let mut bench = Bench::open(aliasing(1, u32::MAX));
    assert_eq!(
        send(&mut bench, "room", b"x"),
        b"\x30\x0b\x00\x04room\x03\x23\x00\x01x"
    );
    assert_eq!(
        send(&mut bench, "room", b"x"),
        b"\x30\x07\x00\x00\x03\x23\x00\x01x"
    );
    assert_eq!(
        send(&mut bench, "hall", b"x"),
        b"\x30\x08\x00\x04hall\x00x",
        "one is all there are"
    );
}

#[test]
fn without_a_maximum_there_are_no_aliases() {
    // [MQTT5-3.1.2-27]
    let mut bench = Bench::persistent(Version::V5);
    for _ in 0..2 {
        assert_eq!(send(&mut bench, "room", b"x"), b"\x30\x08\x00\x04room\x00x");
    }
}

#[test]
fn a_short_topic_gets_no_alias_that_would_make_it_longer() {
    let mut bench = Bench::open(aliasing(9, 8));
    for _ in 0..2 {
        assert_eq!(send(&mut bench, "abc", b""), b"\x30\x06\x00\x03abc\x00");
    }
}

#[test]
fn outbound_aliases_end_with_their_connection() {
    // [MQTT5-3.3.2-7]
    let mut bench = Bench::open(aliasing(9, u32::MAX));
    send(&mut bench, "room", b"x");
    bench.reconnect(aliasing(9, u32::MAX));
    assert_eq!(
        send(&mut bench, "room", b"x"),
        b"\x30\x0b\x00\x04room\x03\x23\x00\x01x"
    );
}

#[test]
fn an_alias_is_not_announced_by_a_packet_that_has_no_room_for_it() {
    // [MQTT5-3.1.2-24]
    let mut bench = Bench::open(aliasing(9, 13));
    assert_eq!(
        send(&mut bench, "room", b"xyz"),
        b"\x30\x0a\x00\x04room\x00xyz",
        "15 bytes with the alias"
    );
    assert_eq!(
        send(&mut bench, "room", b"x"),
        b"\x30\x0b\x00\x04room\x03\x23\x00\x01x",
        "a smaller one announces it"
    );
    assert_eq!(
        send(&mut bench, "room", b"xyz"),
        b"\x30\x09\x00\x00\x03\x23\x00\x01xyz"
    );
}

#[test]
fn a_dropped_packet_announces_no_alias() {
    let mut bench = Bench::open(aliasing(9, 14));
    assert_eq!(send(&mut bench, "room", b"much too long"), b"");
    assert_eq!(
        send(&mut bench, "room", b"x"),
        b"\x30\x0b\x00\x04room\x03\x23\x00\x01x"
    );
}

#[test]
fn our_own_aliases_have_a_limit_in_bytes() {
    let mut bench = Bench::open(aliasing(9, u32::MAX));
    bench.limits.alias_bytes_max = 7;
    send(&mut bench, "room", b"x");
    assert_eq!(send(&mut bench, "hall", b"x"), b"\x30\x08\x00\x04hall\x00x");
}

#[test]
fn what_is_sent_again_uses_the_aliases_of_its_connection() {
    let mut bench = Bench::open(aliasing(9, u32::MAX));
    for payload in [b"1", b"2"] {
        let message = message("room", payload, AtLeastOnce);
        bench.deliver_as(&message, plain(AtLeastOnce));
    }
    bench.reconnect(aliasing(9, u32::MAX));
    let expected: [&[u8]; 2] = [
        b"\x3a\x0d\x00\x04room\x00\x01\x03\x23\x00\x011",
        b"\x3a\x09\x00\x00\x00\x02\x03\x23\x00\x012",
    ];
    assert_eq!(bench.sent(), expected.concat());
}
