// SPDX-License-Identifier: Apache-2.0
//! Messages that are kept.

use bytes::Bytes;

use crate::{Message, MessageRef, Payload, QoS, TopicName};

fn borrowed<'a>(topic: &'a str, payload: Payload<'a>) -> MessageRef<'a> {
    MessageRef {
        topic: TopicName::parse(topic).unwrap(),
        qos: QoS::AtLeastOnce,
        retain: true,
        properties: b"\x03\x00\x01t",
        expires_at_ms: Some(7),
        payload,
    }
}

#[test]
fn a_kept_message_is_the_borrowed_one() {
    let message = borrowed("a/b", Payload::borrowed(b"payload")).to_message();
    let expected = Message {
        topic: "a/b".into(),
        qos: QoS::AtLeastOnce,
        retain: true,
        properties: (*b"\x03\x00\x01t").into(),
        expires_at_ms: Some(7),
        payload: Bytes::from_static(b"payload"),
    };
    assert_eq!(message, expected);
    assert_eq!(message.as_ref().to_message(), expected);
    assert_eq!((message.size(), message.as_ref().size()), (14, 14));
}

#[test]
fn a_shared_payload_is_kept_without_a_copy() {
    let shared = Bytes::from(vec![b'x'; 4096]);
    let message = borrowed("a", Payload::shared(&shared)).to_message();
    assert_eq!(message.payload.as_ptr(), shared.as_ptr());
    assert_eq!(
        message.as_ref().to_message().payload.as_ptr(),
        shared.as_ptr()
    );
    let copied = borrowed("a", Payload::borrowed(&shared)).to_message();
    assert_ne!(copied.payload.as_ptr(), shared.as_ptr());
}
