// SPDX-License-Identifier: Apache-2.0
//! What must hold for any sequence of packets, deliveries and reconnects; the fuzz target and ordinary tests feed it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::IoSlice;
use std::sync::Arc;

use corqtt_codec::{
    Message, MessageRef, Packet, PacketId, Payload, Publish, PublishProperties, QoS, ReasonCode,
    TopicName, Version, decode, frame, packet_type,
};

use crate::{
    AckKey, Drops, Frame, Grant, Inbound, Limits, Now, Opening, Outgoing, Output, QueueFull,
    Session, Will,
};

impl Session {
    /// What holds between any two calls.
    ///
    /// # Panics
    /// When it does not.
    pub fn assert_invariants(&self, limits: &Limits) {
        assert!(self.unacked <= self.receive_maximum.min(limits.inflight_max));
        assert!(usize::from(self.unacked) <= self.outbound.len());
        assert!(self.outbound.len() <= usize::from(limits.inflight_max));
        let queued = self.queue.iter().map(|queued| queued.message().size());
        assert_eq!(self.queue_bytes, queued.sum::<usize>());
        let messages_max = limits.queue_messages_max;
        assert!(messages_max == 0 || self.queue.len() <= messages_max);
        assert!(limits.queue_bytes_max == 0 || self.queue_bytes <= limits.queue_bytes_max);
    }
}

/// Reads the bytes as commands to one session and checks what it answers.
///
/// # Panics
/// When a property does not hold.
pub fn check(data: &[u8]) {
    let mut input = Input(data);
    let mut world = World::new(&mut input);
    while !input.0.is_empty() {
        world.step(&mut input);
        world.read_output();
        world.session.assert_invariants(&world.limits);
        assert_eq!(
            usize::from(world.session.unacked),
            world.open_publishes.len(),
            "what the client holds of this connection"
        );
    }
}

/// Bytes as choices; 0 when there are no more.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn below(&mut self, bound: u8) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        first % bound
    }

    fn pick<T: Copy, const N: usize>(&mut self, from: [T; N]) -> T {
        from[usize::from(self.below(N as u8))]
    }

    fn id(&mut self) -> PacketId {
        let id = self.pick([1, 2, 3, 4, 5, 6, 9, 65_535]);
        PacketId::new(id).expect("none of them is 0")
    }

    fn reason(&mut self) -> ReasonCode {
        self.pick([
            ReasonCode::SUCCESS,
            ReasonCode::SUCCESS,
            ReasonCode::NO_MATCHING_SUBSCRIBERS,
            ReasonCode::QUOTA_EXCEEDED,
        ])
    }
}

/// An acknowledgement that the client may expect, in the order of its packets.
struct Expected {
    packet_type: u8,
    id: PacketId,
    muted: bool,
    owed: u16,
    key: Option<AckKey>,
}

struct World {
    session: Session,
    out: Output,
    frame: Frame,
    limits: Limits,
    drops: Drops,
    now: Now,
    packet_bytes_max: u32,
    topic_alias_maximum: u16,
    receive_maximum: u16,
    /// QoS 1 and 2 messages that the client got on this connection and that are not through.
    open_publishes: HashSet<u16>,
    aliases: HashMap<u16, String>,
    publishes: VecDeque<Expected>,
    subscriptions: VecDeque<Expected>,
}

impl World {
    fn new(input: &mut Input<'_>) -> Self {
        let limits = Limits {
            inflight_max: input.pick([1, 3, 8, 65_535]),
            queue_messages_max: input.pick([0, 1, 4]),
            queue_bytes_max: input.pick([0, 20, 3000]),
            queue_full: input.pick([
                QueueFull::DropOldest,
                QueueFull::DropNew,
                QueueFull::Reject,
                QueueFull::Disconnect,
            ]),
            out_buffer_bytes_max: input.pick([10, 4000]),
            writes_pending_max: input.pick([2, 8192]),
            memory_full: input.pick([false, true]),
            receive_maximum: input.pick([2, 1024]),
            topic_alias_maximum: input.pick([0, 3, 65_535]),
            alias_bytes_max: input.pick([4, 12, 65_536]),
        };
        Self {
            session: Session::new("c", None),
            out: Output::default(),
            frame: Frame::default(),
            limits,
            drops: Drops::default(),
            now: Now {
                mono_ms: 1_000,
                wall_ms: 9_000,
            },
            packet_bytes_max: u32::MAX,
            topic_alias_maximum: 0,
            receive_maximum: u16::MAX,
            open_publishes: HashSet::new(),
            aliases: HashMap::new(),
            publishes: VecDeque::new(),
            subscriptions: VecDeque::new(),
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let command = input.below(14);
        if !self.session.is_connected() {
            match command {
                0..6 => self.open(input),
                6..10 => self.deliver(input),
                10 => self.release(input),
                11 => self.pass_time(input),
                12 => {
                    for unsent in self.session.take_unsent_shared() {
                        self.session.give_up(unsent.seq);
                    }
                }
                _ => {
                    self.pump(input);
                    self.end_session();
                }
            }
            return;
        }
        match command {
            0 => self.close(input),
            1..5 => self.deliver(input),
            5 => self.pump(input),
            6..8 => self.acknowledge(input),
            8..11 => self.publish(input),
            11 => {
                let id = input.id();
                self.session.handle_pubrel(id, &mut self.out);
                self.publishes
                    .push_back(Expected::at_once(packet_type::PUBCOMP, id));
            }
            12 => self.subscribe(input),
            _ => self.release(input),
        }
    }

    fn open(&mut self, input: &mut Input<'_>) {
        let version = input.pick([Version::V31, Version::V311, Version::V5, Version::V5]);
        let opening = Opening {
            version,
            session_expiry_secs: input.pick([0, 5, u32::MAX, u32::MAX]),
            receive_maximum: input.pick([1, 2, 65_535]),
            packet_bytes_max: input.pick([u32::MAX, 12, 40]),
            topic_alias_maximum: input.pick([0, 1, 65_535]),
            problem_information: true,
            will: (input.below(3) == 0)
                .then(|| Box::new(Will::of(message(input), u32::from(input.below(10)), None))),
        };
        let is_v5 = version.is_v5();
        self.receive_maximum = if is_v5 {
            opening.receive_maximum
        } else {
            u16::MAX
        };
        self.packet_bytes_max = if is_v5 {
            opening.packet_bytes_max
        } else {
            u32::MAX
        };
        self.topic_alias_maximum = if is_v5 {
            opening.topic_alias_maximum
        } else {
            0
        };
        self.session.open(opening);
        assert_eq!(self.session.poll_deadline(), None);
    }

    fn close(&mut self, input: &mut Input<'_>) {
        let closed = self.session.close(input.below(2) == 0, self.now);
        assert_eq!(closed.ended, !self.session.is_persistent());
        self.open_publishes.clear();
        self.aliases.clear();
        let waiting = self.publishes.iter_mut();
        for expected in waiting.chain(&mut self.subscriptions) {
            expected.muted = true;
        }
        if closed.ended {
            self.end_session();
        }
    }

    fn end_session(&mut self) {
        drop(self.session.into_unsent());
        self.session = Session::new("c", None);
        self.publishes.clear();
        self.subscriptions.clear();
    }

    fn pass_time(&mut self, input: &mut Input<'_>) {
        let ms = u64::from(input.below(200)) * 100;
        self.now.mono_ms += ms;
        self.now.wall_ms += ms;
        if let Some(deadline) = self.session.poll_deadline()
            && deadline.at_ms() <= self.now.mono_ms
        {
            match deadline {
                crate::Deadline::Will(_) => assert!(self.session.take_will().is_some()),
                crate::Deadline::Expiry(_) => self.end_session(),
            }
        }
    }

    fn deliver(&mut self, input: &mut Input<'_>) {
        let mut message = message(input);
        if input.below(3) == 0 {
            message.expires_at_ms = Some(8_000 + u64::from(input.below(200)) * 100);
        }
        let group: Arc<str> = "$share/g/t".into();
        let grant = Grant {
            qos: QoS::from_bits(input.below(3)).unwrap_or_default(),
            retain: input.below(2) == 0,
            ids: input.pick([[].as_slice(), &[], &[1], &[7, 200_000_000]]),
            group: (input.below(4) == 0).then_some(&group),
        };
        let mut outgoing = Outgoing::new(message.as_ref(), &mut self.frame);
        self.session.deliver(
            &mut outgoing,
            grant,
            Some(&mut self.out),
            &self.limits,
            &mut self.drops,
            self.now,
        );
    }

    fn pump(&mut self, input: &mut Input<'_>) {
        let messages_max = input.pick([1, 2, usize::MAX]);
        let written = self.session.pump(
            &mut self.out,
            &mut self.frame,
            &self.limits,
            &mut self.drops,
            messages_max,
            self.now,
        );
        assert!(written <= messages_max);
        if messages_max == usize::MAX && self.session.is_connected() {
            let full = self.out.len() > self.limits.out_buffer_bytes_max
                || self.out.messages() >= self.limits.writes_pending_max;
            assert!(full || !self.session.wants_pump(&self.limits));
        }
    }

    /// PUBACK, PUBREC or PUBCOMP of the client; whether it may or not.
    fn acknowledge(&mut self, input: &mut Input<'_>) {
        let id = input.id();
        let is_v5 = self.session.version().is_v5();
        let reason = if is_v5 {
            input.reason()
        } else {
            ReasonCode::SUCCESS
        };
        let before = self.session.inflight_len();
        let (out, drops) = (&mut self.out, &mut self.drops);
        let refused = match input.below(3) {
            0 => self.session.handle_puback(id, reason, drops).is_err(),
            1 => self.session.handle_pubrec(id, reason, out, drops).is_err(),
            _ => self.session.handle_pubcomp(id).is_err(),
        };
        assert!(!refused || self.session.inflight_len() == before);
        if self.session.inflight_len() < before {
            self.open_publishes.remove(&id.value());
        }
    }

    fn publish(&mut self, input: &mut Input<'_>) {
        let qos = QoS::from_bits(input.below(3)).unwrap_or_default();
        let is_v5 = self.session.version().is_v5();
        let alias = (is_v5 && input.below(2) == 0).then(|| input.pick([0, 1, 3, 65_535]));
        let mut properties = PublishProperties::EMPTY;
        properties.topic_alias = alias;
        let name = input.pick([Some("t"), Some("longer/name"), None]);
        let publish = Publish {
            dup: false,
            qos,
            retain: false,
            topic: name
                .or_else(|| (!is_v5).then_some("t"))
                .map(TopicName::trusted),
            packet_id: (qos != QoS::AtMostOnce).then(|| input.id()),
            properties,
            payload: b"x",
        };
        match self.session.handle_publish(&publish, &self.limits) {
            // a violation: the connection would close
            Err(_) => self.close(input),
            Ok(Inbound::Repeat) => {
                let id = publish.packet_id.expect("only QoS 2 repeats");
                self.session.acknowledge_repeat(id, &mut self.out);
                self.publishes
                    .push_back(Expected::at_once(packet_type::PUBREC, id));
            }
            Ok(Inbound::Route(topic)) => {
                assert!(!topic.name().as_str().is_empty());
                let owed = u16::from(input.below(3));
                let reason = input.reason();
                let key =
                    self.session
                        .acknowledge(qos, publish.packet_id, reason, owed, &mut self.out);
                let Some(id) = publish.packet_id else {
                    return assert_eq!(key, None);
                };
                let packet_type = match qos {
                    QoS::ExactlyOnce => packet_type::PUBREC,
                    _ => packet_type::PUBACK,
                };
                self.publishes.push_back(Expected {
                    owed,
                    key,
                    ..Expected::at_once(packet_type, id)
                });
            }
        }
    }

    fn subscribe(&mut self, input: &mut Input<'_>) {
        let id = input.id();
        let owed = u16::from(input.below(3));
        let unsubscribe = input.below(2) == 0;
        let key = self
            .session
            .acknowledge_subscription(id, unsubscribe, &[0], owed, &mut self.out);
        let packet_type = if unsubscribe {
            packet_type::UNSUBACK
        } else {
            packet_type::SUBACK
        };
        self.subscriptions.push_back(Expected {
            owed,
            key,
            ..Expected::at_once(packet_type, id)
        });
    }

    fn release(&mut self, input: &mut Input<'_>) {
        let waiting = self.publishes.iter_mut().chain(&mut self.subscriptions);
        let mut waiting: Vec<_> = waiting.filter(|expected| expected.owed > 0).collect();
        if waiting.is_empty() {
            return;
        }
        let chosen = usize::from(input.below(255)) % waiting.len();
        let expected = &mut waiting[chosen];
        expected.owed -= 1;
        let key = expected.key.expect("it waits");
        let error = (input.below(4) == 0).then_some(ReasonCode::QUOTA_EXCEEDED);
        let out = self.session.is_connected().then_some(&mut self.out);
        self.session.release(key, error, out);
    }

    /// Reads what was written as its client would.
    fn read_output(&mut self) {
        let mut bytes = Vec::new();
        while !self.out.is_empty() {
            let mut slices = [IoSlice::new(&[]); 3];
            let count = self.out.slices(&mut slices);
            let first = slices[..count].first().expect("there is something");
            let taken = first.len().min(1000);
            bytes.extend_from_slice(&first[..taken]);
            self.out.advance(taken);
        }
        assert!(bytes.is_empty() || self.session.is_connected());
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let (whole, size) = frame(rest, u32::MAX)
                .expect("well formed")
                .expect("whole packets");
            let packet = decode(whole, self.session.version()).expect("well formed");
            if let Packet::Publish(publish) = &packet {
                assert!(size <= self.packet_bytes_max as usize);
                self.read_publish(publish);
            } else {
                self.read_answer(&packet);
            }
            rest = &rest[size..];
        }
        // what is left of the acknowledgements waits for its answers, or is behind one that does
        for waiting in [&mut self.publishes, &mut self.subscriptions] {
            while waiting
                .front()
                .is_some_and(|first| first.muted && first.owed == 0)
            {
                waiting.pop_front();
            }
            assert!(waiting.front().is_none_or(|first| first.owed > 0));
        }
    }

    fn read_publish(&mut self, publish: &Publish<'_>) {
        match (publish.topic, publish.properties.topic_alias) {
            (Some(topic), None) => assert!(!topic.as_str().is_empty()),
            (Some(topic), Some(alias)) => {
                assert!(alias <= self.topic_alias_maximum);
                self.aliases.insert(alias, topic.as_str().to_owned());
            }
            (None, alias) => {
                let alias = alias.expect("a topic or an alias");
                assert!(self.aliases.contains_key(&alias));
            }
        }
        if let Some(id) = publish.packet_id {
            assert!(self.open_publishes.insert(id.value()), "{id:?} is in use");
            assert!(self.open_publishes.len() <= usize::from(self.receive_maximum));
        }
    }

    fn read_answer(&mut self, packet: &Packet<'_>) {
        let (packet_type, id, waiting) = match packet {
            Packet::PubRel(_) => return,
            Packet::PubAck(ack) => (packet_type::PUBACK, ack.packet_id, &mut self.publishes),
            Packet::PubRec(ack) => (packet_type::PUBREC, ack.packet_id, &mut self.publishes),
            Packet::PubComp(ack) => (packet_type::PUBCOMP, ack.packet_id, &mut self.publishes),
            Packet::SubAck(ack) => (packet_type::SUBACK, ack.packet_id, &mut self.subscriptions),
            Packet::UnsubAck(ack) => (
                packet_type::UNSUBACK,
                ack.packet_id,
                &mut self.subscriptions,
            ),
            other => panic!("{other:?} from a session"),
        };
        while waiting
            .front()
            .is_some_and(|first| first.muted && first.owed == 0)
        {
            waiting.pop_front();
        }
        let first = waiting.pop_front().expect("something is acknowledged");
        assert_eq!((first.packet_type, first.id), (packet_type, id));
        assert_eq!(first.owed, 0);
        assert!(!first.muted);
    }
}

impl Expected {
    fn at_once(packet_type: u8, id: PacketId) -> Self {
        Self {
            packet_type,
            id,
            muted: false,
            owed: 0,
            key: None,
        }
    }
}

fn message(input: &mut Input<'_>) -> Message {
    let payload = vec![b'x'; input.pick([0, 1, 3, 100, 2500])];
    MessageRef {
        topic: TopicName::trusted(input.pick(["t", "abcd", "a/longer/topic", "b/longer/topic"])),
        qos: QoS::from_bits(input.below(3)).unwrap_or_default(),
        retain: false,
        properties: &[],
        expires_at_ms: None,
        payload: Payload::borrowed(&payload),
    }
    .to_message()
}
