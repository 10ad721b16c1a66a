// SPDX-License-Identifier: Apache-2.0
//! What a shard has kept: batches of operations with a token, answered by "kept up to token".

use std::sync::Arc;

use corqtt_codec::{Message, PacketId, SubscribeOptions};

/// Numbers the batches of one shard, from 1, without gaps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// A change to what outlives a connection. Only persistent sessions have any.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// The session exists with these terms; one of the same id before it is replaced if `fresh`.
    Session {
        /// Whose.
        client_id: Arc<str>,
        /// The user that it belongs to.
        username: Option<Box<str>>,
        /// Seconds that it outlives a connection.
        expiry_secs: u32,
        /// Everything kept for that id before goes.
        fresh: bool,
    },
    /// The session is over.
    SessionEnded {
        /// Whose.
        client_id: Arc<str>,
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
    /// A message is for a session, in its queue or on its way.
    Enqueued {
        /// Whose.
        client_id: Arc<str>,
        /// What.
        message: Arc<Message>,
    },
    /// A message of the client waits for PUBREL under this id.
    Received {
        /// Whose.
        client_id: Arc<str>,
        /// Chosen by the client.
        id: PacketId,
    },
    /// PUBREL came: the id is free.
    Released {
        /// Whose.
        client_id: Arc<str>,
        /// Chosen by the client.
        id: PacketId,
    },
    /// A topic's retained message; an empty payload: none any more.
    Retained(Arc<Message>),
}

/// Shard to store. Bounded by the acks that wait for it. If it were dropped those would never leave; the clients
/// send again on their next connection.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Its number.
    pub token: Token,
    /// In the order in which they happened.
    pub ops: Vec<Op>,
}

/// A shard's way to its store. A shard never waits in it.
pub trait Store: Send {
    /// False: sessions live in the shard alone, and no operations need to be made.
    fn records(&self) -> bool;
    /// Hands over a batch. The highest token kept, where that is known at once; else it comes through the inbox.
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
