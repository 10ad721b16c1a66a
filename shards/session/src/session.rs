// SPDX-License-Identifier: Apache-2.0
//! A session: what of a client outlives its connections, and what its present connection agreed on.

use std::collections::VecDeque;

use compact_str::CompactString;
use corqtt_codec::{PacketId, Version};

use crate::alias::{InboundAliases, OutboundAliases};
use crate::deliver::{Flight, Queued, Unsent};
use crate::inbound::{AckRing, Received};
use crate::journal::{Change, Effect, Journal};
use crate::packet_ids::PacketIds;
use crate::{Held, Now, Will};

/// What a CONNECT asks for, after the broker's own limits were applied.
#[derive(Debug)]
pub struct Opening {
    /// Protocol version of the connection.
    pub version: Version,
    /// Seconds; 0 ends the session with the connection, `u32::MAX` never ends it.
    pub session_expiry_secs: u32,
    /// The client's Receive Maximum (65,535 before 5.0).
    pub receive_maximum: u16,
    /// The client's Maximum Packet Size, bytes; `u32::MAX`: none.
    pub packet_bytes_max: u32,
    /// The client's Topic Alias Maximum.
    pub topic_alias_maximum: u16,
    /// The client wants reason strings and user properties on all packets.
    pub problem_information: bool,
    /// The will of this connection.
    pub will: Option<Box<Will>>,
}

/// A client's session. Owned by the shard that its client id hashes to.
#[derive(Debug)]
pub struct Session {
    pub(crate) client_id: CompactString,
    pub(crate) username: Option<Box<str>>,
    pub(crate) version: Version,
    pub(crate) connected: bool,
    pub(crate) problem_information: bool,
    pub(crate) session_expiry_secs: u32,

    // this connection's agreements
    pub(crate) receive_maximum: u16,
    pub(crate) topic_alias_maximum: u16,
    pub(crate) packet_bytes_max: u32,
    pub(crate) inbound_aliases: Option<Box<InboundAliases>>,
    pub(crate) outbound_aliases: Option<Box<OutboundAliases>>,

    // broker to client
    pub(crate) next_packet_id: PacketId,
    /// Messages sent on this connection and not acknowledged, `<= min(receive_maximum, inflight_max)`.
    pub(crate) unacked: u16,
    /// Slots at the end of `outbound` that this connection has still to be sent (after a resume). New messages wait
    /// until it is 0.
    pub(crate) resend: usize,
    /// Among these may be PUBRELs, which do not wait for a PUBLISH that has no place.
    pub(crate) releases_due: bool,
    pub(crate) outbound: PacketIds<Flight>,
    /// Of the slots at the end of `outbound`, those whose PUBLISH waits for the store, or was never sent yet; 0 after a
    /// resume. Where it is `resend`, nothing old is among them.
    pub(crate) fresh: usize,
    pub(crate) queue: VecDeque<Queued>,
    pub(crate) queue_bytes: usize,

    // client to broker
    /// QoS 1 and 2 messages that this connection sent and that are not answered to the end.
    pub(crate) received_unacked: u16,
    /// PUBCOMP packets of this connection for exchanges that do not count.
    pub(crate) received_credit: u16,
    pub(crate) inbound: PacketIds<Received>,
    pub(crate) acks: AckRing,

    pub(crate) will: Option<Box<Will>>,
    /// A store keeps it: its changes go there.
    pub(crate) kept: bool,
    /// The next message's sequence number.
    pub(crate) next_seq: u64,
    pub(crate) journal: Option<Box<Journal>>,
    /// It has ended and only its subscriptions are still to go: what comes is dropped.
    pub(crate) over: bool,
    /// Monotonic milliseconds; set while disconnected.
    pub(crate) expires_at_ms: Option<u64>,
    pub(crate) will_at_ms: Option<u64>,
}

/// What is due next for a session without a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// The will is to be published at this monotonic time (ms).
    Will(u64),
    /// The session ends at this monotonic time (ms); a will that is still there is published first.
    Expiry(u64),
}

impl Deadline {
    /// Monotonic milliseconds.
    #[must_use]
    pub const fn at_ms(self) -> u64 {
        match self {
            Self::Will(at) | Self::Expiry(at) => at,
        }
    }
}

/// What the end of a connection leaves to do.
#[derive(Debug, Default)]
pub struct Closed {
    /// To be published now.
    pub will: Option<Box<Will>>,
    /// The session is over: forget it, after [`Session::into_unsent`].
    pub ended: bool,
}

impl Session {
    /// A new session, not connected.
    #[must_use]
    pub fn new(client_id: &str, username: Option<&str>) -> Self {
        Self {
            client_id: CompactString::new(client_id),
            username: username.map(Into::into),
            version: Version::V311,
            connected: false,
            problem_information: true,
            session_expiry_secs: 0,
            receive_maximum: u16::MAX,
            topic_alias_maximum: 0,
            packet_bytes_max: u32::MAX,
            inbound_aliases: None,
            outbound_aliases: None,
            next_packet_id: PacketId(std::num::NonZeroU16::MIN),
            unacked: 0,
            resend: 0,
            releases_due: false,
            outbound: PacketIds::default(),
            fresh: 0,
            queue: VecDeque::new(),
            queue_bytes: 0,
            received_unacked: 0,
            received_credit: 0,
            inbound: PacketIds::default(),
            acks: AckRing::default(),
            will: None,
            kept: false,
            next_seq: 1,
            journal: None,
            over: false,
            expires_at_ms: None,
            will_at_ms: None,
        }
    }

    /// What stands in for a session that has ended: nobody can be sent anything by it.
    #[must_use]
    pub fn over() -> Self {
        Self {
            over: true,
            ..Self::new("", None)
        }
    }

    /// The client identifier.
    #[inline]
    #[must_use]
    pub fn client_id(&self) -> &str {
        &self.client_id
    }

    /// The user that the session belongs to.
    #[inline]
    #[must_use]
    pub fn username(&self) -> Option<&str> {
        self.username.as_deref()
    }

    /// The version of the present or last connection.
    #[inline]
    #[must_use]
    pub const fn version(&self) -> Version {
        self.version
    }

    /// True between [`Session::open`] and [`Session::close`].
    #[inline]
    #[must_use]
    pub const fn is_connected(&self) -> bool {
        self.connected
    }

    /// True if the session goes on after its connection.
    #[inline]
    #[must_use]
    pub const fn is_persistent(&self) -> bool {
        self.session_expiry_secs > 0
    }

    /// Seconds that the session outlives a connection.
    #[inline]
    #[must_use]
    pub const fn session_expiry_secs(&self) -> u32 {
        self.session_expiry_secs
    }

    /// The client wants reason strings and user properties on all packets.
    #[inline]
    #[must_use]
    pub const fn problem_information(&self) -> bool {
        self.problem_information
    }

    /// The client's Maximum Packet Size, bytes.
    #[inline]
    #[must_use]
    pub const fn packet_bytes_max(&self) -> u32 {
        self.packet_bytes_max
    }

    /// Messages in the queue.
    #[inline]
    #[must_use]
    pub fn queue_len(&self) -> usize {
        self.queue.len()
    }

    /// Bytes in the queue.
    #[inline]
    #[must_use]
    pub const fn queue_bytes(&self) -> usize {
        self.queue_bytes
    }

    /// Messages on their way to the client, not yet acknowledged to the end.
    #[inline]
    #[must_use]
    pub fn inflight_len(&self) -> usize {
        self.outbound.len()
    }

    /// Acknowledgements that wait for an answer.
    #[inline]
    #[must_use]
    pub fn acks_waiting(&self) -> usize {
        self.acks.len()
    }

    /// Changes the interval, as a DISCONNECT of 5.0 may (section 3.14.2.2.2).
    ///
    /// # Errors
    /// A protocol error if the session was to end with its connection and the new interval is not 0.
    pub fn set_session_expiry(&mut self, secs: u32) -> Result<(), crate::Violation> {
        if self.session_expiry_secs == 0 && secs != 0 {
            return Err(crate::Violation::new(
                corqtt_codec::ReasonCode::PROTOCOL_ERROR,
                "a session expiry interval in DISCONNECT where CONNECT had none",
            ));
        }
        self.session_expiry_secs = secs;
        Ok(())
    }

    /// A connection begins. Nothing of an earlier one is left: [`Session::close`] came before.
    ///
    /// After CONNACK was encoded, [`Session::pump`] sends what is due.
    pub fn open(&mut self, opening: Opening) {
        debug_assert!(!self.connected);
        self.version = opening.version;
        self.session_expiry_secs = opening.session_expiry_secs;
        // what only 5.0 has is at its default before
        let is_v5 = opening.version.is_v5();
        // [MQTT5-4.9.0-1]
        self.receive_maximum = if is_v5 {
            opening.receive_maximum
        } else {
            u16::MAX
        };
        self.packet_bytes_max = if is_v5 {
            opening.packet_bytes_max
        } else {
            u32::MAX
        };
        self.topic_alias_maximum = if is_v5 {
            opening.topic_alias_maximum
        } else {
            0
        };
        self.problem_information = opening.problem_information;
        // [MQTT-3.1.2-8] [MQTT-3.1.2-12] [MQTT5-3.1.2-7] its own will or none; [MQTT5-3.1.3-9] an earlier one is gone
        self.will = opening.will;
        self.will_at_ms = None;
        // [MQTT-4.1.0-1] [MQTT-4.1.0-2] [MQTT5-4.1.0-1] no session ends while it is connected
        self.expires_at_ms = None;
        self.received_unacked = 0;
        self.received_credit = 0;
        // [MQTT5-3.3.4-7] [MQTT5-3.3.4-9] both counts are of one connection (section 4.9)
        for (_, received) in self.inbound.iter_mut() {
            received.counted = false;
        }
        self.releases_due = false;
        for (_, flight) in self.outbound.iter_mut() {
            self.releases_due |= flight.resume();
        }
        self.resend = self.outbound.slots();
        self.fresh = 0;
        self.connected = true;
    }

    /// The connection is over. `keep_will` is false after a normal DISCONNECT.
    pub fn close(&mut self, keep_will: bool, now: Now) -> Closed {
        self.connected = false;
        // [MQTT5-3.3.2-7]
        self.inbound_aliases = None;
        self.outbound_aliases = None;
        self.resend = 0;
        self.fresh = 0;
        self.unacked = 0;
        self.acks.mute();
        // [MQTT-3.1.2-10] [MQTT-3.14.4-3] [MQTT5-3.1.2-10] [MQTT5-3.14.4-3]
        if !keep_will {
            self.will = None;
        }
        // [MQTT-3.1.2-4] [MQTT-3.1.2-6] [MQTT-4.1.0-1] [MQTT5-3.1.2-23] [MQTT5-4.1.0-2]
        let ended = self.session_expiry_secs == 0;
        if ended {
            return Closed {
                will: self.will.take(),
                ended,
            };
        }
        if self.session_expiry_secs != u32::MAX {
            self.expires_at_ms = Some(now.mono_ms + u64::from(self.session_expiry_secs) * 1000);
        }
        // [MQTT-3.1.2-8] [MQTT5-3.1.2-8] now, or when its delay is over; published, it is gone from the session
        let delay_secs = self.will.as_ref().map_or(0, |will| will.delay_secs);
        if delay_secs == 0 {
            return Closed {
                will: self.will.take(),
                ended,
            };
        }
        self.will_at_ms = Some(now.mono_ms + u64::from(delay_secs) * 1000);
        Closed { will: None, ended }
    }

    /// There is a will that is not published yet.
    #[must_use]
    pub const fn has_will(&self) -> bool {
        self.will.is_some()
    }

    /// The will.
    #[must_use]
    pub fn will(&self) -> Option<&Will> {
        self.will.as_deref()
    }

    /// How long ago its connection ended, as far as its expiry tells (ms).
    #[must_use]
    pub fn left_ago_ms(&self, now: Now) -> u64 {
        self.expires_at_ms.map_or(0, |at_ms| {
            let left_ms = at_ms.saturating_sub(now.mono_ms);
            (u64::from(self.session_expiry_secs) * 1000).saturating_sub(left_ms)
        })
    }

    /// The will has a delay: it is not published at once when the connection ends.
    #[must_use]
    pub fn will_waits(&self) -> bool {
        self.will.as_ref().is_some_and(|will| will.delay_secs > 0)
    }

    /// The will, if it waits for its delay; it is published when a session ends `[MQTT5-3.1.3-9]` and dropped when
    /// the client comes back in time.
    pub fn take_will(&mut self) -> Option<Box<Will>> {
        self.will_at_ms = None;
        self.will.take()
    }

    /// The next thing that time brings to a disconnected session; none to a connected one.
    #[must_use]
    pub fn poll_deadline(&self) -> Option<Deadline> {
        match (self.will_at_ms, self.expires_at_ms) {
            (Some(will), Some(end)) if will < end => Some(Deadline::Will(will)),
            (Some(will), None) => Some(Deadline::Will(will)),
            (_, Some(end)) => Some(Deadline::Expiry(end)),
            (None, None) => None,
        }
    }

    /// A store keeps the session from now on.
    pub const fn keep(&mut self) {
        self.kept = true;
    }

    /// A store keeps the session.
    #[inline]
    #[must_use]
    pub const fn is_kept(&self) -> bool {
        self.kept
    }

    #[inline]
    pub(crate) fn journal(&mut self) -> Option<&mut Journal> {
        self.kept
            .then(|| &mut **self.journal.get_or_insert_with(Box::default))
    }

    /// A message has left the session for good.
    #[inline]
    pub(crate) fn note_dequeued(&mut self, seq: u64) {
        if let Some(journal) = self.journal() {
            journal.dequeued(seq);
        }
    }

    /// Something has changed that is to be taken by [`Session::take_news`].
    #[inline]
    #[must_use]
    pub const fn has_news(&self) -> bool {
        self.journal.is_some()
    }

    /// What has changed since the last time, and what may only be done once that is kept ([`Session::apply`]).
    pub fn take_news(&mut self) -> (Vec<Change>, Vec<Effect>) {
        match self.journal.take() {
            Some(journal) => (journal.changes, journal.effects),
            None => Default::default(),
        }
    }

    /// A session as a store kept it. What belongs to it follows: [`Session::restore_message`] in the order of sequence
    /// numbers, [`Session::restore_received`], [`Session::restore_left`].
    #[must_use]
    pub fn restored(
        client_id: &str,
        username: Option<&str>,
        version: Version,
        session_expiry_secs: u32,
    ) -> Self {
        Self {
            version,
            session_expiry_secs,
            kept: true,
            ..Self::new(client_id, username)
        }
    }

    /// A message that the session had: in its queue, or in flight with a packet id.
    pub fn restore_message(
        &mut self,
        seq: u64,
        message: Held,
        delivery: crate::Delivery,
        packet_id: Option<PacketId>,
    ) {
        self.next_seq = self.next_seq.max(seq + 1);
        match packet_id {
            Some(id) => {
                self.outbound
                    .push(id, Flight::restored(seq, message, delivery));
                self.next_packet_id = crate::packet_ids::next_id(id);
            }
            None => {
                self.queue_bytes += message.size();
                self.queue
                    .push_back(Queued::restored(seq, message, delivery));
            }
        }
    }

    /// PUBREC had come for a message in flight: only its packet id is left.
    pub fn restore_released(&mut self, id: PacketId) {
        if let Some(flight) = self.outbound.get_mut(id) {
            flight.release();
        }
    }

    /// A QoS 2 message of the client waits for PUBREL.
    pub fn restore_received(&mut self, id: PacketId) {
        self.inbound.push(id, Received { counted: false });
    }

    /// Its connection ended that many milliseconds ago, by whatever clock.
    pub fn restore_left(&mut self, will: Option<Box<Will>>, ago_ms: u64, now: Now) {
        let left_ms = |secs: u32| (u64::from(secs) * 1000).saturating_sub(ago_ms);
        if self.session_expiry_secs != u32::MAX {
            self.expires_at_ms = Some(now.mono_ms + left_ms(self.session_expiry_secs));
        }
        self.will_at_ms = will
            .as_ref()
            .map(|will| now.mono_ms + left_ms(will.delay_secs));
        self.will = will;
    }

    /// Takes the messages of shared groups out of the queue: another member may be there to get them. What was begun
    /// stays with this one `[MQTT5-4.8.2-4]`. [`Session::give_up`] follows for each when another has it.
    pub fn take_unsent_shared(&mut self) -> Leftover {
        if !self.queue.iter().any(Queued::is_shared) {
            return Leftover::default();
        }
        let (shared, rest): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.queue)
            .into_iter()
            .partition(Queued::is_shared);
        self.queue = rest;
        let taken: usize = shared.iter().map(|queued| queued.message().size()).sum();
        self.queue_bytes -= taken;
        Leftover {
            flights: VecDeque::new(),
            queue: shared,
        }
    }

    /// Another member has a message that was taken out of the queue.
    pub fn give_up(&mut self, seq: u64) {
        self.note_dequeued(seq);
    }

    /// What the session leaves undelivered when it ends: messages of shared groups may go to another member, if
    /// they have their group.
    pub fn into_unsent(&mut self) -> Leftover {
        self.queue_bytes = 0;
        self.resend = 0;
        self.fresh = 0;
        self.unacked = 0;
        self.journal = None;
        Leftover {
            flights: self.outbound.take(),
            queue: std::mem::take(&mut self.queue),
        }
    }
}

/// What a session leaves undelivered, oldest first. There may be a hundred thousand messages: taking them one by one
/// costs little, dropping them together a while.
#[derive(Debug, Default)]
pub struct Leftover {
    flights: VecDeque<(PacketId, Option<Flight>)>,
    queue: VecDeque<Queued>,
}

impl Leftover {
    /// Nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.flights.is_empty() && self.queue.is_empty()
    }

    /// Something of it is a shared group's.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        let mut flights = self
            .flights
            .iter()
            .filter_map(|(_, flight)| flight.as_ref());
        flights.any(Flight::is_shared) || self.queue.iter().any(Queued::is_shared)
    }
}

impl Iterator for Leftover {
    type Item = Unsent;

    fn next(&mut self) -> Option<Unsent> {
        while let Some((_, flight)) = self.flights.pop_front() {
            if let Some(unsent) = flight.and_then(Flight::into_unsent) {
                return Some(unsent);
            }
        }
        Some(self.queue.pop_front()?.into_unsent())
    }
}
