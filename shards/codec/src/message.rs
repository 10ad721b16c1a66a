// SPDX-License-Identifier: Apache-2.0
//! An application message as the broker carries it between publisher and subscribers.

use bytes::Bytes;
use compact_str::CompactString;

use crate::{QoS, TopicName};

/// Payload bytes, and the shared buffer that holds them where there is one.
#[derive(Clone, Copy, Debug)]
pub struct Payload<'a> {
    /// The bytes.
    pub bytes: &'a [u8],
    /// A buffer in which exactly these bytes lie and that can be shared by counting; large payloads have one.
    pub shared: Option<&'a Bytes>,
}

impl<'a> Payload<'a> {
    /// Bytes that must be copied to be kept.
    #[inline]
    #[must_use]
    pub const fn borrowed(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            shared: None,
        }
    }

    /// Bytes that can be kept by counting.
    #[inline]
    #[must_use]
    pub fn shared(bytes: &'a Bytes) -> Self {
        Self {
            bytes,
            shared: Some(bytes),
        }
    }

    /// The bytes for keeping: counted where possible, else copied.
    #[must_use]
    pub fn to_bytes(self) -> Bytes {
        self.shared
            .map_or_else(|| Bytes::copy_from_slice(self.bytes), Bytes::clone)
    }
}

/// A message on its way: borrowed from the read buffer, a batch of a lane, or a kept [`Message`].
#[derive(Clone, Copy, Debug)]
pub struct MessageRef<'a> {
    /// Topic Name, after alias resolution.
    pub topic: TopicName<'a>,
    /// As published.
    pub qos: QoS,
    /// As published (RETAIN 1).
    pub retain: bool,
    /// Property bytes that travel unchanged (see `PublishProperties::forwarded`).
    pub properties: &'a [u8],
    /// Wall clock, milliseconds since 1970, at which the message ends; `None`: never.
    pub expires_at_ms: Option<u64>,
    /// The application's bytes.
    pub payload: Payload<'a>,
}

/// Names a message that a node keeps, for as long as any session there has it; never used twice. Ordered by the start
/// that it belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId {
    /// Starts of the broker before this one, on its store.
    pub start: u32,
    /// Counts the messages of that shard in that start.
    pub number: u64,
    /// The shard where it was published.
    pub shard: u8,
}

impl MessageId {
    /// Size of [`MessageId::to_bytes`].
    pub const BYTES: usize = 13;

    /// As a key of a store: in the same order as the ids.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..4].copy_from_slice(&self.start.to_be_bytes());
        bytes[4..12].copy_from_slice(&self.number.to_be_bytes());
        bytes[12] = self.shard;
        bytes
    }

    /// What [`MessageId::to_bytes`] gave.
    #[must_use]
    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        let [s0, s1, s2, s3, n0, n1, n2, n3, n4, n5, n6, n7, shard] = bytes;
        Self {
            start: u32::from_be_bytes([s0, s1, s2, s3]),
            number: u64::from_be_bytes([n0, n1, n2, n3, n4, n5, n6, n7]),
            shard,
        }
    }
}

/// A message that is kept: in a queue, inflight, retained, or as a will.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Topic Name.
    pub topic: CompactString,
    /// As published.
    pub qos: QoS,
    /// As published.
    pub retain: bool,
    /// Property bytes that travel unchanged.
    pub properties: Box<[u8]>,
    /// Wall clock, milliseconds since 1970; `None`: never.
    pub expires_at_ms: Option<u64>,
    /// The application's bytes.
    pub payload: Bytes,
}

impl MessageRef<'_> {
    /// Copies what must be copied, so that the message outlives its buffer.
    #[must_use]
    pub fn to_message(&self) -> Message {
        Message {
            topic: CompactString::new(self.topic.as_str()),
            qos: self.qos,
            retain: self.retain,
            properties: self.properties.into(),
            expires_at_ms: self.expires_at_ms,
            payload: self.payload.to_bytes(),
        }
    }

    /// Bytes that count against queue and memory limits: topic, properties and payload.
    #[inline]
    #[must_use]
    pub fn size(&self) -> usize {
        self.topic.as_str().len() + self.properties.len() + self.payload.bytes.len()
    }
}

impl Message {
    /// The borrowed view.
    ///
    /// # Panics
    /// Never for a message made by [`MessageRef::to_message`]: its topic was a topic name.
    #[inline]
    #[must_use]
    pub fn as_ref(&self) -> MessageRef<'_> {
        MessageRef {
            topic: TopicName::trusted(&self.topic),
            qos: self.qos,
            retain: self.retain,
            properties: &self.properties,
            expires_at_ms: self.expires_at_ms,
            payload: Payload::shared(&self.payload),
        }
    }

    /// Bytes that count against queue and memory limits: topic, properties and payload.
    #[inline]
    #[must_use]
    pub fn size(&self) -> usize {
        self.topic.len() + self.properties.len() + self.payload.len()
    }
}
