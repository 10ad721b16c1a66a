// SPDX-License-Identifier: Apache-2.0
//! SUBSCRIBE and UNSUBSCRIBE (sections 3.8 to 3.11).

use std::num::NonZeroU32;

use corqtt_codec::{
    Packet, QoS, ReasonCode, RetainHandling, Subscribe, SubscribeOptions, TopicFilter, Unsubscribe,
    Version, decode,
};
use corqtt_port::auth::{Verdict, Wish};
use corqtt_port::events::Event;
use corqtt_port::store::Op;
use corqtt_session::AckKey;
use corqtt_topics::{ClientKey, Subscription};
use smallvec::SmallVec;

use crate::connect::Pending;
use crate::lanes::Waiter;
use crate::limits::Limited;
use crate::router::Routed;
use crate::shard::Shard;

type Codes = SmallVec<[u8; 16]>;

impl Shard {
    pub(crate) fn handle_subscribe(&mut self, slot: u32, subscribe: &Subscribe<'_>, raw: &[u8]) {
        if subscribe.subscription_id.is_some() && !self.config.capabilities.subscription_ids {
            let reason = ReasonCode::SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED;
            return self.violation(
                slot,
                reason,
                "a subscription identifier while sub-id-available is off",
            );
        }
        for (filter, options) in subscribe.filters.iter() {
            // [MQTT5-3.8.3-4]
            if options.no_local && filter.starts_with(corqtt_codec::SHARE_PREFIX) {
                return self.violation(
                    slot,
                    ReasonCode::PROTOCOL_ERROR,
                    "no-local on a shared subscription",
                );
            }
        }
        if !self.checks_subscribe {
            return self.subscribe(slot, subscribe, &Verdict::Allow);
        }
        let wanted = subscribe.filters.iter().filter_map(|(filter, options)| {
            Some((
                TopicFilter::parse(filter).ok()?.filter().into(),
                options.qos,
            ))
        });
        let question = self.question(slot, Wish::Subscribe(wanted.collect()));
        match self.auth.ask(question) {
            Some(verdict) => self.subscribe(slot, subscribe, &verdict),
            None => {
                let connection = &mut self.wires.slots[slot as usize];
                connection.asking = true;
                connection.pending = Some(Box::new(Pending::Subscribe { packet: raw.into() }));
            }
        }
    }

    /// Auth answered a SUBSCRIBE late.
    pub(crate) fn subscribe_answered(&mut self, slot: u32, packet: &[u8], verdict: &Verdict) {
        let version = self.wires.slots[slot as usize].version;
        let Ok(Some((frame, _))) = corqtt_codec::frame(packet, u32::MAX) else {
            return;
        };
        let Ok(Packet::Subscribe(subscribe)) = decode(frame, version) else {
            return;
        };
        self.subscribe(slot, &subscribe, verdict);
    }

    fn subscribe(&mut self, slot: u32, subscribe: &Subscribe<'_>, verdict: &Verdict) {
        let connection = &self.wires.slots[slot as usize];
        let (session, version, bridge) =
            (connection.session, connection.version, connection.bridge);
        // [MQTT-3.8.4-5] [MQTT5-3.8.4-6] a code per filter, in order
        let mut codes = Codes::new();
        let mut asked = 0;
        let mut retained = SmallVec::<[(TopicFilter<'_>, Subscription); 4]>::new();
        for (filter, options) in subscribe.filters.iter() {
            let parsed = TopicFilter::parse(filter);
            let denied = match (verdict, parsed.is_ok()) {
                (Verdict::Deny(reason), _) => Some(*reason),
                (Verdict::Filters(reasons), true) => {
                    asked += 1;
                    reasons
                        .get(asked - 1)
                        .copied()
                        .unwrap_or(Some(ReasonCode::NOT_AUTHORIZED))
                }
                _ => None,
            };
            let checked = match parsed {
                Ok(_) if denied.is_some() => Err(denied.unwrap_or(ReasonCode::NOT_AUTHORIZED)),
                Ok(parsed) => self.check_filter(slot, parsed),
                Err(_) => Err(ReasonCode::TOPIC_FILTER_INVALID),
            };
            match checked {
                Err(reason) => {
                    let client = self.sessions.slots[session as usize].session.client_id();
                    log::info!(client = client, filter = filter, reason:% = reason; "subscription refused");
                    if version == Version::V31 {
                        // 3.1 has no code for a failure
                        return self.violation(slot, reason, "a filter that is refused");
                    }
                    codes.push(reason.0);
                }
                Ok(filter) => {
                    let options = SubscribeOptions {
                        qos: options.qos.min(self.config.capabilities.maximum_qos),
                        no_local: options.no_local || (bridge && !filter.is_shared()),
                        ..options
                    };
                    let sub = Subscription {
                        qos: options.qos,
                        no_local: options.no_local,
                        retain_as_published: options.retain_as_published,
                        id: subscribe.subscription_id.and_then(NonZeroU32::new),
                    };
                    let is_new =
                        self.topics
                            .subscribe(ClientKey(session), filter, sub, &mut self.changes);
                    self.record_subscription(session, filter, options, subscribe.subscription_id);
                    let wants_retained = match options.retain_handling {
                        RetainHandling::Send => true,
                        RetainHandling::SendIfNew => is_new,
                        RetainHandling::DontSend => false,
                    };
                    // [MQTT5-3.3.1-9] to [MQTT5-3.3.1-11]; section 4.8.2: none for shared subscriptions
                    if wants_retained && !filter.is_shared() {
                        retained.push((filter, sub));
                    }
                    codes.push(options.qos.bits());
                }
            }
        }
        self.spread_interest();
        if let Some(events) = &self.events {
            let granted = |((filter, _), code): ((&str, SubscribeOptions), &u8)| {
                (*code < 0x80).then(|| filter.into())
            };
            events.push(Event::Subscribed {
                client_id: self.sessions.slots[session as usize]
                    .session
                    .client_id()
                    .into(),
                filters: subscribe
                    .filters
                    .iter()
                    .zip(&codes)
                    .filter_map(granted)
                    .collect(),
            });
        }
        let key = self.acknowledge_subscription(slot, subscribe.packet_id, false, &codes);
        for (filter, sub) in retained {
            self.send_retained(slot, filter, sub, key);
        }
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
        if self.records && state.is_persistent() {
            self.ops.push(Op::Subscribed {
                client_id: state.client_id().into(),
                filter: filter.full().into(),
                options,
                subscription_id: subscription_id.unwrap_or(0),
            });
        }
    }

    /// SUBACK or UNSUBACK leaves when every shard knows, and when it is kept for a persistent session.
    fn acknowledge_subscription(
        &mut self,
        slot: u32,
        id: corqtt_codec::PacketId,
        unsubscribe: bool,
        codes: &[u8],
    ) -> Option<AckKey> {
        let session = self.wires.slots[slot as usize].session;
        let state = &mut self.sessions.slots[session as usize];
        let stored = self.records && state.session.is_persistent() && !self.ops.is_empty();
        let routed = Routed {
            owed: self.unconfirmed_interest(),
            stored,
            ..Routed::default()
        };
        let owed = routed.owed.len() as u16 + u16::from(stored);
        let out = self.wires.output(slot);
        let state = &mut self.sessions.slots[session as usize];
        let key = state
            .session
            .acknowledge_subscription(id, unsubscribe, codes, owed, out);
        if let Some(key) = key {
            let waiter = Waiter::Ack {
                session,
                generation: state.generation,
                key,
            };
            self.await_answers(&routed, waiter);
        }
        key
    }

    pub(crate) fn handle_unsubscribe(&mut self, slot: u32, unsubscribe: &Unsubscribe<'_>) {
        let session = self.wires.slots[slot as usize].session;
        // [MQTT5-3.11.3-2] a code per filter, in order
        let mut codes = Codes::new();
        for filter in unsubscribe.filters.iter() {
            let Ok(filter) = TopicFilter::parse(filter) else {
                codes.push(ReasonCode::TOPIC_FILTER_INVALID.0);
                continue;
            };
            let existed = self
                .topics
                .unsubscribe(ClientKey(session), filter, &mut self.changes);
            if !filter.is_shared() {
                self.stop_retained(slot, filter.filter());
            }
            let state = &self.sessions.slots[session as usize].session;
            if existed && self.records && state.is_persistent() {
                self.ops.push(Op::Unsubscribed {
                    client_id: state.client_id().into(),
                    filter: filter.full().into(),
                });
            }
            let code = if existed {
                ReasonCode::SUCCESS
            } else {
                ReasonCode::NO_SUBSCRIPTION_EXISTED
            };
            codes.push(code.0);
        }
        self.spread_interest();
        if let Some(events) = &self.events {
            events.push(Event::Unsubscribed {
                client_id: self.sessions.slots[session as usize]
                    .session
                    .client_id()
                    .into(),
                filters: unsubscribe.filters.iter().map(Into::into).collect(),
            });
        }
        self.acknowledge_subscription(slot, unsubscribe.packet_id, true, &codes);
    }
}

/// The granted QoS is also the reason code `[MQTT-3.9.3-2]`.
const _: () = assert!(QoS::ExactlyOnce.bits() == ReasonCode::GRANTED_QOS_2.0);
