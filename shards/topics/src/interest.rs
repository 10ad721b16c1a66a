// SPDX-License-Identifier: Apache-2.0
//! What shards tell each other about their subscribers.

use compact_str::CompactString;

/// A shard of this process, 0 to 63.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId(pub u8);

impl ShardId {
    /// This shard's bit in a set of shards.
    #[inline]
    #[must_use]
    pub const fn bit(self) -> u64 {
        1 << (self.0 & 63)
    }
}

/// What a shard wants of one filter from now on. It states the whole truth, so a repeat changes nothing and only the
/// newest one counts.
///
/// Sent by the shard that has the subscribers to every other shard, in order; a lost one would lose messages, so the
/// SUBACK waits until all have applied it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interest {
    /// The whole filter, `$share/GROUP/` included.
    pub filter: CompactString,
    /// What is wanted.
    pub want: Want,
}

/// The part of an [`Interest`] that changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Of a plain filter.
    Plain {
        /// Somebody subscribes; `false` ends the interest.
        any: bool,
        /// Some persistent session subscribes with QoS above 0: publishers wait for it.
        persistent: bool,
    },
    /// Of a shared group; no members ends the interest.
    Group {
        /// Members that are connected.
        online: u32,
        /// Members whose session outlived the connection.
        offline: u32,
        /// Some member's session is persistent and subscribes with QoS above 0.
        persistent: bool,
    },
}
