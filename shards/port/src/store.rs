// SPDX-License-Identifier: Apache-2.0
//! What a shard has kept: batches of operations with a token, answered by "kept up to token".
//!
//! A shard has at most one batch on its way; what happens meanwhile gathers for the next, and what has come and gone by
//! then is in neither. The store makes the batches of all shards one ordered log. At a start the same operations come
//! back: each session with its terms, subscriptions, messages and packet ids, as if they had just been made.

use std::sync::Arc;

use corqtt_codec::{Message, MessageId, PacketId, SubscribeOptions, Version};
use corqtt_session::Change;
use corqtt_topics::{ShardId, Stamp};

/// Numbers the batches of one shard, from 1, without gaps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// A change to what outlives a connection. Only persistent sessions have any.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// The session exists with these terms, and has a connection.
    Session {
        /// Whose.
        client_id: Arc<str>,
        /// The terms.
        terms: Terms,
        /// Everything kept for that id before goes.
        fresh: bool,
    },
    /// Its connection is gone: from now on it expires.
    Left {
        /// Whose.
        client_id: Arc<str>,
        /// Wall clock, ms.
        at_ms: u64,
    },
    /// The session is over, and everything of it.
    SessionEnded {
        /// Whose.
        client_id: Arc<str>,
    },
    /// The session's will, or none any more.
    Will {
        /// Whose.
        client_id: Arc<str>,
        /// To be published after its delay.
        will: Option<Will>,
    },
    /// A subscription was made or replaced.
    Subscribed {
        /// Whose.
        client_id: Arc<str>,
        /// In full, with `$share/GROUP/`.
        filter: Box<str>,
        /// As granted.
        options: SubscribeOptions,
        /// Subscription identifier, 0 for none.
        subscription_id: u32,
    },
    /// A subscription is gone.
    Unsubscribed {
        /// Whose.
        client_id: Arc<str>,
        /// In full.
        filter: Box<str>,
    },
    /// A session's messages and packet ids.
    Changed {
        /// Whose.
        client_id: Arc<str>,
        /// What.
        change: Change,
    },
    /// A QoS 2 message of a client ([`Change::Received`] of the same batch) is still to reach these shards.
    Owed {
        /// The publisher.
        client_id: Arc<str>,
        /// In its space.
        packet_id: PacketId,
        /// What, and for whom.
        owed: Owed,
    },
    /// A shard has the effects of an [`Op::Owed`] in this batch.
    Settled {
        /// Which message.
        id: MessageId,
        /// Which shard.
        shard: ShardId,
    },
    /// A topic's retained message; an empty payload: none any more.
    Retained {
        /// What.
        message: Arc<Message>,
        /// The newest one counts.
        stamp: Stamp,
    },
    /// A client id is refused from now on, or no more.
    Ban {
        /// Which.
        client_id: Arc<str>,
        /// It is refused.
        banned: bool,
    },
}

/// What a session was made with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The user that it belongs to.
    pub username: Option<Box<str>>,
    /// Of its last connection.
    pub version: Version,
    /// Seconds that it outlives a connection; `u32::MAX`: for ever.
    pub expiry_secs: u32,
}

/// A will, as CONNECT gave it.
#[derive(Clone, Debug, PartialEq)]
pub struct Will {
    /// What.
    pub message: Arc<Message>,
    /// Will Delay Interval, seconds.
    pub delay_secs: u32,
    /// Message Expiry Interval, counted from publication.
    pub expiry_secs: Option<u32>,
}

/// Who is still to get a message of QoS 2.
#[derive(Clone, Debug, PartialEq)]
pub struct Owed {
    /// Its name.
    pub id: MessageId,
    /// What.
    pub message: Arc<Message>,
    /// Keyed hash of the publisher's client id.
    pub publisher: u64,
    /// Shards, a bit each.
    pub shards: u64,
    /// Those of them whose plain subscribers want it.
    pub plain: u64,
    /// How many shards there were: a session belonged to shard `hash(client id) % of`.
    pub of: u8,
    /// Full filters of shared groups, and the shard that each was chosen for.
    pub groups: Vec<(Box<str>, ShardId)>,
}

/// Shard to store. Bounded: one per shard. If it were dropped its acks would never leave; the clients send again on their
/// next connection.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Its number.
    pub token: Token,
    /// In the order in which they happened.
    pub ops: Vec<Op>,
}

/// Store to shard, through its inbox. Never dropped while both run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// All batches up to this one are kept.
    Kept(Token),
    /// There is no room (or there is again): what would take more is to be refused.
    Full(bool),
}

/// A shard's way to its store. A shard never waits in it.
pub trait Store: Send {
    /// False: sessions live in the shard alone, and no operations need to be made.
    fn records(&self) -> bool;
    /// Hands over a batch; the one before it was answered. The highest token kept, where that is known at once; else it
    /// comes through the inbox.
    fn put(&mut self, batch: Batch) -> Option<Token>;
}

/// Sessions end with the process: a message is kept when it is in the shard's queue.
#[derive(Debug, Default)]
pub struct Memory;

impl Store for Memory {
    fn records(&self) -> bool {
        false
    }

    fn put(&mut self, batch: Batch) -> Option<Token> {
        Some(batch.token)
    }
}
