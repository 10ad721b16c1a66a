// SPDX-License-Identifier: Apache-2.0
//! What decoding and encoding of the packets on the hot path costs, in instructions.

use std::hint::black_box;
use std::process::ExitCode;

use corqtt_codec::{
    PacketId, PublishHeader, QoS, ReasonCode, TopicName, Version, decode_ack, decode_publish,
    encode_ack, frame, packet_type,
};

mod callgrind;

const PAYLOAD: [u8; 64] = [b'x'; 64];
const TOPIC: &str = "bench/sensor/000042";

fn main() -> ExitCode {
    callgrind::main(
        env!("CARGO_MANIFEST_DIR"),
        &[
            ("decode PUBLISH QoS 0, 3.1.1", |n| {
                decode_publishes(n, Version::V311, QoS::AtMostOnce, &[])
            }),
            ("decode PUBLISH QoS 1, 3.1.1", |n| {
                decode_publishes(n, Version::V311, QoS::AtLeastOnce, &[])
            }),
            ("decode PUBLISH QoS 0, 5.0", |n| {
                decode_publishes(n, Version::V5, QoS::AtMostOnce, &[])
            }),
            ("decode PUBLISH QoS 1, 5.0", |n| {
                decode_publishes(n, Version::V5, QoS::AtLeastOnce, &[])
            }),
            ("decode PUBLISH QoS 1, 5.0, content type", |n| {
                decode_publishes(n, Version::V5, QoS::AtLeastOnce, b"\x03\x00\x04text");
            }),
            ("encode PUBLISH QoS 0, 3.1.1", |n| {
                encode_publishes(n, Version::V311, QoS::AtMostOnce, &[])
            }),
            ("encode PUBLISH QoS 1, 3.1.1", |n| {
                encode_publishes(n, Version::V311, QoS::AtLeastOnce, &[])
            }),
            ("encode PUBLISH QoS 0, 5.0", |n| {
                encode_publishes(n, Version::V5, QoS::AtMostOnce, &[])
            }),
            ("encode PUBLISH QoS 1, 5.0", |n| {
                encode_publishes(n, Version::V5, QoS::AtLeastOnce, &[])
            }),
            ("encode PUBLISH QoS 1, 5.0, content type", |n| {
                encode_publishes(n, Version::V5, QoS::AtLeastOnce, b"\x03\x00\x04text");
            }),
            ("decode PUBACK", decode_acks),
            ("encode PUBACK", encode_acks),
        ],
    )
}

fn header(version: Version, qos: QoS, properties: &[u8]) -> PublishHeader<'_> {
    PublishHeader {
        version,
        dup: false,
        qos,
        retain: false,
        topic: Some(TopicName::trusted(TOPIC)),
        packet_id: if qos == QoS::AtMostOnce {
            None
        } else {
            PacketId::new(7)
        },
        properties,
        message_expiry_secs: None,
        topic_alias: None,
        subscription_ids: &[],
        payload_bytes: PAYLOAD.len(),
    }
}

fn decode_publishes(times: u64, version: Version, qos: QoS, properties: &[u8]) {
    let mut bytes = Vec::new();
    header(version, qos, properties).encode(&mut bytes);
    bytes.extend_from_slice(&PAYLOAD);
    for _ in 0..times {
        let (frame, _) = frame(black_box(&bytes), 1 << 20)
            .expect("valid")
            .expect("whole");
        _ = black_box(decode_publish(frame, black_box(version)));
    }
}

/// Header and payload, as a connection's out-buffer gets them.
fn encode_publishes(times: u64, version: Version, qos: QoS, properties: &[u8]) {
    let header = header(version, qos, properties);
    let mut out = Vec::with_capacity(256);
    for _ in 0..times {
        out.clear();
        black_box(&header).encode(&mut out);
        out.extend_from_slice(black_box(&PAYLOAD[..]));
        black_box(&mut out);
    }
}

fn decode_acks(times: u64) {
    for _ in 0..times {
        let (frame, _) = frame(black_box(b"\x40\x02\x00\x07"), 1 << 20)
            .expect("valid")
            .expect("whole");
        _ = black_box(decode_ack(frame, black_box(Version::V5)));
    }
}

fn encode_acks(times: u64) {
    let id = PacketId::new(7).expect("not 0");
    let mut out = Vec::with_capacity(256);
    for _ in 0..times {
        out.clear();
        let version = black_box(Version::V5);
        encode_ack(
            packet_type::PUBACK,
            black_box(id),
            black_box(ReasonCode::SUCCESS),
            version,
            &mut out,
        );
        black_box(&mut out);
    }
}
