// SPDX-License-Identifier: Apache-2.0
//! What a shard is told at start: plain values, already checked.

use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use corqtt_codec::{QoS, Version};
use corqtt_topics::{ShardId, Strategy};
use corqtt_transport::Layers;
use corqtt_transport::tls::Terms;
use corqtt_transport::websocket::Origins;

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
    /// Load balancers: what comes from there begins with a PROXY header.
    pub proxies: Vec<Network>,
    /// Where clients speak TLS.
    pub certificates: Option<Arc<Certificates>>,
    /// Where clients speak WebSocket: who may.
    pub origins: Option<Arc<Origins>>,
    /// Connections at once over all shards and all listeners of this name; 0: no limit of its own.
    pub connections_max: usize,
}

impl Listener {
    /// Plain TCP without limits of its own.
    #[must_use]
    pub fn plain(id: &str, bound: Arc<Bound>) -> Self {
        Self {
            id: id.to_owned(),
            bound,
            proxies: Vec::new(),
            certificates: None,
            origins: None,
            connections_max: 0,
        }
    }

    /// The layers of a connection that comes from there now; `None`: from a unix socket.
    #[must_use]
    pub fn layers(&self, from: Option<IpAddr>) -> Layers {
        Layers {
            proxy: from.is_some_and(|from| self.proxies.iter().any(|proxy| proxy.contains(from))),
            tls: self.certificates.as_ref().map(|each| each.current()),
            websocket: self.origins.clone(),
        }
    }
}

/// A listener's certificates: read by every new connection, exchanged when they are read again.
#[derive(Debug)]
pub struct Certificates(RwLock<Arc<Terms>>);

impl Certificates {
    /// Begins with these.
    #[must_use]
    pub const fn new(terms: Arc<Terms>) -> Self {
        Self(RwLock::new(terms))
    }

    /// What new connections are shown. Held only for a clone: this is not the message path.
    #[must_use]
    pub fn current(&self) -> Arc<Terms> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// New connections see these; those that are there keep theirs.
    pub fn exchange(&self, terms: Arc<Terms>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = terms;
    }
}

/// Addresses with a common prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// Any address of it.
    pub address: IpAddr,
    /// Bits that count.
    pub prefix_bits: u8,
}

impl Network {
    /// Whether an address is in it. An IPv4 address that arrived on an IPv6 socket counts as IPv4.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let differing = match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                (own.to_bits() ^ other.to_bits()).leading_zeros()
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                (own.to_bits() ^ other.to_bits()).leading_zeros()
            }
            _ => return false,
        };
        differing >= u32::from(self.prefix_bits)
    }
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
    /// Lanes to other nodes, 0: none, and no cluster. Lanes are numbered on behind the shards: first the one to the
    /// cluster's tables, then one per node; all of them are at most 64.
    pub nodes: u8,
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
    /// Those that choose otherwise, by name.
    pub group_strategies: Vec<(String, Strategy)>,
    /// Same for all shards, drawn at start or kept by the store: client ids cannot be aimed at a shard.
    pub hash_seed: u64,
    /// What the stamps of retained messages begin with (ns): above all that a store has.
    pub stamp_base: u64,
    /// Starts of the broker on its store before this one.
    pub start: u32,
}

impl Config {
    /// All lanes that a shard has, its own place among them.
    #[must_use]
    pub const fn lanes(&self) -> u8 {
        if self.nodes == 0 {
            self.shards
        } else {
            self.shards + 1 + self.nodes
        }
    }

    /// Lanes that are told this shard's interest: the shards, and the cluster's tables.
    pub(crate) const fn interested(&self) -> usize {
        let tables = (self.nodes > 0) as u8;
        (self.shards + tables) as usize
    }

    /// What is behind a lane is another node.
    pub(crate) const fn is_node(&self, lane: ShardId) -> bool {
        lane.0 > self.shards
    }

    /// The shards of this node, a bit each.
    pub(crate) const fn here(&self) -> u64 {
        u64::MAX >> (64 - self.shards as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(address: &str, prefix_bits: u8) -> Network {
        Network {
            address: address.parse().expect("an address"),
            prefix_bits,
        }
    }

    fn contains(network: Network, address: &str) -> bool {
        network.contains(address.parse().expect("an address"))
    }

    #[test]
    fn a_network_holds_what_has_its_prefix() {
        assert!(contains(network("10.1.0.0", 16), "10.1.255.1"));
        assert!(!contains(network("10.1.0.0", 16), "10.2.0.1"));
        assert!(contains(network("127.0.0.1", 32), "127.0.0.1"));
        assert!(!contains(network("127.0.0.1", 32), "127.0.0.2"));
        assert!(contains(network("fd00::", 8), "fdff::1"));
        assert!(!contains(network("fd00::", 8), "fe00::1"));
    }

    #[test]
    fn a_prefix_of_nothing_holds_all_of_its_family() {
        assert!(contains(network("0.0.0.0", 0), "203.0.113.7"));
        assert!(!contains(network("0.0.0.0", 0), "::1"));
        assert!(contains(network("::", 0), "::1"));
    }

    #[test]
    fn a_mapped_address_counts_as_what_it_maps() {
        assert!(contains(network("10.0.0.0", 8), "::ffff:10.2.3.4"));
    }
}
