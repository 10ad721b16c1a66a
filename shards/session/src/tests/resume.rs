// SPDX-License-Identifier: Apache-2.0
//! A session that is taken up by a new connection.

use super::*;
use crate::DropReason;
use QoS::{AtLeastOnce, AtMostOnce, ExactlyOnce};

#[test]
fn what_was_sent_is_sent_again_in_order_with_dup_and_the_same_ids() {
    // [MQTT-4.4.0-1] [MQTT-4.6.0-1] [MQTT-3.3.1-1] [MQTT-2.3.1-3] [MQTT-4.3.3-1]
    let mut bench = Bench::persistent(Version::V311);
    bench.deliver(b'1', AtLeastOnce);
    bench.deliver(b'2', ExactlyOnce);
    bench.deliver(b'3', ExactlyOnce);
    bench.deliver(b'4', AtLeastOnce);
    bench.pubrec(3, ReasonCode::SUCCESS);
    bench.puback(1);
    bench.reconnect(opening(Version::V311));
    let expected = [
        publish_v311(0x3c, 2, b'2'),
        ack(PUBREL, 3),
        publish_v311(0x3a, 4, b'4'),
    ];
    assert_eq!(bench.sent(), expected.concat());
}

#[test]
fn a_version_5_session_resumes_the_same_way() {
    // [MQTT5-4.4.0-1] [MQTT5-4.6.0-1] [MQTT5-3.3.1-1] [MQTT5-4.3.3-5] [MQTT5-4.3.3-6]
    let mut bench = Bench::persistent(Version::V5);
    bench.deliver(b'1', AtLeastOnce);
    bench.deliver(b'2', ExactlyOnce);
    bench.pubrec(2, ReasonCode::SUCCESS);
    bench.reconnect(opening(Version::V5));
    let expected = [publish_v5(0x3a, 1, b'1'), ack(PUBREL, 2)];
    assert_eq!(bench.sent(), expected.concat());
}

#[test]
fn nothing_is_sent_again_without_a_new_connection() {
    // [MQTT5-4.4.0-1]
    let mut bench = Bench::persistent(Version::V5);
    bench.deliver(b'1', AtLeastOnce);
    bench.sent();
    assert_eq!(bench.pump(), 0);
    assert_eq!(bench.sent(), b"");
}

#[test]
fn the_queue_follows_what_is_sent_again_and_is_no_redelivery() {
    // [MQTT-3.3.1-3] [MQTT5-3.3.1-3]
    let mut bench = Bench::persistent(Version::V311);
    bench.deliver(b'1', AtLeastOnce);
    bench.close();
    bench.deliver(b'2', ExactlyOnce);
    bench.deliver(b'3', AtLeastOnce);
    assert_eq!(bench.session.queue_len(), 2);
    bench.session.open(opening(Version::V311));
    assert_eq!(
        bench.deliver(b'4', AtLeastOnce),
        Delivered::Queued,
        "not before the others"
    );
    assert_eq!(bench.pump(), 4);
    let expected = [
        publish_v311(0x3a, 1, b'1'),
        publish_v311(0x34, 2, b'2'),
        publish_v311(0x32, 3, b'3'),
        publish_v311(0x32, 4, b'4'),
    ];
    assert_eq!(bench.sent(), expected.concat());
    assert_eq!(bench.session.queue_bytes(), 0);
}

#[test]
fn a_smaller_receive_maximum_holds_for_what_is_sent_again() {
    // [MQTT5-3.3.4-9]
    let mut bench = Bench::persistent(Version::V5);
    for payload in *b"1234" {
        bench.deliver(payload, AtLeastOnce);
    }
    let small = || Opening {
        receive_maximum: 2,
        ..opening(Version::V5)
    };
    bench.reconnect(small());
    let expected = [publish_v5(0x3a, 1, b'1'), publish_v5(0x3a, 2, b'2')];
    assert_eq!(bench.sent(), expected.concat());
    assert!(!bench.session.wants_pump(&bench.limits));
    bench.puback(2);
    assert!(bench.session.wants_pump(&bench.limits));
    bench.pump();
    assert_eq!(bench.sent(), publish_v5(0x3a, 3, b'3'));
    // once more in the middle: the count starts again, the order stays
    bench.reconnect(small());
    let expected = [publish_v5(0x3a, 1, b'1'), publish_v5(0x3a, 3, b'3')];
    assert_eq!(bench.sent(), expected.concat());
    for packet_id in [1, 3] {
        bench.puback(packet_id);
        bench.pump();
    }
    assert_eq!(bench.sent(), publish_v5(0x3a, 4, b'4'));
    assert_eq!(bench.session.unacked, 1);
}

#[test]
fn an_acknowledgement_before_its_turn_spares_the_resend() {
    let mut bench = Bench::persistent(Version::V5);
    for payload in *b"123" {
        bench.deliver(payload, AtLeastOnce);
    }
    bench.close();
    bench.session.open(Opening {
        receive_maximum: 1,
        ..opening(Version::V5)
    });
    bench.pump();
    assert_eq!(bench.sent(), publish_v5(0x3a, 1, b'1'));
    assert!(bench.puback(2), "its PUBACK was on its way");
    assert_eq!(
        bench.session.unacked, 1,
        "it was not sent on this connection"
    );
    assert_eq!(bench.pump(), 0);
    bench.puback(1);
    bench.pump();
    assert_eq!(bench.sent(), publish_v5(0x3a, 3, b'3'));
    bench.puback(3);
    assert_eq!(bench.session.unacked, 0);
    assert_eq!(bench.deliver(b'4', AtLeastOnce), Delivered::Sent);
    assert_eq!(bench.sent(), publish_v5(0x32, 4, b'4'));
}

#[test]
fn a_resume_of_which_the_rest_is_acknowledged_is_over() {
    let mut bench = Bench::persistent(Version::V311);
    bench.deliver(b'1', AtLeastOnce);
    bench.deliver(b'2', AtLeastOnce);
    bench.close();
    bench.session.open(opening(Version::V311));
    bench.pump_some(1);
    bench.puback(2);
    bench.sent();
    assert!(!bench.session.wants_pump(&bench.limits));
    assert_eq!(bench.deliver(b'3', AtLeastOnce), Delivered::Sent);
    assert_eq!(bench.sent(), publish_v311(0x32, 3, b'3'));
}

#[test]
fn a_pubrec_before_its_turn_is_answered_once_and_does_not_count() {
    let mut bench = Bench::persistent(Version::V5);
    bench.deliver(b'1', ExactlyOnce);
    bench.deliver(b'2', ExactlyOnce);
    bench.close();
    bench.session.open(Opening {
        receive_maximum: 1,
        ..opening(Version::V5)
    });
    bench.pump();
    assert_eq!(bench.sent(), publish_v5(0x3c, 1, b'1'));
    assert_eq!(bench.pubrec(2, ReasonCode::SUCCESS), ack(PUBREL, 2));
    assert_eq!(bench.session.unacked, 1, "within Receive Maximum");
    bench.pump();
    assert_eq!(bench.sent(), b"");
    assert!(bench.pubcomp(2));
    assert_eq!(bench.session.unacked, 1);
    bench.pubrec(1, ReasonCode::SUCCESS);
    assert!(bench.pubcomp(1));
    assert_eq!(bench.session.unacked, 0);
}

#[test]
fn a_pubrel_that_is_sent_again_takes_no_place_and_gives_none_back() {
    // [MQTT5-3.3.4-10] [MQTT5-4.9.0-3]
    let mut bench = Bench::persistent(Version::V5);
    bench.deliver(b'1', ExactlyOnce);
    bench.deliver(b'2', ExactlyOnce);
    bench.pubrec(2, ReasonCode::SUCCESS);
    bench.reconnect(Opening {
        receive_maximum: 1,
        ..opening(Version::V5)
    });
    let expected = [publish_v5(0x3c, 1, b'1'), ack(PUBREL, 2)];
    assert_eq!(
        bench.sent(),
        expected.concat(),
        "PUBREL though the one place is taken"
    );
    assert_eq!(bench.deliver(b'3', AtLeastOnce), Delivered::Queued);
    assert!(bench.pubcomp(2));
    assert_eq!(bench.pump(), 0, "the place is still that of the first");
}

#[test]
fn a_pubrel_does_not_wait_behind_a_publish_that_has_no_place() {
    // [MQTT5-3.3.4-10] [MQTT5-4.9.0-3]
    let mut bench = Bench::persistent(Version::V5);
    bench.deliver(b'1', AtLeastOnce);
    bench.deliver(b'2', AtLeastOnce);
    bench.deliver(b'3', ExactlyOnce);
    bench.deliver(b'4', AtLeastOnce);
    bench.deliver(b'5', ExactlyOnce);
    bench.pubrec(3, ReasonCode::SUCCESS);
    bench.pubrec(5, ReasonCode::SUCCESS);
    bench.reconnect(Opening {
        receive_maximum: 1,
        ..opening(Version::V5)
    });
    let expected = [publish_v5(0x3a, 1, b'1'), ack(PUBREL, 3), ack(PUBREL, 5)];
    assert_eq!(bench.sent(), expected.concat());
    assert!(!bench.session.wants_pump(&bench.limits), "sent once");
    assert!(bench.pubcomp(3));
    for (acknowledged, next) in [(1, 2), (2, 4)] {
        bench.puback(acknowledged);
        bench.pump();
        assert_eq!(
            bench.sent(),
            publish_v5(0x3a, next, b'0' + next as u8),
            "and no PUBREL again"
        );
    }
}

#[test]
fn a_pump_that_stops_before_the_pubrels_leaves_them_due() {
    let mut bench = Bench::persistent(Version::V5);
    bench.deliver(b'1', AtLeastOnce);
    bench.deliver(b'2', AtLeastOnce);
    bench.deliver(b'3', ExactlyOnce);
    bench.pubrec(3, ReasonCode::SUCCESS);
    bench.close();
    bench.session.open(Opening {
        receive_maximum: 1,
        ..opening(Version::V5)
    });
    assert_eq!(bench.pump_some(1), 1);
    assert_eq!(bench.sent(), publish_v5(0x3a, 1, b'1'));
    assert!(bench.session.wants_pump(&bench.limits));
    bench.pump();
    assert_eq!(bench.sent(), ack(PUBREL, 3));
    assert!(!bench.session.wants_pump(&bench.limits));
}

#[test]
fn released_ids_of_earlier_connections_count_against_inflight_max() {
    let mut bench = Bench::persistent(Version::V311);
    bench.limits.inflight_max = 2;
    bench.deliver(b'1', ExactlyOnce);
    bench.deliver(b'2', ExactlyOnce);
    bench.pubrec(1, ReasonCode::SUCCESS);
    bench.pubrec(2, ReasonCode::SUCCESS);
    bench.reconnect(opening(Version::V311));
    assert_eq!(bench.deliver(b'3', ExactlyOnce), Delivered::Queued);
    bench.pubcomp(1);
    assert_eq!(bench.pump(), 1);
}

#[test]
fn a_close_in_the_middle_of_a_resume_loses_nothing() {
    let mut bench = Bench::persistent(Version::V311);
    for payload in *b"123" {
        bench.deliver(payload, AtLeastOnce);
    }
    bench.close();
    bench.session.open(opening(Version::V311));
    assert_eq!(bench.pump_some(1), 1);
    assert!(bench.puback(3));
    bench.reconnect(opening(Version::V311));
    let expected = [publish_v311(0x3a, 1, b'1'), publish_v311(0x3a, 2, b'2')];
    assert_eq!(bench.sent(), expected.concat());
    assert_eq!(bench.session.unacked, 2);
}

#[test]
fn a_started_delivery_is_not_ended_by_its_expiry() {
    // [MQTT5-4.3.3-7]
    let mut bench = Bench::persistent(Version::V5);
    let mut expiring = message("t", b"x", ExactlyOnce);
    expiring.expires_at_ms = Some(bench.now.wall_ms + 1_000);
    bench.deliver_as(&expiring, plain(ExactlyOnce));
    bench.sent();
    bench.now.wall_ms += 60_000;
    bench.reconnect(opening(Version::V5));
    assert_eq!(
        bench.sent(),
        b"\x3c\x0c\x00\x01t\x00\x01\x05\x02\x00\x00\x00\x00x"
    );
}

#[test]
fn a_message_too_large_for_the_new_connection_is_as_if_completed() {
    // [MQTT5-3.1.2-25]
    let mut bench = Bench::persistent(Version::V5);
    bench.deliver_as(&message("t", b"long", AtLeastOnce), plain(AtLeastOnce));
    bench.deliver(b'2', AtLeastOnce);
    bench.reconnect(Opening {
        packet_bytes_max: 9,
        ..opening(Version::V5)
    });
    assert_eq!(bench.sent(), publish_v5(0x3a, 2, b'2'));
    assert_eq!(bench.drops.of(DropReason::TooLarge), 1);
    assert_eq!(bench.session.inflight_len(), 1);
    assert_eq!(bench.session.unacked, 1);
}

#[test]
fn a_session_resumes_in_another_version() {
    let mut bench = Bench::persistent(Version::V5);
    let grant = Grant {
        ids: &[5],
        ..plain(AtLeastOnce)
    };
    bench.deliver_as(&message("t", b"x", AtLeastOnce), grant);
    bench.reconnect(opening(Version::V311));
    assert_eq!(bench.sent(), publish_v311(0x3a, 1, b'x'));
    bench.reconnect(opening(Version::V5));
    assert_eq!(bench.sent(), b"\x3a\x09\x00\x01t\x00\x01\x02\x0b\x05x");
}

#[test]
fn new_messages_have_fresh_ids_after_a_resume() {
    let mut bench = Bench::persistent(Version::V311);
    bench.deliver(b'1', AtLeastOnce);
    bench.reconnect(opening(Version::V311));
    bench.sent();
    bench.deliver(b'2', AtLeastOnce);
    assert_eq!(bench.sent(), publish_v311(0x32, 2, b'2'));
}

#[test]
fn qos_0_does_not_wait_for_a_resume() {
    let mut bench = Bench::persistent(Version::V311);
    bench.deliver(b'1', AtLeastOnce);
    bench.close();
    bench.session.open(opening(Version::V311));
    assert_eq!(bench.deliver(b'0', AtMostOnce), Delivered::Sent);
}

#[test]
fn a_clean_session_keeps_no_copies() {
    let mut bench = Bench::open(clean(Version::V311));
    bench.deliver(b'1', AtLeastOnce);
    assert!(bench.close().ended);
    assert!(bench.session.into_unsent().next().is_none());
}

#[test]
fn a_resume_of_65535_messages_is_linear() {
    let mut bench = Bench::persistent(Version::V311);
    bench.limits.inflight_max = u16::MAX;
    bench.limits.out_buffer_bytes_max = usize::MAX;
    bench.limits.writes_pending_max = usize::MAX;
    for _ in 0..65_535 {
        bench.deliver(b'x', AtLeastOnce);
    }
    bench.close();
    bench.session.open(opening(Version::V311));
    let mut sent = 0;
    while bench.session.wants_pump(&bench.limits) {
        // every other one is acknowledged before its turn
        if let Ok(next) = u16::try_from(sent * 2 + 2) {
            bench.puback(next);
        }
        sent += bench.pump_some(1);
    }
    assert!((32_768..=65_535).contains(&sent), "{sent} were resent");
    assert_eq!(bench.session.resend, 0);
}
