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
mod bans;
mod claims;
mod config;
mod connect;
mod connection;
mod driver;
mod extended;
mod keeping;
mod lanes;
mod layers;
mod lease;
mod limits;
mod listener;
mod memory;
mod numbers;
mod packets;
mod rate;
mod restore;
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
pub use driver::{Driven, StartError, Starting, glommio_available, start};
pub use lanes::{DrainStep, HandOff, ToShard};
pub use limits::Limited;
pub use listener::{BindError, Bound, Place, bind, bind_unix, listen_alone};
pub use numbers::Clients;
pub use restore::Restored;
pub use sessions::NameHasher;
pub use shard::{Ports, Shard};

/// A step of the order in which things are kept and sent; `CORQTT_CRASH_AT=NAME:N` ends a process of the doubles' build
/// when it comes to that step for the Nth time.
///
/// | name | when |
/// |---|---|
/// | commit | the store has a batch, and nothing that waited for it has gone on |
/// | puback | before a PUBACK that waited is written |
/// | received | before a PUBREC that waited is written |
/// | pubrec-sent | PUBREL came |
/// | pubrel-kept | before a PUBCOMP that waited is written |
/// | begun | a packet id is kept, before its PUBLISH |
/// | publish-sent | PUBACK or PUBREC came |
/// | pubrec-kept | a PUBREC is kept, before its PUBREL |
/// | pubcomp | PUBCOMP came |
/// | freed | a PUBCOMP is kept, before its packet id is free |
/// | connack | a session is kept, before CONNACK |
/// | suback | a subscription is kept, before SUBACK or UNSUBACK |
/// | forward | the record of a QoS 2 message is kept, before other shards get it |
/// | settled | what another shard sent is kept, before its mark |
#[cfg(feature = "doubles")]
pub(crate) fn crash_point(name: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    static WANTED: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static PASSED: AtomicU64 = AtomicU64::new(0);
    let wanted = WANTED.get_or_init(|| {
        let wanted = std::env::var("CORQTT_CRASH_AT").ok()?;
        let (name, count) = wanted.split_once(':')?;
        Some((name.to_owned(), count.parse().ok()?))
    });
    if let Some((wanted, count)) = wanted
        && wanted == name
        && PASSED.fetch_add(1, Ordering::Relaxed) + 1 == *count
    {
        std::process::abort();
    }
}

#[cfg(not(feature = "doubles"))]
#[inline]
pub(crate) const fn crash_point(_name: &str) {}
