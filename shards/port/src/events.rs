// SPDX-License-Identifier: Apache-2.0
//! What happened on a shard, for bridges and hooks.

use std::sync::Arc;

use corqtt_codec::{Message, ReasonCode, Version};

/// Shard to bridge. Only made while somebody listens. A bridge bounds its own buffer and counts what it drops;
/// nobody retries.
#[derive(Clone, Debug)]
pub enum Event {
    /// CONNACK with success left.
    Connected {
        /// Who.
        client_id: Arc<str>,
        /// As whom.
        username: Option<Arc<str>>,
        /// `ip:port`.
        remote: Arc<str>,
        /// Protocol version.
        version: Version,
        /// Clean Start.
        clean: bool,
    },
    /// The connection of a session ended.
    Disconnected {
        /// Who.
        client_id: Arc<str>,
        /// Why.
        reason: ReasonCode,
    },
    /// A client's message was accepted.
    Published {
        /// Whose.
        client_id: Arc<str>,
        /// What.
        message: Arc<Message>,
    },
    /// Filters were granted.
    Subscribed {
        /// Whose.
        client_id: Arc<str>,
        /// In full.
        filters: Vec<Box<str>>,
    },
    /// Filters were given up.
    Unsubscribed {
        /// Whose.
        client_id: Arc<str>,
        /// In full.
        filters: Vec<Box<str>>,
    },
}
