// SPDX-License-Identifier: Apache-2.0
//! What travels between shards: one ordered stream of items per pair of shards, in batches, and marks back.
//!
//! Items of a pair are numbered from 1. The receiver handles them in order and answers with a cumulative mark once
//! what an item asked for is done and kept. Interest, publishes and retained messages ride the same stream, so a
//! publish never overtakes the subscription that it was matched against.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use corqtt_codec::{Message, MessageId, MessageRef, Payload, QoS, TopicName};
use corqtt_topics::{Cursor, Interest, ShardId, Stamp};

use crate::ConnectionKey;

/// Payloads from this size on are counted instead of copied into the batch (bytes).
pub const SHARED_PAYLOAD_BYTES_MIN: usize = 2048;

/// Shard to shard. Bounded by `outstanding` in the sender: it stops decoding connections when too much is unmarked.
/// Never dropped while both shards run.
#[derive(Debug)]
pub struct Batch {
    /// Who sends it.
    pub from: ShardId,
    /// Number of the first item.
    pub first: u64,
    /// In order.
    pub items: Vec<Item>,
    /// Topics, properties, group filters and small payloads of the items.
    pub text: Vec<u8>,
    /// Something waits for its mark, so the sender is to be woken for that.
    pub is_awaited: bool,
}

/// One thing that another shard is told.
#[derive(Debug)]
pub enum Item {
    /// What the sender's subscribers want now. Marked when the receiver's partition has it.
    Interest(Interest),
    /// A message for the receiver's subscribers. Marked when it is kept for those of them who are persistent.
    Publish(Publish),
    /// A message to keep as retained; empty payload: to forget.
    Retain(Arc<Message>, Stamp),
}

/// A message on its way to another shard; the ranges are in its batch's `text`.
#[derive(Debug)]
pub struct Publish {
    /// Topic Name.
    pub topic: Range<u32>,
    /// Property bytes that travel unchanged.
    pub properties: Range<u32>,
    /// Payload, when it is small.
    pub small: Range<u32>,
    /// Payload, when it is large.
    pub large: Option<Bytes>,
    /// As published.
    pub qos: QoS,
    /// As published.
    pub retain: bool,
    /// Wall clock, ms.
    pub expires_at_ms: Option<u64>,
    /// Hash of the publisher's client id, for the hash-client strategy.
    pub publisher: u64,
    /// The receiver's plain subscribers want it.
    pub plain: bool,
    /// Full filters of the shared groups that the receiver was chosen for, each ended by a NUL.
    pub groups: Range<u32>,
    /// Its name, where stores keep messages.
    pub id: Option<MessageId>,
    /// Its publisher's record owes it to the receiver, who tells its store when it has the effects.
    pub is_owed: bool,
}

impl Batch {
    /// Bytes of text and payloads.
    #[must_use]
    pub fn text_of(&self, range: &Range<u32>) -> &[u8] {
        self.text
            .get(range.start as usize..range.end as usize)
            .unwrap_or(&[])
    }

    /// A publish's message as a borrowed view. `None` only if the batch was put together wrongly.
    #[must_use]
    pub fn message<'a>(&'a self, publish: &'a Publish) -> Option<MessageRef<'a>> {
        let topic = std::str::from_utf8(self.text_of(&publish.topic)).ok()?;
        let payload = match &publish.large {
            Some(bytes) => Payload::shared(bytes),
            None => Payload::borrowed(self.text_of(&publish.small)),
        };
        Some(MessageRef {
            topic: TopicName::trusted(topic),
            qos: publish.qos,
            retain: publish.retain,
            properties: self.text_of(&publish.properties),
            expires_at_ms: publish.expires_at_ms,
            payload,
        })
    }

    /// Appends bytes and says where they lie.
    pub fn put_text(&mut self, bytes: &[u8]) -> Range<u32> {
        let start = self.text.len() as u32;
        self.text.extend_from_slice(bytes);
        start..self.text.len() as u32
    }
}

/// Shard to shard, receiver to sender of [`Batch`]: all items up to one are done, and those up to another are kept where
/// there was something to keep, but for those that a full queue refused. In order: a later mark says nothing of what an
/// earlier one refused.
#[derive(Clone, Debug)]
pub struct Mark {
    /// Who marks.
    pub from: ShardId,
    /// Highest item number done.
    pub upto: u64,
    /// Highest item number kept; at most `upto`.
    pub kept: u64,
    /// Items since the last `kept` whose publishers are to be told 0x97.
    pub refused: Vec<u64>,
}

/// Shard to shard: the next page of retained messages for a new subscription. Bounded: one outstanding per
/// subscription and shard. If it were dropped, the subscription would miss retained messages; nobody retries.
#[derive(Debug)]
pub struct RetainedAsk {
    /// Where the page goes.
    pub reply_to: ShardId,
    /// Which subscription asked.
    pub subscription: RetainedKey,
    /// Without `$share/GROUP/`.
    pub filter: Arc<str>,
    /// Where the last page ended.
    pub cursor: Cursor,
}

/// Shard to shard: a page. In the room that the ask reserved.
#[derive(Debug)]
pub struct RetainedPage {
    /// Who has them.
    pub from: ShardId,
    /// For which subscription.
    pub subscription: RetainedKey,
    /// The messages.
    pub messages: Vec<Arc<Message>>,
    /// Where to go on; `None`: that was the last page.
    pub next: Option<Cursor>,
}

/// Names a subscription that waits for retained messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RetainedKey {
    /// The subscriber's connection.
    pub connection: ConnectionKey,
    /// Drawn per SUBSCRIBE and filter.
    pub number: u64,
}
