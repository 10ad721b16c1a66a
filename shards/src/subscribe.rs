// SPDX-License-Identifier: Apache-2.0
//! SUBSCRIBE and UNSUBSCRIBE (sections 3.8 to 3.11).
//!
//! A packet may name a hundred thousand filters, so it is handled in parts: one in the turn that decodes it, one in
//! each turn after it. Its connection is not decoded meanwhile, and its acknowledgement follows the last part, so what
//! the client sees is as if it had all been done at once.

use std::num::NonZeroU32;

use corqtt_codec::{
    PacketId, QoS, ReasonCode, RetainHandling, Subscribe, SubscribeFilters, SubscribeOptions,
    TopicFilter, Unsubscribe, UnsubscribeFilters, Version,
};
use corqtt_port::auth::{Verdict, Wish};
use corqtt_port::events::Event;
use corqtt_port::store::Op;
use corqtt_session::AckKey;
use corqtt_topics::{ClientKey, Subscription};
use smallvec::SmallVec;

use crate::background::Job;
use crate::connect::Pending;
use crate::limits::Limited;
use crate::shard::Shard;

type Codes = SmallVec<[u8; 16]>;

/// Filters of one part, which is what one turn handles of a packet and what auth is asked at once.
const PART_FILTERS: usize = 256;
/// A part ends with the filter that brings it to so many bytes.
const PART_BYTES: usize = 16 << 10;
/// A SUBACK of more filters that want what is retained does not wait for the first look at it.
const LOOK_FIRST_MAX: usize = 16;
/// What a filter costs, in packets or deliveries.
const FILTER_WORK: i64 = 16;
/// Long ones cost more.
const FILTER_BYTES_PER_WORK: usize = 16;

/// A SUBSCRIBE or UNSUBSCRIBE that is being handled.
#[derive(Debug)]
pub(crate) struct Subscribing {
    packet_id: PacketId,
    unsubscribe: bool,
    subscription_id: Option<u32>,
    /// As on the wire, all of them; empty until it has to wait.
    filters: Box<[u8]>,
    /// Bytes of them that are done.
    done: usize,
    /// [MQTT-3.8.4-5] [MQTT5-3.8.4-6] [MQTT5-3.11.3-2] a code per filter, in order.
    codes: Codes,
    /// Where the filters are that want retained messages.
    retained: SmallVec<[(usize, Subscription); 4]>,
    /// How many of these were seen to.
    paged: usize,
    /// Once it is acknowledged: the key, unless that left at once.
    acknowledged: Option<Option<AckKey>>,
}

impl Subscribing {
    fn new(packet_id: PacketId, unsubscribe: bool, subscription_id: Option<u32>) -> Self {
        Self {
            packet_id,
            unsubscribe,
            subscription_id,
            filters: Box::default(),
            done: 0,
            codes: Codes::new(),
            retained: SmallVec::new(),
            paged: 0,
            acknowledged: None,
        }
    }
}

/// The items at the start of `rest` that one part has; `filter_of` names the filter of each.
fn part<'a, T>(
    rest: impl Iterator<Item = T>,
    filter_of: impl Fn(&T) -> &'a str,
) -> impl Iterator<Item = T> {
    let mut bytes = 0;
    rest.take(PART_FILTERS).take_while(move |item| {
        let goes_on = bytes < PART_BYTES;
        bytes += filter_of(item).len();
        goes_on
    })
}

/// The filters of a SUBSCRIBE that want what is retained, where `places` says that they stand.
fn wanting<'a>(
    places: &'a [(usize, Subscription)],
    filters: &'a [u8],
    version: Version,
) -> impl Iterator<Item = (&'a str, Subscription)> {
    places.iter().filter_map(move |(at, sub)| {
        let rest = SubscribeFilters::trusted(&filters[*at..], version);
        let (filter, _) = rest.iter().next()?;
        Some((filter, *sub))
    })
}

fn filter_work(filter: &str) -> i64 {
    FILTER_WORK + (filter.len() / FILTER_BYTES_PER_WORK) as i64
}

/// How far a SUBSCRIBE or UNSUBSCRIBE has come.
enum Progress {
    /// It is done, or its connection is.
    Done,
    /// The next part waits for auth.
    Asked,
    /// It goes on in the next turn.
    NextTurn,
}

impl Shard {
    pub(crate) fn handle_subscribe(&mut self, slot: u32, subscribe: &Subscribe<'_>) {
        if subscribe.subscription_id.is_some() && !self.config.capabilities.subscription_ids {
            let reason = ReasonCode::SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED;
            return self.violation(
                slot,
                reason,
                "a subscription identifier while sub-id-available is off",
            );
        }
        if !self.codes_fit(slot, || subscribe.filters.iter().count()) {
            return;
        }
        let under_way = Subscribing::new(subscribe.packet_id, false, subscribe.subscription_id);
        self.begin_subscribing(slot, under_way, subscribe.filters.raw());
    }

    pub(crate) fn handle_unsubscribe(&mut self, slot: u32, unsubscribe: &Unsubscribe<'_>) {
        if !self.codes_fit(slot, || unsubscribe.filters.iter().count()) {
            return;
        }
        let under_way = Subscribing::new(unsubscribe.packet_id, true, None);
        self.begin_subscribing(slot, under_way, unsubscribe.filters.raw());
    }

    fn begin_subscribing(&mut self, slot: u32, mut under_way: Subscribing, filters: &[u8]) {
        match self.subscribe_step(slot, &mut under_way, filters, None) {
            Progress::Done => {}
            progress => {
                under_way.filters = filters.into();
                self.park_subscribing(slot, under_way, &progress);
            }
        }
    }

    /// Goes on with a SUBSCRIBE or UNSUBSCRIBE that had to wait; `verdict`: what auth says of its next part.
    pub(crate) fn continue_subscribing(
        &mut self,
        slot: u32,
        mut under_way: Subscribing,
        verdict: Option<&Verdict>,
    ) {
        let filters = std::mem::take(&mut under_way.filters);
        match self.subscribe_step(slot, &mut under_way, &filters, verdict) {
            Progress::Done => {}
            progress => {
                under_way.filters = filters;
                self.park_subscribing(slot, under_way, &progress);
            }
        }
    }

    /// Nothing more of the connection is decoded until it is done.
    fn park_subscribing(&mut self, slot: u32, under_way: Subscribing, progress: &Progress) {
        let connection = &mut self.wires.slots[slot as usize];
        connection.asking = true;
        connection.pending = Some(Box::new(Pending::Subscribe(under_way)));
        if matches!(progress, Progress::NextTurn) {
            let key = self.wires.key(slot);
            self.jobs.push_back(Job::Subscribe(key));
        }
    }

    /// One part of the filters, then the acknowledgement, then what is retained for them.
    fn subscribe_step(
        &mut self,
        slot: u32,
        under_way: &mut Subscribing,
        filters: &[u8],
        verdict: Option<&Verdict>,
    ) -> Progress {
        if under_way.done < filters.len() {
            let asked;
            let verdict = match verdict {
                Some(verdict) => verdict,
                None if under_way.unsubscribe || !self.checks_subscribe => &Verdict::Allow,
                None => match self.ask_subscribe(slot, &filters[under_way.done..]) {
                    Some(verdict) => {
                        asked = verdict;
                        &asked
                    }
                    None => return Progress::Asked,
                },
            };
            let goes_on = if under_way.unsubscribe {
                self.unsubscribe_part(slot, under_way, filters)
            } else {
                self.subscribe_part(slot, under_way, filters, verdict)
            };
            self.spread_interest();
            if !goes_on {
                return Progress::Done;
            }
            if under_way.done < filters.len() {
                return Progress::NextTurn;
            }
        }
        let mut first = None;
        let key = match under_way.acknowledged {
            Some(key) => key,
            // [MQTT-3.8.4-1] [MQTT-3.8.4-2] [MQTT5-3.8.4-1] [MQTT5-3.8.4-2] and for UNSUBSCRIBE, also where nothing ended,
            // [MQTT-3.10.4-4] [MQTT-3.10.4-5] [MQTT5-3.10.4-4] [MQTT5-3.10.4-5]
            None => {
                let looks_first = self.looks_first(slot, under_way, filters);
                let key = self.acknowledge_subscription(slot, under_way, looks_first);
                first = key.filter(|_| looks_first);
                *under_way.acknowledged.insert(key)
            }
        };
        let version = self.wires.slots[slot as usize].version;
        let part = part(
            wanting(&under_way.retained[under_way.paged..], filters, version),
            |(filter, _)| filter,
        );
        let mut paged = 0;
        for (filter, sub) in part {
            self.work -= filter_work(filter);
            if let Ok(filter) = TopicFilter::parse(filter) {
                self.send_retained(slot, filter, sub, key);
            }
            paged += 1;
        }
        under_way.paged += paged;
        if let Some(ack) = first {
            self.look_before(slot, ack);
        }
        if under_way.paged < under_way.retained.len() {
            Progress::NextTurn
        } else {
            Progress::Done
        }
    }

    /// Whether SUBACK waits until the other shards were looked at.
    fn looks_first(&self, slot: u32, under_way: &Subscribing, filters: &[u8]) -> bool {
        let connection = &self.wires.slots[slot as usize];
        under_way.retained.len() <= LOOK_FIRST_MAX
            && !connection.paging
            && wanting(&under_way.retained, filters, connection.version)
                .filter_map(|(filter, _)| TopicFilter::parse(filter).ok())
                .any(|filter| self.is_retained_elsewhere(filter))
    }

    /// Asks about the next part.
    fn ask_subscribe(&mut self, slot: u32, rest: &[u8]) -> Option<Verdict> {
        let version = self.wires.slots[slot as usize].version;
        let rest = SubscribeFilters::trusted(rest, version);
        let wanted = part(rest.iter(), |(filter, _)| filter).filter_map(|(filter, options)| {
            let filter = TopicFilter::parse(filter).ok()?;
            Some((filter.filter().into(), options.qos))
        });
        let question = self.question(slot, Wish::Subscribe(wanted.collect()));
        self.auth.ask(question)
    }

    /// False: the connection is over.
    fn subscribe_part(
        &mut self,
        slot: u32,
        under_way: &mut Subscribing,
        filters: &[u8],
        verdict: &Verdict,
    ) -> bool {
        let connection = &self.wires.slots[slot as usize];
        let (session, version, bridge) =
            (connection.session, connection.version, connection.bridge);
        let mut asked = 0;
        let mut granted = Vec::new();
        let rest = SubscribeFilters::trusted(&filters[under_way.done..], version);
        // [MQTT-3.8.4-4] [MQTT5-3.8.4-5] one after the other; [MQTT-3.8.4-5] [MQTT-3.9.3-1] [MQTT5-3.8.4-6]
        // [MQTT5-3.9.3-1] a code per filter, in order
        for (filter, options) in part(rest.iter(), |(filter, _)| filter) {
            self.work -= filter_work(filter);
            let at = under_way.done;
            under_way.done += FILTER_LENGTH_BYTES + filter.len() + OPTIONS_BYTES;
            let Ok(parsed) = TopicFilter::parse(filter) else {
                self.malformed_filter(slot, filter);
                return false;
            };
            let denied = match verdict {
                Verdict::Deny(reason) => Some(*reason),
                Verdict::Filters(reasons) => {
                    asked += 1;
                    reasons
                        .get(asked - 1)
                        .copied()
                        .unwrap_or(Some(ReasonCode::NOT_AUTHORIZED))
                }
                _ => None,
            };
            let checked = match denied {
                Some(reason) => Err(reason),
                None => self.check_filter(slot, parsed),
            };
            let filter = match checked {
                Ok(filter) => filter,
                Err(reason) => {
                    // limits have lines of their own
                    if reason != ReasonCode::QUOTA_EXCEEDED {
                        let client = self.sessions.slots[session as usize].session.client_id();
                        log::info!(client = client, filter = filter, reason:% = reason; "subscription refused");
                    }
                    if version == Version::V31 {
                        // 3.1 has no code for a failure
                        self.violation(slot, reason, "a filter that is refused");
                        return false;
                    }
                    // [MQTT5-3.8.4-7] [MQTT5-3.9.3-2] [MQTT-3.8.4-5]; the encoder makes 0x80 of it before 5.0
                    under_way.codes.push(reason.0);
                    continue;
                }
            };
            let options = SubscribeOptions {
                // [MQTT5-3.2.2-10]
                qos: options.qos.min(self.config.capabilities.maximum_qos),
                no_local: options.no_local || (bridge && !filter.is_shared()),
                // a bridge retains what others have retained
                retain_as_published: options.retain_as_published || bridge,
                ..options
            };
            let sub = Subscription {
                qos: options.qos,
                no_local: options.no_local,
                retain_as_published: options.retain_as_published,
                id: under_way.subscription_id.and_then(NonZeroU32::new),
            };
            let is_new = self
                .topics
                .subscribe(ClientKey(session), filter, sub, &mut self.changes);
            self.record_subscription(session, filter, options, under_way.subscription_id);
            let wants_retained = match options.retain_handling {
                // [MQTT-3.3.1-6] [MQTT-3.8.4-3] [MQTT5-3.3.1-9] [MQTT5-3.8.4-4]
                RetainHandling::Send => true,
                // [MQTT5-3.3.1-10]
                RetainHandling::SendIfNew => is_new,
                // [MQTT5-3.3.1-11]
                RetainHandling::DontSend => false,
            };
            // section 4.8.2: none for shared subscriptions
            if wants_retained && !filter.is_shared() {
                under_way.retained.push((at, sub));
            }
            if self.events.is_some() {
                granted.push(filter.full().into());
            }
            // [MQTT-3.8.4-5] [MQTT5-3.8.4-7]
            under_way.codes.push(options.qos.bits());
        }
        if let Some(events) = &self.events
            && !granted.is_empty()
        {
            let client_id = self.sessions.slots[session as usize].session.client_id();
            events.push(Event::Subscribed {
                client_id: client_id.into(),
                filters: granted,
            });
        }
        true
    }

    /// A filter that is none `[MQTT-4.7.1-2] [MQTT-4.7.1-3] [MQTT-4.7.3-1] [MQTT5-4.7.1-1] [MQTT5-4.7.1-2] [MQTT5-4.7.3-1]
    /// [MQTT5-4.8.2-1] [MQTT5-4.8.2-2]` ends the connection: 0x80 and 0x8F are for those that are well-formed (section
    /// 3.9.3). What stands before it in its packet is done.
    fn malformed_filter(&mut self, slot: u32, filter: &str) {
        let reason = if filter.starts_with("$share/") {
            ReasonCode::PROTOCOL_ERROR
        } else {
            ReasonCode::MALFORMED_PACKET
        };
        self.violation(slot, reason, "a topic filter that is malformed");
    }

    /// False: the connection is over.
    fn unsubscribe_part(&mut self, slot: u32, under_way: &mut Subscribing, filters: &[u8]) -> bool {
        let session = self.wires.slots[slot as usize].session;
        let mut named = Vec::new();
        let rest = UnsubscribeFilters::trusted(&filters[under_way.done..]);
        // [MQTT5-3.11.3-1] a code per filter, in order; [MQTT-3.10.4-6] [MQTT5-3.10.4-6] one after the other
        for filter in part(rest.iter(), |filter| filter) {
            self.work -= filter_work(filter);
            under_way.done += FILTER_LENGTH_BYTES + filter.len();
            if self.events.is_some() {
                named.push(filter.into());
            }
            let Ok(filter) = TopicFilter::parse(filter) else {
                self.malformed_filter(slot, filter);
                return false;
            };
            // [MQTT-3.10.4-1] [MQTT-3.10.4-2] [MQTT5-3.10.4-1] [MQTT5-3.10.4-2]; what the session has begun to send is
            // not touched [MQTT-3.10.4-3] [MQTT5-3.10.4-3]
            let existed = self
                .topics
                .unsubscribe(ClientKey(session), filter, &mut self.changes);
            if !filter.is_shared() {
                self.stop_retained(slot, filter.filter());
            }
            let state = &self.sessions.slots[session as usize].session;
            if existed && state.is_kept() {
                self.keeping.push(Op::Unsubscribed {
                    client_id: state.client_id().into(),
                    filter: filter.full().into(),
                });
            }
            // [MQTT5-3.11.3-2]
            let code = if existed {
                ReasonCode::SUCCESS
            } else {
                ReasonCode::NO_SUBSCRIPTION_EXISTED
            };
            under_way.codes.push(code.0);
        }
        if let Some(events) = &self.events {
            let client_id = self.sessions.slots[session as usize].session.client_id();
            events.push(Event::Unsubscribed {
                client_id: client_id.into(),
                filters: named,
            });
        }
        true
    }

    /// Whether the client has room for the answer to so many filters; if not, the connection ends, since there is no
    /// shorter answer.
    fn codes_fit(&mut self, slot: u32, codes: impl FnOnce() -> usize) -> bool {
        let session = self.wires.slots[slot as usize].session;
        let bytes_max = self.sessions.slots[session as usize]
            .session
            .packet_bytes_max();
        // counting a hundred thousand takes a while
        if bytes_max == u32::MAX {
            return true;
        }
        // packet id, property length, a code per filter
        let remaining = 2 + 1 + codes();
        let header = match remaining {
            0..0x80 => 2,
            0x80..0x4000 => 3,
            0x4000..0x20_0000 => 4,
            _ => 5,
        };
        let fits = header + remaining <= bytes_max as usize;
        // [MQTT5-3.1.2-24]
        if !fits {
            self.violation(
                slot,
                ReasonCode::PACKET_TOO_LARGE,
                "more filters than codes fit its Maximum Packet Size",
            );
        }
        fits
    }

    fn check_filter<'a>(
        &mut self,
        slot: u32,
        filter: TopicFilter<'a>,
    ) -> Result<TopicFilter<'a>, ReasonCode> {
        let capabilities = &self.config.capabilities;
        if filter.is_shared() && !capabilities.shared {
            return Err(ReasonCode::SHARED_SUBSCRIPTIONS_NOT_SUPPORTED);
        }
        // [MQTT-3.8.3-2]
        if filter.has_wildcard() && !capabilities.wildcards {
            return Err(ReasonCode::WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED);
        }
        let levels_max = self.config.limits.topic_levels_max;
        if levels_max > 0
            && filter.filter().len() >= levels_max
            && filter.level_count() > levels_max
        {
            self.limited_client(Limited::TopicLevels, slot);
            return Err(ReasonCode::TOPIC_FILTER_INVALID);
        }
        let subscriptions_max = self.config.limits.subscriptions_max;
        let client = ClientKey(self.wires.slots[slot as usize].session);
        if subscriptions_max > 0
            && self.topics.subscription_count(client) >= subscriptions_max
            && !self.topics.is_subscribed(client, filter)
        {
            self.limited_client(Limited::Subscriptions, slot);
            return Err(ReasonCode::QUOTA_EXCEEDED);
        }
        Ok(filter)
    }

    fn record_subscription(
        &mut self,
        session: u32,
        filter: TopicFilter<'_>,
        options: SubscribeOptions,
        subscription_id: Option<u32>,
    ) {
        let state = &self.sessions.slots[session as usize].session;
        if state.is_kept() {
            self.keeping.push(Op::Subscribed {
                client_id: state.client_id().into(),
                filter: filter.full().into(),
                options,
                subscription_id: subscription_id.unwrap_or(0),
            });
        }
    }

    /// SUBACK or UNSUBACK leaves when every shard knows, and when it is kept for a persistent session; `looks_first`: and
    /// when the other shards were looked at for what is retained.
    fn acknowledge_subscription(
        &mut self,
        slot: u32,
        under_way: &Subscribing,
        looks_first: bool,
    ) -> Option<AckKey> {
        let session = self.wires.slots[slot as usize].session;
        let state = &self.sessions.slots[session as usize];
        // this turn's batch, or that of an earlier part
        let stored = state.session.is_kept() && self.keeping.lags();
        let interest = self.unconfirmed_interest();
        let owed = interest.len() as u16 + u16::from(stored) + u16::from(looks_first);
        let out = self.wires.output(slot);
        let state = &mut self.sessions.slots[session as usize];
        let key = state.session.acknowledge_subscription(
            under_way.packet_id,
            under_way.unsubscribe,
            &under_way.codes,
            owed,
            out,
        );
        if let Some(key) = key {
            let waiter = self.sessions.waiter(session, key);
            let now_ns = self.meter.turns.now_ns();
            for (shard, item) in interest {
                let shard = usize::from(shard);
                self.lanes[shard].wait_done(item, waiter);
                self.meter.waits.lane(shard, item, now_ns);
            }
            if stored {
                self.keeping.wait(waiter);
            }
        }
        key
    }
}

/// On the wire, before a filter and behind it.
const FILTER_LENGTH_BYTES: usize = 2;
const OPTIONS_BYTES: usize = 1;

/// The granted QoS is also the reason code `[MQTT-3.9.3-2]`.
const _: () = assert!(QoS::ExactlyOnce.bits() == ReasonCode::GRANTED_QOS_2.0);
