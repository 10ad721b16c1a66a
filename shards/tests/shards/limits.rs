// SPDX-License-Identifier: Apache-2.0
//! Limits at their edges: what is refused and how, that it is counted by reason, and that everybody else goes on.

use super::client::{packet, text};
use super::*;

impl Broker {
    fn limited(&self, reason: &str) -> u64 {
        let all = self.numbers();
        let limited = all.iter().flat_map(|numbers| &numbers.limited);
        let found: Vec<_> = limited.filter(|(name, _)| *name == reason).collect();
        assert!(!found.is_empty(), "{reason} is a reason");
        found.iter().map(|(_, n)| n).sum()
    }

    /// Waits until a limit was reached so often.
    fn until_limited(&self, reason: &str, times: u64) {
        let deadline = Instant::now() + DEADLINE;
        while self.limited(reason) < times {
            assert!(Instant::now() < deadline, "{reason} is reached");
        }
    }

    /// Connects until there is a place again.
    fn client_once_there_is_room(&self, id: &str) -> Client {
        let deadline = Instant::now() + DEADLINE;
        loop {
            assert!(Instant::now() < deadline, "a place is free again");
            let mut client = Client::open(self.address);
            client.try_send(&connect_bytes(4, id, 0x02, &[]));
            if client.try_packet() == Some((0x20, vec![0, 0])) {
                return client;
            }
        }
    }
}

/// CONNECT of 5.0; its answer.
fn connect_v5(broker: &Broker, id: &str) -> (Client, Option<(u8, Vec<u8>)>) {
    let mut client = Client::open(broker.address);
    client.try_send(&connect_bytes(5, id, 0x02, &[]));
    let answer = client.try_packet();
    (client, answer)
}

fn client_v5(broker: &Broker, id: &str) -> Client {
    let (client, answer) = connect_v5(broker, id);
    let (kind, body) = answer.expect("CONNACK");
    assert_eq!((kind, body[1]), (0x20, 0));
    client
}

/// PUBLISH of 5.0 without properties.
fn publish_v5(first: u8, topic: &str, id: u16, payload: &[u8]) -> Vec<u8> {
    let mut body = text(topic);
    if first & 0x06 != 0 {
        body.extend(id.to_be_bytes());
    }
    body.push(0);
    body.extend_from_slice(payload);
    packet(first, &body)
}

/// The reason code of PUBACK for one retained message.
fn retain(client: &mut Client, topic: &str, payload: &[u8]) -> u8 {
    client.send(&publish_v5(0x33, topic, 1, payload));
    let (kind, body) = client.packet();
    assert_eq!((kind, &body[..2]), (0x40, &[0, 1][..]));
    body.get(2).copied().unwrap_or(0)
}

const TOO_MUCH: u8 = 0x97;
const NOBODY: u8 = 0x10;

#[test]
fn a_connection_beyond_a_limit_is_closed_and_one_in_its_place_is_not() {
    type Change = fn(&mut Config);
    let limits: [(&str, Change); 3] = [
        ("connections", |config| config.limits.connections_max = 2),
        ("max-connections", |config| {
            config.listeners[0].connections_max = 2;
        }),
        ("connections-per-ip", |config| {
            config.limits.connections_per_ip_max = 2;
        }),
    ];
    each(&SOME, |setup| {
        for (reason, change) in limits {
            let broker = Broker::with(setup, change);
            let first = broker.client("first");
            let mut second = broker.client("second");
            let mut third = Client::open(broker.address);
            third.expect_end();
            assert_eq!(broker.limited(reason), 1, "{setup:?}");
            second.send(&[0xC0, 0]);
            assert_eq!(second.packet().0, 0xD0);
            drop(first);
            let fourth = broker.client_once_there_is_room("fourth");
            broker.drain((second, third, fourth));
        }
    });
}

#[test]
fn a_connect_beyond_the_rate_is_told_so() {
    each(&SOME, |setup| {
        let broker = Broker::with(setup, |config| config.limits.connects_per_sec = 1);
        let began = Instant::now();
        let (mut let_in, mut refused) = (0, 0);
        while refused < 4 {
            assert!(began.elapsed() < DEADLINE, "connects are refused");
            let (mut client, answer) = connect_v5(&broker, &format!("c{}", let_in + refused));
            match answer.expect("CONNACK").1[1] {
                0 => let_in += 1,
                code => {
                    assert_eq!(code, 0x9F, "{setup:?}");
                    client.expect_end();
                    refused += 1;
                }
            }
        }
        assert!(let_in <= 1 + began.elapsed().as_secs(), "{setup:?}");
        let mut older = Client::open(broker.address);
        older.send(&connect_bytes(4, "older", 0x02, &[]));
        let answer = older.packet().1[1];
        assert!(answer == 3 || (answer == 0 && began.elapsed().as_secs() >= let_in));
        assert!(broker.limited("connect-rate") >= 4);
        broker.drain(older);
    });
}

#[test]
fn a_client_without_connect_is_closed_in_time_and_counted() {
    let setup = setup(1, Runtime::Epoll, false);
    let broker = Broker::with(setup, |config| {
        config.limits.connect_timeout = Duration::from_millis(300);
    });
    let mut half = Client::open(broker.address);
    half.send(&connect_bytes(4, "half", 0x02, &[])[..9]);
    let mut silent = Client::open(broker.address);
    half.expect_end();
    silent.expect_end();
    assert_eq!(broker.limited("connect-timeout"), 2);
    broker.drain((half, silent));
}

#[test]
fn who_publishes_too_fast_is_read_no_faster_than_that() {
    const RATE: u64 = 10;
    const MESSAGES: u16 = 35;
    each(&SOME, |setup| {
        let broker = Broker::with(setup, |config| config.limits.publishes_per_sec = RATE);
        let mut subscriber = broker.subscriber("subscriber", "t", 0);
        let mut other = broker.client("other");
        let mut client = Client::open(broker.address);
        let mut connect = connect_bytes(4, "hasty", 0x02, &[]);
        // a keep-alive of a second, which must not end a client that is not read
        connect[11] = 1;
        client.send(&connect);
        assert_eq!(client.packet(), (0x20, vec![0, 0]));
        let began = Instant::now();
        let mut bytes = Vec::new();
        for id in 1..=MESSAGES {
            bytes.extend(publish_bytes(0x32, "t", id, &id.to_be_bytes()));
        }
        bytes.extend([0xC0, 0]);
        client.send(&bytes);
        for id in 1..=RATE as u16 {
            assert_eq!(client.packet(), (0x40, id.to_be_bytes().to_vec()));
        }
        // a whole second's worth of somebody else goes through meanwhile
        for id in 1..=RATE as u16 {
            other.send(&publish_bytes(0x32, "elsewhere", id, b""));
            assert_eq!(other.packet().0, 0x40);
        }
        for id in RATE as u16 + 1..=MESSAGES {
            assert_eq!(client.packet(), (0x40, id.to_be_bytes().to_vec()));
        }
        assert_eq!(client.packet().0, 0xD0, "the ping waited behind them");
        // the burst, and then ten a second
        let least = Duration::from_millis((u64::from(MESSAGES) - RATE) * 1000 / RATE - 100);
        assert!(began.elapsed() >= least, "{setup:?} {:?}", began.elapsed());
        assert!(broker.limited("publish-rate") > 0);
        for id in 1..=MESSAGES {
            assert_eq!(subscriber.message().1, id.to_be_bytes());
        }
        broker.drain((subscriber, other, client));
    });
}

#[test]
fn a_client_that_closes_while_it_must_wait_is_heard_to_the_end() {
    let setup = setup(1, Runtime::Epoll, false);
    let broker = Broker::with(setup, |config| config.limits.publishes_per_sec = 4);
    let mut subscriber = broker.subscriber("subscriber", "t", 0);
    let mut client = broker.client("hasty");
    for n in 0..8 {
        client.send(&publish_bytes(0x30, "t", 0, &[n]));
    }
    drop(client);
    for n in 0..8 {
        assert_eq!(subscriber.message().1, [n]);
    }
    broker.drain(subscriber);
}

#[test]
fn what_cannot_be_retained_is_delivered_and_its_publisher_told() {
    each(&ALL, |setup| {
        let broker = Broker::with(setup, |config| config.limits.retained_messages_max = 2);
        let mut client = client_v5(&broker, "publisher");
        assert_eq!(retain(&mut client, "r/1", b"1"), NOBODY);
        assert_eq!(retain(&mut client, "r/2", b"2"), NOBODY);
        assert_eq!(retain(&mut client, "r/3", b"3"), TOO_MUCH, "{setup:?}");
        assert_eq!(retain(&mut client, "r/2", b"in its place"), NOBODY);
        let mut live = broker.subscriber("live", "r/3", 0);
        assert_eq!(retain(&mut client, "r/3", b"live"), TOO_MUCH);
        assert_eq!(live.message().1, b"live");
        assert_eq!(broker.limited("retained-messages"), 2);
        // QoS 0 is not retained either, and nobody can be told
        client.send(&publish_v5(0x31, "r/4", 0, b"4"));
        broker.until_limited("retained-messages", 3);
        // before 5.0 there is no code for it
        let mut older = broker.client("older");
        older.send(&publish_bytes(0x33, "r/5", 1, b"5"));
        older.expect_end();
        // removing works at the limit, and makes room for one
        assert_eq!(retain(&mut client, "r/1", b""), NOBODY);
        assert_eq!(retain(&mut client, "r/6", b"6"), NOBODY);
        assert_eq!(retain(&mut client, "r/7", b"7"), TOO_MUCH);
        let mut late = broker.subscriber("late", "r/#", 0);
        let mut kept: Vec<_> = (0..2).map(|_| late.message().0).collect();
        kept.sort_unstable();
        assert_eq!(kept, ["r/2", "r/6"]);
        let retained: u64 = broker.numbers().iter().map(|n| n.retained).sum();
        assert_eq!(retained, 2);
        broker.drain((client, live, older, late));
    });
}

#[test]
fn retained_bytes_end_at_their_limit() {
    each(&SOME, |setup| {
        let broker = Broker::with(setup, |config| config.limits.retained_bytes_max = 20);
        let mut client = client_v5(&broker, "publisher");
        assert_eq!(retain(&mut client, "a", b"123456789"), NOBODY);
        assert_eq!(retain(&mut client, "b", b"123456789"), NOBODY, "20 bytes");
        assert_eq!(retain(&mut client, "c", b""), NOBODY);
        assert_eq!(retain(&mut client, "b", b"1234567890"), TOO_MUCH);
        assert_eq!(retain(&mut client, "b", b"12345678"), NOBODY);
        assert_eq!(retain(&mut client, "b", b"123456789"), NOBODY);
        assert_eq!(broker.limited("retained-bytes"), 1);
        broker.drain(client);
    });
}

#[test]
fn messages_beyond_writes_pending_are_shed_and_counted() {
    each(&SOME, |setup| {
        let broker = Broker::with(setup, |config| config.session.writes_pending_max = 20);
        let slow = broker.subscriber("slow", "flood", 0);
        let mut quick = broker.subscriber("quick", "burst", 0);
        let mut flooder = broker.client("flooder");
        let payload = vec![b'x'; 20_000];
        let deadline = Instant::now() + DEADLINE;
        while broker.dropped("writes-pending") < 10 {
            assert!(Instant::now() < deadline, "{setup:?}: messages are shed");
            for _ in 0..50 {
                flooder.send(&publish_bytes(0x30, "flood", 0, &payload));
            }
        }
        // who reads gets all of what one turn brings, however much more than twenty it is
        let mut bytes = Vec::new();
        for n in 0..200 {
            bytes.extend(publish_bytes(0x30, "burst", 0, &[n]));
        }
        flooder.send(&bytes);
        for n in 0..200 {
            assert_eq!(quick.message().1, [n]);
        }
        broker.drain((slow, quick, flooder));
    });
}

#[test]
fn what_is_half_sent_is_closed_where_it_takes_too_much_memory() {
    const PACKET: usize = 1 << 20;
    each(&SOME, |setup| {
        let broker = Broker::with(setup, |config| {
            config.limits.memory_bytes_max = 4 << 20;
            config.capabilities.packet_bytes_max = 2 << 20;
        });
        let mut half = publish_v5(0x30, "t", 0, &vec![b'x'; PACKET]);
        half.truncate(PACKET * 3 / 4);
        let mut other = broker.client("other");
        let attackers: Vec<_> = (0..16)
            .map(|n| {
                let mut client = client_v5_when_let_in(&broker, n);
                // it may be closed at any time
                client.try_send(&half);
                client
            })
            .collect();
        broker.until_limited("memory-max-read", 1);
        assert!(broker.limited("memory-max") > 0);
        other.send(&[0xC0, 0]);
        assert_eq!(other.packet().0, 0xD0, "everybody else goes on");
        // those that fit into the limit may stay, the others were told why
        broker.until_limited("memory-max-read", 16 - 4 * 4 / 3);
        let told = attackers
            .into_iter()
            .filter(|client| {
                let timeout = Some(Duration::from_millis(100));
                client
                    .stream()
                    .set_read_timeout(timeout)
                    .expect("an option");
                let mut byte = [0; 3];
                let read = std::io::Read::read(&mut client.stream(), &mut byte);
                matches!(read, Ok(3)) && byte == [0xE0, 1, TOO_MUCH]
            })
            .count();
        assert!(told > 0, "{setup:?}");
        let late = broker.client_once_there_is_room("late");
        broker.drain((other, late));
    });
}

/// A client that connects while memory may be full.
fn client_v5_when_let_in(broker: &Broker, n: usize) -> Client {
    let deadline = Instant::now() + DEADLINE;
    loop {
        assert!(Instant::now() < deadline, "there is room again");
        let (client, answer) = connect_v5(broker, &format!("attacker-{n}"));
        if answer.is_some_and(|(_, body)| body[1] == 0) {
            return client;
        }
    }
}

#[test]
fn full_memory_is_a_full_queue_and_refuses_new_clients() {
    use corqtt_session::QueueFull;
    each(&SOME, |setup| {
        let broker = Broker::with(setup, |config| {
            config.limits.memory_bytes_max = 1 << 20;
            config.session.queue_full = QueueFull::Reject;
        });
        // with a session that stays
        let mut sleeper = Client::open(broker.address);
        sleeper.send(&connect_bytes(4, "sleeper", 0x00, &[]));
        assert_eq!(sleeper.packet().0, 0x20);
        sleeper.subscribe(1, "t", 1);
        sleeper.send(&[0xE0, 0]);
        sleeper.expect_end();
        let mut publisher = client_v5(&broker, "publisher");
        let payload = vec![b'x'; 1000];
        let mut sent = 0_u16;
        loop {
            assert!(sent < 2000, "{setup:?}: memory ends some time");
            sent += 1;
            publisher.send(&publish_v5(0x32, "t", sent, &payload));
            let body = publisher.packet().1;
            if body.get(2) == Some(&TOO_MUCH) {
                break;
            }
        }
        // a message of 1,000 bytes takes at least that, and less than half as much again
        assert!((700..=1100).contains(&sent), "{setup:?}: {sent}");
        assert!(broker.dropped("memory-max") > 0);
        let (mut refused, answer) = connect_v5(&broker, "newcomer");
        assert_eq!(answer.map(|(_, body)| body[1]), Some(TOO_MUCH));
        refused.expect_end();
        let mut older = Client::open(broker.address);
        older.send(&connect_bytes(4, "older", 0x02, &[]));
        assert_eq!(older.packet(), (0x20, vec![0, 3]));
        assert_eq!(broker.limited("memory-max-connection"), 2);
        // whose messages take the room may come for them
        let mut awake = Client::open(broker.address);
        awake.send(&connect_bytes(4, "sleeper", 0x00, &[]));
        assert_eq!(awake.packet(), (0x20, vec![1, 0]));
        for _ in 1..sent {
            let (kind, body) = awake.packet();
            assert_eq!(kind, 0x32);
            awake.send(&[0x40, 2, body[3], body[4]]);
        }
        let newcomer = broker.client_once_there_is_room("newcomer");
        publisher.send(&publish_v5(0x32, "t", 1, &payload));
        assert_eq!(publisher.packet(), (0x40, vec![0, 1]));
        broker.drain((publisher, awake, newcomer, refused, older));
    });
}

#[test]
fn a_large_message_for_many_slow_readers_counts_once() {
    const READERS: usize = 64;
    let setup = setup(2, Runtime::Epoll, false);
    let broker = Broker::with(setup, |config| {
        config.limits.memory_bytes_max = 16 << 20;
        config.capabilities.packet_bytes_max = 2 << 20;
        config.session.out_buffer_bytes_max = 4 << 20;
    });
    let readers: Vec<_> = (0..READERS)
        .map(|n| broker.subscriber(&format!("r{n}"), "image", 0))
        .collect();
    let mut publisher = broker.client("publisher");
    // more than the kernel buffers for each of them, and together ten times memory-max
    for _ in 0..4 {
        publisher.send(&publish_bytes(0x30, "image", 0, &vec![b'x'; 1 << 20]));
    }
    publisher.send(&[0xC0, 0]);
    assert_eq!(publisher.packet().0, 0xD0);
    for mut reader in readers {
        for _ in 0..4 {
            assert_eq!(reader.message().1.len(), 1 << 20);
        }
    }
    assert_eq!(broker.limited("memory-max"), 0);
    broker.drain(publisher);
}

#[test]
fn subscriptions_end_at_their_limit() {
    let setup = setup(1, Runtime::Epoll, false);
    let broker = Broker::with(setup, |config| config.limits.subscriptions_max = 2);
    let mut client = broker.client("client");
    let mut subscribe = |filter: &str| {
        client.send(&subscribe_bytes(1, filter, 0));
        client.packet().1[2]
    };
    assert_eq!(subscribe("a"), 0);
    assert_eq!(subscribe("$share/g/b"), 0);
    assert_eq!(subscribe("c"), 0x80);
    assert_eq!(subscribe("a"), 0, "it is one of the two");
    assert_eq!(subscribe("$share/g/b"), 0);
    assert_eq!(subscribe("$share/h/b"), 0x80);
    assert_eq!(broker.limited("subscriptions"), 2);
    broker.drain(client);
}

#[test]
fn levels_aliases_and_sizes_are_counted_where_they_close_a_connection() {
    let setup = setup(1, Runtime::Epoll, false);
    let broker = Broker::with(setup, |config| {
        config.limits.topic_levels_max = 3;
        config.session.alias_bytes_max = 10;
        config.capabilities.packet_bytes_max = 100;
    });
    let aliased = |alias: u8, topic: &str| {
        let mut body = text(topic);
        body.extend([3, 0x23, 0, alias]);
        packet(0x30, &body)
    };
    let edge = |fits: &[u8], beyond: &[u8], code: u8, reason: &str| {
        let mut client = client_v5(&broker, reason);
        client.send(fits);
        client.send(&[0xC0, 0]);
        assert_eq!(client.packet().0, 0xD0, "{reason}");
        client.send(beyond);
        assert_eq!(client.packet(), (0xE0, vec![code]), "{reason}");
        client.expect_end();
        assert_eq!(broker.limited(reason), 1);
    };
    let (three, four) = ("a/b/c", "a/b/c/d");
    edge(
        &publish_v5(0x30, three, 0, b""),
        &publish_v5(0x30, four, 0, b""),
        0x90,
        "topic-levels",
    );
    edge(
        &[aliased(1, "five5"), aliased(2, "and55")].concat(),
        &aliased(3, "x"),
        TOO_MUCH,
        "alias-bytes",
    );
    // type and length, topic with its length, properties
    let full = 100 - 2 - 3 - 1;
    edge(
        &publish_v5(0x30, "t", 0, &vec![0; full]),
        &publish_v5(0x30, "t", 0, &vec![0; full + 1]),
        0x95,
        "maximum-packet-size",
    );
    broker.drain(());
}
