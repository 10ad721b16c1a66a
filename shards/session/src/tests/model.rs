// SPDX-License-Identifier: Apache-2.0
//! Two sessions between a publisher and a subscriber that keep the rules, over connections that are cut at random:
//! QoS 1 arrives at least once, QoS 2 exactly once, in order, and nothing is left over.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::*;

/// One direction of a connection: packets on their way.
type Wire = VecDeque<Vec<u8>>;

/// What a client needs of a packet: its first byte, packet id and, of a PUBLISH, the message's number.
struct Read {
    first: u8,
    id: u16,
    number: u32,
}

/// Splits what a session wrote and reads it without our decoder. All packets here are shorter than 128 bytes.
fn packets(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut rest = bytes;
    let mut all = Vec::new();
    while !rest.is_empty() {
        let (packet, behind) = rest.split_at(2 + usize::from(rest[1]));
        all.push(packet.to_vec());
        rest = behind;
    }
    all
}

fn read(packet: &[u8]) -> Read {
    let is_publish = packet[0] & 0xf0 == 0x30;
    let at = if is_publish { 5 } else { 2 };
    let tail = &packet[packet.len() - 4..];
    Read {
        first: packet[0],
        id: u16::from_be_bytes([packet[at], packet[at + 1]]),
        number: u32::from_be_bytes([tail[0], tail[1], tail[2], tail[3]]),
    }
}

/// Packet ids that the publisher uses: few, so that they come again soon.
const SENDER_IDS: u16 = 9;

/// A publisher: sends numbered messages, sends again what is open when it comes back.
#[derive(Default)]
struct Sender {
    next_number: u32,
    next_id: u16,
    /// In the order of their first PUBLISH: id, number, QoS 2, PUBREC came.
    open: Vec<(u16, u32, bool, bool)>,
    quota: u16,
    quota_max: u16,
    /// Due on this connection.
    pubacks: VecDeque<u16>,
    pubrecs: VecDeque<u16>,
    resend: VecDeque<(u16, u32, bool, bool)>,
    published: [Vec<u32>; 2],
}

impl Sender {
    fn connect(&mut self, quota_max: u16) {
        self.quota = quota_max;
        self.quota_max = quota_max;
        self.pubacks.clear();
        self.pubrecs.clear();
        self.resend = self.open.iter().copied().collect();
    }

    fn publish(&mut self, random: &mut Random, version: Version) -> Option<Vec<u8>> {
        if let Some((id, number, twice, received)) = self.resend.front().copied() {
            if received {
                self.resend.pop_front();
                return Some(ack(PUBREL, id));
            }
            if self.quota == 0 {
                return None;
            }
            self.resend.pop_front();
            return Some(self.encode(id, number, twice, true, version));
        }
        if self.quota == 0 || self.open.len() >= usize::from(SENDER_IDS) {
            return None;
        }
        loop {
            self.next_id = self.next_id % SENDER_IDS + 1;
            if self.open.iter().all(|(id, ..)| *id != self.next_id) {
                break;
            }
        }
        let (id, number, twice) = (self.next_id, self.next_number, random.below(2) == 0);
        self.next_number += 1;
        self.open.push((id, number, twice, false));
        self.published[usize::from(twice)].push(number);
        Some(self.encode(id, number, twice, false, version))
    }

    fn encode(
        &mut self,
        id: u16,
        number: u32,
        twice: bool,
        dup: bool,
        version: Version,
    ) -> Vec<u8> {
        self.quota -= 1;
        let due = if twice {
            &mut self.pubrecs
        } else {
            &mut self.pubacks
        };
        due.push_back(id);
        let first = 0x30 | u8::from(dup) << 3 | if twice { 4 } else { 2 };
        let mut packet = vec![first, 0, 0, 1, b't', (id >> 8) as u8, id as u8];
        if version.is_v5() {
            packet.push(0);
        }
        packet.extend(number.to_be_bytes());
        packet[1] = (packet.len() - 2) as u8;
        packet
    }

    fn take(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        let id = u16::from_be_bytes([packet[2], packet[3]]);
        let open = self.open.iter().position(|(open, ..)| *open == id);
        match packet[0] {
            PUBACK => {
                assert_eq!(self.pubacks.pop_front(), Some(id), "[MQTT-4.6.0-2]");
                self.open.remove(open.expect("open until PUBACK"));
                self.quota = (self.quota + 1).min(self.quota_max);
                None
            }
            PUBREC => {
                assert_eq!(self.pubrecs.pop_front(), Some(id), "[MQTT-4.6.0-3]");
                self.open[open.expect("open until PUBCOMP")].3 = true;
                Some(ack(PUBREL, id))
            }
            PUBCOMP => {
                self.open.remove(open.expect("open until PUBCOMP"));
                self.quota = (self.quota + 1).min(self.quota_max);
                None
            }
            other => panic!("{other:#x} for a publisher"),
        }
    }
}

/// A subscriber: takes every QoS 2 message once, acknowledges late.
#[derive(Default)]
struct Receiver {
    /// QoS 2 ids between PUBLISH and PUBREL.
    known: BTreeSet<u16>,
    /// Of this connection, not acknowledged to the end.
    open: BTreeSet<u16>,
    receive_maximum: u16,
    pubrels: VecDeque<u16>,
    answers: Wire,
    received: [Vec<u32>; 2],
}

impl Receiver {
    fn connect(&mut self, receive_maximum: u16) {
        self.open.clear();
        self.pubrels.clear();
        self.answers.clear();
        self.receive_maximum = receive_maximum;
    }

    fn take(&mut self, packet: &[u8]) {
        let Read { first, id, number } = read(packet);
        match first {
            0x32 | 0x3a => {
                assert!(self.open.insert(id), "id {id} is in use");
                self.received[0].push(number);
                self.answers.push_back(ack(PUBACK, id));
            }
            0x34 | 0x3c => {
                assert!(self.open.insert(id), "id {id} is in use");
                if self.known.insert(id) {
                    self.received[1].push(number);
                } else {
                    assert_eq!(first, 0x3c, "DUP [MQTT-3.3.1-1]");
                }
                self.answers.push_back(ack(PUBREC, id));
            }
            PUBREL => {
                if self.pubrels.contains(&id) {
                    assert_eq!(self.pubrels.pop_front(), Some(id), "[MQTT-4.6.0-4]");
                }
                self.known.remove(&id);
                self.answers.push_back(ack(PUBCOMP, id));
            }
            other => panic!("{other:#x} for a subscriber"),
        }
        assert!(self.open.len() <= usize::from(self.receive_maximum));
    }

    fn answer(&mut self) -> Option<Vec<u8>> {
        let answer = self.answers.pop_front()?;
        let id = u16::from_be_bytes([answer[2], answer[3]]);
        if answer[0] == PUBREC {
            self.pubrels.push_back(id);
        } else {
            self.open.remove(&id);
        }
        Some(answer)
    }
}

struct World {
    random: Random,
    sender: Sender,
    receiver: Receiver,
    /// The publisher's session, and the subscriber's.
    inward: Bench,
    outward: Bench,
    /// Publisher to broker, broker to publisher, broker to subscriber, subscriber to broker.
    wires: [Wire; 4],
    /// Answers that acknowledgements of `inward` wait for.
    owed: BTreeMap<u32, AckKey>,
    next_owed: u32,
    cuts: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            random: Random::new(seed),
            sender: Sender::default(),
            receiver: Receiver::default(),
            inward: Bench::new(),
            outward: Bench::new(),
            wires: Default::default(),
            owed: BTreeMap::new(),
            next_owed: 0,
            cuts: 0,
        };
        world.inward.limits.receive_maximum = 1 + world.random.below(6) as u16;
        world.outward.limits.inflight_max = 1 + world.random.below(12) as u16;
        if world.random.below(2) == 0 {
            // ids run over their end
            world.outward.session.next_packet_id = id(65_530);
        }
        world
    }

    fn version(&mut self) -> Version {
        [Version::V31, Version::V311, Version::V5, Version::V5][self.random.below(4)]
    }

    fn connect(&mut self) {
        if !self.inward.session.is_connected() {
            let version = self.version();
            self.inward.session.open(opening(version));
            self.sender.connect(self.inward.limits.receive_maximum);
        }
        if !self.outward.session.is_connected() {
            let version = self.version();
            let receive_maximum = 1 + self.random.below(6) as u16;
            self.outward.session.open(Opening {
                receive_maximum,
                ..opening(version)
            });
            self.receiver.connect(match version {
                Version::V5 => receive_maximum,
                _ => u16::MAX,
            });
        }
    }

    fn cut(&mut self) {
        let (bench, wires) = if self.random.below(2) == 0 {
            (&mut self.inward, 0..2)
        } else {
            (&mut self.outward, 2..4)
        };
        if bench.session.is_connected() {
            bench.close();
            self.cuts += 1;
            for wire in &mut self.wires[wires] {
                wire.clear();
            }
        }
    }

    fn step(&mut self, publish: bool) {
        match self.random.below(8) {
            0 if self.inward.session.is_connected()
                && (publish || !self.sender.resend.is_empty()) =>
            {
                let version = self.inward.session.version();
                self.wires[0].extend(self.sender.publish(&mut self.random, version));
            }
            1 | 2 => self.broker_takes_publish(),
            3 => {
                if let Some(packet) = self.wires[1].pop_front() {
                    self.wires[0].extend(self.sender.take(&packet));
                }
            }
            4 => {
                if let Some(packet) = self.wires[2].pop_front() {
                    self.receiver.take(&packet);
                }
            }
            5 if self.outward.session.is_connected() => {
                self.wires[3].extend(self.receiver.answer());
            }
            6 => self.broker_takes_answer(),
            _ => self.release(),
        }
        let pump = self.random.below(3) + 1;
        self.outward.pump_some(pump);
        let written = self.inward.sent();
        self.wires[1].extend(packets(&written));
        let written = self.outward.sent();
        self.wires[2].extend(packets(&written));
        self.outward.session.assert_invariants(&self.outward.limits);
    }

    fn broker_takes_publish(&mut self) {
        let Some(packet) = self.wires[0].pop_front() else {
            return;
        };
        let Read { first, id, number } = read(&packet);
        if first == PUBREL {
            self.inward
                .session
                .handle_pubrel(super::id(id), &mut self.inward.out);
            return;
        }
        if self.inward.take(&packet).expect("no violation").is_none() {
            return;
        }
        let qos = QoS::from_bits(first >> 1 & 3).expect("1 or 2");
        let message = message("t", &number.to_be_bytes(), qos);
        let delivered = self.outward.deliver_as(&message, plain(qos));
        assert!(matches!(delivered, Delivered::Sent | Delivered::Queued));
        let owed = self.random.below(3) as u16;
        let key = self.inward.session.acknowledge(
            qos,
            Some(super::id(id)),
            ReasonCode::SUCCESS,
            owed,
            &mut self.inward.out,
        );
        for key in std::iter::repeat_n(key, usize::from(owed)).flatten() {
            self.owed.insert(self.next_owed, key);
            self.next_owed += 1;
        }
    }

    fn broker_takes_answer(&mut self) {
        let Some(packet) = self.wires[3].pop_front() else {
            return;
        };
        let Read { first, id, .. } = read(&packet);
        let outward = &mut self.outward;
        match first {
            PUBACK => assert!(outward.puback(id)),
            PUBREC => {
                let handled = outward.session.handle_pubrec(
                    super::id(id),
                    ReasonCode::SUCCESS,
                    &mut outward.out,
                    &mut outward.drops,
                );
                assert_eq!(handled, Ok(()));
            }
            _ => assert!(outward.pubcomp(id)),
        }
    }

    fn release(&mut self) {
        if self.owed.is_empty() {
            return;
        }
        let chosen = self.random.below(self.owed.len());
        let number = *self.owed.keys().nth(chosen).expect("counted above");
        let key = self.owed.remove(&number).expect("found above");
        let inward = &mut self.inward;
        let out = inward.session.is_connected().then_some(&mut inward.out);
        inward.session.release(key, None, out);
    }

    fn is_quiet(&self) -> bool {
        self.sender.open.is_empty()
            && self.receiver.answers.is_empty()
            && self.wires.iter().all(VecDeque::is_empty)
            && self.outward.session.inflight_len() == 0
            && self.outward.session.queue_len() == 0
            && self.owed.is_empty()
    }

    fn assert_delivered(&self) {
        assert_eq!(
            self.receiver.received[1], self.sender.published[1],
            "QoS 2: exactly once, in order"
        );
        let mut seen = BTreeSet::new();
        let mut firsts = self.receiver.received[0].clone();
        firsts.retain(|number| seen.insert(*number));
        assert_eq!(
            firsts, self.sender.published[0],
            "QoS 1: at least once, in order"
        );
        for session in [&self.inward.session, &self.outward.session] {
            assert_eq!(session.unacked, 0);
            assert_eq!(session.received_unacked, 0);
            assert_eq!(session.inbound.len(), 0);
            assert_eq!(session.outbound.len(), 0);
            assert_eq!(session.queue_bytes(), 0);
            assert_eq!(session.acks_waiting(), 0);
        }
        assert_eq!(self.outward.drops, Drops::default());
    }
}

#[test]
fn every_message_arrives_as_its_qos_promises_however_often_connections_break() {
    let mut cuts = 0;
    let mut published = 0;
    for seed in 1..=1_000 {
        let mut world = World::new(seed);
        for _ in 0..1_500 {
            if world.random.below(4) == 0 {
                world.connect();
            }
            if world.random.below(60) == 0 {
                world.cut();
            }
            world.step(true);
        }
        world.connect();
        let mut steps = 0;
        while !world.is_quiet() {
            world.step(false);
            steps += 1;
            assert!(steps < 100_000, "seed {seed} does not come to rest");
        }
        world.assert_delivered();
        cuts += world.cuts;
        published += world.sender.next_number;
    }
    assert!(cuts > 10_000, "{cuts} cuts");
    assert!(published > 50_000, "{published} messages");
}
