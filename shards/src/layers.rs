// SPDX-License-Identifier: Apache-2.0
//! The layers of a connection that is not plain TCP: what moves between its socket and its MQTT bytes.
//!
//! Bounds: `ready` holds no more than one read gave, `sending` no more than one wrapped part of a flush and what layers
//! answered meanwhile; an idle connection holds neither.

use std::io::IoSlice;
use std::time::Duration;

use corqtt_transport::{Transport, TransportError, Workspace};

/// Bytes of one read below the layers. What TLS held back of an earlier read (a record) has room besides in a read above
/// them.
pub(crate) const RAW_BYTES: usize = 46 * 1024;
/// MQTT bytes wrapped at once: four full TLS records.
const WRAP_BYTES_MAX: usize = 64 * 1024;
/// How long handshakes may take of a turn; the step that passes it is the last.
pub(crate) const HANDSHAKES_MAX: Duration = Duration::from_millis(1);

/// Whether the layers were told that the connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goodbye {
    No,
    Due { going_away: bool },
    Said,
}

/// Layers and what is on its way through them.
#[derive(Debug)]
pub(crate) struct Layered {
    pub(crate) transport: Transport,
    /// MQTT bytes that a read had no room for; those before `taken` are gone.
    ready: Vec<u8>,
    taken: usize,
    /// Nothing more comes from the socket.
    pub(crate) is_ended: bool,
    /// Bytes for the socket; those before `sent` are with the kernel.
    pub(crate) sending: Vec<u8>,
    sent: usize,
    goodbye: Goodbye,
    /// Bytes of memory that the shard has counted.
    counted_bytes: usize,
}

impl Layered {
    pub(crate) const fn new(transport: Transport) -> Self {
        Self {
            transport,
            ready: Vec::new(),
            taken: 0,
            is_ended: false,
            sending: Vec::new(),
            sent: 0,
            goodbye: Goodbye::No,
            counted_bytes: 0,
        }
    }

    /// Moves MQTT bytes that are there already; 0: none.
    pub(crate) fn take_ready(&mut self, into: &mut [u8]) -> usize {
        let rest = &self.ready[self.taken..];
        let count = rest.len().min(into.len());
        into[..count].copy_from_slice(&rest[..count]);
        self.taken += count;
        if self.taken == self.ready.len() {
            self.ready = Vec::new();
            self.taken = 0;
        }
        count
    }

    /// Gives `mqtt` to a read, keeping what `into` has no room for. Only while nothing is kept.
    pub(crate) fn give(&mut self, mqtt: &[u8], into: &mut [u8]) -> usize {
        debug_assert!(self.ready.is_empty());
        let count = mqtt.len().min(into.len());
        into[..count].copy_from_slice(&mqtt[..count]);
        if count < mqtt.len() {
            self.ready = mqtt[count..].to_vec();
        }
        count
    }

    /// MQTT bytes wait for a read.
    pub(crate) const fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The peer may still listen to a goodbye: of a layer, or in what is wrapped already.
    pub(crate) fn has_goodbye(&self) -> bool {
        !self.unsent().is_empty() || self.transport.is_open()
    }

    /// Another read would give something, or say that the stream has ended, whatever the socket has.
    pub(crate) const fn wants_read(&self) -> bool {
        self.is_ended || self.has_ready()
    }

    /// Bytes for the socket that are wrapped already.
    pub(crate) fn unsent(&self) -> &[u8] {
        &self.sending[self.sent..]
    }

    /// The kernel took `count` bytes.
    pub(crate) fn advance(&mut self, count: usize) {
        self.sent += count;
        if self.sent == self.sending.len() {
            self.sending.clear();
            self.sent = 0;
        } else if self.sent >= self.sending.len() - self.sent {
            // a reader that is never done shall not gather what it has read
            self.sending.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// Wraps the beginning of what waits in `slices`; returns how many bytes of it.
    pub(crate) fn wrap(
        &mut self,
        slices: &[IoSlice<'_>],
        workspace: &mut Workspace,
    ) -> Result<usize, TransportError> {
        let mut room = WRAP_BYTES_MAX;
        let parts = slices.iter().map_while(move |slice| {
            let part = &slice[..slice.len().min(room)];
            room -= part.len();
            (!part.is_empty()).then_some(part)
        });
        let count = parts.clone().map(<[u8]>::len).sum();
        self.transport.wrap(parts, &mut self.sending, workspace)?;
        Ok(count)
    }

    /// Once everything is wrapped, every layer is to say goodbye. `going_away`: since the broker stops.
    pub(crate) fn end(&mut self, going_away: bool) {
        if self.goodbye == Goodbye::No {
            self.goodbye = Goodbye::Due { going_away };
        }
    }

    /// Everything is wrapped: the goodbye, if it is due. True if there is something to send now.
    pub(crate) fn say_goodbye(&mut self) -> bool {
        let Goodbye::Due { going_away } = self.goodbye else {
            return false;
        };
        self.goodbye = Goodbye::Said;
        self.transport.close(going_away, &mut self.sending);
        !self.sending.is_empty()
    }
}

impl Layered {
    /// Bytes of memory that it holds beside itself: now, and when this was asked last.
    pub(crate) fn count_memory(&mut self) -> (usize, usize) {
        let now = self.ready.capacity() + self.sending.capacity() + self.transport.memory_bytes();
        (now, std::mem::replace(&mut self.counted_bytes, now))
    }

    /// What was counted and is not to be any more.
    pub(crate) const fn uncount_memory(&mut self) -> usize {
        std::mem::replace(&mut self.counted_bytes, 0)
    }
}

/// Buffers of a shard for layers; lent to one connection at a time.
#[derive(Debug)]
pub(crate) struct LayerScratch {
    /// Bytes of the socket.
    pub(crate) raw: Vec<u8>,
    /// MQTT bytes that came of them.
    pub(crate) mqtt: Vec<u8>,
    pub(crate) workspace: Workspace,
    /// Time that handshakes took in this turn.
    pub(crate) handshakes: Duration,
}

impl Default for LayerScratch {
    fn default() -> Self {
        Self {
            raw: vec![0; RAW_BYTES],
            mqtt: Vec::new(),
            workspace: Workspace::default(),
            handshakes: Duration::ZERO,
        }
    }
}
