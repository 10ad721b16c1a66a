// SPDX-License-Identifier: Apache-2.0
//! Client to broker: QoS flows, Receive Maximum, the order of acknowledgements.

use super::*;
use QoS::{AtLeastOnce, AtMostOnce, ExactlyOnce};

const VERSIONS: [Version; 3] = [Version::V31, Version::V311, Version::V5];

#[test]
fn qos_0_is_not_acknowledged() {
    // [MQTT-3.3.4-1] [MQTT5-3.3.4-1]
    let mut bench = Bench::persistent(Version::V311);
    assert_eq!(bench.take(b"\x30\x04\x00\x01tx"), Ok(Some("t".into())));
    let key = bench
        .session
        .acknowledge(AtMostOnce, None, ReasonCode::SUCCESS, 3, &mut bench.out);
    assert_eq!(key, None);
    assert_eq!(bench.sent(), b"");
    assert_eq!(bench.session.received_unacked, 0);
}

#[test]
fn qos_1_is_acknowledged_and_its_id_may_come_again_as_another_message() {
    // [MQTT-4.3.2-2] [MQTT5-4.3.2-4] [MQTT5-4.3.2-5]
    for version in VERSIONS {
        let mut bench = Bench::persistent(version);
        for _ in 0..2 {
            assert_eq!(bench.routed(AtLeastOnce, 9, 0), None);
            assert_eq!(bench.sent(), ack(PUBACK, 9));
        }
        assert_eq!(bench.session.received_unacked, 0);
    }
}

#[test]
fn a_qos_2_message_is_routed_once_until_its_pubrel() {
    // [MQTT-4.3.3-2] [MQTT5-4.3.3-8] [MQTT5-4.3.3-10] [MQTT5-4.3.3-11] [MQTT5-4.3.3-12]
    for version in VERSIONS {
        let mut bench = Bench::persistent(version);
        bench.routed(ExactlyOnce, 9, 0);
        assert_eq!(bench.sent(), ack(PUBREC, 9));
        let again = match version {
            Version::V5 => publish_v5(0x3c, 9, b'x'),
            _ => publish_v311(0x3c, 9, b'x'),
        };
        assert_eq!(bench.take(&again), Ok(None));
        assert_eq!(bench.sent(), ack(PUBREC, 9));
        assert_eq!(bench.session.received_unacked, 1);
        assert_eq!(bench.pubrel(9), ack(PUBCOMP, 9));
        assert_eq!(bench.session.received_unacked, 0);
        bench.routed(ExactlyOnce, 9, 0);
        assert_eq!(bench.sent(), ack(PUBREC, 9), "a new message");
    }
}

#[test]
fn a_qos_2_message_stays_known_over_a_reconnect() {
    let mut bench = Bench::persistent(Version::V311);
    bench.routed(ExactlyOnce, 9, 0);
    bench.reconnect(opening(Version::V311));
    assert_eq!(bench.take(&publish_v311(0x3c, 9, b'x')), Ok(None));
    assert_eq!(bench.sent(), ack(PUBREC, 9));
}

#[test]
fn a_pubrel_of_an_unknown_id_is_answered() {
    let mut bench = Bench::persistent(Version::V311);
    assert_eq!(bench.pubrel(9), ack(PUBCOMP, 9));
    let mut bench = Bench::persistent(Version::V5);
    assert_eq!(bench.pubrel(9), [0x70, 3, 0, 9, 0x92]);
    assert_eq!(bench.session.received_unacked, 0);
}

#[test]
fn packet_ids_of_the_two_directions_do_not_meet() {
    let mut bench = Bench::persistent(Version::V311);
    bench.deliver(b'x', ExactlyOnce);
    bench.sent();
    bench.routed(ExactlyOnce, 1, 0);
    bench.sent();
    assert_eq!(bench.pubrel(1), ack(PUBCOMP, 1));
    assert_eq!(bench.session.inflight_len(), 1);
    assert_eq!(bench.pubrec(1, ReasonCode::SUCCESS), ack(PUBREL, 1));
}

#[test]
fn a_refused_qos_2_message_is_forgotten_in_5_0() {
    // [MQTT5-4.3.3-9]
    let mut bench = Bench::persistent(Version::V5);
    let publish = publish_v5(0x34, 9, b'x');
    for _ in 0..2 {
        assert_eq!(bench.take(&publish), Ok(Some("t".into())));
        bench.session.acknowledge(
            ExactlyOnce,
            Some(id(9)),
            ReasonCode::NOT_AUTHORIZED,
            0,
            &mut bench.out,
        );
        assert_eq!(bench.sent(), [0x50, 3, 0, 9, 0x87]);
        assert_eq!(bench.session.received_unacked, 0);
    }
}

#[test]
fn a_refused_qos_2_message_goes_its_way_before_5_0() {
    let mut bench = Bench::persistent(Version::V311);
    bench.take(&publish_v311(0x34, 9, b'x')).unwrap();
    bench.session.acknowledge(
        ExactlyOnce,
        Some(id(9)),
        ReasonCode::NOT_AUTHORIZED,
        0,
        &mut bench.out,
    );
    assert_eq!(bench.sent(), ack(PUBREC, 9));
    assert_eq!(bench.take(&publish_v311(0x3c, 9, b'x')), Ok(None));
    assert_eq!(bench.session.received_unacked, 1);
    bench.pubrel(9);
    assert_eq!(bench.session.received_unacked, 0);
}

#[test]
fn more_than_our_receive_maximum_is_a_violation_in_5_0() {
    // [MQTT5-3.3.4-7]
    let mut bench = Bench::persistent(Version::V5);
    bench.limits.receive_maximum = 2;
    let first = bench.routed(AtLeastOnce, 1, 1);
    bench.routed(ExactlyOnce, 2, 0);
    for publish in [publish_v5(0x32, 3, b'x'), publish_v5(0x34, 3, b'x')] {
        let violation = bench.take(&publish).unwrap_err();
        assert_eq!(violation.reason, ReasonCode::RECEIVE_MAXIMUM_EXCEEDED);
    }
    assert_eq!(bench.take(b"\x30\x05\x00\x01t\x00x"), Ok(Some("t".into())));
    bench.release(first, None);
    assert!(bench.take(&publish_v5(0x32, 3, b'x')).is_ok());
}

#[test]
fn before_5_0_there_is_no_receive_maximum() {
    let mut bench = Bench::persistent(Version::V311);
    bench.limits.receive_maximum = 1;
    bench.routed(ExactlyOnce, 1, 0);
    bench.routed(ExactlyOnce, 2, 0);
    bench.routed(AtLeastOnce, 3, 0);
}

#[test]
fn the_count_of_receive_maximum_is_of_one_connection() {
    let mut bench = Bench::persistent(Version::V5);
    bench.limits.receive_maximum = 2;
    bench.routed(ExactlyOnce, 1, 0);
    bench.routed(ExactlyOnce, 2, 0);
    bench.reconnect(opening(Version::V5));
    assert_eq!(bench.session.received_unacked, 0);
    // PUBREL of what the last connection sent: the count does not go below 0
    assert_eq!(bench.pubrel(1), ack(PUBCOMP, 1));
    assert_eq!(bench.session.received_unacked, 0);
    // what is sent again counts, once
    for _ in 0..2 {
        assert_eq!(bench.take(&publish_v5(0x3c, 2, b'x')), Ok(None));
        assert_eq!(bench.session.received_unacked, 1);
    }
}

#[test]
fn a_pubcomp_for_an_earlier_connection_may_be_taken_for_a_place() {
    // section 4.9: the send quota grows with each PUBCOMP, and the client may have sent others before it came
    let mut bench = Bench::persistent(Version::V5);
    bench.limits.receive_maximum = 1;
    bench.routed(ExactlyOnce, 1, 0);
    bench.reconnect(opening(Version::V5));
    bench.pubrel(1);
    bench.routed(ExactlyOnce, 2, 0);
    bench.routed(ExactlyOnce, 3, 0);
    // never more than twice our Receive Maximum
    bench.pubrel(7);
    let violation = bench.take(&publish_v5(0x34, 4, b'x')).unwrap_err();
    assert_eq!(violation.reason, ReasonCode::RECEIVE_MAXIMUM_EXCEEDED);
}

#[test]
fn what_is_sent_again_must_fit_receive_maximum_too() {
    let mut bench = Bench::persistent(Version::V5);
    bench.routed(ExactlyOnce, 1, 0);
    bench.routed(ExactlyOnce, 2, 0);
    bench.limits.receive_maximum = 1;
    bench.reconnect(opening(Version::V5));
    assert_eq!(bench.take(&publish_v5(0x3c, 1, b'x')), Ok(None));
    let violation = bench.take(&publish_v5(0x3c, 2, b'x')).unwrap_err();
    assert_eq!(violation.reason, ReasonCode::RECEIVE_MAXIMUM_EXCEEDED);
}

#[test]
fn acknowledgements_leave_in_the_order_of_their_packets() {
    // [MQTT-4.6.0-2] [MQTT-4.6.0-3] [MQTT5-4.6.0-2] [MQTT5-4.6.0-3]
    let mut bench = Bench::persistent(Version::V5);
    let first = bench.routed(AtLeastOnce, 1, 2);
    let second = bench.routed(ExactlyOnce, 2, 1);
    assert_eq!(bench.routed(AtLeastOnce, 3, 0), None);
    let fourth = bench.routed(AtLeastOnce, 4, 1);
    assert_eq!(bench.pubrel(9), b"", "PUBCOMP waits as well");
    assert_eq!(bench.release(second, None), b"");
    assert_eq!(bench.release(first, None), b"", "one of two answers");
    let expected = [ack(PUBACK, 1), ack(PUBREC, 2), ack(PUBACK, 3)];
    assert_eq!(bench.release(first, None), expected.concat());
    assert_eq!(bench.session.acks_waiting(), 2);
    let expected = [ack(PUBACK, 4), vec![0x70, 3, 0, 9, 0x92]];
    assert_eq!(bench.release(fourth, None), expected.concat());
    assert_eq!(bench.release(first, None), b"", "it left long ago");
    assert_eq!(bench.session.acks_waiting(), 0);
}

#[test]
fn answers_for_an_earlier_connection_write_nothing_but_let_later_ones_leave() {
    let mut bench = Bench::persistent(Version::V311);
    let old = bench.routed(AtLeastOnce, 1, 1);
    bench.reconnect(opening(Version::V311));
    let new = bench.routed(AtLeastOnce, 2, 1);
    assert_eq!(bench.release(new, None), b"");
    assert_eq!(bench.release(old, None), ack(PUBACK, 2));
    assert_eq!(bench.session.received_unacked, 0);
}

#[test]
fn answers_between_two_connections_are_taken_in() {
    let mut bench = Bench::persistent(Version::V5);
    let old = bench.routed(ExactlyOnce, 1, 1);
    bench.close();
    assert_eq!(bench.release(old, None), b"");
    bench.session.open(opening(Version::V5));
    assert_eq!(bench.take(&publish_v5(0x3c, 1, b'x')), Ok(None));
    assert_eq!(bench.sent(), ack(PUBREC, 1));
}

#[test]
fn a_repeat_is_answered_when_the_message_is_kept_and_not_before() {
    let mut bench = Bench::persistent(Version::V5);
    let old = bench.routed(ExactlyOnce, 1, 1);
    bench.reconnect(opening(Version::V5));
    assert_eq!(bench.take(&publish_v5(0x3c, 1, b'x')), Ok(None));
    assert_eq!(bench.sent(), b"");
    assert_eq!(bench.release(old, None), ack(PUBREC, 1));
    assert_eq!(bench.session.received_unacked, 1);
}

#[test]
fn a_late_error_reaches_the_repeat_of_its_message() {
    let mut bench = Bench::persistent(Version::V5);
    let old = bench.routed(ExactlyOnce, 1, 1);
    bench.reconnect(opening(Version::V5));
    assert_eq!(bench.take(&publish_v5(0x3c, 1, b'x')), Ok(None));
    let refused = bench.release(old, Some(ReasonCode::QUOTA_EXCEEDED));
    assert_eq!(refused, [0x50, 3, 0, 1, 0x97]);
    assert_eq!(bench.session.received_unacked, 0);
    assert_eq!(
        bench.take(&publish_v5(0x34, 1, b'x')),
        Ok(Some("t".into())),
        "the id is free [MQTT5-4.3.3-9]"
    );
}

#[test]
fn a_late_error_is_the_reason_of_its_acknowledgement() {
    let mut bench = Bench::persistent(Version::V5);
    let first = bench.routed(AtLeastOnce, 1, 2);
    let second = bench.routed(ExactlyOnce, 2, 1);
    let quota = Some(ReasonCode::QUOTA_EXCEEDED);
    assert_eq!(bench.release(first, quota), b"");
    assert_eq!(bench.release(first, None), [0x40, 3, 0, 1, 0x97]);
    assert_eq!(bench.release(second, quota), [0x50, 3, 0, 2, 0x97]);
    assert_eq!(bench.session.received_unacked, 0);
    assert_eq!(bench.session.inbound.len(), 0);
}

#[test]
fn subscription_acknowledgements_keep_an_order_of_their_own() {
    let mut bench = Bench::persistent(Version::V5);
    let publish = bench.routed(AtLeastOnce, 9, 1);
    let mut acknowledge = |packet_id, unsubscribe, owed| {
        bench.session.acknowledge_subscription(
            id(packet_id),
            unsubscribe,
            &[1],
            owed,
            &mut bench.out,
        )
    };
    let first = acknowledge(1, false, 1);
    assert_eq!(acknowledge(2, true, 0), None);
    assert_eq!(bench.sent(), b"");
    let expected = [[0x90, 4, 0, 1, 0, 1], [0xb0, 4, 0, 2, 0, 1]];
    assert_eq!(bench.release(first, None), expected.concat());
    assert_eq!(bench.release(publish, None), ack(PUBACK, 9));
}

#[test]
fn a_suback_of_an_earlier_connection_is_not_sent() {
    let mut bench = Bench::persistent(Version::V311);
    let acknowledge = |bench: &mut Bench, packet_id, owed| {
        bench
            .session
            .acknowledge_subscription(id(packet_id), false, &[0], owed, &mut bench.out)
    };
    let old = acknowledge(&mut bench, 1, 1);
    bench.reconnect(opening(Version::V311));
    acknowledge(&mut bench, 2, 0);
    assert_eq!(bench.sent(), b"");
    assert_eq!(bench.release(old, None), [0x90, 3, 0, 2, 0]);
}
