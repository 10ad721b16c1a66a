// SPDX-License-Identifier: Apache-2.0
//! The numbers of the whole node: what the shards count, summed up, and what the process knows of itself.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use corqtt_port::admin::{ByReason, Numbers};
use corqtt_shards::Clients;
use serde::Serialize;

/// What stays the same while the node runs.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// Wall clock, seconds since 1970.
    started_secs: u64,
    started: Instant,
    clients: Arc<Clients>,
}

impl Node {
    pub(crate) fn start(clients: Arc<Clients>) -> Self {
        Self {
            started_secs: wall_secs(),
            started: Instant::now(),
            clients,
        }
    }
}

/// All numbers at one time.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) overall: Overall,
    /// By shard.
    pub(crate) shards: Vec<Numbers>,
}

impl Snapshot {
    pub(crate) fn new(node: &Node, shards: Vec<Numbers>) -> Self {
        Self {
            overall: Overall::new(node, &shards, Process::now()),
            shards,
        }
    }
}

/// comqtt's numbers, by its names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Overall {
    pub(crate) version: &'static str,
    /// Wall clock, seconds since 1970.
    pub(crate) started: u64,
    pub(crate) time: u64,
    /// Seconds.
    pub(crate) uptime: u64,
    pub(crate) bytes_received: u64,
    pub(crate) bytes_sent: u64,
    pub(crate) clients_connected: u64,
    pub(crate) clients_disconnected: u64,
    pub(crate) clients_maximum: u64,
    pub(crate) clients_total: u64,
    pub(crate) messages_received: u64,
    pub(crate) messages_sent: u64,
    pub(crate) messages_dropped: u64,
    pub(crate) retained: u64,
    pub(crate) inflight: u64,
    pub(crate) inflight_dropped: u64,
    pub(crate) subscriptions: u64,
    pub(crate) packets_received: u64,
    pub(crate) packets_sent: u64,
    /// Bytes.
    pub(crate) memory_alloc: u64,
    pub(crate) threads: u64,
}

impl Overall {
    fn new(node: &Node, shards: &[Numbers], process: Process) -> Self {
        let sum = |of: fn(&Numbers) -> u64| shards.iter().map(of).sum::<u64>();
        let connected = sum(|shard| shard.clients_connected);
        let total = sum(|shard| shard.clients_total);
        Self {
            version: env!("CARGO_PKG_VERSION"),
            started: node.started_secs,
            time: wall_secs(),
            uptime: node.started.elapsed().as_secs(),
            bytes_received: sum(|shard| shard.bytes_received),
            bytes_sent: sum(|shard| shard.bytes_sent),
            clients_connected: connected,
            // a session is there a moment before its client counts as connected
            clients_disconnected: total.saturating_sub(connected),
            clients_maximum: node.clients.maximum(),
            clients_total: total,
            messages_received: sum(|shard| shard.messages_received),
            messages_sent: sum(|shard| shard.messages_sent),
            messages_dropped: sum(|shard| total_of(&shard.dropped)),
            retained: sum(|shard| shard.retained),
            inflight: sum(|shard| shard.inflight),
            inflight_dropped: sum(|shard| shard.inflight_dropped),
            subscriptions: sum(|shard| shard.subscriptions),
            packets_received: sum(|shard| shard.packets_received),
            packets_sent: sum(|shard| shard.packets_sent),
            memory_alloc: process.resident_bytes,
            threads: process.threads,
        }
    }
}

/// Over all reasons.
pub(crate) fn total_of(by_reason: &ByReason) -> u64 {
    by_reason.iter().map(|(_, count)| count).sum()
}

/// What the kernel says of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Process {
    resident_bytes: u64,
    threads: u64,
}

impl Process {
    /// Zeros where there is no `/proc`.
    fn now() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self::read(&status)
    }

    fn read(status: &str) -> Self {
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_ascii_whitespace().next()?.parse::<u64>().ok()
        };
        Self {
            resident_bytes: number("VmRSS:").unwrap_or_default() * 1024,
            threads: number("Threads:").unwrap_or_default(),
        }
    }
}

fn wall_secs() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Two shards whose numbers all differ.
    pub(crate) fn snapshot() -> Snapshot {
        let shard = |n: u64| Numbers {
            bytes_received: 10 * n,
            bytes_sent: 20 * n,
            packets_received: 30 * n,
            packets_sent: 40 * n,
            messages_received: 3 * n,
            messages_received_by_qos: [n; 3],
            messages_sent: 50 * n,
            dropped: vec![("expired", n), ("offline", 2 * n)],
            limited: vec![("connections", 3 * n)],
            refused: vec![("not-authorized", n)],
            closed: vec![("client", 4 * n)],
            connections_opening: n,
            connections_lingering: 2 * n,
            clients_connected: 5 * n,
            clients_total: 7 * n,
            subscriptions: 60 * n,
            retained: 70 * n,
            retained_bytes: 80 * n,
            held_bytes: 1000 * n,
            inflight: 90 * n,
            inflight_dropped: n,
            ..Numbers::default()
        };
        let node = Node::start(Arc::default());
        Snapshot::new(&node, vec![shard(1), shard(100)])
    }

    #[test]
    fn the_whole_is_the_sum_of_the_shards() {
        let overall = snapshot().overall;
        assert_eq!(overall.bytes_received, 1010);
        assert_eq!(overall.messages_dropped, 303);
        assert_eq!(overall.clients_connected, 505);
        assert_eq!(overall.clients_disconnected, 202);
        assert_eq!(overall.inflight_dropped, 101);
    }

    #[test]
    fn memory_and_threads_are_the_kernels() {
        let status = "Name:\tcorqtt\nVmHWM:\t  9000 kB\nVmRSS:\t  8432 kB\nThreads:\t5\n";
        let expected = Process {
            resident_bytes: 8432 * 1024,
            threads: 5,
        };
        assert_eq!(Process::read(status), expected);
        assert_eq!(Process::read("nothing"), Process::default());
        assert!(Process::now().resident_bytes > 1 << 20);
    }
}
