// SPDX-License-Identifier: Apache-2.0
//! Raft as this cluster uses it: what openraft is given to keep its log, its vote and the machine.

mod log;
pub(crate) mod network;
mod node;
mod state;

#[cfg(test)]
mod tests;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use network::{InvalidQuestion, Peers};
pub use node::{Agreed, RaftFailure, RaftNode, StartError};
pub use state::Applied;

use log::LogStore;
use state::StateMachine;

use crate::machine::Answer;

openraft::declare_raft_types!(
    /// The types of the cluster's one raft group.
    pub(crate) Types:
        D = Proposal,
        R = Reply,
        NodeId = u64,
        Node = openraft::EmptyNode,
        SnapshotData = std::io::Cursor<Vec<u8>>,
);

/// An entry on its way through the log, as [`crate::encode_entry`] makes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Proposal(pub(crate) Bytes);

impl Serialize for Proposal {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Proposal {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Proposal;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an entry's bytes")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Proposal, E> {
                Ok(Proposal(Bytes::copy_from_slice(bytes)))
            }
        }
        from.deserialize_bytes(Visitor)
    }
}

/// What became of an entry; `None`: it was raft's own.
pub(crate) type Reply = Option<Answer>;

/// openraft's wrapper of errors.
fn any(error: &std::io::Error) -> openraft::AnyError {
    openraft::AnyError::new(error)
}
