// SPDX-License-Identifier: Apache-2.0
//! How much one turn does: turns made by hand, with the shard's numbers after each.

use super::client::{packet, text};
use super::*;

/// What a turn may do of something long; the shard's own numbers are some hundreds.
const STEP_MAX: u64 = 1100;
/// What a shard reads at once.
const READ: usize = 64 * 1024;
/// Something long.
const MANY: u64 = 20_000;

/// One shard whose turns a test makes.
struct Hand {
    shard: Shard,
    inbox: Sender<ToShard>,
    config: Arc<Config>,
}

impl Hand {
    fn new(change: impl FnOnce(&mut Config)) -> Self {
        let setup = setup(1, Runtime::Epoll, false);
        let config = config(setup, change);
        let (sender, inbox) = lane::polled().expect("an eventfd");
        let admission = Arc::new(Admission::new(&config));
        let ports = ports(0, setup, std::slice::from_ref(&sender), inbox, &admission);
        let shard = Shard::new(ShardId(0), config.clone(), ports).expect("a shard");
        Self {
            shard,
            inbox: sender,
            config,
        }
    }

    /// One turn; what the shard says of itself in it.
    fn turn(&mut self) -> Numbers {
        let (reply, replies) = lane::blocking();
        let (id, ask) = (0, Ask::Numbers);
        self.inbox.push(ToShard::Admin(Query { id, ask, reply }));
        self.shard
            .poll_kernel(Some(Duration::ZERO))
            .expect("the epoll descriptor");
        self.shard.turn();
        let mut all = Vec::new();
        replies.wait(&mut all, Some(DEADLINE));
        match all.pop().expect("an answer within the turn").answer {
            Answer::Numbers(numbers) => *numbers,
            other => panic!("numbers were asked for: {other:?}"),
        }
    }

    /// A client whose bytes are sent, and answered by so many packets.
    fn client(&mut self, bytes: &[u8], answers: usize) -> Client {
        let mut client = Client::open(address(&self.config));
        self.exchange(&mut client, bytes, answers);
        client
    }

    /// Turns while `bytes` are sent and answered; the answers' first bytes.
    fn exchange(&mut self, client: &mut Client, bytes: &[u8], answers: usize) -> Vec<u8> {
        let mut same = client.same();
        std::thread::scope(|scope| {
            let exchange = scope.spawn(move || {
                let mut writer = same.same();
                std::thread::scope(|scope| {
                    scope.spawn(move || writer.send(bytes));
                    (0..answers).map(|_| same.packet().0).collect()
                })
            });
            while !exchange.is_finished() {
                self.turn();
            }
            exchange.join().expect("the exchange")
        })
    }

    /// Turns until `amount` of the numbers is `end`, none of which changes it by more than a step.
    fn steps(
        &mut self,
        end: u64,
        amount: impl Fn(&Numbers) -> u64,
        mut between: impl FnMut(&mut Self),
    ) {
        let deadline = Instant::now() + DEADLINE;
        let mut last = amount(&self.turn());
        while last != end {
            assert!(Instant::now() < deadline, "{last} becomes {end}");
            let now = amount(&self.turn());
            assert!(now.abs_diff(last) <= STEP_MAX, "{last}, then {now}");
            last = now;
            if now != end {
                between(self);
                last = amount(&self.turn());
            }
        }
    }
}

fn many_filters(first: u8, options: bool) -> Vec<u8> {
    let mut body = vec![0, 9];
    for n in 0..MANY {
        body.extend(text(&format!("f/{n}")));
        if options {
            body.push(0);
        }
    }
    packet(first, &body)
}

fn subscriptions(numbers: &Numbers) -> u64 {
    numbers.subscriptions
}

/// A packet of somebody else is answered within a few turns.
fn answers_at_once(hand: &mut Hand, other: &mut Client) {
    other.send(&[0xC0, 0]);
    for _ in 0..3 {
        hand.turn();
    }
    let timeout = Some(Duration::from_millis(200));
    other.stream().set_read_timeout(timeout).expect("an option");
    assert_eq!(other.packet().0, 0xD0);
}

#[test]
fn a_long_subscribe_takes_many_turns_and_is_answered_once() {
    let mut hand = Hand::new(|config| config.capabilities.packet_bytes_max = 4 << 20);
    let mut other = hand.client(&connect_bytes(4, "other", 0x02, &[]), 1);
    let mut client = hand.client(&connect_bytes(4, "eager", 0x02, &[]), 1);
    for (first, options, end, answer) in [(0x82, true, MANY, 0x90), (0xA2, false, 0, 0xB0)] {
        let mut writer = client.same();
        let mut bytes = many_filters(first, options);
        // and something behind it, to be handled after it
        bytes.extend([0xC0, 0]);
        let sent = std::thread::spawn(move || writer.send(&bytes));
        let mut served = 0;
        hand.steps(end, subscriptions, |hand| {
            answers_at_once(hand, &mut other);
            served += 1;
        });
        assert!(served > 5, "{served}");
        sent.join().expect("it was sent");
        let kinds = hand.exchange(&mut client, &[], 2);
        assert_eq!(kinds, [answer, 0xD0]);
    }
}

#[test]
fn a_subscribe_that_its_connection_does_not_survive_leaves_nothing_behind() {
    let mut hand = Hand::new(|config| config.capabilities.packet_bytes_max = 4 << 20);
    let client = hand.client(&connect_bytes(4, "eager", 0x02, &[]), 1);
    let mut writer = client.same();
    let sent = std::thread::spawn(move || writer.send(&many_filters(0x82, true)));
    while subscriptions(&hand.turn()) == 0 {}
    sent.join().expect("it was sent");
    let address = address(&hand.config);
    // taken over by a clean session
    let mut second = Client::open(address);
    hand.exchange(&mut second, &connect_bytes(4, "eager", 0x02, &[]), 1);
    hand.steps(0, subscriptions, |_| {});
    drop(client);
    settle(&mut hand.shard);
}

#[test]
fn a_session_with_many_subscriptions_ends_in_steps_and_another_takes_its_name() {
    let mut hand = Hand::new(|config| config.capabilities.packet_bytes_max = 4 << 20);
    let mut bytes = connect_bytes(4, "owner", 0x00, &[]);
    bytes.extend(many_filters(0x82, true));
    let client = hand.client(&bytes, 2);
    drop(client);
    // [MQTT-3.1.2-6] its name is free at once, and the new session is a fresh one
    let mut publisher = hand.client(&connect_bytes(4, "publisher", 0x02, &[]), 1);
    let address = hand.config.listeners[0].bound.ip();
    let mut second = Client::open(address.expect("a TCP listener"));
    second.send(&connect_bytes(4, "owner", 0x02, &[]));
    let begun = loop {
        let numbers = hand.turn();
        if numbers.subscriptions < MANY {
            break numbers;
        }
    };
    assert!(begun.subscriptions > MANY - STEP_MAX, "{begun:?}");
    assert_eq!(begun.clients_total, 2);
    assert_eq!(second.packet(), (0x20, vec![0, 0]));
    hand.exchange(
        &mut publisher,
        &publish_bytes(0x32, "f/1", 1, b"to nobody"),
        1,
    );
    hand.steps(0, subscriptions, |hand| {
        answers_at_once(hand, &mut publisher)
    });
    assert_eq!(hand.exchange(&mut second, &[0xC0, 0], 1), [0xD0]);
    settle(&mut hand.shard);
}

#[test]
fn a_long_queue_ends_or_goes_to_another_member_in_steps() {
    let mut hand = Hand::new(|_| {});
    let mut publisher = hand.client(&connect_bytes(4, "publisher", 0x02, &[]), 1);
    let mut bytes = connect_bytes(4, "sleeper", 0x00, &[]);
    bytes.extend(subscribe_bytes(1, "alone", 1));
    bytes.extend(subscribe_bytes(2, "$share/g/shared", 1));
    bytes.extend([0xE0, 0]);
    drop(hand.client(&bytes, 3));
    let mut bytes = Vec::new();
    for n in 0..MANY {
        let topic = if n % 2 == 0 { "alone" } else { "shared" };
        bytes.extend(publish_bytes(0x32, topic, n as u16 + 1, &n.to_be_bytes()));
    }
    hand.exchange(&mut publisher, &bytes, MANY as usize);
    let mut heir = hand.client(&connect_bytes(4, "heir", 0x00, &[]), 1);
    hand.exchange(&mut heir, &subscribe_bytes(1, "$share/g/shared", 1), 1);
    // a clean session ends the sleeper's
    let mut second = Client::open(address(&hand.config));
    second.send(&connect_bytes(4, "sleeper", 0x02, &[]));
    let ended = |numbers: &Numbers| {
        let reason = numbers
            .dropped
            .iter()
            .find(|(name, _)| *name == "session-ended");
        reason.expect("a reason").1
    };
    let mut served = 0;
    hand.steps(MANY / 2, ended, |hand| {
        answers_at_once(hand, &mut publisher);
        served += 1;
    });
    assert!(served > 5, "{served}");
    let mut reader = heir.same();
    let messages = std::thread::spawn(move || {
        for n in (1..MANY).step_by(2) {
            let (kind, body) = reader.packet();
            assert_eq!((kind, &body[10..]), (0x32, &n.to_be_bytes()[..]));
            reader.send(&[0x40, 2, body[8], body[9]]);
        }
    });
    while !messages.is_finished() {
        hand.turn();
    }
    messages.join().expect("all of them, in their order");
}

#[test]
fn large_packets_on_their_way_delay_nobody_else() {
    const SENDERS: usize = 64;
    // what the kernel buffers of each of them is a multiple of what a turn reads
    const PACKET: usize = 4 << 20;
    let mut hand = Hand::new(|config| config.capabilities.packet_bytes_max = 8 << 20);
    let mut other = hand.client(&connect_bytes(4, "other", 0x02, &[]), 1);
    let large = publish_bytes(0x30, "t", 0, &vec![b'x'; PACKET]);
    let mut senders = Vec::new();
    for at in 0..SENDERS {
        let sender = hand.client(&connect_bytes(4, &format!("s{at}"), 0x02, &[]), 1);
        sender.stream().set_nonblocking(true).expect("an option");
        let count = sender.stream().write(&large).expect("room for some");
        assert!(count < PACKET);
        senders.push(sender);
    }
    // all of them are in the middle of their packet
    let begun = hand.turn().bytes_received;
    while hand.turn().bytes_received < begun + (SENDERS * READ) as u64 {}
    for _ in 0..5 {
        let before = hand.turn().bytes_received;
        answers_at_once(&mut hand, &mut other);
        assert!(hand.turn().bytes_received > before, "they go on too");
    }
}
