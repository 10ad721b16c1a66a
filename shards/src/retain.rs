// SPDX-License-Identifier: Apache-2.0
//! Retained messages on their way to new subscriptions: page by page, from every shard that may have some.
//!
//! A connection's subscriptions are served one after the other, and only while its client has room; so what waits
//! costs nothing until the socket is empty, an acknowledgement comes, or a page arrives.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use compact_str::CompactString;
use corqtt_codec::{Message, TopicFilter, TopicName};
use corqtt_port::routes::{RetainedAsk, RetainedKey, RetainedPage};
use corqtt_session::{AckKey, Grant, Outgoing};
use corqtt_topics::{ClientKey, Cursor, Subscription};

use crate::lanes::{ToShard, Waiter};
use crate::router::Routed;
use crate::shard::{SMALL_STEPS_PER_LOOK, Shard};
use crate::wires::Stage;

/// Topics looked at for one page.
const PAGE_ENTRIES: usize = 256;
/// What a page costs, in packets or deliveries.
const PAGE_WORK: i64 = PAGE_ENTRIES as i64 * 4;
/// What a message out of it costs beside its delivery: nobody has looked at it for long.
const RETAINED_WORK: i64 = 6;
/// Topics that are remembered because they came live; of more than these a copy may come twice.
const SEEN_MAX: usize = 65_536;
/// Subscriptions in a queue that were ended or made anew, beyond those that count, before the queue is cleaned.
const STALE_MAX: usize = 64;

/// The subscriptions of one connection that still get retained messages.
#[derive(Debug, Default)]
pub(crate) struct Pages {
    /// Only the first one is being served.
    queue: VecDeque<Paging>,
    /// Number of the paging that counts, by filter: a subscription made again gets everything again.
    current: HashMap<Arc<str>, u64>,
    /// Topics that came live, with the number of the newest paging at that time: for that one and older ones a page's
    /// copy is not newer.
    seen: HashMap<CompactString, u64>,
    /// A SUBACK that waits for the first pages.
    first: Option<First>,
    /// In `Shard::page_ready`.
    listed: bool,
}

/// A SUBACK waits until each shard was asked for the first page of its filters: who has seen it and then publishes comes
/// behind what was retained before `[MQTT-4.6.0-6] [MQTT5-4.6.0-6]`.
#[derive(Debug)]
struct First {
    /// Owed one answer by this.
    ack: AckKey,
    session: u32,
    generation: u32,
    /// Number of its last paging.
    upto: u64,
}

/// A subscription that gets retained messages.
#[derive(Debug)]
struct Paging {
    number: u64,
    /// Without `$share/GROUP/`.
    filter: Arc<str>,
    sub: Subscription,
    /// Its SUBACK, which leaves first; `None`: it left at once.
    after: Option<AckKey>,
    /// Still to be asked; the last one is being asked now.
    shards: Vec<usize>,
    /// A page was not the shard's last.
    goes_on: bool,
    /// Where the next page begins; `None`: it was asked for.
    cursor: Option<Cursor>,
    /// Of the last page, not sent yet.
    messages: VecDeque<Arc<Message>>,
}

impl First {
    fn waiter(self) -> Waiter {
        Waiter::Ack {
            session: self.session,
            generation: self.generation,
            key: self.ack,
        }
    }
}

impl Pages {
    /// The subscription that asked for a page, if it still does.
    fn expecting(&mut self, number: u64) -> Option<&mut Paging> {
        // numbers ascend
        let at = self
            .queue
            .binary_search_by_key(&number, |paging| paging.number);
        self.queue.get_mut(at.ok()?)
    }
}

impl Paging {
    fn add(&mut self, messages: Vec<Arc<Message>>, next: Option<Cursor>) {
        self.messages.extend(messages);
        if next.is_none() {
            self.shards.pop();
        }
        self.goes_on |= next.is_some();
        self.cursor = Some(next.unwrap_or_default());
    }
}

impl Shard {
    /// Begins to send what is retained for a filter, behind what the connection still gets for others.
    pub(crate) fn send_retained(
        &mut self,
        slot: u32,
        filter: TopicFilter<'_>,
        sub: Subscription,
        after: Option<AckKey>,
    ) {
        let shards: Vec<usize> = if filter.has_wildcard() {
            (0..usize::from(self.config.shards)).collect()
        } else {
            vec![self.retained_shard(filter.filter())]
        };
        if shards == [usize::from(self.me.0)] && self.retained.is_empty() {
            return;
        }
        self.paging_number += 1;
        let number = self.paging_number;
        let filter: Arc<str> = filter.filter().into();
        let pages = self.pages.entry(slot).or_default();
        pages.current.insert(filter.clone(), number);
        if pages.queue.len() > 2 * pages.current.len() + STALE_MAX {
            let current = &pages.current;
            pages
                .queue
                .retain(|paging| current.get(&paging.filter) == Some(&paging.number));
        }
        pages.queue.push_back(Paging {
            number,
            filter,
            sub,
            after,
            shards,
            goes_on: false,
            cursor: Some(Cursor::new()),
            messages: VecDeque::new(),
        });
        self.wires.slots[slot as usize].paging = true;
        self.wake_pages(slot);
    }

    /// Pages for a filter that is no longer subscribed to end `[MQTT-3.10.4-2] [MQTT5-3.10.4-2]`.
    pub(crate) fn stop_retained(&mut self, slot: u32, filter: &str) {
        if self.wires.slots[slot as usize].paging
            && let Some(pages) = self.pages.get_mut(&slot)
        {
            pages.current.remove(filter);
        }
    }

    /// The connection is over. What it returns is to be resolved: a SUBACK waited for pages.
    #[must_use]
    pub(crate) fn forget_pages(&mut self, slot: u32) -> Option<Waiter> {
        if !std::mem::take(&mut self.wires.slots[slot as usize].paging) {
            return None;
        }
        self.pages.remove(&slot)?.first.map(First::waiter)
    }

    /// Whether other shards may have something for a filter.
    pub(crate) fn is_retained_elsewhere(&self, filter: TopicFilter<'_>) -> bool {
        let me = usize::from(self.me.0);
        let retains = |shard: usize| shard != me && self.admission.shares.retains(shard);
        if filter.has_wildcard() {
            (0..usize::from(self.config.shards)).any(retains)
        } else {
            retains(self.retained_shard(filter.filter()))
        }
    }

    /// A SUBACK waits for the first pages of the subscriptions that are in the queue.
    pub(crate) fn look_before(&mut self, slot: u32, ack: AckKey) {
        let session = self.wires.slots[slot as usize].session;
        let generation = self.sessions.slots[session as usize].generation;
        let first = First {
            ack,
            session,
            generation,
            upto: self.paging_number,
        };
        match self.pages.get_mut(&slot) {
            Some(pages) => pages.first = Some(first),
            None => self.resolve(&mut vec![(first.waiter(), false)]),
        }
    }

    /// A live retained message went to a connection that still gets pages.
    pub(crate) fn remember_live(&mut self, slot: u32, topic: TopicName<'_>) {
        if let Some(pages) = self.pages.get_mut(&slot)
            && pages.seen.len() < SEEN_MAX
        {
            let topic = CompactString::new(topic.as_str());
            pages.seen.insert(topic, self.paging_number);
        }
    }

    /// Something that a connection's pages may have waited for has happened.
    pub(crate) fn wake_pages(&mut self, slot: u32) {
        if self.wires.slots[slot as usize].paging
            && let Some(pages) = self.pages.get_mut(&slot)
            && !pages.listed
        {
            pages.listed = true;
            self.page_ready.push(slot);
        }
    }

    /// Sends pages to those connections that may have room.
    pub(crate) fn continue_paging(&mut self) {
        let mut ready = std::mem::take(&mut self.page_ready);
        let mut steps = 0;
        let mut late = false;
        for slot in ready.drain(..) {
            if let Some(pages) = self.pages.get_mut(&slot) {
                pages.listed = false;
                while !late && self.work > 0 && self.page_step(slot) {
                    steps += 1;
                    late = steps % SMALL_STEPS_PER_LOOK == 0 && self.is_late();
                }
                if late || self.work <= 0 {
                    self.wake_pages(slot);
                }
            }
        }
        // what was listed meanwhile is in a vector of its own; keep the larger one's memory
        if self.page_ready.is_empty() {
            self.page_ready = ready;
        }
    }

    /// The client has room: neither its socket nor its session holds much.
    fn has_room(&self, slot: u32, after: Option<AckKey>) -> bool {
        let connection = &self.wires.slots[slot as usize];
        if connection.stage != Stage::Live
            || self.wires.output_len(slot) > self.config.session.out_buffer_bytes_max / 4
        {
            return false;
        }
        let session = &self.sessions.slots[connection.session as usize].session;
        session.queue_len() < PAGE_ENTRIES && after.is_none_or(|ack| session.has_left(ack))
    }

    /// One step for the first subscription of a connection: a message, a page, or its end. False: it waits.
    fn page_step(&mut self, slot: u32) -> bool {
        let Some(pages) = self.pages.get_mut(&slot) else {
            return false;
        };
        if let Some(first) = &pages.first {
            let (session, ack) = (first.session, first.ack);
            return self.look_step(slot, session, ack);
        }
        let Some(paging) = pages.queue.front_mut() else {
            self.wires.slots[slot as usize].paging = false;
            self.pages.remove(&slot);
            return false;
        };
        if pages.current.get(&paging.filter) != Some(&paging.number) {
            pages.queue.pop_front();
            return true;
        }
        let after = paging.after;
        if !self.has_room(slot, after) {
            return false;
        }
        if self.work <= 0 {
            self.wake_pages(slot);
            return false;
        }
        let Some(pages) = self.pages.get_mut(&slot) else {
            return false;
        };
        let Some(paging) = pages.queue.front_mut() else {
            return false;
        };
        if let Some(message) = paging.messages.pop_front() {
            let (number, sub) = (paging.number, paging.sub);
            // skipped where a live copy came: this one is not newer
            if pages
                .seen
                .get(&message.topic)
                .is_none_or(|seen| *seen < number)
            {
                self.work -= RETAINED_WORK;
                self.send_retained_message(slot, &message, sub);
            }
            return true;
        }
        if paging.shards.is_empty() {
            pages.current.remove(&paging.filter);
            pages.queue.pop_front();
            return true;
        }
        self.ask_page(slot, 0)
    }

    /// A step towards a SUBACK that waits for first pages. False: it waits.
    fn look_step(&mut self, slot: u32, session: u32, ack: AckKey) -> bool {
        // the shards' interest first: what is retained behind a page comes live
        if self.sessions.slots[session as usize]
            .session
            .answers_owed(ack)
            > 1
        {
            return false;
        }
        if self.work <= 0 {
            self.wake_pages(slot);
            return false;
        }
        let Some(pages) = self.pages.get_mut(&slot) else {
            return false;
        };
        let Some(first) = &pages.first else {
            return true;
        };
        let mut found = 0;
        for (at, paging) in pages.queue.iter().enumerate() {
            found += paging.messages.len();
            // enough: the client is not kept waiting for what fills its buffer
            if paging.number > first.upto || found >= PAGE_ENTRIES {
                break;
            }
            let counts = pages.current.get(&paging.filter) == Some(&paging.number);
            if counts && !paging.goes_on && !paging.shards.is_empty() {
                return self.ask_page(slot, at);
            }
        }
        if let Some(first) = pages.first.take() {
            self.resolve(&mut vec![(first.waiter(), false)]);
        }
        true
    }

    /// Asks the next shard of a subscription for a page. False: that is under way.
    fn ask_page(&mut self, slot: u32, at: usize) -> bool {
        let Some(pages) = self.pages.get_mut(&slot) else {
            return false;
        };
        let Some(paging) = pages.queue.get_mut(at) else {
            return false;
        };
        let Some(shard) = paging.shards.last().copied() else {
            return false;
        };
        let Some(mut cursor) = paging.cursor.take() else {
            return false;
        };
        if shard == usize::from(self.me.0) {
            self.work -= PAGE_WORK;
            let mut messages = Vec::new();
            let filter = TopicFilter::trusted(&paging.filter);
            let now_ms = self.now.wall_ms;
            let finished =
                self.retained
                    .page(filter, &mut cursor, PAGE_ENTRIES, now_ms, &mut messages);
            paging.add(messages, (!finished).then_some(cursor));
            return true;
        }
        let subscription = RetainedKey {
            connection: self.wires.key(slot),
            number: paging.number,
        };
        let ask = RetainedAsk {
            reply_to: self.me,
            subscription,
            filter: paging.filter.clone(),
            cursor,
        };
        // [MQTT-3.3.1-5] [MQTT5-3.3.1-5] behind what this client, or another, has retained before
        self.lanes[shard].flush();
        self.lanes[shard].send(ToShard::RetainedAsk(ask));
        false
    }

    fn send_retained_message(&mut self, slot: u32, message: &Arc<Message>, sub: Subscription) {
        let session = self.wires.slots[slot as usize].session;
        let mut frame = std::mem::take(&mut self.frame);
        let name = self.keeping.name(self.me);
        let mut outgoing = Outgoing::kept(message, &mut frame).single(true).named(name);
        let id = sub.id.map(std::num::NonZeroU32::get);
        // [MQTT-3.3.1-8] (section 3.3.1.3 of 5.0) retained messages of a new subscription have RETAIN set
        let grant = Grant {
            qos: sub.qos,
            retain: true,
            ids: id.as_slice(),
            group: None,
        };
        // not a live copy: it must not be remembered as one
        self.wires.slots[slot as usize].paging = false;
        // nobody waits for it
        let mut routed = Routed {
            strict: true,
            ..Routed::default()
        };
        self.deliver(ClientKey(session), &mut outgoing, grant, &mut routed);
        self.wires.slots[slot as usize].paging = true;
        self.frame = frame;
    }

    /// Another shard asks for a page.
    pub(crate) fn answer_retained(&mut self, ask: RetainedAsk) {
        let RetainedAsk {
            reply_to,
            subscription,
            filter,
            mut cursor,
        } = ask;
        let mut messages = Vec::new();
        let parsed = TopicFilter::trusted(&filter);
        let finished = self.retained.page(
            parsed,
            &mut cursor,
            PAGE_ENTRIES,
            self.now.wall_ms,
            &mut messages,
        );
        self.work -= PAGE_WORK;
        let next = (!finished).then_some(cursor);
        let page = RetainedPage {
            from: self.me,
            subscription,
            messages,
            next,
        };
        self.lanes[usize::from(reply_to.0)].send(ToShard::RetainedPage(page));
    }

    /// A page of another shard came.
    pub(crate) fn handle_retained_page(&mut self, page: RetainedPage) {
        let Some(slot) = self.wires.find(page.subscription.connection) else {
            return;
        };
        if let Some(pages) = self.pages.get_mut(&slot)
            && let Some(paging) = pages.expecting(page.subscription.number)
        {
            paging.add(page.messages, page.next);
            self.wake_pages(slot);
        }
    }
}
