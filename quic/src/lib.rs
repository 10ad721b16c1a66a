// SPDX-License-Identifier: Apache-2.0
//! Links between nodes over QUIC: who may have one, ordered streams on it, and what becomes of them when it breaks.
//!
//! ```text
//!  dialer                                                            acceptor
//!  Endpoint::dial ── hello ─────────────────────────────────────────► Knock ── admit or refuse
//!  Outgoing ► frames, numbered entries ──── ordered stream ─────────► Incoming ► Frame, each once, in order
//!           ◄ Mark: done, kept, verdicts ◄───────────────────────────            ◄ MarkSender
//!  Link::request ── body ───────────────────────────────────────────► Request ── answer
//! ```
//!
//! A link goes one way: a node dials each peer for what it has to say, and the peer answers on the same link. Both ends
//! prove their identity (TLS 1.3 both ways) before a byte of theirs is read. What was sent and not kept stays in
//! [`Outgoing`], a plain value without input or output; when a new link is there it is sent again from where the
//! receiver says that it is.
//!
//! The crate knows neither MQTT nor raft: hellos, headers, bodies and verdicts are its user's bytes and numbers.
#![forbid(unsafe_code)]

mod endpoint;
mod error;
mod frame;
mod identity;
mod incoming;
mod link;
mod outgoing;

pub use endpoint::{Caller, Endpoint, Knock};
pub use error::LinkError;
pub use frame::{FRAME_BYTES_MAX, Frame, InvalidFrame, Mark};
pub use identity::{Identity, InvalidIdentity, SECRET_BYTES_MIN, keys_of_secrets};
pub use incoming::{Incoming, OutOfOrder};
pub use link::{
    Accepted, Arrival, Arrivals, Begun, FrameReader, Link, LinkNumbers, MarkSender, MarkWriter,
    Opening, Request, Stream,
};
pub use outgoing::{InvalidMark, Outgoing, PushError};
