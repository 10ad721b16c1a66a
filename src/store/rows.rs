// SPDX-License-Identifier: Apache-2.0
//! How the port's operations look as rows. Values are postcard, in the format of [`FORMAT`]; keys are bytes that sort as
//! they should.

use std::num::NonZeroU16;
use std::sync::Arc;

use bytes::Bytes;
use corqtt_codec::{Message, MessageId, PacketId, QoS, RetainHandling, SubscribeOptions, Version};
use corqtt_port::store::{Owed, Terms, Will};
use corqtt_session::Delivery;
use corqtt_topics::{ShardId, Stamp};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The format of all rows. A store of a later one is refused.
pub(crate) const FORMAT: u32 = 1;

/// A row that does not hold what it should.
#[derive(Debug)]
pub(crate) struct Unreadable;

type Read<T> = Result<T, Unreadable>;

pub(crate) fn encode(row: &impl Serialize) -> Vec<u8> {
    // fails for maps and sequences of unknown length only, and no row has any
    postcard::to_stdvec(row).expect("rows are plain structs")
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Read<T> {
    postcard::from_bytes(bytes).map_err(|_| Unreadable)
}

/// Client id and what follows; no client id holds a NUL `[MQTT-1.5.3-2] [MQTT5-1.5.4-2]`.
pub(crate) fn client_key(client_id: &str, rest: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(client_id.len() + 1 + rest.len());
    key.extend_from_slice(client_id.as_bytes());
    key.push(0);
    key.extend_from_slice(rest);
    key
}

pub(crate) fn text(bytes: &[u8]) -> Read<&str> {
    std::str::from_utf8(bytes).map_err(|_| Unreadable)
}

pub(crate) fn number(bytes: &[u8]) -> Read<u64> {
    Ok(u64::from_be_bytes(
        bytes.try_into().map_err(|_| Unreadable)?,
    ))
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

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SessionRow {
    username: Option<String>,
    version: u8,
    expiry_secs: u32,
    /// Wall clock, ms; `None`: connected.
    pub(crate) left_at_ms: Option<u64>,
}

impl SessionRow {
    pub(crate) fn new(terms: &Terms) -> Self {
        Self {
            username: terms.username.as_deref().map(Into::into),
            version: terms.version as u8,
            expiry_secs: terms.expiry_secs,
            left_at_ms: None,
        }
    }

    pub(crate) fn terms(&self) -> Read<Terms> {
        Ok(Terms {
            username: self.username.as_deref().map(Into::into),
            version: match self.version {
                3 => Version::V31,
                4 => Version::V311,
                5 => Version::V5,
                _ => return Err(Unreadable),
            },
            expiry_secs: self.expiry_secs,
        })
    }

    /// When the session ends, if its connection ended at `left_at_ms` (wall clock, ms).
    pub(crate) fn ends_at_ms(&self, left_at_ms: u64) -> u64 {
        match self.expiry_secs {
            u32::MAX => u64::MAX,
            secs => left_at_ms.saturating_add(u64::from(secs) * 1000),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct MessageRow {
    topic: String,
    qos: u8,
    retain: bool,
    properties: Vec<u8>,
    pub(crate) expires_at_ms: Option<u64>,
    payload: Vec<u8>,
}

impl MessageRow {
    pub(crate) fn new(message: &Message) -> Self {
        Self {
            topic: message.topic.as_str().into(),
            qos: message.qos.bits(),
            retain: message.retain,
            properties: message.properties.to_vec(),
            expires_at_ms: message.expires_at_ms,
            payload: message.payload.to_vec(),
        }
    }

    pub(crate) fn message(self) -> Read<Message> {
        Ok(Message {
            topic: self.topic.as_str().into(),
            qos: qos(self.qos)?,
            retain: self.retain,
            properties: self.properties.into(),
            expires_at_ms: self.expires_at_ms,
            payload: Bytes::from(self.payload),
        })
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WillRow {
    message: MessageRow,
    delay_secs: u32,
    expiry_secs: Option<u32>,
}

impl WillRow {
    pub(crate) fn new(will: &Will) -> Self {
        Self {
            message: MessageRow::new(&will.message),
            delay_secs: will.delay_secs,
            expiry_secs: will.expiry_secs,
        }
    }

    pub(crate) fn will(self) -> Read<Will> {
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
    pub(crate) fn new(options: &SubscribeOptions, id: u32) -> Self {
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

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct QueueRow {
    /// `None` once PUBREC came: the message is not needed any more.
    body: Option<[u8; MessageId::BYTES]>,
    qos: u8,
    retain: bool,
    ids: Vec<u32>,
    group: Option<String>,
}

impl QueueRow {
    pub(crate) fn new(id: MessageId, delivery: &Delivery) -> Self {
        Self {
            body: Some(id.to_bytes()),
            qos: delivery.qos.bits(),
            retain: delivery.retain,
            ids: delivery.ids.as_deref().unwrap_or_default().to_vec(),
            group: delivery.group.as_deref().map(Into::into),
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

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FlightRow {
    packet_id: NonZeroU16,
    pub(crate) released: bool,
}

impl FlightRow {
    pub(crate) fn new(id: PacketId) -> Self {
        Self {
            packet_id: id.0,
            released: false,
        }
    }

    pub(crate) fn packet_id(&self) -> PacketId {
        PacketId(self.packet_id)
    }
}

/// Which message is owed under a packet id of a client, if one still is.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ReceivedRow {
    owed: Option<[u8; MessageId::BYTES]>,
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
pub(crate) struct OwedRow {
    pub(crate) client_id: String,
    packet_id: NonZeroU16,
    message: MessageRow,
    publisher: u64,
    pub(crate) shards: u64,
    plain: u64,
    of: u8,
    groups: Vec<(String, u8)>,
}

impl OwedRow {
    pub(crate) fn new(client_id: &str, packet_id: PacketId, owed: &Owed) -> Self {
        let groups = owed.groups.iter();
        Self {
            client_id: client_id.into(),
            packet_id: packet_id.0,
            message: MessageRow::new(&owed.message),
            publisher: owed.publisher,
            shards: owed.shards,
            plain: owed.plain,
            of: owed.of,
            groups: groups
                .map(|(group, shard)| (group.to_string(), shard.0))
                .collect(),
        }
    }

    pub(crate) fn packet_id(&self) -> PacketId {
        PacketId(self.packet_id)
    }

    pub(crate) fn owed(self, id: MessageId) -> Read<Owed> {
        let groups = self.groups.into_iter();
        Ok(Owed {
            id,
            message: Arc::new(self.message.message()?),
            publisher: self.publisher,
            shards: self.shards,
            plain: self.plain,
            of: self.of,
            groups: groups
                .map(|(group, shard)| (group.into(), ShardId(shard)))
                .collect(),
        })
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RetainedRow {
    time: u64,
    origin: u16,
    pub(crate) message: MessageRow,
}

impl RetainedRow {
    pub(crate) fn new(message: &Message, stamp: Stamp) -> Self {
        Self {
            time: stamp.time,
            origin: stamp.origin,
            message: MessageRow::new(message),
        }
    }

    pub(crate) fn stamp(&self) -> Stamp {
        Stamp {
            time: self.time,
            origin: self.origin,
        }
    }
}
