// SPDX-License-Identifier: Apache-2.0
//! One node's part in raft: proposals from any node, and the leader's word that it still leads.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use openraft::error::{CheckIsLeaderError, ClientWriteError, InitializeError, RaftError};
use openraft::{ChangeMembers, Config, EmptyNode, Raft, SnapshotPolicy};
use serde::{Deserialize, Serialize};

use super::network::{self, CONFIRM, InvalidQuestion, Network, PROPOSE, Peers};
use super::state::{Applied, Tables};
use super::{LogStore, Proposal, StateMachine, Types};
use crate::entry::{Entry, NodeId, decode_entry, encode_entry};
use crate::machine::{Answer, Machine};
use crate::threads::lock;

/// An answer that takes longer than a heartbeat's interval counts as none.
const HEARTBEAT_MS: u64 = 100;
const ELECTION_MS: (u64, u64) = (400, 700);
/// A leader that has heard of no quorum for so long does not lead any more.
const QUORUM_LOST: Duration = Duration::from_millis(2 * ELECTION_MS.1);
/// A part of a snapshot, and how long it may take: it does not delay heartbeats by much.
const SNAPSHOT_PART_BYTES: u64 = 256 << 10;
const SNAPSHOT_PART_MS: u64 = 5_000;
/// How long one try of a proposal may take before it is tried at another leader.
const TRY_MAX: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_millis(20);
/// Entries between two snapshots, and those that stay for members that lag a little.
const SNAPSHOT_ENTRIES: u64 = 10_000;
const KEPT_ENTRIES: u64 = 2_000;

/// One node's raft.
#[derive(Clone)]
pub struct RaftNode {
    me: NodeId,
    raft: Raft<Types>,
    peers: Arc<Peers>,
    tables: Tables,
    /// Since when it leads without having heard of a quorum.
    alone_since: Arc<Mutex<Option<Instant>>>,
}

impl fmt::Debug for RaftNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RaftNode")
            .field("me", &self.me)
            .finish_non_exhaustive()
    }
}

/// Raft cannot start.
#[derive(Debug)]
pub struct StartError(String);

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StartError {}

/// What the cluster agreed on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agreed {
    /// The entry's index.
    pub index: u64,
    /// The machine's answer.
    pub answer: Answer,
}

/// What could not be agreed on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum RaftFailure {
    /// No leader is known, or it cannot be reached.
    NoLeader,
    /// This node does not lead; who may.
    NotLeader(Option<NodeId>),
    /// Another change of the members is under way, or makes no sense.
    Members(String),
    /// The cluster has been founded already.
    Founded,
    /// The leader cannot read the entry, so nobody is to have it in the log; why.
    Entry(String),
    /// Raft has ended, for this reason.
    Ended(String),
}

impl fmt::Display for RaftFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoLeader => f.write_str("the cluster has no leader that can be reached"),
            Self::NotLeader(_) => f.write_str("this node does not lead the cluster"),
            Self::Members(cause) => write!(f, "the members cannot be changed: {cause}"),
            Self::Founded => f.write_str("the cluster has been founded already"),
            Self::Entry(cause) => write!(f, "the leader does not take {cause}"),
            Self::Ended(cause) => write!(f, "raft has ended: {cause}"),
        }
    }
}

impl std::error::Error for RaftFailure {}

impl RaftNode {
    /// Starts raft on its directory, inside a tokio runtime. `on_applied` hears what changes in the tables, on raft's own
    /// task: it must not wait.
    ///
    /// # Errors
    /// When the directory cannot be used.
    pub async fn start(
        me: NodeId,
        directory: &Path,
        peers: Arc<Peers>,
        on_applied: Box<dyn FnMut(Applied) + Send + Sync>,
    ) -> Result<Self, StartError> {
        let log = LogStore::open(directory).map_err(|error| StartError(error.to_string()))?;
        let state = StateMachine::open(me, directory, on_applied)
            .map_err(|error| StartError(format!("the raft snapshot cannot be read: {error}")))?;
        let tables = state.tables();
        let config = Config {
            cluster_name: "corqtt".to_owned(),
            heartbeat_interval: HEARTBEAT_MS,
            election_timeout_min: ELECTION_MS.0,
            election_timeout_max: ELECTION_MS.1,
            snapshot_max_chunk_size: SNAPSHOT_PART_BYTES,
            install_snapshot_timeout: SNAPSHOT_PART_MS,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_ENTRIES),
            max_in_snapshot_log_to_keep: KEPT_ENTRIES,
            ..Config::default()
        };
        let config = config.validate().expect("constants that fit each other");
        let raft = Raft::new(
            me.0.get(),
            Arc::new(config),
            Network(peers.clone()),
            log,
            state,
        )
        .await
        .map_err(|error| StartError(format!("raft cannot start: {error}")))?;
        Ok(Self {
            me,
            raft,
            peers,
            tables,
            alone_since: Arc::default(),
        })
    }

    /// Founds a cluster of this node alone.
    ///
    /// # Errors
    /// When its directory belongs to one.
    pub async fn found(&self) -> Result<(), RaftFailure> {
        let members = BTreeMap::from([(self.me.0.get(), EmptyNode {})]);
        match self.raft.initialize(members).await {
            Ok(()) => Ok(()),
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Err(RaftFailure::Founded),
            Err(error) => Err(RaftFailure::Ended(error.to_string())),
        }
    }

    /// Looks something up in this node's tables; raft waits meanwhile.
    pub fn look<T>(&self, look: impl FnOnce(&Machine) -> T) -> T {
        self.tables.look(look)
    }

    /// Who leads, as far as this node knows.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        self.raft
            .metrics()
            .borrow()
            .current_leader
            .and_then(NodeId::new)
    }

    /// The voters, and those who only listen.
    #[must_use]
    pub fn members(&self) -> (Vec<NodeId>, Vec<NodeId>) {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let membership = metrics.membership_config.membership();
        (
            membership.voter_ids().filter_map(NodeId::new).collect(),
            membership.learner_ids().filter_map(NodeId::new).collect(),
        )
    }

    /// As leader: up to which entry each member has its log, and where the leader's own ends.
    #[must_use]
    pub fn progress(&self) -> (BTreeMap<NodeId, u64>, u64) {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let matched = metrics.replication.iter().flatten();
        // one that was never reached has nothing, and not the first entry
        let matched =
            matched.filter_map(|(node, last)| Some((NodeId::new(*node)?, (*last)?.index)));
        (matched.collect(), metrics.last_log_index.unwrap_or(0))
    }

    /// The voters that there will be, while a change of them is half done: whoever leads has to finish it (Ongaro and
    /// Ousterhout 2014, section 6).
    #[must_use]
    pub fn half_changed(&self) -> Option<Vec<NodeId>> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let configs = metrics
            .membership_config
            .membership()
            .get_joint_config()
            .clone();
        let last = configs.last().filter(|_| configs.len() > 1)?;
        Some(last.iter().copied().filter_map(NodeId::new).collect())
    }

    /// As leader, and by no other: an entry that this node's own view is the reason for.
    ///
    /// # Errors
    /// When this node does not lead, or it is not agreed on within `limit`.
    pub async fn propose_as_leader(
        &self,
        entry: &Entry,
        limit: Duration,
    ) -> Result<Agreed, RaftFailure> {
        let writing = self.write(Bytes::from(encode_entry(entry)));
        tokio::time::timeout(limit, writing)
            .await
            .unwrap_or(Err(RaftFailure::NoLeader))
    }

    /// Proposes an entry until the cluster has it; its index, and the machine's answer. An entry may be applied twice where
    /// its answer was lost: the machine knows repeats.
    ///
    /// # Errors
    /// When it is not agreed on within `limit`: it still may be.
    pub async fn propose(&self, entry: &Entry, limit: Duration) -> Result<Agreed, RaftFailure> {
        let bytes = Bytes::from(encode_entry(entry));
        let trying = async {
            loop {
                match self.try_propose(&bytes).await {
                    Err(RaftFailure::NoLeader | RaftFailure::NotLeader(_)) => {
                        tokio::time::sleep(RETRY).await;
                    }
                    done => break done,
                }
            }
        };
        tokio::time::timeout(limit, trying)
            .await
            .unwrap_or(Err(RaftFailure::NoLeader))
    }

    async fn try_propose(&self, entry: &Bytes) -> Result<Agreed, RaftFailure> {
        let leader = self.leader().ok_or(RaftFailure::NoLeader)?;
        if leader == self.me {
            return self.write(entry.clone()).await;
        }
        let proposal = Proposal(entry.clone());
        match self.peers.ask(leader, PROPOSE, &proposal, TRY_MAX).await {
            // it goes, another one comes
            Ok(Err(RaftFailure::Ended(_))) | Err(_) => Err(RaftFailure::NoLeader),
            Ok(answer) => answer,
        }
    }

    /// As leader.
    async fn write(&self, entry: Bytes) -> Result<Agreed, RaftFailure> {
        // what is in the log is applied by all, or they would differ
        decode_entry(&entry).map_err(|error| RaftFailure::Entry(error.to_string()))?;
        match self.raft.client_write(Proposal(entry)).await {
            Ok(written) => Ok(Agreed {
                index: written.log_id.index,
                answer: written.data.unwrap_or(Answer::Done),
            }),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => Err(
                RaftFailure::NotLeader(forward.leader_id.and_then(NodeId::new)),
            ),
            Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error))) => {
                Err(RaftFailure::Members(error.to_string()))
            }
            Err(RaftError::Fatal(error)) => Err(RaftFailure::Ended(error.to_string())),
        }
    }

    /// The commit index, once a quorum has confirmed after this call that its leader leads: what was committed before is
    /// at or below it (Ongaro 2014, section 6.4).
    ///
    /// # Errors
    /// When no leader confirms it within `limit`.
    pub async fn confirmed_index(&self, limit: Duration) -> Result<u64, RaftFailure> {
        let leader = self.leader().ok_or(RaftFailure::NoLeader)?;
        if leader == self.me {
            return tokio::time::timeout(limit, self.confirm())
                .await
                .unwrap_or(Err(RaftFailure::NoLeader));
        }
        let asked = self.peers.ask(leader, CONFIRM, &(), limit).await;
        asked.unwrap_or(Err(RaftFailure::NoLeader))
    }

    async fn confirm(&self) -> Result<u64, RaftFailure> {
        match self.raft.get_read_log_id().await {
            Ok((confirmed, _)) => Ok(confirmed.map_or(0, |id| id.index)),
            Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(forward))) => Err(
                RaftFailure::NotLeader(forward.leader_id.and_then(NodeId::new)),
            ),
            Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_))) => {
                Err(RaftFailure::NoLeader)
            }
            Err(RaftError::Fatal(error)) => Err(RaftFailure::Ended(error.to_string())),
        }
    }

    /// As leader: a node listens from now on, and catches up.
    ///
    /// # Errors
    /// When this node does not lead, or another change is under way.
    pub async fn add_learner(&self, node: NodeId) -> Result<(), RaftFailure> {
        let added = self
            .raft
            .add_learner(node.0.get(), EmptyNode {}, false)
            .await;
        members_changed(added.map(|_| ()))
    }

    /// As leader: these members vote from now on; the others are members no more, or listen.
    ///
    /// # Errors
    /// When this node does not lead, or another change is under way.
    pub async fn set_voters(
        &self,
        voters: &[NodeId],
        others_listen: bool,
    ) -> Result<(), RaftFailure> {
        let voters: std::collections::BTreeSet<u64> =
            voters.iter().map(|node| node.0.get()).collect();
        let changed = self.raft.change_membership(voters, others_listen).await;
        members_changed(changed.map(|_| ()))
    }

    /// As leader: these nodes, which do not vote, are members no more.
    ///
    /// # Errors
    /// When this node does not lead, or another change is under way.
    pub async fn remove_learners(&self, nodes: &[NodeId]) -> Result<(), RaftFailure> {
        let nodes = nodes.iter().map(|node| node.0.get()).collect();
        let change = ChangeMembers::RemoveNodes(nodes);
        let changed = self.raft.change_membership(change, false).await;
        members_changed(changed.map(|_| ()))
    }

    /// Answers a question of a peer; `None`: it is not one for raft.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn answer(&self, question: &[u8]) -> Result<Option<Vec<u8>>, InvalidQuestion> {
        let (kind, rest) = network::split(question)?;
        Ok(match kind {
            PROPOSE => {
                let Proposal(entry) = network::read(rest)?;
                Some(network::written(&self.write(entry).await))
            }
            CONFIRM => Some(network::written(&self.confirm().await)),
            _ => network::answer(&self.raft, kind, rest).await?,
        })
    }

    /// To be called every few tens of milliseconds, with a clock that goes on: a leader without a quorum stands for
    /// election, since openraft's does not step down by itself (Ongaro 2014, section 6.2).
    pub async fn check_quorum(&self, now: Instant) {
        let is_alone = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow();
            let voters = metrics.membership_config.membership().voter_ids().count();
            let heard = metrics.millis_since_quorum_ack.map(Duration::from_millis);
            let leads = metrics.current_leader == Some(self.me.0.get());
            // a leader that is new has heard of none yet
            leads && voters > 1 && heard.is_none_or(|heard| heard > QUORUM_LOST)
        };
        let stands = {
            let mut since = lock(&self.alone_since);
            match *since {
                _ if !is_alone => {
                    *since = None;
                    false
                }
                None => {
                    *since = Some(now);
                    false
                }
                Some(at) if now.duration_since(at) > QUORUM_LOST => {
                    *since = None;
                    true
                }
                Some(_) => false,
            }
        };
        if stands {
            // it has ended otherwise
            let _ = self.raft.trigger().elect().await;
        }
    }

    /// Ends raft on this node; its peers go on.
    pub async fn stop(&self) {
        // it has ended already, or ends now
        let _ = self.raft.shutdown().await;
    }
}

fn members_changed(
    changed: Result<(), RaftError<u64, ClientWriteError<u64, EmptyNode>>>,
) -> Result<(), RaftFailure> {
    match changed {
        Ok(()) => Ok(()),
        Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => Err(
            RaftFailure::NotLeader(forward.leader_id.and_then(NodeId::new)),
        ),
        Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error))) => {
            Err(RaftFailure::Members(error.to_string()))
        }
        Err(RaftError::Fatal(error)) => Err(RaftFailure::Ended(error.to_string())),
    }
}
