// SPDX-License-Identifier: Apache-2.0
//! From packets to bytes.
//!
//! The two hot paths, a PUBLISH header and an acknowledgement, know their length before they write. All others write
//! their body and put the length in front afterwards.
//!
//! Strings and binary data are at most 65,535 bytes in a packet that was decoded or built from checked parts; a longer
//! one is our bug: debug builds stop, release builds cut it, so that the peer still sees whole packets.

use std::borrow::Cow;

use crate::frame::packet_type;
use crate::properties::id;
use crate::{
    Ack, Auth, ConnAck, ConnAckProperties, Connect, Disconnect, Packet, PacketId, Publish,
    PublishProperties, QoS, ReasonCode, SubAck, Subscribe, SubscribeFilters, SubscribeOptions,
    TopicName, Unsubscribe, UnsubscribeFilters, UserProperties, Version, Will,
};

/// Appends a packet. What the version does not know is left out; CONNECT is encoded for the version that it names.
pub fn encode(packet: &Packet<'_>, version: Version, out: &mut Vec<u8>) {
    match packet {
        Packet::Connect(connect) => encode_connect(connect, out),
        Packet::ConnAck(connack) => encode_connack(connack, version, out),
        Packet::Publish(publish) => encode_publish(publish, version, out),
        Packet::PubAck(ack) => ack_packet(packet_type::PUBACK, ack, version, out),
        Packet::PubRec(ack) => ack_packet(packet_type::PUBREC, ack, version, out),
        Packet::PubRel(ack) => ack_packet(packet_type::PUBREL, ack, version, out),
        Packet::PubComp(ack) => ack_packet(packet_type::PUBCOMP, ack, version, out),
        Packet::Subscribe(subscribe) => encode_subscribe(subscribe, version, out),
        Packet::SubAck(ack) => encode_suback(ack, version, out),
        Packet::Unsubscribe(unsubscribe) => encode_unsubscribe(unsubscribe, version, out),
        Packet::UnsubAck(ack) => encode_unsuback(ack, version, out),
        Packet::PingReq => out.extend_from_slice(&[packet_type::PINGREQ << 4, 0]),
        Packet::PingResp => out.extend_from_slice(&[packet_type::PINGRESP << 4, 0]),
        Packet::Disconnect(disconnect) => encode_disconnect(disconnect, version, out),
        Packet::Auth(auth) => encode_auth(auth, version, out),
    }
}

/// A PUBLISH without its payload, which the caller writes behind it.
#[derive(Clone, Copy, Debug)]
pub struct PublishHeader<'a> {
    /// Of the receiver.
    pub version: Version,
    /// Sent before; never with QoS 0 `[MQTT-3.3.1-2] [MQTT5-3.3.1-2]`.
    pub dup: bool,
    /// Level of this transfer.
    pub qos: QoS,
    /// The RETAIN flag for this receiver.
    pub retain: bool,
    /// `None`: sent empty, the alias stands for it (5.0).
    pub topic: Option<TopicName<'a>>,
    /// There exactly when the QoS is above 0 `[MQTT-2.3.1-1] [MQTT-2.3.1-5] [MQTT5-2.2.1-2] [MQTT5-2.2.1-4]`.
    pub packet_id: Option<PacketId>,
    /// What [`PublishProperties::forwarded`] gave.
    pub properties: &'a [u8],
    /// What is left of the Message Expiry Interval `[MQTT5-3.3.2-6]`.
    pub message_expiry_secs: Option<u32>,
    /// An alias that this receiver has room for, not 0.
    pub topic_alias: Option<u16>,
    /// Of all subscriptions that matched.
    pub subscription_ids: &'a [u32],
    /// Length of the payload that follows.
    pub payload_bytes: usize,
}

impl PublishHeader<'_> {
    /// Bytes of the whole packet, payload included: what Maximum Packet Size limits `[MQTT5-3.1.2-24]`.
    #[inline]
    #[must_use]
    pub fn packet_bytes(&self) -> usize {
        let remaining = self.remaining(self.property_bytes());
        1 + varint_bytes(remaining) + remaining
    }

    /// Appends everything but the payload.
    #[inline]
    pub fn encode(&self, out: &mut Vec<u8>) {
        debug_assert_eq!(self.packet_id.is_some(), self.qos != QoS::AtMostOnce);
        debug_assert!(!self.dup || self.qos != QoS::AtMostOnce);
        let property_bytes = self.property_bytes();
        let remaining = self.remaining(property_bytes);
        let topic = self.topic.map_or("", TopicName::as_str).as_bytes();
        let first = packet_type::PUBLISH << 4
            | u8::from(self.dup) << 3
            | self.qos.bits() << 1
            | u8::from(self.retain);
        let [topic_high, topic_low] = (topic.len() as u16).to_be_bytes();

        // Pieces of a length known at compile time are plain stores; the room for all of them is made once. Five is
        // the longest fixed header, four the longest property length.
        let header_bytes = remaining.saturating_sub(self.payload_bytes) + 5;
        out.reserve(header_bytes);
        if remaining < 0x80 {
            out.extend_from_slice(&[first, remaining as u8, topic_high, topic_low]);
        } else if remaining < 0x4000 {
            let (low, high) = (remaining as u8 | 0x80, (remaining >> 7) as u8);
            out.extend_from_slice(&[first, low, high, topic_high, topic_low]);
        } else {
            out.push(first);
            put_varint(out, remaining);
            out.extend_from_slice(&[topic_high, topic_low]);
        }
        out.extend_from_slice(topic);
        if let Some(packet_id) = self.packet_id {
            out.extend_from_slice(&packet_id.value().to_be_bytes());
        }
        if self.version.is_v5() {
            // [MQTT5-2.2.2-1] the length is there even when it is 0
            put_varint(out, property_bytes);
            if property_bytes > 0 {
                self.put_properties(out);
            }
        }
    }

    #[inline]
    fn remaining(&self, property_bytes: usize) -> usize {
        let topic_bytes = self.topic.map_or(0, |topic| topic.as_str().len());
        let id_bytes = if self.packet_id.is_some() { 2 } else { 0 };
        let block_bytes = if self.version.is_v5() {
            varint_bytes(property_bytes) + property_bytes
        } else {
            0
        };
        2 + topic_bytes + id_bytes + block_bytes + self.payload_bytes
    }

    /// Bytes of the block, its length apart.
    #[inline]
    fn property_bytes(&self) -> usize {
        if !self.version.is_v5() {
            return 0;
        }
        let mut bytes = self.properties.len();
        if self.message_expiry_secs.is_some() {
            bytes += 5;
        }
        if self.topic_alias.is_some() {
            bytes += 3;
        }
        for &id in self.subscription_ids {
            bytes += 1 + varint_bytes(id as usize);
        }
        bytes
    }

    fn put_properties(&self, out: &mut Vec<u8>) {
        if let Some(alias) = self.topic_alias {
            let [high, low] = alias.to_be_bytes();
            out.extend_from_slice(&[id::TOPIC_ALIAS, high, low]);
        }
        if let Some(secs) = self.message_expiry_secs {
            put_u32(out, id::MESSAGE_EXPIRY, secs);
        }
        for &id in self.subscription_ids {
            out.push(id::SUBSCRIPTION_ID);
            put_varint(out, id as usize);
        }
        out.extend_from_slice(self.properties);
    }
}

/// Appends a PUBACK, PUBREC, PUBREL or PUBCOMP without properties; the reason is left out before 5.0.
#[inline]
pub fn encode_ack(
    packet_type: u8,
    id: PacketId,
    reason: ReasonCode,
    version: Version,
    out: &mut Vec<u8>,
) {
    let first = ack_first(packet_type);
    let [high, low] = id.value().to_be_bytes();
    if reason == ReasonCode::SUCCESS || !version.is_v5() {
        out.extend_from_slice(&[first, 2, high, low]);
    } else {
        // no reason string and no user properties, so that none makes it too large: [MQTT5-3.4.2-2] [MQTT5-3.4.2-3]
        // [MQTT5-3.5.2-2] [MQTT5-3.5.2-3] [MQTT5-3.6.2-2] [MQTT5-3.6.2-3] [MQTT5-3.7.2-2] [MQTT5-3.7.2-3]
        out.extend_from_slice(&[first, 3, high, low, reason.0]);
    }
}

/// `[MQTT-3.6.1-1] [MQTT5-3.6.1-1]`
#[inline]
const fn ack_first(packet_type: u8) -> u8 {
    let flags = if packet_type == packet_type::PUBREL {
        0b0010
    } else {
        0
    };
    packet_type << 4 | flags
}

fn ack_packet(packet_type: u8, ack: &Ack<'_>, version: Version, out: &mut Vec<u8>) {
    if !version.is_v5() || (ack.reason_string.is_none() && ack.user_properties.is_empty()) {
        encode_ack(packet_type, ack.packet_id, ack.reason, version, out);
        return;
    }
    packet(ack_first(packet_type), out, |out| {
        out.extend_from_slice(&ack.packet_id.value().to_be_bytes());
        out.push(ack.reason.0);
        put_reason_properties(out, ack.reason_string, &ack.user_properties);
    });
}

fn encode_publish(publish: &Publish<'_>, version: Version, out: &mut Vec<u8>) {
    let forwarded = publish.properties.forwarded();
    let subscription_ids: Vec<u32> = publish.properties.subscription_ids().collect();
    let header = PublishHeader {
        version,
        dup: publish.dup,
        qos: publish.qos,
        retain: publish.retain,
        topic: publish.topic,
        packet_id: publish.packet_id,
        properties: &forwarded,
        message_expiry_secs: publish.properties.message_expiry_secs,
        topic_alias: publish.properties.topic_alias,
        subscription_ids: &subscription_ids,
        payload_bytes: publish.payload.len(),
    };
    header.encode(out);
    out.extend_from_slice(publish.payload);
}

fn encode_connect(connect: &Connect<'_>, out: &mut Vec<u8>) {
    let version = connect.version;
    packet(packet_type::CONNECT << 4, out, |out| {
        let name: &[u8] = if version == Version::V31 {
            b"MQIsdp"
        } else {
            b"MQTT"
        };
        put_binary(out, name);
        out.push(version as u8 | u8::from(connect.bridge) << 7);
        let mut flags = u8::from(connect.clean_start) << 1
            | u8::from(connect.password.is_some()) << 6
            | u8::from(connect.username.is_some()) << 7;
        if let Some(will) = &connect.will {
            flags |= 1 << 2 | will.qos.bits() << 3 | u8::from(will.retain) << 5;
        }
        out.push(flags);
        out.extend_from_slice(&connect.keep_alive_secs.to_be_bytes());
        if version.is_v5() {
            length_prefixed(out, |out| put_connect_properties(out, connect));
        }
        put_binary(out, connect.client_id.as_bytes());
        if let Some(will) = &connect.will {
            put_will(out, will, version);
        }
        if let Some(username) = connect.username {
            put_binary(out, username.as_bytes());
        }
        if let Some(password) = connect.password {
            put_binary(out, password);
        }
    });
}

fn put_connect_properties(out: &mut Vec<u8>, connect: &Connect<'_>) {
    if let Some(secs) = connect.session_expiry_secs {
        put_u32(out, id::SESSION_EXPIRY, secs);
    }
    if connect.receive_maximum.get() != u16::MAX {
        put_u16(out, id::RECEIVE_MAXIMUM, connect.receive_maximum.get());
    }
    if let Some(bytes) = connect.maximum_packet_size {
        put_u32(out, id::MAXIMUM_PACKET_SIZE, bytes);
    }
    if connect.topic_alias_maximum > 0 {
        put_u16(out, id::TOPIC_ALIAS_MAXIMUM, connect.topic_alias_maximum);
    }
    if connect.request_response_information {
        out.extend_from_slice(&[id::REQUEST_RESPONSE, 1]);
    }
    if !connect.request_problem_information {
        out.extend_from_slice(&[id::REQUEST_PROBLEM, 0]);
    }
    put_text(out, id::AUTH_METHOD, connect.authentication_method);
    put_data(out, id::AUTH_DATA, connect.authentication_data);
    put_user_properties(out, &connect.user_properties);
}

fn put_will(out: &mut Vec<u8>, will: &Will<'_>, version: Version) {
    if version.is_v5() {
        length_prefixed(out, |out| {
            if will.delay_secs > 0 {
                put_u32(out, id::WILL_DELAY, will.delay_secs);
            }
            put_message_properties(out, &will.properties);
        });
    }
    put_binary(out, will.topic.as_str().as_bytes());
    put_binary(out, will.payload);
}

fn put_message_properties(out: &mut Vec<u8>, properties: &PublishProperties<'_>) {
    if let Some(secs) = properties.message_expiry_secs {
        put_u32(out, id::MESSAGE_EXPIRY, secs);
    }
    let forwarded: Cow<'_, [u8]> = properties.forwarded();
    out.extend_from_slice(&forwarded);
}

fn encode_connack(connack: &ConnAck<'_>, version: Version, out: &mut Vec<u8>) {
    // [MQTT-3.2.2-4] [MQTT5-3.2.2-6]
    debug_assert!(!connack.session_present || connack.reason == ReasonCode::SUCCESS);
    // [MQTT5-3.2.2-1] bits 7 to 1 are 0
    let present = u8::from(connack.session_present);
    packet(packet_type::CONNACK << 4, out, |out| match version {
        // the byte of the flags means nothing in 3.1
        Version::V31 => out.extend_from_slice(&[0, return_code(connack.reason)]),
        Version::V311 => out.extend_from_slice(&[present, return_code(connack.reason)]),
        Version::V5 => {
            // [MQTT5-3.2.2-8]
            let reason = or_unspecified(connack.reason, connack.reason.is_of_connack());
            out.extend_from_slice(&[present, reason]);
            length_prefixed(out, |out| put_connack_properties(out, &connack.properties));
        }
    });
}

/// The code, or 0x80 where it is none that its packet may carry.
const fn or_unspecified(reason: ReasonCode, fits: bool) -> u8 {
    if fits {
        reason.0
    } else {
        ReasonCode::UNSPECIFIED_ERROR.0
    }
}

/// The return code of 3.1 and 3.1.1 that comes closest (section 3.2.2.3 of 3.1.1).
const fn return_code(reason: ReasonCode) -> u8 {
    match reason {
        ReasonCode::SUCCESS => 0,
        ReasonCode::UNSUPPORTED_PROTOCOL_VERSION => 1,
        ReasonCode::CLIENT_IDENTIFIER_NOT_VALID => 2,
        ReasonCode::BAD_USER_NAME_OR_PASSWORD | ReasonCode::BAD_AUTHENTICATION_METHOD => 4,
        ReasonCode::NOT_AUTHORIZED | ReasonCode::BANNED => 5,
        // unavailable, busy, over a quota or a rate, or whatever 5.0 has no counterpart for
        _ => 3,
    }
}

fn put_connack_properties(out: &mut Vec<u8>, properties: &ConnAckProperties<'_>) {
    let put_bool = |out: &mut Vec<u8>, id: u8, value: Option<bool>| {
        if let Some(value) = value {
            out.extend_from_slice(&[id, u8::from(value)]);
        }
    };
    if let Some(secs) = properties.session_expiry_secs {
        put_u32(out, id::SESSION_EXPIRY, secs);
    }
    if let Some(messages) = properties.receive_maximum {
        put_u16(out, id::RECEIVE_MAXIMUM, messages.get());
    }
    // there is no value for 2: it is what the absence of the property says
    let maximum_qos = properties.maximum_qos.filter(|&qos| qos < QoS::ExactlyOnce);
    put_bool(
        out,
        id::MAXIMUM_QOS,
        maximum_qos.map(|qos| qos == QoS::AtLeastOnce),
    );
    put_bool(out, id::RETAIN_AVAILABLE, properties.retain_available);
    if let Some(bytes) = properties.maximum_packet_size {
        put_u32(out, id::MAXIMUM_PACKET_SIZE, bytes);
    }
    put_text(out, id::ASSIGNED_CLIENT_ID, properties.assigned_client_id);
    if let Some(aliases) = properties.topic_alias_maximum {
        put_u16(out, id::TOPIC_ALIAS_MAXIMUM, aliases);
    }
    put_text(out, id::REASON_STRING, properties.reason_string);
    put_bool(
        out,
        id::WILDCARD_AVAILABLE,
        properties.wildcard_subscription_available,
    );
    put_bool(
        out,
        id::SUBSCRIPTION_IDS_AVAILABLE,
        properties.subscription_ids_available,
    );
    put_bool(
        out,
        id::SHARED_AVAILABLE,
        properties.shared_subscription_available,
    );
    if let Some(secs) = properties.server_keep_alive_secs {
        put_u16(out, id::SERVER_KEEP_ALIVE, secs);
    }
    put_text(
        out,
        id::RESPONSE_INFORMATION,
        properties.response_information,
    );
    put_text(out, id::SERVER_REFERENCE, properties.server_reference);
    put_text(out, id::AUTH_METHOD, properties.authentication_method);
    put_data(out, id::AUTH_DATA, properties.authentication_data);
    put_user_properties(out, &properties.user_properties);
}

fn encode_subscribe(subscribe: &Subscribe<'_>, version: Version, out: &mut Vec<u8>) {
    packet(packet_type::SUBSCRIBE << 4 | 0b0010, out, |out| {
        out.extend_from_slice(&subscribe.packet_id.value().to_be_bytes());
        if version.is_v5() {
            length_prefixed(out, |out| {
                if let Some(id) = subscribe.subscription_id {
                    out.push(id::SUBSCRIPTION_ID);
                    put_varint(out, id as usize);
                }
                put_user_properties(out, &subscribe.user_properties);
            });
        }
        for (filter, options) in subscribe.filters {
            put_filter(out, filter, options, version);
        }
    });
}

fn put_filter(out: &mut Vec<u8>, filter: &str, options: SubscribeOptions, version: Version) {
    put_binary(out, filter.as_bytes());
    let mut byte = options.qos.bits();
    if version.is_v5() {
        byte |= u8::from(options.no_local) << 2
            | u8::from(options.retain_as_published) << 3
            | (options.retain_handling as u8) << 4;
    }
    out.push(byte);
}

fn encode_suback(ack: &SubAck<'_>, version: Version, out: &mut Vec<u8>) {
    packet(packet_type::SUBACK << 4, out, |out| {
        out.extend_from_slice(&ack.packet_id.value().to_be_bytes());
        if version.is_v5() {
            put_reason_properties(out, ack.reason_string, &ack.user_properties);
            out.extend_from_slice(ack.codes);
        } else {
            // the one failure that there was: [MQTT-3.9.3-2]
            out.extend(
                ack.codes
                    .iter()
                    .map(|&code| if code < 0x80 { code } else { 0x80 }),
            );
        }
    });
}

fn encode_unsubscribe(unsubscribe: &Unsubscribe<'_>, version: Version, out: &mut Vec<u8>) {
    packet(packet_type::UNSUBSCRIBE << 4 | 0b0010, out, |out| {
        out.extend_from_slice(&unsubscribe.packet_id.value().to_be_bytes());
        if version.is_v5() {
            length_prefixed(out, |out| {
                put_user_properties(out, &unsubscribe.user_properties)
            });
        }
        out.extend_from_slice(unsubscribe.filters.raw);
    });
}

fn encode_unsuback(ack: &SubAck<'_>, version: Version, out: &mut Vec<u8>) {
    packet(packet_type::UNSUBACK << 4, out, |out| {
        out.extend_from_slice(&ack.packet_id.value().to_be_bytes());
        if version.is_v5() {
            put_reason_properties(out, ack.reason_string, &ack.user_properties);
            out.extend_from_slice(ack.codes);
        }
    });
}

fn encode_disconnect(disconnect: &Disconnect<'_>, version: Version, out: &mut Vec<u8>) {
    packet(packet_type::DISCONNECT << 4, out, |out| {
        let bare = disconnect.session_expiry_secs.is_none()
            && disconnect.reason_string.is_none()
            && disconnect.server_reference.is_none()
            && disconnect.user_properties.is_empty();
        if !version.is_v5() || (bare && disconnect.reason == ReasonCode::NORMAL_DISCONNECTION) {
            return;
        }
        // [MQTT5-3.14.2-1]
        let reason = or_unspecified(disconnect.reason, disconnect.reason.is_of_disconnect());
        out.push(reason);
        if bare {
            return;
        }
        length_prefixed(out, |out| {
            if let Some(secs) = disconnect.session_expiry_secs {
                put_u32(out, id::SESSION_EXPIRY, secs);
            }
            put_text(out, id::REASON_STRING, disconnect.reason_string);
            put_text(out, id::SERVER_REFERENCE, disconnect.server_reference);
            put_user_properties(out, &disconnect.user_properties);
        });
    });
}

fn encode_auth(auth: &Auth<'_>, version: Version, out: &mut Vec<u8>) {
    debug_assert!(version.is_v5(), "there is no AUTH before 5.0");
    if !version.is_v5() {
        return;
    }
    packet(packet_type::AUTH << 4, out, |out| {
        let bare = auth.method.is_none()
            && auth.data.is_none()
            && auth.reason_string.is_none()
            && auth.user_properties.is_empty();
        if bare && auth.reason == ReasonCode::SUCCESS {
            return;
        }
        out.push(auth.reason.0);
        length_prefixed(out, |out| {
            put_text(out, id::AUTH_METHOD, auth.method);
            put_data(out, id::AUTH_DATA, auth.data);
            put_text(out, id::REASON_STRING, auth.reason_string);
            put_user_properties(out, &auth.user_properties);
        });
    });
}

/// The filters of a SUBSCRIBE to be sent.
#[derive(Clone, Debug)]
pub struct SubscribeFiltersBuf {
    raw: Vec<u8>,
    version: Version,
}

impl SubscribeFiltersBuf {
    /// None yet; a SUBSCRIBE needs at least one.
    #[must_use]
    pub const fn new(version: Version) -> Self {
        Self {
            raw: Vec::new(),
            version,
        }
    }

    /// Adds one. Its text is not checked to be a filter, so that a broker's answer to a wrong one can be tried.
    pub fn push(&mut self, filter: &str, options: SubscribeOptions) -> &mut Self {
        put_filter(&mut self.raw, filter, options, self.version);
        self
    }

    /// For a [`Subscribe`].
    #[must_use]
    pub fn filters(&self) -> SubscribeFilters<'_> {
        SubscribeFilters {
            raw: &self.raw,
            version: self.version,
        }
    }
}

/// The filters of an UNSUBSCRIBE to be sent.
#[derive(Clone, Debug, Default)]
pub struct UnsubscribeFiltersBuf {
    raw: Vec<u8>,
}

impl UnsubscribeFiltersBuf {
    /// None yet; an UNSUBSCRIBE needs at least one.
    #[must_use]
    pub const fn new() -> Self {
        Self { raw: Vec::new() }
    }

    /// Adds one. Its text is not checked to be a filter, so that a broker's answer to a wrong one can be tried.
    pub fn push(&mut self, filter: &str) -> &mut Self {
        put_binary(&mut self.raw, filter.as_bytes());
        self
    }

    /// For an [`Unsubscribe`].
    #[must_use]
    pub fn filters(&self) -> UnsubscribeFilters<'_> {
        UnsubscribeFilters { raw: &self.raw }
    }
}

fn put_reason_properties(
    out: &mut Vec<u8>,
    reason_string: Option<&str>,
    user_properties: &UserProperties<'_>,
) {
    length_prefixed(out, |out| {
        put_text(out, id::REASON_STRING, reason_string);
        put_user_properties(out, user_properties);
    });
}

fn put_user_properties(out: &mut Vec<u8>, user_properties: &UserProperties<'_>) {
    for (name, value) in user_properties {
        out.push(id::USER_PROPERTY);
        put_binary(out, name.as_bytes());
        put_binary(out, value.as_bytes());
    }
}

fn put_text(out: &mut Vec<u8>, id: u8, text: Option<&str>) {
    if let Some(text) = text {
        debug_assert!(text.len() <= usize::from(u16::MAX));
        let text = text
            .get(..text.floor_char_boundary(usize::from(u16::MAX)))
            .unwrap_or_default();
        out.push(id);
        put_binary(out, text.as_bytes());
    }
}

fn put_data(out: &mut Vec<u8>, id: u8, data: Option<&[u8]>) {
    if let Some(data) = data {
        out.push(id);
        put_binary(out, data);
    }
}

fn put_u16(out: &mut Vec<u8>, id: u8, value: u16) {
    let [high, low] = value.to_be_bytes();
    out.extend_from_slice(&[id, high, low]);
}

fn put_u32(out: &mut Vec<u8>, id: u8, value: u32) {
    let [a, b, c, d] = value.to_be_bytes();
    out.extend_from_slice(&[id, a, b, c, d]);
}

/// Two bytes of length, then the bytes.
pub(crate) fn put_binary(out: &mut Vec<u8>, bytes: &[u8]) {
    debug_assert!(bytes.len() <= usize::from(u16::MAX));
    let bytes = bytes.get(..usize::from(u16::MAX)).unwrap_or(bytes);
    out.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// A packet of which the length is known when its body is written; `first` has the flags of its type
/// `[MQTT-2.2.2-1] [MQTT5-2.1.3-1]`.
fn packet(first: u8, out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    out.push(first);
    length_prefixed(out, body);
}

/// Writes `body` and puts its length in front as a Variable Byte Integer, moving it where that needs more than a byte;
/// a property block without properties has the length 0 `[MQTT5-2.2.2-1]`.
fn length_prefixed(out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.push(0);
    body(out);
    let (bytes, count) = varint(out.len() - start - 1);
    out.splice(start..=start, bytes.into_iter().take(count));
}

/// Appends the shortest form `[MQTT5-1.5.5-1]`.
#[inline]
pub(crate) fn put_varint(out: &mut Vec<u8>, value: usize) {
    if value < 0x80 {
        out.push(value as u8);
    } else {
        let (bytes, count) = varint(value);
        out.extend(bytes.into_iter().take(count));
    }
}

/// Up to 268,435,455; how many of the four bytes count.
fn varint(value: usize) -> ([u8; 4], usize) {
    debug_assert!(value <= crate::SUBSCRIPTION_ID_MAX as usize);
    let count = varint_bytes(value);
    let mut bytes = [0_u8; 4];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = (value >> (7 * i)) as u8 & 0x7f | if i + 1 < count { 0x80 } else { 0 };
    }
    (bytes, count)
}

/// Bytes of a Variable Byte Integer.
#[inline]
const fn varint_bytes(value: usize) -> usize {
    match value {
        0..0x80 => 1,
        0x80..0x4000 => 2,
        0x4000..0x20_0000 => 3,
        _ => 4,
    }
}
