// SPDX-License-Identifier: Apache-2.0
//! What a shard does with the lanes to the cluster's tables and to other nodes, whose ends the tests hold.

use std::cell::RefCell;
use std::collections::VecDeque;

use corqtt_port::claims::Lease;
use corqtt_port::routes::{Batch, Item, Mark, Publish};
use corqtt_topics::{Interest, Want};

use crate::client::parse;

use super::*;

/// The lanes of two nodes behind that to the tables.
const NODES: u8 = 2;

/// What came out of a lane and was not looked at yet.
struct End {
    lane: ShardId,
    from: Receiver<ToShard>,
    came: RefCell<VecDeque<ToShard>>,
}

impl End {
    fn new(lane: u8) -> (Sender<ToShard>, Self) {
        let (sender, from) = lane::blocking();
        let end = Self {
            lane: ShardId(lane),
            from,
            came: RefCell::default(),
        };
        (sender, end)
    }

    fn take<T>(&self, mut wanted: impl FnMut(&ToShard) -> Option<T>) -> T {
        let deadline = Instant::now() + DEADLINE;
        let mut came = self.came.borrow_mut();
        loop {
            for at in 0..came.len() {
                if let Some(found) = wanted(&came[at]) {
                    came.remove(at);
                    return found;
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "nothing of it came: {came:?}");
            let mut more = Vec::new();
            self.from.wait(&mut more, Some(left));
            came.extend(more);
        }
    }

    /// The next interest: who told it, its number, what.
    fn interest(&self) -> (ShardId, u64, Interest) {
        self.take(|message| match message {
            ToShard::Batch(batch) => match &batch.items[..] {
                [Item::Interest(interest)] => Some((batch.from, batch.first, interest.clone())),
                items => panic!("one interest: {items:?}"),
            },
            _ => None,
        })
    }

    /// The next message: who sent it, its number, its topic and payload, the groups.
    fn publish(&self) -> (ShardId, u64, String, Vec<u8>, Vec<u8>) {
        self.take(|message| match message {
            ToShard::Batch(batch) => match &batch.items[..] {
                [Item::Publish(publish)] => {
                    let message = batch.message(publish).expect("a good batch");
                    Some((
                        batch.from,
                        batch.first,
                        message.topic.as_str().to_owned(),
                        message.payload.bytes.to_vec(),
                        batch.text_of(&publish.groups).to_vec(),
                    ))
                }
                items => panic!("one message: {items:?}"),
            },
            _ => None,
        })
    }

    /// Waits until a shard says that the items up to `upto` are kept; what it refused.
    fn kept(&self, shard: ShardId, upto: u64) -> Vec<u64> {
        self.take(|message| match message {
            ToShard::Mark(mark) if mark.from == shard => {
                assert!(mark.kept <= mark.upto);
                (mark.kept == upto).then(|| mark.refused.clone())
            }
            _ => None,
        })
    }

    /// Nothing was sent there.
    fn is_quiet(&self) -> bool {
        let mut more = Vec::new();
        self.from.drain(&mut more);
        let mut came = self.came.borrow_mut();
        came.extend(more);
        let is_batch = |message: &ToShard| matches!(message, ToShard::Batch(_));
        !came.iter().any(is_batch)
    }
}

/// A node of a cluster, without the cluster.
struct Member {
    broker: Broker,
    tables: End,
    nodes: Vec<End>,
}

impl Member {
    fn start(setup: Setup) -> Self {
        Self::with(setup, |_| {})
    }

    fn with(setup: Setup, change: impl FnOnce(&mut Config)) -> Self {
        Self::leased(setup, change, None)
    }

    fn leased(setup: Setup, change: impl FnOnce(&mut Config), lease: Option<Arc<Lease>>) -> Self {
        let (to_tables, tables) = End::new(setup.shards);
        let ends = (0..NODES).map(|node| End::new(setup.shards + 1 + node));
        let (to_nodes, nodes): (Vec<_>, Vec<_>) = ends.unzip();
        let broker = Broker::on(
            setup,
            |config| {
                config.nodes = NODES;
                change(config);
            },
            |ports| {
                ports.lease.clone_from(&lease);
                for lane in [&to_tables].into_iter().chain(&to_nodes) {
                    ports.shards.push(lane.clone());
                    ports.marks.push(lane.clone());
                }
            },
        );
        Self {
            broker,
            tables,
            nodes,
        }
    }

    fn shard(&self, shard: ShardId) -> &Sender<ToShard> {
        &self.broker.inboxes[usize::from(shard.0)]
    }

    fn mark(&self, end: &End, shard: ShardId, upto: u64, kept: u64, refused: &[u64]) {
        self.shard(shard).push(ToShard::Mark(Mark {
            from: end.lane,
            upto,
            kept,
            refused: refused.to_vec(),
        }));
    }

    /// Subscribes, with the tables' word for it.
    fn subscriber(&self, id: &str, filter: &str, qos: u8) -> Client {
        let mut client = self.broker.client(id);
        client.send(&subscribe_bytes(1, filter, qos));
        let (shard, number, interest) = self.tables.interest();
        assert_eq!(interest.filter, filter);
        self.mark(&self.tables, shard, number, number, &[]);
        assert_eq!(client.packet(), (0x90, vec![0, 1, qos]));
        client
    }

    /// All shards hear what a node wants.
    fn wants(&self, node: usize, first: u64, filter: &str, want: Want) {
        for shard in 0..self.broker.inboxes.len() {
            let interest = Interest {
                filter: filter.into(),
                want,
            };
            self.shard(ShardId(shard as u8)).push(ToShard::Batch(Batch {
                from: self.nodes[node].lane,
                first,
                items: vec![Item::Interest(interest)],
                text: Vec::new(),
                is_awaited: true,
            }));
            self.nodes[node].kept(ShardId(shard as u8), first);
        }
    }

    /// A message of a node for a shard.
    fn publish(&self, node: usize, shard: u8, number: u64, topic: &str, plain: bool, groups: &str) {
        let mut batch = Batch {
            from: self.nodes[node].lane,
            first: number,
            items: Vec::new(),
            text: Vec::new(),
            is_awaited: true,
        };
        let publish = Publish {
            topic: batch.put_text(topic.as_bytes()),
            properties: 0..0,
            small: batch.put_text(b"payload"),
            large: None,
            qos: QoS::AtLeastOnce,
            retain: false,
            expires_at_ms: None,
            publisher: 7,
            plain,
            groups: batch.put_text(groups.as_bytes()),
            id: None,
            is_owed: false,
        };
        batch.items.push(Item::Publish(publish));
        self.shard(ShardId(shard)).push(ToShard::Batch(batch));
    }
}

const PLAIN: Want = Want::Plain {
    any: true,
    persistent: true,
};

#[test]
fn suback_waits_for_the_tables_and_nodes_are_not_told() {
    each(&SOME, |setup| {
        let member = Member::start(setup);
        let mut client = member.broker.client("c");
        client.send(&subscribe_bytes(1, "a/+", 1));
        let (shard, number, interest) = member.tables.interest();
        assert_eq!(interest.filter, "a/+");
        // answers that do not wait overtake it
        client.send(&[0xC0, 0]);
        assert_eq!(client.packet().0, 0xD0);
        member.mark(&member.tables, shard, number, number, &[]);
        assert_eq!(client.packet(), (0x90, vec![0, 1, 1]));
        assert!(member.nodes.iter().all(End::is_quiet));
        member.broker.drain(client);
    });
}

#[test]
fn a_message_goes_to_each_node_that_wants_it_and_its_puback_waits_for_them() {
    each(&SOME, |setup| {
        let member = Member::start(setup);
        member.wants(0, 1, "t/#", PLAIN);
        member.wants(0, 2, "t/+", PLAIN);
        member.wants(1, 1, "t/a", PLAIN);
        let mut client = member.broker.client("c");
        client.send(&publish_bytes(0x32, "t/a", 9, b"one"));
        let mut waits = Vec::new();
        for node in &member.nodes {
            let (shard, number, topic, payload, groups) = node.publish();
            assert_eq!(
                (topic.as_str(), &payload[..], &groups[..]),
                ("t/a", &b"one"[..], &b""[..])
            );
            waits.push((node, shard, number));
        }
        client.send(&[0xC0, 0]);
        assert_eq!(client.packet().0, 0xD0);
        let (node, shard, number) = waits[0];
        // done is not kept
        member.mark(node, shard, number, number - 1, &[]);
        let (other, shard, number_there) = waits[1];
        member.mark(other, shard, number_there, number_there, &[]);
        client.send(&[0xC0, 0]);
        assert_eq!(client.packet().0, 0xD0);
        member.mark(node, shard, number, number, &[]);
        assert_eq!(client.packet(), (0x40, vec![0, 9]));
        // nobody waits for QoS 0, and nobody else is asked
        client.send(&publish_bytes(0x30, "u", 0, b"two"));
        client.send(&publish_bytes(0x30, "t/b", 0, b"three"));
        assert_eq!(member.nodes[0].publish().2, "t/b");
        assert!(member.nodes[1].is_quiet());
        member.broker.drain(client);
    });
}

#[test]
fn what_a_node_refuses_is_refused() {
    each(&SOME, |setup| {
        let member = Member::start(setup);
        member.wants(0, 1, "t", PLAIN);
        let mut client = member.broker.client("c");
        client.send(&publish_bytes(0x32, "t", 9, b"one"));
        let (shard, number, ..) = member.nodes[0].publish();
        member.mark(&member.nodes[0], shard, number, number, &[number]);
        // before 5.0 there is no other way to say so
        client.expect_end();
    });
}

#[test]
fn a_message_of_a_node_reaches_every_shard_once_and_is_kept_when_they_have_it() {
    each(&SOME, |setup| {
        let member = Member::start(setup);
        // another node that wants it is not told by this one
        member.wants(1, 1, "t/#", PLAIN);
        let filters = [
            "+/a/b", "t/+/b", "t/a/+", "t/a/#", "t/#", "+/+/b", "+/a/+", "#",
        ];
        let mut clients: Vec<Client> = filters
            .iter()
            .map(|filter| member.subscriber(filter, filter, 1))
            .collect();
        for shard in 0..setup.shards {
            member.publish(0, shard, 1, "t/a/b", true, "");
            for client in &mut clients {
                let (kind, body) = client.packet();
                assert_eq!(
                    (kind & 0xF6, parse(kind, &body).0.as_str()),
                    (0x32, "t/a/b")
                );
            }
            let refused = member.nodes[0].kept(ShardId(shard), 1);
            assert_eq!(refused, []);
        }
        assert!(member.nodes[1].is_quiet());
        member.broker.drain(clients);
    });
}

#[test]
fn a_groups_message_goes_to_the_node_that_was_chosen_and_stays_there() {
    each(&SOME, |setup| {
        let member = Member::start(setup);
        let group = Want::Group {
            online: 1,
            offline: 0,
            persistent: false,
        };
        member.wants(0, 1, "$share/g/t", group);
        let mut client = member.broker.client("c");
        client.send(&publish_bytes(0x30, "t", 0, b"one"));
        let (_, _, topic, _, groups) = member.nodes[0].publish();
        assert_eq!((topic.as_str(), &groups[..]), ("t", &b"$share/g/t\0"[..]));
        // a member here: of what another node sends it gets all, whatever the others have
        let mut here = member.subscriber("here", "$share/g/t", 0);
        for (shard, number) in (0..setup.shards).flat_map(|shard| [(shard, 1), (shard, 2)]) {
            member.publish(1, shard, number, "t", false, "$share/g/t\0");
            assert_eq!(here.message().0, "t");
            member.nodes[1].kept(ShardId(shard), number);
        }
        // nobody here any more: to a node that has one, not back
        drop(here);
        let (shard, number, _) = member.tables.interest();
        member.mark(&member.tables, shard, number, number, &[]);
        member.publish(1, 0, 3, "t", false, "$share/g/t\0");
        assert_eq!(member.nodes[0].publish().2, "t");
        assert!(member.nodes[1].is_quiet());
        member.broker.drain(client);
    });
}

#[test]
fn what_would_be_acknowledged_waits_for_the_lease() {
    each(&SOME, |setup| {
        let lease = Arc::new(Lease::default());
        let member = Member::leased(setup, |_| {}, Some(lease.clone()));
        let mut watcher = member.subscriber("w", "t", 1);
        let mut client = member.broker.client("c");
        client.send(&publish_bytes(0x30, "t", 0, b"zero"));
        assert_eq!(watcher.packet().1, b"\0\x01tzero");
        client.send(&publish_bytes(0x32, "t", 9, b"one"));
        client.send(&publish_bytes(0x30, "t", 0, b"behind it"));
        // others go on, and behind this answer nothing has come of it
        let mut other = member.broker.client("o");
        other.send(&publish_bytes(0x30, "t", 0, b"another"));
        assert_eq!(watcher.packet().1, b"\0\x01tanother");
        lease.extend(u64::MAX);
        assert_eq!(client.packet(), (0x40, vec![0, 9]));
        let (first, body) = watcher.packet();
        assert_eq!(
            (first, &body[..3], &body[5..]),
            (0x32, &b"\0\x01t"[..], &b"one"[..])
        );
        assert_eq!(watcher.packet().1, b"\0\x01tbehind it");
        member.broker.drain((client, watcher, other));
    });
}
