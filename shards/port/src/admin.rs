// SPDX-License-Identifier: Apache-2.0
//! Questions of operators to a shard, and its answers.

use std::collections::VecDeque;
use std::sync::Arc;

use corqtt_codec::Message;

use crate::histogram::Histogram;
use crate::lane::Sender;

/// Operator to shard. Bounded by the asker, which waits for each answer. If it is dropped the asker times out.
#[derive(Debug)]
pub struct Query {
    /// Chosen by the asker, comes back in the answer.
    pub id: u64,
    /// What to do or tell.
    pub ask: Ask,
    /// Where the answer goes.
    pub reply: Sender<Reply>,
}

/// What an operator wants.
#[derive(Debug)]
pub enum Ask {
    /// The shard's counters.
    Numbers,
    /// One client, if this shard has it.
    Client(Box<str>),
    /// Close a client's connection (0x98).
    Disconnect(Box<str>),
    /// Refuse a client id from now on (0x8A; before 5.0: 5), and close its connection (0x98). Answered when that is kept, by
    /// the shard that the client's session would be on.
    Ban(Box<str>),
    /// Let it in again. Answered when that is kept.
    Unban(Box<str>),
    /// The banned client ids of this shard.
    Bans,
    /// Publish a message as the broker itself.
    Publish(Arc<Message>),
    /// Publish what the broker says of itself below `$SYS/`, in this order; goes on over several turns where many
    /// subscribe to it.
    System(VecDeque<Arc<Message>>),
}

/// Shard to operator.
#[derive(Debug)]
pub struct Reply {
    /// Of the query.
    pub id: u64,
    /// What came of it.
    pub answer: Answer,
}

/// An answer.
#[derive(Debug)]
pub enum Answer {
    /// To [`Ask::Numbers`].
    Numbers(Box<Numbers>),
    /// To [`Ask::Client`]; `None`: not here.
    Client(Option<Box<Client>>),
    /// It is done.
    Done,
    /// To [`Ask::Bans`], in no order.
    Bans(Vec<Box<str>>),
    /// There is no such client, or ban, on this shard.
    NotHere,
    /// There are too many of them already.
    NoRoom,
}

/// Counts by reason; a reason is the value of a label in metrics.
pub type ByReason = Vec<(&'static str, u64)>;

/// Counters of one shard since start, and what it holds now.
#[derive(Clone, Debug, Default)]
pub struct Numbers {
    /// Bytes read from clients.
    pub bytes_received: u64,
    /// Bytes written to clients.
    pub bytes_sent: u64,
    /// Packets decoded.
    pub packets_received: u64,
    /// Packets encoded for clients.
    pub packets_sent: u64,
    /// PUBLISH packets of clients.
    pub messages_received: u64,
    /// Those, by QoS.
    pub messages_received_by_qos: [u64; 3],
    /// PUBLISH packets to clients.
    pub messages_sent: u64,
    /// Messages dropped.
    pub dropped: ByReason,
    /// How often a limit was reached, by its name.
    pub limited: ByReason,
    /// Connections that ended before their client was connected.
    pub refused: ByReason,
    /// Connected clients whose connection ended.
    pub closed: ByReason,
    /// Connections whose client is not connected yet.
    pub connections_opening: u64,
    /// Connections that were told goodbye and are not closed yet.
    pub connections_lingering: u64,
    /// Connected clients.
    pub clients_connected: u64,
    /// Sessions, connected or not.
    pub clients_total: u64,
    /// Subscriptions.
    pub subscriptions: u64,
    /// Retained messages, without those below `$SYS/`.
    pub retained: u64,
    /// Bytes of them: topics, properties and payloads.
    pub retained_bytes: u64,
    /// Bytes that clients make the shard hold; they count against `memory-max`.
    pub held_bytes: u64,
    /// QoS 1 and 2 messages begun and not acknowledged to the end.
    pub inflight: u64,
    /// Those whose session ended first.
    pub inflight_dropped: u64,
    /// Time of the shard's thread on its CPU per turn, an upper bound by at most 250 µs.
    pub turn_cpu: Histogram,
    /// Time on the clock from waking up to the last flush, of turns that had something to do.
    pub turn_wall: Histogram,
    /// Time that acknowledgements waited for another shard; a sample.
    pub waited_for_shards: Histogram,
    /// Time that acknowledgements waited for the store; a sample.
    pub waited_for_store: Histogram,
}

/// One client.
#[derive(Clone, Debug)]
pub struct Client {
    /// Its identifier.
    pub client_id: Box<str>,
    /// As whom it connected.
    pub username: Option<Box<str>>,
    /// It is connected now.
    pub online: bool,
    /// `ip:port` of its connection.
    pub remote: Option<Box<str>>,
    /// Full filters.
    pub filters: Vec<Box<str>>,
    /// Messages in its queue.
    pub queued: usize,
    /// Messages in flight to it.
    pub inflight: usize,
    /// 3, 4 or 5.
    pub protocol_version: u8,
}
