// SPDX-License-Identifier: Apache-2.0
//! The stores against the neutral suite, and what is theirs alone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use corqtt_codec::{Message, MessageId, PacketId, QoS, SubscribeOptions, Version};
use corqtt_port::doubles::Dice;
use corqtt_port::lane;
use corqtt_port::store::{Answer, Batch, Op, Owed, Terms, Token};
use corqtt_port::suite::{self, Kept};
use corqtt_session::{Change, Delivery};
use corqtt_topics::ShardId;

use super::restore::Ahead;
use super::*;
use crate::args::StoreCommand;
use crate::settings::Secret;

/// The embedded ones.
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

/// A redis-server of its own, which goes with its test.
struct Server {
    process: Child,
    address: String,
    _directory: Directory,
}

impl Server {
    fn start() -> Self {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let directory = Directory::new();
            let free = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
            let port = free.local_addr().expect("it has one").port();
            drop(free);
            let process = Command::new("redis-server")
                .args(["--bind", "127.0.0.1", "--save", "", "--dir"])
                .arg(&directory.0)
                .args(["--port", &port.to_string()])
                .stdout(Stdio::null())
                .spawn()
                .expect("redis-server (Debian package redis-server) is installed");
            let mut server = Self {
                process,
                address: format!("127.0.0.1:{port}"),
                _directory: directory,
            };
            // somebody else may have taken the port meanwhile
            while server.process.try_wait().expect("a child").is_none() {
                if redis::Redis::open(&server.settings(), "probe", false).is_ok() {
                    return server;
                }
                assert!(Instant::now() < deadline, "redis-server does not answer");
                std::thread::yield_now();
            }
        }
    }

    fn settings(&self) -> RedisSettings {
        RedisSettings {
            address: Secret::new(self.address.clone()),
            username: None,
            password: None,
            database: 3,
            prefix: "test".to_owned(),
        }
    }

    fn open(&self, node: &str) -> redis::Redis {
        redis::Redis::open(&self.settings(), node, true).expect("it answers")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// When the process was last alive, and when the next one starts (wall clock, ms).
const ALIVE_AT_MS: u64 = 5;
const NOW_MS: u64 = 10;
const HASH_SEED: u64 = 7;

/// A store that is opened anew whenever something is asked back.
struct Reopened {
    way: StorageWay,
    /// And a name that no other store there has.
    redis: Option<(Arc<Server>, String)>,
    directory: Directory,
    open: Option<(Box<dyn Engine>, Book)>,
}

impl Reopened {
    fn new(way: StorageWay) -> Self {
        Self {
            way,
            redis: None,
            directory: Directory::new(),
            open: None,
        }
    }

    fn redis(server: &Arc<Server>, name: impl ToString) -> Self {
        Self {
            redis: Some((server.clone(), name.to_string())),
            ..Self::new(StorageWay::Redis)
        }
    }

    fn open(&mut self) -> Quiet<'_> {
        let (way, path, redis) = (self.way, &self.directory.0, &self.redis);
        let (engine, book) = self.open.get_or_insert_with(|| {
            let engine = match redis {
                Some((server, name)) => Box::new(server.open(name)),
                None => open_engine(way, path).expect("it opens"),
            };
            let book = Book::open(&*engine).expect("it can be read");
            (engine, book)
        });
        Quiet {
            engine: &mut **engine,
            book,
        }
    }

    fn count(&mut self, table: Table) -> usize {
        rows(self.open().engine, table).len()
    }
}

fn rows(engine: &dyn Engine, table: Table) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut all = Vec::new();
    let mut each = |key: &[u8], value: &[u8]| {
        all.push((key.to_vec(), value.to_vec()));
        ControlFlow::Continue(())
    };
    engine.scan(table, &[], &mut each).expect("it can be read");
    all
}

fn given_back(quiet: &Quiet<'_>) -> Vec<Op> {
    let mut ops = Vec::new();
    let mut each = |op| {
        ops.push(op);
        Ok(())
    };
    quiet
        .stream(Ahead::new(), &mut each)
        .expect("it can be read");
    ops
}

impl Kept for Reopened {
    fn keep(&mut self, ops: Vec<Op>) {
        let mut group = Group::default();
        let mut quiet = self.open();
        let mut edit = quiet.book.edit(quiet.engine, &mut group);
        for op in &ops {
            edit.apply(op).expect("it applies");
        }
        quiet.commit(group).expect("a commit");
    }

    fn restored(&mut self) -> Vec<Op> {
        self.open = None;
        let mut cleared = Cleared::default();
        let mut quiet = self.open();
        quiet
            .settle(HASH_SEED, &mut cleared)
            .expect("it is settled");
        let ahead = quiet
            .clear(ALIVE_AT_MS, NOW_MS, &mut cleared)
            .expect("it is cleared");
        let ops = given_back(&quiet);
        let mut again = Vec::new();
        let mut each = |op| {
            again.push(op);
            Ok(())
        };
        quiet.stream(ahead, &mut each).expect("it can be read");
        assert_eq!(again, ops, "the same, whether it is read ahead or not");
        // bodies are there for entries of queues only, once each
        let bodies: BTreeSet<MessageId> = ops
            .iter()
            .filter_map(|op| match op {
                Op::Changed {
                    change: Change::Enqueued { id, .. },
                    ..
                } if *id != MessageId::default() => Some(*id),
                _ => None,
            })
            .collect();
        assert_eq!(self.count(Table::Bodies), bodies.len());
        assert_eq!(self.count(Table::Owed), 0);
        let mut report = Vec::new();
        let problems = offline::check(self.open().engine, &mut report).expect("it can be read");
        assert_eq!(problems, 0, "{}", String::from_utf8_lossy(&report));
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
    let server = Arc::new(Server::start());
    for seed in 1..=12 {
        suite::run(&mut Reopened::redis(&server, seed), seed, 40);
    }
}

#[test]
fn redis_does_a_commit_once_and_for_its_last_writer_only() {
    let server = Arc::new(Server::start());
    let mut engine = server.open("node");
    let add = |engine: &mut redis::Redis, value: &[u8]| {
        let row: engine::Row<'_> = (Table::Bans, b"key", Some(value));
        engine.commit(&mut [row].into_iter(), true)
    };
    add(&mut engine, b"1").expect("a commit");
    let bytes = engine.used_bytes();
    assert_eq!(bytes, 4);
    engine.lose_answers(1);
    assert!(matches!(add(&mut engine, b"2"), Err(EngineError::Away(_))));
    engine.ready().expect("it is there");
    // the first one was there, whatever is said now
    add(&mut engine, b"2").expect("a repeat");
    let value = |engine: &redis::Redis| engine.get(Table::Bans, b"key").expect("it answers");
    assert_eq!(value(&engine), Some(b"1".into()));
    add(&mut engine, b"333").expect("a commit");
    assert_eq!(
        (value(&engine), engine.used_bytes()),
        (Some(b"333".into()), 6)
    );
    // a commit from before, brought late by a connection that was given up
    engine.lose_answers(2);
    engine.ready().expect("it is there");
    add(&mut engine, b"late").expect("it is over");
    assert_eq!(value(&engine), Some(b"333".into()));
    add(&mut engine, b"late").expect("it is over");
    add(&mut engine, b"333").expect("a commit");

    let mut next = server.open("node");
    add(&mut next, b"4").expect("the last one writes");
    match add(&mut engine, b"5") {
        Err(EngineError::Broken(why)) => assert!(why.contains("taken over test:node"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(value(&next), Some(b"4".into()));
    let gone: engine::Row<'_> = (Table::Bans, b"key", None);
    next.commit(&mut [gone].into_iter(), true)
        .expect("a commit");
    assert_eq!((value(&next), next.used_bytes()), (None, 0));
    assert_eq!(rows(&next, Table::Bans), []);
    // nobody else's
    assert_eq!(rows(&server.open("other"), Table::Bans), []);
}

#[test]
fn redis_is_read_in_pages_in_the_order_of_keys() {
    let server = Arc::new(Server::start());
    let mut engine = server.open("node");
    let key = |at: u32| [b"key \xff".as_slice(), &at.to_be_bytes()].concat();
    let large = vec![b'x'; 100_000];
    let all: Vec<(Vec<u8>, &[u8])> = (0..3_000)
        .map(|at| {
            (
                key(at),
                if at % 100 == 0 {
                    large.as_slice()
                } else {
                    b"small"
                },
            )
        })
        .collect();
    let mut set = all
        .iter()
        .rev()
        .map(|(key, value)| (Table::Retained, &**key, Some(*value)));
    engine.commit(&mut set, true).expect("a commit");
    let found = rows(&engine, Table::Retained);
    assert!(
        found
            .iter()
            .map(|(key, value)| (key, &**value))
            .eq(all.iter().map(|(key, value)| (key, *value)))
    );
    let mut some = Vec::new();
    engine
        .scan(Table::Retained, &key(1_234), &mut |key, _| {
            some.push(key.to_vec());
            if some.len() == 2_000 - 234 {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })
        .expect("it can be read");
    assert!(some.into_iter().eq((1_234..3_000).map(key)));
    let wanted = vec![
        (Table::Retained, key(7)),
        (Table::Retained, b"none".to_vec()),
    ];
    engine.fetch(wanted).expect("it answers");
    assert_eq!(
        engine.get(Table::Retained, &key(7)).expect("it is known"),
        Some(b"small".into())
    );
    assert_eq!(
        engine.get(Table::Retained, b"none").expect("it is known"),
        None
    );
    assert_eq!(
        engine.get(Table::Retained, &key(8)).expect("it answers"),
        Some(b"small".into())
    );
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
            // its will is published when its shard ends it
            session("testator", 10),
            Op::Will {
                client_id: "testator".into(),
                will: Some(corqtt_port::store::Will {
                    message: message("will", None),
                    delay_secs: 0,
                    expiry_secs: None,
                }),
            },
            left("testator", 1_000),
            session("connected", 60),
            session("for ever", u32::MAX),
            left("for ever", 0),
            retained("gone", Some(19_999)),
            retained("stays", None),
        ]);
        let mut cleared = Cleared::default();
        let mut quiet = store.open();
        quiet
            .clear(10_000, 20_000, &mut cleared)
            .expect("it can be read");
        let expected = Cleared {
            sessions: 1,
            messages: 1,
            retained: 1,
            settled: 0,
        };
        assert_eq!(cleared, expected);
        let ops = given_back(&store.open());
        let names: Vec<_> = ops
            .iter()
            .filter_map(|op| match op {
                Op::Session { client_id, .. } => Some(&**client_id),
                Op::Retained { message, .. } => Some(&*message.topic),
                _ => None,
            })
            .collect();
        assert_eq!(
            names,
            ["connected", "for ever", "testator", "there", "stays"]
        );
        let expected = [(2, "begun".to_owned()), (3, "lasts".to_owned())];
        assert_eq!(messages_of(&ops, "there"), expected);
        // its clock does not begin anew at each start
        let left_at_ms = ops.iter().find_map(|op| match op {
            Op::Left { client_id, at_ms } if **client_id == *"connected" => Some(*at_ms),
            _ => None,
        });
        assert_eq!(left_at_ms, Some(10_000));
        let mut quiet = store.open();
        quiet
            .clear(60_000, 70_000, &mut cleared)
            .expect("it can be read");
        assert_eq!(cleared.sessions, 2);
    }
}

#[test]
fn what_a_shard_was_owed_goes_to_its_sessions_and_nobody_elses() {
    for way in WAYS {
        let mut store = Reopened::new(way);
        let hasher = corqtt_shards::NameHasher::new(HASH_SEED);
        let shard_of = |name: &str| (hasher.hash(name) % 2) as u8;
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
        let mut quiet = store.open();
        quiet
            .settle(HASH_SEED, &mut cleared)
            .expect("it is settled");
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
        let again = store.restored();
        assert_eq!(again, ops);
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
    let mut engine = open_engine(StorageWay::Redb, &directory.0).expect("it opens");
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

/// Every file below a directory, by its path in it.
fn files(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut left = vec![directory.to_owned()];
    while let Some(path) = left.pop() {
        for entry in std::fs::read_dir(&path).expect("a directory") {
            let path = entry.expect("a file").path();
            if path.is_dir() {
                left.push(path);
            } else {
                let name = path.strip_prefix(directory).expect("it is below");
                all.insert(name.to_owned(), std::fs::read(&path).expect("a file"));
            }
        }
    }
    all
}

/// What the disk may have if the power goes while `after` is written over `before`: of each sector the old or the new.
fn torn(before: &[u8], after: &[u8], dice: &mut Dice) -> Vec<u8> {
    const SECTOR_BYTES: usize = 512;
    let mut torn = after.to_vec();
    for (number, sector) in torn.chunks_mut(SECTOR_BYTES).enumerate() {
        if dice.roll() >> 32 & 1 == 0 {
            let from = number * SECTOR_BYTES;
            for (at, byte) in (from..).zip(sector) {
                *byte = before.get(at).copied().unwrap_or(0);
            }
        }
    }
    torn
}

#[test]
fn a_commit_that_the_power_cut_tore_is_whole_or_none() {
    for way in WAYS {
        let mut store = Reopened::new(way);
        let one = |n: u64| {
            let topic = format!("{n}/{}", "x".repeat(700));
            enqueued("client", n, message(&topic, None), None)
        };
        store.keep(vec![session("client", u32::MAX)]);
        store.keep((1..40).map(one).collect());
        let before = files(&store.directory.0);
        store.keep((40..60).map(one).collect());
        let after = files(&store.directory.0);
        drop(store);
        let mut seen = BTreeSet::new();
        for seed in 1..=30 {
            let mut dice = Dice::new(seed);
            let mut again = Reopened::new(way);
            for (name, new) in &after {
                let path = again.directory.0.join(name);
                std::fs::create_dir_all(path.parent().expect("it has one")).expect("a directory");
                let old = before.get(name).map_or(&[][..], Vec::as_slice);
                std::fs::write(path, torn(old, new, &mut dice)).expect("a file");
            }
            let ops = again.restored();
            seen.insert(messages_of(&ops, "client").len());
        }
        let possible: BTreeSet<usize> = [39, 59].into();
        assert!(seen.is_subset(&possible), "{way}: {seen:?}");
    }
}

/// An engine in memory that does as it is told.
#[derive(Clone, Default)]
struct Double(Arc<(Mutex<Told>, Condvar)>);

#[derive(Default)]
struct Told {
    tables: BTreeMap<(Table, Vec<u8>), Vec<u8>>,
    /// Rows beside those of meta in each commit, and whether it was to be durable.
    commits: Vec<(usize, bool)>,
    syncs: usize,
    always_syncs: bool,
    /// A commit waits until this is over.
    holds: bool,
    /// Commits that were begun.
    begun: usize,
    /// To reach it while it was away.
    tries: usize,
    /// Nothing can be added, and with `stuck` nothing removed either.
    is_full: bool,
    is_stuck: bool,
    is_broken: bool,
    /// It can't be reached.
    is_away: bool,
    is_closed: bool,
    used_bytes: u64,
    /// Questions after its room and its size.
    asked_room: usize,
    asked_size: usize,
}

impl Double {
    fn tell(&self, change: impl FnOnce(&mut Told)) {
        change(&mut self.0.0.lock().expect("no panic"));
        self.0.1.notify_all();
    }

    /// What `look` finds once it finds something.
    fn wait_for<T>(&self, look: impl Fn(&Told) -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(found) = look(&self.0.0.lock().expect("no panic")) {
                return found;
            }
            assert!(Instant::now() < deadline, "it did not come to that");
            std::thread::yield_now();
        }
    }

    fn open(&self) -> engine::Result<std::sync::MutexGuard<'_, Told>> {
        let told = self.0.0.lock().expect("no panic");
        if told.is_closed {
            return Err(EngineError::Broken("it is closed".to_owned()));
        }
        Ok(told)
    }
}

impl Engine for Double {
    fn ready(&mut self) -> engine::Result<bool> {
        let mut told = self.0.0.lock().expect("no panic");
        if told.is_away {
            told.tries += 1;
            return Err(EngineError::Away("away".to_owned()));
        }
        Ok(std::mem::take(&mut told.is_closed))
    }

    fn room(&self) -> engine::Result<()> {
        let mut told = self.0.0.lock().expect("no panic");
        told.asked_room += 1;
        if told.is_full {
            return Err(EngineError::Full("full".to_owned()));
        }
        Ok(())
    }

    fn commit(
        &mut self,
        rows: &mut dyn Iterator<Item = engine::Row<'_>>,
        durable: bool,
    ) -> engine::Result<()> {
        let mut told = self.open()?;
        told.begun += 1;
        while told.holds {
            told = self.0.1.wait(told).expect("no panic");
        }
        let all: Vec<_> = rows.collect();
        let adds = |(table, _, value): &engine::Row<'_>| *table != Table::Meta && value.is_some();
        if told.is_stuck || (told.is_full && all.iter().any(adds)) {
            told.is_closed = true;
            return Err(EngineError::Full("full".to_owned()));
        }
        if told.is_away {
            return Err(EngineError::Away("away".to_owned()));
        }
        if told.is_broken {
            return Err(EngineError::Broken("broken".to_owned()));
        }
        let count = all
            .iter()
            .filter(|(table, ..)| *table != Table::Meta)
            .count();
        told.commits.push((count, durable));
        for (table, key, value) in all {
            match value {
                Some(value) => drop(told.tables.insert((table, key.into()), value.into())),
                None => drop(told.tables.remove(&(table, key.to_vec()))),
            }
        }
        Ok(())
    }

    fn sync(&mut self) -> engine::Result<()> {
        self.open()?.syncs += 1;
        Ok(())
    }

    fn always_syncs(&self) -> bool {
        self.0.0.lock().expect("no panic").always_syncs
    }

    fn get(&self, table: Table, key: &[u8]) -> engine::Result<Option<Vec<u8>>> {
        Ok(self.open()?.tables.get(&(table, key.to_vec())).cloned())
    }

    fn scan(&self, table: Table, from: &[u8], each: engine::Each<'_>) -> engine::Result<()> {
        for ((of, key), value) in self.open()?.tables.range((table, from.to_vec())..) {
            if *of != table || each(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.0.0.lock().expect("no panic").used_bytes
    }

    fn used_bytes(&self) -> u64 {
        let mut told = self.0.0.lock().expect("no panic");
        told.asked_size += 1;
        told.used_bytes
    }

    fn tidy(&mut self) -> engine::Result<()> {
        Ok(())
    }

    fn compact(&mut self) -> engine::Result<()> {
        Ok(())
    }
}

/// A writer on a double, and what its shards are answered.
struct Writing {
    double: Double,
    to: Sender<ToWriter>,
    thread: JoinHandle<()>,
    answers: Vec<lane::Receiver<Answer>>,
    numbers: Arc<StoreNumbers>,
}

impl Writing {
    fn new(double: Double, sync: StorageSync, bytes_max: u64) -> Self {
        let (to, from) = lane::blocking();
        let mut answers = Vec::new();
        let mut tell: Vec<Tell> = Vec::new();
        for _ in 0..4 {
            let (sender, receiver) = lane::blocking();
            tell.push(Box::new(move |answer| sender.push(answer)));
            answers.push(receiver);
        }
        let numbers = Arc::new(StoreNumbers::default());
        let parts = Parts {
            engine: Box::new(double.clone()),
            book: Book::default(),
            from,
            tell,
            sync,
            bytes_max,
            numbers: numbers.clone(),
            place: "double".to_owned(),
        };
        let thread = std::thread::spawn(|| Writer::new(parts).run());
        Self {
            double,
            to,
            thread,
            answers,
            numbers,
        }
    }

    fn put(&self, shard: u8, token: u64, ops: Vec<Op>) {
        let batch = Batch {
            token: Token(token),
            ops,
        };
        self.to.push(ToWriter::Batch(shard, batch));
    }

    fn expect(&self, shard: usize, expected: &[Answer]) {
        let mut all = next(&self.answers[shard]);
        while all.len() < expected.len() {
            all.extend(next(&self.answers[shard]));
        }
        assert_eq!(all, expected, "shard {shard}");
    }

    /// No shard was told anything more.
    fn expect_nothing(&self) {
        for (shard, answers) in self.answers.iter().enumerate() {
            let mut all = Vec::new();
            answers.drain(&mut all);
            assert_eq!(all, [], "shard {shard}");
        }
    }

    fn stop(self) -> Double {
        self.to.push(ToWriter::Stop);
        self.thread.join().expect("it ended by itself");
        self.double
    }
}

fn kept(token: u64) -> Answer {
    Answer::Kept(Token(token))
}

fn dequeued(client_id: &str, seq: u64) -> Op {
    Op::Changed {
        client_id: client_id.into(),
        change: Change::Dequeued { seq },
    }
}

#[test]
fn what_comes_during_a_commit_is_one_commit_of_all_shards() {
    let writing = Writing::new(Double::default(), StorageSync::Always, 0);
    writing.double.tell(|told| told.holds = true);
    writing.put(0, 1, vec![session("a", u32::MAX)]);
    writing
        .double
        .wait_for(|told| (told.begun == 1).then_some(()));
    for shard in 1..4 {
        let name = format!("of {shard}");
        writing.put(shard, 1, vec![session(&name, u32::MAX)]);
    }
    writing.double.tell(|told| told.holds = false);
    for shard in 0..4 {
        writing.expect(shard, &[kept(1)]);
    }
    let numbers = writing.numbers.clone();
    writing.stop().tell(|told| {
        assert_eq!(told.commits, [(1, true), (3, true)]);
    });
    let count = |of: &std::sync::atomic::AtomicU64| of.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(count(&numbers.commits), 2);
    assert_eq!(count(&numbers.batches), 4);
    assert_eq!(count(&numbers.operations), 4);
    assert_eq!(numbers.commits_by_ns.iter().map(count).sum::<u64>(), 2);
}

#[test]
fn what_changes_nothing_is_answered_without_a_commit() {
    let writing = Writing::new(Double::default(), StorageSync::Always, 0);
    writing.put(0, 1, vec![dequeued("nobody", 7)]);
    writing.expect(0, &[kept(1)]);
    let came_and_went = vec![
        enqueued("client", 1, message("topic", None), Some(1)),
        dequeued("client", 1),
    ];
    writing.put(0, 2, came_and_went);
    writing.expect(0, &[kept(2)]);
    writing.stop().tell(|told| assert_eq!(told.commits, []));
}

#[test]
fn a_full_disk_takes_deletions_and_everything_once_there_is_room() {
    let writing = Writing::new(Double::default(), StorageSync::Always, 0);
    let before = vec![
        session("b", u32::MAX),
        enqueued("b", 1, message("topic", None), None),
    ];
    writing.put(1, 1, before);
    writing.expect(1, &[kept(1)]);
    writing.double.tell(|told| told.is_full = true);
    writing.put(0, 1, vec![session("a", u32::MAX)]);
    for shard in [0, 2, 3] {
        writing.expect(shard, &[Answer::Full(true)]);
    }
    writing.put(1, 2, vec![dequeued("b", 1)]);
    writing.expect(1, &[Answer::Full(true), kept(2)]);
    writing.double.tell(|told| {
        let left: Vec<_> = told.tables.keys().map(|(table, _)| *table).collect();
        assert_eq!(left, [Table::Meta, Table::Sessions]);
        told.is_full = false;
    });
    writing.expect(0, &[kept(1), Answer::Full(false)]);
    writing.expect(1, &[Answer::Full(false)]);
    writing.put(1, 3, vec![enqueued("b", 2, message("topic", None), None)]);
    writing.expect(1, &[kept(3)]);
    writing.stop();
}

#[test]
fn a_disk_that_takes_nothing_loses_nothing() {
    let writing = Writing::new(Double::default(), StorageSync::Always, 0);
    writing.put(1, 1, vec![session("b", u32::MAX)]);
    writing.expect(1, &[kept(1)]);
    writing
        .double
        .tell(|told| (told.is_full, told.is_stuck) = (true, true));
    writing.put(0, 1, vec![session("a", u32::MAX)]);
    let client_id = "b".into();
    writing.put(1, 2, vec![Op::SessionEnded { client_id }]);
    for shard in 0..4 {
        writing.expect(shard, &[Answer::Full(true)]);
    }
    // what only takes away was tried by itself too, and room was asked for again after it
    writing
        .double
        .wait_for(|told| (told.begun >= 3 && told.asked_room >= 2).then_some(()));
    writing.expect_nothing();
    writing
        .double
        .tell(|told| (told.is_full, told.is_stuck) = (false, false));
    writing.expect(0, &[kept(1), Answer::Full(false)]);
    writing.expect(1, &[kept(2), Answer::Full(false)]);
    writing
        .stop()
        .tell(|told| assert_eq!(told.commits, [(1, true), (2, true)]));
}

#[test]
fn an_engine_that_is_away_gets_what_it_was_sent_before_anything_else() {
    let writing = Writing::new(Double::default(), StorageSync::Always, 0);
    writing.double.tell(|told| told.is_away = true);
    writing.put(0, 1, vec![session("a", u32::MAX)]);
    writing
        .double
        .wait_for(|told| (told.tries >= 1).then_some(()));
    writing.put(1, 1, vec![session("b", u32::MAX), session("c", u32::MAX)]);
    writing
        .double
        .wait_for(|told| (told.tries >= 2).then_some(()));
    writing.double.tell(|told| {
        assert_eq!((told.begun, &told.commits[..]), (1, &[][..]));
        told.is_away = false;
    });
    writing.expect(0, &[kept(1)]);
    writing.expect(1, &[kept(1)]);
    writing
        .stop()
        .tell(|told| assert_eq!(told.commits, [(1, true), (2, true)]));
}

#[test]
fn each_way_of_syncing_syncs_when_it_says() {
    let put = |writing: &Writing| {
        writing.put(0, 1, vec![session("a", u32::MAX)]);
        writing.expect(0, &[kept(1)]);
    };
    let every = StorageSync::Every(Duration::from_millis(20));
    let writing = Writing::new(Double::default(), every, 0);
    put(&writing);
    writing
        .double
        .wait_for(|told| (told.syncs == 1).then_some(()));
    writing.stop().tell(|told| {
        assert_eq!((&told.commits[..], told.syncs), (&[(1, false)][..], 1));
    });

    let writing = Writing::new(Double::default(), StorageSync::Never, 0);
    put(&writing);
    writing
        .double
        .wait_for(|told| (told.commits.len() == 1).then_some(()));
    writing.double.tell(|told| assert_eq!(told.syncs, 0));
    writing.stop().tell(|told| assert_eq!(told.syncs, 1));

    // an engine that syncs with each commit is given fewer
    let double = Double::default();
    double.tell(|told| told.always_syncs = true);
    let writing = Writing::new(double, StorageSync::Every(Duration::from_secs(60)), 0);
    put(&writing);
    writing.put(0, 2, vec![session("b", u32::MAX)]);
    writing.expect(0, &[kept(2)]);
    writing.double.tell(|told| assert_eq!(told.commits, []));
    writing
        .stop()
        .tell(|told| assert_eq!(told.commits, [(2, false)]));
}

#[test]
fn a_store_that_breaks_ends_its_thread_with_a_panic() {
    let writing = Writing::new(Double::default(), StorageSync::Always, 0);
    writing.double.tell(|told| told.is_broken = true);
    writing.put(0, 1, vec![session("a", u32::MAX)]);
    let ended = writing.thread.join();
    let cause = ended.expect_err("it panics");
    let cause = cause.downcast_ref::<String>().expect("a text");
    assert_eq!(cause, "the store in double failed: broken");
    let mut answers = Vec::new();
    writing.answers[0].drain(&mut answers);
    assert_eq!(answers, []);
}

#[test]
fn a_store_above_its_limit_goes_on_and_says_when_there_is_room() {
    let writing = Writing::new(Double::default(), StorageSync::Always, 1000);
    writing.double.tell(|told| told.used_bytes = 1000);
    writing.put(0, 1, vec![session("a", u32::MAX)]);
    writing.expect(0, &[kept(1), Answer::Full(true)]);
    writing.put(0, 2, vec![session("b", u32::MAX)]);
    writing.expect(0, &[kept(2)]);
    for shard in [1, 2, 3] {
        writing.expect(shard, &[Answer::Full(true)]);
    }
    let mut asked = 0;
    writing
        .double
        .tell(|told| (told.used_bytes, asked) = (951, told.asked_size));
    writing
        .double
        .wait_for(|told| (told.asked_size > asked + 1).then_some(()));
    writing.expect_nothing();
    writing.double.tell(|told| told.used_bytes = 949);
    writing.expect(3, &[Answer::Full(false)]);
    writing.expect(0, &[Answer::Full(false)]);
    writing.stop();
}

#[test]
fn used_bytes_follow_what_is_there() {
    for way in WAYS {
        let mut store = Reopened::new(way);
        let empty = store.open().engine.used_bytes();
        let large = Arc::new(Message {
            payload: vec![b'x'; 5000].into(),
            ..(*message("topic", None)).clone()
        });
        let many = (1..=1000).map(|seq| enqueued("client", seq, large.clone(), None));
        store.keep(
            [session("client", u32::MAX)]
                .into_iter()
                .chain(many)
                .collect(),
        );
        let full = store.open().engine.used_bytes();
        assert!(full >= empty + 5_000_000, "{way}: {full}");
        store.keep(vec![Op::SessionEnded {
            client_id: "client".into(),
        }]);
        let quiet = store.open();
        quiet.engine.compact().expect("it compacts");
        let left = quiet.engine.used_bytes();
        assert!(left < 1_000_000, "{way}: {left}");
        assert!(quiet.engine.bytes() > 0);
    }
}

#[test]
fn a_key_that_is_too_long_for_an_engine_is_not_kept_and_harms_nobody() {
    for way in WAYS {
        let mut store = Reopened::new(way);
        let long = "x".repeat(65_535);
        store.keep(vec![
            session("client", u32::MAX),
            subscribed("client", &long),
            session(&long, u32::MAX),
            subscribed(&long, "topic"),
            enqueued(&long, 1, message("topic", None), Some(1)),
            dequeued(&long, 1),
            Op::Unsubscribed {
                client_id: long.as_str().into(),
                filter: "topic".into(),
            },
        ]);
        let sessions = |ops: &[Op]| {
            let is_session = |op: &&Op| matches!(op, Op::Session { .. });
            ops.iter().filter(is_session).count()
        };
        let ops = store.restored();
        assert_eq!(sessions(&ops), 2, "{way}");
        store.keep(vec![Op::SessionEnded {
            client_id: long.as_str().into(),
        }]);
        assert_eq!(sessions(&store.restored()), 1, "{way}");
    }
}

fn offline(command: StoreCommand, settings: &StorageSettings) -> anyhow::Result<(u8, String)> {
    let mut out = Vec::new();
    let code = offline::run(&command, settings.into(), &mut out)?;
    Ok((code, String::from_utf8(out).expect("text")))
}

#[test]
fn what_one_engine_dumped_another_loads() {
    let mut store = Reopened::new(StorageWay::Redb);
    suite::run(&mut store, 3, 20);
    let before = store.restored();
    assert!(before.len() > 20);
    store.open = None;
    let settings = store.directory.settings(StorageWay::Redb);
    drop(open(&settings, 0).expect("it opens"));
    let (code, dump) = offline(StoreCommand::Dump, &settings).expect("a dump");
    assert_eq!(code, 0);

    let mut other = Reopened::new(StorageWay::Fjall);
    let settings = other.directory.settings(StorageWay::Fjall);
    let file = other.directory.0.join("dump");
    std::fs::write(&file, &dump).expect("a file");
    let load = || StoreCommand::Load(file.display().to_string());
    offline(load(), &settings).expect("it loads");
    let (_, again) = offline(StoreCommand::Dump, &settings).expect("a dump");
    assert_eq!(again, dump);
    let error = offline(load(), &settings).expect_err("it is not empty");
    assert!(error.to_string().contains("dump"), "{error:#}");
    assert!(format!("{error:#}").contains("not empty"), "{error:#}");
    assert_eq!(other.restored(), before);
    other.open = None;
    let (code, text) = offline(StoreCommand::Check, &settings).expect("a check");
    assert_eq!(code, 0);
    assert!(text.ends_with("everything can be read\n"), "{text}");
    let (_, text) = offline(StoreCommand::Compact, &settings).expect("compaction");
    assert!(text.contains("bytes before"), "{text}");
    assert_eq!(other.restored(), before);
}

#[test]
fn a_dump_that_is_none_is_refused() {
    let directory = Directory::new();
    let settings = directory.settings(StorageWay::Redb);
    let file = directory.0.join("dump");
    for (text, what) in [
        ("", "is empty"),
        ("hello\n", "line 1"),
        ("{\"corqtt-store-format\":2}\n", "format 2"),
        ("{\"corqtt-store-format\":1}\n{}\n", "line 2"),
        (
            "{\"corqtt-store-format\":1}\n{\"table\":\"queue\",\"key\":\"00\",\"value\":\"0g\"}\n",
            "line 2 is no row of table \"queue\"",
        ),
    ] {
        std::fs::write(&file, text).expect("a file");
        let command = StoreCommand::Load(file.display().to_string());
        let error = offline(command, &settings).expect_err("it is none");
        assert!(format!("{error:#}").contains(what), "{error:#}");
    }
}

#[test]
fn a_check_finds_what_cannot_be_read_and_what_refers_to_nothing() {
    let mut store = Reopened::new(StorageWay::Redb);
    store.keep(vec![
        session("client", u32::MAX),
        enqueued("client", 1, message("topic", None), None),
    ]);
    let body = id(1).to_bytes();
    let of_nobody = rows::client_key("nobody", b"filter");
    let flight = rows::client_key("client", &9_u64.to_be_bytes());
    let mut broken: [engine::Row<'_>; 5] = [
        (Table::Bodies, &body, None),
        (Table::Bodies, &id(2).to_bytes(), Some(b"")),
        (Table::Subscriptions, &of_nobody, Some(&[0; 5])),
        (Table::Flights, &flight, Some(&[1, 0])),
        (Table::Sessions, b"other", Some(b"nonsense")),
    ];
    let quiet = store.open();
    let mut broken = broken.iter_mut().map(|row| *row);
    quiet.engine.commit(&mut broken, true).expect("a commit");
    store.open = None;
    let settings = store.directory.settings(StorageWay::Redb);
    let (code, text) = offline(StoreCommand::Check, &settings).expect("a check");
    assert_eq!(code, 1);
    for line in [
        "bodies 0/0/1: is missing, and 1 entries of queues have it",
        "bodies 0/0/2: cannot be read",
        "subscriptions nobody filter: there is no such session",
        "flights client 9: there is no such message in the queue",
        "sessions other: cannot be read",
        "5 problems",
    ] {
        assert!(text.lines().any(|of| of == line), "{line} in\n{text}");
    }
}

#[test]
fn a_command_leaves_a_store_alone_that_is_in_use_or_not_there() {
    let directory = Directory::new();
    let settings = directory.settings(StorageWay::Fjall);
    let error = offline(StoreCommand::Check, &settings).expect_err("there is none");
    assert!(error.to_string().contains("no fjall store"), "{error}");
    let opened = open(&settings, 0).expect("it opens");
    let error = offline(StoreCommand::Check, &settings).expect_err("it is in use");
    assert!(error.to_string().contains("in use by process"), "{error}");
    drop(opened);
    offline(StoreCommand::Check, &settings).expect("it is free");
}

#[test]
fn a_start_gives_back_and_then_writes() {
    for way in WAYS {
        let directory = Directory::new();
        let settings = directory.settings(way);
        let mut opened = open(&settings, 0).expect("it opens").expect("a store");
        let mut count = 0;
        let mut each = |_| {
            count += 1;
            Ok(())
        };
        opened.restore(NOW_MS, &mut each).expect("nothing is there");
        let (to, _restored) = channels(1);
        let keeper = opened.start(to, |_| 0, Vec::new()).expect("a thread");
        let ops = vec![session("client", u32::MAX)];
        let token = Token(1);
        keeper.store(0).put(Batch { token, ops });
        keeper.stop();
        let mut opened = open(&settings, 0).expect("it opens").expect("a store");
        let before = wall_ms();
        let mut each = |op| {
            if let Op::Left { at_ms, .. } = op {
                assert!(before - at_ms < 60_000, "it was connected until just now");
            }
            count += 1;
            Ok(())
        };
        opened.restore(before, &mut each).expect("it can be read");
        assert_eq!(count, 2, "{way}");
        let mut each = |_| anyhow::bail!("enough");
        let error = opened.restore(before, &mut each).expect_err("it stops");
        assert_eq!(error.to_string(), "enough");
    }
}

/// Answers for a shard until one of them is as wanted.
fn answers_until(from: &lane::Receiver<Answer>, wanted: impl Fn(&Answer) -> bool) -> Vec<Answer> {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut all = Vec::new();
    while !all.iter().any(&wanted) {
        assert!(Instant::now() < deadline, "{all:?}");
        all.extend(next(from));
    }
    all
}

/// Needs a directory on a small file system of its own: `CORQTT_TEST_SMALL_DISK`.
#[test]
#[ignore = "needs a small disk"]
fn a_disk_that_is_really_full_loses_nothing_and_recovers() {
    let disk = std::env::var_os("CORQTT_TEST_SMALL_DISK").expect("a small disk");
    let mut dice = Dice::new(1);
    let random: Vec<u8> = (0..100_000).map(|_| (dice.roll() >> 32) as u8).collect();
    for way in WAYS {
        let directory = Directory(Path::new(&disk).join(way.name()));
        std::fs::create_dir_all(&directory.0).expect("a directory");
        let settings = directory.settings(way);
        let ballast = Path::new(&disk).join("ballast");
        std::fs::write(&ballast, vec![1; 8 << 20]).expect("a file");
        let running = run(&settings, 0);
        let mut store = running.keeper.store(0);
        let large = Arc::new(Message {
            payload: random.clone().into(),
            ..(*message("topic", None)).clone()
        });
        let ops = vec![session("client", u32::MAX), session("other", u32::MAX)];
        let token = Token(1);
        store.put(Batch { token, ops });
        let mut number = 1;
        loop {
            let all = answers_until(&running.answers[0], |answer| {
                matches!(answer, Answer::Full(true)) || *answer == kept(number)
            });
            if all.contains(&Answer::Full(true)) {
                break;
            }
            number += 1;
            let token = Token(number);
            let ops = vec![enqueued("client", number, large.clone(), None)];
            store.put(Batch { token, ops });
        }
        println!("{way}: full after {number} messages of 100 kB");
        answers_until(&running.answers[1], |answer| {
            matches!(answer, Answer::Full(true))
        });
        let token = Token(1);
        let ops = (2..number / 2).map(|seq| dequeued("client", seq)).collect();
        running.keeper.store(1).put(Batch { token, ops });
        let mut taken = Vec::new();
        running.answers[1].wait(&mut taken, Some(Duration::from_secs(2)));
        println!("{way}: deletions were answered {taken:?}");
        std::fs::remove_file(&ballast).expect("it is there");
        let mut all = answers_until(&running.answers[0], |answer| {
            matches!(answer, Answer::Full(false))
        });
        all.retain(|answer| matches!(answer, Answer::Kept(_)));
        assert_eq!(all, [kept(number)]);
        running.keeper.stop();
        let running = run(&settings, 0);
        let ops: Vec<Op> = running.restored.iter().flatten().flatten().collect();
        let left = messages_of(&ops, "client");
        let seqs: Vec<u64> = left.iter().map(|(seq, _)| *seq).collect();
        assert_eq!(seqs, (number / 2..=number).collect::<Vec<_>>());
        running.keeper.stop();
    }
}

/// What a start costs: a million messages in a thousand queues, and a million retained ones.
#[test]
#[ignore = "takes long"]
fn restoring_a_million() {
    for way in WAYS {
        let mut store = Reopened::new(way);
        let payload: bytes::Bytes = vec![b'x'; 256].into();
        let begun = Instant::now();
        for client in 0..1000 {
            store.keep(vec![session(&format!("client-{client}"), u32::MAX)]);
        }
        for round in 0..100_u64 {
            let mut ops = Vec::new();
            for client in 0..1000_u64 {
                for n in 0..10 {
                    let number = round * 10_000 + client * 10 + n;
                    let mut op = enqueued(
                        &format!("client-{client}"),
                        round * 10 + n + 1,
                        Arc::new(Message {
                            payload: payload.clone(),
                            ..(*message("a/topic/of/some/length", None)).clone()
                        }),
                        None,
                    );
                    if let Op::Changed {
                        change: Change::Enqueued { id: of, .. },
                        ..
                    } = &mut op
                    {
                        *of = id(number + 1);
                    }
                    ops.push(op);
                }
            }
            for n in 0..10_000 {
                ops.push(Op::Retained {
                    message: Arc::new(Message {
                        topic: format!("retained/{}", round * 10_000 + n).as_str().into(),
                        payload: payload.clone(),
                        ..(*message("t", None)).clone()
                    }),
                    stamp: corqtt_topics::Stamp {
                        time: round * 10_000 + n,
                        origin: 0,
                    },
                });
            }
            store.keep(ops);
        }
        println!(
            "{way}: written in {:?}, {} MB",
            begun.elapsed(),
            store.open().engine.bytes() >> 20
        );
        store.open = None;
        let settings = store.directory.settings(way);
        drop(open(&settings, 0));
        let begun = Instant::now();
        let mut opened = open(&settings, 0).expect("it opens").expect("a store");
        println!("{way}: opened after {:?}", begun.elapsed());
        let mut count = 0_u64;
        let mut each = |op| {
            count += u64::from(!matches!(op, Op::Session { .. }));
            Ok(())
        };
        opened.restore(NOW_MS, &mut each).expect("it can be read");
        println!(
            "{way}: {count} operations given back after {:?}",
            begun.elapsed()
        );
        let status = std::fs::read_to_string("/proc/self/status").expect("it is there");
        for line in status
            .lines()
            .filter(|line| line.starts_with("VmHWM") || line.starts_with("VmRSS"))
        {
            println!("{way}: {line}");
        }
    }
}
