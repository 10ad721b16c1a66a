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
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};

use anyhow::Context;
use corqtt_cluster::{
    Bootstrap, Carried, Core, CoreEvent, CoreSettings, Exchange, OwnRows, Proposer, Shards,
    Timeouts,
};
use corqtt_port::lane::{self, Receiver, Sender};
use corqtt_port::routes::{Batch, Mark};
use corqtt_shards::ToShard;
use corqtt_topics::ShardId;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::polled::Polled;
use crate::settings::{ClusterSettings, RaftBootstrap};

/// Nodes that a cluster may have beside this one.
pub(crate) const NODES_MAX: u8 = 15;
/// The identity of nodes that were not given a secret; they link on loopback only.
const NO_SECRET: &str = "corqtt: no secret, on loopback only";

/// The ends of what shards send to the tables and to other nodes.
#[derive(Debug)]
pub(crate) struct Lanes {
    /// As shards number them behind themselves: the tables, then the nodes.
    pub(crate) senders: Vec<Sender<ToShard>>,
    receivers: Vec<Receiver<ToShard>>,
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
        Ok(Self { senders, receivers })
    }
}

/// A node of a cluster.
#[derive(Debug)]
pub(crate) struct Cluster {
    core: Core,
    is_out: Arc<AtomicBool>,
}

/// What runs on the cluster's thread for the shards.
struct Member {
    exchange: Arc<Exchange>,
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
        name: &str,
        inboxes: Vec<Sender<ToShard>>,
        lanes: Lanes,
        tell: mpsc::Sender<()>,
    ) -> anyhow::Result<Self> {
        let settings = core_settings(settings, name)?;
        let shards = u8::try_from(inboxes.len()).context("more shards than lanes")?;
        let mut drawn = [0; 8];
        rustix::rand::getrandom(&mut drawn, rustix::rand::GetRandomFlags::empty())
            .context("no random numbers")?;
        let store = u64::from_ne_bytes(drawn);
        let exchange = Exchange::new(shards, NODES_MAX, store, Box::new(Inboxes(inboxes)));
        let waiting = Waiting {
            tell: Some(tell),
            ..Waiting::default()
        };
        let member = Arc::new(Member {
            exchange: exchange.clone(),
            proposer: OnceLock::new(),
            applied: AtomicU64::new(0),
            waiting: Mutex::new(waiting),
            is_out: Arc::default(),
        });
        let (rows, heard) = (exchange.clone(), member.clone());
        let own_rows = move || OwnRows {
            sessions: Vec::new(),
            deltas: rows.routes(),
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
            proposer.spawn(async move {
                if let Err(error) = member.take(lane, receiver).await {
                    panic!("the cluster's thread cannot wait for the shards: {error}");
                }
            });
        }
        Ok(Self {
            core,
            is_out: member.is_out.clone(),
        })
    }

    /// Tells the others that this node is gone, and ends. False if it was none of them any more.
    pub(crate) fn stop(self) -> bool {
        self.core.stop();
        !self.is_out.load(Ordering::Acquire)
    }
}

impl Member {
    /// Takes what the shards send to one lane.
    async fn take(&self, lane: ShardId, receiver: Receiver<ToShard>) -> std::io::Result<()> {
        let lane_end = Polled::new(receiver)?;
        let mut taken = Vec::new();
        loop {
            lane_end.take(&mut taken);
            for message in taken.drain(..) {
                self.handle(lane, message);
            }
            // others on this thread have their turn, however much there is
            tokio::task::yield_now().await;
            lane_end.wait().await;
        }
    }

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

    fn has_applied(&self, index: u64) {
        self.applied.fetch_max(index, Ordering::AcqRel);
        if let Some(proposer) = self.proposer.get() {
            proposer.applied(index);
        }
    }

    fn handle_event(&self, event: CoreEvent) {
        match event {
            CoreEvent::Applied(applied) => {
                let index = self.exchange.apply(applied.index, &applied.outputs);
                self.has_applied(index);
            }
            CoreEvent::Lease(_) => self.may_open(|waiting| waiting.has_lease = true),
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
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
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
