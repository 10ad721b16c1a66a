// SPDX-License-Identifier: Apache-2.0
//! What one core does: it owns connections, sessions and subscriptions, and takes turns.
//!
//! ```text
//!            ┌────────────────────────── one turn ──────────────────────────┐
//!  sockets ─►│ read ─► decode ─► session ─► router ─► lanes ─► flush, once  │─► sockets
//!  inbox  ──►│          (codec)             (topics)   per connection       │─► other shards
//!  timer  ──►└──────────────────────────────────────────────────────────────┘
//! ```
//!
//! * A connection is a slot in a table, not a task: no channel, timer or allocation of its own while it is idle.
//! * [`Shard::turn`] is plain synchronous code; a driver only waits for the shard's one epoll descriptor.
//! * Shards share nothing. What another shard must know travels as batches through its inbox.
//! * Work is counted, so that a turn ends soon however much there is to do; what is left goes on in the next one.
#![forbid(unsafe_code)]

mod admission;
mod background;
mod config;
mod connect;
mod connection;
mod driver;
mod extended;
mod lanes;
mod layers;
mod limits;
mod listener;
mod memory;
mod numbers;
mod packets;
mod rate;
mod retain;
mod router;
mod sessions;
mod shard;
mod shares;
mod subscribe;
mod wheel;
mod wills;
mod wires;

pub use admission::Admission;
pub use config::{
    Capabilities, Certificates, Compatibilities, Config, Limits, Listener, Network, Runtime,
};
pub use driver::{Driven, StartError, glommio_available, start};
pub use lanes::{DrainStep, HandOff, ToShard};
pub use limits::Limited;
pub use listener::{BindError, Bound, Place, bind, bind_unix, listen_alone};
pub use numbers::Clients;
pub use shard::{Ports, Shard};
