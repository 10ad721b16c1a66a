// SPDX-License-Identifier: Apache-2.0
//! How the port's operations look as rows. Values are postcard, in the format of [`FORMAT`]; keys are bytes that sort as
//! they should.

use std::fmt;
use std::num::NonZeroU16;
use std::sync::Arc;

use bytes::Bytes;
use corqtt_codec::{
    Message, MessageId, PacketId, QoS, RetainHandling, SubscribeOptions, TopicName, Version,
};
use corqtt_port::store::{Owed, Terms, Will};
use corqtt_session::Delivery;
use corqtt_topics::{ShardId, Stamp};
use serde::{Deserialize, Serialize};

use super::engine::{EngineError, KEY_BYTES_MAX};

/// The format of all rows. A store of a later one is refused.
pub(crate) const FORMAT: u64 = 1;

/// A row that does not hold what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unreadable;

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a row cannot be read; corqtt store check says which")
    }
}

impl std::error::Error for Unreadable {}

impl From<Unreadable> for EngineError {
    fn from(error: Unreadable) -> Self {
        Self::Broken(error.to_string())
    }
}

type Read<T> = Result<T, Unreadable>;

pub(crate) fn encode(row: &impl Serialize) -> Vec<u8> {
    // fails for sequences of unknown length only, and no row has any
    postcard::to_stdvec(row).expect("rows are plain structs")
}

/// All of the bytes as one row.
pub(crate) fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Read<T> {
    match postcard::take_from_bytes(bytes) {
        Ok((row, [])) => Ok(row),
        _ => Err(Unreadable),
    }
}

/// Client id and what follows; no client id holds a NUL `[MQTT-1.5.3-2] [MQTT5-1.5.4-2]`.
pub(crate) fn client_key(client_id: &str, rest: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(client_id.len() + 1 + rest.len());
    key.extend_from_slice(client_id.as_bytes());
    key.push(0);
    key.extend_from_slice(rest);
    key
}

/// Whether a key of that client with so many bytes behind its id is one.
pub(crate) const fn fits(client_id: &str, rest_bytes: usize) -> bool {
    client_id.len() + 1 + rest_bytes <= KEY_BYTES_MAX
}

/// The two parts of [`client_key`].
pub(crate) fn split_key(key: &[u8]) -> Read<(&str, &[u8])> {
    let end = key.iter().position(|byte| *byte == 0).ok_or(Unreadable)?;
    Ok((text(&key[..end])?, &key[end + 1..]))
}

pub(crate) fn text(bytes: &[u8]) -> Read<&str> {
    std::str::from_utf8(bytes).map_err(|_| Unreadable)
}

pub(crate) fn number(bytes: &[u8]) -> Read<u64> {
    let bytes = bytes.try_into().map_err(|_| Unreadable)?;
    Ok(u64::from_be_bytes(bytes))
}

pub(crate) fn packet_id(bytes: &[u8]) -> Read<PacketId> {
    let bytes = bytes.try_into().map_err(|_| Unreadable)?;
    PacketId::new(u16::from_be_bytes(bytes)).ok_or(Unreadable)
}

pub(crate) fn message_id(bytes: &[u8]) -> Read<MessageId> {
    let bytes = bytes.try_into().map_err(|_| Unreadable)?;
    Ok(MessageId::from_bytes(bytes))
}

fn qos(bits: u8) -> Read<QoS> {
    QoS::from_bits(bits).ok_or(Unreadable)
}

/// Bytes that are read in place; written at once instead of one by one, in the same form.
fn raw<S: serde::Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
    to.serialize_bytes(bytes)
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SessionRow<'a> {
    #[serde(borrow)]
    username: Option<&'a str>,
    version: u8,
    expiry_secs: u32,
    /// Wall clock, ms; `None`: connected.
    pub(crate) left_at_ms: Option<u64>,
}

impl<'a> SessionRow<'a> {
    pub(crate) fn new(terms: &'a Terms) -> Self {
        Self {
            username: terms.username.as_deref(),
            version: terms.version as u8,
            expiry_secs: terms.expiry_secs,
            left_at_ms: None,
        }
    }

    pub(crate) fn terms(&self) -> Read<Terms> {
        Ok(Terms {
            username: self.username.map(Into::into),
            version: match self.version {
                3 => Version::V31,
                4 => Version::V311,
                5 => Version::V5,
                _ => return Err(Unreadable),
            },
            expiry_secs: self.expiry_secs,
        })
    }

    /// Whether the session is over, if its connection ended at `left_at_ms` (wall clock, ms).
    pub(crate) fn is_over(&self, left_at_ms: u64, now_ms: u64) -> bool {
        let expires = self.expiry_secs != u32::MAX;
        expires && left_at_ms.saturating_add(u64::from(self.expiry_secs) * 1000) <= now_ms
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct MessageRow<'a> {
    /// First, so that it is read alone ([`has_expired`]).
    expires_at_ms: Option<u64>,
    qos: u8,
    retain: bool,
    topic: &'a str,
    #[serde(serialize_with = "raw")]
    properties: &'a [u8],
    #[serde(serialize_with = "raw")]
    payload: &'a [u8],
}

impl<'a> MessageRow<'a> {
    pub(crate) fn new(message: &'a Message) -> Self {
        Self {
            expires_at_ms: message.expires_at_ms,
            qos: message.qos.bits(),
            retain: message.retain,
            topic: &message.topic,
            properties: &message.properties,
            payload: &message.payload,
        }
    }

    pub(crate) fn message(&self) -> Read<Message> {
        let topic = TopicName::parse(self.topic).map_err(|_| Unreadable)?;
        Ok(Message {
            topic: topic.as_str().into(),
            qos: qos(self.qos)?,
            retain: self.retain,
            properties: self.properties.into(),
            expires_at_ms: self.expires_at_ms,
            payload: Bytes::copy_from_slice(self.payload),
        })
    }
}

/// Whether the message that a row begins with has expired.
pub(crate) fn has_expired(row: &[u8], now_ms: u64) -> Read<bool> {
    let expires: (Option<u64>, _) = postcard::take_from_bytes(row).map_err(|_| Unreadable)?;
    Ok(expires.0.is_some_and(|at_ms| at_ms <= now_ms))
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WillRow<'a> {
    #[serde(borrow)]
    message: MessageRow<'a>,
    delay_secs: u32,
    expiry_secs: Option<u32>,
}

impl<'a> WillRow<'a> {
    pub(crate) fn new(will: &'a Will) -> Self {
        Self {
            message: MessageRow::new(&will.message),
            delay_secs: will.delay_secs,
            expiry_secs: will.expiry_secs,
        }
    }

    pub(crate) fn will(&self) -> Read<Will> {
        Ok(Will {
            message: Arc::new(self.message.message()?),
            delay_secs: self.delay_secs,
            expiry_secs: self.expiry_secs,
        })
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SubscriptionRow {
    qos: u8,
    no_local: bool,
    retain_as_published: bool,
    retain_handling: u8,
    /// 0: none.
    pub(crate) id: u32,
}

impl SubscriptionRow {
    pub(crate) const fn new(options: &SubscribeOptions, id: u32) -> Self {
        Self {
            qos: options.qos.bits(),
            no_local: options.no_local,
            retain_as_published: options.retain_as_published,
            retain_handling: options.retain_handling as u8,
            id,
        }
    }

    pub(crate) fn options(&self) -> Read<SubscribeOptions> {
        Ok(SubscribeOptions {
            qos: qos(self.qos)?,
            no_local: self.no_local,
            retain_as_published: self.retain_as_published,
            retain_handling: match self.retain_handling {
                0 => RetainHandling::Send,
                1 => RetainHandling::SendIfNew,
                2 => RetainHandling::DontSend,
                _ => return Err(Unreadable),
            },
        })
    }
}

type MessageKey = [u8; MessageId::BYTES];

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct QueueRow<'a> {
    /// `None` once PUBREC came: the message is not needed any more.
    body: Option<MessageKey>,
    qos: u8,
    retain: bool,
    ids: Vec<u32>,
    #[serde(borrow)]
    group: Option<&'a str>,
}

impl<'a> QueueRow<'a> {
    pub(crate) fn new(id: MessageId, delivery: &'a Delivery) -> Self {
        Self {
            body: Some(id.to_bytes()),
            qos: delivery.qos.bits(),
            retain: delivery.retain,
            ids: delivery.ids.as_deref().unwrap_or_default().to_vec(),
            group: delivery.group.as_deref(),
        }
    }

    pub(crate) fn body(&self) -> Option<MessageId> {
        self.body.map(MessageId::from_bytes)
    }

    pub(crate) fn without_body(self) -> Self {
        Self { body: None, ..self }
    }

    pub(crate) fn delivery(self) -> Read<Delivery> {
        Ok(Delivery {
            qos: qos(self.qos)?,
            retain: self.retain,
            ids: (!self.ids.is_empty()).then(|| self.ids.into()),
            group: self.group.map(Into::into),
        })
    }
}

/// The body of a row of a queue.
pub(crate) fn body_of(row: &[u8]) -> Read<Option<MessageId>> {
    let body: (Option<MessageKey>, _) = postcard::take_from_bytes(row).map_err(|_| Unreadable)?;
    Ok(body.0.map(MessageId::from_bytes))
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FlightRow {
    packet_id: NonZeroU16,
    pub(crate) released: bool,
}

impl FlightRow {
    pub(crate) const fn new(id: PacketId) -> Self {
        Self {
            packet_id: id.0,
            released: false,
        }
    }

    pub(crate) const fn packet_id(&self) -> PacketId {
        PacketId(self.packet_id)
    }
}

/// Which message is owed under a packet id of a client, if one still is.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ReceivedRow {
    owed: Option<MessageKey>,
}

impl ReceivedRow {
    pub(crate) fn new(owed: Option<MessageId>) -> Self {
        Self {
            owed: owed.map(MessageId::to_bytes),
        }
    }

    pub(crate) fn owed(&self) -> Option<MessageId> {
        self.owed.map(MessageId::from_bytes)
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct OwedRow<'a> {
    #[serde(borrow)]
    message: MessageRow<'a>,
    pub(crate) client_id: &'a str,
    packet_id: NonZeroU16,
    publisher: u64,
    pub(crate) shards: u64,
    plain: u64,
    of: u8,
    #[serde(borrow)]
    groups: Vec<(&'a str, u8)>,
}

impl<'a> OwedRow<'a> {
    pub(crate) fn new(client_id: &'a str, packet_id: PacketId, owed: &'a Owed) -> Self {
        let groups = owed.groups.iter();
        Self {
            message: MessageRow::new(&owed.message),
            client_id,
            packet_id: packet_id.0,
            publisher: owed.publisher,
            shards: owed.shards,
            plain: owed.plain,
            of: owed.of,
            groups: groups.map(|(group, shard)| (&**group, shard.0)).collect(),
        }
    }

    pub(crate) const fn packet_id(&self) -> PacketId {
        PacketId(self.packet_id)
    }

    pub(crate) fn owed(&self, id: MessageId) -> Read<Owed> {
        let groups = self.groups.iter();
        Ok(Owed {
            id,
            message: Arc::new(self.message.message()?),
            publisher: self.publisher,
            shards: self.shards,
            plain: self.plain,
            of: self.of,
            groups: groups
                .map(|(group, shard)| ((*group).into(), ShardId(*shard)))
                .collect(),
        })
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RetainedRow<'a> {
    /// First, see [`has_expired`].
    #[serde(borrow)]
    pub(crate) message: MessageRow<'a>,
    time: u64,
    origin: u16,
}

impl<'a> RetainedRow<'a> {
    pub(crate) fn new(message: &'a Message, stamp: Stamp) -> Self {
        Self {
            message: MessageRow::new(message),
            time: stamp.time,
            origin: stamp.origin,
        }
    }

    pub(crate) const fn stamp(&self) -> Stamp {
        Stamp {
            time: self.time,
            origin: self.origin,
        }
    }
}
