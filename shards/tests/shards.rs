// SPDX-License-Identifier: Apache-2.0
//! Facts about running shards, seen through sockets: bytes in, bytes out, none of them made by our codec.

mod client;

use std::collections::HashMap;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use corqtt_codec::{Message, QoS};
use corqtt_port::admin::{Answer, Ask, Numbers, Query, Reply};
use corqtt_port::auth::{Anonymous, Auth};
use corqtt_port::doubles::{LateAuth, LateStore, delaying};
use corqtt_port::lane::{self, Receiver, Sender};
use corqtt_port::store::{Memory, Store};
use corqtt_shards::{
    Admission, Capabilities, Compatibilities, Config, DrainStep, Driven, Limits, Listener, Ports,
    Runtime, Shard, ToShard, bind, glommio_available, start,
};
use corqtt_topics::{ShardId, Strategy};

use client::{Client, DEADLINE, connect_bytes, publish_bytes, subscribe_bytes};

/// How the shards of a test run.
#[derive(Clone, Copy, Debug)]
struct Setup {
    shards: u8,
    runtime: Runtime,
    /// Authority, store and marks answer late and out of order.
    doubles: bool,
}

const fn setup(shards: u8, runtime: Runtime, doubles: bool) -> Setup {
    Setup {
        shards,
        runtime,
        doubles,
    }
}

impl Setup {
    /// Fewer where each of them is asked about and answered late.
    const fn count(self, count: u32) -> u32 {
        if self.doubles { count / 256 + 5 } else { count }
    }
}

const ALL: [Setup; 8] = [
    setup(1, Runtime::Epoll, false),
    setup(2, Runtime::Epoll, false),
    setup(4, Runtime::Epoll, false),
    setup(1, Runtime::Glommio, false),
    setup(2, Runtime::Glommio, false),
    setup(4, Runtime::Glommio, false),
    setup(1, Runtime::Epoll, true),
    setup(4, Runtime::Epoll, true),
];
const SOME: [Setup; 3] = [
    setup(1, Runtime::Epoll, false),
    setup(4, Runtime::Glommio, false),
    setup(2, Runtime::Epoll, true),
];

/// Running shards, with a listener on loopback.
struct Broker {
    address: SocketAddr,
    shards: Vec<Driven>,
    inboxes: Vec<Sender<ToShard>>,
    admission: Arc<Admission>,
}

fn config(setup: Setup, change: impl FnOnce(&mut Config)) -> Arc<Config> {
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let bound = Arc::new(bind("test", loopback).expect("a free port"));
    let mut config = Config {
        shards: setup.shards,
        nodes: 0,
        runtime: setup.runtime,
        cpus: Vec::new(),
        listeners: vec![Listener::plain("test", bound)],
        capabilities: Capabilities::default(),
        compatibilities: Compatibilities::default(),
        session: corqtt_session::Limits::default(),
        limits: Limits::default(),
        strategy: Strategy::RoundRobin,
        group_strategies: Vec::new(),
        hash_seed: 0x5EED,
        stamp_base: 0,
        start: 0,
    };
    change(&mut config);
    Arc::new(config)
}

fn address(config: &Config) -> SocketAddr {
    config.listeners[0].bound.ip().expect("a TCP listener")
}

fn ports(
    shard: u8,
    setup: Setup,
    inboxes: &[Sender<ToShard>],
    inbox: Receiver<ToShard>,
    admission: &Arc<Admission>,
) -> Ports {
    let seed = u64::from(shard) * 100;
    let own = &inboxes[usize::from(shard)];
    let (auth, store, marks): (Box<dyn Auth>, Box<dyn Store>, Vec<_>) = if setup.doubles {
        let late = |n, inbox: &Sender<_>, in_order| delaying(inbox.clone(), seed + n, in_order);
        (
            Box::new(LateAuth::new(late(0, own, false), ToShard::Auth)),
            Box::new(LateStore::new(late(1, own, false), ToShard::Store)),
            (2..)
                .zip(inboxes)
                .map(|(n, inbox)| late(n, inbox, true))
                .collect(),
        )
    } else {
        (Box::new(Anonymous), Box::new(Memory), inboxes.to_vec())
    };
    Ports {
        auth,
        store,
        claims: None,
        lease: None,
        events: None,
        inbox,
        shards: inboxes.to_vec(),
        marks,
        admission: admission.clone(),
        clients: Arc::default(),
        restored: None,
    }
}

impl Broker {
    fn start(setup: Setup) -> Self {
        Self::with(setup, |_| {})
    }

    fn with(setup: Setup, change: impl FnOnce(&mut Config)) -> Self {
        Self::on(setup, change, |_| {})
    }

    /// `equip` changes what each shard is given.
    fn on(setup: Setup, change: impl FnOnce(&mut Config), equip: impl Fn(&mut Ports)) -> Self {
        let config = config(setup, change);
        let lanes = (0..setup.shards).map(|_| lane::polled().expect("an eventfd"));
        let (inboxes, receivers): (Vec<_>, Vec<_>) = lanes.unzip();
        let admission = Arc::new(Admission::new(&config));
        let shards = (0..setup.shards).zip(receivers).map(|(shard, inbox)| {
            let mut ports = ports(shard, setup, &inboxes, inbox, &admission);
            equip(&mut ports);
            let starting = start(ShardId(shard), &config, ports).expect("a thread");
            starting.wait().expect("a shard")
        });
        Self {
            address: address(&config),
            shards: shards.collect(),
            inboxes: inboxes.clone(),
            admission,
        }
    }

    fn client(&self, id: &str) -> Client {
        let mut client = Client::open(self.address);
        client.connect(id);
        client
    }

    fn subscriber(&self, id: &str, filter: &str, qos: u8) -> Client {
        let mut client = self.client(id);
        client.subscribe(1, filter, qos);
        client
    }

    fn numbers(&self) -> Vec<Numbers> {
        let (reply, replies) = lane::blocking();
        for (id, inbox) in (0..).zip(&self.inboxes) {
            let (ask, reply) = (Ask::Numbers, reply.clone());
            inbox.push(ToShard::Admin(Query { id, ask, reply }));
        }
        let mut all = Vec::new();
        while all.len() < self.inboxes.len() {
            replies.wait(&mut all, Some(DEADLINE));
        }
        all.into_iter()
            .map(|reply| match reply.answer {
                Answer::Numbers(numbers) => *numbers,
                other => panic!("numbers were asked for: {other:?}"),
            })
            .collect()
    }

    /// Orders the first shard to publish these below `$SYS/`, and waits until it has.
    fn system(&self, messages: impl Iterator<Item = (String, Vec<u8>)>) {
        let messages = messages.map(|(topic, payload)| {
            Arc::new(Message {
                topic: topic.as_str().into(),
                qos: QoS::AtMostOnce,
                retain: true,
                properties: Box::default(),
                expires_at_ms: None,
                payload: payload.into(),
            })
        });
        self.order(Ask::System(messages.collect()));
    }

    /// Orders the first shard to do something, and waits until it has.
    fn order(&self, ask: Ask) {
        let (reply, replies) = lane::blocking();
        let id = 0;
        self.inboxes[0].push(ToShard::Admin(Query { id, ask, reply }));
        let mut answers = Vec::new();
        replies.wait(&mut answers, Some(DEADLINE));
        assert!(matches!(
            answers[..],
            [Reply {
                answer: Answer::Done,
                ..
            }]
        ));
    }

    fn dropped(&self, reason: &str) -> u64 {
        let all = self.numbers();
        let dropped = all.iter().flat_map(|numbers| &numbers.dropped);
        dropped
            .filter(|(name, _)| *name == reason)
            .map(|(_, n)| n)
            .sum()
    }

    fn step(&self, step: DrainStep) {
        let (reply, replies) = lane::blocking();
        for inbox in &self.inboxes {
            inbox.push(ToShard::Drain(step, reply.clone()));
        }
        let deadline = Instant::now() + DEADLINE;
        let mut done = Vec::new();
        while done.len() < self.inboxes.len() {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{step:?} ends in time");
            replies.wait(&mut done, Some(left));
        }
    }

    /// Takes the shards down; no connection is left behind. `clients` close first: who stays is waited for.
    fn drain<T>(self, clients: T) {
        drop(clients);
        self.step(DrainStep::Wills);
        self.step(DrainStep::Close);
        for shard in self.shards {
            shard.join().expect("the shard ends");
        }
        assert_eq!(self.admission.connections(), 0);
    }
}

/// Runs a test in every setup that this machine can run.
fn each(setups: &[Setup], test: impl Fn(Setup)) {
    for setup in setups {
        if setup.runtime == Runtime::Epoll || glommio_available().is_ok() {
            test(*setup);
        }
    }
}

#[test]
fn a_client_may_send_everything_in_one_segment() {
    each(&ALL, |setup| {
        let broker = Broker::start(setup);
        for n in 0..setup.count(64) {
            let id = format!("client-{n}");
            let mut bytes = connect_bytes(4, &id, 0x02, &[]);
            bytes.extend(subscribe_bytes(1, &id, 1));
            bytes.extend(publish_bytes(0x32, &id, 2, b"hello"));
            let mut client = Client::open(broker.address);
            client.send(&bytes);
            assert_eq!(client.packet(), (0x20, vec![0, 0]), "{setup:?}");
            let mut kinds: Vec<_> = (0..3).map(|_| client.packet().0).collect();
            kinds.sort_unstable();
            assert_eq!(kinds, [0x32, 0x40, 0x90], "{setup:?}");
        }
        broker.drain(());
    });
}

#[test]
fn what_was_sent_before_the_end_of_the_stream_is_handled() {
    each(&ALL, |setup| {
        let messages = setup.count(10_000);
        let broker = Broker::start(setup);
        // so many that a turn ends long before what one read brought is handled
        let mut subscribers: Vec<_> = (0..16)
            .map(|n| broker.subscriber(&format!("subscriber-{n}"), "#", 1))
            .collect();
        let mut last_words = broker.client("last-words");
        let mut client = Client::open(broker.address);
        let mut bytes = connect_bytes(4, "sender", 0x06, b"\x00\x04will\x00\x04dead");
        for n in 0..messages {
            bytes.extend(publish_bytes(0x30, "t", 0, &n.to_be_bytes()));
        }
        // with the will of a client that says goodbye [MQTT-3.14.4-3]
        bytes.extend([0xE0, 0]);
        client.send(&bytes);
        client
            .stream()
            .shutdown(std::net::Shutdown::Write)
            .expect("the connection is there");
        for subscriber in &mut subscribers {
            for n in 0..messages {
                let (topic, payload) = subscriber.message();
                assert_eq!((&*topic, payload), ("t", n.to_be_bytes().to_vec()));
            }
        }
        assert_eq!(client.packet(), (0x20, vec![0, 0]));
        client.expect_end();
        last_words.send(&publish_bytes(0x30, "after", 0, b""));
        for subscriber in &mut subscribers {
            assert_eq!(subscriber.message().0, "after", "{setup:?}");
        }
        broker.drain((subscribers, last_words));
    });
}

#[test]
fn a_large_fan_out_keeps_order_and_is_acknowledged() {
    const SUBSCRIBERS: usize = 10_000;
    for setup in [
        setup(1, Runtime::Epoll, false),
        setup(2, Runtime::Epoll, false),
        setup(2, Runtime::Epoll, true),
    ] {
        let broker = Broker::start(setup);
        let mut subscribers = Vec::new();
        for group in 0..SUBSCRIBERS / 500 {
            let open = |n| {
                let mut client = Client::open(broker.address);
                // persistent ones: publishers wait for them
                let id = format!("s{}", group * 500 + n);
                let mut bytes = connect_bytes(4, &id, 0x00, &[]);
                bytes.extend(subscribe_bytes(1, "all", 1));
                client.send(&bytes);
                client
            };
            let mut clients: Vec<_> = (0..500).map(open).collect();
            for client in &mut clients {
                assert_eq!(client.packet().0, 0x20);
                assert_eq!(client.packet().0, 0x90);
            }
            // a tenth stays; the others get theirs into their queues
            subscribers.extend(clients.drain(..50));
        }
        let mut publisher = broker.client("publisher");
        let mut bytes = publish_bytes(0x32, "all", 1, b"first");
        bytes.extend(publish_bytes(0x34, "all", 2, b"second"));
        bytes.extend(publish_bytes(0x30, "all", 0, b"third"));
        publisher.send(&bytes);
        assert_eq!(publisher.packet(), (0x40, vec![0, 1]));
        assert_eq!(publisher.packet(), (0x50, vec![0, 2]));
        for client in &mut subscribers {
            for expected in [&b"first"[..], b"second", b"third"] {
                assert_eq!(client.message().1, expected);
            }
        }
        broker.drain((subscribers, publisher));
    }
}

#[test]
fn messages_keep_their_order_between_shards() {
    each(&SOME, |setup| {
        let messages = setup.count(10_000);
        let broker = Broker::start(setup);
        let subscribers: Vec<_> = (0..4)
            .map(|n| broker.subscriber(&format!("subscriber-{n}"), "t", 1))
            .collect();
        let publisher = broker.client("publisher");
        std::thread::scope(|scope| {
            for mut subscriber in subscribers {
                scope.spawn(move || {
                    for n in 0..messages {
                        let (kind, body) = subscriber.packet();
                        assert_eq!((kind, &body[5..]), (0x32, &n.to_be_bytes()[..]));
                        subscriber.send(&[0x40, 2, body[3], body[4]]);
                    }
                });
            }
            let mut acks = publisher.same();
            let mut publisher = publisher;
            scope.spawn(move || {
                for n in 0..messages {
                    let id = (n as u16 + 1).to_be_bytes().to_vec();
                    assert_eq!(acks.packet(), (0x40, id));
                }
            });
            for n in 0..messages {
                let bytes = publish_bytes(0x32, "t", n as u16 + 1, &n.to_be_bytes());
                publisher.send(&bytes);
            }
        });
        broker.drain(());
    });
}

#[test]
fn after_suback_a_publish_from_any_shard_is_seen() {
    each(
        &[
            setup(2, Runtime::Glommio, false),
            setup(4, Runtime::Epoll, false),
        ],
        |setup| {
            let broker = Broker::start(setup);
            let mut publishers: Vec<_> = (0..8).map(|n| broker.client(&format!("p{n}"))).collect();
            let mut subscribers: Vec<_> = (0..8).map(|n| broker.client(&format!("s{n}"))).collect();
            let mut dice = corqtt_port::doubles::Dice::new(7);
            for n in 0..1000 {
                let subscriber = &mut subscribers[(dice.roll() >> 32) as usize % 8];
                let publisher = &mut publishers[(dice.roll() >> 32) as usize % 8];
                let topic = format!("topic/{n}/{}", dice.roll());
                subscriber.subscribe(1, &topic, 0);
                publisher.send(&publish_bytes(0x30, &topic, 0, b"seen"));
                assert_eq!(subscriber.message(), (topic, b"seen".to_vec()));
            }
            broker.drain((publishers, subscribers));
        },
    );
}

#[test]
fn a_slow_reader_is_shed_and_stops_nobody() {
    each(&SOME, |setup| {
        let broker = Broker::with(setup, |config| {
            config.session.out_buffer_bytes_max = 64 << 10;
        });
        let slow = broker.subscriber("slow", "flood", 0);
        let mut echo = broker.subscriber("echo", "echo", 0);
        let mut flooder = broker.client("flooder");
        let payload = vec![b'x'; 60_000];
        let deadline = Instant::now() + DEADLINE;
        while broker.dropped("out-buffer") < 10 {
            assert!(Instant::now() < deadline, "{setup:?}: messages are shed");
            for _ in 0..20 {
                flooder.send(&publish_bytes(0x30, "flood", 0, &payload));
            }
            echo.send(&publish_bytes(0x30, "echo", 0, b"?"));
            assert_eq!(echo.message().1, b"?");
        }
        broker.drain((slow, echo, flooder));
    });
}

#[test]
fn a_client_that_does_not_read_its_answers_is_not_read() {
    const PINGS: usize = 1 << 16;
    let setup = setup(1, Runtime::Epoll, false);
    let broker = Broker::with(setup, |config| {
        config.session.out_buffer_bytes_max = 64 << 10;
        config.capabilities.packet_bytes_max = 64 << 10;
    });
    let mut client = broker.client("greedy");
    let pings = [0xC0, 0].repeat(PINGS);
    client
        .stream()
        .set_write_timeout(Some(Duration::from_millis(300)))
        .expect("a socket option");
    let mut sent = 0;
    while let Ok(count) = client.stream().write(&pings[sent % 2..]) {
        sent += count;
        assert!(sent < 64 << 20, "answers pile up without end");
    }
    let mut reader = client.same();
    let finish = std::thread::spawn(move || {
        client
            .stream()
            .set_write_timeout(Some(DEADLINE))
            .expect("a socket option");
        client.send(&[0xC0, 0][sent % 2..]);
    });
    for _ in 0..sent / 2 + 1 {
        assert_eq!(reader.packet(), (0xD0, vec![]));
    }
    finish.join().expect("it could be written");
    broker.drain(reader);
}

#[test]
fn a_large_payload_crosses_shards() {
    each(&SOME, |setup| {
        let broker = Broker::with(setup, |config| {
            config.capabilities.packet_bytes_max = 16 << 20;
        });
        let mut subscribers: Vec<_> = (0..4)
            .map(|n| broker.subscriber(&format!("s{n}"), "large", 1))
            .collect();
        let payload: Vec<u8> = (0..10u32 << 20).map(|n| (n / 7) as u8).collect();
        let publisher = broker.client("publisher");
        std::thread::scope(|scope| {
            let mut writer = publisher.same();
            let payload = &payload;
            scope.spawn(move || writer.send(&publish_bytes(0x32, "large", 1, payload)));
            for subscriber in &mut subscribers {
                assert!(subscriber.message().1 == *payload, "{setup:?}");
            }
        });
        let mut publisher = publisher;
        assert_eq!(publisher.packet(), (0x40, vec![0, 1]));
        broker.drain((subscribers, publisher));
    });
}

#[test]
fn a_storm_of_take_overs_leaves_one_connection() {
    each(&ALL, |setup| {
        let broker = Broker::start(setup);
        let threads: Vec<_> = (0..50)
            .map(|n| {
                let address = broker.address;
                std::thread::spawn(move || {
                    let mut client = Client::open(address);
                    // clean and persistent ones, mixed
                    let flags = if n % 2 == 0 { 0x02 } else { 0x00 };
                    client.send(&connect_bytes(4, "wanted", flags, &[]));
                    // one that was taken over before its CONNACK was due gets none
                    client.try_packet().is_some().then_some(client)
                })
            })
            .collect();
        let connected: Vec<_> = threads
            .into_iter()
            .filter_map(|thread| thread.join().expect("a client"))
            .collect();
        let alive = connected.into_iter().filter_map(|mut client| {
            client.try_send(&[0xC0, 0]);
            (client.try_packet() == Some((0xD0, vec![]))).then_some(client)
        });
        let alive: Vec<_> = alive.collect();
        assert_eq!(alive.len(), 1, "{setup:?}");
        let numbers = broker.numbers();
        let connected: u64 = numbers.iter().map(|n| n.clients_connected).sum();
        let sessions: u64 = numbers.iter().map(|n| n.clients_total).sum();
        assert_eq!((connected, sessions), (1, 1), "{setup:?}");
        broker.drain(alive);
    });
}

#[test]
fn retained_pages_never_follow_newer_live_messages() {
    each(&ALL, |setup| {
        let topics = setup.count(2000) as usize;
        let broker = Broker::start(setup);
        let mut publisher = broker.client("publisher");
        let publish_all = |publisher: &mut Client, value: u8| {
            let mut reader = publisher.same();
            std::thread::scope(|scope| {
                scope.spawn(move || {
                    for _ in 0..topics {
                        assert_eq!(reader.packet().0, 0x40);
                    }
                });
                for n in 0..topics {
                    let topic = format!("r/{n}");
                    let id = n as u16 + 1;
                    publisher.send(&publish_bytes(0x33, &topic, id, &[value]));
                }
            });
        };
        publish_all(&mut publisher, 1);
        std::thread::scope(|scope| {
            for n in 0..4 {
                let mut subscriber = broker.client(&format!("s{n}"));
                scope.spawn(move || {
                    subscriber.send(&subscribe_bytes(1, "r/#", 0));
                    let mut newest = HashMap::new();
                    let mut done = 0;
                    while done < topics {
                        let (kind, body) = subscriber.packet();
                        if kind & 0xF0 != 0x30 {
                            continue;
                        }
                        let (topic, payload) = client::parse(kind, &body);
                        let before = newest.insert(topic, payload[0]).unwrap_or(0);
                        assert!(before <= payload[0], "{setup:?}: an old value came late");
                        done += usize::from(payload[0] == 2 && before < 2);
                    }
                    // and nothing old comes behind
                    subscriber.send(&[0xC0, 0]);
                    while let (kind, body) = subscriber.packet()
                        && kind != 0xD0
                    {
                        if kind & 0xF0 == 0x30 {
                            assert_eq!(client::parse(kind, &body).1, [2]);
                        }
                    }
                });
            }
            publish_all(&mut publisher, 2);
        });
        broker.drain(publisher);
    });
}

#[test]
fn a_drain_publishes_wills_and_says_goodbye() {
    each(&ALL, |setup| {
        let broker = Broker::start(setup);
        let mut heirs: Vec<_> = (0..8)
            .map(|n| {
                let mut heir = Client::open(broker.address);
                heir.send(&connect_bytes(5, &format!("heir-{n}"), 0x02, &[]));
                assert_eq!(heir.packet().0, 0x20);
                heir.send(&[0x82, 9, 0, 1, 0, 0, 3, b'e', b'n', b'd', 1]);
                assert_eq!(heir.packet().0, 0x90);
                heir
            })
            .collect();
        let mut testator = Client::open(broker.address);
        testator.send(&connect_bytes(
            4,
            "testator",
            0x06,
            b"\x00\x03end\x00\x02it",
        ));
        assert_eq!(testator.packet().0, 0x20);
        let mut opening = Client::open(broker.address);
        opening.send(&[0x10]);
        broker.step(DrainStep::Wills);
        for heir in &mut heirs {
            // no properties
            assert_eq!(heir.packet(), (0x30, b"\x00\x03end\x00it".to_vec()));
        }
        std::thread::scope(|scope| {
            scope.spawn(|| broker.step(DrainStep::Close));
            for heir in &mut heirs {
                assert_eq!(heir.packet(), (0xE0, vec![0x8B]), "{setup:?}");
                heir.expect_end();
            }
            testator.expect_end();
            drop((heirs, testator, opening));
        });
        for shard in broker.shards {
            shard.join().expect("the shard ends");
        }
        assert_eq!(broker.admission.connections(), 0);
    });
}

/// Turns of a shard by hand, until there is nothing to do.
fn settle(shard: &mut Shard) {
    for _ in 0..1000 {
        if shard.arm() {
            return;
        }
        shard
            .poll_kernel(Some(Duration::ZERO))
            .expect("the epoll descriptor");
        shard.turn();
    }
    panic!("the shard never waits");
}

#[test]
fn a_shard_waits_when_only_its_clients_can_act() {
    let setup = setup(1, Runtime::Epoll, false);
    let config = config(setup, |_| {});
    let (sender, inbox) = lane::polled().expect("an eventfd");
    let admission = Arc::new(Admission::new(&config));
    let ports = ports(0, setup, &[sender], inbox, &admission);
    let mut shard = Shard::new(ShardId(0), config.clone(), ports).expect("a shard");
    let mut client = Client::open(address(&config));
    // Receive Maximum 1 and no acknowledgement: the second message waits in the queue
    let mut bytes = connect_bytes(5, "c", 0x02, &[]);
    bytes[12] = 3;
    bytes.splice(13..13, [0x21, 0, 1]);
    bytes[1] += 3;
    bytes.extend([0x82, 7, 0, 1, 0, 0, 1, b't', 1]);
    for id in 1..=2 {
        bytes.extend([0x32, 6, 0, 1, b't', 0, id, 0]);
    }
    client.send(&bytes);
    let reader = std::thread::spawn(move || {
        let kinds: Vec<_> = (0..5).map(|_| client.packet().0).collect();
        // and one that is answered last
        client.send(&[0xC0, 0]);
        assert_eq!(client.packet().0, 0xD0);
        (kinds, client)
    });
    while !reader.is_finished() {
        shard
            .poll_kernel(Some(Duration::ZERO))
            .expect("the epoll descriptor");
        shard.turn();
    }
    let (mut kinds, _client) = reader.join().expect("the reader");
    kinds.sort_unstable();
    assert_eq!(kinds, [0x20, 0x32, 0x40, 0x40, 0x90]);
    settle(&mut shard);
}

/// In a process of its own, since the limit of file descriptors is the whole process's.
#[test]
fn a_listener_pauses_without_descriptors_and_goes_on() {
    const NAME: &str = "a_listener_pauses_without_descriptors_and_goes_on";
    if std::env::var_os("SHARDS_TEST_CHILD").is_none() {
        let status = std::process::Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", NAME])
            .env("SHARDS_TEST_CHILD", "1")
            .status()
            .expect("the child");
        assert!(status.success());
        return;
    }
    struct Lines(std::sync::mpsc::SyncSender<String>);
    impl log::Log for Lines {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }
        fn log(&self, record: &log::Record<'_>) {
            // nobody reads them any more at the end
            drop(self.0.try_send(record.args().to_string()));
        }
        fn flush(&self) {}
    }
    let (sender, lines) = std::sync::mpsc::sync_channel(1000);
    log::set_logger(Box::leak(Box::new(Lines(sender)))).expect("the only logger");
    log::set_max_level(log::LevelFilter::Info);
    let wait_for = |text: &str| {
        while !lines.recv_timeout(DEADLINE).expect("a line").contains(text) {}
    };

    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    use std::os::fd::AsRawFd;
    let broker = Broker::start(setup(1, Runtime::Epoll, false));
    let limit = getrlimit(Resource::Nofile);
    let next = std::fs::File::open("/dev/null")
        .expect("a file")
        .as_raw_fd();
    // room for the client's socket, none for the broker's
    let tight = Rlimit {
        current: Some(next as u64 + 1),
        ..limit
    };
    setrlimit(Resource::Nofile, tight).expect("a lower limit");
    let mut client = Client::open(broker.address);
    client.send(&connect_bytes(4, "patient", 0x02, &[]));
    wait_for("listener pauses");
    setrlimit(Resource::Nofile, limit).expect("the limit before");
    assert_eq!(client.packet().0, 0x20);
    wait_for("listener goes on");
    broker.drain(client);
}

#[path = "shards/bans.rs"]
mod bans;
#[path = "shards/commits.rs"]
mod commits;
#[path = "shards/denied.rs"]
mod denied;
#[path = "shards/events.rs"]
mod events;
#[path = "shards/limits.rs"]
mod limits;
#[path = "shards/nodes.rs"]
mod nodes;
#[path = "shards/retained.rs"]
mod retained;
#[path = "shards/turns.rs"]
mod turns;
#[path = "shards/wills.rs"]
mod wills;
#[test]
fn system_messages_go_on_over_turns_in_their_order() {
    const MESSAGES: u32 = 2000;
    each(&SOME, |setup| {
        let broker = Broker::start(setup);
        // so many deliveries that one turn cannot make them
        let mut subscribers: Vec<_> = (0..20)
            .map(|n| broker.subscriber(&format!("subscriber-{n}"), "$SYS/#", 0))
            .collect();
        let mut all = broker.subscriber("all", "#", 0);
        broker.system((0..MESSAGES).map(|n| ("$SYS/t".to_owned(), n.to_be_bytes().to_vec())));
        for subscriber in &mut subscribers {
            for n in 0..MESSAGES {
                assert_eq!(
                    subscriber.message(),
                    ("$SYS/t".to_owned(), n.to_be_bytes().to_vec()),
                    "{setup:?}"
                );
            }
        }
        // [MQTT-4.7.2-1]
        all.send(&publish_bytes(0x30, "own", 0, b""));
        assert_eq!(all.message().0, "own");
        let numbers = broker.numbers();
        let sum = |of: fn(&Numbers) -> u64| numbers.iter().map(of).sum::<u64>();
        assert_eq!(sum(|n| n.retained), 0, "{setup:?}");
        assert_eq!(sum(|n| n.messages_received), 1);
        assert_eq!(sum(|n| n.messages_sent), u64::from(MESSAGES) * 20 + 1);
        broker.drain((subscribers, all));
    });
}

#[test]
fn what_is_in_flight_is_counted_once() {
    each(&ALL, |setup| {
        let broker = Broker::start(setup);
        let messages: u8 = 20;
        let mut subscriber = Client::open(broker.address);
        // its session is kept where there is a store
        subscriber.send(&connect_bytes(4, "subscriber", 0, &[]));
        assert_eq!(subscriber.packet().0, 0x20);
        subscriber.subscribe(1, "a", 2);
        let mut publisher = broker.client("publisher");
        for id in 1..=messages {
            publisher.send(&publish_bytes(0x34, "a", id.into(), b"x"));
        }
        for _ in 0..messages {
            assert_eq!(publisher.packet().0, 0x50);
        }
        let mut ids = Vec::new();
        while ids.len() < usize::from(messages) {
            let (kind, body) = subscriber.packet();
            assert_eq!(kind, 0x34);
            ids.push([body[3], body[4]]);
        }
        let inflight = || broker.numbers().iter().map(|n| n.inflight).sum::<u64>();
        assert_eq!(inflight(), u64::from(messages), "{setup:?}");
        for [high, low] in &ids {
            subscriber.send(&[0x50, 2, *high, *low]);
        }
        for _ in &ids {
            assert_eq!(subscriber.packet().0, 0x62);
        }
        assert_eq!(inflight(), u64::from(messages), "{setup:?}");
        for [high, low] in &ids {
            subscriber.send(&[0x70, 2, *high, *low]);
        }
        wait_until(|| inflight() == 0);
        let dropped = |n: &Numbers| n.inflight_dropped;
        assert_eq!(broker.numbers().iter().map(dropped).sum::<u64>(), 0);
        broker.drain((publisher, subscriber));
    });
}

#[test]
fn every_gauge_comes_back_to_nothing() {
    each(&ALL, |setup| {
        let broker = Broker::start(setup);
        let messages: u16 = 50;
        let mut subscriber = broker.subscriber("subscriber", "a", 1);
        let mut publisher = broker.client("publisher");
        for id in 1..=messages {
            publisher.send(&publish_bytes(0x32, "a", id, b"x"));
            assert_eq!(publisher.packet().0, 0x40);
        }
        for _ in 0..messages {
            subscriber.message();
        }
        // it acknowledges half of them
        for id in 1..=messages / 2 {
            let [high, low] = id.to_be_bytes();
            subscriber.send(&[0x40, 2, high, low]);
        }
        subscriber.send(&[0xC0, 0]);
        assert_eq!(subscriber.packet().0, 0xD0);
        let sum = |of: fn(&Numbers) -> u64| broker.numbers().iter().map(of).sum::<u64>();
        assert_eq!(sum(|n| n.inflight), u64::from(messages / 2), "{setup:?}");
        assert_eq!(sum(|n| n.clients_connected), 2);
        assert_eq!(sum(|n| n.connections_opening), 0);
        // CONNACK, SUBACK, PUBLISH and PINGRESP; CONNACK and PUBACK
        assert_eq!(sum(|n| n.packets_sent), 4 + 2 * u64::from(messages));
        // CONNECT, SUBSCRIBE, PUBACK and PINGREQ; CONNECT and PUBLISH. Once each, whichever shard accepted them
        assert_eq!(
            sum(|n| n.packets_received),
            4 + u64::from(messages / 2) + u64::from(messages),
            "{setup:?}"
        );
        for numbers in broker.numbers() {
            assert!(numbers.turn_cpu.total() >= numbers.turn_wall.total());
        }
        assert!(sum(|n| n.turn_wall.total()) > 0);
        let opening = Client::open(broker.address);
        wait_until(|| sum(|n| n.connections_opening) == 1);
        drop((opening, subscriber, publisher));
        wait_until(|| {
            sum(|n| n.connections_opening + n.connections_lingering + n.clients_connected) == 0
        });
        assert_eq!(sum(|n| n.inflight), 0);
        assert_eq!(sum(|n| n.inflight_dropped), u64::from(messages / 2));
        let ended = |of: fn(&Numbers) -> &[(&'static str, u64)]| {
            let all = broker.numbers();
            let counts = all.iter().flat_map(of);
            counts.map(|(_, count)| count).sum::<u64>()
        };
        assert_eq!(
            (ended(|n| &n.closed), ended(|n| &n.refused)),
            (2, 1),
            "{setup:?}"
        );
        broker.drain(());
    });
}

/// Asks again until it is so.
fn wait_until(fact: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !fact() {
        assert!(Instant::now() < deadline, "it is not so in time");
        std::thread::yield_now();
    }
}
