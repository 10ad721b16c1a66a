// SPDX-License-Identifier: Apache-2.0
//! What is proposed to the cluster, and how it looks in the log.

use std::fmt;
use std::num::NonZeroU64;
use std::time::Duration;

use compact_str::CompactString;
use serde::{Deserialize, Serialize};

/// A node's raft id: drawn once, kept with its raft log, never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeId(pub NonZeroU64);

impl NodeId {
    /// `None` for 0.
    #[must_use]
    pub fn new(id: u64) -> Option<Self> {
        NonZeroU64::new(id).map(Self)
    }
}

/// Which start of a node: counted with its raft log, so a later one is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Boot(pub u64);

/// What nodes want of one filter: a whole truth, as between shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Want {
    /// Of a plain filter.
    Plain {
        /// Some persistent session subscribes with QoS above 0: publishers wait for it.
        persistent: bool,
    },
    /// Of a shared group.
    Group {
        /// Members that are connected and go with their connection.
        clean: u32,
        /// Members that are connected and stay without it.
        kept: u32,
        /// Members that are not connected.
        offline: u32,
        /// Some member's session is persistent and subscribes with QoS above 0.
        persistent: bool,
    },
}

/// A will as it is kept for the case that its node dies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Will {
    /// Seconds between the end of the connection and the will; no longer than its session stays.
    pub delay_secs: u32,
    /// The message, in the form of its sender's version.
    pub message: Vec<u8>,
}

/// One change of a node's rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Delta {
    /// What the node wants of a filter from now on; `None`: nothing.
    Route {
        /// The whole filter, `$share/GROUP/` included.
        filter: CompactString,
        /// What.
        want: Option<Want>,
    },
    /// A client connected whose session ends with the connection. Not a claim: nobody waited for this.
    Connected {
        /// Who.
        client_id: CompactString,
        /// As whom.
        user: Option<CompactString>,
        /// Which connection of that client to its node; a later one is greater.
        connection: u64,
        /// The index that the node had applied when it let the client in: it loses to whoever came later.
        since: u64,
    },
    /// A client's connection ended; of a session that stays, the connection alone.
    Disconnected {
        /// Who.
        client_id: CompactString,
        /// Which of its connections.
        connection: u64,
    },
    /// A session that the node held has ended, and is not in its store any more.
    Ended {
        /// Whose.
        client_id: CompactString,
        /// Of its row, or of the claim that ended it.
        epoch: u64,
    },
    /// What is to be published when the node dies; `None`: nothing, it has dealt with it.
    Will {
        /// Whose.
        client_id: CompactString,
        /// What.
        will: Option<Will>,
    },
    /// The node has published a dead node's will.
    WillSent {
        /// Which.
        id: WillId,
        /// Whose.
        client_id: CompactString,
    },
}

/// Names a will: who gets it twice knows it by this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WillId {
    /// Whose client's it was.
    pub node: NodeId,
    /// In which start of it.
    pub boot: Boot,
    /// The entry that brought it, and which of its deltas did.
    pub index: u64,
    /// From 0.
    pub delta: u32,
}

/// Rows of one boot of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rows {
    /// A part of all the rows that it has at its start. The first one ends its former boot; with the last one all rows of
    /// former boots go that no part named.
    Series {
        /// From 0.
        part: u32,
        /// No other one follows.
        is_last: bool,
        /// Persistent sessions that it holds, with their users and expiry intervals (s).
        sessions: Vec<(CompactString, Option<CompactString>, u32)>,
        /// Routes and wills.
        deltas: Vec<Delta>,
    },
    /// Changes since.
    Deltas {
        /// Number of the first of them since the series, from 1.
        first: u64,
        /// In order.
        deltas: Vec<Delta>,
    },
}

/// A CONNECT that has to know that its client id is its own before it is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Where the client is.
    pub node: NodeId,
    /// Which start of it.
    pub boot: Boot,
    /// Numbers the claims of that start, from 1: one that comes twice has one answer.
    pub number: u64,
    /// The node has the answers of all claims below this one.
    pub answered: u64,
    /// Who.
    pub client_id: CompactString,
    /// As whom.
    pub user: Option<CompactString>,
    /// As in [`Delta::Connected`].
    pub connection: u64,
    /// Ends a session that there is.
    pub clean_start: bool,
    /// How long the session stays without a connection (s); 0: not.
    pub expiry_secs: u32,
}

/// Timeouts that are equal everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeouts {
    /// A node that is silent for so long is dead.
    pub dead_node: Duration,
    /// A dead node is removed after so long.
    pub forget_node: Option<Duration>,
    /// How long a node may trust its tables after it asked.
    pub lease: Duration,
}

/// A node is not declared dead while it may still trust its tables.
const LEASES_PER_DEATH: u32 = 3;

impl Timeouts {
    /// Whether a cluster can be founded with them.
    #[must_use]
    pub fn are_possible(&self) -> bool {
        self.dead_node >= LEASES_PER_DEATH * self.lease
    }
}

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry {
    /// The cluster's name and timeouts; the first entry of all.
    Founded {
        /// Drawn once.
        cluster: NonZeroU64,
        /// From then on.
        timeouts: Timeouts,
    },
    /// A node is a member, under a name that no other one has.
    Joined {
        /// Which.
        node: NodeId,
        /// Its name.
        name: CompactString,
    },
    /// Rows of a node.
    Rows {
        /// Whose.
        node: NodeId,
        /// Of which start.
        boot: Boot,
        /// What.
        rows: Rows,
    },
    /// A client id is claimed.
    Claim(Claim),
    /// Nobody waits for a claim any more: it is void, unless it was judged before.
    Unclaimed {
        /// Whose.
        node: NodeId,
        /// Of which start.
        boot: Boot,
        /// The claim's.
        number: u64,
    },
    /// A start of a node is over: nobody has heard of it.
    NodeDead {
        /// Whose.
        node: NodeId,
        /// Which.
        boot: Boot,
    },
    /// A node is no member any more, and all its rows go.
    NodeRemoved {
        /// Which.
        node: NodeId,
    },
    /// A client id is banned, or no more.
    Ban {
        /// Which.
        client_id: CompactString,
        /// Whether.
        is_banned: bool,
    },
}

/// The version of [`encode_entry`].
const VERSION: u8 = 1;

/// Bytes that are no entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidEntry {
    /// Of a later version.
    Version(u8),
    /// Not what an entry looks like.
    Malformed,
}

impl fmt::Display for InvalidEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => write!(
                f,
                "an entry of version {version}, this node knows {VERSION}: it needs the release of its peers"
            ),
            Self::Malformed => f.write_str("an entry that cannot be read"),
        }
    }
}

impl std::error::Error for InvalidEntry {}

/// An entry as it stands in the log: its version, and postcard.
#[must_use]
pub fn encode_entry(entry: &Entry) -> Vec<u8> {
    // fails for sequences of unknown length only, and no entry has any
    postcard::to_extend(entry, vec![VERSION]).expect("entries are plain values")
}

/// The entry of those bytes.
///
/// # Errors
/// When they are none that this version knows.
pub fn decode_entry(bytes: &[u8]) -> Result<Entry, InvalidEntry> {
    match bytes.split_first() {
        Some((&VERSION, rest)) => match postcard::take_from_bytes(rest) {
            Ok((entry, [])) => Ok(entry),
            _ => Err(InvalidEntry::Malformed),
        },
        Some((version, _)) => Err(InvalidEntry::Version(*version)),
        None => Err(InvalidEntry::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_comes_out_as_it_went_in() {
        let entry = Entry::Rows {
            node: NodeId(NonZeroU64::MIN),
            boot: Boot(3),
            rows: Rows::Deltas {
                first: 7,
                deltas: vec![Delta::Route {
                    filter: "a/+".into(),
                    want: Some(Want::Plain { persistent: true }),
                }],
            },
        };
        let bytes = encode_entry(&entry);
        assert_eq!(decode_entry(&bytes), Ok(entry));
        assert_eq!(
            decode_entry(&bytes[..bytes.len() - 1]),
            Err(InvalidEntry::Malformed)
        );
        let longer = [&bytes[..], &[0]].concat();
        assert_eq!(decode_entry(&longer), Err(InvalidEntry::Malformed));
    }

    #[test]
    fn an_entry_of_a_later_version_is_named() {
        assert_eq!(
            decode_entry(&[VERSION + 1, 0]),
            Err(InvalidEntry::Version(VERSION + 1))
        );
        assert_eq!(decode_entry(&[]), Err(InvalidEntry::Malformed));
    }
}
