// SPDX-License-Identifier: Apache-2.0
//! What the nodes of a cluster agree on: who is in it, who wants what, and who a client id belongs to.
//!
//! ```text
//!  raft log ─► Entry ─► Machine::apply(index) ─► Answer      to whoever proposed it
//!                            │                └► Output ...  to this node's shards, in order
//!                            └► snapshot, Machine::restore
//! ```
//!
//! The [`Machine`] is a plain value: each node applies the same entries in the same order and has the same tables.
#![forbid(unsafe_code)]

mod clients;
mod core;
mod entry;
mod exchange;
mod gossip;
mod lease;
mod machine;
mod merge;
mod own;
mod raft;
#[cfg(test)]
#[path = "../tests/common/scaffold.rs"]
mod testing;
mod threads;

pub use clients::{OwnClients, Way, Wish};
pub use core::{
    Bootstrap, Carrier, Core, CoreError, CoreEvent, CoreSettings, CoreStatus, MemberStatus,
    OwnRows, Proposer,
};
pub use entry::{
    Boot, Claim, Delta, Entry, InvalidEntry, NodeId, Rows, Timeouts, Want, Will, WillId,
    decode_entry, encode_entry,
};
pub use exchange::{Carried, Exchange, Shards};
pub use gossip::{
    Card, Event, Gossip, GossipError, NotJoined, OnStranger, Settings as GossipSettings,
};
pub use lease::{Grants, Lease};
pub use machine::{
    Answer, ClientRow, InvalidSnapshot, Kind, Machine, NodeRow, Output, Refusal, TableNumbers,
    Verdict,
};
pub use merge::{Marked, Merge};
pub use own::OwnRoutes;
pub use raft::{Agreed, Applied, InvalidQuestion, Peers, RaftFailure, RaftNode, StartError};
