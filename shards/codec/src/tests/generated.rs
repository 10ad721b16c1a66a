// SPDX-License-Identifier: Apache-2.0
//! Packets made at random from the model, encoded and decoded again.

use std::num::NonZeroU16;

use crate::{
    Ack, Auth, ConnAck, ConnAckProperties, Connect, Disconnect, Packet, PacketId, PropertiesBuf,
    Publish, PublishProperties, QoS, ReasonCode, RetainHandling, SubAck, Subscribe,
    SubscribeFiltersBuf, SubscribeOptions, TopicName, Unsubscribe, UnsubscribeFiltersBuf,
    UserProperties, Version, Will, decode, encode, frame,
};

/// A small generator (xorshift64*): the tests are the same in every run.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.next() as usize % bound
    }

    pub(super) fn byte(&mut self) -> u8 {
        self.next() as u8
    }

    fn bool(&mut self) -> bool {
        self.below(2) == 0
    }

    fn u16(&mut self) -> u16 {
        self.next() as u16
    }

    fn u32(&mut self) -> u32 {
        self.next() as u32
    }

    fn non_zero(&mut self) -> NonZeroU16 {
        NonZeroU16::new(self.u16()).unwrap_or(NonZeroU16::MIN)
    }

    fn option<T>(&mut self, value: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.bool().then(|| value(self))
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    // Packets borrow; the few that a test makes may stay until it ends.
    fn text(&mut self) -> &'static str {
        let chars = [
            'a',
            'b',
            '/',
            ' ',
            '$',
            'ä',
            '€',
            '\u{10ffff}',
            '\u{feff}',
            '\u{1}',
        ];
        let length = self.length();
        (0..length)
            .map(|_| self.pick(&chars))
            .collect::<String>()
            .leak()
    }

    fn bytes(&mut self) -> &'static [u8] {
        let length = self.length();
        (0..length).map(|_| self.byte()).collect::<Vec<_>>().leak()
    }

    /// Short as a rule, around the steps of Variable Byte Integers now and then.
    fn length(&mut self) -> usize {
        match self.below(40) {
            0 => 120 + self.below(12),
            1 => 16_000 + self.below(500),
            _ => self.below(12),
        }
    }

    fn topic(&mut self) -> TopicName<'static> {
        let text = self.text();
        TopicName::trusted(if text.is_empty() { "t" } else { text })
    }

    fn qos(&mut self) -> QoS {
        self.pick(&[QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce])
    }

    fn packet_id(&mut self) -> PacketId {
        PacketId(self.non_zero())
    }

    fn user_properties(&mut self, version: Version) -> UserProperties<'static> {
        if !version.is_v5() {
            return UserProperties::EMPTY;
        }
        let mut block = PropertiesBuf::new();
        for _ in 0..self.below(3) {
            block.user_property(self.text(), self.text()).unwrap();
        }
        Box::leak(Box::new(block)).user_properties()
    }

    fn publish_properties(&mut self, version: Version, will: bool) -> PublishProperties<'static> {
        let mut block = PropertiesBuf::new();
        if !version.is_v5() {
            return PublishProperties::EMPTY;
        }
        for _ in 0..self.below(8) {
            // one that is there already is refused, which is as well
            _ = match self.below(8) {
                0 => block.payload_is_utf8(self.bool()),
                1 => block.message_expiry_secs(self.u32()),
                2 => block.content_type(self.text()),
                3 => block.response_topic(self.topic()),
                4 => block.correlation_data(self.bytes()),
                5 if !will => block.topic_alias(self.u16()),
                6 if !will => {
                    let shift = self.below(32);
                    block.subscription_id(self.u32() >> shift)
                }
                _ => block.user_property(self.text(), self.text()),
            };
        }
        Box::leak(Box::new(block)).publish_properties()
    }

    fn ack(&mut self, version: Version, reasons: &[u8]) -> Ack<'static> {
        let v5 = version.is_v5();
        Ack {
            packet_id: self.packet_id(),
            reason: if v5 {
                ReasonCode(self.pick(reasons))
            } else {
                ReasonCode::SUCCESS
            },
            reason_string: self.option(Self::text).filter(|_| v5),
            user_properties: self.user_properties(version),
        }
    }

    fn suback(&mut self, version: Version, codes: &[u8]) -> SubAck<'static> {
        let count = 1 + self.below(4);
        let codes: Vec<u8> = (0..count).map(|_| self.pick(codes)).collect();
        SubAck {
            packet_id: self.packet_id(),
            reason_string: self.option(Self::text).filter(|_| version.is_v5()),
            user_properties: self.user_properties(version),
            codes: codes.leak(),
        }
    }

    fn connect(&mut self, version: Version) -> Connect<'static> {
        let v5 = version.is_v5();
        let username = self.option(Self::text);
        let authentication_method = self.option(Self::text).filter(|_| v5);
        Connect {
            version,
            bridge: self.bool(),
            clean_start: self.bool(),
            keep_alive_secs: self.u16(),
            client_id: self.text(),
            will: self.option(|random| Will {
                qos: random.qos(),
                retain: random.bool(),
                topic: random.topic(),
                payload: random.bytes(),
                delay_secs: if v5 { random.u32() } else { 0 },
                properties: random.publish_properties(version, true),
            }),
            username,
            password: self
                .option(Self::bytes)
                .filter(|_| v5 || username.is_some()),
            session_expiry_secs: self.option(Self::u32).filter(|_| v5),
            receive_maximum: if v5 { self.non_zero() } else { NonZeroU16::MAX },
            maximum_packet_size: self.option(|random| random.u32().max(1)).filter(|_| v5),
            topic_alias_maximum: if v5 { self.u16() } else { 0 },
            request_response_information: v5 && self.bool(),
            request_problem_information: !v5 || self.bool(),
            authentication_method,
            authentication_data: self
                .option(Self::bytes)
                .filter(|_| authentication_method.is_some()),
            user_properties: self.user_properties(version),
        }
    }

    fn connack(&mut self, version: Version) -> ConnAck<'static> {
        let reason = match version {
            Version::V5 => self.pick(&[0, 0x80, 0x85, 0x8c, 0x97, 0x9d, 0x9f]),
            _ => self.pick(&[0, 0x84, 0x85, 0x86, 0x87, 0x88]),
        };
        let properties = if version.is_v5() {
            ConnAckProperties {
                session_expiry_secs: self.option(Self::u32),
                receive_maximum: self.option(Self::non_zero),
                maximum_qos: self.option(|r| r.pick(&[QoS::AtMostOnce, QoS::AtLeastOnce])),
                retain_available: self.option(Self::bool),
                maximum_packet_size: self.option(|random| random.u32().max(1)),
                assigned_client_id: self.option(Self::text),
                topic_alias_maximum: self.option(Self::u16),
                reason_string: self.option(Self::text),
                user_properties: self.user_properties(version),
                wildcard_subscription_available: self.option(Self::bool),
                subscription_ids_available: self.option(Self::bool),
                shared_subscription_available: self.option(Self::bool),
                server_keep_alive_secs: self.option(Self::u16),
                response_information: self.option(Self::text),
                server_reference: self.option(Self::text),
                authentication_method: self.option(Self::text),
                authentication_data: self.option(Self::bytes),
            }
        } else {
            ConnAckProperties::default()
        };
        let session_present = reason == 0 && version > Version::V31 && self.bool();
        ConnAck {
            session_present,
            reason: ReasonCode(reason),
            properties,
        }
    }

    fn publish(&mut self, version: Version) -> Publish<'static> {
        let qos = self.qos();
        let above_0 = qos != QoS::AtMostOnce;
        let properties = self.publish_properties(version, false);
        let may_be_empty = properties.topic_alias.is_some();
        Publish {
            dup: above_0 && self.bool(),
            qos,
            retain: self.bool(),
            topic: if may_be_empty && self.bool() {
                None
            } else {
                Some(self.topic())
            },
            packet_id: above_0.then(|| self.packet_id()),
            properties,
            payload: self.bytes(),
        }
    }

    fn subscribe(&mut self, version: Version) -> Subscribe<'static> {
        let v5 = version.is_v5();
        let mut filters = SubscribeFiltersBuf::new(version);
        for _ in 0..=self.below(3) {
            let handling = [
                RetainHandling::Send,
                RetainHandling::SendIfNew,
                RetainHandling::DontSend,
            ];
            let v3 = SubscribeOptions {
                qos: self.qos(),
                ..SubscribeOptions::default()
            };
            let options = SubscribeOptions {
                no_local: self.bool(),
                retain_as_published: self.bool(),
                retain_handling: self.pick(&handling),
                ..v3
            };
            filters.push(self.text(), if v5 { options } else { v3 });
        }
        Subscribe {
            packet_id: self.packet_id(),
            subscription_id: self.option(|r| 1 + r.u32() % 268_435_455).filter(|_| v5),
            user_properties: self.user_properties(version),
            filters: Box::leak(Box::new(filters)).filters(),
        }
    }

    fn unsubscribe(&mut self, version: Version) -> Unsubscribe<'static> {
        let mut filters = UnsubscribeFiltersBuf::new();
        for _ in 0..=self.below(3) {
            filters.push(self.text());
        }
        Unsubscribe {
            packet_id: self.packet_id(),
            user_properties: self.user_properties(version),
            filters: Box::leak(Box::new(filters)).filters(),
        }
    }

    fn disconnect(&mut self, version: Version) -> Disconnect<'static> {
        if !version.is_v5() {
            return Disconnect::new(ReasonCode::NORMAL_DISCONNECTION);
        }
        Disconnect {
            reason: ReasonCode(self.pick(&[0, 4, 0x81, 0x8e, 0x9c])),
            session_expiry_secs: self.option(Self::u32),
            reason_string: self.option(Self::text),
            user_properties: self.user_properties(version),
            server_reference: self.option(Self::text),
        }
    }

    fn packet(&mut self, version: Version) -> Packet<'static> {
        let received = [0, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99];
        let kinds = if version.is_v5() { 15 } else { 14 };
        match self.below(kinds) {
            0 => Packet::Connect(self.connect(version)),
            1 => Packet::ConnAck(self.connack(version)),
            2 => Packet::Publish(self.publish(version)),
            3 => Packet::PubAck(self.ack(version, &received)),
            4 => Packet::PubRec(self.ack(version, &received)),
            5 => Packet::PubRel(self.ack(version, &[0, 0x92])),
            6 => Packet::PubComp(self.ack(version, &[0, 0x92])),
            7 => Packet::Subscribe(self.subscribe(version)),
            8 => {
                let v5: &[u8] = if version.is_v5() {
                    &[0x87, 0x8f, 0xa2]
                } else {
                    &[]
                };
                Packet::SubAck(self.suback(version, &[&[0, 1, 2, 0x80], v5].concat()))
            }
            9 => Packet::Unsubscribe(self.unsubscribe(version)),
            10 => {
                let ack = self.suback(version, &[0, 0x11, 0x87]);
                let codes = if version.is_v5() { ack.codes } else { &[] };
                Packet::UnsubAck(SubAck { codes, ..ack })
            }
            11 => Packet::PingReq,
            12 => Packet::PingResp,
            13 => Packet::Disconnect(self.disconnect(version)),
            _ => Packet::Auth(Auth {
                reason: ReasonCode(self.pick(&[0, 0x18, 0x19])),
                method: Some(self.text()),
                data: self.option(Self::bytes),
                reason_string: self.option(Self::text),
                user_properties: self.user_properties(version),
            }),
        }
    }
}

#[test]
fn any_packet_decodes_to_what_was_encoded() {
    let mut random = Random::new(3);
    let mut out = Vec::new();
    for version in [Version::V31, Version::V311, Version::V5] {
        for _ in 0..3_000 {
            let packet = random.packet(version);
            out.clear();
            encode(&packet, version, &mut out);
            let (frame, total) = frame(&out, u32::MAX).unwrap().unwrap();
            assert_eq!(total, out.len());
            assert_eq!(decode(frame, version), Ok(packet));
        }
    }
}
