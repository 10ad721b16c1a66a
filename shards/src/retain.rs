// SPDX-License-Identifier: Apache-2.0
//! Retained messages on their way to a new subscription: page by page, from every shard that may have some.

use std::sync::Arc;

use compact_str::CompactString;
use corqtt_codec::{Message, TopicFilter, TopicName};
use corqtt_port::routes::{RetainedAsk, RetainedKey, RetainedPage};
use corqtt_session::{AckKey, Frame, Grant, Outgoing};
use corqtt_topics::{ClientKey, Cursor, Subscription};
use std::collections::HashSet;

use crate::background::Paging;
use crate::lanes::ToShard;
use crate::router::Routed;
use crate::shard::Shard;
use crate::wires::Stage;

/// Topics looked at for one page.
const PAGE_ENTRIES: usize = 256;
/// Topics published live during the pages that are remembered; more than these may come twice, never wrongly ordered
/// by more than one page.
const SEEN_MAX: usize = 65_536;

impl Shard {
    /// Begins to send what is retained for a filter.
    pub(crate) fn send_retained(
        &mut self,
        slot: u32,
        filter: TopicFilter<'_>,
        sub: Subscription,
        after: Option<AckKey>,
    ) {
        let shards = if filter.has_wildcard() {
            (0..usize::from(self.config.shards)).collect()
        } else {
            vec![self.retained_shard(filter.filter())]
        };
        if shards == [usize::from(self.me.0)] && self.retained.is_empty() {
            return;
        }
        // a subscription made again gets everything again, so what is left of its first pages need not come
        self.stop_retained(slot, filter.filter());
        self.paging_number += 1;
        let key = RetainedKey {
            connection: self.wires.key(slot),
            number: self.paging_number,
        };
        self.wires.slots[slot as usize].paging += 1;
        self.pagings.push(Paging {
            key,
            filter: filter.filter().into(),
            sub,
            after,
            shards,
            cursor: Some(Cursor::new()),
            seen: HashSet::new(),
        });
    }

    /// Pages for a filter that is no longer subscribed to, or anew, end `[MQTT-3.10.4-2] [MQTT5-3.10.4-2]`.
    pub(crate) fn stop_retained(&mut self, slot: u32, filter: &str) {
        if self.wires.slots[slot as usize].paging == 0 {
            return;
        }
        let stopped =
            |paging: &Paging| paging.key.connection.slot == slot && &*paging.filter == filter;
        if let Some(index) = self.pagings.iter().position(stopped) {
            self.end_paging(index);
        }
    }

    /// A live retained message went to a connection that still gets pages: its page copy is older.
    pub(crate) fn remember_live(&mut self, connection: u32, topic: TopicName<'_>) {
        for paging in self
            .pagings
            .iter_mut()
            .filter(|paging| paging.key.connection.slot == connection)
        {
            if paging.seen.len() < SEEN_MAX && TopicFilter::trusted(&paging.filter).matches(topic) {
                paging.seen.insert(CompactString::new(topic.as_str()));
            }
        }
    }

    /// The client has room for a page: neither its socket nor its session holds much.
    pub(crate) fn has_room(&self, paging: &Paging) -> bool {
        let slot = paging.key.connection.slot;
        let connection = &self.wires.slots[slot as usize];
        if connection.stage != Stage::Live
            || self.wires.output_len(slot) >= self.config.session.out_buffer_bytes_max / 4
        {
            return false;
        }
        let session = &self.sessions.slots[connection.session as usize].session;
        session.queue_len() < PAGE_ENTRIES && paging.after.is_none_or(|ack| session.has_left(ack))
    }

    /// Looks up or asks for the next page of one subscription. False: the subscription has all.
    pub(crate) fn next_page(&mut self, index: usize) -> bool {
        let paging = &mut self.pagings[index];
        let Some(mut cursor) = paging.cursor.take() else {
            return true;
        };
        let Some(shard) = paging.shards.last().copied() else {
            return false;
        };
        if shard == usize::from(self.me.0) {
            let mut messages = Vec::new();
            let filter = paging.filter.clone();
            let now_ms = self.now.wall_ms;
            let filter = TopicFilter::trusted(&filter);
            let finished =
                self.retained
                    .page(filter, &mut cursor, PAGE_ENTRIES, now_ms, &mut messages);
            self.work -= PAGE_ENTRIES as i64 / 4;
            return self.send_page(index, &messages, (!finished).then_some(cursor));
        }
        let ask = RetainedAsk {
            reply_to: self.me,
            subscription: paging.key,
            filter: paging.filter.clone(),
            cursor,
        };
        self.lanes[shard].send(ToShard::RetainedAsk(ask));
        true
    }

    /// Sends a page; false if that was the last one of the last shard.
    fn send_page(&mut self, index: usize, messages: &[Arc<Message>], next: Option<Cursor>) -> bool {
        let paging = &self.pagings[index];
        let session = self.wires.slots[paging.key.connection.slot as usize].session;
        let sub = paging.sub;
        let mut frame = Frame::default();
        let mut routed = Routed::default();
        let id = sub.id.map(std::num::NonZeroU32::get);
        for message in messages {
            if self.pagings[index].seen.contains(&message.topic) {
                continue;
            }
            let mut outgoing = Outgoing::kept(message, &mut frame);
            // [MQTT-3.3.1-8] [MQTT5-3.3.1-8] retained messages of a new subscription have RETAIN set
            let grant = Grant {
                qos: sub.qos,
                retain: true,
                ids: id.as_slice(),
                group: None,
            };
            // not a live copy: it must not be remembered as one
            let connection = self.pagings[index].key.connection.slot;
            let paging = std::mem::take(&mut self.wires.slots[connection as usize].paging);
            self.deliver(ClientKey(session), &mut outgoing, grant, &mut routed);
            self.wires.slots[connection as usize].paging = paging;
        }
        let paging = &mut self.pagings[index];
        match next {
            Some(cursor) => paging.cursor = Some(cursor),
            None => {
                paging.shards.pop();
                paging.cursor = Some(Cursor::new());
            }
        }
        !paging.shards.is_empty()
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
        self.work -= PAGE_ENTRIES as i64 / 4;
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
        let Some(index) = self
            .pagings
            .iter()
            .position(|paging| paging.key == page.subscription)
        else {
            return;
        };
        if !self.send_page(index, &page.messages, page.next) {
            self.end_paging(index);
        }
    }
}
