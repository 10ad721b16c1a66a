// SPDX-License-Identifier: Apache-2.0
//! The header of a PUBLISH: its bytes, and its length known before.

use crate::{
    PacketId, PublishHeader, PublishProperties, QoS, TopicName, Version, decode_publish, frame,
};

fn header(version: Version, topic: &str, payload_bytes: usize) -> PublishHeader<'_> {
    PublishHeader {
        version,
        dup: false,
        qos: QoS::AtMostOnce,
        retain: false,
        topic: Some(TopicName::trusted(topic)),
        packet_id: None,
        properties: &[],
        message_expiry_secs: None,
        topic_alias: None,
        subscription_ids: &[],
        payload_bytes,
    }
}

/// Appends the payload and decodes the whole.
fn check(header: &PublishHeader<'_>) -> Vec<u8> {
    let payload = vec![b'x'; header.payload_bytes];
    let mut out = Vec::new();
    header.encode(&mut out);
    out.extend_from_slice(&payload);
    assert_eq!(out.len(), header.packet_bytes());
    let (frame, total) = frame(&out, u32::MAX).unwrap().unwrap();
    assert_eq!(total, out.len());
    let publish = decode_publish(frame, header.version).unwrap();
    assert_eq!(
        (publish.dup, publish.qos, publish.retain),
        (header.dup, header.qos, header.retain)
    );
    assert_eq!(
        (publish.topic, publish.packet_id),
        (header.topic, header.packet_id)
    );
    assert_eq!(publish.payload, payload);
    if header.version.is_v5() {
        assert_eq!(publish.properties.topic_alias, header.topic_alias);
        assert_eq!(
            publish.properties.message_expiry_secs,
            header.message_expiry_secs
        );
        assert_eq!(publish.properties.forwarded(), header.properties);
        assert!(
            publish
                .properties
                .subscription_ids()
                .eq(header.subscription_ids.iter().copied())
        );
    } else {
        assert_eq!(publish.properties, PublishProperties::EMPTY);
    }
    out
}

#[test]
fn every_length_of_remaining_length() {
    for payload_bytes in [
        0, 100, 119, 120, 121, 122, 123, 16_370, 16_378, 16_379, 16_380, 2_097_151,
    ] {
        for version in [Version::V31, Version::V311, Version::V5] {
            check(&header(version, "a/b", payload_bytes));
        }
    }
}

#[test]
fn properties_are_for_5_only() {
    let full = PublishHeader {
        dup: true,
        qos: QoS::AtLeastOnce,
        retain: true,
        packet_id: PacketId::new(10),
        properties: b"\x03\x00\x01t",
        message_expiry_secs: Some(7),
        topic_alias: Some(5),
        subscription_ids: &[1, 128, 268_435_455],
        ..header(Version::V5, "a/b", 2)
    };
    let bytes = check(&full);
    assert_eq!(
        bytes,
        b"\x3b\x20\x00\x03a/b\x00\x0a\x16\x23\x00\x05\x02\x00\x00\x00\x07\x0b\x01\x0b\x80\x01\
          \x0b\xff\xff\xff\x7f\x03\x00\x01txx"
    );
    let v311 = PublishHeader {
        version: Version::V311,
        ..full
    };
    assert_eq!(check(&v311), b"\x3b\x09\x00\x03a/b\x00\x0axx");
}

#[test]
fn an_alias_stands_for_the_name() {
    let alias = PublishHeader {
        topic: None,
        topic_alias: Some(5),
        ..header(Version::V5, "a", 2)
    };
    assert_eq!(check(&alias), b"\x30\x08\x00\x00\x03\x23\x00\x05xx");
}

#[test]
fn long_property_blocks() {
    let ids: Vec<u32> = (1..=60).collect();
    for version in [Version::V311, Version::V5] {
        for count in [59, 60] {
            let header = header(version, "a/b", 10);
            check(&PublishHeader {
                subscription_ids: &ids[..count],
                ..header
            });
        }
    }
    let many: Vec<u32> = (1..=10_000).collect();
    check(&PublishHeader {
        subscription_ids: &many,
        ..header(Version::V5, "a/b", 10)
    });
}
