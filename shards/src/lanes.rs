// SPDX-License-Identifier: Apache-2.0
//! A shard's inbox, and its streams to the other shards.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use corqtt_codec::{Message, MessageId, MessageRef};
use corqtt_port::ConnectionKey;
use corqtt_port::admin::Query;
use corqtt_port::auth::Answer;
use corqtt_port::claims::Told;
use corqtt_port::lane::Sender;
use corqtt_port::routes::{
    Batch, Item, Mark, Publish, RetainedAsk, RetainedPage, SHARED_PAYLOAD_BYTES_MIN,
};
use corqtt_port::store::Answer as Stored;
use corqtt_session::{AckKey, Receipt};
use corqtt_topics::{Interest, ShardId, Stamp};

use crate::layers::Layered;
use crate::listener::Peer;

/// Items to one shard that it has not marked yet; above this QoS 0 is shed and connections wait for the next turn.
const OUTSTANDING_ITEMS_MAX: u64 = 64 * 1024;
/// Bytes to one shard that it has not marked yet, as above.
const OUTSTANDING_BYTES_MAX: usize = 32 << 20;

/// A batch that holds so much is sent before the turn ends: its buffers stay small enough to be used again, where larger
/// ones are the kernel's again each time.
const BATCH_ITEMS_MAX: usize = 512;
const BATCH_TEXT_BYTES_MAX: usize = 64 * 1024;

/// Everything that arrives at a shard from other threads.
#[derive(Debug)]
pub enum ToShard {
    /// From a shard; see [`Batch`].
    Batch(Batch),
    /// From a shard; see [`Mark`].
    Mark(Mark),
    /// From the shard that accepted it: a connection whose client id belongs here. If it were dropped the client
    /// would see its connection closed, and retry. Bounded by the limit on connections.
    Connection(Box<HandOff>),
    /// From a shard; see [`RetainedAsk`].
    RetainedAsk(RetainedAsk),
    /// From a shard; see [`RetainedPage`].
    RetainedPage(RetainedPage),
    /// From auth; see [`Answer`].
    Auth(Answer),
    /// From the store; see [`Stored`].
    Store(Stored),
    /// From the cluster; see [`Told`].
    Told(Told),
    /// From main, once at a start: answer as soon as the other shards know what this one's subscribers want.
    Restored(Sender<ShardId>),
    /// From main, when all shards have answered that: clients may come. Answered when they can.
    Listen(Sender<ShardId>),
    /// From an operator; see [`Query`].
    Admin(Query),
    /// From main, at SIGTERM: once per step; main waits for the answer, up to the drain timeout.
    Drain(DrainStep, Sender<ShardId>),
}

/// The two steps of going down; every shard has finished one before any begins the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainStep {
    /// Stop listening; publish the wills of all clients, to those that are still there.
    Wills,
    /// Deliver what is on its way, say goodbye (0x8B), close.
    Close,
}

/// A connection on its way to the shard that owns its client id.
#[derive(Debug)]
pub struct HandOff {
    pub(crate) fd: OwnedFd,
    pub(crate) layers: Option<Box<Layered>>,
    /// Its peer counts for the limit of its address.
    pub(crate) address_counted: bool,
    pub(crate) peer: Peer,
    pub(crate) listener: u16,
    /// CONNECT and whatever came behind it.
    pub(crate) bytes: Vec<u8>,
    /// Monotonic ms by which CONNECT is to be answered.
    pub(crate) deadline_ms: u64,
}

/// Something of this shard that waits for another one, or for the store.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Waiter {
    /// An acknowledgement of a session.
    Ack {
        session: u32,
        generation: u32,
        key: AckKey,
    },
    /// CONNACK.
    Connect(ConnectionKey),
    /// A mark that is due to another shard.
    Mark { to: ShardId, upto: u64 },
    /// An item of another node's stream that went on to another shard, or into the store.
    Item { from: ShardId, item: u64 },
    /// Whoever waits for that receipt.
    Receipt(Receipt),
    /// A message of a shared group is to be kept by a member on another shard, and then no more by this session.
    Given {
        session: u32,
        generation: u32,
        seq: u64,
    },
    /// The next operator who waits for a ban.
    Ban,
    /// The cluster, of the next session that was ended elsewhere.
    Dropped,
}

/// The stream to one other shard.
#[derive(Debug)]
pub(crate) struct Lane {
    to: Sender<ToShard>,
    /// Number of the next item.
    next: u64,
    /// The receiver is done with all items up to this one; `marked < next`.
    pub(crate) marked: u64,
    /// The receiver has kept what there was to keep of all items up to this one; at most `marked`.
    kept: u64,
    /// The last item that told an interest.
    pub(crate) last_interest: u64,
    batch: Option<Batch>,
    /// (item, who waits until it is done), ascending.
    awaiting_done: VecDeque<(u64, Waiter)>,
    /// (item, who waits until it is kept), ascending.
    awaiting: VecDeque<(u64, Waiter)>,
    /// (last item, bytes) of batches that are not marked, ascending.
    unmarked: VecDeque<(u64, usize)>,
    unmarked_bytes: usize,
}

impl Lane {
    pub(crate) fn new(to: Sender<ToShard>) -> Self {
        Self {
            to,
            next: 1,
            marked: 0,
            kept: 0,
            last_interest: 0,
            batch: None,
            awaiting_done: VecDeque::new(),
            awaiting: VecDeque::new(),
            unmarked: VecDeque::new(),
            unmarked_bytes: 0,
        }
    }

    /// Too much is unmarked.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.next - self.marked > OUTSTANDING_ITEMS_MAX
            || self.unmarked_bytes > OUTSTANDING_BYTES_MAX
    }

    fn batch(&mut self, me: ShardId) -> &mut Batch {
        let first = self.next;
        self.batch.get_or_insert_with(|| Batch {
            from: me,
            first,
            items: Vec::new(),
            text: Vec::new(),
            is_awaited: false,
        })
    }

    fn push(&mut self, me: ShardId, item: Item) -> u64 {
        self.batch(me).items.push(item);
        self.next += 1;
        self.next - 1
    }

    pub(crate) fn push_interest(&mut self, me: ShardId, interest: Interest) {
        self.batch(me).is_awaited = true;
        self.last_interest = self.push(me, Item::Interest(interest));
    }

    pub(crate) fn push_retain(&mut self, me: ShardId, message: Arc<Message>, stamp: Stamp) -> u64 {
        self.batch(me).is_awaited = true;
        self.push(me, Item::Retain(message, stamp))
    }

    /// Appends a message, with its name where stores are to keep it and whether its record owes it; returns its number.
    #[allow(
        clippy::too_many_arguments,
        reason = "the parts of one entry of a batch"
    )]
    pub(crate) fn push_publish(
        &mut self,
        me: ShardId,
        message: &MessageRef<'_>,
        publisher: u64,
        plain: bool,
        groups: &[&str],
        is_awaited: bool,
        name: Option<(MessageId, bool)>,
    ) -> u64 {
        let is_large = |batch: &Batch| {
            batch.items.len() >= BATCH_ITEMS_MAX || batch.text.len() >= BATCH_TEXT_BYTES_MAX
        };
        if self.batch.as_ref().is_some_and(is_large) {
            self.flush();
        }
        let batch = self.batch(me);
        batch.is_awaited |= is_awaited;
        let topic = batch.put_text(message.topic.as_str().as_bytes());
        let properties = batch.put_text(message.properties);
        let payload = message.payload;
        let large = (payload.bytes.len() >= SHARED_PAYLOAD_BYTES_MIN).then(|| payload.to_bytes());
        let small = if large.is_some() {
            0..0
        } else {
            batch.put_text(payload.bytes)
        };
        let groups_start = batch.text.len() as u32;
        for group in groups {
            batch.text.extend_from_slice(group.as_bytes());
            batch.text.push(0);
        }
        let publish = Publish {
            topic,
            properties,
            small,
            large,
            qos: message.qos,
            retain: message.retain,
            expires_at_ms: message.expires_at_ms,
            publisher,
            plain,
            groups: groups_start..batch.text.len() as u32,
            id: name.map(|(id, _)| id),
            is_owed: name.is_some_and(|(_, is_owed)| is_owed),
        };
        self.push(me, Item::Publish(publish))
    }

    /// `waiter` is told when `item` is kept.
    pub(crate) fn wait(&mut self, item: u64, waiter: Waiter) {
        self.awaiting.push_back((item, waiter));
    }

    /// `waiter` is told when `item` is done.
    pub(crate) fn wait_done(&mut self, item: u64, waiter: Waiter) {
        self.awaiting_done.push_back((item, waiter));
    }

    /// Sends what was gathered.
    pub(crate) fn flush(&mut self) {
        let Some(mut batch) = self.batch.take() else {
            return;
        };
        let large: usize = batch
            .items
            .iter()
            .map(|item| match item {
                Item::Publish(publish) => publish.large.as_ref().map_or(0, bytes::Bytes::len),
                Item::Retain(message, _) => message.size(),
                Item::Interest(_) => 0,
            })
            .sum();
        let bytes = batch.text.len() + large;
        self.unmarked.push_back((self.next - 1, bytes));
        self.unmarked_bytes += bytes;
        // before the lane is full, and connections wait for it
        batch.is_awaited |= self.next - self.marked > OUTSTANDING_ITEMS_MAX / 2
            || self.unmarked_bytes > OUTSTANDING_BYTES_MAX / 2;
        self.to.push(ToShard::Batch(batch));
    }

    pub(crate) fn send(&self, message: ToShard) {
        self.to.push(message);
    }

    /// The receiver marked items up to `upto`; who waited for them goes to `resolved`, with whether the
    /// item was refused.
    pub(crate) fn handle_mark(&mut self, mark: &Mark, resolved: &mut Vec<(Waiter, bool)>) {
        let upto = mark.upto;
        debug_assert!(upto < self.next);
        self.marked = self.marked.max(upto);
        self.kept = self.kept.max(mark.kept);
        while let Some((item, waiter)) = self.awaiting_done.front()
            && *item <= self.marked
        {
            resolved.push((*waiter, false));
            self.awaiting_done.pop_front();
        }
        while let Some((item, waiter)) = self.awaiting.front()
            && *item <= self.kept
        {
            resolved.push((*waiter, mark.refused.contains(item)));
            self.awaiting.pop_front();
        }
        while let Some((last, bytes)) = self.unmarked.front() {
            if *last > self.marked {
                break;
            }
            self.unmarked_bytes -= bytes;
            self.unmarked.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use corqtt_codec::{Payload, QoS, TopicName};
    use corqtt_port::lane;

    #[test]
    fn a_batch_is_sent_before_it_is_large() {
        let (to, inbox) = lane::blocking();
        let mut lane = Lane::new(to);
        let many = BATCH_ITEMS_MAX as u64 * 2 + 1;
        for payload in [vec![b'x'; 2], vec![b'x'; SHARED_PAYLOAD_BYTES_MIN - 1]] {
            let message = MessageRef {
                topic: TopicName::trusted("topic"),
                qos: QoS::AtLeastOnce,
                retain: false,
                properties: &[],
                expires_at_ms: None,
                payload: Payload::borrowed(&payload),
            };
            let first = lane.next;
            for number in first..first + many {
                let pushed = lane.push_publish(ShardId(0), &message, 0, true, &[], false, None);
                assert_eq!(pushed, number);
            }
            lane.flush();
            let mut messages = Vec::new();
            inbox.wait(&mut messages, None);
            let mut expected = first;
            for message in messages {
                let ToShard::Batch(batch) = message else {
                    panic!("a batch");
                };
                assert_eq!(batch.first, expected);
                assert!(batch.items.len() <= BATCH_ITEMS_MAX);
                assert!(batch.text.len() < BATCH_TEXT_BYTES_MAX + 2 * SHARED_PAYLOAD_BYTES_MIN);
                expected += batch.items.len() as u64;
            }
            assert_eq!(expected, first + many, "none is missing");
        }
    }
}
