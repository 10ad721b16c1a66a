// SPDX-License-Identifier: Apache-2.0
//! What a message carries besides its payload.

use std::borrow::Cow;

use crate::{InvalidProperty, PropertiesBuf, PublishProperties, SUBSCRIPTION_ID_MAX, TopicName};

const EVERY: &[u8] =
    b"\x01\x01\x02\x00\x00\x00\x07\x26\x00\x01k\x00\x01v\x23\x00\x05\x03\x00\x01t\x0b\x01\
                       \x08\x00\x02r/\x0b\x80\x01\x09\x00\x01\x00\x26\x00\x01k\x00\x01w";
const FORWARDED: &[u8] =
    b"\x01\x01\x26\x00\x01k\x00\x01v\x03\x00\x01t\x08\x00\x02r/\x09\x00\x01\x00\
                           \x26\x00\x01k\x00\x01w";

#[test]
fn a_block_says_all_that_is_in_it() {
    let properties = PublishProperties::decode(EVERY).unwrap();
    assert_eq!(properties.topic_alias, Some(5));
    assert_eq!(properties.message_expiry_secs, Some(7));
    assert!(properties.payload_is_utf8);
    assert_eq!(properties.content_type(), Some("t"));
    assert_eq!(
        properties.response_topic().map(TopicName::as_str),
        Some("r/")
    );
    assert_eq!(properties.correlation_data(), Some(&b"\0"[..]));
    assert_eq!(properties.subscription_ids().collect::<Vec<_>>(), [1, 128]);
    let pairs: Vec<_> = properties.user_properties().iter().collect();
    assert_eq!(pairs, [("k", "v"), ("k", "w")]);
}

// [MQTT5-3.3.2-4] [MQTT5-3.3.2-15] [MQTT5-3.3.2-16] [MQTT5-3.3.2-17] [MQTT5-3.3.2-18] [MQTT5-3.3.2-20]
#[test]
fn what_is_forwarded_keeps_its_bytes_and_order() {
    let properties = PublishProperties::decode(EVERY).unwrap();
    assert_eq!(properties.forwarded(), FORWARDED);
    let read_back = PublishProperties::from_forwarded(FORWARDED);
    assert_eq!(read_back.content_type(), Some("t"));
    assert!(read_back.payload_is_utf8);
    assert_eq!(read_back.topic_alias, None);
    assert!(matches!(read_back.forwarded(), Cow::Borrowed(FORWARDED)));
}

#[test]
fn nothing_is_copied_where_nothing_is_left_out() {
    assert!(matches!(
        PublishProperties::EMPTY.forwarded(),
        Cow::Borrowed([])
    ));
    let plain = PublishProperties::decode(b"\x03\x00\x01t").unwrap();
    assert!(matches!(plain.forwarded(), Cow::Borrowed(_)));
    let alias_only = PublishProperties::decode(b"\x23\x00\x05").unwrap();
    assert!(matches!(alias_only.forwarded(), Cow::Borrowed([])));
}

#[test]
fn the_delay_of_a_will_is_not_forwarded() {
    let block = b"\x18\x00\x00\x00\x05\x03\x00\x01t";
    let (properties, delay_secs) = PublishProperties::decode_will(block).unwrap();
    assert_eq!(
        (delay_secs, properties.forwarded().as_ref()),
        (5, &b"\x03\x00\x01t"[..])
    );
}

#[test]
fn a_forwarded_block_that_is_none_is_passed_over_from_its_fault_on() {
    let properties = PublishProperties::from_forwarded(b"\x03\x00\x01t\x26\x00\xff");
    assert_eq!(properties.content_type(), Some("t"));
    assert!(properties.user_properties().is_empty());
    assert_eq!(
        PublishProperties::from_forwarded(b"\xff").content_type(),
        None
    );
    assert_eq!(
        PublishProperties::from_forwarded(b"\x23\x00\x00").topic_alias,
        None
    );
}

#[test]
fn a_built_block_decodes_to_what_was_put_in() {
    let mut built = PropertiesBuf::new();
    let topic = TopicName::parse("r/").unwrap();
    built
        .payload_is_utf8(true)
        .unwrap()
        .message_expiry_secs(7)
        .unwrap();
    built
        .user_property("k", "v")
        .unwrap()
        .topic_alias(5)
        .unwrap()
        .content_type("t")
        .unwrap();
    built
        .subscription_id(1)
        .unwrap()
        .response_topic(topic)
        .unwrap();
    built
        .subscription_id(128)
        .unwrap()
        .correlation_data(b"\0")
        .unwrap();
    built.user_property("k", "w").unwrap();
    assert_eq!(built.as_bytes(), EVERY);
    assert_eq!(
        Ok(built.publish_properties()),
        PublishProperties::decode(EVERY)
    );
    assert_eq!(built.user_properties().iter().count(), 2);
}

#[test]
fn what_cannot_be_sent_cannot_be_built() {
    let long = "x".repeat(65_536);
    let mut built = PropertiesBuf::new();
    assert_eq!(built.content_type(&long).err(), Some(InvalidProperty));
    assert_eq!(built.content_type("a\0b").err(), Some(InvalidProperty));
    assert_eq!(built.user_property("k", &long).err(), Some(InvalidProperty));
    assert_eq!(
        built.correlation_data(long.as_bytes()).err(),
        Some(InvalidProperty)
    );
    assert_eq!(built.topic_alias(0).err(), Some(InvalidProperty));
    assert_eq!(built.subscription_id(0).err(), Some(InvalidProperty));
    assert_eq!(
        built.subscription_id(SUBSCRIPTION_ID_MAX + 1).err(),
        Some(InvalidProperty)
    );
    assert_eq!(built.as_bytes(), b"");
    built.content_type("a").unwrap();
    assert_eq!(built.content_type("b").err(), Some(InvalidProperty));
    assert_eq!(built.as_bytes(), b"\x03\x00\x01a");
}
