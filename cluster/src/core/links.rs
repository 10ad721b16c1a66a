// SPDX-License-Identifier: Apache-2.0
//! This node's links: dials whoever gossip shows, and hears who dials.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use compact_str::CompactString;
use corqtt_quic::{
    Arrival, Arrivals, Caller, Endpoint, Knock, Link, LinkError, Mark, Opening, Stream,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

use crate::entry::{Entry, NodeId};
use crate::raft::{Agreed, Peers, RaftFailure, RaftNode, network};
use crate::threads::lock;

/// A peer that cannot be reached is dialled again after so long, and later after twice as long.
const REDIAL: Duration = Duration::from_millis(50);
const REDIAL_MAX: Duration = Duration::from_secs(1);
/// Questions of one peer that are answered at a time; the next one waits.
const QUESTIONS_MAX: usize = 256;
/// How long becoming a member may take, before it is tried again.
const JOIN_MAX: Duration = Duration::from_secs(5);
/// The version of a hello.
const VERSION: u8 = 1;

/// What both ends of a link say of themselves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) node: NodeId,
    pub(crate) name: CompactString,
    pub(crate) cluster: Option<NonZeroU64>,
}

impl Hello {
    fn encode(&self) -> Vec<u8> {
        postcard::to_extend(self, vec![VERSION]).expect("a hello is a plain value")
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        match bytes.split_first() {
            Some((&VERSION, rest)) => postcard::from_bytes(rest).ok(),
            _ => None,
        }
    }

    /// Why one that says this is no peer of one that says `self`.
    fn refusal(&self, other: &Self) -> Option<&'static str> {
        if self.node == other.node {
            return Some("this node itself");
        }
        match (self.cluster, other.cluster) {
            (Some(own), Some(its)) if own != its => Some("a node of another cluster"),
            _ => None,
        }
    }
}

/// What the links carry beside raft: the ordered streams of this node's shards, and those of its peers'.
pub trait Carrier: Send + Sync + 'static {
    /// A link from node `me`, this one, to a peer is up: the streams that it is to carry, each with its header as of now.
    fn streams(&self, me: NodeId, peer: NodeId) -> Vec<(Arc<Stream>, Vec<u8>)>;

    /// A peer has marked entries of one of them, by its place in what [`Self::streams`] gave for that peer. Must not wait.
    fn marked(&self, peer: NodeId, stream: usize, mark: &Mark);

    /// A peer begins to send a stream; over when its link is.
    fn receive(&self, peer: NodeId, opening: Opening) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// What this node says of itself at the beginning of each link.
#[derive(Clone, Debug)]
pub(crate) struct Greeting(Arc<Mutex<Hello>>);

impl Greeting {
    pub(crate) fn new(hello: Hello) -> Self {
        Self(Arc::new(Mutex::new(hello)))
    }

    pub(crate) fn hello(&self) -> Hello {
        lock(&self.0).clone()
    }

    pub(crate) fn set_cluster(&self, cluster: NonZeroU64) {
        lock(&self.0).cluster = Some(cluster);
    }
}

/// Hears who dials, until the endpoint is closed. Dropping it ends their links.
pub(crate) async fn accept(endpoint: Arc<Endpoint>, greeting: Greeting, answers: Answering) {
    let mut links = JoinSet::new();
    while let Some(caller) = endpoint.accept().await {
        while links.try_join_next().is_some() {}
        links.spawn(serve(caller, greeting.clone(), answers.clone()));
    }
}

async fn serve(caller: Caller, greeting: Greeting, answers: Answering) {
    let from = caller.remote();
    let knock = match caller.knock().await {
        Ok(knock) => knock,
        Err(error) => {
            return log::warn!(address:% = from, error:% = error; "a link was refused: the caller does not prove that it knows the cluster's secret");
        }
    };
    let Some((peer, arrivals)) = admit(knock, &greeting).await else {
        return;
    };
    answer(peer, &arrivals, answers).await;
}

async fn admit(knock: Knock, greeting: &Greeting) -> Option<(NodeId, Arrivals)> {
    let (own, from) = (greeting.hello(), knock.remote());
    let Some(hello) = Hello::decode(knock.hello()) else {
        log::warn!(address:% = from; "a link was refused: the peer greets in a version that is not known here");
        knock.refuse("a hello of another version");
        return None;
    };
    if let Some(refusal) = own.refusal(&hello) {
        log::warn!(address:% = from, node = hello.name.as_str(), cause = refusal; "a link was refused");
        knock.refuse(refusal);
        return None;
    }
    let arrivals = knock.admit(&own.encode()).await.ok()?;
    Some((hello.node, arrivals))
}

async fn answer(peer: NodeId, arrivals: &Arrivals, answers: Answering) {
    let mut answering = JoinSet::new();
    while let Ok(begun) = arrivals.next().await {
        while answering.try_join_next().is_some() {}
        if answering.len() >= QUESTIONS_MAX {
            answering.join_next().await;
        }
        let answers = answers.clone();
        answering.spawn(async move {
            match begun.read().await {
                Ok(Arrival::Request(request)) => {
                    if let Some(answer) = answers.answer(peer, request.body()).await {
                        // the peer may be gone
                        let _ = request.answer(&answer).await;
                    }
                }
                Ok(Arrival::Stream(opening)) => answers.carrier.receive(peer, opening).await,
                Err(_) => {}
            }
        });
    }
}

/// What a link needs that this node dials.
#[derive(Clone)]
pub(crate) struct Dialler {
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) greeting: Greeting,
    pub(crate) peers: Arc<Peers>,
    pub(crate) heard: Heard,
    pub(crate) carrier: Arc<dyn Carrier>,
}

/// The links that this node dials.
pub(crate) struct Dialling {
    dialler: Dialler,
    tasks: JoinSet<()>,
    /// Where each peer is dialled.
    dialled: BTreeMap<NodeId, (SocketAddr, AbortHandle)>,
}

/// When each peer was there last.
#[derive(Clone, Debug, Default)]
pub(crate) struct Heard(Arc<Mutex<BTreeMap<NodeId, Instant>>>);

impl Heard {
    pub(crate) fn set(&self, peer: NodeId, at: Instant) {
        lock(&self.0).insert(peer, at);
    }

    pub(crate) fn at(&self, peer: NodeId) -> Option<Instant> {
        lock(&self.0).get(&peer).copied()
    }
}

impl Dialling {
    pub(crate) fn new(dialler: Dialler) -> Self {
        Self {
            dialler,
            tasks: JoinSet::new(),
            dialled: BTreeMap::new(),
        }
    }

    /// A peer is there: it is dialled until it is told to be elsewhere, or no more.
    pub(crate) fn dial(&mut self, peer: NodeId, address: SocketAddr) {
        if self
            .dialled
            .get(&peer)
            .is_some_and(|(known, _)| *known == address)
        {
            return;
        }
        self.forget(peer);
        let task = keep(self.dialler.clone(), peer, address);
        self.dialled.insert(peer, (address, self.tasks.spawn(task)));
        while self.tasks.try_join_next().is_some() {}
    }

    /// A peer is not dialled any more, and its link ends.
    pub(crate) fn forget(&mut self, peer: NodeId) {
        if let Some((_, task)) = self.dialled.remove(&peer) {
            task.abort();
            let peers = &self.dialler.peers;
            if let Some(link) = peers.link(peer) {
                link.close("it is not dialled any more");
                peers.remove(peer);
            }
        }
    }
}

async fn keep(dialler: Dialler, peer: NodeId, address: SocketAddr) {
    let mut pause = REDIAL;
    let mut is_told = false;
    loop {
        let hello = dialler.greeting.hello();
        match dial(&dialler.endpoint, &hello, peer, address).await {
            Ok(link) => {
                log::info!(address:% = address; "link to a peer is up");
                (pause, is_told) = (REDIAL, false);
                dialler.peers.set(peer, link.clone());
                // its streams end with it
                let _carrying = carry(&dialler.carrier, hello.node, peer, &link);
                let cause = tokio::select! {
                    cause = link.closed() => cause,
                    never = tell_heard(&dialler.heard, peer) => match never {},
                };
                dialler.peers.remove(peer);
                dialler.heard.set(peer, Instant::now());
                log::warn!(address:% = address, cause:% = cause; "link to a peer is down");
            }
            Err(cause) if !is_told => {
                is_told = true;
                log::warn!(address:% = address, cause:% = cause; "a peer cannot be reached, and is tried on");
            }
            Err(_) => {}
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(REDIAL_MAX);
    }
}

fn carry(carrier: &Arc<dyn Carrier>, me: NodeId, peer: NodeId, link: &Link) -> JoinSet<()> {
    let mut carrying = JoinSet::new();
    for (number, (stream, header)) in carrier.streams(me, peer).into_iter().enumerate() {
        let (carrier, link) = (carrier.clone(), link.clone());
        carrying.spawn(async move {
            let on_mark = |mark: &Mark| carrier.marked(peer, number, mark);
            let cause = link.carry(&stream, &header, on_mark).await;
            log::debug!(cause:% = cause; "a stream to a peer waits for the next link");
        });
    }
    carrying
}

/// A link that is up is one that the peer is heard on.
async fn tell_heard(heard: &Heard, peer: NodeId) -> std::convert::Infallible {
    loop {
        heard.set(peer, Instant::now());
        tokio::time::sleep(REDIAL_MAX).await;
    }
}

/// A link to exactly that peer.
async fn dial(
    endpoint: &Endpoint,
    hello: &Hello,
    peer: NodeId,
    address: SocketAddr,
) -> Result<Link, LinkError> {
    let link = endpoint.dial(address, &hello.encode()).await?;
    let refusal = match Hello::decode(link.answer()) {
        None => Some("it greets in a version that is not known here"),
        Some(answer) if answer.node != peer => Some("it is another node"),
        Some(answer) => hello.refusal(&answer),
    };
    match refusal {
        None => Ok(link),
        Some(cause) => {
            link.close(cause);
            Err(LinkError::Refused(cause.to_owned()))
        }
    }
}

/// Asks to become a member; in raft's form, beside its own questions.
const JOIN: u8 = 16;
/// Asks to be answered once all shards have applied an index.
const APPLIED: u8 = 17;

/// Answers raft's questions, whoever wants to be a member, and whoever waits for this node's shards.
#[derive(Clone)]
pub(crate) struct Answering {
    pub(crate) raft: RaftNode,
    /// All shards have applied the entries up to this index.
    pub(crate) applied: watch::Receiver<u64>,
    /// Who asks is there.
    pub(crate) heard: Heard,
    pub(crate) carrier: Arc<dyn Carrier>,
}

impl Answering {
    pub(crate) async fn answer(&self, from: NodeId, question: &[u8]) -> Option<Vec<u8>> {
        self.heard.set(from, Instant::now());
        let (kind, rest) = network::split(question).ok()?;
        match kind {
            JOIN => {
                let name: CompactString = network::read(rest).ok()?;
                let joined = Entry::Joined { node: from, name };
                let answer = self.raft.propose(&joined, JOIN_MAX).await;
                Some(network::written(&answer))
            }
            APPLIED => {
                let index: u64 = network::read(rest).ok()?;
                let mut applied = self.applied.clone();
                let reached = applied.wait_for(|applied| *applied >= index);
                // who asks does not wait longer
                let reached = timeout(JOIN_MAX, reached).await.ok()?.is_ok();
                reached.then(|| network::written(&()))
            }
            _ => self.raft.answer(question).await.ok().flatten(),
        }
    }
}

/// Waits until a member's shards have applied an index; false if it does not say so.
pub(crate) async fn ask_applied(peers: &Peers, member: NodeId, index: u64) -> bool {
    let asked: Result<(), _> = peers.ask(member, APPLIED, &index, JOIN_MAX).await;
    asked.is_ok()
}

/// Asks a member to let this node be one too.
pub(crate) async fn ask_to_join(
    peers: &Peers,
    member: NodeId,
    name: &CompactString,
) -> Result<Agreed, RaftFailure> {
    let asked = peers.ask(member, JOIN, name, JOIN_MAX).await;
    asked.unwrap_or(Err(RaftFailure::NoLeader))
}
