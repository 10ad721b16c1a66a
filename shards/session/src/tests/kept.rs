// SPDX-License-Identifier: Apache-2.0
//! A session that a store keeps: what is sent before and after the store has which change. Each test breaks when two
//! steps of that order are swapped.

use std::sync::Arc;

use corqtt_codec::{
    MessageId,
    QoS::{AtLeastOnce, ExactlyOnce},
};

use super::*;
use crate::{Change, Delivery, Effect, Held, Receipt};

/// A session and what a store was told of it.
struct Kept {
    bench: Bench,
    waiting: Vec<Effect>,
    number: u64,
}

impl Kept {
    fn new(opening: Opening) -> Self {
        let mut bench = Bench::new();
        bench.session.keep();
        bench.session.open(opening);
        Self {
            bench,
            waiting: Vec::new(),
            number: 0,
        }
    }

    fn deliver(&mut self, payload: u8, qos: QoS) -> Delivered {
        self.deliver_for(payload, qos, Receipt::default())
    }

    fn deliver_for(&mut self, payload: u8, qos: QoS, receipt: Receipt) -> Delivered {
        self.number += 1;
        let id = MessageId {
            start: 0,
            number: self.number,
            shard: 0,
        };
        let message = message("t", &[payload], qos);
        let bench = &mut self.bench;
        let mut outgoing = Outgoing::new(message.as_ref(), &mut bench.frame).named(Some(id));
        outgoing.set_receipt(receipt);
        let out = bench.session.is_connected().then_some(&mut bench.out);
        bench.session.deliver(
            &mut outgoing,
            plain(qos),
            out,
            &bench.limits,
            &mut bench.drops,
            bench.now,
        )
    }

    /// What has changed since the last time, in short.
    fn changes(&mut self) -> Vec<String> {
        let (changes, effects) = self.bench.session.take_news();
        self.waiting.extend(effects);
        let short = |change| match change {
            Change::Enqueued {
                seq,
                message,
                packet_id,
                ..
            } => {
                let payload = char::from(message.payload[0]);
                match packet_id {
                    Some(id) => format!("+{seq}={payload} #{}", id.value()),
                    None => format!("+{seq}={payload}"),
                }
            }
            Change::Begun { seq, packet_id } => format!("{seq} #{}", packet_id.value()),
            Change::Released { seq } => format!("{seq} released"),
            Change::Dequeued { seq } => format!("-{seq}"),
            Change::Received { packet_id } => format!("received #{}", packet_id.value()),
            Change::Freed { packet_id } => format!("freed #{}", packet_id.value()),
        };
        changes.into_iter().map(short).collect()
    }

    /// The store has everything that it was told.
    fn kept(&mut self) -> Vec<u8> {
        for effect in std::mem::take(&mut self.waiting) {
            let out = self
                .bench
                .session
                .is_connected()
                .then_some(&mut self.bench.out);
            self.bench.session.apply(effect, out);
        }
        self.bench.pump();
        self.bench.sent()
    }
}

#[test]
fn a_qos_2_message_is_sent_once_its_packet_id_is_kept() {
    let mut kept = Kept::new(opening(Version::V311));
    assert_eq!(kept.deliver(b'x', ExactlyOnce), Delivered::Queued);
    assert_eq!(kept.bench.sent(), b"");
    assert_eq!(kept.changes(), ["+1=x #1"]);
    assert_eq!(kept.bench.pump(), 0, "the store has not answered");
    assert_eq!(kept.kept(), publish_v311(0x34, 1, b'x'));
}

#[test]
fn pubrel_waits_until_pubrec_is_kept_and_the_id_until_pubcomp_is() {
    let mut kept = Kept::new(opening(Version::V311));
    kept.bench.limits.inflight_max = 1;
    kept.deliver(b'1', ExactlyOnce);
    kept.deliver(b'2', ExactlyOnce);
    assert_eq!(kept.changes(), ["+1=1 #1", "+2=2"]);
    assert_eq!(kept.kept(), publish_v311(0x34, 1, b'1'));
    assert_eq!(kept.bench.pubrec(1, ReasonCode::SUCCESS), b"");
    assert_eq!(kept.bench.pubrec(1, ReasonCode::SUCCESS), b"", "again");
    assert_eq!(kept.changes(), ["1 released"]);
    assert!(!kept.bench.pubcomp(1), "no PUBREL was sent yet");
    assert_eq!(kept.kept(), ack(PUBREL, 1));
    assert_eq!(kept.bench.pubrec(1, ReasonCode::SUCCESS), ack(PUBREL, 1));
    assert!(kept.bench.pubcomp(1));
    assert!(!kept.bench.pubcomp(1), "it is over");
    assert_eq!(kept.changes(), ["-1"]);
    kept.bench.pump();
    assert_eq!(kept.changes(), [""; 0], "the id is not free yet");
    assert_eq!(kept.kept(), b"");
    assert_eq!(kept.changes(), ["2 #2"]);
    assert_eq!(kept.kept(), publish_v311(0x34, 2, b'2'));
}

#[test]
fn qos_2_messages_wait_for_the_store_together_and_others_behind_them() {
    let mut kept = Kept::new(opening(Version::V311));
    kept.deliver(b'1', ExactlyOnce);
    kept.deliver(b'2', ExactlyOnce);
    kept.deliver(b'3', AtLeastOnce);
    assert_eq!(kept.bench.sent(), b"");
    assert_eq!(kept.changes(), ["+1=1 #1", "+2=2 #2", "+3=3"]);
    let sent = kept.kept();
    let expected = [
        publish_v311(0x34, 1, b'1'),
        publish_v311(0x34, 2, b'2'),
        publish_v311(0x32, 3, b'3'),
    ];
    assert_eq!(sent, expected.concat());
    assert_eq!(kept.changes(), ["3 #3"]);
}

#[test]
fn a_client_that_comes_back_before_the_store_has_the_id_is_sent_it_for_the_first_time() {
    let mut kept = Kept::new(opening(Version::V311));
    kept.deliver(b'x', ExactlyOnce);
    kept.changes();
    kept.bench.reconnect(opening(Version::V311));
    assert_eq!(kept.bench.sent(), b"");
    assert_eq!(kept.kept(), publish_v311(0x34, 1, b'x'), "without DUP");
    kept.bench.reconnect(opening(Version::V311));
    assert_eq!(kept.bench.sent(), publish_v311(0x3C, 1, b'x'));
}

#[test]
fn a_client_that_comes_back_before_pubrec_is_kept_gets_pubrel_after_it() {
    let mut kept = Kept::new(opening(Version::V311));
    kept.deliver(b'x', ExactlyOnce);
    kept.changes();
    kept.kept();
    kept.bench.pubrec(1, ReasonCode::SUCCESS);
    kept.changes();
    kept.bench.reconnect(opening(Version::V311));
    assert_eq!(kept.bench.sent(), b"");
    assert_eq!(kept.kept(), ack(PUBREL, 1));
    // kept while nobody is there
    kept.bench.reconnect(opening(Version::V311));
    assert_eq!(kept.bench.sent(), ack(PUBREL, 1));
    assert!(kept.bench.pubcomp(1));
    kept.changes();
    kept.bench.close();
    kept.kept();
    assert_eq!(kept.bench.session.inflight_len(), 0);
}

#[test]
fn qos_1_does_not_wait_and_gives_its_receipt_back() {
    let mut kept = Kept::new(opening(Version::V311));
    let receipt = Receipt(7);
    kept.deliver_for(b'x', AtLeastOnce, receipt);
    assert_eq!(kept.bench.sent(), publish_v311(0x32, 1, b'x'));
    assert_eq!(kept.changes(), ["+1=x #1"]);
    let bench = &mut kept.bench;
    let given = bench
        .session
        .handle_puback(id(1), ReasonCode::SUCCESS, &mut bench.drops);
    assert_eq!(given, Ok(Some(receipt)));
    assert_eq!(kept.changes(), ["-1"]);
}

#[test]
fn what_leaves_the_queue_leaves_the_store() {
    let mut kept = Kept::new(opening(Version::V5));
    kept.bench.limits.queue_messages_max = 2;
    kept.bench.close();
    for payload in [b'1', b'2', b'3'] {
        kept.deliver(payload, AtLeastOnce);
    }
    assert_eq!(kept.changes(), ["+1=1", "+2=2", "-1", "+3=3"]);
    kept.bench.reconnect(opening(Version::V5));
    kept.bench.sent();
    assert_eq!(kept.changes(), ["2 #1", "3 #2"]);
}

#[test]
fn the_packet_ids_of_the_client_are_told() {
    let mut kept = Kept::new(opening(Version::V311));
    let key = kept.bench.routed(ExactlyOnce, 9, 1);
    assert_eq!(kept.changes(), ["received #9"]);
    assert_eq!(kept.bench.release(key, None), ack(PUBREC, 9));
    let key = kept.bench.session.handle_pubrel(id(9), &mut kept.bench.out);
    assert_eq!(kept.bench.sent(), b"", "not before it is kept");
    assert_eq!(kept.changes(), ["freed #9"]);
    assert_eq!(kept.bench.release(key, None), ack(PUBCOMP, 9));
    assert_eq!(kept.bench.pubrel(9), ack(PUBCOMP, 9), "not known any more");
}

#[test]
fn a_refused_message_is_not_remembered() {
    let mut kept = Kept::new(opening(Version::V5));
    let key = kept.bench.routed(ExactlyOnce, 9, 1);
    kept.changes();
    kept.bench.release(key, Some(ReasonCode::QUOTA_EXCEEDED));
    assert_eq!(kept.changes(), ["freed #9"]);
}

#[test]
fn a_restored_session_goes_on_where_it_was() {
    let mut bench = Bench::new();
    bench.session = Session::restored("c", Some("user"), Version::V311, u32::MAX);
    let delivery = |qos| Delivery {
        qos,
        retain: false,
        ids: None,
        group: None,
    };
    let held = |payload, qos| Held::shared(Arc::new(message("t", &[payload], qos)));
    let session = &mut bench.session;
    session.restore_message(
        3,
        held(b'3', ExactlyOnce),
        delivery(ExactlyOnce),
        Some(id(8)),
    );
    session.restore_released(id(8));
    session.restore_message(
        4,
        held(b'4', AtLeastOnce),
        delivery(AtLeastOnce),
        Some(id(9)),
    );
    session.restore_message(6, held(b'6', AtLeastOnce), delivery(AtLeastOnce), None);
    session.restore_received(id(5));
    session.restore_left(None, 1000, bench.now);
    assert!(session.is_kept() && session.is_persistent());
    session.open(opening(Version::V311));
    bench.pump();
    let expected = [
        ack(PUBREL, 8),
        publish_v311(0x3A, 9, b'4'),
        publish_v311(0x32, 10, b'6'),
    ];
    assert_eq!(bench.sent(), expected.concat());
    assert_eq!(
        bench.take(&publish_v311(0x3C, 5, b'x')),
        Ok(None),
        "a repeat"
    );
}

#[test]
fn a_restored_session_expires_as_if_it_had_been_there() {
    let mut bench = Bench::new();
    bench.session = Session::restored("c", None, Version::V5, 10);
    bench.session.restore_left(will(4), 3000, bench.now);
    assert_eq!(bench.session.expires_at_ms, Some(bench.now.mono_ms + 7000));
    assert_eq!(bench.session.will_at_ms, Some(bench.now.mono_ms + 1000));
}
