// SPDX-License-Identifier: Apache-2.0
//! Three nodes in this process, each with its own directory, machine and socket, agree over real links.

mod common;

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use corqtt_cluster::{Answer, Applied, Entry, NodeId, Output, Peers, RaftFailure, RaftNode};
use corqtt_quic::{Arrival, Endpoint, Identity, Knock};
use tokio::task::JoinSet;

use common::{Directory, run};

const LIMIT: Duration = Duration::from_secs(20);
/// How often a node dials a peer that is not there, and looks whether it leads alone.
const PERIOD: Duration = Duration::from_millis(20);

fn id(number: u64) -> NodeId {
    NodeId::new(number).expect("it is not 0")
}

fn ban(client_id: &str) -> Entry {
    Entry::Ban {
        client_id: client_id.into(),
        is_banned: true,
    }
}

/// What a node was told, and up to which entry.
#[derive(Debug, Default)]
struct Told {
    index: u64,
    bans: Vec<String>,
}

/// A node as long as it runs.
struct Node {
    id: NodeId,
    raft: RaftNode,
    told: Arc<Mutex<Told>>,
    endpoint: Arc<Endpoint>,
    /// Its links, and whoever serves those of its peers.
    tasks: JoinSet<()>,
}

/// Where everybody is: taken for good, so that a node comes back where it was.
type Addresses = [SocketAddr; 3];

fn addresses() -> Addresses {
    [(); 3].map(|()| {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        socket.local_addr().expect("it is bound")
    })
}

async fn serve_link(knock: Knock, raft: RaftNode) {
    let Ok(arrivals) = knock.admit(b"").await else {
        return;
    };
    let mut answers = JoinSet::new();
    while let Ok(begun) = arrivals.next().await {
        let raft = raft.clone();
        answers.spawn(async move {
            if let Ok(Arrival::Request(request)) = begun.read().await
                && let Ok(Some(answer)) = raft.answer(request.body()).await
            {
                // the peer may be gone
                let _ = request.answer(&answer).await;
            }
        });
    }
}

async fn serve(endpoint: Arc<Endpoint>, raft: RaftNode) {
    let mut links = JoinSet::new();
    while let Some(caller) = endpoint.accept().await {
        let raft = raft.clone();
        links.spawn(async move {
            if let Ok(knock) = caller.knock().await {
                serve_link(knock, raft).await;
            }
        });
    }
}

async fn keep_link(endpoint: Arc<Endpoint>, peers: Arc<Peers>, peer: NodeId, address: SocketAddr) {
    let mut tries = tokio::time::interval(PERIOD);
    loop {
        tries.tick().await;
        if let Ok(link) = endpoint.dial(address, b"").await {
            peers.set(peer, link.clone());
            link.closed().await;
            peers.remove(peer);
        }
    }
}

impl Node {
    async fn start(
        number: u64,
        directory: &Path,
        addresses: &Addresses,
        identity: &Identity,
    ) -> Self {
        let told = Arc::new(Mutex::new(Told::default()));
        let telling = told.clone();
        let on_applied = move |applied: Applied| {
            let mut told = telling.lock().expect("nobody panics with it");
            if applied.is_anew {
                told.bans.clear();
            }
            told.index = applied.index;
            told.bans.extend(
                applied
                    .outputs
                    .into_iter()
                    .filter_map(|output| match output {
                        Output::Ban { client_id, .. } => Some(client_id.to_string()),
                        _ => None,
                    }),
            );
        };
        let peers = Arc::new(Peers::default());
        let raft = RaftNode::start(id(number), directory, peers.clone(), Box::new(on_applied))
            .await
            .expect("it starts");
        let own = addresses[number as usize - 1];
        let socket = UdpSocket::bind(own).expect("its port");
        let endpoint = Arc::new(Endpoint::new(socket, identity).expect("an endpoint"));
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(endpoint.clone(), raft.clone()));
        for (at, address) in addresses.iter().enumerate() {
            if *address != own {
                let peer = id(at as u64 + 1);
                tasks.spawn(keep_link(endpoint.clone(), peers.clone(), peer, *address));
            }
        }
        let watched = raft.clone();
        tasks.spawn(async move {
            let mut checks = tokio::time::interval(PERIOD);
            loop {
                checks.tick().await;
                watched.check_quorum(Instant::now()).await;
            }
        });
        Self {
            id: id(number),
            raft,
            told,
            endpoint,
            tasks,
        }
    }

    async fn stop(mut self) {
        self.tasks.shutdown().await;
        self.raft.stop().await;
        self.endpoint.close().await;
    }

    async fn ban(&self, client_id: &str) -> Result<Answer, RaftFailure> {
        let agreed = self.raft.propose(&ban(client_id), LIMIT).await;
        agreed.map(|agreed| agreed.answer)
    }

    fn bans(&self) -> Vec<String> {
        self.told
            .lock()
            .expect("nobody panics with it")
            .bans
            .clone()
    }
}

/// Waits for a fact.
async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let begun = Instant::now();
    let mut looks = tokio::time::interval(Duration::from_millis(5));
    while !is() {
        assert!(begun.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
        looks.tick().await;
    }
}

struct Cluster {
    addresses: Addresses,
    directories: [Directory; 3],
    identity: Identity,
    nodes: [Option<Node>; 3],
}

impl Cluster {
    /// Founded by the first node; the others have joined and vote.
    async fn new() -> Self {
        let addresses = addresses();
        let directories = [(); 3].map(|()| Directory::new());
        let identity = Identity::of_secrets(&["a secret of the tests"]).expect("it is long enough");
        let mut cluster = Self {
            addresses,
            directories,
            identity,
            nodes: [None, None, None],
        };
        for number in 1..=3 {
            cluster.start(number).await;
        }
        let first = cluster.node(1);
        first.raft.found().await.expect("it is new");
        until("a leader", || first.raft.leader() == Some(first.id)).await;
        for number in 2..=3 {
            first.raft.add_learner(id(number)).await.expect("it joins");
        }
        let voters = [id(1), id(2), id(3)];
        first
            .raft
            .set_voters(&voters, false)
            .await
            .expect("they vote");
        cluster
    }

    async fn start(&mut self, number: u64) {
        let at = number as usize - 1;
        let directory = self.directories[at].path();
        let node = Node::start(number, directory, &self.addresses, &self.identity).await;
        self.nodes[at] = Some(node);
    }

    fn node(&self, number: u64) -> &Node {
        self.nodes[number as usize - 1].as_ref().expect("it runs")
    }

    async fn stop(&mut self, number: u64) {
        let node = self.nodes[number as usize - 1].take();
        node.expect("it runs").stop().await;
    }

    async fn stop_all(&mut self) {
        for number in 1..=3 {
            self.stop(number).await;
        }
    }

    fn running(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().flatten()
    }

    async fn all_have(&self, bans: &[&str]) {
        for node in self.running() {
            until("the same tables", || node.bans() == bans).await;
        }
    }
}

#[test]
fn what_any_node_proposes_all_nodes_have() {
    run(async {
        let mut cluster = Cluster::new().await;
        let names = ["a", "b", "c"];
        for (number, name) in (1..).zip(names) {
            assert_eq!(cluster.node(number).ban(name).await, Ok(Answer::Done));
        }
        cluster.all_have(&names).await;
        for node in cluster.running() {
            let index = node
                .raft
                .confirmed_index(LIMIT)
                .await
                .expect("there is a leader");
            until("the confirmed index", || {
                node.told.lock().expect("nobody panics").index >= index
            })
            .await;
            assert_eq!(node.raft.members().0, [id(1), id(2), id(3)]);
            assert_eq!(node.raft.found().await, Err(RaftFailure::Founded));
        }
        cluster.stop_all().await;
    });
}

#[test]
fn two_of_three_go_on_and_the_third_catches_up_from_its_disk() {
    run(async {
        let mut cluster = Cluster::new().await;
        cluster
            .node(2)
            .ban("before")
            .await
            .expect("it is agreed on");
        cluster.all_have(&["before"]).await;
        cluster.stop(1).await;
        let begun = Instant::now();
        cluster
            .node(2)
            .ban("without")
            .await
            .expect("it is agreed on");
        eprintln!("agreed on {:?} after the leader was gone", begun.elapsed());
        cluster.all_have(&["before", "without"]).await;
        cluster.start(1).await;
        cluster.all_have(&["before", "without"]).await;
        cluster.node(1).ban("after").await.expect("it is agreed on");
        cluster.all_have(&["before", "without", "after"]).await;
        cluster.stop_all().await;
    });
}

#[test]
fn a_leader_that_was_alone_goes_on_when_another_one_is_back() {
    run(async {
        let mut cluster = Cluster::new().await;
        cluster
            .node(1)
            .ban("before")
            .await
            .expect("it is agreed on");
        cluster.all_have(&["before"]).await;
        cluster.stop(2).await;
        cluster.stop(3).await;
        // its log is longer than theirs from now on: nobody else can be elected
        let entry = ban("alone");
        let alone = cluster
            .node(1)
            .raft
            .propose(&entry, Duration::from_secs(2))
            .await;
        assert_eq!(alone, Err(RaftFailure::NoLeader));
        cluster.start(2).await;
        assert_eq!(cluster.node(2).ban("after").await, Ok(Answer::Done));
        cluster.start(3).await;
        cluster.all_have(&["before", "alone", "after"]).await;
        cluster.stop_all().await;
    });
}

#[test]
fn one_of_three_agrees_on_nothing_and_all_go_on_from_their_disks() {
    run(async {
        let mut cluster = Cluster::new().await;
        cluster
            .node(1)
            .ban("before")
            .await
            .expect("it is agreed on");
        cluster.stop(2).await;
        cluster.stop(3).await;
        let short = Duration::from_secs(1);
        let alone = &cluster.node(1).raft;
        assert_eq!(
            alone.confirmed_index(short).await,
            Err(RaftFailure::NoLeader)
        );
        let entry = ban("alone");
        assert_eq!(
            alone.propose(&entry, short).await,
            Err(RaftFailure::NoLeader)
        );
        cluster.stop(1).await;
        for number in 1..=3 {
            cluster.start(number).await;
        }
        cluster.node(3).ban("after").await.expect("it is agreed on");
        // what was proposed alone may be agreed on later, or never
        for node in cluster.running() {
            until("what was agreed on", || {
                let bans = node.bans();
                bans.first().is_some_and(|ban| ban == "before")
                    && bans.last().is_some_and(|ban| ban == "after")
            })
            .await;
        }
        cluster.stop_all().await;
    });
}
