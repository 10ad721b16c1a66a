// SPDX-License-Identifier: Apache-2.0
//! A connection from its first byte to its end: reading, decoding, deadlines, closing, moving to another shard.

use std::net::SocketAddr;
use std::time::Instant;

use bytes::Bytes;
use corqtt_codec::{Disconnect, Packet, ReasonCode, encode, frame, frame_len};
use corqtt_port::claims::Said;
use corqtt_port::events::Event;
use corqtt_port::store::Op;
use corqtt_session::Deadline;
use corqtt_topics::ClientKey;
use corqtt_transport::{Carry, reserve_for_read};
use rustix::io::Errno;

use crate::background::Job;
use crate::lanes::{HandOff, ToShard};
use crate::layers::LayerScratch;
use crate::limits::Limited;
use crate::listener::Peer;
use crate::router::Former;
use crate::shard::{BULK_WORK, CARRY_BYTES, CLOSE_WORK, READ_BYTES, Shard, WORK_PER_LOOK};
use crate::wires::{Close, Connection, Flushed, NONE, Stage, Why};

/// After our goodbye, how long a client may take to close before we do (ms).
const LINGER_MS: u64 = 2000;
/// Of a PUBLISH: it has a QoS above 0.
const QOS_BITS: u8 = 0x06;
/// Acknowledgements that may wait in a session before its connection is no longer read; clients of 5.0 are held to
/// Receive Maximum anyway.
const ACKS_WAITING_MAX: usize = 16 * 1024;
/// Bytes of a large packet that count as much as a small packet does. They are copied twice, mostly to memory that the
/// kernel has to find first.
const BYTES_PER_WORK: usize = 64;
/// The same for bytes of small packets, beside what the packets cost.
const SMALL_BYTES_PER_WORK: usize = 256;
/// The same for bytes that pass through layers: the smallest frames have six.
const LAYERED_BYTES_PER_WORK: usize = 64;
/// The same for memory that is given back: 4 KiB take the kernel some 200 ns.
const FREED_BYTES_PER_WORK: usize = 1024;
/// Reads in a turn whose bytes are thrown away.
const DISCARD_READS_MAX: usize = 4;
/// What each of them costs beside its bytes, in packets.
const DISCARD_WORK: i64 = 8;

/// Memberships in shared groups that end with their session at once; of a client with more of them a group may choose
/// one that is about to go, and the message is lost, counted.
const MEMBERSHIPS_MAX: usize = 1024;
/// Subscriptions that end in one turn.
const SUBSCRIPTIONS_ENDED_MAX: usize = 512;
/// What the end of a session, and of each of its subscriptions, costs in packets or deliveries.
const END_WORK: i64 = 16;
const SUBSCRIPTION_WORK: i64 = 4;
/// So many more bytes of a packet that is on its way are a sign of life, or a large message over a slow line would end
/// its own connection: to its client, keep-alive is the time between two packets `[MQTT-3.1.2-23]` `[MQTT5-3.1.2-20]`.
const PROGRESS_BYTES: usize = CARRY_BYTES;
/// A client whose keep-alive is over while bytes of it are not decoded yet is looked at again after so long.
const UNREAD_LOOK_MS: u64 = 100;

const CONNECT: u8 = 1;
const PUBLISH: u8 = 3;

/// Acknowledgements in one read up to which a client is taken to send one message at a time; TCP acknowledges its
/// segment at once then.
const ACKED_MAX: u8 = 4;

/// What decoding came to.
enum Decoded {
    /// Everything was handled; so many bytes were whole packets.
    All(usize),
    /// It stopped in between, with something left: an answer must come first, or the turn is over.
    Stopped(usize),
    /// The connection is closing or has moved.
    Gone,
}

impl Shard {
    /// Reads and decodes what a connection has.
    pub(crate) fn serve(&mut self, slot: u32) {
        let connection = &mut self.wires.slots[slot as usize];
        match connection.stage {
            Stage::Free => return,
            Stage::Lingering => return self.discard(slot),
            Stage::Opening | Stage::Connecting | Stage::Live => {}
        }
        if connection.closing || connection.decoding_waits() {
            return;
        }
        if self.owes_too_much(slot) {
            self.wires.slots[slot as usize].paused = true;
            return;
        }
        match self.wires.take_carry(slot) {
            Carry::Large {
                bytes,
                packet_bytes,
            } => self.read_large(slot, bytes, packet_bytes),
            Carry::Small(bytes) => self.read_small(slot, &bytes),
            Carry::Empty => self.read_small(slot, &[]),
        }
        self.acknowledge_segment(slot);
    }

    /// Acknowledgements that have no answer leave TCP nothing to carry its own on, and it would wait 40 ms for
    /// something. A client that does not set TCP_NODELAY holds its next message back as long.
    fn acknowledge_segment(&mut self, slot: u32) {
        let connection = &mut self.wires.slots[slot as usize];
        if (1..=ACKED_MAX).contains(&std::mem::take(&mut connection.acked))
            && !connection.dirty
            && let Some(fd) = &connection.fd
        {
            // only a hint: a socket that is being reset has no use for it
            let _ = rustix::net::sockopt::set_tcp_quickack(fd, true);
        }
    }

    /// So many answers wait for this client that it is not to cause more of them.
    fn owes_too_much(&self, slot: u32) -> bool {
        let connection = &self.wires.slots[slot as usize];
        let limits = &self.config.session;
        // messages stop at the limit for them, the last one above it; what is beyond are answers
        let output_max = limits
            .out_buffer_bytes_max
            .saturating_mul(2)
            .saturating_add(self.packet_bytes_max() as usize);
        self.wires.output_len(slot) > output_max
            || connection.stage == Stage::Live
                && self.sessions.slots[connection.session as usize]
                    .session
                    .acks_waiting()
                    > ACKS_WAITING_MAX
    }

    fn packet_bytes_max(&self) -> u32 {
        match self.config.capabilities.packet_bytes_max {
            0 => u32::MAX,
            limit => limit,
        }
    }

    /// What a paused connection waited for may be there.
    #[inline]
    pub(crate) fn resume(&mut self, slot: u32) {
        let connection = &mut self.wires.slots[slot as usize];
        if connection.paused {
            connection.paused = false;
            self.make_ready(slot);
        }
    }

    fn read_small(&mut self, slot: u32, carried: &[u8]) {
        let mut scratch = std::mem::take(&mut self.scratch);
        // whole packets that had to wait are handled before more is read
        let mut filled = carried.len().min(scratch.len());
        if carried.len() > scratch.len() {
            scratch.resize(carried.len(), 0);
            filled = carried.len();
        }
        scratch[..filled].copy_from_slice(carried);
        let mut alive = true;
        if filled <= CARRY_BYTES && self.wires.slots[slot as usize].readable {
            let room = scratch.len().min(filled + READ_BYTES);
            match self.read(slot, &mut scratch[filled..room]) {
                Some(count) => {
                    filled += count;
                    // large names and properties cost by their bytes
                    self.work -= (count / SMALL_BYTES_PER_WORK) as i64;
                }
                None => alive = false,
            }
            // layers may have taken all of it for themselves
            if filled == 0 && alive && self.wires.slots[slot as usize].readable {
                self.make_ready(slot);
            }
        }
        let stopped = filled > 0 && self.decode_and_carry(slot, &scratch[..filled], None);
        if scratch.len() > CARRY_BYTES + READ_BYTES {
            scratch.truncate(CARRY_BYTES + READ_BYTES);
            scratch.shrink_to_fit();
        }
        self.scratch = scratch;
        if !alive {
            self.end_of_stream(slot, stopped);
        }
    }

    fn read_large(&mut self, slot: u32, mut bytes: Vec<u8>, packet_bytes: usize) {
        let mut alive = true;
        let begun = bytes.len();
        let mut budget = 4 * READ_BYTES;
        let mut scratch = std::mem::take(&mut self.scratch);
        while bytes.len() < packet_bytes
            && self.wires.slots[slot as usize].readable
            && budget > 0
            && self.work > 0
        {
            reserve_for_read(&mut bytes, packet_bytes);
            let room = bytes.capacity().min(packet_bytes) - bytes.len();
            let room = room.min(scratch.len()).min(budget);
            // through the scratch, so that what a read costs is what came, not the room there was
            match self.read(slot, &mut scratch[..room]) {
                // layers may have taken all of it for themselves
                Some(0) => break,
                Some(count) => {
                    bytes.extend_from_slice(&scratch[..count]);
                    budget = budget.saturating_sub(count);
                    // copying is work too, and what a turn reads is how far memory-max can be passed
                    self.work -= (count / BYTES_PER_WORK) as i64;
                }
                None => {
                    alive = false;
                    break;
                }
            }
        }
        self.scratch = scratch;
        if bytes.len() / PROGRESS_BYTES > begun / PROGRESS_BYTES {
            self.wires.slots[slot as usize].heard(self.now.mono_ms);
        }
        let opening = self.wires.slots[slot as usize].stage == Stage::Opening;
        if bytes.len() == packet_bytes && opening && self.work < BULK_WORK {
            // a CONNECT of so many bytes takes a turn of its own
            let carry = Carry::Large {
                bytes,
                packet_bytes,
            };
            self.wires.put_carry(slot, carry);
            self.make_next(slot);
        } else if bytes.len() == packet_bytes {
            let whole = self.memory.large(bytes);
            self.decode_and_carry(slot, &whole, Some(&whole));
            // unless it moved to another shard
            if self.wires.slots[slot as usize].stage != Stage::Free
                && self.wires.slots[slot as usize].readable
            {
                self.make_ready(slot);
            }
        } else {
            let carry = Carry::Large {
                bytes,
                packet_bytes,
            };
            self.wires.put_carry(slot, carry);
            let connection = &mut self.wires.slots[slot as usize];
            if connection.readable && alive {
                self.make_ready(slot);
            }
        }
        if !alive {
            self.end_of_stream(slot, false);
        }
    }

    /// One read. `None`: the stream has ended (or broke: then it is closing already).
    fn read(&mut self, slot: u32, into: &mut [u8]) -> Option<usize> {
        let connection = &self.wires.slots[slot as usize];
        if connection.layers.is_some() && connection.stage != Stage::Lingering {
            return self.read_layered(slot, into);
        }
        self.read_socket(slot, into)
    }

    /// One read of the socket itself.
    fn read_socket(&mut self, slot: u32, into: &mut [u8]) -> Option<usize> {
        let connection = &mut self.wires.slots[slot as usize];
        let fd = connection.fd.as_ref()?;
        loop {
            match rustix::io::read(fd, &mut *into) {
                Ok(0) => return None,
                Ok(count) => {
                    // a short read means that the socket is empty, unless the peer has closed: then the end comes next
                    connection.readable = count == into.len() || connection.hangup;
                    self.counters.bytes_received += count as u64;
                    return Some(count);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    connection.readable = false;
                    connection.hangup = false;
                    return Some(0);
                }
                Err(errno) => {
                    connection.readable = false;
                    let close = Close {
                        reason: None,
                        why: Why::Transport(errno),
                        keep_will: true,
                    };
                    self.close_soon(slot, close);
                    return Some(0);
                }
            }
        }
    }

    /// One read through the connection's layers, which may leave nothing of it.
    fn read_layered(&mut self, slot: u32, into: &mut [u8]) -> Option<usize> {
        let layers = self.wires.slots[slot as usize].layers.as_mut()?;
        let mut count = layers.take_ready(into);
        if count > 0 && !layers.has_ready() {
            self.wires.count_layers(slot);
        } else if count == 0 {
            if layers.is_ended {
                return None;
            }
            let mut scratch = std::mem::take(&mut self.layer_scratch);
            let read = self.read_socket(slot, &mut scratch.raw);
            count = match read {
                Some(0) => 0,
                Some(taken) => self.handle_layers(slot, taken, &mut scratch, into),
                None => {
                    self.layer_scratch = scratch;
                    return self.end_of_socket(slot);
                }
            };
            self.layer_scratch = scratch;
        }
        let connection = &mut self.wires.slots[slot as usize];
        if connection.closing {
            return Some(0);
        }
        connection.readable |= connection
            .layers
            .as_ref()
            .is_some_and(|layers| layers.wants_read());
        Some(count)
    }

    /// The socket has ended below the layers, whatever they said.
    fn end_of_socket(&mut self, slot: u32) -> Option<usize> {
        if let Some(layers) = &mut self.wires.slots[slot as usize].layers {
            layers.is_ended = true;
        }
        None
    }

    /// Lets the layers have the first `taken` bytes of the scratch; returns how many MQTT bytes went to `into`.
    fn handle_layers(
        &mut self,
        slot: u32,
        taken: usize,
        scratch: &mut LayerScratch,
        into: &mut [u8],
    ) -> usize {
        // frames and records may hold nothing, and take their time all the same
        self.work -= (taken / LAYERED_BYTES_PER_WORK) as i64;
        let connection = &mut self.wires.slots[slot as usize];
        let Some(layers) = &mut connection.layers else {
            return 0;
        };
        let begun = layers.transport.is_handshaking().then(Instant::now);
        scratch.mqtt.clear();
        let handled = layers.transport.handle_bytes(
            &mut scratch.raw[..taken],
            &mut scratch.mqtt,
            &mut layers.sending,
            &mut scratch.workspace,
            self.now.wall_ms,
        );
        if let Some(begun) = begun {
            scratch.handshakes += begun.elapsed();
        }
        let count = if handled.is_ok() {
            layers.give(&scratch.mqtt, into)
        } else {
            0
        };
        layers.is_ended |= layers.transport.is_ended();
        let answers = !layers.unsent().is_empty();
        let source = layers.transport.poll_source();
        if layers.transport.is_transparent() && !layers.has_ready() {
            self.wires.take_layers(slot);
        }
        self.wires.count_layers(slot);
        if answers {
            self.wires.make_dirty(slot);
        }
        if let Some(source) = source {
            self.told_source(slot, source);
        }
        if let Err(error) = handled {
            let close = Close {
                reason: None,
                why: Why::Layers(error),
                keep_will: true,
            };
            self.close_soon(slot, close);
        }
        count
    }

    /// A load balancer said for whom it speaks.
    fn told_source(&mut self, slot: u32, source: SocketAddr) {
        let connection = &mut self.wires.slots[slot as usize];
        connection.peer = Peer::Ip(source);
        match self.admission.admit_address(source.ip()) {
            Ok(()) => connection.address_counted = true,
            Err(limit) => {
                self.limited_client(limit, slot);
                let close = Close {
                    reason: None,
                    why: Why::Limit(limit),
                    keep_will: true,
                };
                self.close_soon(slot, close);
            }
        }
    }

    /// The client has closed. `stopped`: something that it sent before is still to be handled.
    fn end_of_stream(&mut self, slot: u32, stopped: bool) {
        let connection = &mut self.wires.slots[slot as usize];
        connection.readable = false;
        let why = match connection.stage {
            Stage::Free => return,
            Stage::Opening => "closed before CONNECT",
            _ => "closed without DISCONNECT",
        };
        if stopped || connection.decoding_waits() {
            // the end is read again once that is done
            connection.hangup = true;
            connection.readable = true;
            return;
        }
        self.close_soon(
            slot,
            Close {
                reason: None,
                why: Why::Client(why),
                keep_will: true,
            },
        );
    }

    /// Handles what is whole and keeps the rest; true if there may be whole packets in that.
    fn decode_and_carry(&mut self, slot: u32, bytes: &[u8], whole: Option<&Bytes>) -> bool {
        let (used, stopped) = match self.decode_all(slot, bytes, whole) {
            Decoded::All(used) => (used, false),
            Decoded::Stopped(used) => (used, true),
            Decoded::Gone => return false,
        };
        let rest = &bytes[used..];
        let known = frame_len(rest).ok().flatten();
        // the beginning of a large packet is as good as what follows
        let begins = rest.len() >= PROGRESS_BYTES && known.is_some_and(|whole| whole > rest.len());
        if used > 0 || begins {
            self.wires.slots[slot as usize].heard(self.now.mono_ms);
        }
        self.work -= (rest.len() / BYTES_PER_WORK) as i64;
        self.wires.put_carry(slot, Carry::keep(rest, known));
        let connection = &mut self.wires.slots[slot as usize];
        let waits = connection.decoding_waits();
        if (stopped || connection.readable) && !waits {
            self.make_ready(slot);
        }
        stopped
    }

    fn decode_all(&mut self, slot: u32, bytes: &[u8], whole: Option<&Bytes>) -> Decoded {
        let limit = self.packet_bytes_max();
        let mut used = 0;
        let mut look_at = self.work - WORK_PER_LOOK;
        loop {
            if self.work <= 0 {
                return Decoded::Stopped(used);
            }
            if self.work < look_at {
                if self.is_late() {
                    return Decoded::Stopped(used);
                }
                look_at = self.work - WORK_PER_LOOK;
            }
            let connection = &self.wires.slots[slot as usize];
            if connection.stage == Stage::Live
                && self.sessions.slots[connection.session as usize]
                    .session
                    .acks_waiting()
                    > ACKS_WAITING_MAX
            {
                return Decoded::Stopped(used);
            }
            // [MQTT-3.1.0-1] [MQTT5-3.1.0-1] what is not CONNECT need not come whole
            if connection.stage == Stage::Opening
                && bytes.get(used).is_some_and(|first| first >> 4 != CONNECT)
            {
                let why = Why::Client("the first packet was not CONNECT");
                let close = Close {
                    reason: None,
                    why,
                    keep_will: true,
                };
                self.close_soon(slot, close);
                return Decoded::Gone;
            }
            let (packet, size) = match frame(&bytes[used..], limit) {
                Ok(Some(next)) => next,
                Ok(None) => return Decoded::All(used),
                Err(error) => {
                    self.malformed(slot, error);
                    return Decoded::Gone;
                }
            };
            if packet.packet_type() == PUBLISH
                && (packet.flags() & QOS_BITS != 0 && !self.may_match(slot)
                    || self.publish_rates.are_limited() && !self.may_publish(slot))
            {
                return Decoded::Stopped(used);
            }
            self.counters.packets_received += 1;
            self.work -= 1;
            let rest = &bytes[used..];
            used += size;
            self.handle_packet(slot, packet, rest, size, whole);
            let connection = &self.wires.slots[slot as usize];
            match connection.stage {
                Stage::Free | Stage::Lingering => return Decoded::Gone,
                Stage::Opening | Stage::Connecting | Stage::Live => {}
            }
            // [MQTT-3.1.4-5] [MQTT-3.14.4-2] [MQTT5-3.1.4-6] what is behind the last packet counts for nothing
            if connection.closing {
                self.wires.slots[slot as usize].readable = false;
                return Decoded::Gone;
            }
            if connection.decoding_waits() {
                return Decoded::Stopped(used);
            }
        }
    }

    /// Bytes that are no packet: the connection ends, with the reason where the version has one.
    pub(crate) fn malformed(&mut self, slot: u32, error: corqtt_codec::DecodeError) {
        if error.reason() == ReasonCode::PACKET_TOO_LARGE {
            self.limited_client(Limited::PacketSize, slot);
        }
        let close = Close {
            reason: Some(error.reason()),
            why: Why::Malformed(error),
            keep_will: true,
        };
        self.close_soon(slot, close);
    }

    fn discard(&mut self, slot: u32) {
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut ended = false;
        for _ in 0..DISCARD_READS_MAX {
            if ended || !self.wires.slots[slot as usize].readable {
                break;
            }
            let read = self.read(slot, &mut scratch);
            ended = read.is_none();
            // it acknowledges what it still reads, and closing now would take that back
            if self.draining.is_some() && read.is_some_and(|count| count > 0) {
                self.lingers_on(slot);
            }
            self.work -= DISCARD_WORK + (read.unwrap_or(0) / BYTES_PER_WORK) as i64;
        }
        self.scratch = scratch;
        if ended {
            self.work -= CLOSE_WORK;
            self.forget(slot);
        } else if self.wires.slots[slot as usize].readable {
            self.make_ready(slot);
        }
    }

    /// Ends a connection: the session keeps or publishes its will, expires or waits; the socket closes.
    pub(crate) fn close(&mut self, slot: u32, close: &Close) {
        let connection = &mut self.wires.slots[slot as usize];
        connection.closing = false;
        match connection.stage {
            Stage::Free => return,
            Stage::Lingering => return self.forget(slot),
            Stage::Opening | Stage::Connecting | Stage::Live => {}
        }
        let was_live = connection.stage == Stage::Live;
        let (session, version, peer) = (connection.session, connection.version, connection.peer);
        let held_bytes = self.held_bytes();
        drop(self.wires.take_carry(slot));
        self.meter.connection_ended(close, was_live);
        if was_live && let Some(events) = &self.events {
            let reason = match (close.reason, close.keep_will) {
                (Some(reason), _) => reason,
                (None, true) => ReasonCode::UNSPECIFIED_ERROR,
                (None, false) => ReasonCode::NORMAL_DISCONNECTION,
            };
            let client_id = self.sessions.slots[session as usize].session.client_id();
            events.push(Event::Disconnected {
                client_id: client_id.into(),
                reason,
            });
        }
        if log::log_enabled!(log::Level::Debug) && was_live {
            let client = self.sessions.slots[session as usize].session.client_id();
            log::debug!(client = client, remote:% = peer, reason:% = close.why; "client disconnected");
        } else if !was_live && !matches!(close.why, Why::Client(_) | Why::Limit(_)) {
            log::info!(remote:% = peer, reason:% = close.why; "connection refused");
        }
        // a client that did not end it itself may be writing: closing at once would answer that with a reset, which
        // takes back what it has not read yet
        let mut goodbye = was_live && !matches!(close.why, Why::Client(_) | Why::Transport(_));
        if let Some(reason) = close.reason
            // [MQTT5-3.14.0-1] not before CONNACK
            && was_live
            && version.is_v5()
        {
            // [MQTT5-3.14.2-2] no properties; [MQTT5-3.1.2-24] it is shorter than the CONNACK that had room
            let out = self.wires.output(slot);
            encode(
                &Packet::Disconnect(Disconnect::new(reason)),
                version,
                out.bytes_mut(),
            );
        }
        let connection = &mut self.wires.slots[slot as usize];
        goodbye |= connection.out.is_some();
        if let Some(layers) = &mut connection.layers
            && !matches!(close.why, Why::Transport(_))
            && layers.has_goodbye()
        {
            layers.end(close.reason == Some(ReasonCode::SERVER_SHUTTING_DOWN));
            goodbye = true;
        }
        self.linger_or_forget(slot, goodbye);
        if session != NONE {
            self.leave_session(session, slot, was_live, close.keep_will);
        }
        // a large packet that had half come, a large will
        let freed = held_bytes.saturating_sub(self.held_bytes());
        self.work -= (freed / FREED_BYTES_PER_WORK) as i64;
    }

    /// After a goodbye nothing is written and the connection ends
    /// `[MQTT-3.2.2-5] [MQTT5-3.2.2-7] [MQTT5-3.14.4-1] [MQTT5-3.14.4-2] [MQTT5-4.13.2-1]`.
    fn linger_or_forget(&mut self, slot: u32, goodbye: bool) {
        if !goodbye {
            return self.forget(slot);
        }
        let flushed = self.wires.flush(slot);
        let connection = &mut self.wires.slots[slot as usize];
        if matches!(flushed, Flushed::Broken(_)) {
            return self.forget(slot);
        }
        connection.stage = Stage::Lingering;
        self.meter.lingers();
        connection.session = NONE;
        connection.pending = None;
        connection.clock_ms = self.now.mono_ms + LINGER_MS;
        let at = connection.clock_ms;
        if flushed == Flushed::All {
            self.wires.end_output(slot);
        }
        self.connection_deadline(slot, at);
        self.wires.slots[slot as usize].readable = true;
        self.make_ready(slot);
    }

    /// One that still takes what was written for it before its goodbye.
    pub(crate) fn lingers_on(&mut self, slot: u32) {
        let connection = &mut self.wires.slots[slot as usize];
        if connection.stage == Stage::Lingering {
            connection.clock_ms = self.now.mono_ms + LINGER_MS;
        }
    }

    fn leave_session(&mut self, session: u32, connection: u32, was_live: bool, keep_will: bool) {
        let unlooked = self.forget_pages(connection);
        let slot = &mut self.sessions.slots[session as usize];
        debug_assert_eq!(slot.connection, connection);
        slot.connection = NONE;
        if let Some(waiter) = unlooked {
            self.resolve(&mut vec![(waiter, false)]);
        }
        let slot = &mut self.sessions.slots[session as usize];
        if slot.number > 0 {
            let (client_id, number) = (slot.client_id(), slot.number);
            self.say(Said::Disconnected { client_id, number });
        }
        let slot = &mut self.sessions.slots[session as usize];
        if !was_live {
            // its CONNACK never left: as if it had not come, but for what that CONNECT ended
            if slot.session.poll_deadline().is_none() && !slot.session.is_persistent() {
                self.end_session(session);
            } else {
                let slot = &self.sessions.slots[session as usize];
                if let Some(deadline) = slot.session.poll_deadline() {
                    self.session_deadline(session, deadline.at_ms());
                }
                self.keep_as_before(session);
            }
            return;
        }
        let had_will = slot.session.has_will();
        let closed = slot.session.close(keep_will, self.now);
        if slot.session.is_kept() && !closed.ended {
            let client_id = slot.client_id();
            if had_will && !slot.session.has_will() {
                self.keep_no_will(session);
            }
            let at_ms = self.now.wall_ms;
            self.keeping.push(Op::Left { client_id, at_ms });
        }
        let testator = closed.will.as_ref().and_then(|_| self.testator(session));
        if closed.ended {
            self.end_session(session);
        } else {
            let slot = &self.sessions.slots[session as usize];
            let persistent = slot.session.is_persistent();
            if let Some(deadline) = slot.session.poll_deadline() {
                self.session_deadline(session, deadline.at_ms());
            }
            self.declare(session, persistent, false);
            self.spread_interest();
            self.note_news(session);
            let slot = &mut self.sessions.slots[session as usize];
            // nobody can be given anything where there is no room
            if !(slot.session.is_kept() && self.keeping.is_full) {
                let unsent = slot.session.take_unsent_shared();
                let from = Former::Member {
                    session,
                    generation: slot.generation,
                };
                if !unsent.is_empty() {
                    self.redispatch(unsent, from);
                }
            }
        }
        if let Some(will) = closed.will {
            self.send_will(*will, testator);
        }
    }

    /// The will of a session is published or dropped: the store forgets it.
    pub(crate) fn keep_no_will(&mut self, session: u32) {
        let slot = &mut self.sessions.slots[session as usize];
        if slot.session.is_kept() {
            let client_id = slot.client_id();
            let will = None;
            self.keeping.push(Op::Will { client_id, will });
        }
    }

    /// A session is over: its subscriptions, queue and will with it; retained messages are no part of it
    /// `[MQTT-3.1.2-7]`.
    pub(crate) fn end_session(&mut self, session: u32) {
        let slot = &mut self.sessions.slots[session as usize];
        if slot.is_held || slot.number > 0 {
            let (client_id, number) = (slot.client_id(), slot.number);
            self.say(Said::Ended { client_id, number });
        }
        self.drop_session(session);
    }

    /// As [`Shard::end_session`], without a word to the cluster.
    pub(crate) fn drop_session(&mut self, session: u32) {
        let slot = &mut self.sessions.slots[session as usize];
        let will = slot.session.take_will();
        let testator = will.as_ref().and_then(|_| self.testator(session));
        let slot = &mut self.sessions.slots[session as usize];
        let kept = slot.session.is_kept();
        if kept {
            let client_id = slot.client_id();
            self.keeping.push(Op::SessionEnded { client_id });
        }
        self.meter.inflight_ended(slot.session.inflight_len());
        let unsent = slot.session.into_unsent();
        let is_one_commit = kept && unsent.is_shared();
        if is_one_commit {
            self.keeping.begin();
        }
        self.work -= END_WORK;
        // no group chooses it any more
        self.topics
            .leave_groups_step(ClientKey(session), MEMBERSHIPS_MAX, &mut self.changes);
        self.sessions.retire(session);
        self.end_subscriptions(session);
        self.redispatch(unsent, Former::Ended { is_one_commit });
        if let Some(will) = will {
            self.send_will(*will, testator);
        }
    }

    /// Ends subscriptions of a session that is over, some in each turn.
    pub(crate) fn end_subscriptions(&mut self, session: u32) {
        let client = ClientKey(session);
        let ended = self
            .topics
            .subscription_count(client)
            .min(SUBSCRIPTIONS_ENDED_MAX);
        self.work -= ended as i64 * SUBSCRIPTION_WORK;
        let done =
            self.topics
                .remove_client_step(client, SUBSCRIPTIONS_ENDED_MAX, &mut self.changes);
        self.spread_interest();
        if done {
            self.sessions.release(session);
        } else {
            self.jobs.push_back(Job::End(session));
        }
    }

    /// The wheel reached an entry of a connection slot.
    pub(crate) fn connection_timer(&mut self, slot: u32) {
        let now = self.now.mono_ms;
        let Some(connection) = self.wires.slots.get_mut(slot as usize) else {
            return;
        };
        connection.timer_tick = 0;
        let Some(at_ms) = deadline_ms(connection) else {
            return;
        };
        if at_ms > now {
            return self.connection_deadline(slot, at_ms);
        }
        match connection.stage {
            Stage::Free => {}
            Stage::Lingering => self.forget(slot),
            Stage::Opening | Stage::Connecting => {
                // section 3.1.4: no CONNECT in a reasonable time
                self.limited_client(Limited::ConnectTimeout, slot);
                let close = Close {
                    reason: None,
                    why: Why::Limit(Limited::ConnectTimeout),
                    keep_will: true,
                };
                self.close_soon(slot, close);
            }
            // bytes of it wait for us to be done with earlier ones: what they are shows when they are decoded
            Stage::Live
                if connection.decoding_waits()
                    || (connection.ready || connection.readable || connection.paused)
                        && !connection.write_blocked =>
            {
                self.connection_deadline(slot, now + UNREAD_LOOK_MS);
            }
            Stage::Live => {
                // [MQTT-3.1.2-23] [MQTT-3.1.2-24] [MQTT5-3.1.2-20] [MQTT5-3.1.2-22]
                let why = Why::Broker("nothing came for one and a half times the keep-alive");
                let close = Close {
                    reason: Some(ReasonCode::KEEP_ALIVE_TIMEOUT),
                    why,
                    keep_will: true,
                };
                self.close_soon(slot, close);
            }
        }
    }

    /// The wheel reached an entry of a session slot.
    pub(crate) fn session_timer(&mut self, session: u32) {
        let now = self.now.mono_ms;
        let Some(slot) = self.sessions.slots.get_mut(session as usize) else {
            return;
        };
        slot.timer_tick = 0;
        if !slot.used || slot.connection != NONE {
            return;
        }
        match slot.session.poll_deadline() {
            None => {}
            Some(deadline) if deadline.at_ms() > now => {
                self.session_deadline(session, deadline.at_ms())
            }
            // [MQTT5-4.1.0-2]
            Some(Deadline::Expiry(_)) => self.end_session(session),
            Some(Deadline::Will(_)) => {
                if let Some(will) = slot.session.take_will() {
                    self.keep_no_will(session);
                    let slot = &self.sessions.slots[session as usize];
                    if let Some(next) = slot.session.poll_deadline() {
                        self.session_deadline(session, next.at_ms());
                    }
                    let testator = self.testator(session);
                    self.send_will(*will, testator);
                }
            }
        }
    }

    /// Sends a connection to the shard that owns its client id: it leaves this shard's epoll set first.
    pub(crate) fn hand_over_socket(&mut self, slot: u32, owner: u64, bytes: &[u8]) {
        let connection = &self.wires.slots[slot as usize];
        let (peer, listener, deadline_ms) =
            (connection.peer, connection.listener, connection.clock_ms);
        let address_counted = connection.address_counted;
        let Some(fd) = self.unwatch(slot) else { return };
        // the owner decodes CONNECT once more, and counts it
        self.counters.packets_received -= 1;
        let hand_off = HandOff {
            fd,
            layers: self.wires.take_layers(slot),
            address_counted,
            peer,
            listener,
            bytes: bytes.to_vec(),
            deadline_ms,
        };
        self.wires.remove(slot);
        self.lanes[owner as usize].send(ToShard::Connection(Box::new(hand_off)));
    }

    /// A connection whose client id belongs here: carried bytes first, then the socket.
    pub(crate) fn take_over_socket(&mut self, hand_off: HandOff) {
        let Some(slot) = self.adopt(
            hand_off.fd,
            hand_off.layers,
            hand_off.peer,
            hand_off.listener,
            hand_off.deadline_ms,
            hand_off.address_counted,
        ) else {
            return;
        };
        self.wires.count_layers(slot);
        self.wires.put_carry(slot, Carry::Small(hand_off.bytes));
        let connection = &mut self.wires.slots[slot as usize];
        if let Some(layers) = &connection.layers {
            connection.readable = layers.wants_read();
            self.wires.make_dirty(slot);
        }
        self.make_ready(slot);
    }
}

/// Monotonic ms at which a connection must be looked at.
fn deadline_ms(connection: &Connection) -> Option<u64> {
    match connection.stage {
        Stage::Free => None,
        Stage::Opening | Stage::Connecting | Stage::Lingering => Some(connection.clock_ms),
        Stage::Live => {
            keep_alive_ms(connection.keep_alive_secs).map(|span| connection.clock_ms + span)
        }
    }
}

/// One and a half times the keep-alive, in ms; `None`: none.
pub(crate) fn keep_alive_ms(secs: u16) -> Option<u64> {
    (secs > 0).then(|| u64::from(secs) * 1500)
}
