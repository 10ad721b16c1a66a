// SPDX-License-Identifier: Apache-2.0
//! What a shard hands to its store together, and in which order.

use std::sync::Mutex;

use corqtt_port::store::{Answer as Kept, Batch, Op, Token};
use corqtt_session::Change;

use super::client::{connect_bytes, packet, publish_bytes, subscribe_bytes};
use super::*;

/// Remembers all batches; answers at once, or not before it is told to.
#[derive(Clone, Default)]
struct Recording(Arc<Mutex<Recorded>>);

#[derive(Default)]
struct Recorded {
    batches: Vec<Batch>,
    is_held: bool,
}

impl Store for Recording {
    fn records(&self) -> bool {
        true
    }

    fn put(&mut self, batch: Batch) -> Option<Token> {
        let mut recorded = self.0.lock().expect("no panic");
        let token = batch.token;
        recorded.batches.push(batch);
        (!recorded.is_held).then_some(token)
    }
}

impl Recording {
    fn broker(&self) -> Broker {
        let store = self.clone();
        Broker::on(
            setup(1, Runtime::Epoll, false),
            |_| {},
            move |ports| ports.store = Box::new(store.clone()),
        )
    }

    fn hold(&self, is_held: bool) {
        self.0.lock().expect("no panic").is_held = is_held;
    }

    /// Answers the last batch.
    fn answer(&self, broker: &Broker) {
        let token = self
            .0
            .lock()
            .expect("no panic")
            .batches
            .last()
            .map(|batch| batch.token);
        let token = token.expect("a batch");
        broker.inboxes[0].push(ToShard::Store(Kept::Kept(token)));
    }

    /// The operations of each batch.
    fn batches(&self) -> Vec<Vec<Op>> {
        let recorded = self.0.lock().expect("no panic");
        recorded
            .batches
            .iter()
            .map(|batch| batch.ops.clone())
            .collect()
    }

    /// Waits until what was handed over is as wanted.
    fn await_that(&self, wanted: impl Fn(&[Vec<Op>]) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !wanted(&self.batches()) {
            assert!(Instant::now() < deadline, "{:?}", self.batches());
            std::thread::yield_now();
        }
    }
}

/// CONNECT of 5.0 with a session that outlives the connection; `expiry` in seconds, `maximum` unacknowledged.
fn kept(id: &str, clean: bool, expiry: u32, maximum: u16) -> Vec<u8> {
    let mut properties = vec![0x11];
    properties.extend(expiry.to_be_bytes());
    properties.push(0x21);
    properties.extend(maximum.to_be_bytes());
    let mut body = client::text("MQTT");
    body.extend([5, u8::from(clean) << 1, 0, 0, properties.len() as u8]);
    body.extend(properties);
    body.extend(client::text(id));
    packet(0x10, &body)
}

fn count(ops: &[Op], is: impl Fn(&Change) -> bool) -> usize {
    let is = |op: &&Op| matches!(op, Op::Changed { change, .. } if is(change));
    ops.iter().filter(is).count()
}

fn of(ops: &[Op], wanted: &str) -> Vec<Op> {
    let is_of = |op: &&Op| matches!(op, Op::Changed { client_id, .. } if **client_id == *wanted);
    ops.iter().filter(is_of).cloned().collect()
}

const fn is_enqueued(change: &Change) -> bool {
    matches!(change, Change::Enqueued { .. })
}

const fn is_dequeued(change: &Change) -> bool {
    matches!(change, Change::Dequeued { .. })
}

#[test]
fn what_tells_a_repeat_is_kept_with_all_copies_of_a_large_fan_out() {
    const SUBSCRIBERS: usize = 4_500;
    let store = Recording::default();
    let broker = store.broker();
    for number in 0..SUBSCRIBERS {
        let mut client = Client::open(broker.address);
        client.send(&connect_bytes(4, &format!("s{number}"), 0, &[]));
        client.send(&subscribe_bytes(1, "t", 2));
        assert_eq!(client.packet().0, 0x20);
        assert_eq!(client.packet().0, 0x90);
        client.send(&[0xE0, 0]);
        client.expect_end();
    }
    let mut publisher = Client::open(broker.address);
    publisher.send(&connect_bytes(4, "p", 0, &[]));
    assert_eq!(publisher.packet().0, 0x20);
    publisher.send(&publish_bytes(0x34, "t", 7, b"x"));
    assert_eq!(publisher.packet(), (0x50, vec![0, 7]));
    let is_received = |change: &Change| matches!(change, Change::Received { .. });
    let batches = store.batches();
    let with: Vec<_> = batches
        .iter()
        .filter(|ops| count(ops, is_received) > 0)
        .collect();
    assert_eq!(with.len(), 1);
    assert_eq!(count(with[0], is_enqueued), SUBSCRIBERS);
}

#[test]
fn a_message_of_a_group_leaves_its_member_in_the_commit_that_gives_it_to_another() {
    const MESSAGES: u16 = 1_000;
    let store = Recording::default();
    let broker = store.broker();
    let subscribe = |id: &str| {
        let mut client = Client::open(broker.address);
        client.send(&kept(id, true, 600, 1));
        assert_eq!(client.packet().0, 0x20);
        let mut body = vec![0, 1, 0];
        body.extend(client::text("$share/g/t"));
        body.push(1);
        client.send(&packet(0x82, &body));
        assert_eq!(client.packet(), (0x90, vec![0, 1, 0, 1]));
        client
    };
    let mut first = subscribe("first");
    let mut publisher = broker.client("p");
    for id in 1..=MESSAGES {
        publisher.send(&publish_bytes(0x32, "t", id, b"x"));
        assert_eq!(publisher.packet().0, 0x40);
    }
    // one is under way, and stays
    assert_eq!(first.packet().0 & 0xF0, 0x30);
    let _second = subscribe("second");
    let before = store.batches().len();
    first.send(&[0xE0, 0]);
    first.expect_end();
    let moved = usize::from(MESSAGES) - 1;
    let of_all = |batches: &[Vec<Op>], id: &str, is: fn(&Change) -> bool| -> usize {
        let later = batches[before..].iter();
        later.map(|ops| count(&of(ops, id), is)).sum()
    };
    store.await_that(|batches| of_all(batches, "first", is_dequeued) == moved);
    let batches = store.batches();
    assert_eq!(of_all(&batches, "second", is_enqueued), moved);
    let (mut given, mut given_up) = (0, 0);
    for ops in &batches[before..] {
        given += count(&of(ops, "second"), is_enqueued);
        given_up += count(&of(ops, "first"), is_dequeued);
        assert!(given_up <= given, "{given_up} were given up, {given} given");
    }
}

#[test]
fn a_connect_without_its_connack_changes_nothing() {
    let store = Recording::default();
    let broker = store.broker();
    let mut client = Client::open(broker.address);
    client.send(&kept("c", true, 600, 9));
    assert_eq!(client.packet().0, 0x20);
    client.send(&[0xE0, 0]);
    client.expect_end();
    store.await_that(|batches| {
        let last = batches.last().and_then(|ops| ops.last());
        matches!(last, Some(Op::Left { .. }))
    });
    store.hold(true);
    let before = store.batches().len();
    let mut again = Client::open(broker.address);
    again.send(&kept("c", false, 0, 9));
    store.await_that(|batches| batches.len() > before);
    let expiry = |op: &Op| match op {
        Op::Session { terms, .. } => Some(terms.expiry_secs),
        _ => None,
    };
    assert_eq!(store.batches()[before].iter().find_map(expiry), Some(0));
    drop(again);
    // the shard hands over what follows when it hears of the batch before
    let mut other = broker.client("other");
    other.send(&[0xC0, 0]);
    assert_eq!(other.packet(), (0xD0, vec![]));
    let deadline = Instant::now() + DEADLINE;
    while broker.numbers()[0].clients_connected > 1 || broker.numbers()[0].connections_opening > 0 {
        assert!(
            Instant::now() < deadline,
            "the connection is not seen to have gone"
        );
    }
    store.hold(false);
    store.answer(&broker);
    store.await_that(|batches| {
        let last = batches.last().map_or(&[][..], |ops| ops);
        last.iter().find_map(expiry) == Some(600) && matches!(last.last(), Some(Op::Left { .. }))
    });
    let mut once_more = Client::open(broker.address);
    once_more.send(&kept("c", false, 600, 9));
    let (kind, body) = once_more.packet();
    assert_eq!((kind, body[0]), (0x20, 1), "the session is there");
}
