// SPDX-License-Identifier: Apache-2.0
//! What each packet of a client does.

use bytes::Bytes;
use corqtt_codec::{
    Disconnect, Frame, MessageRef, Packet, PacketId, Payload, Publish, QoS, ReasonCode, TopicName,
    decode, decode_ack, decode_publish, encode,
};
use corqtt_port::auth::{Answer, Verdict, Wish};
use corqtt_port::events::Event;
use corqtt_port::store::{Op, Owed};
use corqtt_session::{Inbound, PublishTopic, Receipt, SHARED_PAYLOAD_BYTES_MIN};
use corqtt_topics::{ClientKey, Publisher};

use crate::background::Next;
use crate::connect::Pending;
use crate::keeping::Forward;
use crate::lanes::Waiter;
use crate::limits::Limited;
use crate::router::{REFUSED, Routed, Source};
use crate::shard::Shard;
use crate::wills::Wills;
use crate::wires::{Close, Stage, Why};

const CONNECT: u8 = 1;
const CONNACK: u8 = 2;
const PUBLISH: u8 = 3;
const PUBACK: u8 = 4;
const PUBREC: u8 = 5;
const PUBREL: u8 = 6;
const PUBCOMP: u8 = 7;
const SUBACK: u8 = 9;
const UNSUBACK: u8 = 11;
const PINGRESP: u8 = 13;

impl Shard {
    /// A whole packet. `rest` are the bytes that begin with it, `size` its own; `whole` is the buffer of a large one.
    #[inline]
    pub(crate) fn handle_packet(
        &mut self,
        slot: u32,
        frame: Frame<'_>,
        rest: &[u8],
        size: usize,
        whole: Option<&Bytes>,
    ) {
        let connection = &self.wires.slots[slot as usize];
        let version = connection.version;
        match connection.stage {
            Stage::Live => {}
            Stage::Opening => return self.handle_connect(slot, frame, size, rest),
            Stage::Connecting => return self.handle_exchange(slot, frame),
            Stage::Free | Stage::Lingering => return,
        }
        match frame.packet_type() {
            PUBLISH => match decode_publish(frame, version) {
                Ok(publish) => self.handle_publish(slot, &publish, &rest[..size], whole),
                Err(error) => self.malformed(slot, error),
            },
            kind @ (PUBACK | PUBREC | PUBREL | PUBCOMP) => match decode_ack(frame, version) {
                Ok(ack) => self.handle_ack(slot, kind, ack.packet_id, ack.reason),
                Err(error) => self.malformed(slot, error),
            },
            // [MQTT-3.1.0-2] [MQTT5-3.1.0-2] [MQTT5-3.2.0-2] a second CONNECT, whatever is in it
            CONNECT => self.violation(slot, ReasonCode::PROTOCOL_ERROR, "a second CONNECT"),
            // whatever is in it
            CONNACK | SUBACK | UNSUBACK | PINGRESP if frame.flags() == 0 => self.violation(
                slot,
                ReasonCode::PROTOCOL_ERROR,
                "a packet that only a server sends",
            ),
            _ => match decode(frame, version) {
                Ok(packet) => self.handle_other(slot, packet),
                Err(error) => self.malformed(slot, error),
            },
        }
    }

    fn handle_other(&mut self, slot: u32, packet: Packet<'_>) {
        match packet {
            Packet::Subscribe(subscribe) => self.handle_subscribe(slot, &subscribe),
            Packet::Unsubscribe(unsubscribe) => self.handle_unsubscribe(slot, &unsubscribe),
            Packet::PingReq => {
                // [MQTT-3.12.4-1] [MQTT5-3.12.4-1]
                let version = self.wires.slots[slot as usize].version;
                encode(
                    &Packet::PingResp,
                    version,
                    self.wires.output(slot).bytes_mut(),
                );
            }
            Packet::Disconnect(disconnect) => self.handle_disconnect(slot, &disconnect),
            Packet::Auth(auth) => self.handle_auth(slot, &auth),
            _ => self.violation(
                slot,
                ReasonCode::PROTOCOL_ERROR,
                "a packet that only a server sends",
            ),
        }
    }

    /// The client broke a rule: DISCONNECT with the reason in 5.0, then the connection closes
    /// `[MQTT-4.8.0-1] [MQTT5-4.13.1-1]`.
    pub(crate) fn violation(&mut self, slot: u32, reason: ReasonCode, what: &'static str) {
        self.close_soon(
            slot,
            Close {
                reason: Some(reason),
                why: Why::Broker(what),
                keep_will: true,
            },
        );
    }

    fn handle_publish(
        &mut self,
        slot: u32,
        publish: &Publish<'_>,
        raw: &[u8],
        whole: Option<&Bytes>,
    ) {
        self.counters.messages_received += 1;
        self.meter.messages_received_by_qos[usize::from(publish.qos as u8)] += 1;
        let capabilities = &self.config.capabilities;
        if publish.qos > capabilities.maximum_qos {
            // [MQTT5-3.2.2-11]
            return self.violation(
                slot,
                ReasonCode::QOS_NOT_SUPPORTED,
                "a QoS above maximum-qos",
            );
        }
        if publish.properties.subscription_ids().next().is_some() {
            // [MQTT5-3.3.4-6]
            let what = "a PUBLISH with a subscription identifier";
            return self.violation(slot, ReasonCode::PROTOCOL_ERROR, what);
        }
        if publish.retain && !capabilities.retain {
            // [MQTT5-3.2.2-14]
            return self.violation(
                slot,
                ReasonCode::RETAIN_NOT_SUPPORTED,
                "RETAIN while retain-available is off",
            );
        }
        let session = self.wires.slots[slot as usize].session;
        let inbound = self.sessions.slots[session as usize]
            .session
            .handle_publish(publish, &self.config.session);
        let topic = match inbound {
            Ok(Inbound::Route(topic)) => topic,
            Ok(Inbound::Repeat) => {
                if let Some(id) = publish.packet_id {
                    let out = self.wires.output(slot);
                    self.sessions.slots[session as usize]
                        .session
                        .acknowledge_repeat(id, out);
                }
                return;
            }
            Err(violation) => {
                match violation.reason {
                    ReasonCode::QUOTA_EXCEEDED => self.limited_client(Limited::AliasBytes, slot),
                    ReasonCode::RECEIVE_MAXIMUM_EXCEEDED => {
                        self.limited_client(Limited::ReceiveMaximum, slot)
                    }
                    _ => {}
                }
                return self.violation(slot, violation.reason, violation.text);
            }
        };
        if self.checks_publish {
            return self.ask_publish(slot, publish, &topic, raw, whole);
        }
        self.accept_publish(slot, publish, topic.name(), whole);
    }

    fn ask_publish(
        &mut self,
        slot: u32,
        publish: &Publish<'_>,
        topic: &PublishTopic<'_>,
        raw: &[u8],
        whole: Option<&Bytes>,
    ) {
        let question = self.question(slot, Wish::Publish(topic.name().as_str().into()));
        match self.auth.ask(question) {
            Some(verdict) => self.publish_verdict(slot, publish, topic.name(), whole, &verdict),
            None => {
                let packet = whole.map_or_else(|| Bytes::copy_from_slice(raw), Bytes::clone);
                let connection = &mut self.wires.slots[slot as usize];
                connection.asking = true;
                connection.pending = Some(Box::new(Pending::Publish {
                    packet,
                    topic: topic.name().as_str().into(),
                }));
            }
        }
    }

    fn publish_verdict(
        &mut self,
        slot: u32,
        publish: &Publish<'_>,
        topic: TopicName<'_>,
        whole: Option<&Bytes>,
        verdict: &Verdict,
    ) {
        match verdict {
            Verdict::Deny(reason) => self.refuse_publish(slot, publish, *reason),
            _ => self.accept_publish(slot, publish, topic, whole),
        }
    }

    /// The message is dropped. Before 5.0 the client cannot be told, and is acknowledged as if it were not
    /// `[MQTT-3.3.5-2]`; in 5.0 the reason is one of PUBACK and PUBREC `[MQTT5-3.4.2-1] [MQTT5-3.5.2-1]`.
    fn refuse_publish(&mut self, slot: u32, publish: &Publish<'_>, reason: ReasonCode) {
        let connection = &self.wires.slots[slot as usize];
        let session = connection.session;
        let reason = if connection.version.is_v5() {
            reason
        } else {
            ReasonCode::SUCCESS
        };
        if log::log_enabled!(log::Level::Info) {
            let client = self.sessions.slots[session as usize].session.client_id();
            let topic = publish.topic.map_or("", TopicName::as_str);
            log::info!(client = client, topic = topic, reason:% = reason; "publish refused");
        }
        let out = self.wires.output(slot);
        let state = &mut self.sessions.slots[session as usize].session;
        state.acknowledge(publish.qos, publish.packet_id, reason, 0, out);
    }

    fn accept_publish(
        &mut self,
        slot: u32,
        publish: &Publish<'_>,
        topic: TopicName<'_>,
        whole: Option<&Bytes>,
    ) {
        let name = topic.as_str();
        if corqtt_topics::is_system(name) {
            return self.refuse_publish(slot, publish, ReasonCode::NOT_AUTHORIZED);
        }
        let levels_max = self.config.limits.topic_levels_max;
        // a topic has at most one level more than it has bytes
        if levels_max > 0 && name.len() >= levels_max && topic.level_count() > levels_max {
            self.limited_client(Limited::TopicLevels, slot);
            return self.violation(
                slot,
                ReasonCode::TOPIC_NAME_INVALID,
                "a topic with too many levels",
            );
        }
        let properties = publish.properties.forwarded();
        let large = whole
            .filter(|_| publish.payload.len() >= SHARED_PAYLOAD_BYTES_MIN)
            .map(|whole| whole.slice_ref(publish.payload));
        let expiry_max = self.config.capabilities.message_expiry_max_secs;
        let expiry_secs = match (publish.properties.message_expiry_secs, expiry_max) {
            (None, 0) => None,
            (Some(secs), 0) => Some(secs),
            (secs, max) => Some(secs.map_or(max, |secs| secs.min(max))),
        };
        let message = MessageRef {
            topic,
            qos: publish.qos,
            retain: publish.retain,
            properties: &properties,
            expires_at_ms: expiry_secs.map(|secs| self.now.wall_ms + u64::from(secs) * 1000),
            payload: match &large {
                Some(large) => Payload::shared(large),
                None => Payload::borrowed(publish.payload),
            },
        };
        let session = self.wires.slots[slot as usize].session;
        if let Some(events) = &self.events {
            let client_id = self.sessions.slots[session as usize]
                .session
                .client_id()
                .into();
            events.push(Event::Published {
                client_id,
                message: std::sync::Arc::new(message.to_message()),
            });
        }
        let key = self.wires.key(slot);
        let client_id_hash = self.sessions.slots[session as usize].hash;
        let publisher = Publisher {
            client: Some(ClientKey(session)),
            client_id_hash,
            rng: 0,
        };
        let (qos, id) = (publish.qos, publish.packet_id);
        let routed = self.route(message, publisher, Source::Client(key), || Next::Nothing);
        self.acknowledge(slot, qos, id, routed);
    }

    /// The message of a PUBLISH went where it should: acknowledge it, now or when the answers are in.
    fn acknowledge(&mut self, slot: u32, qos: QoS, id: Option<PacketId>, mut routed: Routed) {
        if qos == QoS::AtMostOnce {
            return;
        }
        let connection = &self.wires.slots[slot as usize];
        let session = connection.session;
        if routed.refused && !connection.version.is_v5() {
            if let Some(receipt) = routed.receipt {
                self.keeping.close_receipt(receipt);
            }
            // [MQTT-4.8.0-2] before 5.0 there is no way to refuse but to close without an acknowledgement
            return self.violation(slot, ReasonCode::QUOTA_EXCEEDED, REFUSED);
        }
        // a QoS 2 publisher that is kept: PUBREC waits until the store has the packet id
        let is_kept = self.sessions.slots[session as usize].session.is_kept();
        let recorded = is_kept && qos == QoS::ExactlyOnce;
        routed.stored |= recorded;
        routed.strict |= recorded;
        let held = routed.held.take();
        let owed = routed.owed.len() as u16
            + held
                .as_ref()
                .map_or(0, |owed| owed.shards.count_ones() as u16)
            + u16::from(routed.stored)
            + u16::from(routed.continues);
        let out = self.wires.output(slot);
        let state = &mut self.sessions.slots[session as usize];
        let key = state
            .session
            .acknowledge(qos, id, routed.reason(), owed, out);
        self.note_news(session);
        if let Some(key) = key {
            let waiter = self.sessions.waiter(session, key);
            if let (Some(owed), Some(packet_id)) = (held, id) {
                self.hold(session, packet_id, *owed, waiter, recorded);
            }
            self.await_answers(&routed, waiter);
            if routed.continues
                && let Some(fan_out) = self.fan_outs.back_mut()
            {
                fan_out.next = Next::Release(waiter);
            }
        }
    }

    /// The record of a QoS 2 message says which shards are still to get it, and they do once that is kept.
    fn hold(
        &mut self,
        session: u32,
        packet_id: PacketId,
        owed: Owed,
        waiter: Waiter,
        recorded: bool,
    ) {
        if recorded {
            let client_id = self.sessions.slots[session as usize].client_id();
            let owed = owed.clone();
            self.keeping.push(Op::Owed {
                client_id,
                packet_id,
                owed,
            });
        }
        self.keeping.forward(Forward {
            owed,
            waiter: Some(waiter),
            recorded,
        });
    }

    #[inline]
    fn handle_ack(&mut self, slot: u32, kind: u8, id: PacketId, reason: ReasonCode) {
        let session = self.wires.slots[slot as usize].session;
        let state = &mut self.sessions.slots[session as usize].session;
        let before = state.inflight_len();
        crate::crash_point(match kind {
            PUBACK | PUBREC => "publish-sent",
            PUBREL => "pubrec-sent",
            _ => "pubcomp",
        });
        let mut waits = None;
        match kind {
            PUBACK => {
                let receipt = match state.handle_puback(id, reason, &mut self.drops) {
                    Ok(receipt) => receipt,
                    Err(broken) => return self.violation(slot, broken.reason, broken.text),
                };
                let connection = &mut self.wires.slots[slot as usize];
                connection.acked = connection.acked.saturating_add(1);
                if let Some(receipt) = receipt
                    && receipt != Receipt::default()
                {
                    self.receipt_done(receipt);
                }
            }
            PUBREC => {
                let out = self.wires.output(slot);
                if let Err(broken) = state.handle_pubrec(id, reason, out, &mut self.drops) {
                    return self.violation(slot, broken.reason, broken.text);
                }
            }
            PUBREL => {
                let out = self.wires.output(slot);
                waits = state.handle_pubrel(id, out);
            }
            _ => {
                if let Err(broken) = state.handle_pubcomp(id) {
                    return self.violation(slot, broken.reason, broken.text);
                }
                let connection = &mut self.wires.slots[slot as usize];
                connection.acked = connection.acked.saturating_add(1);
            }
        }
        self.note_news(session);
        // behind what it waits for
        if let Some(key) = waits {
            self.keeping.wait(self.sessions.waiter(session, key));
        }
        let state = &mut self.sessions.slots[session as usize].session;
        self.meter.inflight_changed(before, state.inflight_len());
        if kind != PUBREL && state.wants_pump(&self.config.session) {
            self.pump(session);
        }
        self.wake_pages(slot);
    }

    fn handle_disconnect(&mut self, slot: u32, disconnect: &Disconnect<'_>) {
        let session = self.wires.slots[slot as usize].session;
        // sections 3.14.2.1 and 3.14.2.2.5 say who sends what
        if !disconnect.reason.is_of_client_disconnect() || disconnect.server_reference.is_some() {
            let text = "a DISCONNECT that only servers send";
            return self.violation(slot, ReasonCode::PROTOCOL_ERROR, text);
        }
        if let Some(secs) = disconnect.session_expiry_secs {
            let secs = secs.min(self.config.capabilities.session_expiry_max_secs);
            let state = &mut self.sessions.slots[session as usize].session;
            if let Err(violation) = state.set_session_expiry(secs) {
                return self.violation(slot, violation.reason, violation.text);
            }
            let version = state.version();
            self.keep_terms(session, version, secs, false);
        }
        // [MQTT-3.1.2-10] [MQTT5-3.1.2-10] [MQTT-3.14.4-3] [MQTT5-3.14.4-3]
        let keep_will = disconnect.reason != ReasonCode::NORMAL_DISCONNECTION;
        // [MQTT-3.14.4-1] [MQTT5-3.14.4-2] [MQTT5-4.13.2-1]
        self.close_soon(
            slot,
            Close {
                reason: None,
                why: Why::Client("DISCONNECT"),
                keep_will,
            },
        );
    }

    /// Auth answered late: the connection goes on where it stopped.
    pub(crate) fn handle_verdict(&mut self, answer: Answer) {
        if Wills::is_key(answer.connection) {
            return self.will_answered(&answer);
        }
        let Some(slot) = self.wires.find(answer.connection) else {
            return;
        };
        let connection = &mut self.wires.slots[slot as usize];
        if connection.stage == Stage::Lingering || connection.closing || !connection.asking {
            return;
        }
        let Some(pending) = connection.pending.take() else {
            return;
        };
        connection.asking = false;
        match *pending {
            Pending::Connect { packet, assigned } => {
                self.connect_answered(slot, &packet, assigned, answer.verdict)
            }
            Pending::Auth => self.auth_verdict(slot, &answer.verdict),
            Pending::Subscribe(under_way) => {
                self.continue_subscribing(slot, under_way, Some(&answer.verdict))
            }
            Pending::Publish { packet, topic } => {
                self.publish_answered(slot, &packet, &topic, &answer.verdict)
            }
            other @ (Pending::Open(_) | Pending::Claim(_)) => {
                // that one waits for somebody else
                connection.pending = Some(Box::new(other));
                connection.asking = true;
            }
        }
        if self.wires.find(answer.connection).is_some()
            && self.wires.slots[slot as usize].stage != Stage::Lingering
        {
            self.make_ready(slot);
        }
    }

    fn publish_answered(&mut self, slot: u32, packet: &Bytes, topic: &str, verdict: &Verdict) {
        let version = self.wires.slots[slot as usize].version;
        let Ok(Some((frame, _))) = corqtt_codec::frame(packet, u32::MAX) else {
            return;
        };
        let Ok(publish) = decode_publish(frame, version) else {
            return;
        };
        self.publish_verdict(
            slot,
            &publish,
            TopicName::trusted(topic),
            Some(packet),
            verdict,
        );
    }
}
