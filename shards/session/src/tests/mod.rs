// SPDX-License-Identifier: Apache-2.0
//! Tests of the whole crate. Expected bytes are written by hand, not by our encoder.

mod aliases;
mod delivery;
mod fuzzed;
mod kept;
mod lifetime;
mod model;
mod publishes;
mod queue;
mod resume;

use corqtt_codec::{
    Message, MessageRef, PacketId, Payload, QoS, ReasonCode, TopicName, Version, decode_publish,
    frame,
};

use crate::{
    AckKey, Closed, Delivered, Drops, Frame, Grant, Inbound, Limits, Now, Opening, Outgoing,
    Output, Session, Violation, Will,
};

const PUBACK: u8 = 0x40;
const PUBREC: u8 = 0x50;
const PUBREL: u8 = 0x62;
const PUBCOMP: u8 = 0x70;

fn id(value: u16) -> PacketId {
    PacketId::new(value).expect("not 0 in a test")
}

fn topic(name: &str) -> TopicName<'_> {
    TopicName::parse(name).expect("a topic name")
}

fn opening(version: Version) -> Opening {
    Opening {
        version,
        session_expiry_secs: u32::MAX,
        receive_maximum: u16::MAX,
        packet_bytes_max: u32::MAX,
        topic_alias_maximum: 0,
        problem_information: true,
        will: None,
    }
}

fn clean(version: Version) -> Opening {
    Opening {
        session_expiry_secs: 0,
        ..opening(version)
    }
}

fn message(name: &str, payload: &[u8], qos: QoS) -> Message {
    MessageRef {
        topic: topic(name),
        qos,
        retain: false,
        properties: &[],
        expires_at_ms: None,
        payload: Payload::borrowed(payload),
    }
    .to_message()
}

fn plain(qos: QoS) -> Grant<'static> {
    Grant {
        qos,
        retain: false,
        ids: &[],
        group: None,
    }
}

/// Fixed header (`first`) and packet id of a four-byte acknowledgement.
fn ack(first: u8, id: u16) -> Vec<u8> {
    vec![first, 2, (id >> 8) as u8, id as u8]
}

/// PUBLISH of 3.1.1 to `t` with a one-byte payload.
fn publish_v311(first: u8, id: u16, payload: u8) -> Vec<u8> {
    vec![first, 6, 0, 1, b't', (id >> 8) as u8, id as u8, payload]
}

/// The same in 5.0, without properties.
fn publish_v5(first: u8, id: u16, payload: u8) -> Vec<u8> {
    vec![first, 7, 0, 1, b't', (id >> 8) as u8, id as u8, 0, payload]
}

/// A session with what a shard keeps for it.
struct Bench {
    session: Session,
    out: Output,
    frame: Frame,
    drops: Drops,
    limits: Limits,
    now: Now,
}

impl Bench {
    fn new() -> Self {
        Self {
            session: Session::new("c", None),
            out: Output::default(),
            frame: Frame::default(),
            drops: Drops::default(),
            limits: Limits::default(),
            now: Now {
                mono_ms: 5_000,
                wall_ms: 1_000_000,
            },
        }
    }

    fn open(opening: Opening) -> Self {
        let mut bench = Self::new();
        bench.session.open(opening);
        bench
    }

    fn persistent(version: Version) -> Self {
        Self::open(opening(version))
    }

    /// What was written since the last call.
    fn sent(&mut self) -> Vec<u8> {
        let sent = self.out.plain().expect("no large payloads here").to_vec();
        self.out.reset(1024);
        sent
    }

    fn deliver_as(&mut self, message: &Message, grant: Grant<'_>) -> Delivered {
        let mut outgoing = Outgoing::new(message.as_ref(), &mut self.frame);
        let out = self.session.is_connected().then_some(&mut self.out);
        self.session.deliver(
            &mut outgoing,
            grant,
            out,
            &self.limits,
            &mut self.drops,
            self.now,
        )
    }

    /// One byte to the topic `t`.
    fn deliver(&mut self, payload: u8, qos: QoS) -> Delivered {
        self.deliver_as(&message("t", &[payload], qos), plain(qos))
    }

    fn pump(&mut self) -> usize {
        self.pump_some(usize::MAX)
    }

    fn pump_some(&mut self, messages_max: usize) -> usize {
        self.session.pump(
            &mut self.out,
            &mut self.frame,
            &self.limits,
            &mut self.drops,
            messages_max,
            self.now,
        )
    }

    fn close(&mut self) -> Closed {
        self.out.reset(1024);
        self.session.close(true, self.now)
    }

    fn reconnect(&mut self, opening: Opening) {
        self.close();
        self.session.open(opening);
        self.pump();
    }

    fn puback(&mut self, packet_id: u16) -> bool {
        self.session
            .handle_puback(id(packet_id), ReasonCode::SUCCESS, &mut self.drops)
            .is_ok_and(|receipt| receipt.is_some())
    }

    fn pubrec(&mut self, packet_id: u16, reason: ReasonCode) -> Vec<u8> {
        let handled =
            self.session
                .handle_pubrec(id(packet_id), reason, &mut self.out, &mut self.drops);
        assert_eq!(handled, Ok(()));
        self.sent()
    }

    fn pubcomp(&mut self, packet_id: u16) -> bool {
        self.session.handle_pubcomp(id(packet_id)) == Ok(true)
    }

    fn pubrel(&mut self, packet_id: u16) -> Vec<u8> {
        self.session.handle_pubrel(id(packet_id), &mut self.out);
        self.sent()
    }

    /// The client sent these bytes of a PUBLISH: the topic to route, or `None` for a repeat.
    fn take(&mut self, bytes: &[u8]) -> Result<Option<String>, Violation> {
        let (frame, _) = frame(bytes, u32::MAX).unwrap().expect("whole");
        let publish = decode_publish(frame, self.session.version()).unwrap();
        match self.session.handle_publish(&publish, &self.limits)? {
            Inbound::Route(topic) => Ok(Some(topic.name().as_str().to_owned())),
            Inbound::Repeat => {
                self.session
                    .acknowledge_repeat(publish.packet_id.expect("QoS 2"), &mut self.out);
                Ok(None)
            }
        }
    }

    /// A PUBLISH that is routed; its acknowledgement waits for `owed` answers.
    fn routed(&mut self, qos: QoS, packet_id: u16, owed: u16) -> Option<AckKey> {
        let bytes = match (self.session.version(), qos) {
            (Version::V5, QoS::ExactlyOnce) => publish_v5(0x34, packet_id, b'x'),
            (Version::V5, _) => publish_v5(0x32, packet_id, b'x'),
            (_, QoS::ExactlyOnce) => publish_v311(0x34, packet_id, b'x'),
            _ => publish_v311(0x32, packet_id, b'x'),
        };
        assert_eq!(self.take(&bytes), Ok(Some("t".to_owned())));
        self.session.acknowledge(
            qos,
            Some(id(packet_id)),
            ReasonCode::SUCCESS,
            owed,
            &mut self.out,
        )
    }

    fn release(&mut self, key: Option<AckKey>, error: Option<ReasonCode>) -> Vec<u8> {
        let key = key.expect("it waits");
        let out = self.session.is_connected().then_some(&mut self.out);
        self.session.release(key, error, out);
        self.sent()
    }
}

fn will(delay_secs: u32) -> Option<Box<Will>> {
    let message = message("w", b"gone", QoS::AtLeastOnce);
    Some(Box::new(Will::of(message, delay_secs, None)))
}

/// A small generator (xorshift64*): the tests are the same in every run.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) as usize % bound
    }
}
