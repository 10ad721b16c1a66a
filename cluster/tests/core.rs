// SPDX-License-Identifier: Apache-2.0
//! Nodes in this process, each with its own thread, directory and sockets, become a cluster and stay one.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use corqtt_cluster::{
    Boot, Bootstrap, Carrier, Core, CoreError, CoreEvent, CoreSettings, Delta, NodeId, Output,
    OwnRows, Proposer, Timeouts, Want,
};
use corqtt_quic::{Incoming, Mark, Opening, Stream};

use common::{Directory, core_settings, free_address};

const LIMIT: Duration = Duration::from_secs(40);

/// What a node was told so far.
#[derive(Debug, Default)]
struct Told {
    /// What other nodes want, as `NODE FILTER`.
    routes: BTreeSet<String>,
    said: Vec<Boot>,
    settled: u64,
    has_lease: bool,
    out: Option<String>,
    /// The cluster's thread stands still in here as long as this holds.
    is_held: bool,
}

#[derive(Default)]
struct State {
    told: Mutex<Told>,
    changed: Condvar,
    proposer: OnceLock<Proposer>,
}

impl State {
    fn take(&self, event: CoreEvent) {
        let mut told = self.told.lock().expect("nobody panics with it");
        match event {
            CoreEvent::Applied(applied) => {
                if applied.is_anew {
                    told.routes.clear();
                }
                for output in applied.outputs {
                    if let Output::Route { node, filter, want } = output {
                        let route = format!("{} {filter}", node.0);
                        match want {
                            Some(_) => told.routes.insert(route),
                            None => told.routes.remove(&route),
                        };
                    }
                }
                if let Some(proposer) = self.proposer.get() {
                    proposer.applied(applied.index);
                }
            }
            CoreEvent::Lease(_) => told.has_lease = true,
            CoreEvent::Said(boot) => told.said.push(boot),
            CoreEvent::Settled(ticket) => told.settled = ticket,
            CoreEvent::Out(cause) => told.out = Some(cause),
            _ => {}
        }
        self.changed.notify_all();
        while told.is_held {
            told = self.changed.wait(told).expect("nobody panics with it");
        }
    }

    fn hold(&self, is_held: bool) {
        self.told.lock().expect("nobody panics with it").is_held = is_held;
        self.changed.notify_all();
    }

    /// Until something is told, or for a moment.
    fn pause(&self) {
        let told = self.told.lock().expect("nobody panics with it");
        let moment = Duration::from_millis(20);
        let waited = self.changed.wait_timeout(told, moment);
        drop(waited.expect("nobody panics with it"));
    }

    #[track_caller]
    fn wait_for(&self, wanted: impl Fn(&Told) -> bool) {
        let deadline = Instant::now() + LIMIT;
        let mut told = self.told.lock().expect("nobody panics with it");
        while !wanted(&told) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "it did not come to that: {told:?}");
            told = self
                .changed
                .wait_timeout(told, left)
                .expect("nobody panics with it")
                .0;
        }
    }
}

/// The receiving end of a peer's stream, and what came.
type Arrived = (Incoming, Vec<Bytes>);

/// Carries a stream to each peer, whatever shard it would be of, and keeps what comes.
#[derive(Default)]
struct Post {
    out: Mutex<BTreeMap<NodeId, Arc<Stream>>>,
    came: Arc<Mutex<BTreeMap<NodeId, Arrived>>>,
    /// The last mark of each peer.
    marks: Mutex<BTreeMap<NodeId, u64>>,
}

impl Post {
    fn stream(&self, peer: NodeId) -> Arc<Stream> {
        let mut out = self.out.lock().expect("no panic");
        let new = || Arc::new(Stream::new(1 << 20));
        out.entry(peer).or_insert_with(new).clone()
    }
}

impl Carrier for Post {
    fn streams(&self, _: NodeId, peer: NodeId) -> Vec<(Arc<Stream>, Vec<u8>)> {
        vec![(self.stream(peer), b"a header".to_vec())]
    }

    fn marked(&self, peer: NodeId, stream: usize, mark: &Mark) {
        assert_eq!(stream, 0);
        let mut marks = self.marks.lock().expect("no panic");
        marks.insert(peer, mark.kept);
    }

    fn receive(&self, peer: NodeId, opening: Opening) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let came = self.came.clone();
        Box::pin(async move {
            assert_eq!(opening.header(), b"a header");
            let known = came.lock().expect("no panic").remove(&peer);
            let (mut incoming, mut bodies) = known.unwrap_or_default();
            let accepted = opening.accept(&mut incoming).await;
            came.lock()
                .expect("no panic")
                .insert(peer, (incoming.clone(), bodies.clone()));
            let Ok(mut accepted) = accepted else { return };
            let marks = accepted.marks.clone();
            let writing = tokio::spawn(accepted.writer.run());
            while let Ok(frame) = accepted.frames.next().await {
                let Ok(repeated) = incoming.handle_frame(&frame) else {
                    break;
                };
                if frame.count > repeated {
                    bodies.push(frame.body.clone());
                    let last = frame.first + u64::from(frame.count) - 1;
                    incoming.finish(last, last, &[]);
                    marks.mark(last, last, &[]);
                }
                came.lock()
                    .expect("no panic")
                    .insert(peer, (incoming.clone(), bodies.clone()));
            }
            writing.abort();
        })
    }
}

/// A node that may run.
struct Node {
    settings: CoreSettings,
    filters: Arc<Mutex<Vec<String>>>,
    post: Arc<Post>,
    running: Option<(Core, Arc<State>)>,
    _directory: Directory,
}

fn route(filter: &str, is_wanted: bool) -> Delta {
    Delta::Route {
        filter: filter.into(),
        want: is_wanted.then_some(Want::Plain { persistent: false }),
    }
}

impl Node {
    fn new(name: &str, seeds: &[&Self], bootstrap: Bootstrap) -> Self {
        let directory = Directory::new();
        Self {
            settings: settings(name, directory.path(), seeds, bootstrap),
            filters: Arc::default(),
            post: Arc::default(),
            running: None,
            _directory: directory,
        }
    }

    fn start(&mut self) {
        self.try_start().expect("it starts");
    }

    fn try_start(&mut self) -> Result<(), CoreError> {
        let state = Arc::new(State::default());
        let (telling, filters) = (state.clone(), self.filters.clone());
        let rows = move || OwnRows {
            sessions: Vec::new(),
            deltas: filters
                .lock()
                .expect("nobody panics with it")
                .iter()
                .map(|filter| route(filter, true))
                .collect(),
        };
        let tell = move |event| telling.take(event);
        let core = Core::start(self.settings.clone(), rows, tell, self.post.clone())?;
        let proposer = core.proposer();
        let applied = proposer.status().applied;
        let _ = state.proposer.set(proposer.clone());
        proposer.applied(applied);
        self.running = Some((core, state));
        Ok(())
    }

    fn state(&self) -> &State {
        &self.running.as_ref().expect("it runs").1
    }

    fn proposer(&self) -> Proposer {
        self.running.as_ref().expect("it runs").0.proposer()
    }

    /// The ticket of the route.
    fn subscribe(&self, filter: &str) -> u64 {
        self.filters
            .lock()
            .expect("nobody panics with it")
            .push(filter.to_owned());
        self.proposer().push(vec![route(filter, true)])
    }

    fn id(&self) -> u64 {
        self.proposer().status().node.0.get()
    }

    fn stop(&mut self) {
        if let Some((core, _)) = self.running.take() {
            core.stop();
        }
    }

    /// Waits until this node thinks so of the cluster.
    #[track_caller]
    fn wait_until(&self, wanted: impl Fn(&corqtt_cluster::CoreStatus) -> bool) {
        let deadline = Instant::now() + LIMIT;
        loop {
            let status = self.proposer().status();
            if wanted(&status) {
                return;
            }
            assert!(Instant::now() < deadline, "{status:?}");
            self.state().pause();
        }
    }

    fn wait_for_members(&self, live: usize, votes: usize) {
        self.wait_until(|status| {
            let members = status.members.iter();
            status.leader.is_some()
                && members.clone().filter(|member| member.row.is_live).count() == live
                && members.filter(|member| member.votes).count() == votes
        });
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some((_, state)) = &self.running
            && let Ok(mut told) = state.told.lock()
        {
            told.is_held = false;
            state.changed.notify_all();
        }
        if !std::thread::panicking() {
            self.stop();
        }
    }
}

fn settings(name: &str, directory: &Path, seeds: &[&Node], bootstrap: Bootstrap) -> CoreSettings {
    let seeds = seeds.iter().map(|seed| seed.settings.gossip);
    let timeouts = Timeouts {
        dead_node: Duration::from_millis(1500),
        forget_node: None,
        lease: Duration::from_millis(500),
    };
    core_settings(name, directory, seeds, bootstrap, timeouts)
}

/// Three nodes, the second and third with the first as seed, once they are a cluster.
fn three() -> [Node; 3] {
    let mut one = Node::new("one", &[], Bootstrap::IfNone);
    let mut two = Node::new("two", &[&one], Bootstrap::No);
    let mut three = Node::new("three", &[&one], Bootstrap::No);
    // whoever comes first waits for the founder
    for node in [&mut three, &mut two, &mut one] {
        node.start();
    }
    let nodes = [one, two, three];
    for node in &nodes {
        node.wait_for_members(3, 3);
        node.state().wait_for(|told| told.has_lease);
    }
    nodes
}

fn sees(node: &Node, of: u64, filter: &str) {
    let route = format!("{of} {filter}");
    node.state().wait_for(|told| told.routes.contains(&route));
}

#[test]
fn three_nodes_become_a_cluster_that_comes_back_from_its_disks() {
    let mut nodes = three();
    let ids: Vec<u64> = nodes.iter().map(Node::id).collect();
    for (node, filter) in nodes.iter().zip(["a", "b", "c"]) {
        node.subscribe(filter);
    }
    for (at, node) in nodes.iter().enumerate() {
        for (of, filter) in ids.iter().zip(["a", "b", "c"]) {
            if *of != ids[at] {
                sees(node, *of, filter);
            }
        }
    }
    // one goes on purpose: its clean routes go at once, it comes back with others
    nodes[2].stop();
    let gone = format!("{} c", ids[2]);
    let stopped = Instant::now();
    nodes[0]
        .state()
        .wait_for(|told| !told.routes.contains(&gone));
    // sooner than anybody could have found out
    assert!(stopped.elapsed() < Duration::from_millis(1500));
    nodes[0].subscribe("while it is away");
    *nodes[2].filters.lock().expect("no panic") = vec!["d".to_owned()];
    nodes[2].start();
    sees(&nodes[0], ids[2], "d");
    sees(&nodes[2], ids[0], "while it is away");
    nodes[2].wait_for_members(3, 3);
    // all go, and come back in another order at the same addresses
    for node in &mut nodes {
        node.stop();
    }
    for at in [1, 2, 0] {
        nodes[at].start();
    }
    for (at, node) in nodes.iter().enumerate() {
        node.wait_for_members(3, 3);
        node.state().wait_for(|told| told.has_lease);
        assert_eq!(node.id(), ids[at]);
    }
    sees(&nodes[1], ids[0], "a");
    sees(&nodes[0], ids[1], "b");
    let told = nodes[0].state().told.lock().expect("no panic");
    assert!(!told.routes.contains(&gone));
}

#[test]
fn a_node_that_stands_still_is_dead_and_begins_again_when_it_goes_on() {
    let nodes = three();
    nodes[2].subscribe("c");
    let id = nodes[2].id();
    for node in &nodes[..2] {
        sees(node, id, "c");
    }
    let began = nodes[2].state().told.lock().expect("no panic").said.clone();
    nodes[2].state().hold(true);
    // an event is what it stands still in
    nodes[0].subscribe("something else");
    for node in &nodes[..2] {
        let route = format!("{id} c");
        node.state().wait_for(|told| !told.routes.contains(&route));
        node.wait_for_members(2, 3);
    }
    nodes[2].state().hold(false);
    nodes[2]
        .state()
        .wait_for(|told| told.said.len() > began.len());
    for node in &nodes[..2] {
        sees(node, id, "c");
        node.wait_for_members(3, 3);
    }
}

#[test]
fn what_is_settled_is_known_to_all_who_may_trust_their_tables() {
    let nodes = three();
    let id = nodes[0].id();
    for number in 0..200 {
        let filter = format!("f/{number}");
        let ticket = nodes[0].subscribe(&filter);
        nodes[0].state().wait_for(|told| told.settled >= ticket);
        let route = format!("{id} {filter}");
        for node in &nodes[1..] {
            let told = node.state().told.lock().expect("no panic");
            assert!(
                told.routes.contains(&route),
                "{route} was settled: {told:?}"
            );
        }
    }
    // one that stands still is waited for until it does not trust its tables any more
    nodes[2].state().hold(true);
    nodes[0].subscribe("it stands still in this");
    let ticket = nodes[0].subscribe("and this is settled without it");
    nodes[0].state().wait_for(|told| told.settled >= ticket);
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let now_ns = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
    let lease = nodes[2].proposer().status().lease_until_ns;
    assert!(lease.is_some_and(|until_ns| until_ns < now_ns));
    nodes[2].state().hold(false);
}

#[test]
fn streams_go_to_each_peer_and_on_when_a_node_was_away() {
    let mut nodes = three();
    let ids: Vec<NodeId> = nodes
        .iter()
        .map(|node| node.proposer().status().node)
        .collect();
    let send = |from: &Node, to: NodeId, numbers: std::ops::Range<u8>| {
        for number in numbers {
            let stream = from.post.stream(to);
            stream
                .push(1, 0, Bytes::copy_from_slice(&[number]))
                .expect("there is room");
        }
    };
    let has = |node: &Node, from: NodeId, count: u8| {
        node.wait_until(|_| {
            let came = node.post.came.lock().expect("no panic");
            let bodies = came.get(&from).map(|(_, bodies)| bodies.concat());
            bodies.is_some_and(|bodies| bodies == (0..count).collect::<Vec<_>>())
        });
    };
    for (from, to) in [(0, 1), (0, 2), (1, 0), (2, 1)] {
        send(&nodes[from], ids[to], 0..10);
    }
    for (from, to) in [(0, 1), (0, 2), (1, 0), (2, 1)] {
        has(&nodes[to], ids[from], 10);
        nodes[from].wait_until(|_| {
            let marks = nodes[from].post.marks.lock().expect("no panic");
            marks.get(&ids[to]) == Some(&10)
        });
    }
    // what is sent meanwhile waits, and nothing comes twice
    nodes[1].stop();
    send(&nodes[0], ids[1], 10..20);
    nodes[1].start();
    has(&nodes[1], ids[0], 20);
    send(&nodes[1], ids[0], 10..15);
    has(&nodes[0], ids[1], 15);
}

#[test]
fn a_name_that_is_taken_and_another_secret_are_refused() {
    let mut one = Node::new("one", &[], Bootstrap::Force);
    one.start();
    one.wait_for_members(1, 1);
    let mut namesake = Node::new("one", &[&one], Bootstrap::No);
    namesake.start();
    namesake.state().wait_for(|told| {
        told.out
            .as_ref()
            .is_some_and(|out| out.contains("--node-name"))
    });
    let mut stranger = Node::new("stranger", &[&one], Bootstrap::No);
    stranger.settings.secrets = vec!["a secret that nobody else knows".to_owned()];
    stranger.start();
    let mut two = Node::new("two", &[&one], Bootstrap::No);
    two.start();
    two.wait_for_members(2, 2);
    // it has tried by now: two came later
    let seen = one.proposer().status();
    let names: Vec<_> = seen
        .members
        .iter()
        .map(|member| member.row.name.to_string())
        .collect();
    let mut sorted = names.clone();
    sorted.sort();
    assert_eq!(sorted, ["one", "two"]);
    assert_eq!(stranger.proposer().status().cluster, None);
}

#[test]
fn an_address_that_is_taken_is_named() {
    let mut one = Node::new("one", &[], Bootstrap::Force);
    one.start();
    let mut other = Node::new("other", &[], Bootstrap::No);
    other.settings.links = one.settings.links;
    let error = other.try_start().expect_err("it is taken");
    let address = one.settings.links.to_string();
    assert!(error.to_string().contains(&address), "{error}");
    other.settings.links = free_address();
    other.settings.gossip = one.settings.gossip;
    let error = other.try_start().expect_err("it is taken");
    let address = one.settings.gossip.to_string();
    assert!(error.to_string().contains(&address), "{error}");
}
