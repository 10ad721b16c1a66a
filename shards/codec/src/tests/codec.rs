// SPDX-License-Identifier: Apache-2.0
//! The table, in all three uses: decode, encode, reject.

use super::table::{invalid, valid};
use crate::{
    Ack, ConnAck, ConnAckProperties, Disconnect, ErrorKind, Frame, Packet, PacketId, ReasonCode,
    SubAck, UserProperties, Version, connect_version, decode, encode, frame, packet_type,
};

fn whole(bytes: &[u8]) -> Frame<'_> {
    let (frame, total) = frame(bytes, u32::MAX).unwrap().unwrap();
    assert_eq!(
        total,
        bytes.len(),
        "Remaining Length is wrong: {bytes:02x?}"
    );
    frame
}

#[test]
fn valid_bytes_decode_to_their_packet() {
    for row in valid() {
        let packet = decode(whole(row.bytes), row.version);
        assert_eq!(
            packet.as_ref(),
            Ok(&row.packet),
            "{} {:?} {:02x?}",
            row.name,
            row.version,
            row.bytes
        );
    }
}

#[test]
fn packets_encode_to_their_bytes() {
    for row in valid().into_iter().filter(|row| row.encoded_so) {
        let mut out = b"before".to_vec();
        encode(&row.packet, row.version, &mut out);
        assert_eq!(
            out.strip_prefix(b"before"),
            Some(row.bytes),
            "{} {:?}",
            row.name,
            row.version
        );
    }
}

#[test]
fn what_is_spelled_out_encodes_to_a_shorter_form_of_the_same() {
    for row in valid().into_iter().filter(|row| !row.encoded_so) {
        let mut out = Vec::new();
        encode(&row.packet, row.version, &mut out);
        assert!(
            out.len() <= row.bytes.len(),
            "{} {:?}",
            row.name,
            row.version
        );
        assert_eq!(
            decode(whole(&out), row.version),
            Ok(row.packet),
            "{}",
            row.name
        );
    }
}

#[test]
fn invalid_bytes_are_refused_with_their_reason() {
    for row in invalid() {
        let error = decode(whole(row.bytes), row.version).map_err(|error| error.kind);
        assert_eq!(
            error,
            Err(row.kind),
            "{} {:?} {:02x?}",
            row.name,
            row.version,
            row.bytes
        );
    }
}

#[test]
fn every_kind_of_error_has_a_row() {
    // these two are found before there is a whole packet
    let by_frame = [ErrorKind::RemainingLength, ErrorKind::PacketTooLarge];
    let kinds: Vec<ErrorKind> = invalid()
        .iter()
        .map(|row| row.kind)
        .chain(by_frame)
        .collect();
    let all = [
        ErrorKind::RemainingLength,
        ErrorKind::PacketType,
        ErrorKind::FixedHeaderFlags,
        ErrorKind::Truncated,
        ErrorKind::TrailingBytes,
        ErrorKind::VariableByteInteger,
        ErrorKind::InvalidUtf8,
        ErrorKind::NulInString,
        ErrorKind::ReservedBits,
        ErrorKind::QosReserved,
        ErrorKind::DupWithQos0,
        ErrorKind::WillFlags,
        ErrorKind::PasswordWithoutUserName,
        ErrorKind::PropertyNotAllowed,
        ErrorKind::DuplicateProperty,
        ErrorKind::PropertyValue,
        ErrorKind::PacketIdZero,
        ErrorKind::TopicMissing,
        ErrorKind::NoTopicFilter,
        ErrorKind::SubscriptionOptions,
        ErrorKind::NoLocalOnShared,
        ErrorKind::ReasonCode,
        ErrorKind::AuthenticationMethodMissing,
        ErrorKind::SessionPresent,
        ErrorKind::TopicName,
        ErrorKind::TopicAliasZero,
        ErrorKind::ProtocolVersion,
        ErrorKind::PacketTooLarge,
    ];
    for kind in all {
        assert!(kinds.contains(&kind), "{kind:?}");
        assert!(kind.reason().is_error(), "{kind:?}");
    }
}

#[test]
fn a_packet_cut_anywhere_is_refused_or_another_packet() {
    for row in valid() {
        let body = whole(row.bytes).body;
        for cut in 0..body.len() {
            let frame = Frame {
                first: row.bytes[0],
                body: &body[..cut],
            };
            if let Ok(packet) = decode(frame, row.version) {
                // what is optional at the end may be gone, and a default that was spelled out
                let same = packet == row.packet;
                assert!(
                    !same || !row.encoded_so,
                    "{} {:?} cut at {cut}",
                    row.name,
                    row.version
                );
            }
        }
    }
}

#[test]
fn a_property_block_cut_anywhere_is_refused_or_another_packet() {
    let mut blocks = 0;
    for row in valid()
        .into_iter()
        .filter(|row| row.version == Version::V5 && row.encoded_so)
    {
        // where the length of the block is; all are below 128
        let at = match row.bytes[0] {
            0x10 => 10,
            0x32 => 7,
            0x20 | 0x82 | 0x90 | 0xa2 | 0xb0 => 2,
            0x40..=0x7f => 3,
            0xe0 | 0xf0 => 1,
            _ => continue,
        };
        let body = whole(row.bytes).body;
        for shorter in 0..body.get(at).copied().unwrap_or(0) {
            let mut cut = body.to_vec();
            cut[at] = shorter;
            let packet = decode(
                Frame {
                    first: row.bytes[0],
                    body: &cut,
                },
                Version::V5,
            );
            assert_ne!(
                packet,
                Ok(row.packet.clone()),
                "{} cut at {shorter}",
                row.name
            );
            blocks += 1;
        }
    }
    assert!(blocks > 100);
}

#[test]
fn bytes_behind_the_last_field_are_refused() {
    for row in valid() {
        // PUBLISH ends in its payload; in lists, this byte is neither a whole filter nor a code
        if row.bytes[0] >> 4 == packet_type::PUBLISH {
            continue;
        }
        let mut body = whole(row.bytes).body.to_vec();
        body.push(0xff);
        let packet = decode(
            Frame {
                first: row.bytes[0],
                body: &body,
            },
            row.version,
        );
        assert!(packet.is_err(), "{} {:?} {packet:?}", row.name, row.version);
    }
}

#[test]
fn connect_says_its_version_even_if_malformed() {
    for row in valid() {
        if let Packet::Connect(connect) = &row.packet {
            assert_eq!(connect_version(whole(row.bytes)), Ok(connect.version));
        } else {
            assert_eq!(
                connect_version(whole(row.bytes)).unwrap_err().kind,
                ErrorKind::PacketType
            );
        }
    }
    let malformed = Frame {
        first: 0x10,
        body: b"\x00\x04MQTT\x05\xff",
    };
    assert_eq!(connect_version(malformed), Ok(Version::V5));
}

/// Section 3.2.2.3 of 3.1.1 has five ways to refuse.
#[test]
fn connack_reasons_become_return_codes_before_5() {
    for (reason, code) in [
        (ReasonCode::SUCCESS, 0),
        (ReasonCode::UNSUPPORTED_PROTOCOL_VERSION, 1),
        (ReasonCode::CLIENT_IDENTIFIER_NOT_VALID, 2),
        (ReasonCode::SERVER_UNAVAILABLE, 3),
        (ReasonCode::SERVER_BUSY, 3),
        (ReasonCode::QUOTA_EXCEEDED, 3),
        (ReasonCode::CONNECTION_RATE_EXCEEDED, 3),
        (ReasonCode::BAD_USER_NAME_OR_PASSWORD, 4),
        (ReasonCode::BAD_AUTHENTICATION_METHOD, 4),
        (ReasonCode::NOT_AUTHORIZED, 5),
        (ReasonCode::BANNED, 5),
        (ReasonCode::UNSPECIFIED_ERROR, 3),
    ] {
        let properties = ConnAckProperties {
            reason_string: Some("why"),
            ..Default::default()
        };
        let packet = Packet::ConnAck(ConnAck {
            session_present: false,
            reason,
            properties,
        });
        for version in [Version::V31, Version::V311] {
            let mut out = Vec::new();
            encode(&packet, version, &mut out);
            assert_eq!(out, [0x20, 2, 0, code], "{reason}");
        }
    }
}

/// An authority may give any reason; each packet has those that it can carry.
#[test]
fn a_reason_that_its_packet_cannot_carry_is_unspecified() {
    for code in 0..=u8::MAX {
        // [MQTT5-3.2.2-8]
        let packet = Packet::ConnAck(ConnAck {
            session_present: false,
            reason: ReasonCode(code),
            properties: ConnAckProperties::default(),
        });
        let mut out = Vec::new();
        encode(&packet, Version::V5, &mut out);
        let sent = match code {
            0 | 0x80..=0x8A | 0x8C | 0x90 | 0x95 | 0x97 | 0x99..=0x9D | 0x9F => code,
            _ => 0x80,
        };
        assert_eq!(out, [0x20, 3, 0, sent, 0], "CONNACK {code:#x}");
        // [MQTT5-3.14.2-1]
        let packet = Packet::Disconnect(Disconnect::new(ReasonCode(code)));
        let mut out = Vec::new();
        encode(&packet, Version::V5, &mut out);
        let sent = match code {
            0 => &[0xe0, 0][..],
            4 | 0x80..=0x83 | 0x87 | 0x89 | 0x8B..=0x90 | 0x93..=0xA2 => &[0xe0, 1, code],
            _ => &[0xe0, 1, 0x80],
        };
        assert_eq!(out, sent, "DISCONNECT {code:#x}");
    }
}

#[test]
fn what_only_5_has_is_left_out_before() {
    let packet_id = PacketId::new(10).unwrap();
    let reason_string = Some("why");
    let mut out = Vec::new();
    let ack = Ack {
        reason_string,
        ..Ack::new(packet_id, ReasonCode::QUOTA_EXCEEDED)
    };
    encode(&Packet::PubAck(ack), Version::V311, &mut out);
    let user_properties = UserProperties::EMPTY;
    let codes = &[0, 2, 0x87, 0x8f];
    let suback = SubAck {
        packet_id,
        reason_string,
        user_properties,
        codes,
    };
    // [MQTT-3.9.3-2]
    encode(&Packet::SubAck(suback.clone()), Version::V311, &mut out);
    encode(&Packet::UnsubAck(suback), Version::V311, &mut out);
    assert_eq!(
        out,
        b"\x40\x02\x00\x0a\x90\x06\x00\x0a\x00\x02\x80\x80\xb0\x02\x00\x0a"
    );
}

#[test]
fn long_packets_have_long_lengths() {
    // a body and a property block of more than 127 and more than 16,383 bytes
    for bytes in [100, 122, 123, 124, 127, 128, 16_370, 16_384, 65_535] {
        let text = "x".repeat(bytes);
        let ack = Ack {
            reason_string: Some(&text),
            ..Ack::new(PacketId::new(1).unwrap(), ReasonCode::QUOTA_EXCEEDED)
        };
        let mut out = Vec::new();
        encode(&Packet::PubAck(ack), Version::V5, &mut out);
        assert_eq!(decode(whole(&out), Version::V5), Ok(Packet::PubAck(ack)));
    }
}
