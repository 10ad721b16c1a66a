// SPDX-License-Identifier: Apache-2.0
//! The will message of a session (section 3.1.2.5).

use corqtt_codec::{Message, MessageRef, Payload};

use crate::Now;
use crate::held::Counted;

/// A will as CONNECT brought it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Will {
    /// Topic, payload, QoS, RETAIN and properties; its `expires_at_ms` is set when it is published.
    pub message: Message,
    /// Seconds from the end of the connection to publication.
    pub delay_secs: u32,
    /// Message Expiry Interval, counted from publication.
    pub expiry_secs: Option<u32>,
    pub(crate) counted: Counted,
}

impl Will {
    /// Copies the will out of a CONNECT.
    #[must_use]
    pub fn new(will: &corqtt_codec::Will<'_>) -> Self {
        let message = MessageRef {
            topic: will.topic,
            // [MQTT-3.1.2-9]
            qos: will.qos,
            // [MQTT-3.1.2-16] [MQTT-3.1.2-17] [MQTT5-3.1.2-14] [MQTT5-3.1.2-15]
            retain: will.retain,
            // [MQTT5-3.1.3-10] as they came, and so in their order
            properties: &will.properties.forwarded(),
            expires_at_ms: None,
            payload: Payload::borrowed(will.payload),
        }
        .to_message();
        Self::of(
            message,
            will.delay_secs,
            will.properties.message_expiry_secs,
        )
    }

    /// A will as a store kept it.
    #[must_use]
    pub fn restored(message: Message, delay_secs: u32, expiry_secs: Option<u32>) -> Self {
        Self::of(message, delay_secs, expiry_secs)
    }

    pub(crate) fn of(message: Message, delay_secs: u32, expiry_secs: Option<u32>) -> Self {
        Self {
            counted: Counted::new(size_of::<Self>() + message.size()),
            message,
            delay_secs,
            expiry_secs,
        }
    }

    /// The message to publish now.
    #[must_use]
    pub fn into_message(self, now: Now) -> Message {
        let mut message = self.message;
        message.expires_at_ms = self
            .expiry_secs
            .map(|secs| now.wall_ms + u64::from(secs) * 1000);
        message
    }
}
