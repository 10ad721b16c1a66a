// SPDX-License-Identifier: Apache-2.0
//! What shards of two nodes have for each other, over real links; the shards are the tests'.

mod common;

use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

use corqtt_cluster::{
    Bootstrap, Carried, Core, CoreEvent, CoreSettings, Exchange, OwnRows, Proposer, Shards,
    Timeouts,
};
use corqtt_codec::QoS;
use corqtt_port::routes::{Batch, Item, Mark, Publish};
use corqtt_topics::{Interest, ShardId, Want};

use common::{Directory, core_settings};

const LIMIT: Duration = Duration::from_secs(30);

type All = (Vec<(ShardId, Batch)>, Vec<(ShardId, Mark)>);

/// What shards were sent and was not looked at yet.
#[derive(Default)]
struct Sent {
    all: Mutex<All>,
    changed: Condvar,
}

struct Ends(Arc<Sent>);

impl Shards for Ends {
    fn batch(&self, shard: ShardId, batch: Batch) {
        let mut all = self.0.all.lock().expect("no panic");
        all.0.push((shard, batch));
        self.0.changed.notify_all();
    }

    fn mark(&self, shard: ShardId, mark: Mark) {
        let mut all = self.0.all.lock().expect("no panic");
        all.1.push((shard, mark));
        self.0.changed.notify_all();
    }
}

struct Node {
    settings: CoreSettings,
    shards: u8,
    exchange: Arc<OnceLock<Arc<Exchange>>>,
    sent: Arc<Sent>,
    proposer: Arc<OnceLock<Proposer>>,
    core: Option<Core>,
    _directory: Directory,
}

impl Node {
    fn start(name: &str, shards: u8, seeds: &[&Self]) -> Self {
        let directory = Directory::new();
        let bootstrap = if seeds.is_empty() {
            Bootstrap::Force
        } else {
            Bootstrap::No
        };
        // nothing is settled by time alone
        let timeouts = Timeouts {
            dead_node: 4 * LIMIT,
            forget_node: None,
            lease: LIMIT,
        };
        let seeds = seeds.iter().map(|seed| seed.settings.gossip);
        let settings = core_settings(name, directory.path(), seeds, bootstrap, timeouts);
        let mut node = Self {
            settings,
            shards,
            exchange: Arc::default(),
            sent: Arc::default(),
            proposer: Arc::default(),
            core: None,
            _directory: directory,
        };
        node.run();
        node
    }

    fn run(&mut self) {
        let sent = Box::new(Ends(self.sent.clone()));
        let exchange = Exchange::new(self.shards, 3, std::process::id().into(), sent);
        let _ = self.exchange.set(exchange.clone());
        let (telling, proposer) = (exchange.clone(), self.proposer.clone());
        let tell = move |event| match event {
            CoreEvent::Applied(applied) => {
                let index = telling.apply(applied.index, &applied.outputs);
                if let Some(proposer) = proposer.get() {
                    proposer.applied(index);
                }
            }
            CoreEvent::Settled(ticket) => telling.settled(ticket),
            _ => {}
        };
        let providing = exchange.clone();
        let rows = move || OwnRows {
            sessions: Vec::new(),
            deltas: providing.routes(),
        };
        let carried = Arc::new(Carried(exchange));
        let core = Core::start(self.settings.clone(), rows, tell, carried).expect("it starts");
        let _ = self.proposer.set(core.proposer());
        core.proposer().applied(core.proposer().status().applied);
        self.core = Some(core);
    }

    fn exchange(&self) -> &Exchange {
        self.exchange.get().expect("it runs")
    }

    fn proposer(&self) -> &Proposer {
        self.proposer.get().expect("it runs")
    }

    fn take<T>(&self, mut wanted: impl FnMut(&mut All) -> Option<T>) -> T {
        let deadline = Instant::now() + LIMIT;
        let mut all = self.sent.all.lock().expect("no panic");
        loop {
            if let Some(found) = wanted(&mut all) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "nothing of it came: {all:?}");
            all = self
                .sent
                .changed
                .wait_timeout(all, left)
                .expect("no panic")
                .0;
        }
    }

    /// The next batch for a shard.
    fn batch(&self, shard: u8) -> Batch {
        self.take(|(batches, _)| {
            let at = batches.iter().position(|(of, _)| of.0 == shard)?;
            Some(batches.remove(at).1)
        })
    }

    /// Waits for a mark to a shard from a lane that says that items up to `kept` are kept; all that were refused.
    fn mark(&self, shard: u8, lane: u8, kept: u64) -> Vec<u64> {
        self.take(|(_, marks)| {
            let is_it = |(of, mark): &(ShardId, Mark)| {
                of.0 == shard && mark.from.0 == lane && mark.kept == kept
            };
            marks.iter().find(|mark| is_it(mark))?;
            let mut refused: Vec<u64> = marks
                .extract_if(.., |(of, mark)| of.0 == shard && mark.from.0 == lane)
                .flat_map(|(_, mark)| mark.refused)
                .collect();
            refused.sort_unstable();
            refused.dedup();
            Some(refused)
        })
    }

    /// A shard marks what came over a lane.
    fn kept(&self, shard: u8, batch: &Batch, refused: &[u64]) {
        let upto = batch.first + batch.items.len() as u64 - 1;
        let mark = Mark {
            from: ShardId(shard),
            upto,
            kept: upto,
            refused: refused.to_vec(),
        };
        let index = self.exchange().marked_by_shard(batch.from, &mark);
        self.proposer().applied(index);
    }

    fn wants(&self, shard: u8, item: u64, filter: &str) {
        let interest = Interest {
            filter: filter.into(),
            want: Want::Plain {
                any: true,
                persistent: true,
            },
        };
        let batch = Batch {
            from: ShardId(shard),
            first: item,
            items: vec![Item::Interest(interest)],
            text: Vec::new(),
            is_awaited: true,
        };
        self.exchange()
            .interest(&batch, |deltas| self.proposer().push(deltas));
    }

    /// A shard's messages for the node of a lane, with these topics.
    fn publish(&self, shard: u8, lane: u8, first: u64, topics: &[&str]) {
        let mut batch = Batch {
            from: ShardId(shard),
            first,
            items: Vec::new(),
            text: Vec::new(),
            is_awaited: true,
        };
        for topic in topics {
            let publish = Publish {
                topic: batch.put_text(topic.as_bytes()),
                properties: 0..0,
                small: batch.put_text(b"payload"),
                large: None,
                qos: QoS::AtLeastOnce,
                retain: false,
                expires_at_ms: None,
                publisher: 0,
                plain: true,
                groups: 0..0,
                id: None,
                is_owed: false,
            };
            batch.items.push(Item::Publish(publish));
        }
        assert!(self.exchange().publish(ShardId(lane), &batch, 0));
    }

    fn wait_until(&self, wanted: impl Fn(&Proposer) -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !wanted(self.proposer()) {
            assert!(Instant::now() < deadline, "{:?}", self.proposer().status());
            let all = self.sent.all.lock().expect("no panic");
            let moment = Duration::from_millis(20);
            drop(
                self.sent
                    .changed
                    .wait_timeout(all, moment)
                    .expect("no panic"),
            );
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(core) = self.core.take().filter(|_| !std::thread::panicking()) {
            core.stop();
        }
    }
}

fn topics(batch: &Batch) -> Vec<String> {
    let topic = |item: &Item| match item {
        Item::Publish(publish) => {
            let message = batch.message(publish).expect("a good batch");
            message.topic.as_str().to_owned()
        }
        item => panic!("a message: {item:?}"),
    };
    batch.items.iter().map(topic).collect()
}

/// One shard and two, once both are members.
fn pair() -> [Node; 2] {
    let one = Node::start("one", 1, &[]);
    let two = Node::start("two", 2, &[&one]);
    for node in [&one, &two] {
        node.wait_until(|proposer| {
            let status = proposer.status();
            let live = status.members.iter().filter(|member| member.row.is_live);
            live.count() == 2 && status.lease_until_ns.is_some()
        });
    }
    [one, two]
}

#[test]
fn interest_is_marked_when_both_nodes_shards_have_it() {
    let [one, two] = pair();
    one.wants(0, 7, "t/#");
    let mut came = Vec::new();
    for shard in [0, 1] {
        let batch = two.batch(shard);
        // behind two shards and the tables
        assert_eq!((batch.from, batch.first), (ShardId(3), 1));
        assert!(matches!(&batch.items[..], [Item::Interest(interest)] if interest.filter == "t/#"));
        came.push((shard, batch));
    }
    // one shard is not all of them
    two.kept(0, &came[0].1, &[]);
    let is_of_tables = |(_, mark): &(ShardId, Mark)| mark.from == ShardId(1);
    assert!(
        !one.sent
            .all
            .lock()
            .expect("no panic")
            .1
            .iter()
            .any(is_of_tables)
    );
    two.kept(1, &came[1].1, &[]);
    assert_eq!(one.mark(0, 1, 7), [0; 0]);
    // what is known already is settled already
    one.wants(0, 8, "t/#");
    assert_eq!(one.mark(0, 1, 8), [0; 0]);
}

#[test]
fn messages_go_to_the_shard_of_their_number_and_marks_come_back() {
    let [one, two] = pair();
    // each node has the lane of the other once it knows that it is there
    one.wants(0, 1, "t/#");
    two.wants(1, 1, "u");
    for shard in [0, 1] {
        let batch = two.batch(shard);
        two.kept(shard, &batch, &[]);
    }
    let batch = one.batch(0);
    one.kept(0, &batch, &[]);
    two.publish(0, 3, 1, &["t/a", "t/b"]);
    two.publish(1, 3, 1, &["t/c"]);
    let mut all = Vec::new();
    while all.len() < 3 {
        let batch = one.batch(0);
        assert_eq!(batch.from, ShardId(2));
        all.extend(topics(&batch));
        let refused: Vec<u64> = topics(&batch)
            .iter()
            .zip(batch.first..)
            .filter(|(topic, _)| topic.as_str() == "t/b")
            .map(|(_, number)| number)
            .collect();
        one.kept(0, &batch, &refused);
    }
    all.sort();
    assert_eq!(all, ["t/a", "t/b", "t/c"]);
    assert_eq!(two.mark(0, 3, 2), [2]);
    assert_eq!(two.mark(1, 3, 1), [0; 0]);
    // the other way, from the one shard there is
    one.publish(0, 2, 1, &["u"]);
    let batch = two.batch(0);
    assert_eq!(topics(&batch), ["u"]);
    two.kept(0, &batch, &[]);
    assert_eq!(one.mark(0, 2, 1), [0; 0]);
}
