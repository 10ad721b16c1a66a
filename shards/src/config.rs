// SPDX-License-Identifier: Apache-2.0
//! What a shard is told at start: plain values, already checked.

use std::sync::Arc;
use std::time::Duration;

use corqtt_codec::{QoS, Version};
use corqtt_topics::Strategy;

use crate::listener::Bound;

/// How a shard waits for work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// A glommio executor that waits on io_uring.
    Glommio,
    /// A plain thread in `epoll_wait`.
    Epoll,
}

/// A listener that main has bound already, so that its address is known to be free.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Name in the log.
    pub id: String,
    /// What was bound.
    pub bound: Arc<Bound>,
    /// Connections at once over all shards and all listeners of this name; 0: no limit of its own.
    pub connections_max: usize,
}

/// What the broker offers; where 5.0 has a property for it, CONNACK says so.
#[derive(Clone, Debug)]
pub struct Capabilities {
    /// Seconds; 0: no limit.
    pub message_expiry_max_secs: u32,
    /// Seconds; larger wishes are cut to this.
    pub session_expiry_max_secs: u32,
    /// Bytes; 0: the protocol's own limit.
    pub packet_bytes_max: u32,
    /// Highest QoS that is accepted and granted.
    pub maximum_qos: QoS,
    /// RETAIN may be set.
    pub retain: bool,
    /// Filters may have wildcards.
    pub wildcards: bool,
    /// SUBSCRIBE may have an identifier.
    pub subscription_ids: bool,
    /// `$share/` is understood.
    pub shared: bool,
    /// Lowest version that may connect.
    pub minimum_version: Version,
    /// Seconds; larger wishes are cut to this; 0: no limit.
    pub keep_alive_max_secs: u16,
}

impl Default for Capabilities {
    fn default() -> Self {
        Self {
            message_expiry_max_secs: 0,
            session_expiry_max_secs: u32::MAX,
            packet_bytes_max: 1 << 20,
            maximum_qos: QoS::ExactlyOnce,
            retain: true,
            wildcards: true,
            subscription_ids: true,
            shared: true,
            minimum_version: Version::V31,
            keep_alive_max_secs: 0,
        }
    }
}

/// Ways in which comqtt could be told to deviate.
#[derive(Clone, Debug, Default)]
pub struct Compatibilities {
    /// Answer "not authorized" with an unspecific reason.
    pub obscure_not_authorized: bool,
}

/// Bounds of the node and of its connections; 0 is no limit.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at once over all shards.
    pub connections_max: usize,
    /// Of them from one address.
    pub connections_per_ip_max: u32,
    /// CONNECT packets per second over all shards, with a burst of one second's worth.
    pub connects_per_sec: u64,
    /// Time from accept to a whole CONNECT.
    pub connect_timeout: Duration,
    /// PUBLISH packets per client and second, with a burst of one second's worth.
    pub publishes_per_sec: u64,
    /// Subscriptions of a client.
    pub subscriptions_max: usize,
    /// Retained messages over all shards.
    pub retained_messages_max: u64,
    /// Bytes of their topics, properties and payloads.
    pub retained_bytes_max: u64,
    /// Bytes that clients may make the node hold, over all shards.
    pub memory_bytes_max: u64,
    /// Levels of a topic name or filter.
    pub topic_levels_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 0,
            connections_per_ip_max: 0,
            connects_per_sec: 0,
            connect_timeout: Duration::from_secs(10),
            publishes_per_sec: 0,
            subscriptions_max: 0,
            retained_messages_max: 0,
            retained_bytes_max: 0,
            memory_bytes_max: 0,
            topic_levels_max: 128,
        }
    }
}

impl Limits {
    pub(crate) const fn retained(&self) -> bool {
        self.retained_messages_max > 0 || self.retained_bytes_max > 0
    }
}

/// Everything a shard needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// 1 to 64.
    pub shards: u8,
    /// How shards wait.
    pub runtime: Runtime,
    /// A CPU per shard; empty: not pinned.
    pub cpus: Vec<usize>,
    /// All shards listen on all of them.
    pub listeners: Vec<Listener>,
    /// What is offered.
    pub capabilities: Capabilities,
    /// Deviations.
    pub compatibilities: Compatibilities,
    /// Bounds of each session.
    pub session: corqtt_session::Limits,
    /// Bounds of the node and of its connections.
    pub limits: Limits,
    /// How shared groups choose.
    pub strategy: Strategy,
    /// Same for all shards, drawn at start: client ids cannot be aimed at a shard.
    pub hash_seed: u64,
}
