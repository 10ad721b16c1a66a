// SPDX-License-Identifier: Apache-2.0
//! What a full queue does, and what is counted.

use std::sync::Arc;

use super::*;
use crate::{DropReason, QueueFull};
use QoS::{AtLeastOnce, AtMostOnce, ExactlyOnce};

/// A session without a connection; each message of one byte is two bytes in its queue.
fn offline(queue_full: QueueFull, messages_max: usize, bytes_max: usize) -> Bench {
    let mut bench = Bench::persistent(Version::V311);
    bench.limits.queue_full = queue_full;
    bench.limits.queue_messages_max = messages_max;
    bench.limits.queue_bytes_max = bytes_max;
    bench.close();
    bench
}

fn payloads(bench: &Bench) -> Vec<u8> {
    let queue = bench.session.queue.iter();
    queue
        .flat_map(|queued| queued.message().payload.to_vec())
        .collect()
}

#[test]
fn drop_oldest_keeps_the_newest_in_order() {
    let mut bench = offline(QueueFull::DropOldest, 2, 0);
    for payload in *b"1234" {
        assert_eq!(bench.deliver(payload, AtLeastOnce), Delivered::Queued);
    }
    assert_eq!(payloads(&bench), b"34");
    assert_eq!(bench.drops.of(DropReason::QueueFullOldest), 2);
    assert_eq!(bench.session.queue_bytes(), 4);
}

#[test]
fn drop_oldest_makes_room_in_bytes() {
    let mut bench = offline(QueueFull::DropOldest, 0, 8);
    for payload in *b"1234" {
        bench.deliver(payload, AtLeastOnce);
    }
    bench.deliver_as(&message("t", b"abcd", AtLeastOnce), plain(AtLeastOnce));
    assert_eq!(payloads(&bench), b"4abcd");
    assert_eq!(bench.session.queue_bytes(), 7);
}

#[test]
fn a_message_that_never_fits_does_not_empty_the_queue() {
    let mut bench = offline(QueueFull::DropOldest, 0, 8);
    bench.deliver(b'1', AtLeastOnce);
    let huge = message("t", b"12345678", AtLeastOnce);
    assert_eq!(
        bench.deliver_as(&huge, plain(AtLeastOnce)),
        Delivered::Dropped(DropReason::QueueFullNew)
    );
    assert_eq!(payloads(&bench), b"1");
}

#[test]
fn drop_new_keeps_the_oldest() {
    let mut bench = offline(QueueFull::DropNew, 2, 0);
    let delivered: Vec<_> = b"123"
        .iter()
        .map(|payload| bench.deliver(*payload, AtLeastOnce))
        .collect();
    let dropped = Delivered::Dropped(DropReason::QueueFullNew);
    assert_eq!(delivered, [Delivered::Queued, Delivered::Queued, dropped]);
    assert_eq!(payloads(&bench), b"12");
}

#[test]
fn reject_says_so() {
    let mut bench = offline(QueueFull::Reject, 1, 0);
    bench.deliver(b'1', AtLeastOnce);
    assert_eq!(
        bench.deliver(b'2', AtLeastOnce),
        Delivered::Dropped(DropReason::QueueFullRejected)
    );
    assert_eq!(payloads(&bench), b"1");
}

#[test]
fn disconnect_keeps_the_queue_as_it_is() {
    let mut bench = offline(QueueFull::Disconnect, 1, 0);
    bench.deliver(b'1', AtLeastOnce);
    assert_eq!(bench.deliver(b'2', AtLeastOnce), Delivered::Disconnect);
    assert_eq!(payloads(&bench), b"1");
    assert_eq!(bench.drops.of(DropReason::QueueFullNew), 1);
}

#[test]
fn zero_is_no_limit() {
    let mut bench = offline(QueueFull::Reject, 0, 0);
    for _ in 0..1000 {
        assert_eq!(bench.deliver(b'1', AtLeastOnce), Delivered::Queued);
    }
    assert_eq!(bench.session.queue_bytes(), 2000);
}

#[test]
fn what_expired_in_the_queue_is_dropped_when_its_turn_comes() {
    // [MQTT5-3.3.2-5]
    let mut bench = offline(QueueFull::DropNew, 0, 0);
    let mut expiring = message("t", b"1", AtLeastOnce);
    expiring.expires_at_ms = Some(bench.now.wall_ms + 1_000);
    bench.deliver_as(&expiring, plain(AtLeastOnce));
    bench.deliver(b'2', AtLeastOnce);
    bench.now.wall_ms += 1_000;
    bench.session.open(opening(Version::V311));
    assert_eq!(bench.pump(), 1);
    assert_eq!(bench.sent(), publish_v311(0x32, 1, b'2'), "no id was lost");
    assert_eq!(bench.drops.of(DropReason::Expired), 1);
    assert_eq!(bench.session.queue_bytes(), 0);
}

#[test]
fn a_pump_looks_at_no_more_than_it_may() {
    let mut bench = offline(QueueFull::DropNew, 0, 0);
    let mut expiring = message("t", b"1", AtLeastOnce);
    expiring.expires_at_ms = Some(bench.now.wall_ms + 1_000);
    for _ in 0..10 {
        bench.deliver_as(&expiring, plain(AtLeastOnce));
    }
    bench.now.wall_ms += 1_000;
    bench.session.open(opening(Version::V311));
    assert_eq!(bench.pump_some(4), 0);
    assert_eq!(bench.session.queue_len(), 6);
    assert!(bench.session.wants_pump(&bench.limits));
}

#[test]
fn messages_of_groups_leave_the_queue_for_another_member() {
    let group: Arc<str> = "$share/g/t".into();
    let mut bench = offline(QueueFull::DropNew, 0, 0);
    let grant = Grant {
        group: Some(&group),
        ..plain(AtLeastOnce)
    };
    bench.deliver(b'1', AtLeastOnce);
    bench.deliver_as(&message("t", b"2", AtLeastOnce), grant);
    bench.deliver(b'3', AtLeastOnce);
    let unsent: Vec<_> = bench.session.take_unsent_shared().collect();
    let taken: Vec<_> = unsent
        .iter()
        .map(|unsent| (&unsent.message.payload[..], unsent.group.as_deref()))
        .collect();
    assert_eq!(taken, [(b"2".as_slice(), Some("$share/g/t"))]);
    assert_eq!(payloads(&bench), b"13");
    assert_eq!(bench.session.queue_bytes(), 4);
}

#[test]
fn at_the_end_qos_1_in_flight_goes_to_its_group_and_a_started_qos_2_ends() {
    // [MQTT5-4.8.2-5]
    let group: Arc<str> = "$share/g/t".into();
    for opening in [opening(Version::V5), clean(Version::V5)] {
        let mut bench = Bench::open(opening);
        bench.limits.inflight_max = 2;
        for (payload, qos) in [
            (b"1", AtLeastOnce),
            (b"2", ExactlyOnce),
            (b"3", AtLeastOnce),
        ] {
            let grant = Grant {
                group: Some(&group),
                ..plain(qos)
            };
            bench.deliver_as(&message("t", payload, qos), grant);
        }
        let unsent: Vec<_> = bench.session.into_unsent().collect();
        let left: Vec<_> = unsent
            .iter()
            .map(|unsent| (unsent.message.payload[0], unsent.group.is_some()))
            .collect();
        assert_eq!(left, [(b'1', true), (b'2', false), (b'3', true)]);
        assert_eq!(bench.session.queue_bytes(), 0);
        assert_eq!(bench.session.inflight_len(), 0);
    }
}

#[test]
fn while_memory_is_full_a_queue_takes_in_no_more_than_it_gives() {
    for (policy, answer, left) in [
        (QueueFull::DropOldest, Delivered::Queued, b"23"),
        (
            QueueFull::DropNew,
            Delivered::Dropped(DropReason::MemoryMax),
            b"12",
        ),
        (
            QueueFull::Reject,
            Delivered::Dropped(DropReason::QueueFullRejected),
            b"12",
        ),
        (QueueFull::Disconnect, Delivered::Disconnect, b"12"),
    ] {
        let mut bench = offline(policy, 0, 0);
        bench.deliver(b'1', AtLeastOnce);
        bench.deliver(b'2', AtLeastOnce);
        bench.limits.memory_full = true;
        assert_eq!(bench.deliver(b'3', AtLeastOnce), answer);
        assert_eq!(payloads(&bench), left);
        assert_eq!(bench.drops.of(DropReason::MemoryMax), 1);
        bench.limits.memory_full = false;
        assert_eq!(bench.deliver(b'4', AtLeastOnce), Delivered::Queued);
    }
}

#[test]
fn while_memory_is_full_what_is_larger_than_the_queue_goes_itself() {
    let mut bench = offline(QueueFull::DropOldest, 0, 0);
    bench.limits.memory_full = true;
    assert_eq!(
        bench.deliver(b'1', AtLeastOnce),
        Delivered::Dropped(DropReason::MemoryMax)
    );
    bench.limits.memory_full = false;
    bench.deliver(b'2', AtLeastOnce);
    bench.limits.memory_full = true;
    let large = message("t", b"longer than the other", AtLeastOnce);
    assert_eq!(
        bench.deliver_as(&large, plain(AtLeastOnce)),
        Delivered::Dropped(DropReason::MemoryMax)
    );
    assert_eq!(payloads(&bench), b"2");
}

#[test]
fn what_sessions_hold_is_known_to_the_byte_and_given_back() {
    let before = crate::held_bytes();
    let mut bench = offline(QueueFull::DropOldest, 0, 0);
    for payload in b'0'..=b'9' {
        bench.deliver(payload, AtLeastOnce);
    }
    let full = crate::held_bytes();
    assert!(full > before);
    bench.session.open(opening(Version::V5));
    assert_eq!(bench.pump(), 10);
    assert_eq!(crate::held_bytes(), full, "in flight they are held too");
    for id in 1..=10 {
        assert!(bench.puback(id));
    }
    assert_eq!(crate::held_bytes(), before);
    bench.close();
    bench.deliver(b'x', AtLeastOnce);
    drop(bench);
    assert_eq!(crate::held_bytes(), before);
}

#[test]
fn what_comes_for_a_session_that_is_over_is_dropped() {
    let mut bench = offline(QueueFull::DropOldest, 0, 0);
    bench.session = Session::over();
    assert_eq!(
        bench.deliver(b'1', AtLeastOnce),
        Delivered::Dropped(DropReason::SessionEnded)
    );
    assert_eq!(
        bench.deliver(b'2', AtMostOnce),
        Delivered::Dropped(DropReason::Offline)
    );
    assert_eq!(bench.session.queue_len(), 0);
}
