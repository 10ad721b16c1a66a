// SPDX-License-Identifier: Apache-2.0
//! Raft's questions over the links of this node, and its answers to those of its peers.
//!
//! ```text
//!  request   version u8 | kind u8 | postcard
//!  answer    postcard of a Result
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use corqtt_quic::{Link, LinkError};
use openraft::error::{
    InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::{EmptyNode, Raft};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Types;
use crate::entry::NodeId;
use crate::threads::lock;

const VERSION: u8 = 1;
const APPEND: u8 = 1;
const VOTE: u8 = 2;
const SNAPSHOT: u8 = 3;
pub(crate) const PROPOSE: u8 = 4;
pub(crate) const CONFIRM: u8 = 5;

/// A peer that cannot be reached is tried again after so long.
const BACKOFF: Duration = Duration::from_millis(50);

/// The links that this node has dialled, by peer.
#[derive(Debug, Default)]
pub struct Peers {
    links: Mutex<BTreeMap<NodeId, Link>>,
}

impl Peers {
    fn links(&self) -> MutexGuard<'_, BTreeMap<NodeId, Link>> {
        lock(&self.links)
    }

    /// A link to a peer is there.
    pub fn set(&self, peer: NodeId, link: Link) {
        self.links().insert(peer, link);
    }

    /// The link to a peer is over.
    pub fn remove(&self, peer: NodeId) {
        self.links().remove(&peer);
    }

    /// All links are over: with the last one the socket goes, whoever still holds this.
    pub fn clear(&self) {
        self.links().clear();
    }

    /// The link to a peer.
    #[must_use]
    pub fn link(&self, peer: NodeId) -> Option<Link> {
        self.links().get(&peer).cloned()
    }

    /// Asks a peer.
    pub(crate) async fn ask<A: DeserializeOwned>(
        &self,
        peer: NodeId,
        kind: u8,
        question: &impl Serialize,
        limit: Duration,
    ) -> Result<A, AskError> {
        let link = self.link(peer).ok_or(AskError::NoLink)?;
        let mut body = vec![VERSION, kind];
        body = postcard::to_extend(question, body).expect("raft's questions are plain values");
        let answer = tokio::time::timeout(limit, link.request(&body))
            .await
            .map_err(|_| AskError::Silent(limit))?
            .map_err(AskError::Link)?;
        postcard::from_bytes(&answer).map_err(|_| AskError::Malformed)
    }
}

/// A peer did not answer.
#[derive(Debug)]
pub(crate) enum AskError {
    /// There is no link to it.
    NoLink,
    /// It took too long.
    Silent(Duration),
    /// The link ended.
    Link(LinkError),
    /// It answered what cannot be read.
    Malformed,
}

impl fmt::Display for AskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoLink => f.write_str("there is no link to it"),
            Self::Silent(limit) => write!(f, "no answer within {} ms", limit.as_millis()),
            Self::Link(error) => error.fmt(f),
            Self::Malformed => {
                f.write_str("an answer that cannot be read: is it of another version?")
            }
        }
    }
}

impl std::error::Error for AskError {}

/// Makes raft's ways to its peers.
#[derive(Clone, Debug)]
pub(crate) struct Network(pub(crate) Arc<Peers>);

/// Raft's way to one peer.
#[derive(Debug)]
pub(crate) struct Peer {
    peers: Arc<Peers>,
    target: u64,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, _: &EmptyNode) -> Peer {
        Peer {
            peers: self.0.clone(),
            target,
        }
    }
}

type Asked<A, E> = Result<A, RPCError<u64, EmptyNode, RaftError<u64, E>>>;

impl Peer {
    async fn ask<A, E>(
        &self,
        kind: u8,
        question: &impl Serialize,
        option: &RPCOption,
    ) -> Asked<A, E>
    where
        A: DeserializeOwned,
        E: std::error::Error + DeserializeOwned,
    {
        let target = NodeId::new(self.target).ok_or_else(|| unreachable(&AskError::NoLink))?;
        let asked = self
            .peers
            .ask(target, kind, question, option.hard_ttl())
            .await;
        let answer: Result<A, RaftError<u64, E>> = asked.map_err(|error| match error {
            AskError::NoLink | AskError::Link(_) => unreachable(&error),
            AskError::Silent(_) | AskError::Malformed => NetworkError::new(&error).into(),
        })?;
        answer.map_err(|error| RemoteError::new(self.target, error).into())
    }
}

fn unreachable<E: std::error::Error>(error: &AskError) -> RPCError<u64, EmptyNode, E> {
    Unreachable::new(&io::Error::other(error.to_string())).into()
}

impl RaftNetwork<Types> for Peer {
    async fn append_entries(
        &mut self,
        question: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, RPCError<u64, EmptyNode, RaftError<u64>>> {
        self.ask(APPEND, &question, &option).await
    }

    async fn install_snapshot(
        &mut self,
        question: InstallSnapshotRequest<Types>,
        option: RPCOption,
    ) -> Result<
        InstallSnapshotResponse<u64>,
        RPCError<u64, EmptyNode, RaftError<u64, InstallSnapshotError>>,
    > {
        self.ask(SNAPSHOT, &question, &option).await
    }

    async fn vote(
        &mut self,
        question: VoteRequest<u64>,
        option: RPCOption,
    ) -> Result<VoteResponse<u64>, RPCError<u64, EmptyNode, RaftError<u64>>> {
        self.ask(VOTE, &question, &option).await
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(BACKOFF))
    }
}

/// A peer asked what cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidQuestion {
    /// Of another version.
    Version(u8),
    /// Not what a question looks like.
    Malformed,
}

impl fmt::Display for InvalidQuestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => {
                write!(
                    f,
                    "a question of version {version}, this node knows {VERSION}"
                )
            }
            Self::Malformed => f.write_str("a question that cannot be read"),
        }
    }
}

impl std::error::Error for InvalidQuestion {}

/// The kind of a question, and what it holds.
pub(crate) fn split(question: &[u8]) -> Result<(u8, &[u8]), InvalidQuestion> {
    match question {
        [VERSION, kind, rest @ ..] => Ok((*kind, rest)),
        [version, ..] if *version != VERSION => Err(InvalidQuestion::Version(*version)),
        _ => Err(InvalidQuestion::Malformed),
    }
}

pub(crate) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, InvalidQuestion> {
    postcard::from_bytes(bytes).map_err(|_| InvalidQuestion::Malformed)
}

pub(crate) fn written(answer: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(answer).expect("raft's answers are plain values")
}

/// Answers what raft of a peer asks; `None`: it is none of raft's questions.
pub(crate) async fn answer(
    raft: &Raft<Types>,
    kind: u8,
    rest: &[u8],
) -> Result<Option<Vec<u8>>, InvalidQuestion> {
    Ok(Some(match kind {
        APPEND => written(&raft.append_entries(read(rest)?).await),
        VOTE => written(&raft.vote(read(rest)?).await),
        SNAPSHOT => written(&raft.install_snapshot(read(rest)?).await),
        _ => return Ok(None),
    }))
}
