// SPDX-License-Identifier: Apache-2.0
//! One client's protocol state, without input or output.
//!
//! ```text
//!   packets of the client ──► handle_*  ─┐                  ┌─► Output (bytes for its socket)
//!   messages of others    ──► deliver   ─┼──►  Session  ────┼─► values: what to route, what was dropped
//!   answers of the shard  ──► release   ─┘                  └─► poll_deadline (expiry, will delay)
//! ```
//!
//! * A session outlives its connections. [`Session::open`] begins one, [`Session::close`] ends one; in between
//!   packets go to the [`Output`] that the caller hands in, which belongs to that connection.
//! * Packet ids of the two directions are separate spaces `[MQTT-2.3.1-4] [MQTT5-2.2.1-4]`: those that the client chose are in
//!   `inbound`, those that the broker chose are in `outbound`.
//! * Acknowledgements leave in the order in which their packets came `[MQTT-4.6.0-2] [MQTT-4.6.0-3] [MQTT5-4.6.0-2] [MQTT5-4.6.0-3]`, however late
//!   the answers are that they wait for.
//! * Times are arguments ([`Now`]); nothing here reads a clock.
#![forbid(unsafe_code)]

mod alias;
mod deliver;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod held;
mod inbound;
mod journal;
mod output;
mod packet_ids;
mod session;
#[cfg(test)]
mod tests;
mod will;

pub use deliver::{Delivered, DropReason, Drops, Frame, Grant, Outgoing, Receipt, Unsent};
pub use held::{Held, held_bytes};
pub use inbound::{AckKey, AckRing, Inbound, PublishTopic, Violation};
pub use journal::{Change, Delivery, Effect};
pub use output::{Output, SHARED_PAYLOAD_BYTES_MIN};
pub use session::{Closed, Deadline, Leftover, Opening, Session};
pub use will::Will;

/// The two clocks, read once per turn by the shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds of a clock that never goes back and counts suspended time (CLOCK_BOOTTIME).
    pub mono_ms: u64,
    /// Milliseconds since 1970.
    pub wall_ms: u64,
}

/// What a full session queue does with the next message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QueueFull {
    /// The oldest message in the queue goes.
    #[default]
    DropOldest,
    /// The new message goes.
    DropNew,
    /// The new message goes and its publisher is told (0x97; before 5.0 its connection is closed).
    Reject,
    /// The subscriber is disconnected; its queue stays as it is and the new message goes.
    Disconnect,
}

/// Bounds that every session of a broker has.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Messages begun and not yet acknowledged to the end, 1 to 65,535; the client's Receive Maximum may be lower.
    pub inflight_max: u16,
    /// Messages in a session's queue; 0: no limit.
    pub queue_messages_max: usize,
    /// Bytes in a session's queue; 0: no limit.
    pub queue_bytes_max: usize,
    /// What a full queue does.
    pub queue_full: QueueFull,
    /// Bytes waiting for the socket beyond which QoS 0 is shed and QoS 1 and 2 stay in the queue.
    pub out_buffer_bytes_max: usize,
    /// Messages waiting for the socket from which on the same happens.
    pub writes_pending_max: usize,
    /// The node holds as much as it may: queues are full, and slow readers are shed sooner. Changes while it runs.
    pub memory_full: bool,
    /// QoS 1 and 2 messages that a client may have unacknowledged (our Receive Maximum).
    pub receive_maximum: u16,
    /// Topic aliases that a client may set on us.
    pub topic_alias_maximum: u16,
    /// Bytes of the topics behind a connection's aliases.
    pub alias_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            inflight_max: 8192,
            queue_messages_max: 100_000,
            queue_bytes_max: 64 << 20,
            queue_full: QueueFull::DropOldest,
            out_buffer_bytes_max: 1 << 20,
            writes_pending_max: 8192,
            memory_full: false,
            receive_maximum: 1024,
            topic_alias_maximum: 65_535,
            alias_bytes_max: 64 << 10,
        }
    }
}
