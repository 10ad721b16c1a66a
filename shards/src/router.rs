// SPDX-License-Identifier: Apache-2.0
//! The way of a publish: match, local subscribers, shared groups, other shards (design: one walk answers all).

use std::collections::VecDeque;
use std::sync::Arc;

use corqtt_codec::{Message, MessageId, MessageRef, Payload, QoS, ReasonCode};
use corqtt_port::ConnectionKey;
use corqtt_port::routes::{Batch, Item, Publish};
use corqtt_port::store::{Op, Owed};
use corqtt_session::{
    Delivered, DropReason, Frame, Grant, Leftover, Outgoing, QueueFull, Receipt,
    SHARED_PAYLOAD_BYTES_MIN, Will,
};
use corqtt_topics::{Choice, ClientKey, Hit, Matches, Publisher, ShardId, Stamp};
use rustix::time::{ClockId, clock_gettime};
use smallvec::SmallVec;

use crate::background::{FanOut, Job, Next};
use crate::keeping::{Forward, bits};
use crate::lanes::Waiter;
use crate::limits::Limited;
use crate::shard::{Owing, SMALL_STEPS_PER_LOOK, Shard};
use crate::shares::Retainable;
use crate::wires::{Close, NONE, Why};

/// Deliveries made at once; more go on in later turns.
pub(crate) const FAN_OUT_INLINE: usize = 4096;

/// Why a client before 5.0 is closed instead of acknowledged.
pub(crate) const REFUSED: &str =
    "a message that a full queue (queue-full: reject) or a limit on retained messages refused";

/// What keeping a retained message costs, in packets or deliveries.
const RETAIN_WORK: i64 = 16;

/// Messages of a queue that are redispatched, or ended, at once.
const REDISPATCHED_MAX: usize = 256;

/// Where a message comes from, for going on with its source after a large fan-out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A client's PUBLISH.
    Client(ConnectionKey),
    /// Another shard's batch.
    Shard(ShardId),
    /// The broker itself: wills, operators.
    Broker,
}

/// What became of a message so far.
#[derive(Debug, Default)]
pub(crate) struct Routed {
    /// (lane, item) whose mark the publisher waits for.
    pub(crate) owed: SmallVec<[(u8, u64); 2]>,
    /// Persistent sessions of this shard have it: the publisher waits for the store's next batch.
    pub(crate) stored: bool,
    /// Only for these sessions, and not longer than until they have done with it.
    pub(crate) receipt: Option<Receipt>,
    /// Something else is in that batch too: it is waited for in any case.
    pub(crate) strict: bool,
    /// Shards that get it when its record is kept.
    pub(crate) held: Option<Box<Owed>>,
    /// Somebody wants it.
    pub(crate) matched: bool,
    /// A full queue refused it, or it could not be retained, and its publisher is to be told.
    pub(crate) refused: bool,
    /// It goes on in later turns; the source waits.
    pub(crate) continues: bool,
}

impl Routed {
    /// The reason for PUBACK or PUBREC `[MQTT5-3.4.2-1] [MQTT5-3.5.2-1]`.
    pub(crate) const fn reason(&self) -> ReasonCode {
        if self.refused {
            ReasonCode::QUOTA_EXCEEDED
        } else if self.matched {
            ReasonCode::SUCCESS
        } else {
            ReasonCode::NO_MATCHING_SUBSCRIBERS
        }
    }
}

/// Whose messages go to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Former {
    /// A session that its client has left.
    Member { session: u32, generation: u32 },
    /// One that is over; `is_one_commit`: the batch that tells the store so waits for the last of them.
    Ended { is_one_commit: bool },
}

impl Former {
    fn member(self) -> Option<ClientKey> {
        match self {
            Self::Member { session, .. } => Some(ClientKey(session)),
            Self::Ended { .. } => None,
        }
    }
}

/// The message goes to that shard when its record is kept.
fn hold_back(
    outgoing: &mut Outgoing<'_>,
    publisher: Publisher,
    shard: u8,
    plain: bool,
    groups: &[&str],
    routed: &mut Routed,
    of: u8,
) {
    let Some(id) = outgoing.id() else { return };
    let bit = ShardId(shard).bit();
    let owed = routed.held.get_or_insert_with(|| {
        Box::new(Owed {
            id,
            message: outgoing.keep(),
            publisher: publisher.client_id_hash,
            shards: 0,
            plain: 0,
            of,
            groups: Vec::new(),
        })
    });
    owed.shards |= bit;
    if plain {
        owed.plain |= bit;
    }
    let groups = groups.iter().map(|group| ((*group).into(), ShardId(shard)));
    owed.groups.extend(groups);
}

impl Shard {
    /// Routes a message that was published here.
    pub(crate) fn route(
        &mut self,
        message: MessageRef<'_>,
        mut publisher: Publisher,
        source: Source,
        next: impl FnOnce() -> Next,
    ) -> Routed {
        publisher.rng = self.random();
        let mut matches = std::mem::take(&mut self.matches);
        // [MQTT-4.5.0-1] [MQTT5-4.5.0-1]
        self.topics.matches(message.topic, publisher, &mut matches);
        let copies = matches.hits.len() + matches.groups.len();
        let kept = message.retain || !matches.is_empty();
        let shared = self.share_payload(&message, kept);
        let message = match &shared {
            Some(bytes) => MessageRef {
                payload: Payload::shared(bytes),
                ..message
            },
            None => message,
        };
        let mut routed = Routed {
            matched: !matches.is_empty(),
            // nobody waits for what the broker says itself
            strict: source == Source::Broker,
            ..Routed::default()
        };
        let mut frame = std::mem::take(&mut self.frame);
        let id = self.keeping.name(self.me);
        let mut outgoing = Outgoing::new(message, &mut frame)
            .single(copies <= 1)
            .named(id);
        // [MQTT-3.3.1-5] [MQTT5-3.3.1-5] [MQTT-3.3.1-12] [MQTT5-3.3.1-8]
        if message.retain && self.config.capabilities.retain {
            self.retain(&mut outgoing, &mut routed);
        }
        if self.lanes.len() > 1 || !matches.groups.is_empty() {
            self.route_away(&mut outgoing, &matches, publisher, &mut routed);
        }
        self.deliver_all(&mut outgoing, &matches, source, next, &mut routed);
        self.frame = frame;
        self.matches = matches;
        routed
    }

    /// A large payload that somebody gets is put into a buffer that can be shared, and whose memory is counted for as
    /// long as anybody has it.
    #[inline]
    fn share_payload(&self, message: &MessageRef<'_>, wanted: bool) -> Option<bytes::Bytes> {
        let payload = message.payload;
        (payload.bytes.len() >= SHARED_PAYLOAD_BYTES_MIN && wanted && payload.shared.is_none())
            .then(|| self.memory.large(payload.bytes.to_vec()))
    }

    /// Groups and other shards.
    fn route_away(
        &mut self,
        outgoing: &mut Outgoing<'_>,
        matches: &Matches,
        publisher: Publisher,
        routed: &mut Routed,
    ) {
        let mut shards = matches.shards;
        if shards & !self.config.here() != 0
            && corqtt_topics::is_system(outgoing.message().topic.as_str())
        {
            // each node says its own to its own clients
            shards &= self.config.here();
        }
        for group in &matches.groups {
            match group.choice {
                Choice::Local { client, sub, .. } => {
                    let id = sub.id.map(std::num::NonZeroU32::get);
                    let grant = Grant {
                        // [MQTT5-4.8.2-3]
                        qos: sub.qos,
                        // [MQTT-3.3.1-9] [MQTT5-3.3.1-12] [MQTT5-3.3.1-13]
                        retain: sub.retain_as_published && outgoing.message().retain,
                        // [MQTT5-3.3.4-5] a copy of its own, with its own identifier
                        ids: id.as_slice(),
                        group: Some(&group.filter),
                    };
                    self.deliver(client, outgoing, grant, routed);
                }
                Choice::Shard { shard, .. } => shards |= shard.bit(),
            }
        }
        let message = *outgoing.message();
        for shard in bits(shards) {
            let bit = ShardId(shard).bit();
            let mut groups = SmallVec::<[&str; 4]>::new();
            let mut waits = matches.shards_persistent & bit != 0;
            for group in &matches.groups {
                if let Choice::Shard {
                    shard: chosen,
                    persistent,
                } = group.choice
                    && chosen.0 == shard
                {
                    groups.push(&*group.filter);
                    waits |= persistent;
                }
            }
            let plain = matches.shards & bit != 0;
            if self.holds_back(&message, publisher, shard, waits) {
                hold_back(
                    outgoing,
                    publisher,
                    shard,
                    plain,
                    &groups,
                    routed,
                    self.config.shards,
                );
                continue;
            }
            self.send_away(
                shard,
                &message,
                outgoing.id(),
                publisher.client_id_hash,
                plain,
                &groups,
                waits,
                routed,
            );
        }
    }

    /// A QoS 2 message of a publisher that is kept is recorded before it goes to another shard, if it is to be kept there:
    /// after a crash its publisher sends it again, and only the record tells that it is the same. Others do not overtake it.
    #[inline]
    fn holds_back(
        &self,
        message: &MessageRef<'_>,
        publisher: Publisher,
        shard: u8,
        waits: bool,
    ) -> bool {
        self.keeping.records
            && message.qos == QoS::ExactlyOnce
            && !self.config.is_node(ShardId(shard))
            && (waits && self.is_kept(publisher) || self.keeping.is_forwarding(shard))
    }

    fn is_kept(&self, publisher: Publisher) -> bool {
        publisher
            .client
            .is_some_and(|client| self.sessions.slots[client.0 as usize].session.is_kept())
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "the parts of one entry of a batch"
    )]
    fn send_away(
        &mut self,
        shard: u8,
        message: &MessageRef<'_>,
        id: Option<MessageId>,
        publisher: u64,
        plain: bool,
        groups: &[&str],
        waits: bool,
        routed: &mut Routed,
    ) {
        let is_node = self.config.is_node(ShardId(shard));
        let lane = &mut self.lanes[usize::from(shard)];
        if lane.is_full() && (is_node || message.qos == QoS::AtMostOnce) {
            self.counters.lane_full += 1;
            // a shard catches up; a node may be gone
            routed.refused |= message.qos > QoS::AtMostOnce;
            return;
        }
        let waits = waits && message.qos > QoS::AtMostOnce;
        let name = id.map(|id| (id, false));
        let item = lane.push_publish(self.me, message, publisher, plain, groups, waits, name);
        if waits {
            routed.owed.push((shard, item));
        }
    }

    /// The plain local subscribers.
    fn deliver_all(
        &mut self,
        outgoing: &mut Outgoing<'_>,
        matches: &Matches,
        source: Source,
        next: impl FnOnce() -> Next,
        routed: &mut Routed,
    ) {
        let retained = outgoing.message().retain;
        let now = matches.hits.len().min(FAN_OUT_INLINE);
        for hit in &matches.hits[..now] {
            let grant = Grant {
                qos: hit.qos,
                // [MQTT-3.3.1-9] [MQTT5-3.3.1-12] [MQTT5-3.3.1-13]
                retain: retained && hit.retain_as_published,
                ids: matches.subscription_ids(hit),
                group: None,
            };
            self.deliver(hit.client, outgoing, grant, routed);
        }
        if matches.hits.len() > now {
            self.start_fan_out(outgoing, matches, now, source, next(), routed);
        }
    }

    fn start_fan_out(
        &mut self,
        outgoing: &mut Outgoing<'_>,
        matches: &Matches,
        from: usize,
        source: Source,
        next: Next,
        routed: &mut Routed,
    ) {
        let target = |hit: &Hit| crate::background::Target {
            client: hit.client,
            generation: self.sessions.slots[hit.client.0 as usize].generation,
            qos: hit.qos,
            retain_as_published: hit.retain_as_published,
            ids: matches.subscription_ids(hit).into(),
        };
        let targets = matches.hits[from..].iter().map(target).collect();
        routed.continues = true;
        // what tells a repeat is kept with all that it stands for
        let is_one_commit = self.keeping.records && outgoing.message().qos == QoS::ExactlyOnce;
        if is_one_commit {
            self.keeping.begin();
        }
        if let Source::Client(key) = source
            && let Some(slot) = self.wires.find(key)
        {
            self.wires.slots[slot as usize].fanning_out = true;
        }
        self.fan_outs.push_back(FanOut {
            message: outgoing.keep(),
            id: outgoing.id(),
            targets,
            position: 0,
            source,
            next,
            is_one_commit,
            // what it began with has a receipt, the rest waits for the store
            routed: Routed {
                strict: true,
                ..Routed::default()
            },
        });
    }

    /// One client gets the message.
    #[inline]
    pub(crate) fn deliver(
        &mut self,
        client: ClientKey,
        outgoing: &mut Outgoing<'_>,
        grant: Grant<'_>,
        routed: &mut Routed,
    ) {
        self.work -= 1;
        let session = client.0;
        let qos = grant.qos.min(outgoing.message().qos);
        let keeps = self.keeping.records
            && qos > QoS::AtMostOnce
            && self.sessions.slots[session as usize].session.is_kept();
        if keeps && !self.may_keep(qos, outgoing, routed) {
            return;
        }
        let slot = &mut self.sessions.slots[session as usize];
        let connection = slot.connection;
        let out = if connection == NONE {
            None
        } else {
            Some(self.wires.output(connection))
        };
        let before = slot.session.inflight_len();
        let delivered = slot.session.deliver(
            outgoing,
            grant,
            out,
            &self.session_limits,
            &mut self.drops,
            self.now,
        );
        // what is queued may have its packet id already, and wait for the store
        self.meter
            .inflight_changed(before, slot.session.inflight_len());
        let reached = matches!(delivered, Delivered::Sent | Delivered::Queued);
        match delivered {
            Delivered::Sent => {
                self.counters.messages_sent += 1;
                if self
                    .wires
                    .is_early(connection, self.config.session.writes_pending_max)
                {
                    self.flush(connection);
                }
            }
            Delivered::Queued => {}
            Delivered::Dropped(DropReason::QueueFullRejected) => routed.refused = true,
            Delivered::Dropped(_) => {}
            Delivered::Disconnect => {
                let why = Why::Broker("the session's queue is full (queue-full: disconnect)");
                let close = Close {
                    reason: Some(ReasonCode::QUOTA_EXCEEDED),
                    why,
                    keep_will: true,
                };
                if connection != NONE {
                    self.close_soon(connection, close);
                }
            }
        }
        if keeps {
            if reached {
                routed.stored = true;
                match routed.receipt {
                    Some(receipt) if outgoing.message().qos == QoS::AtLeastOnce => {
                        self.keeping.expect(receipt);
                    }
                    _ => routed.strict = true,
                }
            }
            self.note_news(session);
        }
        if connection != NONE
            && outgoing.message().retain
            && self.wires.slots[connection as usize].paging
            && reached
        {
            self.remember_live(connection, outgoing.message().topic);
        }
    }

    /// Before a session is given a message that its store is to keep. False: there is no room in the store.
    fn may_keep(&mut self, qos: QoS, outgoing: &mut Outgoing<'_>, routed: &mut Routed) -> bool {
        if self.keeping.is_full {
            self.drops.count(DropReason::StoreFull);
            routed.refused = true;
            return false;
        }
        let mut receipt = Receipt::default();
        if qos == QoS::AtLeastOnce && outgoing.message().qos == qos && !routed.strict {
            receipt = *routed
                .receipt
                .get_or_insert_with(|| self.keeping.open_receipt());
        }
        outgoing.set_receipt(receipt);
        true
    }

    /// Registers an acknowledgement with everything that it waits for.
    pub(crate) fn await_answers(&mut self, routed: &Routed, waiter: Waiter) {
        let now_ns = self.meter.turns.now_ns();
        for (shard, item) in &routed.owed {
            let shard = usize::from(*shard);
            self.lanes[shard].wait(*item, waiter);
            self.meter.waits.lane(shard, *item, now_ns);
        }
        match routed.receipt {
            Some(receipt) if !routed.strict => self.keeping.wait_for_receipt(receipt, waiter),
            receipt => {
                if let Some(receipt) = receipt {
                    self.keeping.close_receipt(receipt);
                }
                if routed.stored {
                    self.meter.waits.store(self.keeping.last_token(), now_ns);
                    self.keeping.wait(waiter);
                }
            }
        }
    }

    /// Somebody's wait is over, or part of it.
    pub(crate) fn resolve(&mut self, waiters: &mut Vec<(Waiter, bool)>) {
        for (waiter, refused) in waiters.drain(..) {
            let waiter = match waiter {
                Waiter::Receipt(receipt) => match self.keeping.take_receipt(receipt) {
                    Some(waiter) => waiter,
                    // all its sessions have done with the message
                    None => continue,
                },
                waiter => waiter,
            };
            match waiter {
                Waiter::Ack {
                    session,
                    generation,
                    key,
                } => {
                    let Some(slot) = self.sessions.get(session, generation) else {
                        continue;
                    };
                    let connection = slot.connection;
                    if refused && !slot.session.version().is_v5() {
                        // before 5.0 there is no way to refuse but to close without an acknowledgement
                        if connection != NONE {
                            let what = REFUSED;
                            self.violation(connection, ReasonCode::QUOTA_EXCEEDED, what);
                        }
                        // what waits behind it must not wait for ever
                        if let Some(slot) = self.sessions.get(session, generation) {
                            let error = Some(ReasonCode::QUOTA_EXCEEDED);
                            slot.session.release(key, error, None);
                        }
                        self.note_news(session);
                        continue;
                    }
                    let out = if connection == NONE {
                        None
                    } else {
                        Some(self.wires.output(connection))
                    };
                    let error = refused.then_some(ReasonCode::QUOTA_EXCEEDED);
                    crate::crash_point(match slot.session.awaited(key) {
                        Some(4) => "puback",
                        Some(5) => "received",
                        Some(7) => "pubrel-kept",
                        _ => "suback",
                    });
                    slot.session.release(key, error, out);
                    self.note_news(session);
                    if connection != NONE {
                        self.resume(connection);
                        self.wake_pages(connection);
                    }
                }
                Waiter::Connect(key) => self.connect_is_kept(key),
                Waiter::Mark { to, upto } => {
                    crate::crash_point("settled");
                    self.send_mark(to, upto, upto, true);
                }
                Waiter::Item { from, item } => self.item_is_kept(from, item, refused),
                Waiter::Given {
                    session,
                    generation,
                    seq,
                } => {
                    if !refused {
                        self.give_up(session, generation, seq);
                    }
                }
                Waiter::Ban => self.ban_is_kept(),
                Waiter::Dropped => self.drop_is_kept(),
                Waiter::Receipt(_) => {}
            }
        }
    }

    /// Items up to `upto` are done, those up to `kept` are kept.
    pub(crate) fn send_mark(&mut self, to: ShardId, upto: u64, kept: u64, is_awaited: bool) {
        let marked = &mut self.marked[usize::from(to.0)];
        marked.upto = marked.upto.max(upto);
        marked.kept = marked.kept.max(kept);
        let (upto, kept) = (marked.upto, marked.kept);
        let refused = &mut self.refused[usize::from(to.0)];
        let told = refused.partition_point(|item| *item <= kept);
        let refused = refused.drain(..told).collect();
        let mark = corqtt_port::routes::Mark {
            from: self.me,
            upto,
            kept,
            refused,
        };
        let lane = &self.marks[usize::from(to.0)];
        let mark = crate::lanes::ToShard::Mark(mark);
        if is_awaited {
            lane.push(mark);
        } else {
            lane.push_quietly(mark);
        }
    }

    /// A batch of another shard.
    pub(crate) fn handle_batch(&mut self, batch: Batch) {
        let from = usize::from(batch.from.0);
        if self.deferred[from].is_empty() {
            self.handle_items(batch, 0);
        } else {
            // a large fan-out of an earlier item is still under way; bounded by what the sender may have unmarked
            self.deferred[from].push_back((batch, 0));
        }
    }

    /// Goes on with batches that waited for a fan-out.
    pub(crate) fn continue_batches(&mut self, from: ShardId) {
        while let Some((batch, position)) = self.deferred[usize::from(from.0)].pop_front() {
            if !self.handle_items(batch, position) {
                break;
            }
        }
    }

    /// Goes on with batches that a turn without work left stopped.
    pub(crate) fn continue_runnable_batches(&mut self) {
        let mut runnable = std::mem::take(&mut self.runnable_batches);
        while runnable != 0 {
            let from = ShardId(runnable.trailing_zeros() as u8);
            runnable &= runnable - 1;
            self.continue_batches(from);
        }
    }

    /// Handles items from `position` on; false if a large fan-out or the end of the turn's work stopped it.
    fn handle_items(&mut self, batch: Batch, position: usize) -> bool {
        let from = batch.from;
        let is_node = self.config.is_node(from);
        // a part of it may have been done in an earlier turn
        let mut stored = position > 0;
        for (index, item) in batch.items.iter().enumerate().skip(position) {
            let done = index - position;
            let looks = done.is_multiple_of(SMALL_STEPS_PER_LOOK);
            if done > 0 && (self.work <= 0 || looks && self.is_late()) {
                self.runnable_batches |= from.bit();
                self.deferred[usize::from(from.0)].push_front((batch, index));
                return false;
            }
            self.work -= 1;
            match item {
                Item::Interest(interest) => self.topics.apply_interest(from, interest),
                Item::Retain(message, stamp) => {
                    stored = true;
                    if !self.retain_here(message.clone(), *stamp) {
                        let number = batch.first + index as u64;
                        self.refused[usize::from(from.0)].push(number);
                    }
                }
                Item::Publish(publish) => {
                    let Some(message) = batch.message(publish) else {
                        continue;
                    };
                    let groups = batch.text_of(&publish.groups);
                    let number = batch.first + index as u64;
                    let routed = self.handle_forwarded(message, publish, groups, from, number);
                    stored |= routed.stored || publish.is_owed;
                    if is_node {
                        self.owe_item(from, number, &routed);
                    }
                    if routed.refused {
                        self.refused[usize::from(from.0)].push(number);
                    }
                    if routed.continues {
                        self.deferred[usize::from(from.0)].push_front((batch, index + 1));
                        return false;
                    }
                }
            }
        }
        let upto = batch.first + batch.items.len() as u64 - 1;
        let is_awaited = batch.is_awaited || self.draining.is_some();
        let waits = self.keeping.records && self.keeping.mark_waits(from, stored);
        if is_node {
            if waits {
                self.owe(from, upto);
                self.keeping.wait(Waiter::Item { from, item: upto });
            }
            let kept = self.kept_of(from, upto);
            self.send_mark(from, upto, kept, is_awaited);
        } else if waits {
            self.keeping.wait(Waiter::Mark { to: from, upto });
            self.send_mark(from, upto, 0, is_awaited);
        } else {
            self.send_mark(from, upto, upto, is_awaited);
        }
        true
    }

    /// An item of another node went on to other shards: it is kept when they have it.
    fn owe_item(&mut self, from: ShardId, item: u64, routed: &Routed) {
        for (shard, sent) in &routed.owed {
            self.owe(from, item);
            let waiter = Waiter::Item { from, item };
            self.lanes[usize::from(*shard)].wait(*sent, waiter);
        }
    }

    fn owing(&mut self, from: ShardId) -> &mut VecDeque<Owing> {
        &mut self.owing[usize::from(from.0 - self.config.shards - 1)]
    }

    fn owe(&mut self, from: ShardId, item: u64) {
        let owing = self.owing(from);
        match owing.back_mut() {
            Some(last) if last.item == item => last.left += 1,
            _ => owing.push_back(Owing { item, left: 1 }),
        }
    }

    /// Up to where the items of another node are kept that are done up to `upto`.
    fn kept_of(&mut self, from: ShardId, upto: u64) -> u64 {
        let first = self.owing(from).front();
        first.map_or(upto, |first| upto.min(first.item - 1))
    }

    /// A shard, or the store, has kept an item of another node, or refused it.
    fn item_is_kept(&mut self, from: ShardId, item: u64, is_refused: bool) {
        let owing = self.owing(from);
        let at = owing.partition_point(|owing| owing.item < item);
        if let Some(found) = owing.get_mut(at).filter(|owing| owing.item == item) {
            found.left -= 1;
        }
        while owing.front().is_some_and(|first| first.left == 0) {
            owing.pop_front();
        }
        if is_refused {
            let refused = &mut self.refused[usize::from(from.0)];
            let at = refused.partition_point(|known| *known < item);
            if refused.get(at) != Some(&item) {
                refused.insert(at, item);
            }
        }
        let upto = self.marked[usize::from(from.0)].upto;
        let kept = self.kept_of(from, upto);
        if kept > self.marked[usize::from(from.0)].kept {
            self.send_mark(from, upto, kept, true);
        }
    }

    /// A message that another shard matched against this one's interest.
    fn handle_forwarded(
        &mut self,
        message: MessageRef<'_>,
        publish: &Publish,
        groups: &[u8],
        from: ShardId,
        item: u64,
    ) -> Routed {
        let publisher = Publisher {
            client: None,
            client_id_hash: publish.publisher,
            rng: self.random(),
        };
        let mut matches = std::mem::take(&mut self.matches);
        matches.clear();
        let is_node = self.config.is_node(from);
        if publish.plain {
            let among = if is_node { self.config.here() } else { 0 };
            self.topics
                .matches_plain(message.topic, publisher, among, &mut matches);
        }
        let copies = matches.hits.len() + usize::from(!groups.is_empty());
        let shared = self.share_payload(&message, copies > 0 || matches.shards != 0);
        let message = match &shared {
            Some(bytes) => MessageRef {
                payload: Payload::shared(bytes),
                ..message
            },
            None => message,
        };
        let mut frame = std::mem::take(&mut self.frame);
        let mut outgoing = Outgoing::new(message, &mut frame)
            .single(copies <= 1)
            .named(match publish.id {
                // a name of another node means nothing here
                None if is_node => self.keeping.name(self.me),
                id => id,
            });
        // its mark waits for the store
        let mut routed = Routed {
            strict: true,
            ..Routed::default()
        };
        if let (Some(id), true) = (publish.id, publish.is_owed) {
            let shard = self.me;
            self.keeping.push(Op::Settled { id, shard });
        }
        for group in groups
            .split(|byte| *byte == 0)
            .filter(|group| !group.is_empty())
        {
            if let Ok(group) = std::str::from_utf8(group) {
                self.deliver_from(from, group, &mut outgoing, publisher, &mut routed);
            }
        }
        self.forward_here(&mut outgoing, &matches, publisher, &mut routed);
        self.deliver_all(
            &mut outgoing,
            &matches,
            Source::Shard(from),
            || Next::Batches { from, item },
            &mut routed,
        );
        self.frame = frame;
        self.matches = matches;
        routed
    }

    /// A shared group's message for which another shard or node chose this one; a node's stays on this node if it can.
    fn deliver_from(
        &mut self,
        from: ShardId,
        group: &str,
        outgoing: &mut Outgoing<'_>,
        publisher: Publisher,
        routed: &mut Routed,
    ) {
        if !self.config.is_node(from) {
            self.deliver_to_group(group, outgoing, publisher, &[], u64::MAX, routed);
            return;
        }
        let here = self.config.here();
        if !self.deliver_to_group(group, outgoing, publisher, &[], here, routed) {
            self.deliver_to_group(group, outgoing, publisher, &[], !from.bit(), routed);
        }
    }

    /// A message of another node goes on to the other shards of this one.
    fn forward_here(
        &mut self,
        outgoing: &mut Outgoing<'_>,
        matches: &Matches,
        publisher: Publisher,
        routed: &mut Routed,
    ) {
        let message = *outgoing.message();
        for shard in bits(matches.shards) {
            let waits = matches.shards_persistent & ShardId(shard).bit() != 0;
            self.send_away(
                shard,
                &message,
                outgoing.id(),
                publisher.client_id_hash,
                true,
                &[],
                waits,
                routed,
            );
        }
    }

    /// One member of a shared group gets the message; prefers members here, then those on the lanes of `among`. False:
    /// there is none.
    fn deliver_to_group(
        &mut self,
        full_filter: &str,
        outgoing: &mut Outgoing<'_>,
        publisher: Publisher,
        except: &[ClientKey],
        among: u64,
        routed: &mut Routed,
    ) -> bool {
        let topic = outgoing.message().topic;
        match self
            .topics
            .choose_member(full_filter, publisher, topic, except, among)
        {
            Some(Choice::Local { client, sub, .. }) => {
                let filter: Arc<str> = full_filter.into();
                let id = sub.id.map(std::num::NonZeroU32::get);
                let grant = Grant {
                    qos: sub.qos,
                    retain: sub.retain_as_published && outgoing.message().retain,
                    ids: id.as_slice(),
                    group: Some(&filter),
                };
                self.deliver(client, outgoing, grant, routed);
                true
            }
            Some(Choice::Shard { shard, persistent }) => {
                let message = *outgoing.message();
                let groups = [full_filter];
                self.send_away(
                    shard.0,
                    &message,
                    outgoing.id(),
                    publisher.client_id_hash,
                    false,
                    &groups,
                    persistent,
                    routed,
                );
                true
            }
            None => false,
        }
    }

    /// Messages that a member of a shared group leaves over go to another member (section 4.8.2 of 5.0); others end.
    /// A long queue takes several turns. The store has each of them all the time: it leaves a member that is still there in
    /// the commit that brings it to another one, and a session that is over in the commit of all.
    pub(crate) fn redispatch(&mut self, mut left: Leftover, from: Former) {
        let mut frame = Frame::default();
        for _ in 0..REDISPATCHED_MAX {
            let Some(left) = left.next() else {
                break;
            };
            self.work -= 1;
            let Some(group) = &left.group else {
                self.drops.count(DropReason::SessionEnded);
                continue;
            };
            let publisher = Publisher {
                client: None,
                client_id_hash: 0,
                rng: self.random(),
            };
            let id = self.keeping.name(self.me);
            let mut outgoing = Outgoing::held(&left.message, &mut frame).named(id);
            // it stays in the batch where its former member gives it up
            let mut routed = Routed {
                strict: true,
                ..Routed::default()
            };
            let except: SmallVec<[ClientKey; 1]> = from.member().into_iter().collect();
            let mut give = |except: &[ClientKey]| {
                self.deliver_to_group(
                    group,
                    &mut outgoing,
                    publisher,
                    except,
                    u64::MAX,
                    &mut routed,
                )
            };
            let found = give(&except) || (!except.is_empty() && give(&[]));
            if !found {
                self.drops.count(DropReason::SessionEnded);
            }
            if let Former::Member {
                session,
                generation,
            } = from
                && !routed.refused
            {
                let seq = left.seq;
                match routed.owed.first() {
                    Some((shard, item)) => {
                        let waiter = Waiter::Given {
                            session,
                            generation,
                            seq,
                        };
                        self.lanes[usize::from(*shard)].wait(*item, waiter);
                    }
                    None => self.give_up(session, generation, seq),
                }
            }
        }
        if !left.is_empty() {
            self.jobs.push_back(Job::Redispatch { left, from });
        } else if from
            == (Former::Ended {
                is_one_commit: true,
            })
        {
            self.keeping.complete();
        }
    }

    /// Another member has a message of that session.
    fn give_up(&mut self, session: u32, generation: u32, seq: u64) {
        if let Some(slot) = self.sessions.get(session, generation) {
            slot.session.give_up(seq);
            self.note_news(session);
        }
    }

    /// Publishes a will.
    pub(crate) fn publish_will(&mut self, will: Will) {
        let message = will.into_message(self.now);
        self.publish_own(&message);
    }

    /// Publishes a message as the broker.
    pub(crate) fn publish_own(&mut self, message: &Message) {
        let mut routed = self.route(
            message.as_ref(),
            Publisher::default(),
            Source::Broker,
            || Next::Nothing,
        );
        if let Some(receipt) = routed.receipt {
            self.keeping.close_receipt(receipt);
        }
        if let Some(owed) = routed.held.take() {
            // behind those of clients that wait for their records
            self.keeping.forward(Forward {
                owed: *owed,
                waiter: None,
                recorded: false,
            });
        }
    }

    /// Tells the partition what became of a client. Publishers on other shards wait for persistent sessions; for all of
    /// them where a full queue is to be told to the publisher.
    pub(crate) fn declare(&mut self, session: u32, persistent: bool, online: bool) {
        let awaited = persistent || self.config.session.queue_full == QueueFull::Reject;
        let client = ClientKey(session);
        self.topics
            .client_changed(client, awaited, online, &mut self.changes);
    }

    /// Tells the other shards what changed in the interest of this one.
    pub(crate) fn spread_interest(&mut self) {
        let interested = self.config.interested();
        for change in self.changes.drain(..) {
            let lanes = self.lanes.iter_mut().take(interested);
            for (shard, lane) in lanes.enumerate() {
                if shard != usize::from(self.me.0) {
                    lane.push_interest(self.me, change.clone());
                }
            }
        }
    }

    /// The other shards that have not confirmed the interest told so far.
    pub(crate) fn unconfirmed_interest(&self) -> SmallVec<[(u8, u64); 2]> {
        let behind = |(shard, lane): (usize, &crate::lanes::Lane)| {
            (lane.last_interest > lane.marked).then_some((shard as u8, lane.last_interest))
        };
        self.lanes.iter().enumerate().filter_map(behind).collect()
    }

    /// The shard that keeps a topic's retained message.
    pub(crate) fn retained_shard(&self, topic: &str) -> usize {
        (self.sessions.hash(topic) % u64::from(self.config.shards)) as usize
    }

    fn retain(&mut self, outgoing: &mut Outgoing<'_>, routed: &mut Routed) {
        // read now, not at the start of the turn: a message that was caused by another one is stamped after it. Of the
        // clock that all shards share and nobody sets.
        let clock = clock_gettime(ClockId::Boottime);
        let clock_ns = clock.tv_sec as u64 * 1_000_000_000 + clock.tv_nsec as u64;
        self.stamp = (self.config.stamp_base + clock_ns).max(self.stamp + 1);
        let stamp = Stamp {
            time: self.stamp,
            origin: u16::from(self.me.0),
        };
        let message = outgoing.keep();
        let shard = self.retained_shard(&message.topic);
        self.admission.shares.will_retain(shard);
        if shard == usize::from(self.me.0) {
            if self.retain_here(message, stamp) {
                routed.stored |= self.keeping.records;
                routed.strict |= self.keeping.records;
            } else {
                routed.refused = true;
            }
        } else {
            let qos = message.qos;
            let item = self.lanes[shard].push_retain(self.me, message, stamp);
            // kept, or refused by a limit: that shard knows
            if (self.keeping.records || self.config.limits.retained()) && qos > QoS::AtMostOnce {
                routed.owed.push((shard as u8, item));
            }
        }
    }

    /// False: a limit leaves no room for it.
    fn retain_here(&mut self, message: Arc<Message>, stamp: Stamp) -> bool {
        self.work -= RETAIN_WORK;
        let is_system = corqtt_topics::is_system(&message.topic);
        let is_limited = self.config.limits.retained() && !is_system;
        if is_limited && let Err(limit) = self.room_for_retained(&message, stamp) {
            self.limited(limit, &message.topic);
            return false;
        }
        // what the broker says of itself is said anew after a restart
        if self.keeping.records && !is_system {
            if !message.payload.is_empty() && !self.keeping.may_retain() {
                self.drops.count(DropReason::StoreFull);
                return false;
            }
            self.keeping.retain(message.clone(), stamp);
        }
        self.retained.set(message, stamp);
        if is_limited {
            self.share_retained();
        }
        true
    }

    fn room_for_retained(&self, message: &Message, stamp: Stamp) -> Result<(), Limited> {
        let (messages, bytes) = self.retained.growth(message, stamp);
        if (messages, bytes) == (0, 0) {
            return Ok(());
        }
        let held = self.admission.shares.retained();
        let exceeds = |held: u64, more: usize, maximum: u64| {
            maximum > 0 && more > 0 && held.saturating_add(more as u64) > maximum
        };
        let limits = &self.config.limits;
        if exceeds(held.messages, messages, limits.retained_messages_max) {
            return Err(Limited::RetainedMessages);
        }
        if exceeds(held.bytes, bytes, limits.retained_bytes_max) {
            return Err(Limited::RetainedBytes);
        }
        Ok(())
    }

    /// Tells the other shards how much is retained here.
    pub(crate) fn share_retained(&self) {
        let holds = Retainable {
            messages: self.retained.of_clients() as u64,
            bytes: self.retained.bytes_of_clients() as u64,
        };
        let me = usize::from(self.me.0);
        self.admission.shares.set_retained(me, holds);
    }
}
