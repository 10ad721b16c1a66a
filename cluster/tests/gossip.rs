// SPDX-License-Identifier: Apache-2.0
//! Gossip between nodes on loopback, as the cluster's core uses it.

mod common;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use corqtt_cluster::{Boot, Card, Event, Gossip, GossipSettings, NodeId};
use corqtt_quic::Identity;
use tokio::sync::mpsc::Receiver;

use common::{SECRET, free_address, run};

struct Node {
    gossip: Gossip,
    events: Receiver<Event>,
    /// Heard and not asked for yet.
    heard: Vec<Event>,
    strangers: Arc<AtomicUsize>,
    card: Card,
}

fn card(number: u64) -> Card {
    Card {
        cluster: NonZeroU64::new(7),
        node: NodeId::new(number).expect("it is not 0"),
        boot: Boot(1),
        links: SocketAddr::from(([127, 0, 0, 1], 17_946)),
        leaves: false,
    }
}

async fn start_at(name: &str, bind: SocketAddr, card: Card, secrets: &[&str]) -> Node {
    let strangers = Arc::new(AtomicUsize::new(0));
    let counted = strangers.clone();
    let settings = GossipSettings {
        name: name.into(),
        bind,
        advertise: None,
        card,
        identity: Identity::of_secrets(secrets).expect("they are long enough"),
        secrets: secrets.iter().map(ToString::to_string).collect(),
        on_stranger: Arc::new(move |_, _| {
            counted.fetch_add(1, Ordering::Relaxed);
        }),
    };
    let (gossip, events) = Gossip::start(settings).await.expect("it starts");
    Node {
        gossip,
        events,
        heard: Vec::new(),
        strangers,
        card,
    }
}

async fn start(name: &str, number: u64) -> Node {
    start_at(name, free_address(), card(number), &[SECRET]).await
}

impl Node {
    fn place(&self) -> String {
        self.gossip.address().to_string()
    }

    async fn join(&self, other: &Self) {
        assert_eq!(self.gossip.tend([other.place()]).await, []);
    }

    /// The first event that is wanted and was not taken yet.
    async fn hear(&mut self, wanted: impl Fn(&Event) -> bool) -> Event {
        if let Some(at) = self.heard.iter().position(&wanted) {
            return self.heard.remove(at);
        }
        let hearing = async {
            loop {
                let event = self.events.recv().await.expect("gossip goes on");
                if wanted(&event) {
                    return event;
                }
                self.heard.push(event);
            }
        };
        tokio::time::timeout(Duration::from_secs(30), hearing)
            .await
            .expect("it is heard")
    }

    /// Tends until all of them are alive: one that is back at another address is believed a second after its death.
    async fn find(&mut self, others: &[&Self]) {
        let deadline = Instant::now() + Duration::from_secs(30);
        let wanted: BTreeSet<_> = others.iter().map(|other| other.gossip.address()).collect();
        while !self.gossip.alive().await.is_superset(&wanted) {
            assert!(Instant::now() < deadline, "they are found");
            let places = others.iter().map(|other| other.place());
            assert_eq!(self.gossip.tend(places).await, []);
            if let Ok(event) =
                tokio::time::timeout(Duration::from_millis(200), self.events.recv()).await
            {
                self.heard.extend(event);
            }
        }
    }

    async fn sees(&mut self, wanted: &str) -> Card {
        let event = self
            .hear(|event| matches!(event, Event::Seen { name, .. } if name == wanted))
            .await;
        let Event::Seen { card, .. } = event else {
            unreachable!("it was wanted")
        };
        card
    }

    async fn misses(&mut self, wanted: &str) -> Card {
        let event = self
            .hear(|event| matches!(event, Event::Gone { name, .. } if name == wanted))
            .await;
        let Event::Gone { card, .. } = event else {
            unreachable!("it was wanted")
        };
        card
    }
}

#[test]
fn three_nodes_find_each_other_by_one_seed_and_hear_what_changes() {
    run(async {
        let (mut one, mut two, mut three) = (
            start("one", 1).await,
            start("two", 2).await,
            start("three", 3).await,
        );
        two.join(&one).await;
        three.join(&one).await;
        assert_eq!(one.sees("two").await, two.card);
        assert_eq!(one.sees("three").await, three.card);
        assert_eq!(two.sees("three").await, three.card);
        assert_eq!(three.sees("two").await, two.card);
        let changed = Card {
            boot: Boot(2),
            ..three.card
        };
        three.gossip.change_card(|card| *card = changed).await;
        assert_eq!(one.sees("three").await, changed);
        assert_eq!(two.sees("three").await, changed);
    });
}

#[test]
fn a_goodbye_is_told_from_a_death_and_who_is_back_is_seen_anew() {
    run(async {
        let (mut one, two, three) = (
            start("one", 1).await,
            start("two", 2).await,
            start("three", 3).await,
        );
        two.join(&one).await;
        three.join(&one).await;
        one.sees("two").await;
        one.sees("three").await;
        let place = two.gossip.address();
        two.gossip.leave().await;
        assert!(one.misses("two").await.leaves);
        three.gossip.end().await;
        assert!(!one.misses("three").await.leaves);
        // the same name, at the same address and at another one
        let again = Card {
            boot: Boot(2),
            ..card(2)
        };
        let two = start_at("two", place, again, &[SECRET]).await;
        let three = start("three", 3).await;
        one.find(&[&two, &three]).await;
        // what it said of itself when it left comes first
        one.hear(|event| matches!(event, Event::Seen { card, .. } if *card == again))
            .await;
        assert_eq!(one.sees("three").await, three.card);
    });
}

#[test]
fn who_does_not_know_the_secret_is_not_heard() {
    run(async {
        let (mut one, two) = (start("one", 1).await, start("two", 2).await);
        let other = "another secret, which nobody else knows";
        let stranger = start_at("stranger", free_address(), card(3), &[other]).await;
        let not_joined = stranger.gossip.tend([one.place()]).await;
        assert_eq!(not_joined.len(), 1, "{not_joined:?}");
        assert_eq!(one.gossip.tend([stranger.place()]).await.len(), 1);
        // hand-made: what it would answer to is memberlist's header of 4 GiB that are to come
        let mut raw = TcpStream::connect(one.gossip.address()).expect("anybody may connect");
        raw.write_all(&[7, 1, 0xff, 0xff, 0xff, 0xff])
            .expect("it is sent");
        raw.set_read_timeout(Some(Duration::from_secs(10)))
            .expect("a socket");
        let closed = tokio::task::spawn_blocking(move || {
            let mut answer = Vec::new();
            // a reset is as good as an end
            let _ = raw.read_to_end(&mut answer);
            answer
        });
        let answer = closed.await.expect("no panic");
        assert!(answer.len() < 16, "an alert at most: {answer:?}");
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        for bytes in [&b"\x01\x02\x03"[..], &[0; 1400], &[]] {
            socket
                .send_to(bytes, one.gossip.address())
                .expect("it is sent");
        }
        two.join(&one).await;
        assert_eq!(one.sees("two").await, two.card);
        let alive = one.gossip.alive().await;
        assert_eq!(alive, [two.gossip.address()].into());
        assert!(one.strangers.load(Ordering::Relaxed) >= 2);
        assert!(stranger.gossip.alive().await.is_empty());
    });
}

#[test]
fn who_is_slow_to_prove_itself_delays_nobody() {
    run(async {
        let (mut one, two) = (start("one", 1).await, start("two", 2).await);
        let silent: Vec<TcpStream> = (0..20)
            .map(|_| TcpStream::connect(one.gossip.address()).expect("anybody may connect"))
            .collect();
        two.join(&one).await;
        assert_eq!(one.sees("two").await, two.card);
        drop(silent);
    });
}

#[test]
fn secrets_change_one_after_the_other() {
    run(async {
        let new = "the secret that all of them will know";
        let mut one = start_at("one", free_address(), card(1), &[SECRET, new]).await;
        let mut two = start_at("two", free_address(), card(2), &[new, SECRET]).await;
        two.join(&one).await;
        assert_eq!(one.sees("two").await, two.card);
        assert_eq!(two.sees("one").await, one.card);
        two.gossip.leave().await;
        assert!(one.misses("two").await.leaves);
    });
}

#[test]
fn another_cluster_and_a_namesake_are_not_let_in() {
    run(async {
        let (mut one, two) = (start("one", 1).await, start("two", 2).await);
        two.join(&one).await;
        one.sees("two").await;
        let elsewhere = Card {
            cluster: NonZeroU64::new(8),
            ..card(3)
        };
        let other = start_at("other", free_address(), elsewhere, &[SECRET]).await;
        other.gossip.tend([one.place()]).await;
        let event = one.hear(|event| !matches!(event, Event::Seen { .. })).await;
        let Event::Refused { name, address, .. } = event else {
            panic!("{event:?}")
        };
        assert_eq!((name.as_str(), address), ("other", other.gossip.address()));
        other.gossip.end().await;
        let namesake = start("two", 4).await;
        namesake.gossip.tend([one.place()]).await;
        let event = one
            .hear(|event| matches!(event, Event::Namesake { .. }))
            .await;
        let expected = Event::Namesake {
            name: "two".into(),
            known: two.gossip.address(),
            other: namesake.gossip.address(),
        };
        assert_eq!(event, expected);
        assert_eq!(one.gossip.alive().await, [two.gossip.address()].into());
    });
}
