// SPDX-License-Identifier: Apache-2.0
//! What every store must do: a model of it, and random operations from a seed that both are given.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use corqtt_codec::{
    Message, MessageId, PacketId, QoS, RetainHandling, SubscribeOptions, TopicFilter, TopicName,
    Version,
};
use corqtt_session::{Change, Delivery};
use corqtt_topics::{ShardId, Stamp};

use crate::doubles::Dice;
use crate::store::{Op, Owed, Terms, Will};

/// A store under test.
pub trait Kept {
    /// Keeps all of them or, if the process ended now, none.
    fn keep(&mut self, ops: Vec<Op>);
    /// What it would give back to a process that starts now, in its order.
    fn restored(&mut self) -> Vec<Op>;
}

#[derive(Clone, Debug)]
struct Entry {
    id: MessageId,
    message: Arc<Message>,
    delivery: Delivery,
    packet_id: Option<PacketId>,
    released: bool,
}

#[derive(Clone, Debug)]
struct Session {
    terms: Terms,
    left_at_ms: Option<u64>,
    will: Option<Will>,
    subscriptions: BTreeMap<Box<str>, (SubscribeOptions, u32)>,
    entries: BTreeMap<u64, Entry>,
    received: BTreeSet<u16>,
}

/// What a store holds, as plain maps.
#[derive(Clone, Debug, Default)]
pub struct Model {
    sessions: BTreeMap<Arc<str>, Session>,
    retained: BTreeMap<String, (Arc<Message>, Stamp)>,
    bans: BTreeSet<Arc<str>>,
    /// With the publisher and its packet id.
    owed: BTreeMap<MessageId, (Arc<str>, PacketId, Owed)>,
}

impl Model {
    /// One more operation.
    ///
    /// # Panics
    /// If it is one that a shard would not have made.
    pub fn apply(&mut self, op: &Op) {
        match op.clone() {
            Op::Session {
                client_id,
                terms,
                fresh,
            } => {
                if fresh {
                    self.end(&client_id);
                }
                let session = self.sessions.entry(client_id).or_insert_with(|| Session {
                    terms: terms.clone(),
                    left_at_ms: None,
                    will: None,
                    subscriptions: BTreeMap::new(),
                    entries: BTreeMap::new(),
                    received: BTreeSet::new(),
                });
                session.terms = terms;
                session.left_at_ms = None;
            }
            Op::Left { client_id, at_ms } => self.session(&client_id).left_at_ms = Some(at_ms),
            Op::SessionEnded { client_id } => self.end(&client_id),
            Op::Will { client_id, will } => self.session(&client_id).will = will,
            Op::Subscribed {
                client_id,
                filter,
                options,
                subscription_id,
            } => {
                let subscription = (options, subscription_id);
                let session = self.session(&client_id);
                session.subscriptions.insert(filter, subscription);
            }
            Op::Unsubscribed { client_id, filter } => {
                self.session(&client_id).subscriptions.remove(&filter);
            }
            Op::Changed { client_id, change } => {
                if let Change::Freed { packet_id } = change {
                    let is_of = |of: &Arc<str>, id| *of == client_id && id == packet_id;
                    self.owed.retain(|_, (of, id, _)| !is_of(of, *id));
                }
                change_session(self.session(&client_id), change);
            }
            Op::Retained { message, stamp } => {
                let topic = message.topic.to_string();
                if message.payload.is_empty() {
                    self.retained.remove(&topic);
                } else {
                    self.retained.insert(topic, (message, stamp));
                }
            }
            Op::Ban { client_id, banned } => {
                if banned {
                    self.bans.insert(client_id);
                } else {
                    self.bans.remove(&client_id);
                }
            }
            Op::Owed {
                client_id,
                packet_id,
                owed,
            } => drop(self.owed.insert(owed.id, (client_id, packet_id, owed))),
            Op::Settled { id, shard } => {
                if let Some((.., owed)) = self.owed.get_mut(&id) {
                    owed.shards &= !shard.bit();
                    if owed.shards == 0 {
                        self.owed.remove(&id);
                    }
                }
            }
        }
    }

    fn end(&mut self, client_id: &str) {
        self.sessions.remove(client_id);
        self.owed.retain(|_, (of, ..)| **of != *client_id);
    }

    /// What a start does with messages that the one shard there was is still to get.
    fn settle(&mut self) {
        for (id, (publisher, _, owed)) in std::mem::take(&mut self.owed) {
            let mut groups = owed.groups.clone();
            for (client_id, session) in &mut self.sessions {
                let (mut plain, mut all) = (Vec::new(), Vec::new());
                for (full, (options, subscription_id)) in &session.subscriptions {
                    let filter = TopicFilter::trusted(full);
                    let matches = filter.matches(TopicName::trusted(&owed.message.topic));
                    // [MQTT5-3.8.3-4] there is no such option for a shared one
                    let is_own = options.no_local && !filter.is_shared();
                    if !matches || (is_own && *client_id == publisher) {
                        continue;
                    }
                    let mut delivery = Delivery {
                        qos: options.qos.min(owed.message.qos),
                        retain: owed.message.retain && options.retain_as_published,
                        ids: (*subscription_id != 0).then(|| [*subscription_id].into()),
                        group: None,
                    };
                    if !filter.is_shared() {
                        plain.push(delivery);
                    } else if groups.iter().any(|(group, _)| group == full) {
                        groups.retain(|(group, _)| group != full);
                        delivery.group = Some((**full).into());
                        all.push(delivery);
                    }
                }
                let ids = plain
                    .iter()
                    .flat_map(|one| one.ids.iter().flatten().copied());
                let ids: Box<[u32]> = ids.collect();
                all.extend(plain.iter().map(|one| one.qos).max().map(|qos| Delivery {
                    qos,
                    retain: plain.iter().any(|one| one.retain),
                    ids: (!ids.is_empty()).then_some(ids),
                    group: None,
                }));
                for delivery in all {
                    let last = session.entries.last_key_value().map_or(0, |(seq, _)| *seq);
                    let entry = Entry {
                        id,
                        message: owed.message.clone(),
                        delivery,
                        packet_id: None,
                        released: false,
                    };
                    session.entries.insert(last + 1, entry);
                }
            }
        }
    }

    fn session(&mut self, client_id: &str) -> &mut Session {
        self.sessions
            .get_mut(client_id)
            .expect("a session that was made before")
    }

    /// What a start is given: each session with all that belongs to it, then the retained messages.
    #[must_use]
    pub fn restored(&self) -> Vec<Op> {
        let mut ops = Vec::new();
        for (client_id, session) in &self.sessions {
            let client_id = || client_id.clone();
            ops.push(Op::Session {
                client_id: client_id(),
                terms: session.terms.clone(),
                fresh: false,
            });
            ops.push(Op::Left {
                client_id: client_id(),
                at_ms: session.left_at_ms.unwrap_or(0),
            });
            if session.will.is_some() {
                ops.push(Op::Will {
                    client_id: client_id(),
                    will: session.will.clone(),
                });
            }
            for (filter, (options, subscription_id)) in &session.subscriptions {
                ops.push(Op::Subscribed {
                    client_id: client_id(),
                    filter: filter.clone(),
                    options: *options,
                    subscription_id: *subscription_id,
                });
            }
            let mut changed = |change| {
                ops.push(Op::Changed {
                    client_id: client_id(),
                    change,
                });
            };
            for (seq, entry) in &session.entries {
                changed(Change::Enqueued {
                    seq: *seq,
                    id: entry.id,
                    message: entry.message.clone(),
                    delivery: entry.delivery.clone(),
                    packet_id: entry.packet_id,
                });
                if entry.released {
                    changed(Change::Released { seq: *seq });
                }
            }
            for id in &session.received {
                let packet_id = PacketId::new(*id).expect("not 0");
                changed(Change::Received { packet_id });
            }
        }
        for (message, stamp) in self.retained.values() {
            ops.push(Op::Retained {
                message: message.clone(),
                stamp: *stamp,
            });
        }
        let banned = true;
        let bans = self.bans.iter().cloned();
        ops.extend(bans.map(|client_id| Op::Ban { client_id, banned }));
        ops
    }
}

fn change_session(session: &mut Session, change: Change) {
    match change {
        Change::Enqueued {
            seq,
            id,
            message,
            delivery,
            packet_id,
        } => {
            let entry = Entry {
                id,
                message,
                delivery,
                packet_id,
                released: false,
            };
            session.entries.insert(seq, entry);
        }
        Change::Begun { seq, packet_id } => {
            if let Some(entry) = session.entries.get_mut(&seq) {
                entry.packet_id = Some(packet_id);
            }
        }
        Change::Released { seq } => {
            if let Some(entry) = session.entries.get_mut(&seq) {
                entry.released = true;
            }
        }
        Change::Dequeued { seq } => drop(session.entries.remove(&seq)),
        Change::Received { packet_id } => drop(session.received.insert(packet_id.value())),
        Change::Freed { packet_id } => drop(session.received.remove(&packet_id.value())),
    }
}

/// Makes operations as a shard would.
#[derive(Debug)]
struct Maker {
    dice: Dice,
    model: Model,
    number: u64,
    seq: u64,
}

impl Maker {
    fn below(&mut self, bound: usize) -> usize {
        (self.dice.roll() >> 16) as usize % bound
    }

    /// That of no message that is under way, for some ten thousand operations.
    fn free_packet_id(&self) -> PacketId {
        PacketId::new((self.seq % 65_535) as u16 + 1).expect("not 0")
    }

    fn client_id(&mut self) -> Arc<str> {
        // one is the beginning of another
        ["a", "ab", "client", "client-2", "ü"][self.below(5)].into()
    }

    fn message(&mut self) -> Arc<Message> {
        let size = self.below(300);
        let topic = ["t", "a/b", "a/b/c", "ü/1"][self.below(4)];
        Arc::new(Message {
            topic: topic.into(),
            qos: QoS::ExactlyOnce,
            retain: self.below(2) == 0,
            properties: vec![0; self.below(3)].into(),
            expires_at_ms: None,
            payload: Bytes::from(vec![b'x'; size]),
        })
    }

    fn terms(&mut self) -> Terms {
        Terms {
            username: (self.below(2) == 0).then(|| "user".into()),
            version: Version::V5,
            expiry_secs: u32::MAX,
        }
    }

    fn session_op(&mut self, client_id: Arc<str>) -> Op {
        match self.below(12) {
            0 => Op::Session {
                client_id,
                terms: self.terms(),
                fresh: self.below(3) == 0,
            },
            1 => Op::SessionEnded { client_id },
            2 => Op::Left {
                client_id,
                at_ms: self.dice.roll() % 1000,
            },
            3 => Op::Will {
                will: (self.below(2) == 0).then(|| Will {
                    message: self.message(),
                    delay_secs: 7,
                    expiry_secs: Some(3),
                }),
                client_id,
            },
            4 | 5 => Op::Subscribed {
                client_id,
                filter: ["a/#", "+", "$share/g/a/+", "t"][self.below(4)].into(),
                options: SubscribeOptions {
                    qos: QoS::AtLeastOnce,
                    no_local: self.below(2) == 0,
                    retain_as_published: self.below(2) == 0,
                    retain_handling: RetainHandling::SendIfNew,
                },
                subscription_id: self.below(3) as u32,
            },
            6 => Op::Unsubscribed {
                client_id,
                filter: ["a/#", "+", "$share/g/a/+", "t"][self.below(4)].into(),
            },
            _ => Op::Changed {
                change: self.change(&client_id),
                client_id,
            },
        }
    }

    fn change(&mut self, client_id: &str) -> Change {
        let session = self.model.session(client_id);
        let (received, entries) = (session.received.clone(), session.entries.clone());
        let pick = self.below(entries.len().max(1));
        let entry = entries.iter().nth(pick);
        self.seq += 1;
        let free = self.free_packet_id();
        match (self.below(6), entry) {
            (0 | 1, Some((seq, _))) => Change::Dequeued { seq: *seq },
            (2, Some((seq, entry))) if entry.packet_id.is_none() => Change::Begun {
                seq: *seq,
                packet_id: free,
            },
            (2 | 3, Some((seq, entry))) if entry.packet_id.is_some() => {
                Change::Released { seq: *seq }
            }
            (4, _) => match received.first() {
                Some(id) => Change::Freed {
                    packet_id: PacketId::new(*id).expect("not 0"),
                },
                None => Change::Received { packet_id: free },
            },
            _ => self.enqueue(free),
        }
    }

    fn next_id(&mut self) -> MessageId {
        self.number += 1;
        MessageId {
            start: 1,
            number: self.number,
            shard: 0,
        }
    }

    /// A new message, or one that another session has too.
    fn body(&mut self) -> (MessageId, Arc<Message>) {
        if self.below(3) == 0 {
            let entries: Vec<_> = self
                .model
                .sessions
                .values()
                .flat_map(|session| session.entries.values())
                .filter(|entry| !entry.released)
                .map(|entry| (entry.id, entry.message.clone()))
                .collect();
            if !entries.is_empty() {
                let pick = self.below(entries.len());
                return entries[pick].clone();
            }
        }
        (self.next_id(), self.message())
    }

    fn enqueue(&mut self, free: PacketId) -> Change {
        let (id, message) = self.body();
        Change::Enqueued {
            seq: self.seq,
            id,
            message,
            delivery: Delivery {
                qos: QoS::ExactlyOnce,
                retain: self.below(2) == 0,
                ids: (self.below(2) == 0).then(|| [1, 268_435_455].into()),
                group: (self.below(3) == 0).then(|| "$share/g/a/+".into()),
            },
            packet_id: (self.below(2) == 0).then_some(free),
        }
    }

    /// A client publishes with QoS 2, and another shard is to get it.
    fn owe(&mut self, client_id: &Arc<str>, ops: &mut Vec<Op>) {
        self.seq += 1;
        let packet_id = self.free_packet_id();
        let groups = if self.below(2) == 0 {
            vec![("$share/g/a/+".into(), ShardId(0))]
        } else {
            Vec::new()
        };
        let received = Op::Changed {
            client_id: client_id.clone(),
            change: Change::Received { packet_id },
        };
        let owed = Op::Owed {
            client_id: client_id.clone(),
            packet_id,
            owed: Owed {
                id: self.next_id(),
                message: Arc::new(Message {
                    topic: "a/b".into(),
                    ..(*self.message()).clone()
                }),
                publisher: 0,
                shards: 1,
                plain: 1,
                of: 1,
                groups,
            },
        };
        ops.extend(if self.below(2) == 0 {
            [received, owed]
        } else {
            [owed, received]
        });
    }

    fn make(&mut self, ops: &mut Vec<Op>) {
        let from = ops.len();
        let client_id = self.client_id();
        match self.below(12) {
            0 if self.model.sessions.contains_key(&client_id) => self.owe(&client_id, ops),
            1 if !self.model.owed.is_empty() => {
                let pick = self.below(self.model.owed.len());
                let id = self.model.owed.keys().nth(pick).copied();
                let shard = ShardId(0);
                ops.extend(id.map(|id| Op::Settled { id, shard }));
            }
            _ => ops.push(self.op()),
        }
        for op in &ops[from..] {
            self.model.apply(op);
        }
    }

    fn op(&mut self) -> Op {
        if self.below(8) == 0 {
            let mut message = self.message();
            if self.below(3) == 0 {
                Arc::make_mut(&mut message).payload = Bytes::new();
            }
            self.number += 1;
            let stamp = Stamp {
                time: self.number,
                origin: 0,
            };
            return Op::Retained { message, stamp };
        }
        let client_id = self.client_id();
        if self.below(16) == 0 {
            let banned = self.below(3) > 0;
            return Op::Ban { client_id, banned };
        }
        if !self.model.sessions.contains_key(&client_id) {
            return Op::Session {
                client_id,
                terms: self.terms(),
                fresh: true,
            };
        }
        self.session_op(client_id)
    }
}

/// Without what a store need not know: when a connected client was last there, and what was in a message of which only
/// the packet id is left.
fn comparable(ops: Vec<Op>) -> Vec<Op> {
    let mut plain: Vec<Op> = Vec::new();
    for op in ops {
        if let Op::Changed {
            change: Change::Released { seq },
            ..
        } = &op
            && let Some(Op::Changed {
                change:
                    Change::Enqueued {
                        seq: last,
                        id,
                        message,
                        ..
                    },
                ..
            }) = plain.last_mut()
        {
            assert_eq!(last, seq, "PUBREC follows its message");
            *id = MessageId::default();
            Arc::make_mut(message).topic = "-".into();
            let message = Arc::make_mut(message);
            (message.properties, message.payload) = (Box::default(), Bytes::new());
            message.retain = false;
        }
        plain.push(op);
    }
    plain
}

/// Gives a store `batches` of random operations, asks now and then for everything back, and compares.
///
/// # Panics
/// If the store gives back something else than the model.
pub fn run(store: &mut dyn Kept, seed: u64, batches: usize) {
    let mut maker = Maker {
        dice: Dice::new(seed),
        model: Model::default(),
        number: 0,
        seq: 0,
    };
    for number in 0..batches {
        let count = 1 + maker.below(40);
        let mut ops = Vec::new();
        for _ in 0..count {
            maker.make(&mut ops);
        }
        let is_asked = maker.below(4) == 0 || number + 1 == batches;
        if is_asked {
            // the wall clock of a crash is the store's own
            for client_id in maker.model.sessions.keys().cloned().collect::<Vec<_>>() {
                let op = Op::Left {
                    client_id,
                    at_ms: 5,
                };
                maker.model.apply(&op);
                ops.push(op);
            }
        }
        store.keep(ops);
        if is_asked {
            maker.model.settle();
            // above whatever was numbered there
            maker.seq += 1000;
            let expected = comparable(maker.model.restored());
            let given = comparable(store.restored());
            for (at, (expected, given)) in expected.iter().zip(&given).enumerate() {
                assert_eq!(
                    given, expected,
                    "operation {at}, seed {seed}, batch {number}"
                );
            }
            assert_eq!(given.len(), expected.len(), "seed {seed}, batch {number}");
        }
    }
}
