// SPDX-License-Identifier: Apache-2.0
//! The shard's table of connections, and the output buffers that busy ones borrow.

use std::collections::BTreeSet;
use std::io::IoSlice;
use std::os::fd::OwnedFd;

use corqtt_codec::{ReasonCode, Version};
use corqtt_port::ConnectionKey;
use corqtt_session::Output;
use corqtt_transport::{Carry, TransportError, Workspace};
use rustix::io::Errno;

use crate::connect::Pending;
use crate::layers::Layered;
use crate::limits::Limited;
use crate::listener::Peer;

const _: () = assert!(size_of::<Connection>() <= 136);

/// No slot.
pub(crate) const NONE: u32 = u32::MAX;

/// Output buffers kept for the next busy connections.
const POOLED_MAX: usize = 1024;
/// Memory that a pooled buffer keeps, bytes.
const POOLED_BYTES_MAX: usize = 16 * 1024;

/// Output from this on is offered to the kernel at once instead of at the end of the turn (bytes).
const EARLY_FLUSH_BYTES: usize = 128 * 1024;

/// A read buffer smaller than this is not worth taking away (bytes).
const PARTIAL_BYTES_MIN: usize = 1024;

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The slot is free.
    Free,
    /// CONNECT has not come.
    Opening,
    /// CONNECT came; auth or store have not answered.
    Connecting,
    /// CONNACK was sent.
    Live,
    /// We said goodbye; what still comes is thrown away until the client closes or a moment has passed.
    Lingering,
}

/// A connection: one slot, owned by this shard.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) fd: Option<OwnedFd>,
    pub(crate) generation: u32,
    pub(crate) session: u32,
    pub(crate) stage: Stage,
    pub(crate) version: Version,
    /// Level bit 0x80 in CONNECT.
    pub(crate) bridge: bool,
    /// In `dirty`.
    pub(crate) dirty: bool,
    /// In the ready list.
    pub(crate) ready: bool,
    /// The socket may have bytes (edge-triggered: true until a read came back short).
    pub(crate) readable: bool,
    /// The peer closed or reset: read until the end says so.
    pub(crate) hangup: bool,
    /// The last write found no room; EPOLLOUT will come.
    pub(crate) write_blocked: bool,
    /// Decoding waits for an answer (auth).
    pub(crate) asking: bool,
    /// Decoding waits for a large fan-out of its last message.
    pub(crate) fanning_out: bool,
    /// Decoding waits for a token of publish-rate.
    pub(crate) throttled: bool,
    /// Decoding waits until acknowledgements leave the session, or output the socket.
    pub(crate) paused: bool,
    /// In the list of those that are to be closed.
    pub(crate) closing: bool,
    /// PUBACK and PUBCOMP packets in this read.
    pub(crate) acked: u8,
    /// Subscriptions of it still get retained messages.
    pub(crate) paging: bool,
    /// The address of `peer` was admitted, and leaves with the connection. False where a PROXY header is still to tell
    /// the client's, and where there is none.
    pub(crate) address_counted: bool,
    pub(crate) listener: u16,
    /// Seconds; 0: none.
    pub(crate) keep_alive_secs: u16,
    /// Monotonic ms: when the last sign of life came; for `Opening` and `Lingering` when that ends.
    pub(crate) clock_ms: u64,
    /// Tick of the earliest wheel entry of this slot, 0: none. Outlives the connection.
    pub(crate) timer_tick: u64,
    pub(crate) carry: Carry,
    pub(crate) out: Option<Box<Output>>,
    pub(crate) pending: Option<Box<Pending>>,
    /// What lies between the socket and MQTT; `None`: nothing.
    pub(crate) layers: Option<Box<Layered>>,
    pub(crate) peer: Peer,
}

impl Connection {
    /// A sign of life: keep-alive begins again.
    #[inline]
    pub(crate) fn heard(&mut self, now_ms: u64) {
        if self.stage == Stage::Live {
            self.clock_ms = now_ms;
        }
    }

    /// Nothing of it is decoded until something else has happened.
    #[inline]
    pub(crate) const fn decoding_waits(&self) -> bool {
        self.asking || self.fanning_out || self.throttled
    }
}

/// What a flush came to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Flushed {
    /// Everything is with the kernel.
    All,
    /// The kernel has no room: EPOLLOUT will come.
    Blocked,
    /// The connection is broken.
    Broken(Why),
}

/// All connections of a shard.
#[derive(Debug, Default)]
pub(crate) struct Wires {
    pub(crate) slots: Vec<Connection>,
    free: Vec<u32>,
    #[expect(clippy::vec_box, reason = "the boxes themselves are used again")]
    pool: Vec<Box<Output>>,
    /// Slots with output that was not offered to the kernel yet.
    pub(crate) dirty: Vec<u32>,
    pub(crate) bytes_sent: u64,
    /// Encoded, and offered to the kernel at least once.
    pub(crate) packets_sent: u64,
    workspace: Workspace,
    /// Lent to a layered connection while it is flushed.
    spare: Vec<u8>,
    /// Bytes of memory in read buffers, and in out-buffers that the kernel did not take at once.
    pub(crate) held_bytes: usize,
    /// Read buffers that are worth taking away: (bytes, slot).
    partial_reads: BTreeSet<(usize, u32)>,
}

impl Wires {
    /// Takes a slot for a new connection.
    pub(crate) fn add(
        &mut self,
        fd: OwnedFd,
        layers: Option<Box<Layered>>,
        peer: Peer,
        listener: u16,
        deadline_ms: u64,
        address_counted: bool,
    ) -> u32 {
        let slot = self.free.pop().unwrap_or(self.slots.len() as u32);
        let (generation, timer_tick) = self.slots.get(slot as usize).map_or((0, 0), |old| {
            (old.generation.wrapping_add(1), old.timer_tick)
        });
        let connection = Connection {
            fd: Some(fd),
            generation,
            session: NONE,
            stage: Stage::Opening,
            version: Version::V311,
            bridge: false,
            dirty: false,
            ready: false,
            readable: false,
            hangup: false,
            write_blocked: false,
            asking: false,
            fanning_out: false,
            throttled: false,
            paused: false,
            closing: false,
            acked: 0,
            paging: false,
            address_counted,
            listener,
            keep_alive_secs: 0,
            clock_ms: deadline_ms,
            timer_tick,
            carry: Carry::Empty,
            out: None,
            pending: None,
            layers,
            peer,
        };
        match self.slots.get_mut(slot as usize) {
            Some(old) => *old = connection,
            None => self.slots.push(connection),
        }
        slot
    }

    /// Frees a slot; the socket closes. Entries of it in `dirty` and the ready list find a free slot.
    pub(crate) fn remove(&mut self, slot: u32) {
        drop(self.take_carry(slot));
        let connection = &mut self.slots[slot as usize];
        debug_assert!(connection.stage != Stage::Free);
        connection.stage = Stage::Free;
        connection.fd = None;
        connection.pending = None;
        self.take_layers(slot);
        let connection = &mut self.slots[slot as usize];
        connection.session = NONE;
        if let Some(out) = connection.out.take() {
            self.give_back(out);
        }
        self.free.push(slot);
    }

    #[inline]
    pub(crate) fn key(&self, slot: u32) -> ConnectionKey {
        ConnectionKey {
            slot,
            generation: self.slots[slot as usize].generation,
        }
    }

    /// The slot, if it is still the same connection.
    #[inline]
    pub(crate) fn find(&self, key: ConnectionKey) -> Option<u32> {
        let connection = self.slots.get(key.slot as usize)?;
        (connection.generation == key.generation && connection.stage != Stage::Free)
            .then_some(key.slot)
    }

    /// Where to write packets for a connection; it is flushed at the end of the turn.
    #[inline]
    pub(crate) fn output(&mut self, slot: u32) -> &mut Output {
        self.make_dirty(slot);
        let connection = &mut self.slots[slot as usize];
        if connection.out.is_none() {
            connection.out = Some(self.pool.pop().unwrap_or_default());
        }
        connection.out.as_mut().expect("put there one line above")
    }

    /// A connection is flushed at the end of the turn.
    #[inline]
    pub(crate) fn make_dirty(&mut self, slot: u32) {
        let connection = &mut self.slots[slot as usize];
        if !connection.dirty {
            connection.dirty = true;
            self.dirty.push(slot);
        }
    }

    /// Bytes that wait for the socket.
    #[inline]
    pub(crate) fn output_len(&self, slot: u32) -> usize {
        let connection = &self.slots[slot as usize];
        connection.out.as_ref().map_or(0, |out| out.len())
            + connection
                .layers
                .as_ref()
                .map_or(0, |layers| layers.unsent().len())
    }

    /// A TLS handshake is under way.
    #[inline]
    pub(crate) fn is_handshaking(&self, slot: u32) -> bool {
        self.slots[slot as usize]
            .layers
            .as_ref()
            .is_some_and(|layers| layers.transport.is_handshaking())
    }

    /// So much waits that it is offered to the kernel at once: what is shed must be what the socket would not take.
    #[inline]
    pub(crate) fn is_early(&self, slot: u32, messages_max: usize) -> bool {
        self.slots[slot as usize]
            .out
            .as_ref()
            .is_some_and(|out| out.len() >= EARLY_FLUSH_BYTES || out.messages() >= messages_max)
    }

    /// Takes what an earlier read left over.
    #[inline]
    pub(crate) fn take_carry(&mut self, slot: u32) -> Carry {
        let carry = std::mem::take(&mut self.slots[slot as usize].carry);
        let bytes = carry.memory_bytes();
        if bytes > 0 {
            self.held_bytes -= bytes;
            if bytes >= PARTIAL_BYTES_MIN {
                self.partial_reads.remove(&(bytes, slot));
            }
        }
        carry
    }

    /// Keeps what a read left over, in place of nothing.
    #[inline]
    pub(crate) fn put_carry(&mut self, slot: u32, carry: Carry) {
        let bytes = carry.memory_bytes();
        if bytes > 0 {
            self.held_bytes += bytes;
            if bytes >= PARTIAL_BYTES_MIN {
                self.partial_reads.insert((bytes, slot));
            }
        }
        let connection = &mut self.slots[slot as usize];
        debug_assert!(connection.carry.is_empty());
        connection.carry = carry;
    }

    /// The largest read buffer that was not taken by this before, and its slot.
    pub(crate) fn largest_partial_read(&mut self) -> Option<(usize, u32)> {
        self.partial_reads.pop_last()
    }

    /// The kernel did not take a connection's output: its memory counts.
    pub(crate) fn count_output(&mut self, slot: u32) {
        if let Some(out) = &mut self.slots[slot as usize].out {
            let (now, before) = out.count_memory();
            self.held_bytes = self.held_bytes + now - before;
        }
    }

    /// What a connection's layers hold has changed.
    pub(crate) fn count_layers(&mut self, slot: u32) {
        if let Some(layers) = &mut self.slots[slot as usize].layers {
            let (now, before) = layers.count_memory();
            self.held_bytes = self.held_bytes + now - before;
        }
    }

    /// Takes the layers off a connection.
    pub(crate) fn take_layers(&mut self, slot: u32) -> Option<Box<Layered>> {
        let mut layers = self.slots[slot as usize].layers.take()?;
        self.held_bytes -= layers.uncount_memory();
        Some(layers)
    }

    fn give_back(&mut self, mut out: Box<Output>) {
        self.held_bytes -= out.uncount_memory();
        if self.pool.len() < POOLED_MAX {
            out.reset(POOLED_BYTES_MAX);
            self.pool.push(out);
        }
    }

    /// Offers a connection's output to the kernel.
    pub(crate) fn flush(&mut self, slot: u32) -> Flushed {
        let connection = &mut self.slots[slot as usize];
        if let Some(out) = &mut connection.out {
            self.packets_sent += out.take_packets();
        }
        if connection.layers.is_some() {
            let flushed = self.flush_layered(slot);
            self.count_layers(slot);
            return flushed;
        }
        let (Some(fd), Some(out)) = (&connection.fd, &mut connection.out) else {
            return Flushed::All;
        };
        if connection.write_blocked {
            return Flushed::Blocked;
        }
        while !out.is_empty() {
            let (offered, written) = match out.plain() {
                Some(bytes) => (bytes.len(), rustix::io::write(fd, bytes)),
                None => {
                    let mut slices = [IoSlice::new(&[]); 64];
                    let count = out.slices(&mut slices);
                    let offered = slices[..count].iter().map(|slice| slice.len()).sum();
                    (offered, rustix::io::writev(fd, &slices[..count]))
                }
            };
            match written {
                Ok(written) => {
                    self.bytes_sent += written as u64;
                    out.advance(written);
                    if written < offered {
                        connection.write_blocked = true;
                        return Flushed::Blocked;
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    connection.write_blocked = true;
                    return Flushed::Blocked;
                }
                Err(errno) => return Flushed::Broken(Why::Transport(errno)),
            }
        }
        if let Some(out) = connection.out.take() {
            self.give_back(out);
        }
        Flushed::All
    }

    /// As [`Wires::flush`], through the connection's layers.
    fn flush_layered(&mut self, slot: u32) -> Flushed {
        let connection = &mut self.slots[slot as usize];
        let (Some(fd), Some(layers)) = (&connection.fd, &mut connection.layers) else {
            return Flushed::All;
        };
        if connection.write_blocked {
            return Flushed::Blocked;
        }
        if layers.sending.capacity() == 0 {
            layers.sending = std::mem::take(&mut self.spare);
        }
        loop {
            while !layers.unsent().is_empty() {
                match rustix::io::write(fd, layers.unsent()) {
                    Ok(written) => {
                        self.bytes_sent += written as u64;
                        let offered = layers.unsent().len();
                        layers.advance(written);
                        if written < offered {
                            connection.write_blocked = true;
                            return Flushed::Blocked;
                        }
                    }
                    Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => {
                        connection.write_blocked = true;
                        return Flushed::Blocked;
                    }
                    Err(errno) => return Flushed::Broken(Why::Transport(errno)),
                }
            }
            match &mut connection.out {
                Some(out) if !out.is_empty() => {
                    let mut slices = [IoSlice::new(&[]); 64];
                    let count = out.slices(&mut slices);
                    match layers.wrap(&slices[..count], &mut self.workspace) {
                        Ok(taken) => out.advance(taken),
                        Err(error) => return Flushed::Broken(Why::Layers(error)),
                    }
                }
                _ if layers.say_goodbye() => {}
                _ => break,
            }
        }
        // what a busy moment left over is not kept for a quiet one
        self.spare = std::mem::take(&mut layers.sending);
        if let Some(out) = connection.out.take() {
            self.give_back(out);
        }
        Flushed::All
    }

    /// Nothing more will be written. Bytes that still come are read and thrown away: closing now could take the
    /// goodbye back (RST).
    pub(crate) fn end_output(&self, slot: u32) {
        if let Some(fd) = &self.slots[slot as usize].fd {
            let _ = rustix::net::shutdown(fd, rustix::net::Shutdown::Write);
        }
    }

    /// All slots in use.
    pub(crate) fn in_use(&self) -> impl Iterator<Item = u32> {
        let used = |(slot, connection): (usize, &Connection)| {
            (connection.stage != Stage::Free).then_some(slot as u32)
        };
        self.slots.iter().enumerate().filter_map(used)
    }

    pub(crate) fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

/// Why and how a connection ends.
#[derive(Clone, Debug)]
pub(crate) struct Close {
    /// Sent in DISCONNECT to clients of 5.0.
    pub(crate) reason: Option<ReasonCode>,
    /// For the log.
    pub(crate) why: Why,
    /// False after a normal DISCONNECT.
    pub(crate) keep_will: bool,
}

/// Who ended a connection, and the cause for the log.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Why {
    /// The client said goodbye or broke off.
    Client(&'static str),
    /// The broker ended it.
    Broker(&'static str),
    /// The broker ended it because of a limit, which told the log itself.
    Limit(Limited),
    /// Malformed or forbidden bytes.
    Malformed(corqtt_codec::DecodeError),
    /// Reading or writing failed.
    Transport(Errno),
    /// A layer below MQTT cannot go on.
    Layers(TransportError),
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Client(text) => write!(f, "client: {text}"),
            Self::Broker(text) => write!(f, "broker: {text}"),
            Self::Limit(limit) => write!(f, "limit: {}", limit.name()),
            Self::Malformed(error) => write!(f, "client sent a malformed packet: {error}"),
            Self::Transport(errno) => write!(f, "connection: {errno}"),
            Self::Layers(error) => error.fmt(f),
        }
    }
}
