// SPDX-License-Identifier: Apache-2.0
//! Packets as bytes written by hand from the specifications: what each decodes to, and why others are refused.

use std::num::NonZeroU16;

use crate::{
    Ack, Auth, ConnAck, ConnAckProperties, Connect, Disconnect, ErrorKind, Packet, PacketId,
    Publish, PublishProperties, QoS, ReasonCode, SubAck, Subscribe, SubscribeFilters, TopicName,
    Unsubscribe, UnsubscribeFilters, UserProperties, Version, Will,
};
use Version::{V5, V31, V311};

/// Bytes that are a packet.
pub(crate) struct Valid {
    pub(crate) name: &'static str,
    pub(crate) version: Version,
    pub(crate) bytes: &'static [u8],
    pub(crate) packet: Packet<'static>,
    /// The bytes are also what encoding gives: not so for those that spell a default out.
    pub(crate) encoded_so: bool,
}

/// Bytes that are none.
pub(crate) struct Invalid {
    pub(crate) name: &'static str,
    pub(crate) version: Version,
    pub(crate) bytes: &'static [u8],
    pub(crate) kind: ErrorKind,
}

const K_V: UserProperties<'static> = UserProperties {
    raw: b"\x26\x00\x01k\x00\x01v",
};

fn id(id: u16) -> PacketId {
    PacketId(NonZeroU16::new(id).unwrap_or(NonZeroU16::MAX))
}

fn connect(version: Version, client_id: &'static str) -> Connect<'static> {
    Connect {
        version,
        bridge: false,
        clean_start: true,
        keep_alive_secs: 60,
        client_id,
        will: None,
        username: None,
        password: None,
        session_expiry_secs: None,
        receive_maximum: NonZeroU16::MAX,
        maximum_packet_size: None,
        topic_alias_maximum: 0,
        request_response_information: false,
        request_problem_information: true,
        authentication_method: None,
        authentication_data: None,
        user_properties: UserProperties::EMPTY,
    }
}

fn will(qos: QoS, retain: bool) -> Will<'static> {
    Will {
        qos,
        retain,
        topic: TopicName::trusted("w/t"),
        payload: b"bye",
        delay_secs: 0,
        properties: PublishProperties::EMPTY,
    }
}

fn publish(qos: QoS, packet_id: Option<PacketId>) -> Publish<'static> {
    Publish {
        dup: false,
        qos,
        retain: false,
        topic: Some(TopicName::trusted("a/b")),
        packet_id,
        properties: PublishProperties::EMPTY,
        payload: b"hi",
    }
}

fn connack(session_present: bool, reason: ReasonCode) -> Packet<'static> {
    Packet::ConnAck(ConnAck {
        session_present,
        reason,
        properties: ConnAckProperties::default(),
    })
}

fn suback(packet_id: u16, codes: &'static [u8]) -> SubAck<'static> {
    SubAck {
        packet_id: id(packet_id),
        reason_string: None,
        user_properties: UserProperties::EMPTY,
        codes,
    }
}

fn subscribe(version: Version, raw: &'static [u8]) -> Subscribe<'static> {
    Subscribe {
        packet_id: id(10),
        subscription_id: None,
        user_properties: UserProperties::EMPTY,
        filters: SubscribeFilters { raw, version },
    }
}

fn auth(reason: ReasonCode, method: Option<&'static str>) -> Auth<'static> {
    Auth {
        reason,
        method,
        data: None,
        reason_string: None,
        user_properties: UserProperties::EMPTY,
    }
}

/// All packets, each version and direction; the flags of their headers are those of the table in section 2.1.3
/// `[MQTT-2.2.2-1] [MQTT5-2.1.3-1]`.
#[rustfmt::skip] // a row is a line where it fits
pub(crate) fn valid() -> Vec<Valid> {
    let mut rows = Vec::new();
    let mut row = |name, version, bytes: &'static [u8], packet| {
        rows.push(Valid { name, version, bytes, packet, encoded_so: true });
    };

    // CONNECT
    // without properties there is a length of 0 [MQTT5-2.2.2-1]
    row("3.1", V31, b"\x10\x0f\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x01c", Packet::Connect(connect(V31, "c")));
    row("3.1.1", V311, b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01c", Packet::Connect(connect(V311, "c")));
    row("5.0", V5, b"\x10\x0e\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x01c", Packet::Connect(connect(V5, "c")));
    row(
        "no client id",
        V5,
        b"\x10\x0d\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x00",
        Packet::Connect(connect(V5, "")),
    );
    row(
        "3.1 of a bridge",
        V31,
        b"\x10\x0f\x00\x06MQIsdp\x83\x02\x00\x3c\x00\x01c",
        Packet::Connect(Connect { bridge: true, ..connect(V31, "c") }),
    );
    row(
        "3.1.1 of a bridge",
        V311,
        b"\x10\x0d\x00\x04MQTT\x84\x02\x00\x3c\x00\x01c",
        Packet::Connect(Connect { bridge: true, ..connect(V311, "c") }),
    );
    row(
        "5.0 of a bridge",
        V5,
        b"\x10\x0e\x00\x04MQTT\x85\x02\x00\x3c\x00\x00\x01c",
        Packet::Connect(Connect { bridge: true, ..connect(V5, "c") }),
    );
    // [MQTT-3.1.3-1] [MQTT5-3.1.3-1]
    row(
        "3.1.1 with a will, a user name and a password",
        V311,
        b"\x10\x1d\x00\x04MQTT\x04\xec\x00\x0a\x00\x01c\x00\x03w/t\x00\x03bye\x00\x01u\x00\x01p",
        Packet::Connect(Connect {
            clean_start: false,
            keep_alive_secs: 10,
            will: Some(will(QoS::AtLeastOnce, true)),
            username: Some("u"),
            password: Some(b"p"),
            ..connect(V311, "c")
        }),
    );
    row(
        "3.1 with a QoS 2 will and a user name",
        V31,
        b"\x10\x1c\x00\x06MQIsdp\x03\x96\x00\x3c\x00\x01c\x00\x03w/t\x00\x03bye\x00\x01u",
        Packet::Connect(Connect {
            will: Some(will(QoS::ExactlyOnce, false)),
            username: Some("u"),
            ..connect(V31, "c")
        }),
    );
    row(
        "5.0 with a password alone, any bytes",
        V5,
        b"\x10\x12\x00\x04MQTT\x05\x42\x00\x3c\x00\x00\x01c\x00\x02\x00\xff",
        Packet::Connect(Connect { password: Some(b"\x00\xff"), ..connect(V5, "c") }),
    );
    row(
        "5.0 with every property",
        V5,
        b"\x10\x32\x00\x04MQTT\x05\x02\x00\x3c\x24\
          \x11\x00\x00\x00\x0a\x21\x00\x14\x27\x00\x00\x04\x00\x22\x00\x05\x19\x01\x17\x00\
          \x15\x00\x01m\x16\x00\x02d\x00\x26\x00\x01k\x00\x01v\x00\x01c",
        Packet::Connect(Connect {
            session_expiry_secs: Some(10),
            receive_maximum: NonZeroU16::new(20).unwrap_or(NonZeroU16::MAX),
            maximum_packet_size: Some(1024),
            topic_alias_maximum: 5,
            request_response_information: true,
            request_problem_information: false,
            authentication_method: Some("m"),
            authentication_data: Some(b"d\x00"),
            user_properties: K_V,
            ..connect(V5, "c")
        }),
    );
    row(
        "5.0 with a will, a user name and a password",
        V5,
        b"\x10\x1f\x00\x04MQTT\x05\xec\x00\x0a\x00\x00\x01c\x00\x00\x03w/t\x00\x03bye\x00\x01u\x00\x01p",
        Packet::Connect(Connect {
            clean_start: false,
            keep_alive_secs: 10,
            will: Some(will(QoS::AtLeastOnce, true)),
            username: Some("u"),
            password: Some(b"p"),
            ..connect(V5, "c")
        }),
    );
    row(
        "5.0 with every property of a will",
        V5,
        b"\x10\x39\x00\x04MQTT\x05\x06\x00\x3c\x00\x00\x01c\x20\
          \x18\x00\x00\x00\x05\x02\x00\x00\x00\x07\x01\x01\x03\x00\x01t\x08\x00\x02r/\x09\x00\x01\x00\
          \x26\x00\x01k\x00\x01v\x00\x03w/t\x00\x03bye",
        Packet::Connect(Connect {
            will: Some(Will {
                delay_secs: 5,
                properties: PublishProperties {
                    raw: b"\x01\x01\x03\x00\x01t\x08\x00\x02r/\x09\x00\x01\x00\x26\x00\x01k\x00\x01v",
                    message_expiry_secs: Some(7),
                    payload_is_utf8: true,
                    ..PublishProperties::EMPTY
                },
                ..will(QoS::AtMostOnce, false)
            }),
            ..connect(V5, "c")
        }),
    );

    // CONNACK: no reserved bit is set [MQTT5-3.2.2-1]
    row("3.1", V31, b"\x20\x02\x00\x00", connack(false, ReasonCode::SUCCESS));
    row("session present", V311, b"\x20\x02\x01\x00", connack(true, ReasonCode::SUCCESS));
    row("code 1", V31, b"\x20\x02\x00\x01", connack(false, ReasonCode::UNSUPPORTED_PROTOCOL_VERSION));
    row("code 2", V311, b"\x20\x02\x00\x02", connack(false, ReasonCode::CLIENT_IDENTIFIER_NOT_VALID));
    row("code 3", V311, b"\x20\x02\x00\x03", connack(false, ReasonCode::SERVER_UNAVAILABLE));
    row("code 4", V311, b"\x20\x02\x00\x04", connack(false, ReasonCode::BAD_USER_NAME_OR_PASSWORD));
    row("code 5", V311, b"\x20\x02\x00\x05", connack(false, ReasonCode::NOT_AUTHORIZED));
    row("5.0", V5, b"\x20\x03\x01\x00\x00", connack(true, ReasonCode::SUCCESS));
    row("5.0 refused", V5, b"\x20\x03\x00\x8a\x00", connack(false, ReasonCode::BANNED));
    row(
        "5.0 with every property",
        V5,
        b"\x20\x3f\x00\x00\x3c\
          \x11\x00\x00\x00\x0a\x21\x00\x14\x24\x01\x25\x00\x27\x00\x00\x04\x00\x12\x00\x01i\x22\x00\x05\
          \x1f\x00\x01r\x28\x01\x29\x01\x2a\x00\x13\x00\x1e\x1a\x00\x01n\x1c\x00\x01s\x15\x00\x01m\
          \x16\x00\x01d\x26\x00\x01k\x00\x01v",
        Packet::ConnAck(ConnAck {
            session_present: false,
            reason: ReasonCode::SUCCESS,
            properties: ConnAckProperties {
                session_expiry_secs: Some(10),
                receive_maximum: NonZeroU16::new(20),
                maximum_qos: Some(QoS::AtLeastOnce),
                retain_available: Some(false),
                maximum_packet_size: Some(1024),
                assigned_client_id: Some("i"),
                topic_alias_maximum: Some(5),
                reason_string: Some("r"),
                user_properties: K_V,
                wildcard_subscription_available: Some(true),
                subscription_ids_available: Some(true),
                shared_subscription_available: Some(false),
                server_keep_alive_secs: Some(30),
                response_information: Some("n"),
                server_reference: Some("s"),
                authentication_method: Some("m"),
                authentication_data: Some(b"d"),
            },
        }),
    );

    // PUBLISH: with QoS 0 without a packet id [MQTT-2.3.1-5] [MQTT5-2.2.1-2]
    for version in [V31, V311] {
        row("QoS 0", version, b"\x30\x07\x00\x03a/bhi", Packet::Publish(publish(QoS::AtMostOnce, None)));
        row("QoS 1, DUP and RETAIN", version, b"\x3b\x09\x00\x03a/b\x00\x0ahi", {
            let publish = publish(QoS::AtLeastOnce, Some(id(10)));
            Packet::Publish(Publish { dup: true, retain: true, ..publish })
        });
        row(
            "QoS 2",
            version,
            b"\x34\x09\x00\x03a/b\xff\xffhi",
            Packet::Publish(publish(QoS::ExactlyOnce, Some(id(65_535)))),
        );
        row("no payload", version, b"\x31\x05\x00\x03a/b", {
            let publish = publish(QoS::AtMostOnce, None);
            Packet::Publish(Publish { retain: true, payload: b"", ..publish })
        });
    }
    row("QoS 0", V5, b"\x30\x08\x00\x03a/b\x00hi", Packet::Publish(publish(QoS::AtMostOnce, None)));
    row(
        "QoS 2",
        V5,
        b"\x34\x0a\x00\x03a/b\x00\x0a\x00hi",
        Packet::Publish(publish(QoS::ExactlyOnce, Some(id(10)))),
    );
    row("no name but an alias", V5, b"\x30\x08\x00\x00\x03\x23\x00\x05hi", {
        let publish = publish(QoS::AtMostOnce, None);
        let properties = PublishProperties { topic_alias: Some(5), ..PublishProperties::EMPTY };
        Packet::Publish(Publish { topic: None, properties, ..publish })
    });
    row(
        "every property",
        V5,
        b"\x32\x34\x00\x03a/b\x00\x0a\x2a\
          \x23\x00\x05\x02\x00\x00\x00\x07\x0b\x01\x0b\xff\xff\xff\x7f\
          \x01\x01\x03\x00\x01t\x08\x00\x02r/\x09\x00\x01\x00\x26\x00\x01k\x00\x01v\x26\x00\x00\x00\x00hi",
        Packet::Publish(Publish {
            properties: PublishProperties {
                raw: b"\x01\x01\x0b\x01\x03\x00\x01t\x08\x00\x02r/\x09\x00\x01\x00\x26\x00\x01k\x00\x01v\
                       \x26\x00\x00\x00\x00\x0b\xff\xff\xff\x7f",
                topic_alias: Some(5),
                message_expiry_secs: Some(7),
                payload_is_utf8: true,
                has_own: true,
            },
            ..publish(QoS::AtLeastOnce, Some(id(10)))
        }),
    );

    // PUBACK, PUBREC, PUBREL, PUBCOMP
    let wrap: [fn(Ack<'static>) -> Packet<'static>; 4] =
        [Packet::PubAck, Packet::PubRec, Packet::PubRel, Packet::PubComp];
    let short: [&[u8]; 4] = [b"\x40\x02\x00\x0a", b"\x50\x02\x00\x0a", b"\x62\x02\x00\x0a", b"\x70\x02\x00\x0a"];
    let reasoned: [&[u8]; 4] =
        [b"\x40\x03\x00\x0a\x97", b"\x50\x03\x00\x0a\x97", b"\x62\x03\x00\x0a\x92", b"\x70\x03\x00\x0a\x92"];
    let full: [&[u8]; 4] = [
        b"\x40\x0f\x00\x0a\x97\x0b\x1f\x00\x01r\x26\x00\x01k\x00\x01v",
        b"\x50\x0f\x00\x0a\x97\x0b\x1f\x00\x01r\x26\x00\x01k\x00\x01v",
        b"\x62\x0f\x00\x0a\x92\x0b\x1f\x00\x01r\x26\x00\x01k\x00\x01v",
        b"\x70\x0f\x00\x0a\x92\x0b\x1f\x00\x01r\x26\x00\x01k\x00\x01v",
    ];
    for (((wrap, short), reasoned), full) in wrap.into_iter().zip(short).zip(reasoned).zip(full) {
        for version in [V31, V311, V5] {
            row("short", version, short, wrap(Ack::new(id(10), ReasonCode::SUCCESS)));
        }
        let reason = ReasonCode(reasoned.last().copied().unwrap_or_default());
        row("with a reason", V5, reasoned, wrap(Ack::new(id(10), reason)));
        let ack = Ack::new(id(10), reason);
        row("with properties", V5, full, wrap(Ack { reason_string: Some("r"), user_properties: K_V, ..ack }));
    }

    // SUBSCRIBE and SUBACK
    for version in [V31, V311] {
        row(
            "two filters",
            version,
            b"\x82\x0c\x00\x0a\x00\x01a\x01\x00\x03b/#\x02",
            Packet::Subscribe(subscribe(version, b"\x00\x01a\x01\x00\x03b/#\x02")),
        );
        row("granted and failed", version, b"\x90\x04\x00\x0a\x02\x80", Packet::SubAck(suback(10, b"\x02\x80")));
    }
    row(
        "every option",
        V5,
        b"\x82\x0f\x00\x0a\x00\x00\x01a\x2d\x00\x05a/b/+\x12",
        Packet::Subscribe(subscribe(V5, b"\x00\x01a\x2d\x00\x05a/b/+\x12")),
    );
    row(
        "with properties",
        V5,
        b"\x82\x11\x00\x0a\x0a\x0b\x80\x01\x26\x00\x01k\x00\x01v\x00\x01a\x00",
        Packet::Subscribe(Subscribe {
            subscription_id: Some(128),
            user_properties: K_V,
            ..subscribe(V5, b"\x00\x01a\x00")
        }),
    );
    row(
        "every code",
        V5,
        b"\x90\x0f\x00\x0a\x00\x00\x01\x02\x80\x83\x87\x8f\x91\x97\x9e\xa1\xa2",
        Packet::SubAck(suback(10, b"\x00\x01\x02\x80\x83\x87\x8f\x91\x97\x9e\xa1\xa2")),
    );
    row(
        "with properties",
        V5,
        b"\x90\x0f\x00\x0a\x0b\x1f\x00\x01r\x26\x00\x01k\x00\x01v\x01",
        Packet::SubAck(SubAck { reason_string: Some("r"), user_properties: K_V, ..suback(10, b"\x01") }),
    );

    // UNSUBSCRIBE and UNSUBACK
    for version in [V31, V311] {
        row(
            "two filters",
            version,
            b"\xa2\x0a\x00\x0a\x00\x01a\x00\x03b/#",
            Packet::Unsubscribe(Unsubscribe {
                packet_id: id(10),
                user_properties: UserProperties::EMPTY,
                filters: UnsubscribeFilters { raw: b"\x00\x01a\x00\x03b/#" },
            }),
        );
        row("without codes", version, b"\xb0\x02\x00\x0a", Packet::UnsubAck(suback(10, b"")));
    }
    row(
        "with properties",
        V5,
        b"\xa2\x0d\x00\x0a\x07\x26\x00\x01k\x00\x01v\x00\x01a",
        Packet::Unsubscribe(Unsubscribe {
            packet_id: id(10),
            user_properties: K_V,
            filters: UnsubscribeFilters { raw: b"\x00\x01a" },
        }),
    );
    row(
        "every code",
        V5,
        b"\xb0\x0a\x00\x0a\x00\x00\x11\x80\x83\x87\x8f\x91",
        Packet::UnsubAck(suback(10, b"\x00\x11\x80\x83\x87\x8f\x91")),
    );

    // PINGREQ, PINGRESP, DISCONNECT, AUTH
    for version in [V31, V311, V5] {
        row("ping", version, b"\xc0\x00", Packet::PingReq);
        row("pong", version, b"\xd0\x00", Packet::PingResp);
        row(
            "normal",
            version,
            b"\xe0\x00",
            Packet::Disconnect(Disconnect::new(ReasonCode::NORMAL_DISCONNECTION)),
        );
    }
    row(
        "with a reason",
        V5,
        b"\xe0\x01\x04",
        Packet::Disconnect(Disconnect::new(ReasonCode::DISCONNECT_WITH_WILL)),
    );
    row(
        "every property",
        V5,
        b"\xe0\x16\x9c\x14\x11\x00\x00\x00\x0a\x1f\x00\x01r\x1c\x00\x01s\x26\x00\x01k\x00\x01v",
        Packet::Disconnect(Disconnect {
            session_expiry_secs: Some(10),
            reason_string: Some("r"),
            user_properties: K_V,
            server_reference: Some("s"),
            ..Disconnect::new(ReasonCode::USE_ANOTHER_SERVER)
        }),
    );
    row("empty", V5, b"\xf0\x00", Packet::Auth(auth(ReasonCode::SUCCESS, None)));
    row(
        "every property",
        V5,
        b"\xf0\x15\x18\x13\x15\x00\x01m\x16\x00\x01d\x1f\x00\x01r\x26\x00\x01k\x00\x01v",
        Packet::Auth(Auth {
            data: Some(b"d"),
            reason_string: Some("r"),
            user_properties: K_V,
            ..auth(ReasonCode::CONTINUE_AUTHENTICATION, Some("m"))
        }),
    );

    // the same said at greater length, or in another order
    let mut row = |name, version, bytes: &'static [u8], packet| {
        rows.push(Valid { name, version, bytes, packet, encoded_so: false });
    };
    row(
        "defaults spelled out",
        V5,
        b"\x10\x18\x00\x04MQTT\x05\x02\x00\x3c\x0a\x21\xff\xff\x22\x00\x00\x19\x00\x17\x01\x00\x01c",
        Packet::Connect(connect(V5, "c")),
    );
    row(
        "3.1 without the user name and password that its flags promise",
        V31,
        b"\x10\x0f\x00\x06MQIsdp\x03\xc2\x00\x3c\x00\x01c",
        Packet::Connect(connect(V31, "c")),
    );
    row("reserved byte in 3.1", V31, b"\x20\x02\x07\x00", connack(false, ReasonCode::SUCCESS));
    row(
        "success and no properties, spelled out",
        V5,
        b"\x40\x04\x00\x0a\x00\x00",
        Packet::PubAck(Ack::new(id(10), ReasonCode::SUCCESS)),
    );
    row(
        "reason and no properties",
        V5,
        b"\x62\x04\x00\x0a\x92\x00",
        Packet::PubRel(Ack::new(id(10), ReasonCode::PACKET_IDENTIFIER_NOT_FOUND)),
    );
    row("DUP in 3.1", V31, b"\x6a\x02\x00\x0a", Packet::PubRel(Ack::new(id(10), ReasonCode::SUCCESS)));
    row(
        "DUP in 3.1",
        V31,
        b"\x8a\x06\x00\x0a\x00\x01a\x01",
        Packet::Subscribe(subscribe(V31, b"\x00\x01a\x01")),
    );
    row(
        "DUP in 3.1",
        V31,
        b"\xaa\x05\x00\x0a\x00\x01a",
        Packet::Unsubscribe(Unsubscribe {
            packet_id: id(10),
            user_properties: UserProperties::EMPTY,
            filters: UnsubscribeFilters { raw: b"\x00\x01a" },
        }),
    );
    row(
        "user property before the reason string",
        V5,
        b"\x40\x0f\x00\x0a\x97\x0b\x26\x00\x01k\x00\x01v\x1f\x00\x01r",
        Packet::PubAck(Ack {
            reason_string: Some("r"),
            user_properties: K_V,
            ..Ack::new(id(10), ReasonCode::QUOTA_EXCEEDED)
        }),
    );
    row(
        "normal, spelled out",
        V5,
        b"\xe0\x02\x00\x00",
        Packet::Disconnect(Disconnect::new(ReasonCode::NORMAL_DISCONNECTION)),
    );
    row("payload format 0, alias last", V5, b"\x30\x0d\x00\x03a/b\x05\x01\x00\x23\x00\x05hi", {
        let properties = PublishProperties { raw: b"\x01\x00", topic_alias: Some(5), ..PublishProperties::EMPTY };
        Packet::Publish(Publish { properties, ..publish(QoS::AtMostOnce, None) })
    });
    rows
}

/// One broken rule each. Cut-off packets are made from the valid ones.
#[rustfmt::skip] // a row is a line where it fits
pub(crate) fn invalid() -> Vec<Invalid> {
    use ErrorKind as E;

    let mut rows = Vec::new();
    let mut row = |name, version, bytes: &'static [u8], kind| {
        rows.push(Invalid { name, version, bytes, kind });
    };

    // Fixed header: [MQTT-2.2.2-2] [MQTT5-2.1.3-1]
    for version in [V31, V311, V5] {
        row("type 0", version, b"\x00\x00", E::PacketType);
        row("PINGREQ with flags", version, b"\xc1\x00", E::FixedHeaderFlags);
        row("PINGRESP with flags", version, b"\xd8\x00", E::FixedHeaderFlags);
        row("PUBACK with flags", version, b"\x42\x02\x00\x0a", E::FixedHeaderFlags);
        row("PUBREC with flags", version, b"\x51\x02\x00\x0a", E::FixedHeaderFlags);
        row("PUBCOMP with flags", version, b"\x72\x02\x00\x0a", E::FixedHeaderFlags);
        // [MQTT-3.6.1-1] [MQTT5-3.6.1-1]
        row("PUBREL without flags", version, b"\x60\x02\x00\x0a", E::FixedHeaderFlags);
        row("PUBREL with QoS 2", version, b"\x64\x02\x00\x0a", E::FixedHeaderFlags);
        // [MQTT-3.8.1-1] [MQTT5-3.8.1-1]
        row("SUBSCRIBE without flags", version, b"\x80\x06\x00\x0a\x00\x01a\x01", E::FixedHeaderFlags);
        // [MQTT-3.10.1-1] [MQTT5-3.10.1-1]
        row("UNSUBSCRIBE without flags", version, b"\xa0\x05\x00\x0a\x00\x01a", E::FixedHeaderFlags);
        // [MQTT-3.14.1-1] [MQTT5-3.14.1-1]
        row("DISCONNECT with flags", version, b"\xe1\x00", E::FixedHeaderFlags);
        row("CONNACK with flags", version, b"\x21\x02\x00\x00", E::FixedHeaderFlags);
        row("CONNECT with flags", version, b"\x11\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01c", E::FixedHeaderFlags);
        row("PINGREQ with a body", version, b"\xc0\x01\x00", E::TrailingBytes);
        row("PINGRESP with a body", version, b"\xd0\x01\x00", E::TrailingBytes);
    }
    row("PUBREL with DUP in 3.1.1", V311, b"\x6a\x02\x00\x0a", E::FixedHeaderFlags);
    row("PUBREL with DUP in 5.0", V5, b"\x6a\x02\x00\x0a", E::FixedHeaderFlags);
    row("AUTH in 3.1", V31, b"\xf0\x00", E::PacketType);
    row("AUTH in 3.1.1", V311, b"\xf0\x00", E::PacketType);
    // [MQTT5-3.15.1-1]
    row("AUTH with flags", V5, b"\xf1\x00", E::FixedHeaderFlags);

    // CONNECT
    // [MQTT-3.1.2-1] [MQTT-3.1.2-2] [MQTT5-3.1.2-1] [MQTT5-3.1.2-2]
    row("level 3 of MQTT", V311, b"\x10\x0d\x00\x04MQTT\x03\x02\x00\x3c\x00\x01c", E::ProtocolVersion);
    row("level 4 of MQIsdp", V31, b"\x10\x0f\x00\x06MQIsdp\x04\x02\x00\x3c\x00\x01c", E::ProtocolVersion);
    row("level 6", V5, b"\x10\x0e\x00\x04MQTT\x06\x02\x00\x3c\x00\x00\x01c", E::ProtocolVersion);
    row("level 0", V5, b"\x10\x0e\x00\x04MQTT\x00\x02\x00\x3c\x00\x00\x01c", E::ProtocolVersion);
    row("level 5 of MQIsdp", V5, b"\x10\x10\x00\x06MQIsdp\x05\x02\x00\x3c\x00\x00\x01c", E::ProtocolVersion);
    row("lower case", V31, b"\x10\x0f\x00\x06mqisdp\x03\x02\x00\x3c\x00\x01c", E::ProtocolVersion);
    row("lower case", V311, b"\x10\x0d\x00\x04mqtt\x04\x02\x00\x3c\x00\x01c", E::ProtocolVersion);
    row("lower case", V5, b"\x10\x0e\x00\x04mqtt\x05\x02\x00\x3c\x00\x00\x01c", E::ProtocolVersion);
    // [MQTT-3.1.2-3] [MQTT5-3.1.2-3]
    row("reserved connect flag", V311, b"\x10\x0d\x00\x04MQTT\x04\x03\x00\x3c\x00\x01c", E::ReservedBits);
    row("reserved connect flag", V5, b"\x10\x0e\x00\x04MQTT\x05\x03\x00\x3c\x00\x00\x01c", E::ReservedBits);
    // [MQTT-3.1.2-14] [MQTT5-3.1.2-12]
    row(
        "will QoS 3",
        V311,
        b"\x10\x17\x00\x04MQTT\x04\x1e\x00\x3c\x00\x01c\x00\x03w/t\x00\x03bye",
        E::QosReserved,
    );
    row(
        "will QoS 3",
        V5,
        b"\x10\x19\x00\x04MQTT\x05\x1e\x00\x3c\x00\x00\x01c\x00\x00\x03w/t\x00\x03bye",
        E::QosReserved,
    );
    // [MQTT-3.1.2-11] [MQTT-3.1.2-13] [MQTT5-3.1.2-11]
    row("will QoS without a will", V311, b"\x10\x0d\x00\x04MQTT\x04\x0a\x00\x3c\x00\x01c", E::WillFlags);
    row("will QoS without a will", V5, b"\x10\x0e\x00\x04MQTT\x05\x0a\x00\x3c\x00\x00\x01c", E::WillFlags);
    // [MQTT-3.1.2-11] [MQTT-3.1.2-15] [MQTT5-3.1.2-13]
    row("will retain without a will", V311, b"\x10\x0d\x00\x04MQTT\x04\x22\x00\x3c\x00\x01c", E::WillFlags);
    row("will retain without a will", V5, b"\x10\x0e\x00\x04MQTT\x05\x22\x00\x3c\x00\x00\x01c", E::WillFlags);
    // [MQTT-3.1.2-22]
    row(
        "password alone",
        V311,
        b"\x10\x10\x00\x04MQTT\x04\x42\x00\x3c\x00\x01c\x00\x01p",
        E::PasswordWithoutUserName,
    );
    row(
        "password alone",
        V31,
        b"\x10\x12\x00\x06MQIsdp\x03\x42\x00\x3c\x00\x01c\x00\x01p",
        E::PasswordWithoutUserName,
    );
    // [MQTT-3.1.2-19] [MQTT-3.1.2-21] [MQTT5-3.1.2-17] [MQTT5-3.1.2-19]
    row("no user name", V311, b"\x10\x0d\x00\x04MQTT\x04\x82\x00\x3c\x00\x01c", E::Truncated);
    row("no password", V311, b"\x10\x10\x00\x04MQTT\x04\xc2\x00\x3c\x00\x01c\x00\x01u", E::Truncated);
    row("no user name", V5, b"\x10\x0e\x00\x04MQTT\x05\x82\x00\x3c\x00\x00\x01c", E::Truncated);
    row("no password", V5, b"\x10\x0e\x00\x04MQTT\x05\x42\x00\x3c\x00\x00\x01c", E::Truncated);
    // [MQTT-3.1.2-9] [MQTT5-3.1.2-9]
    row("no will", V311, b"\x10\x0d\x00\x04MQTT\x04\x06\x00\x3c\x00\x01c", E::Truncated);
    row("no will", V5, b"\x10\x0e\x00\x04MQTT\x05\x06\x00\x3c\x00\x00\x01c", E::Truncated);
    // [MQTT-3.1.2-11] [MQTT-3.1.2-18] [MQTT5-3.1.2-16]
    row("bytes left over", V311, b"\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x01c\x00\x01u", E::TrailingBytes);
    row("bytes left over", V5, b"\x10\x11\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x01c\x00\x01u", E::TrailingBytes);
    // [MQTT-3.1.2-20] [MQTT5-3.1.2-18]
    row(
        "password without its flag",
        V311,
        b"\x10\x13\x00\x04MQTT\x04\x82\x00\x3c\x00\x01c\x00\x01u\x00\x01p",
        E::TrailingBytes,
    );
    row(
        "password without its flag",
        V5,
        b"\x10\x14\x00\x04MQTT\x05\x82\x00\x3c\x00\x00\x01c\x00\x01u\x00\x01p",
        E::TrailingBytes,
    );
    // [MQTT-3.1.3-3] [MQTT5-3.1.3-3]
    row("no client id", V311, b"\x10\x0a\x00\x04MQTT\x04\x02\x00\x3c", E::Truncated);
    row("no client id", V5, b"\x10\x0b\x00\x04MQTT\x05\x02\x00\x3c\x00", E::Truncated);
    // [MQTT-1.5.3-1] [MQTT-3.1.3-4] [MQTT5-1.5.4-1] [MQTT5-3.1.3-4]
    row("client id is not UTF-8", V5, b"\x10\x0e\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x01\xff", E::InvalidUtf8);
    row("client id is not UTF-8", V311, b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01\xff", E::InvalidUtf8);
    row(
        "client id is a surrogate",
        V311,
        b"\x10\x0f\x00\x04MQTT\x04\x02\x00\x3c\x00\x03\xed\xa0\x80",
        E::InvalidUtf8,
    );
    // [MQTT-1.5.3-2] [MQTT5-1.5.4-2]
    row("client id holds NUL", V5, b"\x10\x0e\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x01\x00", E::NulInString);
    // [MQTT-3.1.3-11] [MQTT5-3.1.3-12]
    row(
        "user name is not UTF-8",
        V311,
        b"\x10\x10\x00\x04MQTT\x04\x82\x00\x3c\x00\x01c\x00\x01\xc0",
        E::InvalidUtf8,
    );
    row(
        "user name is not UTF-8",
        V5,
        b"\x10\x11\x00\x04MQTT\x05\x82\x00\x3c\x00\x00\x01c\x00\x01\xc0",
        E::InvalidUtf8,
    );
    // [MQTT-3.1.3-10] [MQTT5-3.1.3-11]
    row(
        "will topic is not UTF-8",
        V5,
        b"\x10\x14\x00\x04MQTT\x05\x06\x00\x3c\x00\x00\x01c\x00\x00\x01\xff\x00\x00",
        E::InvalidUtf8,
    );
    row(
        "will topic is not UTF-8",
        V311,
        b"\x10\x12\x00\x04MQTT\x04\x06\x00\x3c\x00\x01c\x00\x01\xff\x00\x00",
        E::InvalidUtf8,
    );
    row(
        "will topic has a wildcard",
        V311,
        b"\x10\x12\x00\x04MQTT\x04\x06\x00\x3c\x00\x01c\x00\x01#\x00\x00",
        E::TopicName,
    );
    row(
        "will topic is empty",
        V5,
        b"\x10\x13\x00\x04MQTT\x05\x06\x00\x3c\x00\x00\x01c\x00\x00\x00\x00\x00",
        E::TopicName,
    );
    row(
        "receive maximum 0",
        V5,
        b"\x10\x11\x00\x04MQTT\x05\x02\x00\x3c\x03\x21\x00\x00\x00\x01c",
        E::PropertyValue,
    );
    row(
        "maximum packet size 0",
        V5,
        b"\x10\x13\x00\x04MQTT\x05\x02\x00\x3c\x05\x27\x00\x00\x00\x00\x00\x01c",
        E::PropertyValue,
    );
    row(
        "request problem information 2",
        V5,
        b"\x10\x10\x00\x04MQTT\x05\x02\x00\x3c\x02\x17\x02\x00\x01c",
        E::PropertyValue,
    );
    row(
        "authentication data without a method",
        V5,
        b"\x10\x12\x00\x04MQTT\x05\x02\x00\x3c\x04\x16\x00\x01d\x00\x01c",
        E::AuthenticationMethodMissing,
    );
    row(
        "property twice",
        V5,
        b"\x10\x14\x00\x04MQTT\x05\x02\x00\x3c\x06\x22\x00\x01\x22\x00\x01\x00\x01c",
        E::DuplicateProperty,
    );
    row(
        "property of PUBLISH",
        V5,
        b"\x10\x11\x00\x04MQTT\x05\x02\x00\x3c\x03\x23\x00\x01\x00\x01c",
        E::PropertyNotAllowed,
    );
    row(
        "property 0x7f",
        V5,
        b"\x10\x10\x00\x04MQTT\x05\x02\x00\x3c\x02\x7f\x00\x00\x01c",
        E::PropertyNotAllowed,
    );
    row(
        "property of two bytes",
        V5,
        b"\x10\x10\x00\x04MQTT\x05\x02\x00\x3c\x02\x80\x01\x00\x01c",
        E::PropertyNotAllowed,
    );
    // [MQTT5-1.5.7-1]
    row(
        "user property is not UTF-8",
        V5,
        b"\x10\x15\x00\x04MQTT\x05\x02\x00\x3c\x07\x26\x00\x01k\x00\x01\xff\x00\x01c",
        E::InvalidUtf8,
    );
    row(
        "alias in a will",
        V5,
        b"\x10\x17\x00\x04MQTT\x05\x06\x00\x3c\x00\x00\x01c\x03\x23\x00\x01\x00\x01w\x00\x00",
        E::PropertyNotAllowed,
    );
    // with its own reason, 0x94, it would be no reason of CONNACK [MQTT5-3.2.2-8]
    row(
        "alias 0 in a will",
        V5,
        b"\x10\x17\x00\x04MQTT\x05\x06\x00\x3c\x00\x00\x01c\x03\x23\x00\x00\x00\x01w\x00\x00",
        E::PropertyNotAllowed,
    );
    row(
        "subscription identifier in a will",
        V5,
        b"\x10\x16\x00\x04MQTT\x05\x06\x00\x3c\x00\x00\x01c\x02\x0b\x01\x00\x01w\x00\x00",
        E::PropertyNotAllowed,
    );
    // [MQTT5-1.5.5-1]
    row(
        "property length of more bytes than needed",
        V5,
        b"\x10\x0f\x00\x04MQTT\x05\x02\x00\x3c\x80\x00\x00\x01c",
        E::VariableByteInteger,
    );
    row(
        "property length of five bytes",
        V5,
        b"\x10\x12\x00\x04MQTT\x05\x02\x00\x3c\x80\x80\x80\x80\x01\x00\x01c",
        E::VariableByteInteger,
    );

    // CONNACK
    row("return code 6", V311, b"\x20\x02\x00\x06", E::ReasonCode);
    row("reserved acknowledge flag", V311, b"\x20\x02\x02\x00", E::ReservedBits);
    // [MQTT5-3.2.2-1]
    row("reserved acknowledge flag", V5, b"\x20\x03\x80\x00\x00", E::ReservedBits);
    // [MQTT-3.2.2-4] [MQTT5-3.2.2-6]
    row("session present and refused", V311, b"\x20\x02\x01\x02", E::SessionPresent);
    row("session present and refused", V5, b"\x20\x03\x01\x87\x00", E::SessionPresent);
    row("longer than it is", V311, b"\x20\x03\x00\x00\x00", E::TrailingBytes);
    row("longer than it is", V5, b"\x20\x04\x00\x00\x00\x00", E::TrailingBytes);
    // [MQTT5-3.2.2-8]
    row("unknown reason", V5, b"\x20\x03\x00\x01\x00", E::ReasonCode);
    row("maximum QoS 2", V5, b"\x20\x05\x00\x00\x02\x24\x02", E::PropertyValue);
    row("property twice", V5, b"\x20\x07\x00\x00\x04\x24\x01\x24\x01", E::DuplicateProperty);
    row("property of CONNECT", V5, b"\x20\x05\x00\x00\x02\x17\x01", E::PropertyNotAllowed);

    // PUBLISH
    for version in [V31, V311, V5] {
        // [MQTT-3.3.1-4] [MQTT5-3.3.1-4]
        row("QoS 3", version, b"\x36\x0a\x00\x03a/b\x00\x0a\x00hi", E::QosReserved);
        // [MQTT-3.3.1-2] [MQTT5-3.3.1-2]
        row("DUP with QoS 0", version, b"\x38\x08\x00\x03a/b\x00hi", E::DupWithQos0);
        // [MQTT-2.3.1-1] [MQTT5-2.2.1-3]
        row("packet id 0", version, b"\x32\x0a\x00\x03a/b\x00\x00\x00hi", E::PacketIdZero);
        // [MQTT-3.3.2-2] [MQTT5-3.3.2-2]
        row("wildcard +", version, b"\x30\x06\x00\x03a/+\x00", E::TopicName);
        row("wildcard #", version, b"\x30\x06\x00\x03a/#\x00", E::TopicName);
        // [MQTT-3.3.2-1] [MQTT5-3.3.2-1]
        row("name is not UTF-8", version, b"\x30\x06\x00\x03a\xff+\x00", E::InvalidUtf8);
        // [MQTT-4.7.3-2] [MQTT5-4.7.3-2]
        row("name holds NUL", version, b"\x30\x06\x00\x03a\x00+\x00", E::NulInString);
        row("name longer than the packet", version, b"\x30\x06\x00\x09a/b\x00", E::Truncated);
    }
    // [MQTT-4.7.3-1]
    row("no name", V31, b"\x30\x04\x00\x00hi", E::TopicName);
    row("no name", V311, b"\x30\x04\x00\x00hi", E::TopicName);
    row("no name and no alias", V5, b"\x30\x05\x00\x00\x00hi", E::TopicMissing);
    // [MQTT5-3.3.2-8]
    row("alias 0", V5, b"\x30\x0b\x00\x03a/b\x03\x23\x00\x00hi", E::TopicAliasZero);
    row("alias twice", V5, b"\x30\x0e\x00\x03a/b\x06\x23\x00\x01\x23\x00\x01hi", E::DuplicateProperty);
    row("payload format 2", V5, b"\x30\x0a\x00\x03a/b\x02\x01\x02hi", E::PropertyValue);
    // [MQTT5-3.3.2-13]
    row("response topic is not UTF-8", V5, b"\x30\x0c\x00\x03a/b\x04\x08\x00\x01\xffhi", E::InvalidUtf8);
    // [MQTT5-3.3.2-14]
    row("response topic has a wildcard", V5, b"\x30\x0c\x00\x03a/b\x04\x08\x00\x01+hi", E::PropertyValue);
    row("response topic is empty", V5, b"\x30\x0b\x00\x03a/b\x03\x08\x00\x00hi", E::PropertyValue);
    // [MQTT5-3.3.2-19]
    row("content type is not UTF-8", V5, b"\x30\x0c\x00\x03a/b\x04\x03\x00\x01\xffhi", E::InvalidUtf8);
    row("subscription identifier 0", V5, b"\x30\x0a\x00\x03a/b\x02\x0b\x00hi", E::PropertyValue);
    row("will delay", V5, b"\x30\x0d\x00\x03a/b\x05\x18\x00\x00\x00\x01hi", E::PropertyNotAllowed);
    row("reason string", V5, b"\x30\x0c\x00\x03a/b\x04\x1f\x00\x01rhi", E::PropertyNotAllowed);
    row("properties longer than the packet", V5, b"\x30\x08\x00\x03a/b\x03hi", E::Truncated);

    // PUBACK, PUBREC, PUBREL, PUBCOMP
    for (zero, long, reason) in [
        (&b"\x40\x02\x00\x00"[..], &b"\x40\x03\x00\x0a\x00"[..], &b"\x40\x03\x00\x0a\x92"[..]),
        (b"\x50\x02\x00\x00", b"\x50\x03\x00\x0a\x00", b"\x50\x03\x00\x0a\x92"),
        (b"\x62\x02\x00\x00", b"\x62\x03\x00\x0a\x00", b"\x62\x03\x00\x0a\x10"),
        (b"\x70\x02\x00\x00", b"\x70\x03\x00\x0a\x00", b"\x70\x03\x00\x0a\x97"),
    ] {
        for version in [V31, V311, V5] {
            row("packet id 0", version, zero, E::PacketIdZero);
        }
        row("longer than it is", V31, long, E::TrailingBytes);
        row("longer than it is", V311, long, E::TrailingBytes);
        // [MQTT5-3.4.2-1] [MQTT5-3.5.2-1] [MQTT5-3.6.2-1] [MQTT5-3.7.2-1]
        row("reason of another packet", V5, reason, E::ReasonCode);
    }
    row("bytes left over", V5, b"\x40\x05\x00\x0a\x00\x00\x00", E::TrailingBytes);
    row(
        "reason string twice",
        V5,
        b"\x40\x0c\x00\x0a\x80\x08\x1f\x00\x01r\x1f\x00\x01r",
        E::DuplicateProperty,
    );
    row("another property", V5, b"\x40\x07\x00\x0a\x80\x03\x22\x00\x01", E::PropertyNotAllowed);

    // SUBSCRIBE and SUBACK
    for version in [V31, V311, V5] {
        row("packet id 0", version, b"\x82\x07\x00\x00\x00\x00\x01a\x01", E::PacketIdZero);
        row("packet id 0", version, b"\x90\x03\x00\x00\x00", E::PacketIdZero);
    }
    // [MQTT-3.8.3-3] [MQTT5-3.8.3-2]
    row("no filter", V31, b"\x82\x02\x00\x0a", E::NoTopicFilter);
    row("no filter", V311, b"\x82\x02\x00\x0a", E::NoTopicFilter);
    row("no filter", V5, b"\x82\x03\x00\x0a\x00", E::NoTopicFilter);
    // [MQTT-3.8.3-1] [MQTT5-3.8.3-1]
    row("filter is not UTF-8", V311, b"\x82\x06\x00\x0a\x00\x01\xff\x01", E::InvalidUtf8);
    row("filter holds NUL", V5, b"\x82\x07\x00\x0a\x00\x00\x01\x00\x01", E::NulInString);
    // [MQTT-3.8.3-4]
    row("QoS 3", V311, b"\x82\x06\x00\x0a\x00\x01a\x03", E::QosReserved);
    row("5.0 option", V311, b"\x82\x06\x00\x0a\x00\x01a\x04", E::ReservedBits);
    row("QoS 3", V5, b"\x82\x07\x00\x0a\x00\x00\x01a\x03", E::SubscriptionOptions);
    row("retain handling 3", V5, b"\x82\x07\x00\x0a\x00\x00\x01a\x30", E::SubscriptionOptions);
    // [MQTT5-3.8.3-5]
    row("reserved option bit 6", V5, b"\x82\x07\x00\x0a\x00\x00\x01a\x40", E::ReservedBits);
    row("reserved option bit 7", V5, b"\x82\x07\x00\x0a\x00\x00\x01a\x80", E::ReservedBits);
    // [MQTT5-3.8.3-4]
    row("no local and shared", V5, b"\x82\x0f\x00\x0a\x00\x00\x09$share/ga\x04", E::NoLocalOnShared);
    row("subscription identifier 0", V5, b"\x82\x09\x00\x0a\x02\x0b\x00\x00\x01a\x01", E::PropertyValue);
    row(
        "subscription identifier twice",
        V5,
        b"\x82\x0b\x00\x0a\x04\x0b\x01\x0b\x01\x00\x01a\x01",
        E::DuplicateProperty,
    );
    row("another property", V5, b"\x82\x0a\x00\x0a\x03\x22\x00\x01\x00\x01a\x01", E::PropertyNotAllowed);
    // [MQTT-3.9.3-2] [MQTT5-3.9.3-2]
    row("code 3", V311, b"\x90\x03\x00\x0a\x03", E::ReasonCode);
    row("code of 5.0", V311, b"\x90\x03\x00\x0a\x87", E::ReasonCode);
    row("code 3", V5, b"\x90\x04\x00\x0a\x00\x03", E::ReasonCode);
    row("no code", V311, b"\x90\x02\x00\x0a", E::Truncated);

    // UNSUBSCRIBE and UNSUBACK
    for version in [V31, V311, V5] {
        row("packet id 0", version, b"\xa2\x06\x00\x00\x00\x00\x01a", E::PacketIdZero);
        row("packet id 0", version, b"\xb0\x02\x00\x00", E::PacketIdZero);
    }
    // [MQTT-3.10.3-2] [MQTT5-3.10.3-2]
    row("no filter", V311, b"\xa2\x02\x00\x0a", E::NoTopicFilter);
    row("no filter", V5, b"\xa2\x03\x00\x0a\x00", E::NoTopicFilter);
    // [MQTT-3.10.3-1] [MQTT5-3.10.3-1]
    row("filter is not UTF-8", V311, b"\xa2\x05\x00\x0a\x00\x01\xff", E::InvalidUtf8);
    row("another property", V5, b"\xa2\x08\x00\x0a\x02\x0b\x01\x00\x01a", E::PropertyNotAllowed);
    row("codes before 5.0", V311, b"\xb0\x03\x00\x0a\x00", E::TrailingBytes);
    // [MQTT5-3.11.3-2]
    row("code of SUBACK", V5, b"\xb0\x04\x00\x0a\x00\x01", E::ReasonCode);

    // DISCONNECT and AUTH
    row("reason before 5.0", V311, b"\xe0\x01\x00", E::TrailingBytes);
    // [MQTT5-3.14.2-1]
    row("unknown reason", V5, b"\xe0\x01\x01", E::ReasonCode);
    row("bytes left over", V5, b"\xe0\x03\x00\x00\x00", E::TrailingBytes);
    row(
        "property twice",
        V5,
        b"\xe0\x0c\x00\x0a\x11\x00\x00\x00\x01\x11\x00\x00\x00\x01",
        E::DuplicateProperty,
    );
    row("another property", V5, b"\xe0\x05\x00\x03\x22\x00\x01", E::PropertyNotAllowed);
    // [MQTT5-3.15.2-1]
    row("unknown reason", V5, b"\xf0\x06\x01\x04\x15\x00\x01m", E::ReasonCode);
    row("no method", V5, b"\xf0\x02\x18\x00", E::AuthenticationMethodMissing);
    row("method twice", V5, b"\xf0\x0a\x18\x08\x15\x00\x01m\x15\x00\x01m", E::DuplicateProperty);
    row("another property", V5, b"\xf0\x05\x18\x03\x22\x00\x01", E::PropertyNotAllowed);
    row("bytes left over", V5, b"\xf0\x07\x18\x04\x15\x00\x01m\x00", E::TrailingBytes);
    rows
}
