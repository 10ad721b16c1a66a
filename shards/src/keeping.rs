// SPDX-License-Identifier: Apache-2.0
//! What the shard hands to its store, and what waits until that is kept.
//!
//! ```text
//!   session calls ──► changes ──► ops of the next batch ──put──► store
//!                 └─► effects ─┐        ▲ one batch at a time      │
//!   acknowledgements ──────────┴─ wait for its token ◄────"kept"───┘
//! ```
//!
//! While a batch is on its way the next one gathers, and a QoS 1 message that its subscriber acknowledges meanwhile
//! leaves it again. Its publisher's acknowledgement does not wait for the store then: a receipt counts the sessions.

use std::collections::VecDeque;
use std::sync::Arc;

use corqtt_codec::{Message, MessageId, QoS};
use corqtt_port::store::{self, Answer, Op, Owed, Store, Token};
use corqtt_session::{Change, Effect, Receipt};
use corqtt_topics::{ShardId, Stamp};
use hashbrown::HashMap;

use crate::lanes::Waiter;
use crate::shard::Shard;
use crate::wires::NONE;

/// Retained messages that wait for one commit at most.
const RETAINED_GATHERED_MAX: usize = 100_000;

/// The shard's side of its store.
pub(crate) struct Keeping {
    /// False: sessions end with the process, and nothing here is used.
    pub(crate) records: bool,
    store: Box<dyn Store>,
    /// Of the batch that gathers; `None`: gone again.
    ops: Vec<Option<Op>>,
    gone: usize,
    /// Messages in `ops` that were sent and may still go: (session slot, sequence number) to place.
    recent: HashMap<(u32, u64), u32, foldhash::fast::RandomState>,
    /// Token of the batch that gathers.
    next_token: Token,
    /// All batches up to this one are kept.
    kept: Token,
    /// A batch is on its way.
    outstanding: bool,
    /// What is to be in one commit and is not complete: the batch that gathers waits for so many.
    incomplete: u32,
    /// Retained messages in it.
    retained: usize,
    /// (token, who waits), ascending.
    waiters: VecDeque<(Token, Waiter)>,
    /// (token, session slot, its generation, what), ascending.
    effects: VecDeque<(Token, u32, u32, Effect)>,
    /// QoS 2 messages for other shards, (token of their record, what), ascending.
    forwards: VecDeque<(Token, Forward)>,
    /// How many of them are for each shard.
    forwarding: Vec<u32>,
    receipts: Receipts,
    /// Per shard: the token that the last mark of its stream waits for.
    mark_tokens: Vec<Token>,
    /// The store has no room: what would take more is refused.
    pub(crate) is_full: bool,
    /// Starts of the broker on this store before this one, and messages named in this one.
    start: u32,
    named: u64,
}

/// A QoS 2 message whose record is on its way to the store.
#[derive(Debug)]
pub(crate) struct Forward {
    pub(crate) owed: Owed,
    /// PUBREC, which waits for a mark of each of its shards; the broker's own messages have none.
    pub(crate) waiter: Option<Waiter>,
    /// Its publisher is kept: the shards say when they have it.
    pub(crate) recorded: bool,
}

impl std::fmt::Debug for Keeping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeping")
            .field("next_token", &self.next_token)
            .field("kept", &self.kept)
            .finish_non_exhaustive()
    }
}

/// Acknowledgements of publishers, each with the number of sessions that have not done with its message.
#[derive(Debug, Default)]
struct Receipts {
    slots: Vec<Expected>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Expected {
    generation: u32,
    sessions: u32,
    waiter: Option<Waiter>,
}

impl Receipts {
    fn open(&mut self) -> Receipt {
        let slot = self.free.pop().unwrap_or(self.slots.len() as u32);
        match self.slots.get_mut(slot as usize) {
            Some(old) => {
                old.generation = old.generation.wrapping_add(1);
                old.sessions = 0;
            }
            None => self.slots.push(Expected {
                generation: 0,
                sessions: 0,
                waiter: None,
            }),
        }
        let generation = self.slots[slot as usize].generation;
        Receipt(u64::from(generation) << 32 | u64::from(slot + 1))
    }

    fn find(&mut self, receipt: Receipt) -> Option<(u32, &mut Expected)> {
        let slot = (receipt.0 as u32).checked_sub(1)?;
        let generation = (receipt.0 >> 32) as u32;
        let expected = self.slots.get_mut(slot as usize)?;
        (expected.generation == generation).then_some((slot, expected))
    }

    /// Nobody waits for it any more; who did.
    fn close(&mut self, receipt: Receipt) -> Option<Waiter> {
        let (slot, expected) = self.find(receipt)?;
        expected.generation = expected.generation.wrapping_add(1);
        let waiter = expected.waiter.take();
        self.free.push(slot);
        waiter
    }

    /// A session has done with its message; who may go on, if it was the last one.
    fn done(&mut self, receipt: Receipt) -> Option<Waiter> {
        let (_, expected) = self.find(receipt)?;
        expected.sessions = expected.sessions.saturating_sub(1);
        if expected.sessions > 0 || expected.waiter.is_none() {
            return None;
        }
        self.close(receipt)
    }
}

impl Keeping {
    pub(crate) fn new(store: Box<dyn Store>, shards: u8, start: u32) -> Self {
        Self {
            records: store.records(),
            store,
            ops: Vec::new(),
            gone: 0,
            recent: HashMap::default(),
            next_token: Token(1),
            kept: Token(0),
            outstanding: false,
            incomplete: 0,
            retained: 0,
            waiters: VecDeque::new(),
            effects: VecDeque::new(),
            forwards: VecDeque::new(),
            forwarding: vec![0; usize::from(shards)],
            receipts: Receipts::default(),
            mark_tokens: vec![Token(0); usize::from(shards)],
            is_full: false,
            start,
            named: 0,
        }
    }

    /// The batch that gathers is not handed over before as many [`Keeping::complete`] follow.
    pub(crate) fn begin(&mut self) {
        self.incomplete += 1;
    }

    /// All of something that is to be in one commit is there.
    pub(crate) fn complete(&mut self) {
        self.incomplete = self.incomplete.saturating_sub(1);
    }

    /// False: a retained message can't be kept. Nobody waits for those of QoS 0, so that only this bounds them.
    pub(crate) fn may_retain(&self) -> bool {
        !self.is_full && self.retained < RETAINED_GATHERED_MAX
    }

    /// A retained message for the batch that gathers.
    pub(crate) fn retain(&mut self, message: Arc<Message>, stamp: Stamp) {
        self.retained += 1;
        self.push(Op::Retained { message, stamp });
    }

    /// One more operation for the batch that gathers.
    pub(crate) fn push(&mut self, op: Op) {
        self.ops.push(Some(op));
    }

    /// The token that covers all that was done up to now: that of the batch that gathers, or the last one where that
    /// is empty.
    pub(crate) fn last_token(&self) -> Token {
        let next = self.next_token.0;
        Token(if self.ops.is_empty() { next - 1 } else { next })
    }

    /// Something that was done up to now is not kept yet.
    pub(crate) fn lags(&self) -> bool {
        self.last_token() > self.kept
    }

    /// Everything is kept, and what waited for it is done.
    pub(crate) fn is_settled(&self) -> bool {
        self.ops.is_empty() && !self.outstanding && !self.has_due()
    }

    /// `waiter` is told when everything up to now is kept.
    pub(crate) fn wait(&mut self, waiter: Waiter) {
        self.waiters.push_back((self.last_token(), waiter));
    }

    /// What was done for items of a stream is kept in order: a mark waits for those before it.
    pub(crate) fn mark_waits(&mut self, from: ShardId, stored: bool) -> bool {
        let last = self.last_token();
        let token = &mut self.mark_tokens[usize::from(from.0)];
        if last <= self.kept || (!stored && *token <= self.kept) {
            return false;
        }
        *token = last;
        true
    }

    pub(crate) fn open_receipt(&mut self) -> Receipt {
        self.receipts.open()
    }

    /// One more session is to have done with the message.
    pub(crate) fn expect(&mut self, receipt: Receipt) {
        if let Some((_, expected)) = self.receipts.find(receipt) {
            expected.sessions += 1;
        }
    }

    /// `waiter` is told when everything up to now is kept, or all sessions of the receipt have done with the message.
    pub(crate) fn wait_for_receipt(&mut self, receipt: Receipt, waiter: Waiter) {
        if let Some((_, expected)) = self.receipts.find(receipt) {
            expected.waiter = Some(waiter);
            self.wait(Waiter::Receipt(receipt));
        }
    }

    /// Everything up to a receipt is kept: who waits for it.
    pub(crate) fn take_receipt(&mut self, receipt: Receipt) -> Option<Waiter> {
        self.receipts.close(receipt)
    }

    /// Nobody waits for that receipt.
    pub(crate) fn close_receipt(&mut self, receipt: Receipt) {
        self.receipts.close(receipt);
    }

    /// A name for a message that sessions may keep.
    #[inline]
    pub(crate) fn name(&mut self, shard: ShardId) -> Option<MessageId> {
        self.records.then(|| {
            self.named += 1;
            MessageId {
                start: self.start,
                number: self.named,
                shard: shard.0,
            }
        })
    }

    /// QoS 2 messages for that shard wait for their records.
    pub(crate) fn is_forwarding(&self, shard: u8) -> bool {
        self.forwarding[usize::from(shard)] > 0
    }

    /// The message goes on to its shards once everything up to now is kept.
    pub(crate) fn forward(&mut self, forward: Forward) {
        for shard in bits(forward.owed.shards) {
            self.forwarding[usize::from(shard)] += 1;
        }
        self.forwards.push_back((self.last_token(), forward));
    }

    /// There is a batch to be handed over.
    pub(crate) fn wants_commit(&self) -> bool {
        !self.outstanding && self.incomplete == 0 && !self.ops.is_empty()
    }

    /// Something that waited may go on.
    pub(crate) fn has_due(&self) -> bool {
        let due = |token: Option<&Token>| token.is_some_and(|token| *token <= self.kept);
        due(self.waiters.front().map(|(token, _)| token))
            || due(self.effects.front().map(|(token, ..)| token))
            || due(self.forwards.front().map(|(token, _)| token))
    }

    /// The next batch, if there is something for it and none is on its way. `Err`: all of it has gone again, as if it
    /// had been kept.
    fn next_batch(&mut self) -> Option<Result<store::Batch, Token>> {
        if !self.wants_commit() {
            return None;
        }
        let token = self.next_token;
        self.next_token.0 += 1;
        self.recent.clear();
        self.retained = 0;
        let all_gone = self.gone == self.ops.len();
        let ops = std::mem::take(&mut self.ops).into_iter().flatten();
        self.gone = 0;
        if all_gone {
            return Some(Err(token));
        }
        self.outstanding = true;
        Some(Ok(store::Batch {
            token,
            ops: ops.collect(),
        }))
    }

    /// Notes what a session changed.
    fn note(&mut self, session: u32, client_id: &Arc<str>, change: Change) {
        match &change {
            Change::Enqueued {
                seq,
                delivery,
                packet_id: Some(_),
                ..
            } if delivery.qos == QoS::AtLeastOnce => {
                self.recent.insert((session, *seq), self.ops.len() as u32);
            }
            Change::Dequeued { seq } if !self.recent.is_empty() => {
                if let Some(place) = self.recent.remove(&(session, *seq)) {
                    self.ops[place as usize] = None;
                    self.gone += 1;
                    return;
                }
            }
            _ => {}
        }
        self.push(Op::Changed {
            client_id: client_id.clone(),
            change,
        });
    }
}

/// The shards of a set, from the lowest.
pub(crate) fn bits(mut set: u64) -> impl Iterator<Item = u8> {
    std::iter::from_fn(move || {
        let shard = (set != 0).then(|| set.trailing_zeros() as u8);
        set &= set.wrapping_sub(1);
        shard
    })
}

impl Shard {
    /// Takes what a session has for the store.
    #[inline]
    pub(crate) fn note_news(&mut self, session: u32) {
        if self.keeping.records && self.sessions.slots[session as usize].session.has_news() {
            self.take_news(session);
        }
    }

    fn take_news(&mut self, session: u32) {
        let slot = &mut self.sessions.slots[session as usize];
        let (changes, effects) = slot.session.take_news();
        let generation = slot.generation;
        let client_id = slot.client_id();
        for change in changes {
            self.keeping.note(session, &client_id, change);
        }
        let token = self.keeping.last_token();
        let effects = effects
            .into_iter()
            .map(|effect| (token, session, generation, effect));
        self.keeping.effects.extend(effects);
    }

    /// A session has done with a message that it was sent.
    pub(crate) fn receipt_done(&mut self, receipt: Receipt) {
        if let Some(waiter) = self.keeping.receipts.done(receipt) {
            let mut resolved = std::mem::take(&mut self.resolved);
            resolved.push((waiter, false));
            self.resolve(&mut resolved);
            self.resolved = resolved;
        }
    }

    /// Hands what has gathered to the store, if that has answered the batch before. True: something went on at once.
    pub(crate) fn commit(&mut self) -> bool {
        let kept = match self.keeping.next_batch() {
            None => None,
            Some(Err(token)) => Some(token),
            Some(Ok(batch)) => self.keeping.store.put(batch),
        };
        if let Some(token) = kept {
            self.handle_kept(token);
        }
        kept.is_some()
    }

    /// The store says something.
    pub(crate) fn handle_store(&mut self, answer: Answer) {
        match answer {
            Answer::Kept(token) => self.handle_kept(token),
            Answer::Full(is_full) => self.keeping.is_full = is_full,
        }
    }

    fn handle_kept(&mut self, token: Token) {
        let keeping = &mut self.keeping;
        keeping.kept = keeping.kept.max(token);
        if keeping.kept.0 + 1 == keeping.next_token.0 {
            keeping.outstanding = false;
        }
        crate::crash_point("commit");
        let now_ns = self.meter.turns.now_ns();
        self.meter.waits.kept(self.keeping.kept, now_ns);
        self.continue_kept();
    }

    /// What waited for the store goes on, as far as the turn has work for it.
    pub(crate) fn continue_kept(&mut self) {
        if !self.keeping.has_due() {
            return;
        }
        let kept = self.keeping.kept;
        let mut resolved = std::mem::take(&mut self.resolved);
        while self.work > 0
            && let Some((token, waiter)) = self.keeping.waiters.front()
            && *token <= kept
        {
            self.work -= 1;
            resolved.push((*waiter, false));
            self.keeping.waiters.pop_front();
        }
        self.resolve(&mut resolved);
        self.resolved = resolved;
        while self.work > 0
            && let Some((token, ..)) = self.keeping.forwards.front()
            && *token <= kept
            && let Some((_, forward)) = self.keeping.forwards.pop_front()
        {
            self.work -= 1;
            self.forward_kept(forward);
        }
        while self.work > 0
            && let Some((token, session, generation, effect)) = self.keeping.effects.front()
            && *token <= kept
        {
            let (session, generation, effect) = (*session, *generation, *effect);
            self.keeping.effects.pop_front();
            self.work -= 1;
            self.apply_effect(session, generation, effect);
        }
    }

    fn apply_effect(&mut self, session: u32, generation: u32, effect: Effect) {
        let Some(slot) = self.sessions.get(session, generation) else {
            return;
        };
        let connection = slot.connection;
        let out = if connection == NONE {
            None
        } else {
            crate::crash_point(match effect {
                Effect::Publish(_) => "begun",
                Effect::Release(_) => "pubrec-kept",
                Effect::Free(_) => "freed",
            });
            Some(self.wires.output(connection))
        };
        let before = slot.session.inflight_len();
        slot.session.apply(effect, out);
        let after = slot.session.inflight_len();
        self.meter.inflight_changed(before, after);
        if connection != NONE {
            self.pump(session);
        }
    }

    /// The record of a QoS 2 message is kept: the shards that are owed it get it.
    fn forward_kept(&mut self, forward: Forward) {
        let Forward {
            owed,
            waiter,
            recorded,
        } = forward;
        let message: &Message = &owed.message;
        crate::crash_point("forward");
        for shard in bits(owed.shards) {
            self.keeping.forwarding[usize::from(shard)] -= 1;
            let groups: smallvec::SmallVec<[&str; 4]> = owed
                .groups
                .iter()
                .filter(|(_, chosen)| chosen.0 == shard)
                .map(|(group, _)| &**group)
                .collect();
            let plain = owed.plain & ShardId(shard).bit() != 0;
            let lane = &mut self.lanes[usize::from(shard)];
            let item = lane.push_publish(
                self.me,
                &message.as_ref(),
                owed.publisher,
                plain,
                &groups,
                true,
                Some((owed.id, recorded)),
            );
            if let Some(waiter) = waiter {
                lane.wait(item, waiter);
                let now_ns = self.meter.turns.now_ns();
                self.meter.waits.lane(usize::from(shard), item, now_ns);
            }
        }
    }
}
