// SPDX-License-Identifier: Apache-2.0
//! Between the bytes of a socket and the bytes of MQTT, without input or output.
//!
//! ```text
//!              ┌───────────────── Transport ─────────────────┐
//!   socket ──► │ PROXY header ──► TLS ──► WebSocket          │ ──► [ Carry ] ──► whole packets
//!   socket ◄── │                  TLS ◄── WebSocket          │ ◄── packets of a flush
//!              └─────────────────────────────────────────────┘
//! ```
//!
//! * Each layer takes bytes in any cut and returns bytes; none waits, reads a clock or owns a descriptor.
//! * What a peer announces allocates nothing: memory follows what has come, and an idle connection holds none of it.
//! * Plain TCP carries MQTT as it is: such a connection has no [`Transport`] at all.
//! * Another way in (a QUIC stream, say) is another way to fill and empty the two ends; nothing here knows sockets.
#![forbid(unsafe_code)]

mod carry;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod proxy;
mod stack;
pub mod tls;
pub mod websocket;

pub use carry::{Carry, LARGE_BUFFER_BYTES, LARGE_PACKET_BYTES_MIN, reserve_for_read};
pub use stack::{Layers, Transport, TransportError, Workspace};
