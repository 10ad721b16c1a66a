// SPDX-License-Identifier: Apache-2.0
//! The embedded stores against the neutral suite, and what is theirs alone.

use std::sync::Arc;
use std::time::Duration;

use corqtt_codec::{Message, MessageId, PacketId, QoS, SubscribeOptions, Version};
use corqtt_port::lane;
use corqtt_port::store::{Answer, Batch, Op, Owed, Terms, Token};
use corqtt_port::suite::{self, Kept};
use corqtt_session::{Change, Delivery};
use corqtt_topics::ShardId;

use super::book::{Book, Cleared, Group};
use super::*;

const WAYS: [StorageWay; 2] = [StorageWay::Redb, StorageWay::Fjall];

/// A directory that goes with its test.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("corqtt-store-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("a directory for the test");
        Self(path)
    }

    fn settings(&self, way: StorageWay) -> StorageSettings {
        StorageSettings {
            way,
            path: self.0.clone(),
            sync: StorageSync::Always,
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// An engine that is opened anew whenever something is asked back.
struct Reopened {
    way: StorageWay,
    directory: Directory,
    open: Option<(Box<dyn Engine>, Book)>,
}

impl Reopened {
    fn new(way: StorageWay) -> Self {
        Self {
            way,
            directory: Directory::new(),
            open: None,
        }
    }

    fn open(&mut self) -> &mut (Box<dyn Engine>, Book) {
        let (way, path) = (self.way, &self.directory.0);
        self.open.get_or_insert_with(|| {
            let engine = engine(way, path).expect("it opens");
            let book = Book::open(&*engine).expect("it can be read");
            (engine, book)
        })
    }

    fn write(&mut self, group: &Group) {
        let (engine, _) = self.open();
        let mut rows = group
            .iter()
            .map(|((table, key), value)| (*table, key.as_slice(), value.as_deref()));
        engine.commit(&mut rows, true).expect("a commit");
    }
}

impl Kept for Reopened {
    fn keep(&mut self, ops: Vec<Op>) {
        let mut group = Group::new();
        let (engine, book) = self.open();
        for op in ops {
            book.apply(&**engine, &mut group, op).expect("it applies");
        }
        self.write(&group);
    }

    fn restored(&mut self) -> Vec<Op> {
        self.open = None;
        let mut ops = Vec::new();
        let (engine, book) = self.open();
        book.restore(&**engine, 5, &mut |op| ops.push(op))
            .expect("it can be read");
        // bodies are there for entries of queues only
        let mut bodies = 0;
        engine
            .scan(Table::Bodies, &[], &mut |_, _| {
                bodies += 1;
                std::ops::ControlFlow::Continue(())
            })
            .expect("it can be read");
        let named: std::collections::HashSet<_> = ops
            .iter()
            .filter_map(|op| match op {
                Op::Changed {
                    change: Change::Enqueued { id, .. },
                    ..
                } => Some(*id),
                _ => None,
            })
            .filter(|id| *id != MessageId::default())
            .collect();
        assert_eq!(bodies, named.len());
        ops
    }
}

#[test]
fn every_store_does_what_the_model_does() {
    for way in WAYS {
        for seed in 1..=12 {
            suite::run(&mut Reopened::new(way), seed, 40);
        }
    }
}

fn message(topic: &str, expires_at_ms: Option<u64>) -> Arc<Message> {
    Arc::new(Message {
        topic: topic.into(),
        qos: QoS::ExactlyOnce,
        retain: false,
        properties: Box::default(),
        expires_at_ms,
        payload: "payload".into(),
    })
}

fn session(client_id: &str, expiry_secs: u32) -> Op {
    Op::Session {
        client_id: client_id.into(),
        terms: Terms {
            username: None,
            version: Version::V5,
            expiry_secs,
        },
        fresh: true,
    }
}

fn id(number: u64) -> MessageId {
    MessageId {
        start: 0,
        number,
        shard: 0,
    }
}

fn enqueued(client_id: &str, seq: u64, message: Arc<Message>, packet_id: Option<u16>) -> Op {
    Op::Changed {
        client_id: client_id.into(),
        change: Change::Enqueued {
            seq,
            id: id(seq),
            message,
            delivery: Delivery {
                qos: QoS::AtLeastOnce,
                retain: false,
                ids: None,
                group: None,
            },
            packet_id: packet_id.and_then(PacketId::new),
        },
    }
}

fn subscribed(client_id: &str, filter: &str) -> Op {
    Op::Subscribed {
        client_id: client_id.into(),
        filter: filter.into(),
        options: SubscribeOptions {
            qos: QoS::ExactlyOnce,
            no_local: false,
            retain_as_published: false,
            retain_handling: corqtt_codec::RetainHandling::Send,
        },
        subscription_id: 0,
    }
}

fn messages_of(ops: &[Op], client: &str) -> Vec<(u64, String)> {
    ops.iter()
        .filter_map(|op| match op {
            Op::Changed {
                client_id,
                change: Change::Enqueued { seq, message, .. },
            } if **client_id == *client => Some((*seq, message.topic.to_string())),
            _ => None,
        })
        .collect()
}

#[test]
fn what_expired_meanwhile_is_gone() {
    for way in WAYS {
        let mut store = Reopened::new(way);
        let left = |client_id: &str, at_ms| Op::Left {
            client_id: client_id.into(),
            at_ms,
        };
        let retained = |topic: &str, expires_at_ms| Op::Retained {
            message: message(topic, expires_at_ms),
            stamp: corqtt_topics::Stamp { time: 1, origin: 0 },
        };
        store.keep(vec![
            session("over", 10),
            left("over", 1_000),
            session("there", 100),
            left("there", 1_000),
            enqueued("there", 1, message("expired", Some(15_000)), None),
            enqueued("there", 2, message("begun", Some(15_000)), Some(1)),
            enqueued("there", 3, message("lasts", Some(90_000)), None),
            session("connected", 60),
            session("for ever", u32::MAX),
            left("for ever", 0),
            retained("gone", Some(19_999)),
            retained("stays", None),
        ]);
        let mut cleared = Cleared::default();
        let mut group = Group::new();
        let (engine, book) = store.open();
        book.expire(&**engine, &mut group, 10_000, 20_000, &mut cleared)
            .expect("it can be read");
        store.write(&group);
        let expected = Cleared {
            sessions: 1,
            messages: 1,
            retained: 1,
            settled: 0,
        };
        assert_eq!(cleared, expected);
        let ops = store.restored();
        let names: Vec<_> = ops
            .iter()
            .filter_map(|op| match op {
                Op::Session { client_id, .. } => Some(&**client_id),
                Op::Retained { message, .. } => Some(&*message.topic),
                _ => None,
            })
            .collect();
        assert_eq!(names, ["connected", "for ever", "there", "stays"]);
        let expected = [(2, "begun".to_owned()), (3, "lasts".to_owned())];
        assert_eq!(messages_of(&ops, "there"), expected);
    }
}

#[test]
fn what_a_shard_was_owed_goes_to_its_sessions_and_nobody_elses() {
    for way in WAYS {
        let mut store = Reopened::new(way);
        let hasher = foldhash::fast::FixedState::with_seed(7);
        let shard_of = |name: &str| {
            use std::hash::BuildHasher;
            (hasher.hash_one(name) % 2) as u8
        };
        let names: Vec<String> = (0..16).map(|n| format!("c{n}")).collect();
        let mut ops = vec![session("publisher", u32::MAX)];
        for name in &names {
            ops.push(session(name, u32::MAX));
            ops.push(subscribed(name, "a/+"));
            ops.push(subscribed(name, "$share/g/a/b"));
            ops.push(enqueued(name, 4, message("before", None), None));
        }
        let client_id: Arc<str> = "publisher".into();
        let packet_id = PacketId::new(9).expect("not 0");
        ops.push(Op::Changed {
            client_id: client_id.clone(),
            change: Change::Received { packet_id },
        });
        ops.push(Op::Owed {
            client_id,
            packet_id,
            owed: Owed {
                id: id(99),
                message: message("a/b", None),
                publisher: 0,
                shards: 0b11,
                plain: 0b11,
                of: 2,
                groups: vec![("$share/g/a/b".into(), ShardId(1))],
            },
        });
        // the first shard had it
        ops.push(Op::Settled {
            id: id(99),
            shard: ShardId(0),
        });
        store.keep(ops);
        let mut cleared = Cleared::default();
        let mut group = Group::new();
        let (engine, book) = store.open();
        book.settle(&**engine, &mut group, 7, &mut cleared)
            .expect("it can be read");
        store.write(&group);
        let ops = store.restored();
        let mut copies = 0;
        for name in &names {
            let messages = messages_of(&ops, name);
            assert_eq!(messages[0], (4, "before".to_owned()));
            if shard_of(name) == 0 {
                assert_eq!(messages.len(), 1, "{name}");
            } else {
                assert_eq!(messages[1], (5, "a/b".to_owned()), "{name}");
                copies += messages.len() - 2;
            }
        }
        assert_eq!(copies, 1, "one member of the group");
        let is_received = |op: &&Op| matches!(op, Op::Changed { client_id, change: Change::Received { .. } } if **client_id == *"publisher");
        assert_eq!(ops.iter().filter(is_received).count(), 1);
        // and not once more
        let (engine, book) = store.open();
        let mut group = Group::new();
        book.settle(&**engine, &mut group, 7, &mut cleared)
            .expect("it can be read");
        assert!(group.is_empty());
    }
}

#[test]
fn a_store_that_another_process_has_is_refused_with_its_name() {
    let directory = Directory::new();
    let settings = directory.settings(StorageWay::Redb);
    let opened = open(&settings, 0).expect("it opens").expect("a store");
    let error = open(&settings, 0).expect_err("it is in use").to_string();
    let pid = format!("process {}", std::process::id());
    assert!(
        error.contains(&pid) && error.contains("--storage-path"),
        "{error}"
    );
    drop(opened);
    open(&settings, 0).expect("it is free");
}

#[test]
fn starts_are_counted_and_the_seed_stays() {
    for way in WAYS {
        let directory = Directory::new();
        let settings = directory.settings(way);
        let mut seeds = Vec::new();
        for start in 0..3 {
            let opened = open(&settings, 0).expect("it opens").expect("a store");
            assert_eq!(opened.start, start);
            seeds.push(opened.hash_seed);
        }
        assert!(seeds.iter().all(|seed| *seed == seeds[0]));
    }
}

#[test]
fn a_store_of_a_later_format_is_refused() {
    let directory = Directory::new();
    let settings = directory.settings(StorageWay::Redb);
    drop(open(&settings, 0).expect("it opens"));
    let mut engine = engine(StorageWay::Redb, &directory.0).expect("it opens");
    let later = 2_u64.to_be_bytes();
    let mut rows = [(Table::Meta, FORMAT, Some(&later[..]))].into_iter();
    engine.commit(&mut rows, true).expect("a commit");
    drop(engine);
    let error = open(&settings, 0).expect_err("a later format").to_string();
    assert!(error.contains("format 2"), "{error}");
}

/// A store with its thread, and what two shards are answered.
struct Running {
    keeper: Keeper,
    answers: Vec<lane::Receiver<Answer>>,
    restored: Vec<mpsc::Receiver<Vec<Op>>>,
}

fn run(settings: &StorageSettings, bytes_max: u64) -> Running {
    let opened = open(settings, bytes_max)
        .expect("it opens")
        .expect("a store");
    let (to, restored) = channels(2);
    let mut answers = Vec::new();
    let mut tell: Vec<Tell> = Vec::new();
    for _ in 0..2 {
        let (sender, receiver) = lane::blocking();
        tell.push(Box::new(move |answer| sender.push(answer)));
        answers.push(receiver);
    }
    let keeper = opened.start(to, |name| name.len(), tell).expect("a thread");
    Running {
        keeper,
        answers,
        restored,
    }
}

fn next(from: &lane::Receiver<Answer>) -> Vec<Answer> {
    let mut all = Vec::new();
    from.wait(&mut all, Some(Duration::from_secs(10)));
    all
}

#[test]
fn each_shard_is_answered_and_gets_its_own_back() {
    for way in WAYS {
        let directory = Directory::new();
        for sync in [
            StorageSync::Always,
            StorageSync::Every(Duration::from_millis(1)),
            StorageSync::Never,
        ] {
            let settings = StorageSettings {
                sync,
                ..directory.settings(way)
            };
            let running = run(&settings, 0);
            for shard in 0..2 {
                let name = ["aa", "a"][usize::from(shard)];
                let ops = vec![
                    session(name, u32::MAX),
                    enqueued(name, 1, message("topic", None), None),
                ];
                let token = Token(1);
                let mut store = running.keeper.store(shard);
                assert!(store.records());
                assert_eq!(store.put(Batch { token, ops }), None);
                let answers = next(&running.answers[usize::from(shard)]);
                assert_eq!(answers, [Answer::Kept(token)]);
            }
            running.keeper.stop();
            let running = run(&settings, 0);
            for (shard, restored) in running.restored.iter().enumerate() {
                let ops: Vec<Op> = restored.iter().flatten().collect();
                let name = ["aa", "a"][shard];
                assert!(matches!(&ops[0], Op::Session { client_id, .. } if **client_id == *name));
                assert_eq!(messages_of(&ops, name), [(1, "topic".to_owned())]);
            }
            running.keeper.stop();
        }
    }
}

#[test]
fn a_store_above_its_limit_says_so_and_when_it_is_not() {
    let directory = Directory::new();
    let running = run(&directory.settings(StorageWay::Redb), 1);
    let mut store = running.keeper.store(0);
    let ops = vec![session("client", u32::MAX)];
    store.put(Batch {
        token: Token(1),
        ops,
    });
    let mut answers = next(&running.answers[0]);
    while answers.len() < 2 {
        answers.extend(next(&running.answers[0]));
    }
    assert_eq!(answers, [Answer::Kept(Token(1)), Answer::Full(true)]);
    assert_eq!(next(&running.answers[1]), [Answer::Full(true)]);
    running.keeper.stop();
}
