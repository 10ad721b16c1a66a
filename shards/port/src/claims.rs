// SPDX-License-Identifier: Apache-2.0
//! Whose a client id is, in a cluster: what a shard asks and says of its clients, and what it is told.
//!
//! ```text
//!  CONNECT ─ Said::Claim ─► cluster ─ Told::Verdict ─► CONNACK          end ─ Said::Disconnected, Said::Ended ─► cluster
//!                           cluster ─ Told::Taken, Told::Ended ─► the client is connected elsewhere, or its session is over
//! ```
//!
//! A connection that was let in has a number, greater than those before it on its node.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use corqtt_topics::ShardId;
use rustix::time::{ClockId, clock_gettime};

use crate::ConnectionKey;

/// Until when a node may trust its copy of the cluster's tables. Written by the cluster's thread, read by the shards.
#[derive(Debug, Default)]
pub struct Lease(AtomicU64);

impl Lease {
    /// Until that time of `CLOCK_BOOTTIME` (ns).
    pub fn extend(&self, until_ns: u64) {
        self.0.fetch_max(until_ns, Ordering::Release);
    }

    /// Now; reads the clock.
    #[must_use]
    pub fn is_current(&self) -> bool {
        let now = clock_gettime(ClockId::Boottime);
        let now_ns = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
        now_ns < self.0.load(Ordering::Acquire)
    }
}

/// A CONNECT whose client id is to be its own before it is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Whom to tell,
    pub shard: ShardId,
    /// and for whom.
    pub connection: ConnectionKey,
    /// Client identifier, after assignment.
    pub client_id: Arc<str>,
    /// User name of CONNECT.
    pub username: Option<Arc<str>>,
    /// Ends a session that there is.
    pub clean_start: bool,
    /// How long its session stays without it (s); 0: not.
    pub expiry_secs: u32,
}

/// Shard to cluster, in order. Claims are bounded: one per connection, which is not read meanwhile; the others by what
/// happens to connections. If a claim were dropped, its CONNECT would end at `connect-timeout`; if another one were, a row
/// would stay as it is until the client comes again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// May it?
    Claim(Claim),
    /// A connection that was let in is over.
    Disconnected {
        /// Whose.
        client_id: Arc<str>,
        /// Its number.
        number: u64,
    },
    /// The store has given a session back at a start.
    Held {
        /// Whose.
        client_id: Arc<str>,
        /// As whom.
        username: Option<Arc<str>>,
        /// How long it stays without a connection (s).
        expiry_secs: u32,
    },
    /// A session that stays without a connection has ended by itself, or by its client.
    Ended {
        /// Whose.
        client_id: Arc<str>,
        /// Number of its last connection; 0: none since the start.
        number: u64,
    },
    /// What [`Told::Ended`] was about is in no store any more.
    Dropped {
        /// Whose.
        client_id: Arc<str>,
        /// As told.
        epoch: u64,
    },
}

/// The answer to a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The client id is its own.
    Granted {
        /// Its connection's.
        number: u64,
        /// Ended a session that there was.
        clean_start: bool,
    },
    /// Another node holds its session.
    HeldElsewhere,
    /// The client id belongs to another user.
    OtherUser,
    /// The cluster did not agree in time.
    Unknown,
}

/// Cluster to shard, through its inbox. Verdicts have the room that their claims reserved. If another one were dropped, two
/// connections could have one client id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// To a claim; once more if it is granted after [`Verdict::Unknown`]. Of a connection that is gone or refused,
    /// [`Said::Disconnected`] follows, and [`Said::Ended`] unless there is a session.
    Verdict {
        /// For whom.
        connection: ConnectionKey,
        /// Whose.
        client_id: Arc<str>,
        /// What.
        verdict: Verdict,
    },
    /// The client is connected elsewhere: its connections up to this number are over.
    Taken {
        /// Who.
        client_id: Arc<str>,
        /// Up to which.
        number: u64,
    },
    /// A session that this node holds was ended elsewhere; [`Said::Dropped`] follows when it is gone here.
    Ended {
        /// Whose.
        client_id: Arc<str>,
        /// By which claim.
        epoch: u64,
    },
    /// The cluster took this node for dead: all connections up to this number are over.
    Over {
        /// Up to which.
        number: u64,
    },
}
