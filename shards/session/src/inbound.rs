// SPDX-License-Identifier: Apache-2.0
//! Client to broker: PUBLISH with aliases and Receive Maximum, QoS 2 exchanges, and acknowledgements in order.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use corqtt_codec::{
    Packet, PacketId, Publish, QoS, ReasonCode, SubAck, TopicName, UserProperties, encode,
    encode_ack,
};

use crate::alias::InboundAliases;
use crate::{Limits, Output, Session};

const PUBACK: u8 = 4;
const PUBREC: u8 = 5;
const PUBCOMP: u8 = 7;
/// Stands for UNSUBACK too.
const SUBACK: u8 = 9;

/// The client broke a rule: its connection ends, with this reason where its version has reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// For DISCONNECT.
    pub reason: ReasonCode,
    /// For the log: what the client did.
    pub text: &'static str,
}

impl Violation {
    /// A rule that was broken.
    #[must_use]
    pub const fn new(reason: ReasonCode, text: &'static str) -> Self {
        Self { reason, text }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the client sent {} ({})", self.text, self.reason)
    }
}

impl std::error::Error for Violation {}

/// A topic, from the packet or from an alias.
#[derive(Clone, Debug)]
pub enum PublishTopic<'a> {
    /// Named in the packet.
    Named(TopicName<'a>),
    /// Behind an alias.
    Aliased(Arc<str>),
}

impl PublishTopic<'_> {
    /// The topic name.
    #[inline]
    #[must_use]
    pub fn name(&self) -> TopicName<'_> {
        match self {
            Self::Named(name) => *name,
            Self::Aliased(name) => TopicName::trusted(name),
        }
    }
}

/// What to do with a PUBLISH.
#[derive(Clone, Debug)]
pub enum Inbound<'a> {
    /// Route it, then call [`Session::acknowledge`].
    Route(PublishTopic<'a>),
    /// A repeat of a QoS 2 message that is known `[MQTT-4.3.3-2] [MQTT5-4.3.3-10]`: nothing to route, call
    /// [`Session::acknowledge_repeat`].
    Repeat,
}

/// A QoS 2 message of the client between PUBLISH and PUBREL.
#[derive(Debug)]
pub(crate) struct Received {
    /// Counts against our Receive Maximum on this connection.
    pub(crate) counted: bool,
}

/// Names an acknowledgement that waits; valid while its session lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AckKey {
    sequence: u32,
    subscription: bool,
}

/// Acknowledgements in the order in which their packets came, per connection; those of SUBSCRIBE and UNSUBSCRIBE
/// keep an order of their own. One leaves when its answers are in and all before it have left.
#[derive(Debug, Default)]
pub struct AckRing {
    publishes: VecDeque<Waiting<PublishAck>>,
    first: u32,
    subscriptions: Option<Box<SubscriptionAcks>>,
}

#[derive(Debug, Default)]
struct SubscriptionAcks {
    waiting: VecDeque<Waiting<SubscriptionAck>>,
    first: u32,
}

#[derive(Debug)]
struct Waiting<T> {
    /// Answers that are still to come.
    owed: u16,
    /// Its connection is gone: nothing is sent.
    muted: bool,
    ack: T,
}

#[derive(Clone, Copy, Debug)]
struct PublishAck {
    packet_type: u8,
    id: PacketId,
    reason: ReasonCode,
    /// It ends an exchange that counts against our Receive Maximum.
    counts: bool,
}

#[derive(Debug)]
struct SubscriptionAck {
    id: PacketId,
    unsubscribe: bool,
    codes: Box<[u8]>,
}

impl AckRing {
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.publishes.len()
            + self
                .subscriptions
                .as_ref()
                .map_or(0, |acks| acks.waiting.len())
    }

    pub(crate) fn mute(&mut self) {
        for waiting in &mut self.publishes {
            waiting.muted = true;
        }
        if let Some(acks) = &mut self.subscriptions {
            for waiting in &mut acks.waiting {
                waiting.muted = true;
            }
        }
    }
}

impl Session {
    /// PUBLISH from the client: aliases, QoS 2 repeats, flow control. Does not acknowledge.
    ///
    /// # Errors
    /// A rule was broken; the connection is to be closed.
    #[inline]
    pub fn handle_publish<'a>(
        &mut self,
        publish: &Publish<'a>,
        limits: &Limits,
    ) -> Result<Inbound<'a>, Violation> {
        let topic = match (publish.topic, publish.properties.topic_alias) {
            (Some(name), None) => PublishTopic::Named(name),
            (name, alias) => self.resolve_alias(name, alias, limits)?,
        };
        let Some(id) = publish.packet_id else {
            return Ok(Inbound::Route(topic));
        };
        // [MQTT5-3.3.4-7] A client that counts as section 4.9 says takes a PUBCOMP for the PUBREL of an earlier connection
        // for a place: it gets that much more, but no more than twice our Receive Maximum.
        let maximum = limits.receive_maximum;
        let places = maximum.saturating_add(self.received_credit.min(maximum));
        let full = self.received_unacked >= places && self.version.is_v5();
        // [MQTT-4.3.2-2] [MQTT5-4.3.2-5] ids of QoS 1 are not remembered, and DUP is not looked at
        let mut inbound = Inbound::Route(topic);
        if publish.qos == QoS::ExactlyOnce
            && let Some(received) = self.inbound.get_mut(id)
        {
            // [MQTT-4.3.3-2] [MQTT5-4.3.3-10] the same id again is the same message until PUBREL
            inbound = Inbound::Repeat;
            if received.counted {
                return Ok(inbound);
            }
            received.counted = true;
        }
        if full {
            return Err(RECEIVE_MAXIMUM);
        }
        self.received_unacked = self.received_unacked.saturating_add(1);
        Ok(inbound)
    }

    fn resolve_alias<'a>(
        &mut self,
        name: Option<TopicName<'a>>,
        alias: Option<u16>,
        limits: &Limits,
    ) -> Result<PublishTopic<'a>, Violation> {
        let Some(alias) = alias else {
            return Err(Violation::new(
                ReasonCode::PROTOCOL_ERROR,
                "a PUBLISH without topic and alias",
            ));
        };
        // [MQTT5-3.2.2-17] [MQTT5-3.2.2-18] [MQTT5-3.3.2-9] [MQTT5-3.3.2-12]
        if alias == 0 || alias > limits.topic_alias_maximum {
            return Err(Violation::new(
                ReasonCode::TOPIC_ALIAS_INVALID,
                "a topic alias that is 0 or above the maximum",
            ));
        }
        let aliases = self
            .inbound_aliases
            .get_or_insert_with(Box::<InboundAliases>::default);
        match name {
            Some(name) => {
                aliases.set(alias, name.as_str(), limits.alias_bytes_max)?;
                Ok(PublishTopic::Named(name))
            }
            None => match aliases.topic(alias) {
                Some(topic) => Ok(PublishTopic::Aliased(topic.clone())),
                // section 3.3.2.3.4: the receiver has no mapping
                None => Err(Violation::new(
                    ReasonCode::PROTOCOL_ERROR,
                    "a topic alias that was never set",
                )),
            },
        }
    }

    /// The PUBLISH with this id was routed: PUBACK or PUBREC leaves once `owed` answers came ([`Session::release`])
    /// `[MQTT-4.3.2-2] [MQTT5-4.3.2-4] [MQTT5-4.3.3-8]`.
    /// `None` if it left at once or QoS is 0.
    #[inline]
    pub fn acknowledge(
        &mut self,
        qos: QoS,
        id: Option<PacketId>,
        reason: ReasonCode,
        owed: u16,
        out: &mut Output,
    ) -> Option<AckKey> {
        // [MQTT-3.3.4-1] [MQTT5-3.3.4-1]
        let id = id?;
        let packet_type = if qos == QoS::ExactlyOnce {
            // an error ends the exchange [MQTT5-4.3.3-9]; before 5.0 there is none to send and PUBREL will come.
            // Nothing else ends it before PUBREL, the message's expiry neither [MQTT5-4.3.3-13]
            if !(reason.is_error() && self.version.is_v5()) {
                self.inbound.push(id, Received { counted: true });
                if let Some(journal) = self.journal() {
                    journal.received(id);
                }
            }
            PUBREC
        } else {
            PUBACK
        };
        self.push_ack(
            PublishAck {
                packet_type,
                id,
                reason,
                counts: packet_type == PUBACK,
            },
            owed,
            out,
        )
    }

    /// A repeated QoS 2 PUBLISH: PUBREC again, behind the first one if that still waits.
    pub fn acknowledge_repeat(&mut self, id: PacketId, out: &mut Output) {
        self.push_ack(
            PublishAck {
                packet_type: PUBREC,
                id,
                reason: ReasonCode::SUCCESS,
                counts: false,
            },
            0,
            out,
        );
    }

    /// PUBREL: the client's packet id is free again; PUBCOMP follows, also for an id that is not known
    /// `[MQTT-4.3.3-2] [MQTT5-4.3.3-11] [MQTT5-4.3.3-12]`. Where a store keeps the session PUBCOMP waits until it has
    /// that: one answer is owed to the key that is returned.
    #[inline]
    pub fn handle_pubrel(&mut self, id: PacketId, out: &mut Output) -> Option<AckKey> {
        let mut owed = 0;
        let (reason, counts) = match self.inbound.remove(id) {
            Some(received) => {
                if let Some(journal) = self.journal() {
                    journal.freed(id);
                    owed = 1;
                }
                (ReasonCode::SUCCESS, received.counted)
            }
            // [MQTT5-3.7.2-1]
            None => (ReasonCode::PACKET_IDENTIFIER_NOT_FOUND, false),
        };
        self.push_ack(
            PublishAck {
                packet_type: PUBCOMP,
                id,
                reason,
                counts,
            },
            owed,
            out,
        )
    }

    #[inline]
    fn push_ack(&mut self, ack: PublishAck, owed: u16, out: &mut Output) -> Option<AckKey> {
        // [MQTT-4.6.0-2] [MQTT-4.6.0-3] [MQTT5-4.6.0-2] [MQTT5-4.6.0-3] not before those that wait
        if owed == 0 && self.acks.publishes.is_empty() {
            self.write_ack(ack, out);
            return None;
        }
        let sequence = self
            .acks
            .first
            .wrapping_add(self.acks.publishes.len() as u32);
        self.acks.publishes.push_back(Waiting {
            owed,
            muted: false,
            ack,
        });
        (owed > 0).then_some(AckKey {
            sequence,
            subscription: false,
        })
    }

    #[inline]
    fn write_ack(&mut self, ack: PublishAck, out: &mut Output) {
        // section 4.9 of 5.0: until PUBACK, PUBCOMP, or a PUBREC with an error
        let is_refusal = ack.packet_type == PUBREC && ack.reason.is_error() && self.version.is_v5();
        if ack.counts || is_refusal {
            self.received_unacked = self.received_unacked.saturating_sub(1);
        } else if ack.packet_type == PUBCOMP {
            self.received_credit = self.received_credit.saturating_add(1);
        }
        // [MQTT-2.3.1-6] [MQTT5-2.2.1-5] with the id of the packet it answers; without properties, so that none makes it
        // too large
        encode_ack(
            ack.packet_type,
            ack.id,
            ack.reason,
            self.version,
            out.bytes_mut(),
        );
    }

    /// SUBACK or UNSUBACK leaves once `owed` answers came. `codes`: a reason code per filter.
    pub fn acknowledge_subscription(
        &mut self,
        id: PacketId,
        unsubscribe: bool,
        codes: &[u8],
        owed: u16,
        out: &mut Output,
    ) -> Option<AckKey> {
        let idle = self
            .acks
            .subscriptions
            .as_ref()
            .is_none_or(|acks| acks.waiting.is_empty());
        if owed == 0 && idle {
            write_suback(id, unsubscribe, codes, self.version, out);
            return None;
        }
        let acks = self.acks.subscriptions.get_or_insert_with(Box::default);
        let sequence = acks.first.wrapping_add(acks.waiting.len() as u32);
        let ack = SubscriptionAck {
            id,
            unsubscribe,
            codes: codes.into(),
        };
        acks.waiting.push_back(Waiting {
            owed,
            muted: false,
            ack,
        });
        (owed > 0).then_some(AckKey {
            sequence,
            subscription: true,
        })
    }

    /// Packet type of an acknowledgement that waits.
    #[must_use]
    pub fn awaited(&self, key: AckKey) -> Option<u8> {
        if key.subscription {
            return Some(SUBACK);
        }
        let index = key.sequence.wrapping_sub(self.acks.first) as usize;
        let waiting = self.acks.publishes.get(index)?;
        Some(waiting.ack.packet_type)
    }

    /// The acknowledgement has left, or its connection is gone.
    #[must_use]
    pub fn has_left(&self, key: AckKey) -> bool {
        let first = match (&self.acks.subscriptions, key.subscription) {
            (Some(acks), true) => acks.first,
            (None, true) => return true,
            (_, false) => self.acks.first,
        };
        // sequence numbers wrap; fewer than half of them are ever waiting
        (key.sequence.wrapping_sub(first) as i32) < 0
    }

    /// Answers that a SUBACK or UNSUBACK waits for; 0 once it may leave.
    #[must_use]
    pub fn answers_owed(&self, key: AckKey) -> u16 {
        let waiting = self.acks.subscriptions.as_ref().and_then(|acks| {
            let index = key.sequence.wrapping_sub(acks.first) as usize;
            acks.waiting.get(index)
        });
        waiting.map_or(0, |waiting| waiting.owed)
    }

    /// An answer came for a waiting acknowledgement; `error` replaces its reason. What may leave now is written to
    /// `out`. Keys of acknowledgements that left are ignored.
    pub fn release(
        &mut self,
        key: AckKey,
        error: Option<ReasonCode>,
        mut out: Option<&mut Output>,
    ) {
        if key.subscription {
            let Some(acks) = &mut self.acks.subscriptions else {
                return;
            };
            let index = key.sequence.wrapping_sub(acks.first) as usize;
            let Some(waiting) = acks.waiting.get_mut(index) else {
                return;
            };
            waiting.owed = waiting.owed.saturating_sub(1);
            while acks
                .waiting
                .front()
                .is_some_and(|waiting| waiting.owed == 0)
            {
                let Some(done) = acks.waiting.pop_front() else {
                    break;
                };
                acks.first = acks.first.wrapping_add(1);
                if !done.muted
                    && let Some(out) = out.as_deref_mut()
                {
                    write_suback(
                        done.ack.id,
                        done.ack.unsubscribe,
                        &done.ack.codes,
                        self.version,
                        out,
                    );
                }
            }
            return;
        }
        let index = key.sequence.wrapping_sub(self.acks.first) as usize;
        let Some(waiting) = self.acks.publishes.get_mut(index) else {
            return;
        };
        waiting.owed = waiting.owed.saturating_sub(1);
        if let Some(error) = error {
            waiting.ack.reason = error;
            if waiting.ack.packet_type == PUBREC {
                let id = waiting.ack.id;
                let was_known = self.inbound.remove(id).is_some();
                // what the client sent again meanwhile was taken for a repeat of the refused one
                for later in self.acks.publishes.range_mut(index + 1..) {
                    if later.ack.packet_type == PUBREC && later.ack.id == id {
                        later.ack.reason = error;
                    }
                }
                if was_known && let Some(journal) = self.journal() {
                    journal.freed(id);
                }
            }
        }
        while self
            .acks
            .publishes
            .front()
            .is_some_and(|waiting| waiting.owed == 0)
        {
            let Some(done) = self.acks.publishes.pop_front() else {
                break;
            };
            self.acks.first = self.acks.first.wrapping_add(1);
            if !done.muted
                && let Some(out) = out.as_deref_mut()
            {
                self.write_ack(done.ack, out);
            }
        }
        if self.acks.publishes.is_empty() && self.acks.publishes.capacity() > 256 {
            self.acks.publishes.shrink_to(0);
        }
    }
}

const RECEIVE_MAXIMUM: Violation = Violation::new(
    ReasonCode::RECEIVE_MAXIMUM_EXCEEDED,
    "more unacknowledged messages than our Receive Maximum",
);

fn write_suback(
    id: PacketId,
    unsubscribe: bool,
    codes: &[u8],
    version: corqtt_codec::Version,
    out: &mut Output,
) {
    let ack = SubAck {
        // [MQTT-2.3.1-7] [MQTT-3.8.4-2] [MQTT-3.10.4-4] [MQTT5-2.2.1-6] [MQTT5-3.8.4-2] [MQTT5-3.10.4-5]
        packet_id: id,
        // [MQTT5-3.9.2-1] [MQTT5-3.11.2-1] none is sent, so that none makes it too large
        reason_string: None,
        // [MQTT5-3.9.2-2] [MQTT5-3.11.2-2]
        user_properties: UserProperties::EMPTY,
        codes,
    };
    let packet = if unsubscribe {
        Packet::UnsubAck(ack)
    } else {
        Packet::SubAck(ack)
    };
    encode(&packet, version, out.bytes_mut());
}
