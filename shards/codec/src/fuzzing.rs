// SPDX-License-Identifier: Apache-2.0
//! What must hold for any bytes; the fuzz target and an ordinary test feed it.

use crate::tests::table;
use crate::{
    Frame, Packet, PublishProperties, TopicFilter, TopicName, Version, connect_version, decode,
    encode, frame, frame_len,
};

/// The bytes of the test table, each behind the byte that chooses its version.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let valid = table::valid()
        .into_iter()
        .map(|row| (row.version, row.bytes));
    let invalid = table::invalid()
        .into_iter()
        .map(|row| (row.version, row.bytes));
    valid
        .chain(invalid)
        .map(|(version, bytes)| [&[version as u8 - 3], bytes].concat())
        .collect()
}

/// Reads the first byte as a version and the others as what a peer sent.
///
/// # Panics
/// When a property does not hold.
pub fn check(data: &[u8]) {
    let Some((&choice, bytes)) = data.split_first() else {
        return;
    };
    let version = match choice % 3 {
        0 => Version::V31,
        1 => Version::V311,
        _ => Version::V5,
    };
    check_packet(bytes, version);
    if let Ok(text) = std::str::from_utf8(bytes) {
        check_topics(text);
    }
}

fn check_packet(bytes: &[u8], version: Version) {
    let Some((whole, total)) = check_frame(bytes) else {
        return;
    };
    assert!(total <= bytes.len());
    let Ok(packet) = decode(whole, version) else {
        return;
    };
    look_at(&packet);
    // CONNECT is encoded for the version that it names
    if let Packet::Connect(connect) = &packet {
        assert_eq!(connect_version(whole), Ok(connect.version));
    }
    let mut encoded = Vec::new();
    encode(&packet, version, &mut encoded);
    let again = match frame(&encoded, u32::MAX) {
        Ok(Some((again, again_total))) if again_total == encoded.len() => decode(again, version),
        other => {
            panic!("{packet:?} was encoded to {encoded:02x?}, of which the frame is {other:?}")
        }
    };
    assert_eq!(again.as_ref(), Ok(&packet), "encoded to {encoded:02x?}");
    let mut twice = Vec::new();
    encode(&packet, version, &mut twice);
    assert_eq!(twice, encoded);
    assert!(encoded.len() <= total, "{packet:?} grew to {encoded:02x?}");
}

/// A frame is the same however its bytes arrive: `None` until the last one is there, and errors never come late.
fn check_frame(bytes: &[u8]) -> Option<(Frame<'_>, usize)> {
    let whole = frame(bytes, u32::MAX);
    let found = whole.as_ref().map_or(None, |found| *found);
    let ends = found.map_or(bytes.len(), |(_, total)| total);
    let near_start = 0..=ends.min(8);
    let near_end = ends.saturating_sub(2)..=bytes.len().min(ends + 1);
    for (split, part) in near_start
        .chain(near_end)
        .filter_map(|n| Some((n, bytes.get(..n)?)))
    {
        match frame(part, u32::MAX) {
            Ok(None) => assert!(found.is_none() || split < ends),
            Ok(some) => assert_eq!(some, found),
            Err(error) => assert_eq!(whole, Err(error)),
        }
        if let Ok(Some(total)) = frame_len(part) {
            assert_eq!(frame_len(bytes), Ok(Some(total)));
            let limit = u32::try_from(total).unwrap_or(u32::MAX);
            assert!(frame(part, limit).is_ok());
            assert!(frame(part, limit - 1).is_err());
        }
    }
    found
}

/// Walks everything that a decoded packet only borrows.
fn look_at(packet: &Packet<'_>) {
    let properties = match packet {
        Packet::Publish(publish) => publish.properties,
        Packet::Connect(connect) => connect
            .will
            .as_ref()
            .map_or(PublishProperties::EMPTY, |w| w.properties),
        Packet::Subscribe(subscribe) => {
            assert_ne!(subscribe.filters.len(), 0);
            for (text, _) in subscribe.filters {
                check_topics(text);
            }
            return;
        }
        Packet::Unsubscribe(unsubscribe) => {
            assert_ne!(unsubscribe.filters.len(), 0);
            for text in unsubscribe.filters {
                check_topics(text);
            }
            return;
        }
        _ => return,
    };
    let forwarded = properties.forwarded();
    let read_back = PublishProperties::from_forwarded(&forwarded);
    assert_eq!(read_back.forwarded(), forwarded);
    assert_eq!(read_back.topic_alias, None);
    assert_eq!(read_back.message_expiry_secs, None);
    assert_eq!(read_back.payload_is_utf8, properties.payload_is_utf8);
    assert_eq!(read_back.content_type(), properties.content_type());
    assert_eq!(read_back.response_topic(), properties.response_topic());
    assert_eq!(read_back.correlation_data(), properties.correlation_data());
    assert_eq!(read_back.user_properties(), properties.user_properties());
    assert_eq!(read_back.subscription_ids().next(), None);
}

/// A name is a filter that matches itself; a filter is put together from its parts.
fn check_topics(text: &str) {
    let filter = TopicFilter::parse(text);
    if let Ok(filter) = filter {
        assert_eq!(TopicFilter::trusted(text), filter);
        assert_eq!(filter.levels().count(), filter.level_count());
        let parts = match filter.group() {
            Some(group) => format!("$share/{group}/{}", filter.filter()),
            None => filter.filter().to_owned(),
        };
        assert_eq!(parts, filter.full());
    }
    if let Ok(name) = TopicName::parse(text) {
        assert_eq!(name.levels().count(), name.level_count());
        if let Ok(filter) = filter
            && !filter.is_shared()
        {
            assert!(filter.matches(name));
        }
    }
}
