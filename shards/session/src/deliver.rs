// SPDX-License-Identifier: Apache-2.0
//! Broker to client: delivery, the queue, messages in flight and their acknowledgements (sections 4.3, 4.4, 4.9).

use std::sync::Arc;

use corqtt_codec::{
    Message, MessageId, MessageRef, PacketId, PublishHeader, QoS, ReasonCode, TopicName, Version,
    encode_ack,
};

use crate::alias::OutboundAliases;
use crate::held::Held;
use crate::inbound::Violation;
use crate::journal::{Delivery, Effect};
use crate::packet_ids::next_id;
use crate::{Limits, Now, Output, QueueFull, SHARED_PAYLOAD_BYTES_MIN, Session};

const PUBREL: u8 = 6;

/// Why a message did not reach a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum DropReason {
    /// Its expiry interval passed before it was sent.
    Expired,
    /// Larger than the client's Maximum Packet Size `[MQTT5-3.1.2-25]`.
    TooLarge,
    /// QoS 0 while the client reads too slowly.
    OutBuffer,
    /// QoS 0 while as many messages wait to be written as may.
    WritesPending,
    /// QoS 0 for a client that is not connected.
    Offline,
    /// The session's queue was full: the oldest one went.
    QueueFullOldest,
    /// The session's queue was full: the new one went.
    QueueFullNew,
    /// The session's queue was full: the new one went and its publisher was told.
    QueueFullRejected,
    /// The node held as much as it may (memory-max): QoS 0 for a slow reader, or for a queue, which counts as full.
    MemoryMax,
    /// The session ended with the message in its queue or in flight.
    SessionEnded,
    /// The client answered PUBACK or PUBREC with an error.
    RefusedByClient,
    /// Its store had no room for it.
    StoreFull,
}

/// Dropped messages by reason, counted since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drops([u64; Self::REASONS.len()]);

impl Drops {
    /// All reasons with their names in metrics.
    pub const REASONS: [(DropReason, &'static str); 12] = [
        (DropReason::Expired, "expired"),
        (DropReason::TooLarge, "too-large"),
        (DropReason::OutBuffer, "out-buffer"),
        (DropReason::WritesPending, "writes-pending"),
        (DropReason::Offline, "offline"),
        (DropReason::QueueFullOldest, "queue-full-oldest"),
        (DropReason::QueueFullNew, "queue-full-new"),
        (DropReason::QueueFullRejected, "queue-full-rejected"),
        (DropReason::MemoryMax, "memory-max"),
        (DropReason::SessionEnded, "session-ended"),
        (DropReason::RefusedByClient, "refused-by-client"),
        (DropReason::StoreFull, "store-full"),
    ];

    /// Counts one.
    #[inline]
    pub fn count(&mut self, reason: DropReason) {
        self.add(reason, 1);
    }

    /// Counts some.
    #[inline]
    pub fn add(&mut self, reason: DropReason, messages: u64) {
        self.0[reason as usize] += messages;
    }

    /// How many for one reason.
    #[must_use]
    pub const fn of(&self, reason: DropReason) -> u64 {
        self.0[reason as usize]
    }

    /// Over all reasons.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

/// What a subscription gives a message on its way to one client.
#[derive(Clone, Copy, Debug)]
pub struct Grant<'a> {
    /// Highest QoS that the client was granted.
    pub qos: QoS,
    /// The RETAIN flag to send.
    pub retain: bool,
    /// Subscription identifiers, all that matched `[MQTT5-3.3.4-3]`.
    pub ids: &'a [u32],
    /// The shared subscription (full filter) that chose this client.
    pub group: Option<&'a Arc<str>>,
}

/// A message being handed to clients, with what is worth sharing among them.
#[derive(Debug)]
pub struct Outgoing<'a> {
    message: MessageRef<'a>,
    kept: Option<Arc<Message>>,
    /// The same for sessions of this shard.
    held: Option<Held>,
    /// The last encoded header (and small payload), to be copied and patched for the next client.
    frame: &'a mut Frame,
    /// No other client gets it: encoding it once for all would be one copy too many.
    single: bool,
    /// Its name, where sessions are kept by a store.
    id: Option<MessageId>,
    receipt: Receipt,
}

/// Names an acknowledgement that may leave once every session that it is for has done with a message; 0: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Receipt(pub u64);

/// Buffer of [`Outgoing`], kept by the shard from message to message.
#[derive(Debug, Default)]
pub struct Frame {
    bytes: Vec<u8>,
    key: Option<(bool, QoS, bool)>,
    /// Offset of the packet id in `bytes`, for QoS 1 and 2.
    packet_id_at: usize,
    payload_inside: bool,
}

impl<'a> Outgoing<'a> {
    /// Begins with a message and a buffer from the last one.
    #[inline]
    #[must_use]
    pub fn new(message: MessageRef<'a>, frame: &'a mut Frame) -> Self {
        frame.key = None;
        Self {
            message,
            kept: None,
            held: None,
            frame,
            single: false,
            id: None,
            receipt: Receipt::default(),
        }
    }

    /// Begins with a message that is kept already.
    #[inline]
    #[must_use]
    pub fn kept(message: &'a Arc<Message>, frame: &'a mut Frame) -> Self {
        frame.key = None;
        Self {
            message: message.as_ref().as_ref(),
            kept: Some(message.clone()),
            held: None,
            frame,
            single: false,
            id: None,
            receipt: Receipt::default(),
        }
    }

    /// Begins with a message that a session held.
    #[must_use]
    pub fn held(message: &'a Held, frame: &'a mut Frame) -> Self {
        frame.key = None;
        Self {
            message: message.as_ref(),
            kept: None,
            held: Some(message.clone()),
            frame,
            single: false,
            id: None,
            receipt: Receipt::default(),
        }
    }

    /// At most one client gets it.
    #[inline]
    #[must_use]
    pub const fn single(mut self, single: bool) -> Self {
        self.single = single;
        self
    }

    /// Gives it the name by which sessions keep it.
    #[inline]
    #[must_use]
    pub const fn named(mut self, id: Option<MessageId>) -> Self {
        self.id = id;
        self
    }

    /// Its name.
    #[inline]
    #[must_use]
    pub const fn id(&self) -> Option<MessageId> {
        self.id
    }

    /// What the next session says when it has done with the message.
    #[inline]
    pub const fn set_receipt(&mut self, receipt: Receipt) {
        self.receipt = receipt;
    }

    /// The message.
    #[inline]
    #[must_use]
    pub const fn message(&self) -> &MessageRef<'a> {
        &self.message
    }

    /// The message for keeping; copied at most once however many clients keep it.
    #[inline]
    pub fn keep(&mut self) -> Arc<Message> {
        let copy = || match &self.held {
            Some(held) => Message::clone(held),
            None => self.message.to_message(),
        };
        self.kept.get_or_insert_with(|| Arc::new(copy())).clone()
    }

    /// The same for a session.
    #[inline]
    pub(crate) fn hold(&mut self) -> Held {
        let held = || match &self.kept {
            Some(kept) => Held::shared(kept.clone()),
            None => Held::new(self.message.to_message()),
        };
        self.held.get_or_insert_with(held).clone()
    }
}

/// What became of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivered {
    /// Encoded into the output.
    Sent,
    /// In the session's queue.
    Queued,
    /// Gone, counted.
    Dropped(DropReason),
    /// Gone, counted; the subscriber is to be disconnected ([`QueueFull::Disconnect`]).
    Disconnect,
}

/// A message that a session has begun to send.
#[derive(Debug)]
pub(crate) struct Flight {
    /// `None` once PUBREC came: only the packet id is left `[MQTT-4.3.3-1]`, or where nobody will need it again.
    message: Option<Held>,
    extra: Extra,
    qos: QoS,
    retain: bool,
    step: Step,
    /// Its name in the store, 0 without one.
    seq: u64,
    receipt: Receipt,
}

/// How far a message in flight is.
///
/// ```text
///  on one connection:    Published ──PUBREC──► Released ──PUBCOMP──►
///                          │   ▲                │
///  a new connection:       ▼   │ resent         ▼         resent
///                       PublishDue           ReleaseDue ─────────► ReleasedAgain ──PUBCOMP──►
///                          └───────────PUBREC───────────────────────────▲
/// ```
///
/// Where a store keeps the session, QoS 2 begins with `Committing`, then `FirstDue`; PUBREC leads to `Releasing` (or
/// `ReleasingAgain`) first, and PUBCOMP to `Freeing`: each until the store has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The packet id is not kept yet.
    Committing,
    /// PUBLISH is to be sent for the first time.
    FirstDue,
    /// PUBLISH is to be sent again.
    PublishDue,
    /// PUBLISH was sent on this connection.
    Published,
    /// PUBLISH was sent on this connection, PUBREC came and is not kept yet.
    Releasing,
    /// The same, but PUBLISH was sent on an earlier one.
    ReleasingAgain,
    /// PUBLISH and PUBREL were sent on this connection.
    Released,
    /// PUBREL is to be sent again.
    ReleaseDue,
    /// PUBREL was sent on this connection, PUBLISH on an earlier one.
    ReleasedAgain,
    /// PUBCOMP came; that the packet id is free is not kept yet.
    Freeing,
}

impl Step {
    /// It counts against the client's Receive Maximum: its PUBLISH was sent on this connection (section 4.9 of 5.0).
    const fn counts(self) -> bool {
        matches!(self, Self::Published | Self::Releasing | Self::Released)
    }

    /// Its PUBLISH was sent, on whatever connection, and its exchange is not over.
    const fn was_sent(self) -> bool {
        !matches!(self, Self::Committing | Self::FirstDue | Self::Freeing)
    }

    const fn is_released(self) -> bool {
        matches!(
            self,
            Self::Released | Self::ReleaseDue | Self::ReleasedAgain
        )
    }
}

/// A message that waits in a session's queue.
#[derive(Debug)]
pub(crate) struct Queued {
    message: Held,
    extra: Extra,
    qos: QoS,
    retain: bool,
    /// Its name in the store, 0 without one.
    pub(crate) seq: u64,
    receipt: Receipt,
}

/// What few messages have; nothing is allocated for the others.
#[derive(Clone, Debug, Default)]
pub(crate) struct Extra {
    ids: Option<Box<[u32]>>,
    group: Option<Arc<str>>,
}

impl From<Delivery> for Extra {
    fn from(delivery: Delivery) -> Self {
        Self {
            ids: delivery.ids,
            group: delivery.group,
        }
    }
}

impl Extra {
    #[inline]
    fn of(grant: &Grant<'_>) -> Self {
        Self {
            ids: (!grant.ids.is_empty()).then(|| grant.ids.into()),
            group: grant.group.cloned(),
        }
    }

    #[inline]
    fn ids(&self) -> &[u32] {
        self.ids.as_deref().unwrap_or_default()
    }
}

/// A message that a session's end leaves over.
#[derive(Debug)]
pub struct Unsent {
    /// The message.
    pub message: Held,
    /// Its number in the session.
    pub seq: u64,
    /// The shared subscription that it was chosen for; `None`: it ends with the session.
    pub group: Option<Arc<str>>,
}

impl Flight {
    /// A new connection has been sent nothing yet; whether PUBREL is what it must be sent
    /// `[MQTT5-4.3.3-5] [MQTT5-4.3.3-6]`.
    pub(crate) fn resume(&mut self) -> bool {
        self.step = match self.step {
            Step::PublishDue | Step::Published => Step::PublishDue,
            Step::Released | Step::ReleaseDue | Step::ReleasedAgain => Step::ReleaseDue,
            Step::Releasing | Step::ReleasingAgain => Step::ReleasingAgain,
            step @ (Step::Committing | Step::FirstDue | Step::Freeing) => step,
        };
        self.step == Step::ReleaseDue
    }

    pub(crate) fn restored(seq: u64, message: Held, delivery: Delivery) -> Self {
        Self {
            message: Some(message),
            qos: delivery.qos,
            retain: delivery.retain,
            extra: delivery.into(),
            step: Step::PublishDue,
            seq,
            receipt: Receipt::default(),
        }
    }

    /// PUBREC had come when a store kept it.
    pub(crate) fn release(&mut self) {
        self.message = None;
        self.extra = Extra::default();
        self.step = Step::ReleaseDue;
    }

    pub(crate) fn into_unsent(self) -> Option<Unsent> {
        // [MQTT5-4.8.2-5] a started QoS 2 message stays with its member
        let begun = !matches!(self.step, Step::Committing | Step::FirstDue);
        let group = if self.qos == QoS::AtLeastOnce || !begun {
            self.extra.group
        } else {
            None
        };
        Some(Unsent {
            message: self.message?,
            seq: self.seq,
            group,
        })
    }

    pub(crate) fn is_shared(&self) -> bool {
        self.extra.group.is_some()
    }
}

impl Queued {
    pub(crate) fn into_unsent(self) -> Unsent {
        Unsent {
            message: self.message,
            seq: self.seq,
            group: self.extra.group,
        }
    }

    pub(crate) fn message(&self) -> &Message {
        &self.message
    }

    pub(crate) fn restored(seq: u64, message: Held, delivery: Delivery) -> Self {
        Self {
            message,
            qos: delivery.qos,
            retain: delivery.retain,
            extra: delivery.into(),
            seq,
            receipt: Receipt::default(),
        }
    }

    pub(crate) fn is_shared(&self) -> bool {
        self.extra.group.is_some()
    }
}

impl Session {
    /// One more PUBLISH stays within the client's Receive Maximum `[MQTT5-3.3.4-9] [MQTT5-4.9.0-2]`.
    #[inline]
    fn may_resend(&self, limits: &Limits) -> bool {
        self.unacked < self.receive_maximum.min(limits.inflight_max)
    }

    /// The same for a new message, which takes a packet id too: one is free then, since there are 65,535.
    #[inline]
    fn may_begin(&self, limits: &Limits) -> bool {
        self.unacked < self.receive_maximum
            && self.outbound.len() < usize::from(limits.inflight_max)
    }

    /// Hands a message to the client: written to `out` (that of its connection, `None` without one), or queued.
    #[inline]
    pub fn deliver(
        &mut self,
        outgoing: &mut Outgoing<'_>,
        grant: Grant<'_>,
        out: Option<&mut Output>,
        limits: &Limits,
        drops: &mut Drops,
        now: Now,
    ) -> Delivered {
        // [MQTT-3.8.4-6] [MQTT5-3.8.4-8]
        let qos = grant.qos.min(outgoing.message.qos);
        // [MQTT5-3.3.2-5]
        let mut expiry_secs = None;
        if let Some(expires_at_ms) = outgoing.message.expires_at_ms {
            let Some(left) = remaining_secs(expires_at_ms, now) else {
                drops.count(DropReason::Expired);
                return Delivered::Dropped(DropReason::Expired);
            };
            expiry_secs = Some(left);
        }
        let out = if self.connected { out } else { None };
        if qos == QoS::AtMostOnce {
            let Some(out) = out else {
                drops.count(DropReason::Offline);
                return Delivered::Dropped(DropReason::Offline);
            };
            if let Some(reason) = too_slow(out, limits) {
                drops.count(reason);
                return Delivered::Dropped(reason);
            }
            // [MQTT-4.3.1-1] [MQTT5-4.3.1-1] without packet id and DUP, and nothing is kept
            return self.send(
                outgoing,
                &grant,
                qos,
                None,
                false,
                expiry_secs,
                out,
                limits,
                drops,
            );
        }
        // [MQTT-4.6.0-5] [MQTT-4.6.0-6] [MQTT5-4.6.0-5] [MQTT5-4.6.0-6] behind what waits already, on every topic
        if let Some(out) = out
            && self.queue.is_empty()
            && self.resend == 0
            // its packet id is kept before PUBLISH is written
            && !(self.kept && qos == QoS::ExactlyOnce)
            && self.may_begin(limits)
            && too_slow(out, limits).is_none()
        {
            let packet_id = self.free_packet_id();
            // without DUP: [MQTT-4.3.2-1] [MQTT-4.3.3-1] [MQTT5-4.3.2-2] [MQTT5-4.3.3-2]
            let sent = self.send(
                outgoing,
                &grant,
                qos,
                Some(packet_id),
                false,
                expiry_secs,
                out,
                limits,
                drops,
            );
            if sent == Delivered::Sent {
                // a clean session never resends: its message needs no keeping
                let keep = self.is_persistent() || grant.group.is_some();
                let seq = self.note_enqueued(outgoing, &grant, qos);
                let message = keep.then(|| outgoing.hold());
                let extra = if keep {
                    Extra::of(&grant)
                } else {
                    Extra::default()
                };
                let flight = Flight {
                    message,
                    extra,
                    qos,
                    retain: grant.retain,
                    step: Step::Published,
                    seq,
                    receipt: outgoing.receipt,
                };
                if let Some(journal) = self.journal() {
                    journal.begun(seq, packet_id);
                }
                self.begin(packet_id, flight);
            }
            return sent;
        }
        let delivered = self.enqueue(outgoing, &grant, qos, limits, drops);
        if delivered == Delivered::Queued && self.may_commit(limits) {
            self.commit_next();
        }
        delivered
    }

    /// A store is to have this message; its name in it, 0 without one.
    #[inline]
    fn note_enqueued(&mut self, outgoing: &mut Outgoing<'_>, grant: &Grant<'_>, qos: QoS) -> u64 {
        let (true, Some(id)) = (self.kept, outgoing.id) else {
            return 0;
        };
        let seq = self.next_seq;
        self.next_seq += 1;
        // the session and the store share it
        let message = outgoing.keep();
        if let Some(journal) = self.journal() {
            let delivery = Delivery {
                qos,
                retain: grant.retain,
                ids: (!grant.ids.is_empty()).then(|| grant.ids.into()),
                group: grant.group.cloned(),
            };
            journal.enqueued(seq, id, message, delivery);
        }
        seq
    }

    /// The next message of the queue is of QoS 2 and may be given its packet id, which a store keeps before PUBLISH is
    /// written. Not while an earlier connection's messages are still to be resent.
    #[inline]
    fn may_commit(&self, limits: &Limits) -> bool {
        self.kept
            && self.connected
            && self.resend == self.fresh
            && usize::from(self.unacked) + self.fresh < usize::from(self.receive_maximum)
            && self.outbound.len() < usize::from(limits.inflight_max)
            && self
                .queue
                .front()
                .is_some_and(|queued| queued.qos == QoS::ExactlyOnce)
    }

    /// Gives the next message of the queue its packet id.
    fn commit_next(&mut self) {
        let Some(queued) = self.pop_queue() else {
            return;
        };
        let id = self.free_packet_id();
        if let Some(journal) = self.journal() {
            journal.begun(queued.seq, id);
            journal.after(Effect::Publish(id));
        }
        let flight = Flight {
            message: Some(queued.message),
            extra: queued.extra,
            qos: queued.qos,
            retain: queued.retain,
            step: Step::Committing,
            seq: queued.seq,
            receipt: queued.receipt,
        };
        self.outbound.push(id, flight);
        self.next_packet_id = next_id(id);
        self.resend += 1;
        self.fresh += 1;
    }

    /// The changes that came with it are kept: a PUBREL is written to `out` (that of its connection, `None` without
    /// one), a PUBLISH is sent by the next [`Session::pump`], a packet id is free.
    pub fn apply(&mut self, effect: Effect, out: Option<&mut Output>) {
        let (Effect::Publish(id) | Effect::Release(id) | Effect::Free(id)) = effect;
        let Some(flight) = self.outbound.get_mut(id) else {
            return;
        };
        match (effect, flight.step) {
            (Effect::Publish(_), Step::Committing) => flight.step = Step::FirstDue,
            (Effect::Free(_), Step::Freeing) => _ = self.outbound.remove(id),
            (Effect::Release(_), Step::Releasing | Step::ReleasingAgain) => {
                let Some(out) = out.filter(|_| self.connected) else {
                    flight.step = Step::ReleaseDue;
                    return;
                };
                flight.step = match flight.step {
                    Step::Releasing => Step::Released,
                    _ => Step::ReleasedAgain,
                };
                // [MQTT-4.6.0-4] [MQTT5-4.6.0-4] effects come in the order of the PUBRECs
                let version = self.version;
                encode_ack(PUBREL, id, ReasonCode::SUCCESS, version, out.bytes_mut());
            }
            // it has ended meanwhile
            _ => {}
        }
    }

    /// The next packet id that no message in flight has `[MQTT-2.3.1-4] [MQTT5-2.2.1-4] [MQTT-4.3.2-1]
    /// [MQTT-4.3.3-1] [MQTT5-4.3.2-1] [MQTT5-4.3.3-1]`. It stays the next until it is used, so that ids run on without
    /// gaps.
    #[inline]
    fn free_packet_id(&mut self) -> PacketId {
        debug_assert!(self.outbound.len() < 65_535);
        while self.outbound.contains(self.next_packet_id) {
            self.next_packet_id = next_id(self.next_packet_id);
        }
        self.next_packet_id
    }

    /// A PUBLISH with this id was written: unacknowledged from now on
    /// `[MQTT-4.3.2-1] [MQTT-4.3.3-1] [MQTT5-4.3.2-3] [MQTT5-4.3.3-3]`.
    #[inline]
    fn begin(&mut self, id: PacketId, flight: Flight) {
        self.outbound.push(id, flight);
        self.unacked += 1;
        self.next_packet_id = next_id(id);
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "the parts of one PUBLISH, passed on by the two callers below and above"
    )]
    #[inline]
    fn send(
        &mut self,
        outgoing: &mut Outgoing<'_>,
        grant: &Grant<'_>,
        qos: QoS,
        packet_id: Option<PacketId>,
        dup: bool,
        expiry_secs: Option<u32>,
        out: &mut Output,
        limits: &Limits,
        drops: &mut Drops,
    ) -> Delivered {
        let message = outgoing.message;
        let is_v5 = self.version.is_v5();
        let plain = !dup
            && self.topic_alias_maximum == 0
            && (!is_v5 || (grant.ids.is_empty() && expiry_secs.is_none()));
        if plain && self.packet_bytes_max == u32::MAX && !outgoing.single {
            let key = (is_v5, qos, grant.retain);
            if outgoing.frame.key != Some(key) {
                outgoing.frame.encode(&message, key, self.version);
            }
            outgoing.frame.copy_to(packet_id, &message, out);
            out.count_message();
            return Delivered::Sent;
        }
        let mut header = PublishHeader {
            version: self.version,
            // [MQTT-3.3.1-3] [MQTT5-3.3.1-3] as the caller says, whatever the publisher's was
            dup,
            qos,
            retain: grant.retain,
            // [MQTT-3.3.2-3] [MQTT5-3.3.2-3] the name that was matched
            topic: Some(message.topic),
            packet_id,
            properties: if is_v5 { message.properties } else { &[] },
            message_expiry_secs: if is_v5 { expiry_secs } else { None },
            topic_alias: None,
            // [MQTT5-3.3.4-3] [MQTT5-3.3.4-4] [MQTT5-3.3.4-5]
            subscription_ids: if is_v5 { grant.ids } else { &[] },
            payload_bytes: message.payload.bytes.len(),
        };
        // [MQTT5-3.1.2-24] [MQTT5-3.1.2-25] judged without an alias, so that it does not depend on history
        if header.packet_bytes() > self.packet_bytes_max as usize {
            drops.count(DropReason::TooLarge);
            return Delivered::Dropped(DropReason::TooLarge);
        }
        if self.topic_alias_maximum > 0 {
            let aliases = self
                .outbound_aliases
                .get_or_insert_with(Box::<OutboundAliases>::default);
            let topic = message.topic.as_str();
            if let Some(alias) = aliases.known(topic) {
                header.topic_alias = Some(alias);
                header.topic = None;
            } else if let Some(alias) =
                aliases.free(topic, self.topic_alias_maximum, limits.alias_bytes_max)
            {
                header.topic_alias = Some(alias);
                // with the alias it might be too large: then it goes without, and the next one may introduce it
                if header.packet_bytes() <= self.packet_bytes_max as usize {
                    aliases.learn(topic, alias);
                } else {
                    header.topic_alias = None;
                }
            }
        }
        header.encode(out.bytes_mut());
        out.push_payload(message.payload);
        out.count_message();
        Delivered::Sent
    }

    /// `[MQTT-3.1.2-5]` also for a client that is away.
    fn enqueue(
        &mut self,
        outgoing: &mut Outgoing<'_>,
        grant: &Grant<'_>,
        qos: QoS,
        limits: &Limits,
        drops: &mut Drops,
    ) -> Delivered {
        if self.over {
            drops.count(DropReason::SessionEnded);
            return Delivered::Dropped(DropReason::SessionEnded);
        }
        let size = outgoing.message.size();
        if limits.memory_full
            && let Some(refused) = self.make_room(size, limits, drops)
        {
            return refused;
        }
        let never_fits = limits.queue_bytes_max > 0 && size > limits.queue_bytes_max;
        while self.queue_is_full(size, limits) {
            match limits.queue_full {
                // what could not make room for it must not go for it
                QueueFull::DropOldest if !never_fits => {
                    self.drop_oldest();
                    drops.count(DropReason::QueueFullOldest);
                }
                QueueFull::DropOldest | QueueFull::DropNew => {
                    drops.count(DropReason::QueueFullNew);
                    return Delivered::Dropped(DropReason::QueueFullNew);
                }
                QueueFull::Reject => {
                    drops.count(DropReason::QueueFullRejected);
                    return Delivered::Dropped(DropReason::QueueFullRejected);
                }
                QueueFull::Disconnect => {
                    drops.count(DropReason::QueueFullNew);
                    return Delivered::Disconnect;
                }
            }
        }
        // [MQTT-4.5.0-1] [MQTT5-4.5.0-1] the session has it, connected or not
        self.queue_bytes += size;
        let seq = self.note_enqueued(outgoing, grant, qos);
        let message = outgoing.hold();
        self.queue.push_back(Queued {
            message,
            extra: Extra::of(grant),
            qos,
            retain: grant.retain,
            seq,
            receipt: outgoing.receipt,
        });
        Delivered::Queued
    }

    /// The oldest message of the queue goes. False: there is none.
    fn drop_oldest(&mut self) -> bool {
        let Some(queued) = self.pop_queue() else {
            return false;
        };
        self.note_dequeued(queued.seq);
        true
    }

    /// The node's memory is full, and so is every queue: at most as much comes in as goes.
    fn make_room(&mut self, size: usize, limits: &Limits, drops: &mut Drops) -> Option<Delivered> {
        let dropped = match limits.queue_full {
            QueueFull::DropOldest if self.queue_bytes >= size => {
                let upto = self.queue_bytes - size;
                while self.queue_bytes > upto && self.drop_oldest() {
                    drops.count(DropReason::MemoryMax);
                }
                return None;
            }
            QueueFull::DropOldest | QueueFull::DropNew => Delivered::Dropped(DropReason::MemoryMax),
            QueueFull::Reject => Delivered::Dropped(DropReason::QueueFullRejected),
            QueueFull::Disconnect => Delivered::Disconnect,
        };
        drops.count(DropReason::MemoryMax);
        Some(dropped)
    }

    fn queue_is_full(&self, size: usize, limits: &Limits) -> bool {
        (limits.queue_messages_max > 0 && self.queue.len() >= limits.queue_messages_max)
            || (limits.queue_bytes_max > 0 && self.queue_bytes + size > limits.queue_bytes_max)
    }

    fn pop_queue(&mut self) -> Option<Queued> {
        let queued = self.queue.pop_front()?;
        self.queue_bytes -= queued.message.size();
        if self.queue.is_empty() {
            self.queue.shrink_to(64);
        }
        Some(queued)
    }

    /// True when [`Session::pump`] has something that may be sent now: something waits, and the client's Receive
    /// Maximum has room for it.
    #[inline]
    #[must_use]
    pub fn wants_pump(&mut self, limits: &Limits) -> bool {
        if self.resend > 0 {
            let may_resend = self.may_resend(limits);
            // PUBREL needs no room [MQTT5-3.3.4-10] [MQTT5-4.9.0-3]
            let releases_due = self.releases_due;
            if let Some((_, flight)) = self.outbound.oldest_of_last(&mut self.resend) {
                return match flight.step {
                    Step::Committing => releases_due || self.may_commit(limits),
                    Step::PublishDue | Step::FirstDue => may_resend || releases_due,
                    _ => true,
                };
            }
        }
        !self.queue.is_empty() && self.may_begin(limits)
    }

    /// Sends what waits: first what an earlier connection began, in its original order `[MQTT-4.4.0-1]
    /// [MQTT5-4.4.0-1] [MQTT-4.6.0-1] [MQTT5-4.6.0-1]`, then the queue; as far as Receive Maximum and out-buffer
    /// allow, and looking at no more than `messages_max` messages. Returns how many PUBLISH packets were written.
    pub fn pump(
        &mut self,
        out: &mut Output,
        frame: &mut Frame,
        limits: &Limits,
        drops: &mut Drops,
        messages_max: usize,
        now: Now,
    ) -> usize {
        let mut written = 0;
        if !self.connected {
            return 0;
        }
        for _ in 0..messages_max {
            if too_slow(out, limits).is_some() {
                break;
            }
            let sent = if self.resend > 0 {
                let sent = self.resend_next(out, frame, limits, drops, now);
                match sent {
                    // these wait for the store together
                    None if self.may_commit(limits) => {
                        self.commit_next();
                        Some(false)
                    }
                    sent => sent,
                }
            } else {
                self.send_queued(out, frame, limits, drops, now)
            };
            match sent {
                None => break,
                Some(publish) => written += usize::from(publish),
            }
        }
        written
    }

    /// Sends the next message of the queue. `None`: it must wait, or there is none. False: it was dropped.
    fn send_queued(
        &mut self,
        out: &mut Output,
        frame: &mut Frame,
        limits: &Limits,
        drops: &mut Drops,
        now: Now,
    ) -> Option<bool> {
        if !self.may_begin(limits) {
            return None;
        }
        // [MQTT5-3.3.2-5]
        let mut expiry_secs = None;
        if let Some(expires_at_ms) = self.queue.front()?.message.expires_at_ms {
            expiry_secs = remaining_secs(expires_at_ms, now);
            if expiry_secs.is_none() {
                drops.count(DropReason::Expired);
                self.drop_oldest();
                return Some(false);
            }
        }
        if self.may_commit(limits) {
            self.commit_next();
            return Some(false);
        }
        let queued = self.pop_queue()?;
        let packet_id = self.free_packet_id();
        let Queued {
            message,
            extra,
            qos,
            retain,
            seq,
            receipt,
        } = queued;
        let mut outgoing = Outgoing::new(message.as_ref(), frame);
        let grant = Grant {
            qos,
            retain,
            ids: extra.ids(),
            group: None,
        };
        let sent = self.send(
            &mut outgoing,
            &grant,
            qos,
            Some(packet_id),
            false,
            expiry_secs,
            out,
            limits,
            drops,
        );
        if sent != Delivered::Sent {
            self.note_dequeued(seq);
            return Some(false);
        }
        if let Some(journal) = self.journal() {
            journal.begun(seq, packet_id);
        }
        let group = extra.group.is_some();
        let keep = self.is_persistent() || group;
        let flight = Flight {
            message: keep.then_some(message),
            extra: if keep { extra } else { Extra::default() },
            qos,
            retain,
            step: Step::Published,
            seq,
            receipt,
        };
        self.begin(packet_id, flight);
        Some(true)
    }

    /// Resends the oldest message that this connection has not been sent; only a new connection has such
    /// `[MQTT5-4.4.0-1]`. `None`: it must wait. True: a PUBLISH.
    fn resend_next(
        &mut self,
        out: &mut Output,
        frame: &mut Frame,
        limits: &Limits,
        drops: &mut Drops,
        now: Now,
    ) -> Option<bool> {
        let may_resend = self.may_resend(limits);
        let Some((id, flight)) = self.outbound.oldest_of_last(&mut self.resend) else {
            return Some(false);
        };
        let first = flight.step == Step::FirstDue;
        match flight.step {
            Step::Committing => return self.send_releases(out),
            Step::PublishDue | Step::FirstDue if !may_resend => return self.send_releases(out),
            Step::PublishDue | Step::FirstDue => {}
            Step::ReleaseDue => {
                flight.step = Step::ReleasedAgain;
                self.resend -= 1;
                let version = self.version;
                encode_ack(PUBREL, id, ReasonCode::SUCCESS, version, out.bytes_mut());
                return Some(false);
            }
            // its PUBREC came before its turn
            Step::Published
            | Step::Releasing
            | Step::ReleasingAgain
            | Step::Released
            | Step::ReleasedAgain
            | Step::Freeing => {
                self.resend -= 1;
                return Some(false);
            }
        }
        self.resend -= 1;
        self.fresh -= usize::from(first && self.fresh > 0);
        let (qos, retain, extra) = (flight.qos, flight.retain, flight.extra.clone());
        let seq = flight.seq;
        let Some(message) = flight.message.clone() else {
            debug_assert!(false, "a session that is resumed kept its messages");
            self.outbound.remove(id);
            return Some(false);
        };
        flight.step = Step::Published;
        // [MQTT5-4.3.3-7] delivery had begun, so expiry no longer ends it; what is left of it is 0 then
        let expiry_secs = message
            .expires_at_ms
            .map(|at| remaining_secs(at, now).unwrap_or(0));
        let mut outgoing = Outgoing::new(message.as_ref(), frame);
        let grant = Grant {
            qos,
            retain,
            ids: extra.ids(),
            group: None,
        };
        // [MQTT-3.3.1-1] [MQTT5-3.3.1-1] DUP on every redelivery
        let sent = self.send(
            &mut outgoing,
            &grant,
            qos,
            Some(id),
            !first,
            expiry_secs,
            out,
            limits,
            drops,
        );
        if sent == Delivered::Sent {
            self.unacked += 1;
        } else {
            // [MQTT5-3.1.2-25] too large for this connection: as if it had been completed
            self.outbound.remove(id);
            self.note_dequeued(seq);
        }
        Some(sent == Delivered::Sent)
    }

    /// Every PUBREL that this connection has still to be sent: they do not wait behind a PUBLISH for which the client
    /// has no place `[MQTT5-3.3.4-10] [MQTT5-4.9.0-3]`. All at once, since it happens once in a connection and each is
    /// four bytes. `None`: there was none.
    fn send_releases(&mut self, out: &mut Output) -> Option<bool> {
        if !std::mem::take(&mut self.releases_due) {
            return None;
        }
        let version = self.version;
        for (id, flight) in self.outbound.iter_mut() {
            if flight.step == Step::ReleaseDue {
                flight.step = Step::ReleasedAgain;
                encode_ack(PUBREL, id, ReasonCode::SUCCESS, version, out.bytes_mut());
            }
        }
        Some(false)
    }

    /// PUBACK: the message is the client's, or refused by it, and not sent again to anybody `[MQTT5-4.4.0-2]
    /// [MQTT5-4.8.2-6]`. Unknown ids are ignored: PUBACK has no answer to carry 0x92. The receipt that the message came
    /// with; `None`: there was no such message.
    ///
    /// # Errors
    /// [`Violation`] if the message with this id is of QoS 2.
    #[inline]
    pub fn handle_puback(
        &mut self,
        id: PacketId,
        reason: ReasonCode,
        drops: &mut Drops,
    ) -> Result<Option<Receipt>, Violation> {
        match self.outbound.get_mut(id) {
            Some(flight) if flight.qos == QoS::AtLeastOnce => {}
            Some(flight) if flight.step.was_sent() => return Err(OTHER_ACK),
            _ => return Ok(None),
        }
        if reason.is_error() {
            drops.count(DropReason::RefusedByClient);
        }
        Ok(self.finish(id))
    }

    /// The packet id is free again.
    #[inline]
    fn finish(&mut self, id: PacketId) -> Option<Receipt> {
        let flight = self.outbound.remove(id)?;
        if flight.step.counts() {
            self.unacked -= 1;
        }
        self.note_dequeued(flight.seq);
        Some(flight.receipt)
    }

    /// PUBREC: on success the message is the client's and PUBREL follows `[MQTT-4.3.3-1] [MQTT5-4.3.3-4]`; on an
    /// error the exchange is over `[MQTT5-4.4.0-2] [MQTT5-4.8.2-6]`.
    ///
    /// # Errors
    /// [`Violation`] if the message with this id is of QoS 1.
    pub fn handle_pubrec(
        &mut self,
        id: PacketId,
        reason: ReasonCode,
        out: &mut Output,
        drops: &mut Drops,
    ) -> Result<(), Violation> {
        let answer = match self.outbound.get_mut(id) {
            Some(flight) if flight.qos == QoS::ExactlyOnce && flight.step.was_sent() => {
                if reason.is_error() {
                    drops.count(DropReason::RefusedByClient);
                    self.finish(id);
                    return Ok(());
                }
                flight.message = None;
                flight.extra = Extra::default();
                let seq = flight.seq;
                let step = match flight.step {
                    // PUBREL will come
                    Step::Releasing | Step::ReleasingAgain => return Ok(()),
                    // [MQTT5-4.3.3-5] [MQTT5-4.3.3-6] unacknowledged until PUBCOMP, and no PUBLISH any more
                    Step::Published if self.kept => Step::Releasing,
                    Step::PublishDue if self.kept => Step::ReleasingAgain,
                    Step::Published | Step::Released => Step::Released,
                    // what was due is settled by the PUBREL below
                    _ => Step::ReleasedAgain,
                };
                flight.step = step;
                if matches!(step, Step::Releasing | Step::ReleasingAgain) {
                    if let Some(journal) = self.journal() {
                        journal.released(seq);
                        journal.after(Effect::Release(id));
                    }
                    return Ok(());
                }
                ReasonCode::SUCCESS
            }
            Some(flight) if flight.step.was_sent() => return Err(OTHER_ACK),
            _ if reason.is_error() => return Ok(()),
            // [MQTT5-3.6.2-1] section 3.6.2.1: the id is not known
            _ => ReasonCode::PACKET_IDENTIFIER_NOT_FOUND,
        };
        // [MQTT-2.3.1-6] [MQTT5-2.2.1-5] the id is the same; [MQTT-4.6.0-4] [MQTT5-4.6.0-4] at once, so in the order of the
        // PUBRECs
        encode_ack(PUBREL, id, answer, self.version, out.bytes_mut());
        Ok(())
    }

    /// PUBCOMP: the packet id is free, once that is kept. Whether there was such a message.
    ///
    /// # Errors
    /// [`Violation`] if the message with this id has had no PUBREL.
    pub fn handle_pubcomp(&mut self, id: PacketId) -> Result<bool, Violation> {
        let flight = match self.outbound.get_mut(id) {
            Some(flight) if flight.step.is_released() => flight,
            Some(flight) if flight.step.was_sent() => return Err(OTHER_ACK),
            _ => return Ok(false),
        };
        if !self.kept {
            return Ok(self.finish(id).is_some());
        }
        let (seq, counted) = (flight.seq, flight.step.counts());
        flight.step = Step::Freeing;
        self.unacked -= u16::from(counted);
        if let Some(journal) = self.journal() {
            journal.dequeued(seq);
            journal.after(Effect::Free(id));
        }
        Ok(true)
    }
}

/// `[MQTT-4.8.0-1] [MQTT5-4.13.1-1]` An id that is in flight, in another exchange or another step of it; unknown ids are
/// none (sections 3.6.2.1 and 4.3.3 of 5.0).
const OTHER_ACK: Violation = Violation::new(
    ReasonCode::PROTOCOL_ERROR,
    "an acknowledgement of another kind than its message has next",
);

/// While memory is full, a client for which more than this waits is slow. What one turn writes is offered to the kernel
/// before it is so much.
const SLOW_READER_BYTES: usize = 256 * 1024;

/// Why nothing more is written for a client that reads too slowly: so much waits for its socket.
#[inline]
fn too_slow(out: &Output, limits: &Limits) -> Option<DropReason> {
    if out.len() > limits.out_buffer_bytes_max {
        Some(DropReason::OutBuffer)
    } else if out.messages() >= limits.writes_pending_max {
        Some(DropReason::WritesPending)
    } else if limits.memory_full && out.len() > SLOW_READER_BYTES {
        Some(DropReason::MemoryMax)
    } else {
        None
    }
}

/// Whole seconds until `expires_at_ms`, rounded up; `None` if it has passed `[MQTT5-3.3.2-5] [MQTT5-3.3.2-6]`.
#[inline]
fn remaining_secs(expires_at_ms: u64, now: Now) -> Option<u32> {
    let left_ms = expires_at_ms
        .checked_sub(now.wall_ms)
        .filter(|left| *left > 0)?;
    Some(u32::try_from(left_ms.div_ceil(1000)).unwrap_or(u32::MAX))
}

impl Frame {
    fn encode(&mut self, message: &MessageRef<'_>, key: (bool, QoS, bool), version: Version) {
        let (is_v5, qos, retain) = key;
        self.bytes.clear();
        let topic: TopicName<'_> = message.topic;
        let with_id = qos > QoS::AtMostOnce;
        PublishHeader {
            version,
            // [MQTT-3.3.1-3] [MQTT5-3.3.1-3] what is sent again is not encoded here
            dup: false,
            qos,
            retain,
            topic: Some(topic),
            packet_id: with_id.then_some(PacketId(std::num::NonZeroU16::MIN)),
            properties: if is_v5 { message.properties } else { &[] },
            message_expiry_secs: None,
            topic_alias: None,
            subscription_ids: &[],
            payload_bytes: message.payload.bytes.len(),
        }
        .encode(&mut self.bytes);
        self.packet_id_at = 0;
        if with_id {
            // the topic is the first field behind the fixed header: 1 byte, 1 to 4 bytes of length
            let length_bytes = self.bytes[1..]
                .iter()
                .position(|byte| byte & 0x80 == 0)
                .unwrap_or(3)
                + 1;
            self.packet_id_at = 1 + length_bytes + 2 + topic.as_str().len();
        }
        self.payload_inside = message.payload.bytes.len() < SHARED_PAYLOAD_BYTES_MIN;
        if self.payload_inside {
            self.bytes.extend_from_slice(message.payload.bytes);
        }
        self.key = Some(key);
    }

    #[inline]
    fn copy_to(&self, packet_id: Option<PacketId>, message: &MessageRef<'_>, out: &mut Output) {
        let bytes = out.bytes_mut();
        let start = bytes.len();
        bytes.extend_from_slice(&self.bytes);
        if let Some(id) = packet_id {
            let at = start + self.packet_id_at;
            bytes[at..at + 2].copy_from_slice(&id.value().to_be_bytes());
        }
        if !self.payload_inside {
            out.push_payload(message.payload);
        }
    }
}
