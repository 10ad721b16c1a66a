// SPDX-License-Identifier: Apache-2.0
//! The cluster's thread of a node: finds the others, is a member, says this node's rows, keeps its lease, and leads if it
//! is to.
//!
//! ```text
//!  gossip ─ Seen, Gone ─► links to everybody ─► raft ─► tables ─► CoreEvent::Applied ... to the broker
//!  broker ─ deltas ─► rows, one entry at a time      broker ─ applied ─► lease ─► CoreEvent::Lease
//!  leader: members become learners and voters; who is silent on gossip and link for `dead_node` is dead
//! ```
//!
//! Everything runs on one thread, and nothing on it waits for a disk or a name.

mod birth;
mod links;
mod voters;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{SocketAddr, UdpSocket};
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, Mutex, mpsc as std_mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use compact_str::CompactString;
use corqtt_quic::{Endpoint, Identity};
use futures_util::future::join_all;
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout, timeout_at};

use crate::entry::{Boot, Delta, Entry, NodeId, Rows, Timeouts};
use crate::gossip::{Card, Event, Gossip, Settings as GossipSettings};
use crate::lease::Lease;
use crate::machine::{Answer, ClientRow, Machine, NodeRow, Output, Refusal};
use crate::raft::{Agreed, Applied, Peers, RaftFailure, RaftNode};
use crate::threads::{aside, lock};
use birth::Birth;
pub use links::Carrier;
use links::{Answering, Dialler, Dialling, Greeting, Heard, Hello};
use voters::Member;

/// Seeds, and members that nobody sees alive, are joined anew so often.
const TEND_PERIOD: Duration = Duration::from_secs(2);
/// How often a leader looks at its members, and each node at its leader.
const LEAD_PERIOD: Duration = Duration::from_millis(250);
const QUORUM_PERIOD: Duration = Duration::from_millis(50);
/// How long one try of the cluster's own entries may take.
const TRY_MAX: Duration = Duration::from_secs(5);
/// A founder asks the seeds for so long whether there is a cluster already.
const ASK_SEEDS: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(100);
/// Deltas of one entry, and about how many bytes they may take; of a series' part too.
const DELTAS_MAX: usize = 1000;
const PART_BYTES_MAX: usize = 1 << 20;
/// A learner that lacks no more entries than this has caught up.
const BEHIND_MAX: u64 = 1000;
/// A lease, and what two clocks may differ by.
const LEASES_TO_SETTLE: f64 = 1.1;
/// How long a node that stops tries to tell the others.
const GOODBYE_MAX: Duration = Duration::from_secs(2);

/// Whether a node founds a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bootstrap {
    /// It joins one.
    No,
    /// If no seed knows of one.
    IfNone,
    /// Without asking.
    Force,
}

/// What the cluster's thread needs to begin.
#[derive(Clone)]
pub struct CoreSettings {
    /// This node's name, unlike any other member's.
    pub name: CompactString,
    /// Where raft keeps its log, and the node who it is.
    pub directory: PathBuf,
    /// Gossip listens here, TCP and UDP.
    pub gossip: SocketAddr,
    /// Where the others are told that it does.
    pub gossip_advertise: Option<SocketAddr>,
    /// Links are taken here (UDP).
    pub links: SocketAddr,
    /// Where the others are told to dial.
    pub links_advertise: Option<SocketAddr>,
    /// `HOST:GOSSIP-PORT` of others.
    pub seeds: Vec<String>,
    /// Whether it founds.
    pub bootstrap: Bootstrap,
    /// Of the cluster; the first one is shown, all are accepted.
    pub secrets: Vec<String>,
    /// Of a cluster that it founds.
    pub timeouts: Timeouts,
}

impl fmt::Debug for CoreSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // not the secrets
        f.debug_struct("CoreSettings")
            .field("name", &self.name)
            .field("directory", &self.directory)
            .field("gossip", &self.gossip)
            .field("links", &self.links)
            .field("seeds", &self.seeds)
            .field("bootstrap", &self.bootstrap)
            .finish_non_exhaustive()
    }
}

/// All rows of this node at one moment.
#[derive(Clone, Debug, Default)]
pub struct OwnRows {
    /// Persistent sessions that it holds, with their users and expiry intervals (s).
    pub sessions: Vec<(CompactString, Option<CompactString>, u32)>,
    /// Routes and wills.
    pub deltas: Vec<Delta>,
}

/// What the broker is told; on the cluster's thread, so it must not wait.
#[derive(Debug)]
#[non_exhaustive]
pub enum CoreEvent {
    /// The tables changed.
    Applied(Applied),
    /// The tables may be trusted until then (ns of `CLOCK_BOOTTIME`).
    Lease(u64),
    /// A start of this node begins, and its rows are said.
    Begun {
        /// Which.
        boot: Boot,
        /// Sessions that its store may have and that a claim elsewhere has ended, with that claim.
        ended: Vec<(CompactString, u64)>,
    },
    /// All of its rows are in the tables.
    Said(Boot),
    /// What was pushed up to this ticket is in the tables of every member that may trust its own, or was superseded.
    Settled(u64),
    /// This node is none of the cluster any more, or never will be; why.
    Out(String),
}

/// The cluster's thread cannot begin.
#[derive(Debug)]
pub struct CoreError(String);

impl fmt::Display for CoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for CoreError {}

/// A member, as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its row.
    pub row: NodeRow,
    /// It has a vote in raft.
    pub votes: bool,
    /// Where it gossips, while it is seen.
    pub gossip: Option<SocketAddr>,
    /// Where its links are, while it is seen.
    pub links: Option<SocketAddr>,
    /// This node has a link to it.
    pub is_linked: bool,
}

/// The cluster, as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoreStatus {
    /// This node.
    pub node: NodeId,
    /// Its cluster, once there is one.
    pub cluster: Option<NonZeroU64>,
    /// Who leads.
    pub leader: Option<NodeId>,
    /// All members.
    pub members: Vec<MemberStatus>,
    /// The last entry that was applied here.
    pub applied: u64,
    /// The lease (ns of `CLOCK_BOOTTIME`).
    pub lease_until_ns: Option<u64>,
}

impl CoreStatus {
    /// The tables may be trusted now; reads the clock.
    #[must_use]
    pub fn is_current(&self) -> bool {
        let now_ns = boottime_ns();
        self.lease_until_ns
            .is_some_and(|until_ns| until_ns > now_ns)
    }
}

type OnEvent = Box<dyn FnMut(CoreEvent) + Send>;
type Provide = Box<dyn FnMut() -> OwnRows + Send>;

/// A node that gossip has shown.
#[derive(Clone, Debug)]
struct Seen {
    name: CompactString,
    card: Card,
    gossip: SocketAddr,
    is_alive: bool,
}

struct Shared {
    settings: CoreSettings,
    me: NodeId,
    raft: RaftNode,
    peers: Arc<Peers>,
    greeting: Greeting,
    heard: Heard,
    seen: Mutex<BTreeMap<NodeId, Seen>>,
    lease: Mutex<Lease>,
    on_event: Arc<Mutex<OnEvent>>,
    carrier: Arc<dyn Carrier>,
    /// Raft has applied the entries up to this index,
    applied: watch::Receiver<u64>,
    /// and all shards those up to this one.
    shards_applied: watch::Sender<u64>,
}

fn boottime_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Deltas, with the ticket of the last of them.
type Pushed = (u64, Vec<Delta>);

/// Puts the broker's questions to the cluster, from any thread.
#[derive(Clone)]
pub struct Proposer {
    pushed: mpsc::UnboundedSender<Pushed>,
    /// Deltas so far.
    tickets: Arc<Mutex<u64>>,
    shared: Arc<Shared>,
    runtime: Handle,
}

impl fmt::Debug for Proposer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proposer").finish_non_exhaustive()
    }
}

impl Proposer {
    /// Rows of this node changed: they are said in this order. The ticket of the last of them, see
    /// [`CoreEvent::Settled`].
    pub fn push(&self, deltas: Vec<Delta>) -> u64 {
        // tickets are in the order of what is sent
        let mut tickets = lock(&self.tickets);
        *tickets += deltas.len() as u64;
        // nobody listens once it stops
        let _ = self.pushed.send((*tickets, deltas));
        *tickets
    }

    /// All shards have applied the entries up to an index.
    pub fn applied(&self, index: u64) {
        self.shared.shards_applied.send_if_modified(|applied| {
            let is_later = index > *applied;
            *applied = index.max(*applied);
            is_later
        });
    }

    /// Proposes an entry, on the runtime that this is called on.
    ///
    /// # Errors
    /// When it is not agreed on within `limit`: it still may be.
    pub async fn propose(&self, entry: &Entry, limit: Duration) -> Result<Agreed, RaftFailure> {
        self.shared.raft.propose(entry, limit).await
    }

    /// This node.
    #[must_use]
    pub fn me(&self) -> NodeId {
        self.shared.me
    }

    /// Whom a client id belongs to, and up to which entry that is known.
    #[must_use]
    pub fn client(&self, client_id: &str) -> (Option<ClientRow>, u64) {
        let look = |tables: &Machine| (tables.client(client_id).cloned(), tables.applied());
        self.shared.raft.look(look)
    }

    /// Waits until this node has applied an entry. False: it never will.
    pub async fn applied_here(&self, index: u64) -> bool {
        let mut applied = self.shared.applied.clone();
        applied.wait_for(|applied| *applied >= index).await.is_ok()
    }

    /// Clients that are connected to any node.
    #[must_use]
    pub fn clients_connected(&self) -> usize {
        self.shared.raft.look(Machine::clients_connected)
    }

    /// Runs something on the cluster's thread, which ends with it. It must not wait for anything but futures.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        drop(self.runtime.spawn(task));
    }

    /// The cluster, as this node sees it now.
    #[must_use]
    pub fn status(&self) -> CoreStatus {
        self.shared.status()
    }
}

/// The cluster's thread of a node.
#[derive(Debug)]
pub struct Core {
    proposer: Proposer,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Core {
    /// Begins; the sockets are bound and raft has read its log when it returns. `rows` is asked for all rows of this node
    /// at the beginning of each of its starts, on the cluster's thread; `carrier` has what the links carry beside raft.
    ///
    /// # Errors
    /// When an address or the directory cannot be used.
    pub fn start(
        settings: CoreSettings,
        rows: impl FnMut() -> OwnRows + Send + 'static,
        on_event: impl FnMut(CoreEvent) + Send + 'static,
        carrier: Arc<dyn Carrier>,
    ) -> Result<Self, CoreError> {
        let (begun, beginning) = std_mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .max_blocking_threads(4)
                .build();
            match runtime {
                Ok(runtime) => {
                    let (rows, on_event) = (Box::new(rows), Box::new(on_event));
                    let running = run(settings, rows, on_event, carrier, begun, stopped);
                    runtime.block_on(running);
                    // what waits for a disk or a name is not waited for
                    runtime.shutdown_background();
                }
                Err(error) => {
                    let _ = begun.send(Err(CoreError(format!(
                        "the cluster's thread cannot begin: {error}"
                    ))));
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("cluster".to_owned())
            .spawn(run)
            .map_err(|error| CoreError(format!("no thread for the cluster: {error}")))?;
        match beginning.recv() {
            Ok(Ok(proposer)) => Ok(Self {
                proposer,
                stop,
                thread,
            }),
            Ok(Err(error)) => {
                // with it goes what it has opened
                let _ = thread.join();
                Err(error)
            }
            Err(_) => Err(CoreError(
                "the cluster's thread ended at its start".to_owned(),
            )),
        }
    }

    /// Puts questions to it.
    #[must_use]
    pub fn proposer(&self) -> Proposer {
        self.proposer.clone()
    }

    /// Tells the others that this start is over, and ends.
    pub fn stop(self) {
        // it has ended already, or ends now
        let _ = self.stop.send(());
        if let Err(panic) = self.thread.join() {
            std::panic::resume_unwind(panic);
        }
    }
}

/// What a start has bound and opened.
struct Opened {
    shared: Arc<Shared>,
    endpoint: Arc<Endpoint>,
    gossip: Gossip,
    events: mpsc::Receiver<Event>,
    birth: Birth,
    died: watch::Receiver<Boot>,
}

async fn open(
    settings: CoreSettings,
    on_event: OnEvent,
    carrier: Arc<dyn Carrier>,
) -> Result<Opened, CoreError> {
    let failed = |error: &dyn fmt::Display| CoreError(error.to_string());
    let birth = Birth::begin(&settings.directory).map_err(|error| failed(&error))?;
    let me = birth.node;
    let identity = Identity::of_secrets(&settings.secrets).map_err(|error| failed(&error))?;
    let socket = UdpSocket::bind(settings.links).map_err(|error| {
        failed(&format_args!(
            "links between nodes cannot be taken on {}: {error}",
            settings.links
        ))
    })?;
    let endpoint = Endpoint::new(socket, &identity).map_err(|error| failed(&error))?;
    let peers = Arc::new(Peers::default());
    let on_event = Arc::new(Mutex::new(on_event));
    let (set_applied, applied) = watch::channel(0);
    let (set_died, died) = watch::channel(Boot(0));
    let tell = on_event.clone();
    let on_applied = move |applied: Applied| {
        for output in &applied.outputs {
            if let Output::Died { boot } = output {
                set_died.send_replace(*boot);
            }
        }
        let index = applied.index;
        lock(&tell)(CoreEvent::Applied(applied));
        set_applied.send_replace(index);
    };
    log::info!(directory:% = settings.directory.display(); "setup raft");
    let raft = RaftNode::start(me, &settings.directory, peers.clone(), Box::new(on_applied))
        .await
        .map_err(|error| failed(&error))?;
    let cluster = raft.look(|tables| tables.cluster()).or(birth.cluster);
    let bound = endpoint.address().map_err(|error| failed(&error))?;
    let card = Card {
        cluster,
        node: me,
        boot: birth.boot,
        links: links_place(&settings, bound),
        leaves: false,
    };
    let (gossip, events) = Gossip::start(GossipSettings {
        name: settings.name.clone(),
        bind: settings.gossip,
        advertise: settings.gossip_advertise,
        card,
        identity,
        secrets: settings.secrets.clone(),
        on_stranger: Arc::new(|from, error| {
            log::warn!(address:% = from, error:% = error; "gossip refused a caller: it does not prove that it knows the cluster's secret");
        }),
    })
    .await
    .map_err(|error| failed(&error))?;
    log::info!(node = settings.name.as_str(), gossip:% = gossip.address(), links:% = card.links; "local member");
    let greeting = Greeting::new(Hello {
        node: me,
        name: settings.name.clone(),
        cluster,
    });
    let settings_lease = settings.timeouts.lease;
    let shared = Arc::new(Shared {
        settings,
        me,
        raft,
        peers,
        greeting,
        heard: Heard::default(),
        seen: Mutex::default(),
        lease: Mutex::new(Lease::new(settings_lease)),
        on_event,
        carrier,
        applied,
        shards_applied: watch::Sender::new(0),
    });
    Ok(Opened {
        shared,
        endpoint: Arc::new(endpoint),
        gossip,
        events,
        birth,
        died,
    })
}

/// Where others are told to dial: an address that names no interface is of no use to them.
fn links_place(settings: &CoreSettings, bound: SocketAddr) -> SocketAddr {
    match settings.links_advertise {
        Some(address) => address,
        None if bound.ip().is_unspecified() => {
            let gossip = settings.gossip_advertise.unwrap_or(settings.gossip);
            SocketAddr::new(gossip.ip(), bound.port())
        }
        None => bound,
    }
}

async fn run(
    settings: CoreSettings,
    provide: Provide,
    on_event: OnEvent,
    carrier: Arc<dyn Carrier>,
    begun: std_mpsc::Sender<Result<Proposer, CoreError>>,
    stopped: oneshot::Receiver<()>,
) {
    let opened = match open(settings, on_event, carrier).await {
        Ok(opened) => opened,
        Err(error) => {
            let _ = begun.send(Err(error));
            return;
        }
    };
    let Opened {
        shared,
        endpoint,
        gossip,
        events,
        birth,
        died,
    } = opened;
    let (pushed, deltas) = mpsc::unbounded_channel();
    let proposer = Proposer {
        pushed,
        tickets: Arc::default(),
        shared: shared.clone(),
        runtime: Handle::current(),
    };
    log::info!("cluster node created");
    if begun.send(Ok(proposer)).is_err() {
        return;
    }
    let birth = Arc::new(Mutex::new(birth));
    let gossip = Arc::new(gossip);
    let (settling, to_settle) = watch::channel(None);
    let mut tasks = JoinSet::new();
    tasks.spawn(links::accept(
        endpoint.clone(),
        shared.greeting.clone(),
        Answering {
            raft: shared.raft.clone(),
            applied: shared.shards_applied.subscribe(),
            heard: shared.heard.clone(),
            carrier: shared.carrier.clone(),
        },
    ));
    tasks.spawn(shared.clone().hear(events, endpoint.clone()));
    tasks.spawn(shared.clone().tend(gossip.clone()));
    tasks.spawn(shared.clone().tell_cluster(gossip.clone(), birth.clone()));
    tasks.spawn(shared.clone().watch_quorum());
    tasks.spawn(shared.clone().keep_lease());
    tasks.spawn(shared.clone().follow_shards());
    tasks.spawn(shared.clone().lead());
    tasks.spawn(shared.clone().settle(to_settle));
    let rows = Saying {
        shared: shared.clone(),
        birth: birth.clone(),
        died,
        deltas,
        taken: 0,
        answers: Vec::new(),
        settling,
        provide: Mutex::new(provide),
        gossip: gossip.clone(),
    };
    let saying = tasks.spawn(rows.run());
    // whoever dropped it has no more use for this either
    let _ = stopped.await;
    // others need not find out by themselves; and nothing begins again because of it
    saying.abort();
    let over = Entry::NodeDead {
        node: shared.me,
        boot: lock(&birth).boot,
    };
    let is_member = shared.is_member();
    if is_member && shared.raft.leader().is_some() {
        let _ = shared.raft.propose(&over, GOODBYE_MAX).await;
    }
    tasks.shutdown().await;
    shared.raft.stop().await;
    if let Some(gossip) = Arc::into_inner(gossip) {
        gossip.leave().await;
    }
    shared.peers.clear();
    let _ = timeout(GOODBYE_MAX, endpoint.close()).await;
}

impl Shared {
    fn tell(&self, event: CoreEvent) {
        lock(&self.on_event)(event);
    }

    fn is_member(&self) -> bool {
        self.raft.look(|tables| tables.node(self.me).is_some())
    }

    /// Something that the tables do not have from the beginning; `None`: raft has ended.
    async fn await_tables<T>(&self, look: impl Fn(&Machine) -> Option<T>) -> Option<T> {
        let mut applied = self.applied.clone();
        loop {
            if let Some(found) = self.raft.look(&look) {
                return Some(found);
            }
            applied.changed().await.ok()?;
        }
    }

    fn status(&self) -> CoreStatus {
        let (voters, _) = self.raft.members();
        let (cluster, applied, rows) = self.raft.look(|tables| {
            let rows: Vec<NodeRow> = tables.nodes().collect();
            (tables.cluster(), tables.applied(), rows)
        });
        let seen = lock(&self.seen);
        let members = rows.into_iter().map(|row| {
            let alive = seen.get(&row.node).filter(|seen| seen.is_alive);
            let settings = Some(&self.settings).filter(|_| row.node == self.me);
            let own_gossip = settings.map(|of| of.gossip_advertise.unwrap_or(of.gossip));
            let own_links = settings.map(|of| of.links_advertise.unwrap_or(of.links));
            MemberStatus {
                votes: voters.contains(&row.node),
                gossip: own_gossip.or_else(|| alive.map(|seen| seen.gossip)),
                links: own_links.or_else(|| alive.map(|seen| seen.card.links)),
                is_linked: self.peers.link(row.node).is_some(),
                row,
            }
        });
        CoreStatus {
            node: self.me,
            cluster,
            leader: self.raft.leader(),
            members: members.collect(),
            applied,
            lease_until_ns: lock(&self.lease).until_ns(),
        }
    }

    /// What gossip brings: whoever is there has a link.
    async fn hear(self: Arc<Self>, mut events: mpsc::Receiver<Event>, endpoint: Arc<Endpoint>) {
        let mut dialling = Dialling::new(Dialler {
            endpoint,
            greeting: self.greeting.clone(),
            peers: self.peers.clone(),
            heard: self.heard.clone(),
            carrier: self.carrier.clone(),
        });
        while let Some(event) = events.recv().await {
            match event {
                Event::Seen {
                    name,
                    address,
                    card,
                } => {
                    let seen = Seen {
                        name: name.clone(),
                        card,
                        gossip: address,
                        is_alive: true,
                    };
                    let former = self.replaced(&name, card.node);
                    for node in former {
                        dialling.forget(node);
                    }
                    let before = lock(&self.seen).insert(card.node, seen);
                    if !before.is_some_and(|before| before.is_alive) {
                        log::info!(node = name.as_str(), address:% = address; "notify join");
                    }
                    self.heard.set(card.node, Instant::now());
                    dialling.dial(card.node, card.links);
                }
                // its link goes on by itself: it may be that only gossip does not reach it
                Event::Gone { name, card } => {
                    log::info!(node = name.as_str(), on_purpose = card.leaves; "notify leave");
                    if let Some(seen) = lock(&self.seen).get_mut(&card.node) {
                        seen.is_alive = false;
                    }
                    if card.leaves {
                        dialling.forget(card.node);
                    }
                }
                Event::Namesake { name, known, other } => {
                    log::warn!(node = name.as_str(), address:% = known, other:% = other; "two nodes have one name");
                    // a member that is back at another address is its own namesake for a while
                    if name == self.settings.name && self.is_new() {
                        self.tell(CoreEvent::Out(format!(
                            "another node is named {name}, at {other}; give this one another --node-name"
                        )));
                    }
                }
                Event::Refused {
                    name,
                    address,
                    cause,
                } => {
                    log::warn!(node = name.as_str(), address:% = address, cause = cause; "gossip refused a node");
                }
            }
        }
    }

    /// Nodes that had this name before `node` has it: a raft directory was lost.
    fn replaced(&self, name: &CompactString, node: NodeId) -> Vec<NodeId> {
        let mut seen = lock(&self.seen);
        let former = seen.iter_mut();
        former
            .filter(|(id, seen)| **id != node && seen.name == *name && seen.is_alive)
            .map(|(id, seen)| {
                seen.is_alive = false;
                *id
            })
            .collect()
    }

    /// Its raft directory belongs to no cluster yet.
    fn is_new(&self) -> bool {
        let (voters, learners) = self.raft.members();
        voters.is_empty() && learners.is_empty()
    }

    async fn tend(self: Arc<Self>, gossip: Arc<Gossip>) {
        let mut is_told = false;
        loop {
            let mut wanted = self.settings.seeds.clone();
            for seen in lock(&self.seen).values() {
                if !seen.is_alive && !seen.card.leaves {
                    wanted.push(seen.gossip.to_string());
                }
            }
            let not_joined = gossip.tend(wanted).await;
            if !is_told {
                for (place, cause) in &not_joined {
                    log::warn!(address = place.as_str(), cause = cause.as_str(); "a node cannot be joined, and is tried on");
                }
            }
            is_told = !not_joined.is_empty();
            sleep(TEND_PERIOD).await;
        }
    }

    /// Once the cluster's name is known here, the others may know it too.
    async fn tell_cluster(self: Arc<Self>, gossip: Arc<Gossip>, birth: Arc<Mutex<Birth>>) {
        let Some(cluster) = self.await_tables(Machine::cluster).await else {
            return;
        };
        self.greeting.set_cluster(cluster);
        if let Err(error) = aside(move || lock(&birth).set_cluster(cluster)).await {
            log::error!(error:% = error; "the raft directory cannot be written: the next start does not know its cluster");
        }
        gossip
            .change_card(|card| card.cluster = Some(cluster))
            .await;
    }

    async fn watch_quorum(self: Arc<Self>) {
        let mut led_by = None;
        loop {
            self.raft.check_quorum(Instant::now()).await;
            let leader = self.raft.leader();
            if leader != led_by
                && let Some(leader) = leader
            {
                let name = self.name_of(leader);
                log::info!(leader = name.as_str(); "found raft leader");
            }
            led_by = leader;
            sleep(QUORUM_PERIOD).await;
        }
    }

    fn name_of(&self, node: NodeId) -> CompactString {
        match self.raft.look(|tables| tables.node(node)) {
            Some(row) => row.name,
            None if node == self.me => self.settings.name.clone(),
            None => lock(&self.seen)
                .get(&node)
                .map(|seen| seen.name.clone())
                .unwrap_or_default(),
        }
    }

    async fn follow_shards(self: Arc<Self>) {
        let mut applied = self.shards_applied.subscribe();
        while applied.changed().await.is_ok() {
            let index = *applied.borrow_and_update();
            self.with_lease(|lease| lease.handle_applied(index));
        }
    }

    fn with_lease(&self, change: impl FnOnce(&mut Lease)) {
        let changed = {
            let mut lease = lock(&self.lease);
            let before = lease.until_ns();
            change(&mut lease);
            lease.until_ns().filter(|after| Some(*after) != before)
        };
        if let Some(until_ns) = changed {
            self.tell(CoreEvent::Lease(until_ns));
        }
    }

    async fn keep_lease(self: Arc<Self>) {
        // the cluster's own, whatever this node's settings say
        let Some(timeouts) = self.await_tables(Machine::timeouts).await else {
            return;
        };
        *lock(&self.lease) = Lease::new(timeouts.lease);
        let index = *self.shards_applied.borrow();
        self.with_lease(|lease| lease.handle_applied(index));
        let mut asking = JoinSet::new();
        loop {
            let now_ns = boottime_ns();
            let (question, next_ns) = {
                let mut lease = lock(&self.lease);
                (lease.poll_question(now_ns), lease.next_question_ns())
            };
            if let Some(number) = question {
                let shared = self.clone();
                asking.spawn(async move {
                    // one that takes longer is worth nothing
                    if let Ok(index) = shared.raft.confirmed_index(TRY_MAX).await {
                        shared.with_lease(|lease| lease.handle_answer(number, index));
                    }
                });
            }
            while asking.try_join_next().is_some() {}
            sleep(Duration::from_nanos(next_ns.saturating_sub(now_ns))).await;
        }
    }

    /// Tells the broker what every member knows that may trust its tables: it says so itself, or could not ask for a
    /// lease since.
    async fn settle(self: Arc<Self>, mut to_settle: watch::Receiver<Option<ToSettle>>) {
        while to_settle.changed().await.is_ok() {
            // whoever has this has what was before it
            let latest = *to_settle.borrow_and_update();
            let Some(ToSettle {
                index,
                ticket,
                agreed_at,
            }) = latest
            else {
                continue;
            };
            // whoever became a member before it is to be asked too
            let mut applied = self.applied.clone();
            if applied.wait_for(|applied| *applied >= index).await.is_err() {
                return;
            }
            let (lease, members) = self.raft.look(|tables| {
                let members = tables.nodes().filter(|row| row.is_live);
                let members: Vec<NodeId> = members.map(|row| row.node).collect();
                (tables.timeouts().map(|timeouts| timeouts.lease), members)
            });
            let lease = lease.unwrap_or(self.settings.timeouts.lease);
            let others = members.into_iter().filter(|node| *node != self.me);
            let peers = &self.peers;
            let asking = others.map(|node| async move {
                while !links::ask_applied(peers, node, index).await {
                    sleep(RETRY).await;
                }
            });
            let until = agreed_at + lease.mul_f64(LEASES_TO_SETTLE);
            // by then whoever did not answer does not trust its tables any more
            let _ = timeout_at(until.into(), join_all(asking)).await;
            let mut own = self.shards_applied.subscribe();
            if own.wait_for(|applied| *applied >= index).await.is_err() {
                return;
            }
            self.tell(CoreEvent::Settled(ticket));
        }
    }

    /// What a leader does beside raft's own: one thing at a time.
    async fn lead(self: Arc<Self>) {
        let mut leads_since: Option<Instant> = None;
        loop {
            if self.raft.leader() == Some(self.me) {
                let since = *leads_since.get_or_insert_with(Instant::now);
                if let Err(cause) = self.lead_once(since).await {
                    log::debug!(cause:% = cause; "a change of the members is tried again");
                }
            } else {
                leads_since = None;
            }
            sleep(LEAD_PERIOD).await;
        }
    }

    async fn lead_once(&self, since: Instant) -> Result<(), RaftFailure> {
        // what a change stopped halfway, by whoever led then, would need two majorities for ever
        if let Some(voters) = self.raft.half_changed() {
            return self.raft.set_voters(&voters, true).await;
        }
        // tables that are not up to date show members as gone
        let index = self.raft.confirmed_index(TRY_MAX).await?;
        if *self.applied.borrow() < index {
            return Ok(());
        }
        let (rows, timeouts) = self.raft.look(|tables| {
            let rows: Vec<NodeRow> = tables.nodes().collect();
            (rows, tables.timeouts())
        });
        let timeouts = timeouts.unwrap_or(self.settings.timeouts);
        let (voters, learners) = self.raft.members();
        let is_row = |node: &NodeId| rows.iter().any(|row| row.node == *node);
        for row in &rows {
            let is_known = voters.contains(&row.node) || learners.contains(&row.node);
            if !is_known && self.peers.link(row.node).is_some() {
                log::info!(node = row.name.as_str(); "raft joining");
                return self.raft.add_learner(row.node).await;
            }
        }
        let gone: Vec<NodeId> = learners
            .iter()
            .copied()
            .filter(|node| !is_row(node))
            .collect();
        if !gone.is_empty() {
            return self.raft.remove_learners(&gone).await;
        }
        // the founder votes before it has a row
        let staying: Vec<NodeId> = voters
            .iter()
            .copied()
            .filter(|node| is_row(node) || *node == self.me)
            .collect();
        if staying.len() < voters.len() {
            return self.raft.set_voters(&staying, false).await;
        }
        let now = Instant::now();
        for row in &rows {
            if let Some(boot) = row.boot
                && !row.is_dead
                && row.node != self.me
                && self.silence(row.node, since, now) >= timeouts.dead_node
            {
                log::warn!(node = row.name.as_str(); "a node is dead: nothing was heard of it");
                let dead = Entry::NodeDead {
                    node: row.node,
                    boot,
                };
                return self.raft.propose_as_leader(&dead, TRY_MAX).await.map(drop);
            }
        }
        let (matched, last) = self.raft.progress();
        let members: Vec<Member> = rows
            .iter()
            .map(|row| Member {
                node: row.node,
                votes: voters.contains(&row.node),
                // one that has said nothing yet is not dead
                is_live: row.node == self.me
                    || self.silence(row.node, since, now) < timeouts.dead_node,
                has_caught_up: row.node == self.me
                    || self.peers.link(row.node).is_some()
                        && matched
                            .get(&row.node)
                            .is_some_and(|matched| matched + BEHIND_MAX >= last),
            })
            .collect();
        if let Some(voters) = voters::next_voters(self.me, &members) {
            let names: Vec<_> = voters.iter().map(|node| self.name_of(*node)).collect();
            log::info!(voters = names.join(", ").as_str(); "raft joined");
            let voters: Vec<NodeId> = voters.into_iter().collect();
            return self.raft.set_voters(&voters, true).await;
        }
        Ok(())
    }

    /// For how long nothing was heard of a node, neither on its link nor by gossip, since this one leads.
    fn silence(&self, node: NodeId, since: Instant, now: Instant) -> Duration {
        let is_alive = lock(&self.seen)
            .get(&node)
            .is_some_and(|seen| seen.is_alive);
        if is_alive || self.peers.link(node).is_some() {
            return Duration::ZERO;
        }
        let last = self.heard.at(node).map_or(since, |at| at.max(since));
        now.saturating_duration_since(last)
    }
}

/// What the cluster has agreed on and not every member may know yet.
#[derive(Clone, Copy, Debug)]
struct ToSettle {
    index: u64,
    /// Of the last delta that the entries up to it hold.
    ticket: u64,
    agreed_at: Instant,
}

/// Says this node's rows, as long as it is a member.
struct Saying {
    shared: Arc<Shared>,
    birth: Arc<Mutex<Birth>>,
    died: watch::Receiver<Boot>,
    deltas: mpsc::UnboundedReceiver<Pushed>,
    /// The last ticket that came.
    taken: u64,
    /// Answers to the tables that the last start may not have said.
    answers: Vec<Delta>,
    settling: watch::Sender<Option<ToSettle>>,
    /// Locked by this alone: what borrows this waits.
    provide: Mutex<Provide>,
    gossip: Arc<Gossip>,
}

/// Why a start of this node is over.
enum Over {
    /// The cluster thinks it dead.
    Dead,
    /// It is no member any more.
    Removed,
    /// Nobody is to say rows any more; why, unless it was asked to.
    Stopped(Option<String>),
}

impl Saying {
    async fn run(mut self) {
        if let Err(cause) = self.become_member().await {
            return self.shared.tell(CoreEvent::Out(cause));
        }
        loop {
            match self.say().await {
                Over::Stopped(None) => return,
                Over::Stopped(Some(cause)) => return self.shared.tell(CoreEvent::Out(cause)),
                Over::Removed => {
                    return self.shared.tell(CoreEvent::Out(
                        "this node was removed from the cluster".to_owned(),
                    ));
                }
                Over::Dead => {
                    log::warn!("the cluster thought this node dead: it begins another start");
                    let birth = self.birth.clone();
                    if let Err(error) = aside(move || lock(&birth).begin_again()).await {
                        return self.shared.tell(CoreEvent::Out(format!(
                            "the raft directory cannot be written: {error}"
                        )));
                    }
                    let boot = self.boot();
                    self.gossip.change_card(|card| card.boot = boot).await;
                }
            }
        }
    }

    fn boot(&self) -> Boot {
        lock(&self.birth).boot
    }

    /// Founds, joins, or is a member already.
    async fn become_member(&self) -> Result<(), String> {
        let shared = &self.shared;
        let mut is_founder = false;
        if shared.is_new() {
            let founds = match shared.settings.bootstrap {
                Bootstrap::Force => true,
                Bootstrap::IfNone => timeout(ASK_SEEDS, self.find_cluster()).await.is_err(),
                Bootstrap::No => false,
            };
            if founds && !shared.settings.timeouts.are_possible() {
                return Err(
                    "dead-node-timeout is shorter than three leases; raise it, or shorten the lease"
                        .to_owned(),
                );
            }
            if founds {
                shared
                    .raft
                    .found()
                    .await
                    .map_err(|error| error.to_string())?;
            }
            is_founder = founds;
        }
        let (voters, learners) = shared.raft.members();
        if is_founder || (voters == [shared.me] && learners.is_empty()) {
            // again after a crash in between: then it is refused, or was not there
            self.found().await?;
        }
        while !shared.is_member() {
            match self.ask_to_join().await {
                Ok(Agreed { index, answer }) => match answer {
                    Answer::Refused(Refusal::NameTaken(_)) => {
                        let name = &shared.settings.name;
                        return Err(format!(
                            "another member is named {name}; give this node another --node-name, or remove that one first"
                        ));
                    }
                    _ => {
                        // the entry is there; it comes with raft
                        let mut applied = shared.applied.clone();
                        let reached = applied.wait_for(|applied| *applied >= index);
                        let _ = timeout(TRY_MAX, reached).await;
                    }
                },
                Err(RaftFailure::Ended(cause)) => return Err(cause),
                Err(_) => sleep(RETRY).await,
            }
        }
        log::info!(node = shared.settings.name.as_str(); "this node is a member");
        Ok(())
    }

    /// Waits until somebody of a cluster is seen.
    async fn find_cluster(&self) {
        let is_of_cluster = |seen: &Seen| seen.is_alive && seen.card.cluster.is_some();
        while !lock(&self.shared.seen).values().any(is_of_cluster) {
            sleep(RETRY).await;
        }
    }

    /// As the only voter.
    async fn found(&self) -> Result<(), String> {
        let shared = &self.shared;
        let cluster = birth::draw().map_err(|error| error.to_string())?;
        let founded = Entry::Founded {
            cluster,
            timeouts: shared.settings.timeouts,
        };
        loop {
            match shared.raft.propose(&founded, TRY_MAX).await {
                Ok(agreed) => {
                    if agreed.answer == Answer::Done {
                        log::info!(cluster:% = format_args!("{cluster:016x}"); "cluster founded");
                    }
                    return Ok(());
                }
                Err(RaftFailure::Ended(cause)) => return Err(cause),
                Err(_) => sleep(RETRY).await,
            }
        }
    }

    async fn ask_to_join(&self) -> Result<Agreed, RaftFailure> {
        let shared = &self.shared;
        let name = &shared.settings.name;
        if shared.raft.leader().is_some() {
            let joined = Entry::Joined {
                node: shared.me,
                name: name.clone(),
            };
            return shared.raft.propose(&joined, TRY_MAX).await;
        }
        let of_cluster: Vec<NodeId> = lock(&shared.seen)
            .iter()
            .filter(|(_, seen)| seen.is_alive && seen.card.cluster.is_some())
            .map(|(node, _)| *node)
            .collect();
        let mut answer = Err(RaftFailure::NoLeader);
        for member in of_cluster {
            answer = links::ask_to_join(&shared.peers, member, name).await;
            if answer.is_ok() {
                break;
            }
        }
        answer
    }

    /// All rows, and then what changes, until the start is over.
    async fn say(&mut self) -> Over {
        let boot = self.boot();
        if let Err(over) = self.catch_up().await {
            return over;
        }
        let me = self.shared.me;
        let ended = self.shared.raft.look(|tables| tables.ended_of(me));
        self.shared.tell(CoreEvent::Begun { boot, ended });
        // what waits is in all the rows already, but for what answers the tables
        let mut waiting = std::mem::take(&mut self.answers);
        while let Ok((last, deltas)) = self.deltas.try_recv() {
            self.taken = last;
            waiting.extend(deltas.into_iter().filter(is_answer));
        }
        let own = lock(&self.provide)();
        let mut index = 0;
        for rows in series(own) {
            match self.propose(rows).await {
                Ok(at) => index = at,
                Err(over) => {
                    self.answers = waiting;
                    return over;
                }
            }
        }
        self.agreed(index, self.taken);
        // who trusts its tables from here on has its own rows in them
        let mut applied = self.shared.shards_applied.subscribe();
        if applied.wait_for(|applied| *applied >= index).await.is_err() {
            return Over::Stopped(None);
        }
        self.shared.tell(CoreEvent::Said(boot));
        let mut first = 1;
        loop {
            if waiting.is_empty() {
                match self.next_deltas().await {
                    Ok(some) => waiting = some,
                    Err(over) => return over,
                }
            }
            while waiting.len() < DELTAS_MAX
                && let Ok((last, more)) = self.deltas.try_recv()
            {
                self.taken = last;
                waiting.extend(more);
            }
            let count = fitting(&waiting);
            let deltas: Vec<Delta> = waiting.drain(..count).collect();
            let answers = || {
                deltas
                    .iter()
                    .chain(&waiting)
                    .filter(|delta| is_answer(delta))
            };
            let kept: Vec<Delta> = answers().cloned().collect();
            let rows = Rows::Deltas { first, deltas };
            match self.propose(rows).await {
                Ok(index) => self.agreed(index, self.taken - waiting.len() as u64),
                Err(over) => {
                    // the next start repeats them; what is known already does nothing
                    self.answers = kept;
                    return over;
                }
            }
            first += count as u64;
        }
    }

    /// Before a node says what it has, it knows what became of that meanwhile.
    async fn catch_up(&self) -> Result<(), Over> {
        let index = loop {
            match self.shared.raft.confirmed_index(TRY_MAX).await {
                Ok(index) => break index,
                Err(RaftFailure::Ended(cause)) => return Err(Over::Stopped(Some(cause))),
                Err(_) => sleep(RETRY).await,
            }
        };
        let mut applied = self.shared.shards_applied.subscribe();
        let reached = applied.wait_for(|applied| *applied >= index).await;
        reached.map(drop).map_err(|_| Over::Stopped(None))
    }

    fn agreed(&self, index: u64, ticket: u64) {
        self.settling.send_replace(Some(ToSettle {
            index,
            ticket,
            agreed_at: Instant::now(),
        }));
    }

    async fn next_deltas(&mut self) -> Result<Vec<Delta>, Over> {
        let boot = self.boot();
        loop {
            if *self.died.borrow_and_update() == boot {
                return Err(Over::Dead);
            }
            if !self.shared.is_member() {
                return Err(Over::Removed);
            }
            let mut applied = self.shared.applied.clone();
            applied.mark_unchanged();
            let received = {
                let next = pin!(self.deltas.recv());
                tokio::select! {
                    received = next => Some(received),
                    changed = self.died.changed() => changed.err().map(|_| None),
                    changed = applied.changed() => changed.err().map(|_| None),
                }
            };
            match received {
                Some(Some((last, deltas))) => {
                    self.taken = last;
                    if !deltas.is_empty() {
                        return Ok(deltas);
                    }
                }
                Some(None) => return Err(Over::Stopped(None)),
                None => {}
            }
        }
    }

    /// The index from which on they are in the tables.
    async fn propose(&self, rows: Rows) -> Result<u64, Over> {
        let shared = &self.shared;
        let entry = Entry::Rows {
            node: shared.me,
            boot: self.boot(),
            rows,
        };
        loop {
            match shared.raft.propose(&entry, TRY_MAX).await {
                Ok(Agreed { index, answer }) => match answer {
                    Answer::Refused(Refusal::NoMember) => return Err(Over::Removed),
                    Answer::Refused(refusal) => {
                        log::warn!(refusal:? = refusal; "the cluster does not take this node's rows");
                        return Err(Over::Dead);
                    }
                    Answer::Done | Answer::Claim(_) => return Ok(index),
                },
                Err(RaftFailure::Ended(cause)) => return Err(Over::Stopped(Some(cause))),
                Err(error) => {
                    log::warn!(cause:% = error; "this node's rows wait");
                    sleep(RETRY).await;
                }
            }
        }
    }
}

/// It answers something that the tables have told, and no row says it again.
const fn is_answer(delta: &Delta) -> bool {
    matches!(delta, Delta::Ended { .. } | Delta::WillSent { .. })
}

/// How many deltas fit into one entry; at least one.
fn fitting(deltas: &[Delta]) -> usize {
    let mut bytes = 0;
    let fits = |delta: &&Delta| {
        bytes += size(delta);
        bytes <= PART_BYTES_MAX
    };
    deltas
        .iter()
        .take(DELTAS_MAX)
        .take_while(fits)
        .count()
        .max(1)
}

/// About how many bytes a delta takes in an entry.
fn size(delta: &Delta) -> usize {
    const FIXED: usize = 24;
    FIXED
        + match delta {
            Delta::Route { filter, .. } => filter.len(),
            Delta::Connected {
                client_id, user, ..
            } => client_id.len() + user.as_ref().map_or(0, |user| user.len()),
            Delta::Will { client_id, will } => {
                client_id.len() + will.as_ref().map_or(0, |will| will.message.len())
            }
            Delta::Disconnected { client_id, .. }
            | Delta::Ended { client_id, .. }
            | Delta::WillSent { client_id, .. } => client_id.len(),
        }
}

/// All rows in parts that an entry can hold; at least one part.
fn series(own: OwnRows) -> Vec<Rows> {
    let OwnRows { sessions, deltas } = own;
    let mut parts: Vec<(Vec<_>, Vec<_>)> = vec![Default::default()];
    let mut bytes = 0;
    let mut room = |parts: &mut Vec<(Vec<_>, Vec<_>)>, more: usize| {
        bytes += more;
        if bytes > PART_BYTES_MAX {
            bytes = more;
            parts.push(Default::default());
        }
    };
    for session in sessions {
        let (client_id, user, _) = &session;
        let size = client_id.len() + user.as_ref().map_or(0, |user| user.len()) + 8;
        room(&mut parts, size);
        parts.last_mut().expect("there is one").0.push(session);
    }
    for delta in deltas {
        room(&mut parts, size(&delta));
        parts.last_mut().expect("there is one").1.push(delta);
    }
    let last = parts.len() - 1;
    parts
        .into_iter()
        .enumerate()
        .map(|(part, (sessions, deltas))| Rows::Series {
            part: part as u32,
            is_last: part == last,
            sessions,
            deltas,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(length: usize) -> Delta {
        Delta::Route {
            filter: "f".repeat(length).into(),
            want: None,
        }
    }

    #[test]
    fn a_series_has_one_part_at_least_and_none_that_is_too_large() {
        let empty = Rows::Series {
            part: 0,
            is_last: true,
            sessions: Vec::new(),
            deltas: Vec::new(),
        };
        assert_eq!(series(OwnRows::default()), [empty]);
        let own = OwnRows {
            sessions: vec![("c".into(), None, 1)],
            deltas: (0..100).map(|_| route(60_000)).collect(),
        };
        let parts = series(own);
        let mut counts = Vec::new();
        for (at, rows) in parts.iter().enumerate() {
            let Rows::Series {
                part,
                is_last,
                sessions,
                deltas,
            } = rows
            else {
                panic!("{rows:?}")
            };
            assert_eq!((*part as usize, *is_last), (at, at + 1 == parts.len()));
            assert_eq!(sessions.len(), usize::from(at == 0));
            assert!(deltas.iter().map(size).sum::<usize>() <= PART_BYTES_MAX);
            counts.push(deltas.len());
        }
        assert_eq!(counts, [17, 17, 17, 17, 17, 15]);
    }

    #[test]
    fn an_entry_takes_as_many_deltas_as_fit_and_one_at_least() {
        assert_eq!(fitting(&vec![route(10); 5000]), DELTAS_MAX);
        assert_eq!(fitting(&vec![route(60_000); 100]), 17);
        assert_eq!(fitting(&[route(2 << 20), route(1)]), 1);
    }
}
