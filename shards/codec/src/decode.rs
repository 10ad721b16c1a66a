// SPDX-License-Identifier: Apache-2.0
//! From the bytes of one frame to a packet (section 3 of the specifications).
//!
//! Everything that can be judged without the state of a session is checked here; the reason code of the error is what
//! the peer is to be told.

use std::num::NonZeroU16;

use crate::frame::packet_type;
use crate::properties::{Seen, id};
use crate::reader::Reader;
use crate::{
    Ack, Auth, ConnAck, ConnAckProperties, Connect, DecodeError, Disconnect, ErrorKind, Frame,
    Packet, Publish, PublishProperties, QoS, ReasonCode, SHARE_PREFIX, SubAck, Subscribe,
    SubscribeFilters, TopicName, Unsubscribe, UnsubscribeFilters, UserProperties, Version, Will,
};

/// Decodes one packet of either direction. For CONNECT the version is not looked at: the packet says it.
///
/// # Errors
/// What is wrong with the bytes, with the reason code for the peer.
pub fn decode<'a>(frame: Frame<'a>, version: Version) -> Result<Packet<'a>, DecodeError> {
    let packet_type = frame.packet_type();
    match packet_type {
        packet_type::PUBLISH => return decode_publish(frame, version).map(Packet::Publish),
        packet_type::PUBACK => return decode_ack(frame, version).map(Packet::PubAck),
        packet_type::PUBREC => return decode_ack(frame, version).map(Packet::PubRec),
        packet_type::PUBREL => return decode_ack(frame, version).map(Packet::PubRel),
        packet_type::PUBCOMP => return decode_ack(frame, version).map(Packet::PubComp),
        _ => {}
    }
    let reader = Reader::new(frame.body);
    check_flags(frame, version)?;
    match packet_type {
        packet_type::CONNECT => connect(reader).map(Packet::Connect),
        packet_type::CONNACK => connack(reader, version).map(Packet::ConnAck),
        packet_type::SUBSCRIBE => subscribe(reader, version).map(Packet::Subscribe),
        packet_type::SUBACK => suback(reader, version).map(Packet::SubAck),
        packet_type::UNSUBSCRIBE => unsubscribe(reader, version).map(Packet::Unsubscribe),
        packet_type::UNSUBACK => unsuback(reader, version).map(Packet::UnsubAck),
        packet_type::PINGREQ => reader.end().map(|()| Packet::PingReq),
        packet_type::PINGRESP => reader.end().map(|()| Packet::PingResp),
        packet_type::DISCONNECT => disconnect(reader, version).map(Packet::Disconnect),
        packet_type::AUTH if version.is_v5() => auth(reader).map(Packet::Auth),
        _ => Err(ErrorKind::PacketType.into()),
    }
}

/// Decodes a PUBLISH.
///
/// # Errors
/// What is wrong with the bytes, with the reason code for the peer.
#[inline]
pub fn decode_publish(frame: Frame<'_>, version: Version) -> Result<Publish<'_>, DecodeError> {
    debug_assert_eq!(frame.packet_type(), packet_type::PUBLISH);
    let flags = frame.flags();
    // [MQTT-3.3.1-4] [MQTT5-3.3.1-4]
    let qos = QoS::from_bits(flags >> 1 & 0b11).ok_or(ErrorKind::QosReserved)?;
    let dup = flags & 0b1000 != 0;
    // [MQTT-3.3.1-2] [MQTT5-3.3.1-2]
    if dup && qos == QoS::AtMostOnce {
        return Err(ErrorKind::DupWithQos0.into());
    }
    let mut reader = Reader::new(frame.body);
    // [MQTT-3.3.2-1] [MQTT5-3.3.2-1] the first field
    let name = reader.binary()?;
    // [MQTT-2.3.1-5] [MQTT5-2.2.1-2]
    let packet_id = if qos == QoS::AtMostOnce {
        None
    } else {
        Some(reader.packet_id()?)
    };
    let properties = if version.is_v5() {
        PublishProperties::decode(reader.property_block()?)?
    } else {
        PublishProperties::EMPTY
    };
    let topic = if name.is_empty() && version.is_v5() {
        // a Topic Alias stands for the name, or there is none
        if properties.topic_alias.is_none() {
            return Err(ErrorKind::TopicMissing.into());
        }
        None
    } else {
        Some(TopicName::decode(name)?)
    };
    let retain = flags & 1 != 0;
    Ok(Publish {
        dup,
        qos,
        retain,
        topic,
        packet_id,
        properties,
        payload: reader.rest(),
    })
}

/// Decodes a PUBACK, PUBREC, PUBREL or PUBCOMP.
///
/// # Errors
/// What is wrong with the bytes, with the reason code for the peer.
#[inline]
pub fn decode_ack(frame: Frame<'_>, version: Version) -> Result<Ack<'_>, DecodeError> {
    check_flags(frame, version)?;
    let mut reader = Reader::new(frame.body);
    let packet_id = reader.packet_id()?;
    if reader.is_empty() {
        return Ok(Ack::new(packet_id, ReasonCode::SUCCESS));
    }
    if !version.is_v5() {
        return Err(ErrorKind::TrailingBytes.into());
    }
    let reason = reader.u8()?;
    let allowed = match frame.packet_type() {
        // [MQTT5-3.4.2-1] [MQTT5-3.5.2-1]
        packet_type::PUBACK | packet_type::PUBREC => {
            matches!(
                reason,
                0 | 0x10 | 0x80 | 0x83 | 0x87 | 0x90 | 0x91 | 0x97 | 0x99
            )
        }
        // [MQTT5-3.6.2-1] [MQTT5-3.7.2-1]
        packet_type::PUBREL | packet_type::PUBCOMP => matches!(reason, 0 | 0x92),
        _ => return Err(ErrorKind::PacketType.into()),
    };
    if !allowed {
        return Err(ErrorKind::ReasonCode.into());
    }
    let mut ack = Ack::new(packet_id, ReasonCode(reason));
    if !reader.is_empty() {
        (ack.reason_string, ack.user_properties) = reason_properties(&mut reader)?;
        reader.end()?;
    }
    Ok(ack)
}

/// The version that a CONNECT asks for, readable even where its rest is malformed: it says how to answer.
///
/// # Errors
/// Not a CONNECT, cut off, or of no version that we speak.
pub fn connect_version(frame: Frame<'_>) -> Result<Version, DecodeError> {
    if frame.packet_type() != packet_type::CONNECT {
        return Err(ErrorKind::PacketType.into());
    }
    protocol(&mut Reader::new(frame.body)).map(|(version, _)| version)
}

/// The low nibble of every packet but PUBLISH is fixed
/// `[MQTT-2.2.2-1] [MQTT-2.2.2-2] [MQTT5-2.1.3-1]`.
#[inline]
fn check_flags(frame: Frame<'_>, version: Version) -> Result<(), DecodeError> {
    let (flags, expected) = match frame.packet_type() {
        // [MQTT-3.6.1-1] [MQTT-3.8.1-1] [MQTT-3.10.1-1] [MQTT5-3.6.1-1] [MQTT5-3.8.1-1] [MQTT5-3.10.1-1];
        // in 3.1 these are QoS 1 messages with a DUP flag of their own
        packet_type::PUBREL | packet_type::SUBSCRIBE | packet_type::UNSUBSCRIBE => {
            let ignored = if version == Version::V31 { 0b1000 } else { 0 };
            (frame.flags() & !ignored, 0b0010)
        }
        // [MQTT-3.14.1-1] [MQTT5-3.14.1-1] [MQTT5-3.15.1-1]
        _ => (frame.flags(), 0),
    };
    if flags == expected {
        Ok(())
    } else {
        Err(ErrorKind::FixedHeaderFlags.into())
    }
}

/// Protocol name and level: the version, and whether the peer is a bridge.
fn protocol(reader: &mut Reader<'_>) -> Result<(Version, bool), DecodeError> {
    // [MQTT-3.1.2-1] [MQTT-3.1.2-2] [MQTT5-3.1.2-1] [MQTT5-3.1.2-2]
    let name = reader.binary()?;
    let level = reader.u8()?;
    let version = match (name, level & 0x7f) {
        (b"MQIsdp", 3) => Version::V31,
        (b"MQTT", 4) => Version::V311,
        (b"MQTT", 5) => Version::V5,
        _ => return Err(ErrorKind::ProtocolVersion.into()),
    };
    Ok((version, level & 0x80 != 0))
}

fn connect(mut reader: Reader<'_>) -> Result<Connect<'_>, DecodeError> {
    let (version, bridge) = protocol(&mut reader)?;
    let flags = reader.u8()?;
    let has = |bit: u8| flags & (1 << bit) != 0;
    // [MQTT-3.1.2-3] [MQTT5-3.1.2-3]; 3.1 does not use it
    if has(0) && version != Version::V31 {
        return Err(ErrorKind::ReservedBits.into());
    }
    // [MQTT-3.1.2-14] [MQTT5-3.1.2-12]
    let will_qos = QoS::from_bits(flags >> 3 & 0b11).ok_or(ErrorKind::QosReserved)?;
    let (has_will, will_retain) = (has(2), has(5));
    // [MQTT-3.1.2-11] [MQTT-3.1.2-13] [MQTT-3.1.2-15] [MQTT5-3.1.2-11] [MQTT5-3.1.2-13]; 3.1 disregards them
    if !has_will && version != Version::V31 && (will_retain || will_qos != QoS::AtMostOnce) {
        return Err(ErrorKind::WillFlags.into());
    }
    let (has_username, has_password) = (has(7), has(6));
    // [MQTT-3.1.2-22]
    if has_password && !has_username && !version.is_v5() {
        return Err(ErrorKind::PasswordWithoutUserName.into());
    }
    let keep_alive_secs = reader.u16()?;
    let mut connect = Connect {
        version,
        bridge,
        clean_start: has(1),
        keep_alive_secs,
        client_id: "",
        will: None,
        username: None,
        password: None,
        session_expiry_secs: None,
        receive_maximum: NonZeroU16::MAX,
        maximum_packet_size: None,
        // [MQTT5-3.1.2-27] none unless the client says otherwise
        topic_alias_maximum: 0,
        request_response_information: false,
        request_problem_information: true,
        authentication_method: None,
        authentication_data: None,
        user_properties: UserProperties::EMPTY,
    };
    if version.is_v5() {
        connect_properties(&mut reader, &mut connect)?;
    }
    // the payload's order: [MQTT-3.1.3-1] [MQTT5-3.1.3-1]; the client id is always there, first, and UTF-8:
    // [MQTT-3.1.3-3] [MQTT-3.1.3-4] [MQTT5-3.1.3-3] [MQTT5-3.1.3-4]
    connect.client_id = reader.string()?;
    // [MQTT-3.1.2-9] [MQTT5-3.1.2-9]
    if has_will {
        connect.will = Some(will(&mut reader, version, will_qos, will_retain)?);
    }
    // In 3.1 Remaining Length takes precedence over the flags: what they promise may be missing.
    let may_be_missing = version == Version::V31;
    // [MQTT-3.1.2-19] [MQTT-3.1.3-11] [MQTT5-3.1.2-17] [MQTT5-3.1.3-12]
    if has_username && !(may_be_missing && reader.is_empty()) {
        connect.username = Some(reader.string()?);
    }
    // [MQTT-3.1.2-21] [MQTT5-3.1.2-19]
    if has_password && !(may_be_missing && reader.is_empty()) {
        connect.password = Some(reader.binary()?);
    }
    // what no flag announces must not be there:
    // [MQTT-3.1.2-11] [MQTT-3.1.2-18] [MQTT-3.1.2-20] [MQTT5-3.1.2-16] [MQTT5-3.1.2-18]
    reader.end()?;
    Ok(connect)
}

fn connect_properties<'a>(
    reader: &mut Reader<'a>,
    connect: &mut Connect<'a>,
) -> Result<(), DecodeError> {
    let block = reader.property_block()?;
    let mut seen = Seen::default();
    let mut reader = Reader::new(block);
    while !reader.is_empty() {
        let id = reader.u8()?;
        if id == id::USER_PROPERTY {
            user_property(&mut reader)?;
            connect.user_properties.raw = block;
            continue;
        }
        seen.once(id)?;
        match id {
            id::SESSION_EXPIRY => connect.session_expiry_secs = Some(reader.u32()?),
            id::RECEIVE_MAXIMUM => connect.receive_maximum = non_zero(&mut reader)?,
            id::MAXIMUM_PACKET_SIZE => {
                connect.maximum_packet_size = Some(packet_size(&mut reader)?)
            }
            id::TOPIC_ALIAS_MAXIMUM => connect.topic_alias_maximum = reader.u16()?,
            id::REQUEST_RESPONSE => connect.request_response_information = reader.bool()?,
            id::REQUEST_PROBLEM => connect.request_problem_information = reader.bool()?,
            id::AUTH_METHOD => connect.authentication_method = Some(reader.string()?),
            id::AUTH_DATA => connect.authentication_data = Some(reader.binary()?),
            _ => return Err(ErrorKind::PropertyNotAllowed.into()),
        }
    }
    if connect.authentication_data.is_some() && connect.authentication_method.is_none() {
        return Err(ErrorKind::AuthenticationMethodMissing.into());
    }
    Ok(())
}

fn will<'a>(
    reader: &mut Reader<'a>,
    version: Version,
    qos: QoS,
    retain: bool,
) -> Result<Will<'a>, DecodeError> {
    let (properties, delay_secs) = if version.is_v5() {
        PublishProperties::decode_will(reader.property_block()?)?
    } else {
        (PublishProperties::EMPTY, 0)
    };
    // [MQTT-3.1.3-10] [MQTT5-3.1.3-11]
    let topic = TopicName::decode(reader.binary()?)?;
    let payload = reader.binary()?;
    Ok(Will {
        qos,
        retain,
        topic,
        payload,
        delay_secs,
        properties,
    })
}

fn connack(mut reader: Reader<'_>, version: Version) -> Result<ConnAck<'_>, DecodeError> {
    let flags = reader.u8()?;
    let code = reader.u8()?;
    // 3.1 has no flags there, but a byte that means nothing
    let flags = if version == Version::V31 { 0 } else { flags };
    // [MQTT5-3.2.2-1]
    if flags > 1 {
        return Err(ErrorKind::ReservedBits.into());
    }
    let reason = if version.is_v5() {
        Some(ReasonCode(code))
    } else {
        connack_reason(code)
    };
    let reason = reason.ok_or(ErrorKind::ReasonCode)?;
    // [MQTT5-3.2.2-8]
    if !reason.is_of_connack() {
        return Err(ErrorKind::ReasonCode.into());
    }
    let session_present = flags == 1;
    // [MQTT-3.2.2-4] [MQTT5-3.2.2-6]
    if session_present && reason != ReasonCode::SUCCESS {
        return Err(ErrorKind::SessionPresent.into());
    }
    let properties = if version.is_v5() {
        connack_properties(&mut reader)?
    } else {
        ConnAckProperties::default()
    };
    reader.end()?;
    Ok(ConnAck {
        session_present,
        reason,
        properties,
    })
}

/// What the return codes of 3.1 and 3.1.1 say.
const fn connack_reason(return_code: u8) -> Option<ReasonCode> {
    match return_code {
        0 => Some(ReasonCode::SUCCESS),
        1 => Some(ReasonCode::UNSUPPORTED_PROTOCOL_VERSION),
        2 => Some(ReasonCode::CLIENT_IDENTIFIER_NOT_VALID),
        3 => Some(ReasonCode::SERVER_UNAVAILABLE),
        4 => Some(ReasonCode::BAD_USER_NAME_OR_PASSWORD),
        5 => Some(ReasonCode::NOT_AUTHORIZED),
        _ => None,
    }
}

fn connack_properties<'a>(reader: &mut Reader<'a>) -> Result<ConnAckProperties<'a>, DecodeError> {
    let block = reader.property_block()?;
    let mut properties = ConnAckProperties::default();
    let mut seen = Seen::default();
    let mut reader = Reader::new(block);
    let r = &mut reader;
    while !r.is_empty() {
        let id = r.u8()?;
        if id == id::USER_PROPERTY {
            user_property(r)?;
            properties.user_properties.raw = block;
            continue;
        }
        seen.once(id)?;
        match id {
            id::SESSION_EXPIRY => properties.session_expiry_secs = Some(r.u32()?),
            id::RECEIVE_MAXIMUM => properties.receive_maximum = Some(non_zero(r)?),
            id::MAXIMUM_QOS => {
                let qos = if r.bool()? {
                    QoS::AtLeastOnce
                } else {
                    QoS::AtMostOnce
                };
                properties.maximum_qos = Some(qos);
            }
            id::RETAIN_AVAILABLE => properties.retain_available = Some(r.bool()?),
            id::MAXIMUM_PACKET_SIZE => properties.maximum_packet_size = Some(packet_size(r)?),
            id::ASSIGNED_CLIENT_ID => properties.assigned_client_id = Some(r.string()?),
            id::TOPIC_ALIAS_MAXIMUM => properties.topic_alias_maximum = Some(r.u16()?),
            id::REASON_STRING => properties.reason_string = Some(r.string()?),
            id::WILDCARD_AVAILABLE => properties.wildcard_subscription_available = Some(r.bool()?),
            id::SUBSCRIPTION_IDS_AVAILABLE => {
                properties.subscription_ids_available = Some(r.bool()?)
            }
            id::SHARED_AVAILABLE => properties.shared_subscription_available = Some(r.bool()?),
            id::SERVER_KEEP_ALIVE => properties.server_keep_alive_secs = Some(r.u16()?),
            id::RESPONSE_INFORMATION => properties.response_information = Some(r.string()?),
            id::SERVER_REFERENCE => properties.server_reference = Some(r.string()?),
            id::AUTH_METHOD => properties.authentication_method = Some(r.string()?),
            id::AUTH_DATA => properties.authentication_data = Some(r.binary()?),
            _ => return Err(ErrorKind::PropertyNotAllowed.into()),
        }
    }
    Ok(properties)
}

fn subscribe(mut reader: Reader<'_>, version: Version) -> Result<Subscribe<'_>, DecodeError> {
    let packet_id = reader.packet_id()?;
    let mut subscription_id = None;
    let mut user_properties = UserProperties::EMPTY;
    if version.is_v5() {
        let block = reader.property_block()?;
        let mut reader = Reader::new(block);
        while !reader.is_empty() {
            match reader.u8()? {
                id::SUBSCRIPTION_ID if subscription_id.is_some() => {
                    return Err(ErrorKind::DuplicateProperty.into());
                }
                id::SUBSCRIPTION_ID => match reader.varint()? {
                    0 => return Err(ErrorKind::PropertyValue.into()),
                    id => subscription_id = Some(id),
                },
                id::USER_PROPERTY => {
                    user_property(&mut reader)?;
                    user_properties.raw = block;
                }
                _ => return Err(ErrorKind::PropertyNotAllowed.into()),
            }
        }
    }
    let filters = SubscribeFilters::parse(reader.rest(), version)?;
    Ok(Subscribe {
        packet_id,
        subscription_id,
        user_properties,
        filters,
    })
}

impl<'a> SubscribeFilters<'a> {
    /// Checks the payload of a SUBSCRIBE.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn parse(raw: &'a [u8], version: Version) -> Result<Self, DecodeError> {
        // [MQTT-3.8.3-3] [MQTT5-3.8.3-2]
        if raw.is_empty() {
            return Err(ErrorKind::NoTopicFilter.into());
        }
        let mut reader = Reader::new(raw);
        while !reader.is_empty() {
            // [MQTT-3.8.3-1] [MQTT5-3.8.3-1]
            let filter = reader.string()?;
            let options = reader.u8()?;
            // [MQTT-3.8.3-4] [MQTT5-3.8.3-5]
            let reserved = if version.is_v5() {
                0b1100_0000
            } else {
                0b1111_1100
            };
            if options & reserved != 0 {
                return Err(ErrorKind::ReservedBits.into());
            }
            if options & 0b11 == 3 || options >> 4 & 0b11 == 3 {
                // 3.1.1 calls QoS 3 malformed, 5.0 a protocol error
                let malformed = !version.is_v5();
                let kind = if malformed {
                    ErrorKind::QosReserved
                } else {
                    ErrorKind::SubscriptionOptions
                };
                return Err(kind.into());
            }
            // [MQTT5-3.8.3-4]
            if options & 0b100 != 0 && filter.starts_with(SHARE_PREFIX) {
                return Err(ErrorKind::NoLocalOnShared.into());
            }
        }
        Ok(Self { raw, version })
    }
}

fn suback(mut reader: Reader<'_>, version: Version) -> Result<SubAck<'_>, DecodeError> {
    let packet_id = reader.packet_id()?;
    let (reason_string, user_properties) = if version.is_v5() {
        reason_properties(&mut reader)?
    } else {
        (None, UserProperties::EMPTY)
    };
    let codes = reader.rest();
    // [MQTT-3.9.3-2] [MQTT5-3.9.3-2]
    let allowed = |&code: &u8| match version {
        Version::V31 | Version::V311 => matches!(code, 0..=2 | 0x80),
        Version::V5 => matches!(
            code,
            0..=2 | 0x80 | 0x83 | 0x87 | 0x8F | 0x91 | 0x97 | 0x9E | 0xA1 | 0xA2
        ),
    };
    check_codes(codes, allowed)?;
    Ok(SubAck {
        packet_id,
        reason_string,
        user_properties,
        codes,
    })
}

fn unsubscribe(mut reader: Reader<'_>, version: Version) -> Result<Unsubscribe<'_>, DecodeError> {
    let packet_id = reader.packet_id()?;
    let mut user_properties = UserProperties::EMPTY;
    if version.is_v5() {
        let block = reader.property_block()?;
        let mut reader = Reader::new(block);
        while !reader.is_empty() {
            if reader.u8()? != id::USER_PROPERTY {
                return Err(ErrorKind::PropertyNotAllowed.into());
            }
            user_property(&mut reader)?;
            user_properties.raw = block;
        }
    }
    let filters = UnsubscribeFilters::parse(reader.rest())?;
    Ok(Unsubscribe {
        packet_id,
        user_properties,
        filters,
    })
}

impl<'a> UnsubscribeFilters<'a> {
    /// Checks the payload of an UNSUBSCRIBE.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn parse(raw: &'a [u8]) -> Result<Self, DecodeError> {
        // [MQTT-3.10.3-2] [MQTT5-3.10.3-2]
        if raw.is_empty() {
            return Err(ErrorKind::NoTopicFilter.into());
        }
        let mut reader = Reader::new(raw);
        while !reader.is_empty() {
            // [MQTT-3.10.3-1] [MQTT5-3.10.3-1]
            reader.string()?;
        }
        Ok(Self { raw })
    }
}

fn unsuback(mut reader: Reader<'_>, version: Version) -> Result<SubAck<'_>, DecodeError> {
    let packet_id = reader.packet_id()?;
    let mut ack = SubAck {
        packet_id,
        reason_string: None,
        user_properties: UserProperties::EMPTY,
        codes: &[],
    };
    if version.is_v5() {
        (ack.reason_string, ack.user_properties) = reason_properties(&mut reader)?;
        ack.codes = reader.rest();
        // [MQTT5-3.11.3-2]
        check_codes(ack.codes, |code| {
            matches!(code, 0 | 0x11 | 0x80 | 0x83 | 0x87 | 0x8F | 0x91)
        })?;
    } else {
        reader.end()?;
    }
    Ok(ack)
}

/// A code for each filter, so at least one.
fn check_codes(codes: &[u8], allowed: impl Fn(&u8) -> bool) -> Result<(), DecodeError> {
    if codes.is_empty() {
        return Err(ErrorKind::Truncated.into());
    }
    if codes.iter().all(allowed) {
        Ok(())
    } else {
        Err(ErrorKind::ReasonCode.into())
    }
}

fn disconnect(mut reader: Reader<'_>, version: Version) -> Result<Disconnect<'_>, DecodeError> {
    let mut disconnect = Disconnect::new(ReasonCode::NORMAL_DISCONNECTION);
    if !version.is_v5() || reader.is_empty() {
        reader.end()?;
        return Ok(disconnect);
    }
    disconnect.reason = ReasonCode(reader.u8()?);
    // [MQTT5-3.14.2-1]
    if !disconnect.reason.is_of_disconnect() {
        return Err(ErrorKind::ReasonCode.into());
    }
    if reader.is_empty() {
        return Ok(disconnect);
    }
    let block = reader.property_block()?;
    reader.end()?;
    let mut seen = Seen::default();
    let mut reader = Reader::new(block);
    while !reader.is_empty() {
        let id = reader.u8()?;
        if id == id::USER_PROPERTY {
            user_property(&mut reader)?;
            disconnect.user_properties.raw = block;
            continue;
        }
        seen.once(id)?;
        match id {
            id::SESSION_EXPIRY => disconnect.session_expiry_secs = Some(reader.u32()?),
            id::REASON_STRING => disconnect.reason_string = Some(reader.string()?),
            id::SERVER_REFERENCE => disconnect.server_reference = Some(reader.string()?),
            _ => return Err(ErrorKind::PropertyNotAllowed.into()),
        }
    }
    Ok(disconnect)
}

fn auth(mut reader: Reader<'_>) -> Result<Auth<'_>, DecodeError> {
    let mut auth = Auth {
        reason: ReasonCode::SUCCESS,
        method: None,
        data: None,
        reason_string: None,
        user_properties: UserProperties::EMPTY,
    };
    if reader.is_empty() {
        return Ok(auth);
    }
    auth.reason = ReasonCode(reader.u8()?);
    // [MQTT5-3.15.2-1]
    if !matches!(auth.reason.0, 0 | 0x18 | 0x19) {
        return Err(ErrorKind::ReasonCode.into());
    }
    let block = reader.property_block()?;
    reader.end()?;
    let mut seen = Seen::default();
    let mut reader = Reader::new(block);
    while !reader.is_empty() {
        let id = reader.u8()?;
        if id == id::USER_PROPERTY {
            user_property(&mut reader)?;
            auth.user_properties.raw = block;
            continue;
        }
        seen.once(id)?;
        match id {
            id::AUTH_METHOD => auth.method = Some(reader.string()?),
            id::AUTH_DATA => auth.data = Some(reader.binary()?),
            id::REASON_STRING => auth.reason_string = Some(reader.string()?),
            _ => return Err(ErrorKind::PropertyNotAllowed.into()),
        }
    }
    if auth.method.is_none() {
        return Err(ErrorKind::AuthenticationMethodMissing.into());
    }
    Ok(auth)
}

/// The block of all packets that may say why, and no more.
fn reason_properties<'a>(
    reader: &mut Reader<'a>,
) -> Result<(Option<&'a str>, UserProperties<'a>), DecodeError> {
    let block = reader.property_block()?;
    let mut reason_string = None;
    let mut user_properties = UserProperties::EMPTY;
    let mut reader = Reader::new(block);
    while !reader.is_empty() {
        match reader.u8()? {
            id::REASON_STRING if reason_string.is_some() => {
                return Err(ErrorKind::DuplicateProperty.into());
            }
            id::REASON_STRING => reason_string = Some(reader.string()?),
            id::USER_PROPERTY => {
                user_property(&mut reader)?;
                user_properties.raw = block;
            }
            _ => return Err(ErrorKind::PropertyNotAllowed.into()),
        }
    }
    Ok((reason_string, user_properties))
}

/// Both strings are UTF-8 [MQTT5-1.5.7-1].
fn user_property(reader: &mut Reader<'_>) -> Result<(), DecodeError> {
    reader.skip_string()?;
    reader.skip_string()?;
    Ok(())
}

fn non_zero(reader: &mut Reader<'_>) -> Result<NonZeroU16, DecodeError> {
    NonZeroU16::new(reader.u16()?).ok_or_else(|| ErrorKind::PropertyValue.into())
}

fn packet_size(reader: &mut Reader<'_>) -> Result<u32, DecodeError> {
    match reader.u32()? {
        0 => Err(ErrorKind::PropertyValue.into()),
        bytes => Ok(bytes),
    }
}
