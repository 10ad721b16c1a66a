// SPDX-License-Identifier: Apache-2.0
//! The server's side of WebSocket (RFC 6455), as far as MQTT uses it (section 6 of both specifications).
//!
//! ```text
//!   Handshake ── request head ──► Open ── the peer's Close ──► Ended
//!       │                          │
//!       │ HTTP error               │ Close with the error's code
//!       └───────► Failed ◄─────────┘
//! ```
//!
//! * What data frames carry is passed on as it comes; nothing waits for the end of a frame, and no memory is taken
//!   because a length was announced `[MQTT-6.0.0-2] [MQTT5-6.0.0-2]`.
//! * Until the upgrade the request head is kept, up to [`HEAD_BYTES_MAX`]; then at most one control frame (125 bytes)
//!   of which a part is missing. Between frames nothing is kept.
//! * The result does not depend on how the bytes were cut, but for pings: of those in one call the last is answered.
//! * No extension is agreed on, so messages of several frames are just frames here.

use std::sync::Arc;

mod error;
mod frame;
mod handshake;
mod origins;
#[cfg(test)]
mod tests;

pub use error::WebSocketError;
pub use frame::HEADER_BYTES_MAX;
pub use handshake::HEAD_BYTES_MAX;
pub use origins::{InvalidOrigin, Origins};

use frame::Frames;
use handshake::Handshake;

/// One connection's state; see the module for what it holds.
///
/// Bytes of the socket go to [`WebSocket::handle_bytes`] in order and all of them. Frames may be sent to the peer while
/// [`WebSocket::is_open`]: [`WebSocket::header`], then as many bytes as it says.
#[derive(Debug)]
pub struct WebSocket {
    stage: Stage,
}

const _: () = assert!(size_of::<WebSocket>() <= 64);

#[derive(Debug)]
enum Stage {
    Handshake(Handshake),
    Open(Frames),
    Ended,
    Failed(WebSocketError),
}

impl WebSocket {
    /// Waits for the request; `origins`: which pages may send one.
    #[must_use]
    pub const fn new(origins: Arc<Origins>) -> Self {
        Self {
            stage: Stage::Handshake(Handshake::new(origins)),
        }
    }

    /// Takes what was read from the socket, which is unmasked in place; appends what it carries of MQTT to `mqtt` and
    /// what must be sent to `answer`: the answer to the request, pongs, the answer to Close.
    ///
    /// # Errors
    /// When the peer broke a rule. `mqtt` and `answer` hold what came before, and `answer` also what tells the peer: an
    /// HTTP error or a Close frame. It must be sent and the connection closed; further calls return the same error.
    pub fn handle_bytes(
        &mut self,
        socket: &mut [u8],
        mqtt: &mut Vec<u8>,
        answer: &mut Vec<u8>,
    ) -> Result<(), WebSocketError> {
        let mut frames_bytes = socket;
        if let Stage::Handshake(handshake) = &mut self.stage {
            match handshake.handle_bytes(frames_bytes, answer) {
                Ok(Some(head_bytes)) => {
                    self.stage = Stage::Open(Frames::new());
                    frames_bytes = &mut frames_bytes[head_bytes..];
                }
                Ok(None) => return Ok(()),
                Err(error) => {
                    handshake::refuse(error, answer);
                    self.stage = Stage::Failed(error);
                    return Err(error);
                }
            }
        }
        match &mut self.stage {
            Stage::Open(frames) => match frames.handle_bytes(frames_bytes, mqtt, answer) {
                Ok(ended) => {
                    if ended {
                        self.stage = Stage::Ended;
                    }
                    Ok(())
                }
                Err(error) => {
                    frames.close(error.close_code(), answer);
                    self.stage = Stage::Failed(error);
                    Err(error)
                }
            },
            Stage::Failed(error) => Err(*error),
            Stage::Handshake(_) | Stage::Ended => Ok(()),
        }
    }

    /// The upgrade is done, and neither side has sent Close: frames may be sent.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        matches!(&self.stage, Stage::Open(frames) if !frames.close_sent())
    }

    /// The peer has sent Close, and its answer was given; or [`WebSocket::close`] came before the upgrade. Nothing that
    /// follows is looked at: once the answer is out, the connection can be closed.
    #[must_use]
    pub const fn is_ended(&self) -> bool {
        matches!(self.stage, Stage::Ended)
    }

    /// Begins a frame of `payload_bytes`, which are to follow as they are.
    // [MQTT-6.0.0-1] [MQTT5-6.0.0-1]: one binary frame, which need not hold whole packets
    #[inline]
    pub fn header(&self, payload_bytes: usize, into: &mut Vec<u8>) {
        debug_assert!(self.is_open(), "no frame may be sent now");
        frame::write_binary_header(payload_bytes, into);
    }

    /// Sends Close, once: not if one was sent before, nor before the upgrade, when there are no frames yet.
    /// From then on data is ignored; the peer's own Close still ends the connection in order.
    pub fn close(&mut self, code: u16, into: &mut Vec<u8>) {
        match &mut self.stage {
            Stage::Open(frames) => frames.close(code, into),
            Stage::Handshake(_) => self.stage = Stage::Ended,
            Stage::Ended | Stage::Failed(_) => {}
        }
    }

    /// Bytes of memory that it holds beside itself.
    #[must_use]
    pub const fn memory_bytes(&self) -> usize {
        match &self.stage {
            Stage::Handshake(handshake) => handshake.memory_bytes(),
            Stage::Open(frames) => frames.memory_bytes(),
            Stage::Ended | Stage::Failed(_) => 0,
        }
    }
}
