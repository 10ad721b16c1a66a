// SPDX-License-Identifier: Apache-2.0
//! This node in its cluster: where its shards' lanes to the tables and to other nodes end.
//!
//! ```text
//!  shards ── lanes ──► cluster's thread: Exchange ──► Proposer (interest), streams (messages)
//!  shards ◄─ inboxes ─ cluster's thread: Exchange ◄── CoreEvent (tables), streams (messages)
//! ```

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::time::Duration;

use anyhow::Context;
use corqtt_cluster::{
    Answer, Boot, Bootstrap, Carried, Claim, Core, CoreEvent, CoreSettings, Delta, Entry, Exchange,
    Output, OwnClients, OwnRows, Proposer, Shards, Timeouts, Verdict, Way, Wish,
};
use corqtt_port::claims::{self, Lease, Said, Told};
use corqtt_port::lane::{self, Receiver, Sender};
use corqtt_port::routes::{Batch, Mark};
use corqtt_shards::ToShard;
use corqtt_topics::ShardId;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::polled;
use crate::random;
use crate::settings::{ClusterSettings, RaftBootstrap};

/// Nodes that a cluster may have beside this one.
pub(crate) const NODES_MAX: u8 = 15;
/// Between two tries of a claim.
const RETRY: Duration = Duration::from_millis(100);
/// The identity of nodes that were not given a secret; they link on loopback only.
const NO_SECRET: &str = "corqtt: no secret, on loopback only";

/// The ends of what shards send to the tables and to other nodes.
#[derive(Debug)]
pub(crate) struct Lanes {
    /// As shards number them behind themselves: the tables, then the nodes.
    pub(crate) senders: Vec<Sender<ToShard>>,
    receivers: Vec<Receiver<ToShard>>,
    /// Of what is asked and said of clients.
    pub(crate) claims: Sender<Said>,
    said: Receiver<Said>,
    /// How long the shards may trust the tables.
    pub(crate) lease: Arc<Lease>,
}

impl Lanes {
    /// Those of a node.
    ///
    /// # Errors
    /// When the process has no file descriptor left.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let lanes = (0..=NODES_MAX).map(|_| lane::polled());
        let lanes = lanes.collect::<Result<Vec<_>, _>>();
        let lanes = lanes.context("no file descriptor for the lanes to other nodes")?;
        let (senders, receivers) = lanes.into_iter().unzip();
        let (claims, said) =
            lane::polled().context("no file descriptor for the lane to the cluster")?;
        Ok(Self {
            senders,
            receivers,
            claims,
            said,
            lease: Arc::default(),
        })
    }
}

/// A node of a cluster.
#[derive(Debug)]
pub(crate) struct Cluster {
    core: Core,
    is_out: Arc<AtomicBool>,
}

type Owner = Box<dyn Fn(&str) -> usize + Send + Sync>;

/// What a node's cluster needs to know of the node.
pub(crate) struct Node<'a> {
    pub(crate) name: &'a str,
    pub(crate) inboxes: Vec<Sender<ToShard>>,
    /// Which shard a client id belongs to.
    pub(crate) owner: Owner,
    /// How long a client waits for its CONNACK.
    pub(crate) connect_timeout: Duration,
}

/// What runs on the cluster's thread for the shards.
struct Member {
    exchange: Arc<Exchange>,
    clients: Mutex<OwnClients>,
    lease: Arc<Lease>,
    inboxes: Vec<Sender<ToShard>>,
    /// Which shard a client id belongs to.
    owner: Owner,
    /// How long a claim may take.
    claim_max: Duration,
    /// Not there while the thread begins.
    proposer: OnceLock<Proposer>,
    /// All shards have applied the entries up to this one.
    applied: AtomicU64,
    /// Who waits until clients may come; gone when they may.
    waiting: Mutex<Waiting>,
    /// It is none of the cluster any more, or never will be.
    is_out: Arc<AtomicBool>,
}

#[derive(Default)]
struct Waiting {
    /// This node's rows are in the tables.
    has_said: bool,
    /// The tables may be trusted.
    has_lease: bool,
    tell: Option<mpsc::Sender<()>>,
}

/// The shards' inboxes.
struct Inboxes(Vec<Sender<ToShard>>);

impl Shards for Inboxes {
    fn batch(&self, shard: ShardId, batch: Batch) {
        self.0[usize::from(shard.0)].push(ToShard::Batch(batch));
    }

    fn mark(&self, shard: ShardId, mark: Mark) {
        self.0[usize::from(shard.0)].push(ToShard::Mark(mark));
    }
}

impl Cluster {
    /// Begins; `tell` hears once when clients may come: this node is a member, its rows are in the tables, and it may
    /// trust them. It is dropped if that will never be: then the process is sent SIGTERM.
    ///
    /// # Errors
    /// When an address, a directory or the secret cannot be used.
    pub(crate) fn start(
        settings: &ClusterSettings,
        node: Node<'_>,
        lanes: Lanes,
        tell: mpsc::Sender<()>,
    ) -> anyhow::Result<Self> {
        let Node {
            name,
            inboxes,
            owner,
            connect_timeout,
        } = node;
        let settings = core_settings(settings, name)?;
        let shards = u8::try_from(inboxes.len()).context("more shards than lanes")?;
        let ends = Box::new(Inboxes(inboxes.clone()));
        let exchange = Exchange::new(shards, NODES_MAX, random::draw()?, ends);
        let mut clients = OwnClients::new();
        // what shards said before they were started is what their store had
        let mut restored = Vec::new();
        lanes.said.drain(&mut restored);
        for said in restored {
            hold(&mut clients, said);
        }
        let waiting = Waiting {
            tell: Some(tell),
            ..Waiting::default()
        };
        let member = Arc::new(Member {
            exchange: exchange.clone(),
            clients: Mutex::new(clients),
            lease: lanes.lease.clone(),
            inboxes,
            owner,
            // before the shard gives up on the client
            claim_max: connect_timeout / 2,
            proposer: OnceLock::new(),
            applied: AtomicU64::new(0),
            waiting: Mutex::new(waiting),
            is_out: Arc::default(),
        });
        let (rows, heard) = (member.clone(), member.clone());
        let own_rows = move || OwnRows {
            sessions: lock(&rows.clients).sessions().collect(),
            deltas: rows.exchange.routes(),
        };
        let on_event = move |event| heard.handle_event(event);
        let core = Core::start(settings, own_rows, on_event, Arc::new(Carried(exchange)))?;
        let proposer = core.proposer();
        let _ = member.proposer.set(proposer.clone());
        // what was applied meanwhile
        proposer.applied(member.applied.load(Ordering::Acquire));
        for (place, receiver) in (0..).zip(lanes.receivers) {
            let member = member.clone();
            let lane = ShardId(shards + place);
            proposer.spawn(each(receiver, move |message| member.handle(lane, message)));
        }
        let listening = member.clone();
        proposer.spawn(each(lanes.said, move |said| listening.handle_said(said)));
        Ok(Self {
            core,
            is_out: member.is_out.clone(),
        })
    }

    /// Who knows the cluster, as this node sees it.
    pub(crate) fn proposer(&self) -> Proposer {
        self.core.proposer()
    }

    /// Tells the others that this node is gone, and ends. False if it was none of them any more.
    pub(crate) fn stop(self) -> bool {
        self.core.stop();
        !self.is_out.load(Ordering::Acquire)
    }
}

impl Member {
    fn handle(&self, lane: ShardId, message: ToShard) {
        let exchange = &self.exchange;
        match message {
            ToShard::Batch(batch) if exchange.is_of_tables(lane) => {
                let Some(proposer) = self.proposer.get() else {
                    return;
                };
                exchange.interest(&batch, |deltas| proposer.push(deltas));
            }
            ToShard::Batch(batch) => {
                let applied = self.applied.load(Ordering::Acquire);
                if !exchange.publish(lane, &batch, applied) {
                    log::error!(lane = lane.0; "messages for a node that is not there");
                }
            }
            ToShard::Mark(mark) => self.has_applied(exchange.marked_by_shard(lane, &mark)),
            other => log::error!(lane = lane.0; "not for another node: {other:?}"),
        }
    }

    fn handle_said(self: &Arc<Self>, said: Said) {
        let Some(proposer) = self.proposer.get() else {
            return;
        };
        match said {
            Said::Claim(claim) => self.claim(proposer, claim),
            Said::Disconnected { client_id, number } => {
                proposer.push(vec![Delta::Disconnected {
                    client_id: (*client_id).into(),
                    connection: number,
                }]);
            }
            held @ Said::Held { .. } => hold(&mut lock(&self.clients), held),
            Said::Ended { client_id, number } => {
                let (row, _) = proposer.client(&client_id);
                let me = proposer.me();
                let ended = lock(&self.clients).ended(me, &client_id, number, row.as_ref());
                if let Some(delta) = ended {
                    proposer.push(vec![delta]);
                }
            }
            Said::Dropped { client_id, epoch } => {
                lock(&self.clients).dropped(&client_id, epoch);
                proposer.push(vec![Delta::Ended {
                    client_id: (*client_id).into(),
                    epoch,
                }]);
            }
        }
    }

    fn claim(self: &Arc<Self>, proposer: &Proposer, asked: claims::Claim) {
        let wish = Wish {
            client_id: (*asked.client_id).into(),
            user: asked.username.as_deref().map(Into::into),
            clean_start: asked.clean_start,
            expiry_secs: asked.expiry_secs,
        };
        let (row, applied) = proposer.client(&asked.client_id);
        let way = lock(&self.clients).wish(proposer.me(), wish, row.as_ref(), applied);
        match way {
            Way::At(number, delta) => {
                proposer.push(vec![delta]);
                let clean_start = true;
                let granted = claims::Verdict::Granted {
                    number,
                    clean_start,
                };
                self.answer(&asked, granted);
            }
            Way::Nowhere => self.answer(&asked, claims::Verdict::Unknown),
            // there is nobody to agree with
            Way::Claim(claim) if !self.lease.is_current() => {
                lock(&self.clients).answered(proposer.me(), &claim, None);
                self.answer(&asked, claims::Verdict::Unknown);
            }
            Way::Claim(claim) => {
                let (member, asking) = (self.clone(), proposer.clone());
                proposer.spawn(async move { member.agree(&asking, &asked, claim).await });
            }
        }
    }

    /// Proposes a claim, and tells the shard: in time, or that it is not known. Then nobody waits for it any more, and it
    /// must not be granted later, when the client is elsewhere.
    async fn agree(&self, proposer: &Proposer, asked: &claims::Claim, claim: Claim) {
        let mut entry = Entry::Claim(claim.clone());
        let mut is_answered = false;
        loop {
            match proposer.propose(&entry, self.claim_max).await {
                Ok(agreed) if proposer.applied_here(agreed.index).await => {
                    return self.claim_agreed(proposer, asked, &claim, &agreed.answer, is_answered);
                }
                Ok(_) => return,
                Err(error) => {
                    if !is_answered {
                        log::warn!(client = &*asked.client_id, error:% = error; "a client id was not agreed on in time");
                        self.answer(asked, claims::Verdict::Unknown);
                        is_answered = true;
                        entry = Entry::Unclaimed {
                            node: claim.node,
                            boot: claim.boot,
                            number: claim.number,
                        };
                    }
                }
            }
            tokio::time::sleep(RETRY).await;
            if lock(&self.clients).boot() != Some(claim.boot) {
                return;
            }
        }
    }

    /// This node has applied a claim, and what came before it.
    fn claim_agreed(
        &self,
        proposer: &Proposer,
        asked: &claims::Claim,
        claim: &Claim,
        answer: &Answer,
        is_answered: bool,
    ) {
        let (row, _) = proposer.client(&claim.client_id);
        let lives = lock(&self.clients).answered(proposer.me(), claim, row.as_ref());
        let verdict = match answer {
            Answer::Claim(Verdict::Granted { .. }) if lives => claims::Verdict::Granted {
                number: claim.connection,
                clean_start: claim.clean_start,
            },
            Answer::Claim(Verdict::HeldBy(_)) => claims::Verdict::HeldElsewhere,
            Answer::Claim(Verdict::OtherUser) => claims::Verdict::OtherUser,
            // the client is elsewhere meanwhile, or this start is over
            _ => claims::Verdict::Unknown,
        };
        if !is_answered || matches!(verdict, claims::Verdict::Granted { .. }) {
            self.answer(asked, verdict);
        }
    }

    fn answer(&self, asked: &claims::Claim, verdict: claims::Verdict) {
        let told = Told::Verdict {
            connection: asked.connection,
            client_id: asked.client_id.clone(),
            verdict,
        };
        self.inboxes[usize::from(asked.shard.0)].push(ToShard::Told(told));
    }

    /// Tells the shard that a client id belongs to.
    fn tell(&self, client_id: &str, told: impl FnOnce(Arc<str>) -> Told) {
        let told = told(client_id.into());
        self.inboxes[(self.owner)(client_id)].push(ToShard::Told(told));
    }

    fn handle_output(&self, output: &Output) {
        match output {
            Output::Taken {
                client_id,
                boot,
                connection,
            } => {
                let number = *connection;
                if lock(&self.clients).boot() == Some(*boot) {
                    self.tell(client_id, |client_id| Told::Taken { client_id, number });
                }
            }
            // what the log says of former starts is looked up when this one begins
            Output::Ended { client_id, epoch } if lock(&self.clients).boot().is_some() => {
                self.end_session(client_id, *epoch);
            }
            Output::Died { boot } => self.is_dead(*boot),
            _ => {}
        }
    }

    fn end_session(&self, client_id: &str, epoch: u64) {
        self.tell(client_id, |client_id| Told::Ended { client_id, epoch });
    }

    /// The cluster took a start of this node for dead.
    fn is_dead(&self, boot: Boot) {
        let mut clients = lock(&self.clients);
        if clients.boot() == Some(boot) {
            log::error!("the cluster took this node for dead: its clients have to come again");
            let number = clients.end();
            for inbox in &self.inboxes {
                inbox.push(ToShard::Told(Told::Over { number }));
            }
        }
    }

    fn has_applied(&self, index: u64) {
        self.applied.fetch_max(index, Ordering::AcqRel);
        if let Some(proposer) = self.proposer.get() {
            proposer.applied(index);
        }
    }

    fn handle_event(&self, event: CoreEvent) {
        match event {
            CoreEvent::Begun { boot, ended } => {
                // its death may have been in a snapshot, which has only what is alive
                let before = lock(&self.clients).boot();
                if let Some(before) = before.filter(|before| *before != boot) {
                    self.is_dead(before);
                }
                lock(&self.clients).begin(boot);
                for (client_id, epoch) in ended {
                    self.end_session(&client_id, epoch);
                }
            }
            CoreEvent::Applied(applied) => {
                for output in &applied.outputs {
                    self.handle_output(output);
                }
                let index = self.exchange.apply(applied.index, &applied.outputs);
                self.has_applied(index);
            }
            CoreEvent::Lease(until_ns) => {
                self.lease.extend(until_ns);
                self.may_open(|waiting| waiting.has_lease = true);
            }
            CoreEvent::Said(_) => self.may_open(|waiting| waiting.has_said = true),
            CoreEvent::Settled(ticket) => self.exchange.settled(ticket),
            CoreEvent::Out(why) => {
                log::error!("the broker stops, because this node is not in the cluster: {why}");
                self.may_open(|waiting| waiting.tell = None);
                self.is_out.store(true, Ordering::Release);
                // main takes it, as from anybody else
                if let Err(error) = kill(Pid::this(), Signal::SIGTERM) {
                    panic!("the broker cannot stop itself: {error}");
                }
            }
            _ => {}
        }
    }

    fn may_open(&self, change: impl FnOnce(&mut Waiting)) {
        let mut waiting = lock(&self.waiting);
        change(&mut waiting);
        if waiting.has_said
            && waiting.has_lease
            && let Some(tell) = waiting.tell.take()
        {
            // nobody listens any more if the broker stops
            let _ = tell.send(());
        }
    }
}

fn core_settings(settings: &ClusterSettings, name: &str) -> anyhow::Result<CoreSettings> {
    let secrets = match &settings.secret_file {
        Some(path) => secrets(path)?,
        None => vec![NO_SECRET.to_owned()],
    };
    let socket = |port| SocketAddr::new(settings.bind_ip, port);
    let advertise = |port| SocketAddr::new(settings.advertise_ip, port);
    Ok(CoreSettings {
        name: name.into(),
        directory: settings.raft_dir.clone(),
        gossip: socket(settings.gossip_port),
        gossip_advertise: Some(advertise(settings.advertise_port)),
        links: socket(settings.peer_port),
        links_advertise: Some(advertise(settings.peer_port)),
        seeds: settings.members.iter().map(ToString::to_string).collect(),
        bootstrap: match settings.raft_bootstrap {
            RaftBootstrap::No => Bootstrap::No,
            RaftBootstrap::Yes => Bootstrap::IfNone,
            RaftBootstrap::Force => Bootstrap::Force,
        },
        secrets,
        timeouts: Timeouts {
            dead_node: settings.dead_node_timeout,
            forget_node: settings.node_forget_timeout,
            lease: settings.lease,
        },
    })
}

/// Handles what comes through a lane, on the thread that this is spawned on.
async fn each<T>(receiver: Receiver<T>, handle: impl FnMut(T)) {
    if let Err(error) = polled::each(receiver, handle).await {
        panic!("the cluster's thread cannot wait for the shards: {error}");
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    // nothing here stops halfway, and a panic ends the process
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn hold(clients: &mut OwnClients, said: Said) {
    if let Said::Held {
        client_id,
        username,
        expiry_secs,
    } = said
    {
        let user = username.as_deref().map(Into::into);
        clients.hold((*client_id).into(), user, expiry_secs);
    }
}

/// One secret per line; the first is shown, all are accepted.
fn secrets(path: &Path) -> anyhow::Result<Vec<String>> {
    let shown = path.display();
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("--cluster-secret-file: {shown} cannot be read"))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let secrets: Vec<String> = lines.map(ToOwned::to_owned).collect();
    anyhow::ensure!(
        !secrets.is_empty(),
        "--cluster-secret-file: {shown} has no secret in it; write one of at least 16 characters on a line of its own"
    );
    Ok(secrets)
}
