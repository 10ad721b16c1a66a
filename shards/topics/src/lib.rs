// SPDX-License-Identifier: Apache-2.0
//! Who wants a topic, and what was last published to it: one shard's part of both, without input or output.
//!
//! ```text
//!  subscribe, unsubscribe, client_changed ──► Partition ──► Interest: what the other shards must know
//!  apply_interest (another shard's)       ──►     │
//!                                                 ▼
//!  TopicName ──────────────────────────────► one look ────► Matches: local clients, shards, one member per group
//!
//!  set(Message, Stamp) ──► Retained ──► get(TopicName), page(TopicFilter, Cursor)
//! ```
//!
//! A [`Partition`] and a [`Retained`] belong to one shard and are changed by its own loop only. Filters without
//! wildcards are found by one look into a hash table, those with wildcards by a walk through a trie whose length is
//! bounded by the deepest filter, whatever the topic looks like.
#![forbid(unsafe_code)]

mod filters;
mod groups;
mod hash;
mod index;
mod interest;
mod matches;
mod partition;
mod remotes;
mod retained;
mod slab;
mod subscribers;
mod subscription;
mod trie;

pub use groups::Strategy;
pub use index::Index;
pub use interest::{Interest, ShardId, Want};
pub use matches::{Choice, GroupHit, Hit, Matches, Publisher};
pub use partition::Partition;
pub use retained::{Cursor, Retained, Stamp, is_system};
pub use subscription::{ClientKey, Subscription};
