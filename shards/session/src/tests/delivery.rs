// SPDX-License-Identifier: Apache-2.0
//! Broker to client on one connection.

use std::sync::Arc;

use super::*;
use crate::DropReason;
use QoS::{AtLeastOnce, AtMostOnce, ExactlyOnce};

#[test]
fn qos_0_has_no_packet_id_and_no_state() {
    // [MQTT-2.3.1-5] [MQTT-4.3.1-1] [MQTT5-2.2.1-2] [MQTT5-4.3.1-1]
    let mut bench = Bench::persistent(Version::V311);
    assert_eq!(bench.deliver(b'x', AtMostOnce), Delivered::Sent);
    assert_eq!(bench.sent(), b"\x30\x04\x00\x01tx");
    assert_eq!(bench.session.inflight_len(), 0);
    let mut bench = Bench::persistent(Version::V5);
    assert_eq!(bench.deliver(b'x', AtMostOnce), Delivered::Sent);
    assert_eq!(bench.sent(), b"\x30\x05\x00\x01t\x00x");
}

#[test]
fn qos_1_is_in_flight_until_puback() {
    // [MQTT-4.3.2-1] [MQTT5-4.3.2-2] [MQTT5-4.3.2-3]
    for version in [Version::V31, Version::V311] {
        let mut bench = Bench::persistent(version);
        assert_eq!(bench.deliver(b'x', AtLeastOnce), Delivered::Sent);
        assert_eq!(bench.sent(), b"\x32\x06\x00\x01t\x00\x01x");
        assert_eq!(bench.session.inflight_len(), 1);
        assert!(bench.puback(1));
        assert_eq!(bench.session.inflight_len(), 0);
        assert_eq!(bench.session.unacked, 0);
    }
    let mut bench = Bench::persistent(Version::V5);
    bench.deliver(b'x', AtLeastOnce);
    assert_eq!(bench.sent(), b"\x32\x07\x00\x01t\x00\x01\x00x");
}

#[test]
fn qos_2_is_in_flight_until_pubcomp() {
    // [MQTT-2.3.1-6] [MQTT5-2.2.1-5]
    // [MQTT-4.3.3-1] [MQTT5-4.3.3-2] [MQTT5-4.3.3-3] [MQTT5-4.3.3-4] [MQTT5-4.3.3-5]
    let mut bench = Bench::persistent(Version::V311);
    bench.deliver(b'x', ExactlyOnce);
    assert_eq!(bench.sent(), b"\x34\x06\x00\x01t\x00\x01x");
    assert_eq!(bench.pubrec(1, ReasonCode::SUCCESS), b"\x62\x02\x00\x01");
    assert_eq!(bench.session.unacked, 1);
    assert!(bench.pubcomp(1));
    assert_eq!(bench.session.inflight_len(), 0);
    assert_eq!(bench.session.unacked, 0);
}

#[test]
fn acknowledgements_of_another_step_are_violations_and_change_nothing() {
    // [MQTT-4.8.0-1] [MQTT5-4.13.1-1]
    let mut bench = Bench::persistent(Version::V5);
    bench.deliver(b'1', AtLeastOnce);
    bench.deliver(b'2', ExactlyOnce);
    bench.sent();
    let puback = |bench: &mut Bench, of| {
        let drops = &mut bench.drops;
        let handled = bench
            .session
            .handle_puback(id(of), ReasonCode::SUCCESS, drops);
        handled.map_err(|broken| broken.reason)
    };
    let pubcomp = |bench: &mut Bench, of| {
        let handled = bench.session.handle_pubcomp(id(of));
        handled.map_err(|broken| broken.reason)
    };
    let wrong = ReasonCode::PROTOCOL_ERROR;
    assert_eq!(puback(&mut bench, 2), Err(wrong), "PUBACK for QoS 2");
    assert_eq!(pubcomp(&mut bench, 2), Err(wrong), "before PUBREC");
    assert_eq!(pubcomp(&mut bench, 1), Err(wrong), "PUBCOMP for QoS 1");
    let Bench {
        session,
        out,
        drops,
        ..
    } = &mut bench;
    let pubrec = session.handle_pubrec(id(1), ReasonCode::SUCCESS, out, drops);
    assert!(pubrec.is_err(), "PUBREC for QoS 1");
    assert_eq!(puback(&mut bench, 9), Ok(None), "unknown id");
    assert_eq!(bench.sent(), b"");
    assert_eq!(bench.session.inflight_len(), 2);
    assert_eq!(bench.session.unacked, 2);
    bench.pubrec(2, ReasonCode::SUCCESS);
    assert_eq!(puback(&mut bench, 2), Err(wrong), "behind PUBREC");
}

#[test]
fn a_pubrec_for_an_unknown_id_is_answered_so_that_the_client_can_go_on() {
    let mut bench = Bench::persistent(Version::V311);
    assert_eq!(bench.pubrec(7, ReasonCode::SUCCESS), ack(PUBREL, 7));
    let mut bench = Bench::persistent(Version::V5);
    let unknown = [0x62, 3, 0, 7, 0x92];
    assert_eq!(bench.pubrec(7, ReasonCode::SUCCESS), unknown);
    assert_eq!(bench.pubrec(7, ReasonCode::QUOTA_EXCEEDED), b"");
}

#[test]
fn a_repeated_pubrec_gets_pubrel_again_and_counts_once() {
    let mut bench = Bench::persistent(Version::V311);
    bench.deliver(b'x', ExactlyOnce);
    bench.sent();
    assert_eq!(bench.pubrec(1, ReasonCode::SUCCESS), ack(PUBREL, 1));
    assert_eq!(bench.pubrec(1, ReasonCode::SUCCESS), ack(PUBREL, 1));
    assert!(bench.pubcomp(1));
    assert!(!bench.pubcomp(1));
    assert_eq!(bench.session.unacked, 0);
}

#[test]
fn an_error_of_the_client_ends_the_message() {
    // [MQTT5-4.4.0-2] [MQTT5-4.8.2-6]
    let mut bench = Bench::persistent(Version::V5);
    bench.deliver(b'1', AtLeastOnce);
    bench.deliver(b'2', ExactlyOnce);
    bench.sent();
    let refused = ReasonCode::NOT_AUTHORIZED;
    assert!(
        bench
            .session
            .handle_puback(id(1), refused, &mut bench.drops)
            .is_ok_and(|receipt| receipt.is_some())
    );
    assert_eq!(bench.pubrec(2, refused), b"");
    assert_eq!(bench.session.inflight_len(), 0);
    assert_eq!(bench.session.unacked, 0);
    assert_eq!(bench.drops.of(DropReason::RefusedByClient), 2);
    bench.reconnect(opening(Version::V5));
    assert_eq!(bench.sent(), b"");
}

#[test]
fn the_lower_of_granted_and_published_qos_is_sent() {
    // [MQTT-3.8.4-6] [MQTT5-3.8.4-8]
    let mut bench = Bench::persistent(Version::V311);
    bench.deliver_as(&message("t", b"x", ExactlyOnce), plain(AtLeastOnce));
    assert_eq!(bench.sent(), b"\x32\x06\x00\x01t\x00\x01x");
    bench.deliver_as(&message("t", b"x", AtMostOnce), plain(ExactlyOnce));
    assert_eq!(bench.sent(), b"\x30\x04\x00\x01tx");
}

#[test]
fn retain_and_all_subscription_identifiers_are_sent() {
    // [MQTT5-3.3.4-3]
    let mut bench = Bench::persistent(Version::V5);
    let grant = Grant {
        retain: true,
        ids: &[1, 200],
        ..plain(AtMostOnce)
    };
    bench.deliver_as(&message("t", b"x", AtMostOnce), grant);
    assert_eq!(bench.sent(), b"\x31\x0a\x00\x01t\x05\x0b\x01\x0b\xc8\x01x");
    // before 5.0 there are none
    let mut bench = Bench::persistent(Version::V311);
    bench.deliver_as(&message("t", b"x", AtMostOnce), grant);
    assert_eq!(bench.sent(), b"\x31\x04\x00\x01tx");
}

#[test]
fn a_frame_is_patched_for_each_client() {
    let kept = Arc::new(message("t", b"x", AtLeastOnce));
    let mut frame = Frame::default();
    let mut outgoing = Outgoing::kept(&kept, &mut frame);
    let mut sent = Vec::new();
    for (version, first_id) in [
        (Version::V311, 1),
        (Version::V311, 300),
        (Version::V5, 2),
        (Version::V311, 3),
    ] {
        let mut bench = Bench::persistent(version);
        bench.session.next_packet_id = id(first_id);
        bench.session.deliver(
            &mut outgoing,
            plain(AtLeastOnce),
            Some(&mut bench.out),
            &bench.limits,
            &mut bench.drops,
            bench.now,
        );
        sent.push(bench.sent());
    }
    assert_eq!(sent[0], publish_v311(0x32, 1, b'x'));
    assert_eq!(sent[1], publish_v311(0x32, 300, b'x'));
    assert_eq!(sent[2], publish_v5(0x32, 2, b'x'));
    assert_eq!(sent[3], publish_v311(0x32, 3, b'x'));
}

#[test]
fn the_packet_id_is_patched_behind_a_long_length() {
    for payload_bytes in [100, 200, 1_900] {
        let payload = vec![b'p'; payload_bytes];
        let mut bench = Bench::persistent(Version::V311);
        bench.session.next_packet_id = id(0x1234);
        bench.deliver_as(&message("long/topic", &payload, AtLeastOnce), {
            plain(AtLeastOnce)
        });
        let remaining = 2 + 10 + 2 + payload_bytes;
        let mut expected = vec![0x32];
        if remaining < 128 {
            expected.push(remaining as u8);
        } else {
            expected.extend([(remaining % 128) as u8 | 0x80, (remaining / 128) as u8]);
        }
        expected.extend(b"\x00\x0along/topic\x12\x34");
        expected.extend(&payload);
        assert_eq!(bench.sent(), expected);
    }
}

#[test]
fn large_payloads_are_shared_and_small_ones_copied() {
    let payload = vec![7; crate::SHARED_PAYLOAD_BYTES_MIN];
    let mut bench = Bench::persistent(Version::V311);
    bench.deliver_as(&message("t", &payload, AtMostOnce), plain(AtMostOnce));
    assert_eq!(bench.out.plain(), None, "there is a chained payload");
    assert_eq!(bench.out.len(), 1 + 2 + 3 + payload.len());
}

#[test]
fn packet_ids_run_on_and_skip_those_in_flight() {
    // [MQTT-2.3.1-4] [MQTT-4.3.2-1] [MQTT-4.3.3-1] [MQTT5-2.2.1-4] [MQTT5-4.3.2-1] [MQTT5-4.3.3-1]
    let mut bench = Bench::persistent(Version::V311);
    bench.limits.inflight_max = u16::MAX;
    bench.deliver(b'x', AtLeastOnce);
    bench.session.next_packet_id = id(65_535);
    bench.deliver(b'y', AtLeastOnce);
    bench.deliver(b'z', AtLeastOnce);
    let expected = [
        publish_v311(0x32, 1, b'x'),
        publish_v311(0x32, 65_535, b'y'),
        // 0 is no id, 1 is in use
        publish_v311(0x32, 2, b'z'),
    ];
    assert_eq!(bench.sent(), expected.concat());
}

#[test]
fn all_65535_packet_ids_can_be_in_use_and_the_next_message_waits() {
    let mut bench = Bench::persistent(Version::V311);
    bench.limits.inflight_max = u16::MAX;
    bench.limits.out_buffer_bytes_max = usize::MAX;
    bench.limits.writes_pending_max = usize::MAX;
    for _ in 0..65_535 {
        assert_eq!(bench.deliver(b'x', AtLeastOnce), Delivered::Sent);
    }
    assert_eq!(bench.deliver(b'y', AtLeastOnce), Delivered::Queued);
    bench.sent();
    assert!(bench.puback(40_000));
    assert_eq!(bench.pump(), 1);
    assert_eq!(bench.sent(), publish_v311(0x32, 40_000, b'y'));
}

#[test]
fn no_more_than_receive_maximum_are_unacknowledged() {
    // [MQTT5-3.3.4-9] [MQTT5-4.9.0-1] [MQTT5-4.9.0-2]
    let mut bench = Bench::open(Opening {
        receive_maximum: 2,
        ..opening(Version::V5)
    });
    assert_eq!(bench.deliver(b'1', AtLeastOnce), Delivered::Sent);
    assert_eq!(bench.deliver(b'2', ExactlyOnce), Delivered::Sent);
    assert_eq!(bench.deliver(b'3', AtLeastOnce), Delivered::Queued);
    assert_eq!(
        bench.deliver(b'0', AtMostOnce),
        Delivered::Sent,
        "QoS 0 is not counted"
    );
    bench.sent();
    assert!(!bench.session.wants_pump(&bench.limits));
    // PUBREC does not free the place, PUBCOMP does
    assert_eq!(bench.pubrec(2, ReasonCode::SUCCESS), ack(PUBREL, 2));
    assert_eq!(bench.pump(), 0);
    bench.pubcomp(2);
    assert!(bench.session.wants_pump(&bench.limits));
    assert_eq!(bench.pump(), 1);
    assert_eq!(bench.sent(), publish_v5(0x32, 3, b'3'));
    bench.deliver(b'4', ExactlyOnce);
    assert_eq!(bench.pump(), 0);
    bench.puback(1);
    assert_eq!(bench.pump(), 1);
    assert_eq!(bench.sent(), publish_v5(0x34, 4, b'4'));
    // a PUBREC with an error does free it
    bench.deliver(b'5', AtLeastOnce);
    bench.pubrec(4, ReasonCode::UNSPECIFIED_ERROR);
    assert_eq!(bench.pump(), 1);
}

#[test]
fn a_new_message_waits_behind_the_queue() {
    // [MQTT-4.6.0-5] [MQTT-4.6.0-6] [MQTT5-4.6.0-5] [MQTT5-4.6.0-6]
    let mut bench = Bench::open(Opening {
        receive_maximum: 1,
        ..opening(Version::V5)
    });
    bench.deliver(b'1', AtLeastOnce);
    assert_eq!(bench.deliver(b'2', AtLeastOnce), Delivered::Queued);
    bench.puback(1);
    bench.sent();
    assert_eq!(
        bench.deliver(b'3', AtLeastOnce),
        Delivered::Queued,
        "though there is a place"
    );
    bench.pump();
    assert_eq!(bench.sent(), publish_v5(0x32, 2, b'2'));
}

#[test]
fn inflight_max_holds_where_receive_maximum_is_higher() {
    let mut bench = Bench::persistent(Version::V311);
    bench.limits.inflight_max = 1;
    assert_eq!(bench.deliver(b'1', AtLeastOnce), Delivered::Sent);
    assert_eq!(bench.deliver(b'2', AtLeastOnce), Delivered::Queued);
}

#[test]
fn a_message_that_expired_is_not_sent() {
    // [MQTT5-3.3.2-5]
    let mut bench = Bench::persistent(Version::V5);
    let mut late = message("t", b"x", AtLeastOnce);
    late.expires_at_ms = Some(bench.now.wall_ms);
    assert_eq!(
        bench.deliver_as(&late, plain(AtLeastOnce)),
        Delivered::Dropped(DropReason::Expired)
    );
    assert_eq!(bench.sent(), b"");
    assert_eq!(bench.drops.of(DropReason::Expired), 1);
}

#[test]
fn the_expiry_interval_is_what_is_left_of_it() {
    // [MQTT5-3.3.2-6]
    let mut bench = Bench::persistent(Version::V5);
    let mut expiring = message("t", b"x", AtMostOnce);
    expiring.expires_at_ms = Some(bench.now.wall_ms + 9_001);
    bench.deliver_as(&expiring, plain(AtMostOnce));
    assert_eq!(
        bench.sent(),
        b"\x30\x0a\x00\x01t\x05\x02\x00\x00\x00\x0ax",
        "10 s: rounded up"
    );
    let mut bench = Bench::persistent(Version::V311);
    bench.deliver_as(&expiring, plain(AtMostOnce));
    assert_eq!(bench.sent(), b"\x30\x04\x00\x01tx");
}

#[test]
fn a_packet_above_the_clients_maximum_is_dropped_and_takes_no_id() {
    // [MQTT5-3.1.2-24] [MQTT5-3.1.2-25]
    let mut bench = Bench::open(Opening {
        packet_bytes_max: 9,
        ..opening(Version::V5)
    });
    let large = message("t", b"xy", AtLeastOnce);
    assert_eq!(
        bench.deliver_as(&large, plain(AtLeastOnce)),
        Delivered::Dropped(DropReason::TooLarge)
    );
    assert_eq!(bench.session.inflight_len(), 0);
    assert_eq!(bench.deliver(b'x', AtLeastOnce), Delivered::Sent);
    assert_eq!(bench.sent(), publish_v5(0x32, 1, b'x'), "9 bytes fit");
}

#[test]
fn limits_of_5_0_do_not_hold_for_older_connections() {
    let mut bench = Bench::open(Opening {
        receive_maximum: 1,
        packet_bytes_max: 2,
        topic_alias_maximum: 9,
        ..opening(Version::V311)
    });
    bench.deliver(b'1', AtLeastOnce);
    bench.deliver(b'2', AtLeastOnce);
    let expected = [publish_v311(0x32, 1, b'1'), publish_v311(0x32, 2, b'2')];
    assert_eq!(bench.sent(), expected.concat());
}

#[test]
fn qos_0_is_shed_behind_a_full_out_buffer_and_qos_1_waits() {
    let mut bench = Bench::persistent(Version::V311);
    bench.limits.out_buffer_bytes_max = 5;
    bench.deliver(b'1', AtMostOnce);
    assert_eq!(
        bench.deliver(b'2', AtLeastOnce),
        Delivered::Queued,
        "6 bytes wait"
    );
    assert_eq!(
        bench.deliver(b'3', AtMostOnce),
        Delivered::Dropped(DropReason::OutBuffer)
    );
    assert_eq!(bench.pump(), 0);
    assert_eq!(bench.sent(), b"\x30\x04\x00\x01t1");
    assert_eq!(bench.pump(), 1);
    assert_eq!(bench.sent(), publish_v311(0x32, 1, b'2'));
}

#[test]
fn qos_0_is_shed_behind_too_many_messages_and_qos_1_waits() {
    let mut bench = Bench::persistent(Version::V311);
    bench.limits.writes_pending_max = 2;
    assert_eq!(bench.deliver(b'1', AtMostOnce), Delivered::Sent);
    assert_eq!(bench.deliver(b'2', AtMostOnce), Delivered::Sent);
    assert_eq!(
        bench.deliver(b'3', AtMostOnce),
        Delivered::Dropped(DropReason::WritesPending)
    );
    assert_eq!(bench.deliver(b'4', AtLeastOnce), Delivered::Queued);
    assert_eq!(bench.pump(), 0);
    assert_eq!(bench.sent(), b"\x30\x04\x00\x01t1\x30\x04\x00\x01t2");
    assert_eq!(bench.pump(), 1);
    assert_eq!(bench.sent(), publish_v311(0x32, 1, b'4'));
}

#[test]
fn while_memory_is_full_qos_0_is_shed_sooner() {
    let mut bench = Bench::persistent(Version::V311);
    bench.limits.out_buffer_bytes_max = 1 << 20;
    bench.limits.memory_full = true;
    let large = message("t", &[b'x'; 200 << 10], AtMostOnce);
    for _ in 0..2 {
        let sent = bench.deliver_as(&large, plain(AtMostOnce));
        assert_eq!(sent, Delivered::Sent);
    }
    let memory = Delivered::Dropped(DropReason::MemoryMax);
    assert_eq!(bench.deliver_as(&large, plain(AtMostOnce)), memory);
    bench.limits.memory_full = false;
    assert_eq!(bench.deliver_as(&large, plain(AtMostOnce)), Delivered::Sent);
}

#[test]
fn qos_0_for_nobody_is_dropped() {
    let mut bench = Bench::persistent(Version::V311);
    bench.close();
    assert_eq!(
        bench.deliver(b'x', AtMostOnce),
        Delivered::Dropped(DropReason::Offline)
    );
}
