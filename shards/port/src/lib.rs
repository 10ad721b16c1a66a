// SPDX-License-Identifier: Apache-2.0
//! A shard's edges as typed messages: what it asks of others, and what they answer.
//!
//! ```text
//!              ┌──────────────► store   (operations, "kept up to token")
//!              ├──────────────► auth    (questions, verdicts)
//!   shard ◄───┼──────────────► routes  (other shards, later other nodes: interest, publishes, marks)
//!              ├──────────────► claims  (whose a client id is, in a cluster)
//!              ├──────────────► events  (what happened, for bridges)
//!              └──────────────► admin   (queries about clients and numbers)
//! ```
//!
//! * Between threads travel batches through a [`lane`], with one wake-up per batch; never closures.
//! * An answer may come at once, as a return value, or later, through the shard's inbox. Nothing here blocks.
//! * Each message says who sends it, who receives it, what is lost if it is dropped, and who retries.
#![forbid(unsafe_code)]

pub mod admin;
pub mod auth;
pub mod claims;
#[cfg(feature = "doubles")]
pub mod doubles;
pub mod events;
pub mod histogram;
pub mod lane;
pub mod routes;
pub mod store;
#[cfg(feature = "doubles")]
pub mod suite;

/// Names a connection of a shard: its slot, and how often the slot was used, so that a late answer to a connection
/// that is gone finds nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionKey {
    /// Index in the shard's table.
    pub slot: u32,
    /// Uses of the slot before this one.
    pub generation: u32,
}
