// SPDX-License-Identifier: Apache-2.0

//! The MQTT bytes that a load generator needs, for 3.1.1 and 5.0.
//!
//! Written apart from the broker's codec on purpose: a generator that shares the broker's encoder cannot see its
//! mistakes. Nothing here allocates per message; a PUBLISH is a template that is copied and patched.

use std::fmt;

/// Packet types, as they stand in the high nibble of the first byte.
pub(crate) mod kind {
    pub(crate) const CONNECT: u8 = 1;
    pub(crate) const CONNACK: u8 = 2;
    pub(crate) const PUBLISH: u8 = 3;
    pub(crate) const PUBACK: u8 = 4;
    pub(crate) const PUBREC: u8 = 5;
    pub(crate) const PUBREL: u8 = 6;
    pub(crate) const PUBCOMP: u8 = 7;
    pub(crate) const SUBSCRIBE: u8 = 8;
    pub(crate) const SUBACK: u8 = 9;
    pub(crate) const PINGREQ: u8 = 12;
    pub(crate) const PINGRESP: u8 = 13;
    pub(crate) const DISCONNECT: u8 = 14;
}

/// The flag of a PUBLISH that is to be retained.
const RETAIN: u8 = 0x01;

pub(crate) const DISCONNECT: [u8; 2] = [kind::DISCONNECT << 4, 0];

/// Bytes of the stamp that opens every payload: run, publisher, sequence number, intended send time.
pub(crate) const STAMP_BYTES: usize = 24;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    V311,
    V5,
}

/// What the peer sent is not MQTT as this module knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WireError {
    RemainingLength,
    Truncated(u8),
    Reserved(u8),
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RemainingLength => write!(
                f,
                "the broker sent a remaining length of more than four bytes"
            ),
            Self::Truncated(first) => write!(
                f,
                "the broker sent a packet (first byte {first:#04x}) that ends too early"
            ),
            Self::Reserved(first) => write!(
                f,
                "the broker sent a packet with the impossible first byte {first:#04x}"
            ),
        }
    }
}

impl std::error::Error for WireError {}

/// Splits the first whole packet off `bytes`: its first byte, where its body starts and where it ends.
/// `None` when more bytes are needed.
#[inline]
pub(crate) fn split(bytes: &[u8]) -> Result<Option<Packet>, WireError> {
    let Some(&first) = bytes.first() else {
        return Ok(None);
    };
    match varint(bytes.get(1..).unwrap_or(&[])) {
        Varint::Value(length, used) => {
            let body = 1 + used;
            let end = body + length;
            Ok((bytes.len() >= end).then_some(Packet { first, body, end }))
        }
        Varint::Short => Ok(None),
        Varint::TooLong => Err(WireError::RemainingLength),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) first: u8,
    pub(crate) body: usize,
    pub(crate) end: usize,
}

enum Varint {
    Value(usize, usize),
    Short,
    TooLong,
}

#[inline]
fn varint(bytes: &[u8]) -> Varint {
    let mut value = 0;
    for (at, &byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Varint::Value(value, at + 1);
        }
    }
    if bytes.len() >= 4 {
        Varint::TooLong
    } else {
        Varint::Short
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: usize) {
    assert!(
        value < 1 << 28,
        "a packet of the generator fits a remaining length"
    );
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    let length = u16::try_from(text.len()).expect("names of the generator are short");
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn put_packet(out: &mut Vec<u8>, first: u8, body: &[u8]) {
    out.push(first);
    put_varint(out, body.len());
    out.extend_from_slice(body);
}

/// How a client introduces itself.
#[derive(Clone, Debug)]
pub(crate) struct Hello {
    pub(crate) protocol: Protocol,
    pub(crate) client_id: String,
    /// Clean session (3.1.1), or Clean Start with no session expiry (5.0).
    pub(crate) clean: bool,
    pub(crate) keep_alive_secs: u16,
}

/// How long a persistent session of a 5.0 client may outlive its connection.
const SESSION_EXPIRY_SECS: u32 = 3600;

pub(crate) fn connect(out: &mut Vec<u8>, hello: &Hello) {
    let mut body = Vec::with_capacity(32 + hello.client_id.len());
    put_text(&mut body, "MQTT");
    body.push(match hello.protocol {
        Protocol::V311 => 4,
        Protocol::V5 => 5,
    });
    body.push(if hello.clean { 0x02 } else { 0x00 });
    body.extend_from_slice(&hello.keep_alive_secs.to_be_bytes());
    if hello.protocol == Protocol::V5 {
        if hello.clean {
            body.push(0);
        } else {
            body.extend_from_slice(&[5, 0x11]);
            body.extend_from_slice(&SESSION_EXPIRY_SECS.to_be_bytes());
        }
    }
    put_text(&mut body, &hello.client_id);
    put_packet(out, kind::CONNECT << 4, &body);
}

/// What CONNACK says: the code (0 is success) and how many QoS 1/2 messages may be unacknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Welcome {
    pub(crate) code: u8,
    pub(crate) receive_maximum: u16,
}

pub(crate) fn connack(body: &[u8], protocol: Protocol) -> Result<Welcome, WireError> {
    const FIRST: u8 = kind::CONNACK << 4;
    let (&[_, code], mut rest) = body
        .split_first_chunk::<2>()
        .ok_or(WireError::Truncated(FIRST))?;
    let mut welcome = Welcome {
        code,
        receive_maximum: u16::MAX,
    };
    if protocol == Protocol::V311 {
        return Ok(welcome);
    }
    let Varint::Value(length, used) = varint(rest) else {
        return Err(WireError::Truncated(FIRST));
    };
    rest = rest
        .get(used..used + length)
        .ok_or(WireError::Truncated(FIRST))?;
    while let Some((&id, after)) = rest.split_first() {
        let size = match id {
            0x24 | 0x25 | 0x28 | 0x29 | 0x2a => 1,
            0x13 | 0x21 | 0x22 => 2,
            0x11 | 0x27 => 4,
            0x12 | 0x15 | 0x16 | 0x1a | 0x1c | 0x1f => {
                2 + text_bytes(after).ok_or(WireError::Truncated(FIRST))?
            }
            0x26 => {
                let name = 2 + text_bytes(after).ok_or(WireError::Truncated(FIRST))?;
                let value = after
                    .get(name..)
                    .and_then(text_bytes)
                    .ok_or(WireError::Truncated(FIRST))?;
                name + 2 + value
            }
            _ => return Err(WireError::Reserved(FIRST)),
        };
        let value = after.get(..size).ok_or(WireError::Truncated(FIRST))?;
        if let (0x21, &[high, low]) = (id, value) {
            welcome.receive_maximum = u16::from_be_bytes([high, low]);
        }
        rest = &after[size..];
    }
    Ok(welcome)
}

fn text_bytes(bytes: &[u8]) -> Option<usize> {
    bytes
        .first_chunk::<2>()
        .map(|length| usize::from(u16::from_be_bytes(*length)))
}

pub(crate) fn subscribe(
    out: &mut Vec<u8>,
    protocol: Protocol,
    packet_id: u16,
    filters: &[String],
    qos: u8,
) {
    let mut body = Vec::new();
    body.extend_from_slice(&packet_id.to_be_bytes());
    if protocol == Protocol::V5 {
        body.push(0);
    }
    for filter in filters {
        put_text(&mut body, filter);
        body.push(qos);
    }
    put_packet(out, kind::SUBSCRIBE << 4 | 0x02, &body);
}

/// The granted codes of a SUBACK, one per filter.
pub(crate) fn suback(body: &[u8], protocol: Protocol) -> Result<&[u8], WireError> {
    const FIRST: u8 = kind::SUBACK << 4;
    let rest = body.get(2..).ok_or(WireError::Truncated(FIRST))?;
    match protocol {
        Protocol::V311 => Ok(rest),
        Protocol::V5 => match varint(rest) {
            Varint::Value(length, used) => {
                rest.get(used + length..).ok_or(WireError::Truncated(FIRST))
            }
            _ => Err(WireError::Truncated(FIRST)),
        },
    }
}

/// The retained QoS 1 message without payload that takes a topic's retained message away.
pub(crate) fn clear_retained(out: &mut Vec<u8>, protocol: Protocol, topic: &str, packet_id: u16) {
    let mut body = Vec::with_capacity(topic.len() + 5);
    put_text(&mut body, topic);
    body.extend_from_slice(&packet_id.to_be_bytes());
    if protocol == Protocol::V5 {
        body.push(0);
    }
    put_packet(out, kind::PUBLISH << 4 | 0x02 | RETAIN, &body);
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP with success.
#[inline]
pub(crate) fn ack(out: &mut Vec<u8>, kind: u8, packet_id: u16) {
    let flags = if kind == kind::PUBREL { 0x02 } else { 0 };
    let [high, low] = packet_id.to_be_bytes();
    out.extend_from_slice(&[kind << 4 | flags, 2, high, low]);
}

/// Packet id and reason code of an acknowledgement; 3.1.1 and the short form of 5.0 mean success.
#[inline]
pub(crate) fn acked(first: u8, body: &[u8]) -> Result<(u16, u8), WireError> {
    let id = body.first_chunk::<2>().ok_or(WireError::Truncated(first))?;
    Ok((u16::from_be_bytes(*id), body.get(2).copied().unwrap_or(0)))
}

/// A PUBLISH as it arrives, read in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Delivery<'a> {
    pub(crate) qos: u8,
    pub(crate) packet_id: u16,
    pub(crate) topic: &'a [u8],
    pub(crate) payload: &'a [u8],
}

#[inline]
pub(crate) fn delivery(
    first: u8,
    body: &[u8],
    protocol: Protocol,
) -> Result<Delivery<'_>, WireError> {
    let short = WireError::Truncated(first);
    let qos = first >> 1 & 3;
    if qos == 3 {
        return Err(WireError::Reserved(first));
    }
    let topic_end = 2 + text_bytes(body).ok_or(short)?;
    let topic = body.get(2..topic_end).ok_or(short)?;
    let mut rest = &body[topic_end..];
    let mut packet_id = 0;
    if qos > 0 {
        let (id, after) = rest.split_first_chunk::<2>().ok_or(short)?;
        packet_id = u16::from_be_bytes(*id);
        rest = after;
    }
    if protocol == Protocol::V5 {
        let Varint::Value(length, used) = varint(rest) else {
            return Err(short);
        };
        rest = rest.get(used + length..).ok_or(short)?;
    }
    Ok(Delivery {
        qos,
        packet_id,
        topic,
        payload: rest,
    })
}

/// Who sent a message, as which one, and when it should have left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) run: u32,
    pub(crate) publisher: u32,
    pub(crate) sequence: u64,
    pub(crate) intended_ns: u64,
}

impl Stamp {
    /// `None` when the payload is too short to carry a stamp.
    #[inline]
    pub(crate) fn read(payload: &[u8]) -> Option<Self> {
        let (run, rest) = payload.split_first_chunk::<4>()?;
        let (publisher, rest) = rest.split_first_chunk::<4>()?;
        let (sequence, rest) = rest.split_first_chunk::<8>()?;
        let intended = rest.first_chunk::<8>()?;
        Some(Self {
            run: u32::from_be_bytes(*run),
            publisher: u32::from_be_bytes(*publisher),
            sequence: u64::from_be_bytes(*sequence),
            intended_ns: u64::from_be_bytes(*intended),
        })
    }
}

/// The bytes of one publisher's PUBLISH; each message is a copy with packet id, sequence number and time patched in.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    bytes: Vec<u8>,
    packet_id_at: Option<usize>,
    sequence_at: usize,
}

impl Template {
    pub(crate) fn new(
        protocol: Protocol,
        topic: &str,
        qos: u8,
        run: u32,
        publisher: u32,
        payload_bytes: usize,
    ) -> Self {
        assert!(payload_bytes >= STAMP_BYTES, "the payload holds the stamp");
        let mut body = Vec::with_capacity(topic.len() + payload_bytes + 8);
        put_text(&mut body, topic);
        let mut packet_id_at = None;
        if qos > 0 {
            packet_id_at = Some(body.len());
            body.extend_from_slice(&[0, 0]);
        }
        if protocol == Protocol::V5 {
            body.push(0);
        }
        let stamp_at = body.len();
        body.extend_from_slice(&run.to_be_bytes());
        body.extend_from_slice(&publisher.to_be_bytes());
        body.resize(stamp_at + STAMP_BYTES, 0);
        body.extend((STAMP_BYTES..payload_bytes).map(|at| b'a' + (at % 26) as u8));

        let mut bytes = Vec::with_capacity(body.len() + 5);
        put_packet(&mut bytes, kind::PUBLISH << 4 | qos << 1, &body);
        let head = bytes.len() - body.len();
        Self {
            bytes,
            packet_id_at: packet_id_at.map(|at| head + at),
            sequence_at: head + stamp_at + 8,
        }
    }

    /// The same message, to be retained.
    pub(crate) fn retained(mut self) -> Self {
        self.bytes[0] |= RETAIN;
        self
    }

    #[inline]
    pub(crate) fn put(&self, out: &mut Vec<u8>, packet_id: u16, sequence: u64, intended_ns: u64) {
        let start = out.len();
        out.extend_from_slice(&self.bytes);
        let packet = &mut out[start..];
        if let Some(at) = self.packet_id_at {
            packet[at..at + 2].copy_from_slice(&packet_id.to_be_bytes());
        }
        let stamp = &mut packet[self.sequence_at..self.sequence_at + 16];
        stamp[..8].copy_from_slice(&sequence.to_be_bytes());
        stamp[8..].copy_from_slice(&intended_ns.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body_of(bytes: &[u8]) -> (u8, &[u8]) {
        let packet = split(bytes).expect("well formed").expect("whole");
        assert_eq!(packet.end, bytes.len());
        (packet.first, &bytes[packet.body..])
    }

    #[test]
    fn connect_of_both_versions_is_the_specified_bytes() {
        let mut out = Vec::new();
        let mut hello = Hello {
            protocol: Protocol::V311,
            client_id: "ab".into(),
            clean: true,
            keep_alive_secs: 60,
        };
        connect(&mut out, &hello);
        assert_eq!(out, b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x3c\x00\x02ab");

        out.clear();
        hello.protocol = Protocol::V5;
        hello.clean = false;
        connect(&mut out, &hello);
        assert_eq!(
            out,
            b"\x10\x14\x00\x04MQTT\x05\x00\x00\x3c\x05\x11\x00\x00\x0e\x10\x00\x02ab"
        );
    }

    #[test]
    fn subscribe_of_both_versions_is_the_specified_bytes() {
        let mut out = Vec::new();
        subscribe(&mut out, Protocol::V311, 7, &["a/b".into()], 1);
        assert_eq!(out, b"\x82\x08\x00\x07\x00\x03a/b\x01");
        out.clear();
        subscribe(&mut out, Protocol::V5, 7, &["a".into(), "b".into()], 2);
        assert_eq!(out, b"\x82\x0b\x00\x07\x00\x00\x01a\x02\x00\x01b\x02");
    }

    #[test]
    fn connack_yields_code_and_receive_maximum() {
        assert_eq!(
            connack(&[0, 5], Protocol::V311),
            Ok(Welcome {
                code: 5,
                receive_maximum: u16::MAX
            })
        );
        let properties = b"\x00\x00\x0f\x21\x00\x14\x26\x00\x01k\x00\x01v\x12\x00\x01c\x25\x01";
        let mut body = properties.to_vec();
        body[2] = (properties.len() - 3) as u8;
        assert_eq!(
            connack(&body, Protocol::V5),
            Ok(Welcome {
                code: 0,
                receive_maximum: 20
            })
        );
        assert!(connack(&body[..body.len() - 1], Protocol::V5).is_err());
    }

    #[test]
    fn suback_codes_follow_the_properties() {
        assert_eq!(suback(&[0, 1, 0, 0x80], Protocol::V311), Ok(&[0, 0x80][..]));
        assert_eq!(suback(&[0, 1, 2, 9, 9, 1], Protocol::V5), Ok(&[1][..]));
        assert!(suback(&[0], Protocol::V311).is_err());
    }

    #[test]
    fn a_template_reads_back_as_the_message_it_was_patched_to() {
        for protocol in [Protocol::V311, Protocol::V5] {
            for qos in 0..=2 {
                for payload_bytes in [STAMP_BYTES, 64, 200] {
                    let template = Template::new(protocol, "t/1", qos, 42, 3, payload_bytes);
                    let mut out = Vec::new();
                    template.put(&mut out, 0x1234, 99, 1_000_001);
                    assert_eq!(out.len(), template.bytes.len());
                    let (first, body) = body_of(&out);
                    let delivery = delivery(first, body, protocol).expect("well formed");
                    assert_eq!(delivery.topic, b"t/1");
                    assert_eq!(delivery.qos, qos);
                    assert_eq!(delivery.packet_id, if qos > 0 { 0x1234 } else { 0 });
                    assert_eq!(delivery.payload.len(), payload_bytes);
                    let stamp = Stamp {
                        run: 42,
                        publisher: 3,
                        sequence: 99,
                        intended_ns: 1_000_001,
                    };
                    assert_eq!(Stamp::read(delivery.payload), Some(stamp));
                }
            }
        }
    }

    #[test]
    fn a_retained_message_says_so_and_an_empty_one_ends_it() {
        let template = Template::new(Protocol::V5, "t", 1, 1, 1, STAMP_BYTES).retained();
        let mut out = Vec::new();
        template.put(&mut out, 1, 1, 1);
        assert_eq!(out[0], 0x33);
        out.clear();
        clear_retained(&mut out, Protocol::V311, "t", 7);
        assert_eq!(out, b"\x33\x05\x00\x01t\x00\x07");
        out.clear();
        clear_retained(&mut out, Protocol::V5, "t", 7);
        assert_eq!(out, b"\x33\x06\x00\x01t\x00\x07\x00");
    }

    #[test]
    fn a_packet_is_split_only_when_whole() {
        let template = Template::new(Protocol::V311, "topic", 1, 1, 1, 300);
        let mut out = Vec::new();
        template.put(&mut out, 1, 1, 1);
        for length in 0..out.len() {
            assert_eq!(split(&out[..length]), Ok(None), "at {length}");
        }
        assert!(split(&out).expect("well formed").is_some());
    }

    #[test]
    fn a_remaining_length_of_five_bytes_is_refused() {
        assert_eq!(
            split(&[0x30, 0x80, 0x80, 0x80, 0x80, 0x01]),
            Err(WireError::RemainingLength)
        );
    }

    #[test]
    fn a_delivery_that_ends_early_is_refused_at_every_length() {
        let template = Template::new(Protocol::V5, "topic", 2, 1, 1, STAMP_BYTES);
        let mut out = Vec::new();
        template.put(&mut out, 1, 1, 1);
        let (first, body) = body_of(&out);
        let head = body.len() - STAMP_BYTES;
        for length in 0..head {
            assert!(
                delivery(first, &body[..length], Protocol::V5).is_err(),
                "at {length}"
            );
        }
        assert_eq!(
            delivery(0x36, body, Protocol::V5),
            Err(WireError::Reserved(0x36))
        );
    }

    #[test]
    fn acks_carry_id_and_reason() {
        let mut out = Vec::new();
        ack(&mut out, kind::PUBREL, 258);
        assert_eq!(out, [0x62, 2, 1, 2]);
        assert_eq!(acked(0x40, &[1, 2]), Ok((258, 0)));
        assert_eq!(acked(0x40, &[1, 2, 0x97, 0]), Ok((258, 0x97)));
        assert!(acked(0x40, &[1]).is_err());
    }
}
