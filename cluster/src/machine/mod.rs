// SPDX-License-Identifier: Apache-2.0
//! The replicated machine: the tables, and what an entry does to them.
//!
//! Rows belong to a start of a node. A node says all of its rows when it starts (a series) and then what changes
//! (deltas, numbered); repeats are known, gaps refused. So a node that comes back replaces what was known of it, and one
//! that is dead leaves only what outlives it: sessions that a store keeps, and who wants what for them.

mod table;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroU64;

use compact_str::CompactString;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::entry::{Boot, Claim, Delta, Entry, NodeId, Rows, Timeouts, Want, Will, WillId};
use table::Table;

/// The cluster's tables, as of one index of the log.
///
/// [`Self::apply`] is called with each committed entry once, in the order of the log; what it gives out is for this node
/// alone. Two machines that applied the same entries are equal but for whose they are.
#[derive(Clone, Debug)]
pub struct Machine {
    me: NodeId,
    state: State,
    outputs: Vec<Output>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct State {
    cluster: Option<NonZeroU64>,
    timeouts: Option<Timeouts>,
    nodes: BTreeMap<NodeId, Node>,
    clients: Table<ClientRow>,
    /// By node and client, see [`will_key`].
    wills: Table<WillRow>,
    bans: BTreeSet<CompactString>,
    /// The last entry.
    applied: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Node {
    name: CompactString,
    /// Its last start; `None`: it has said nothing yet.
    boot: Option<Boot>,
    /// That start is over.
    is_dead: bool,
    /// The part of its series that comes next; `None`: it is complete.
    part: Option<u32>,
    /// Number of the delta that comes next.
    delta: u64,
    routes: Table<RouteRow>,
    /// Epochs of claims that ended sessions which its store may still have, by client.
    ended: Table<u64>,
    /// Verdicts of claims whose answer it may not have, by number; those below are known to it.
    claims: BTreeMap<u64, Verdict>,
    answered: u64,
}

/// What a node wants of a filter.
#[derive(Clone, Debug, Hash, Serialize, Deserialize)]
struct RouteRow {
    want: Want,
    /// In which start it said so.
    boot: Boot,
}

/// A will that its node publishes, or when it is dead another one.
#[derive(Clone, Debug, Hash, Serialize, Deserialize)]
struct WillRow {
    id: WillId,
    client_id: CompactString,
    delay_secs: u32,
    message: Vec<u8>,
    /// Who publishes it, since its node is dead.
    sender: Option<NodeId>,
}

/// Whom a client id belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ClientRow {
    /// As whom it connected.
    pub user: Option<CompactString>,
    /// What becomes of its session.
    pub kind: Kind,
    /// Where it is connected, with the number that its node gave the connection.
    pub connected: Option<(NodeId, u64)>,
    /// The entry that gave it away last.
    pub epoch: u64,
    /// In which start of its node the row was made.
    boot: Boot,
}

/// What becomes of a session without its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// It ends.
    Clean,
    /// It stays in a node's store.
    Kept {
        /// Whose.
        holder: NodeId,
        /// For so long (s).
        expiry_secs: u32,
    },
}

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRow {
    /// Its raft id.
    pub node: NodeId,
    /// Its name.
    pub name: CompactString,
    /// Its last start.
    pub boot: Option<Boot>,
    /// It has started, its series is complete, and it is not dead.
    pub is_live: bool,
    /// That start was declared dead.
    pub is_dead: bool,
}

/// How much is in a table, and a number that is equal where it is equal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableNumbers {
    /// Rows.
    pub rows: usize,
    /// Of all rows.
    pub digest: u64,
}

/// What whoever proposed an entry is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// It is applied, or was before.
    Done,
    /// Of a claim.
    Claim(Verdict),
    /// It is not.
    Refused(Refusal),
}

/// What becomes of a claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// The client id is the client's, with this epoch.
    Granted {
        /// The claim's index.
        epoch: u64,
    },
    /// Another node holds the session.
    HeldBy(NodeId),
    /// The client id is another user's.
    OtherUser,
    /// Nobody waited for it any more.
    Void,
}

/// Why an entry did nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// It is of a node that is no member.
    NoMember,
    /// It is of a start that is over, or has not said its rows yet.
    OtherBoot {
        /// The one that the table has.
        current: Option<Boot>,
    },
    /// Deltas or parts are missing before it.
    Gap {
        /// The number that comes next.
        next: u64,
    },
    /// Another member has that name.
    NameTaken(NodeId),
    /// The cluster is founded already.
    Founded,
    /// A node would be dead before its lease is over.
    Timeouts,
    /// It has been answered, and its node has the answer.
    Answered,
}

/// What this node has to do because of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Another node wants this of a filter from now on; `None`: nothing.
    Route {
        /// Which.
        node: NodeId,
        /// The whole filter.
        filter: CompactString,
        /// What.
        want: Option<Want>,
    },
    /// A client of that start of this node is connected elsewhere now: close that connection, and those before it.
    Taken {
        /// Who.
        client_id: CompactString,
        /// Which start.
        boot: Boot,
        /// Which.
        connection: u64,
    },
    /// A session that this node holds was ended by a claim elsewhere. Said again after each start until the node says
    /// [`Delta::Ended`] with that epoch.
    Ended {
        /// Whose.
        client_id: CompactString,
        /// The claim.
        epoch: u64,
    },
    /// This node publishes a dead node's will after its delay, unless it becomes void before, and says so with
    /// [`Delta::WillSent`]. Said again after a start, and with another delay: to be acted on once the node has caught up.
    WillDue {
        /// Whose copies are known by.
        id: WillId,
        /// Whose.
        client_id: CompactString,
        /// What.
        will: Will,
    },
    /// A will that was due is not to be published by this node: its client is back, or it is another node's to send.
    WillVoid {
        /// Which.
        id: WillId,
    },
    /// A start of this node was declared dead: if it is the present one its connections are to be closed, and it needs
    /// another one.
    Died {
        /// Which.
        boot: Boot,
    },
    /// A client id is banned, or no more.
    Ban {
        /// Which.
        client_id: CompactString,
        /// Whether.
        is_banned: bool,
    },
    /// A node came, went, died or was heard of again.
    Members,
}

/// Bytes that are no snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidSnapshot {
    /// Of a later version.
    Version(u8),
    /// Not what a snapshot looks like.
    Malformed,
}

impl fmt::Display for InvalidSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => write!(
                f,
                "a snapshot of version {version}, this node knows {SNAPSHOT_VERSION}: it needs the release of its peers"
            ),
            Self::Malformed => f.write_str("a snapshot that cannot be read"),
        }
    }
}

impl std::error::Error for InvalidSnapshot {}

const SNAPSHOT_VERSION: u8 = 1;

impl Want {
    /// What is left of it when the node is dead.
    const fn of_dead(self) -> Option<Self> {
        match self {
            Self::Plain { persistent: true } => Some(self),
            Self::Plain { persistent: false } => None,
            Self::Group {
                kept,
                offline,
                persistent,
                ..
            } => {
                let offline = u32::saturating_add(offline, kept);
                if offline == 0 {
                    return None;
                }
                Some(Self::Group {
                    clean: 0,
                    kept: 0,
                    offline,
                    persistent,
                })
            }
        }
    }
}

impl Node {
    const fn is_live(&self) -> bool {
        self.boot.is_some() && self.part.is_none() && !self.is_dead
    }

    fn row(&self, id: NodeId) -> NodeRow {
        NodeRow {
            node: id,
            name: self.name.clone(),
            boot: self.boot,
            is_live: self.is_live(),
            is_dead: self.is_dead,
        }
    }
}

impl Machine {
    /// Empty tables of node `me`.
    #[must_use]
    pub fn new(me: NodeId) -> Self {
        Self {
            me,
            state: State::default(),
            outputs: Vec::new(),
        }
    }

    /// The tables of a snapshot. What they say comes out as outputs, as if it were new; so does what has changed since
    /// `before` for the clients of this node.
    ///
    /// # Errors
    /// When the bytes are none that this version knows.
    pub fn restore(
        me: NodeId,
        snapshot: &[u8],
        before: Option<&Self>,
    ) -> Result<Self, InvalidSnapshot> {
        let rest = match snapshot.split_first() {
            Some((&SNAPSHOT_VERSION, rest)) => rest,
            Some((version, _)) => return Err(InvalidSnapshot::Version(*version)),
            None => return Err(InvalidSnapshot::Malformed),
        };
        let Ok((state, [])) = postcard::take_from_bytes::<State>(rest) else {
            return Err(InvalidSnapshot::Malformed);
        };
        let mut machine = Self {
            me,
            state,
            outputs: Vec::new(),
        };
        if let Some(before) = before {
            machine.say_changes(before);
        }
        machine.say_all();
        Ok(machine)
    }

    /// All tables as bytes, for [`Self::restore`].
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        // fails for sequences of unknown length only
        postcard::to_extend(&self.state, vec![SNAPSHOT_VERSION]).expect("tables are plain values")
    }

    /// The last entry that was applied; 0: none.
    #[must_use]
    pub const fn applied(&self) -> u64 {
        self.state.applied
    }

    /// The cluster's name, once it is founded.
    #[must_use]
    pub const fn cluster(&self) -> Option<NonZeroU64> {
        self.state.cluster
    }

    /// The cluster's timeouts, once it is founded.
    #[must_use]
    pub const fn timeouts(&self) -> Option<Timeouts> {
        self.state.timeouts
    }

    /// All members, by id.
    pub fn nodes(&self) -> impl Iterator<Item = NodeRow> {
        self.state.nodes.iter().map(|(id, node)| node.row(*id))
    }

    /// One of them.
    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<NodeRow> {
        self.state.nodes.get(&id).map(|node| node.row(id))
    }

    /// Whom a client id belongs to.
    #[must_use]
    pub fn client(&self, client_id: &str) -> Option<&ClientRow> {
        self.state.clients.get(client_id)
    }

    /// Sessions of a node's store that a claim elsewhere has ended, with that claim, and that it has not said to be gone;
    /// without those clients whose session it holds again since.
    #[must_use]
    pub fn ended_of(&self, node: NodeId) -> Vec<(CompactString, u64)> {
        let Some(row) = self.state.nodes.get(&node) else {
            return Vec::new();
        };
        let names = row.ended.names(|_| true).into_iter();
        let ended = names.filter_map(|name| {
            let epoch = *row.ended.get(&name)?;
            let now = self.state.clients.get(&name);
            let is_back = now.is_some_and(|now| now.holder() == Some(node) && now.epoch > epoch);
            (!is_back).then_some((name, epoch))
        });
        ended.collect()
    }

    /// Clients that are connected; looks at all of them.
    #[must_use]
    pub fn clients_connected(&self) -> usize {
        let rows = self.state.clients.iter();
        rows.filter(|(_, row)| row.connected.is_some()).count()
    }

    /// Whether a client id is banned.
    #[must_use]
    pub fn is_banned(&self, client_id: &str) -> bool {
        self.state.bans.contains(client_id)
    }

    /// Of the clients.
    #[must_use]
    pub fn client_numbers(&self) -> TableNumbers {
        numbers(&self.state.clients)
    }

    /// Of all nodes' routes.
    #[must_use]
    pub fn route_numbers(&self) -> TableNumbers {
        sum(self.state.nodes.values().map(|node| numbers(&node.routes)))
    }

    /// Of all nodes' wills.
    #[must_use]
    pub fn will_numbers(&self) -> TableNumbers {
        numbers(&self.state.wills)
    }

    /// What this node has to do next because of entries, in order.
    pub fn poll_output(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    /// Applies the entry of an index, which is above [`Self::applied`].
    pub fn apply(&mut self, index: u64, entry: Entry) -> Answer {
        debug_assert!(index > self.state.applied, "each entry once, in order");
        self.state.applied = index;
        let done = match entry {
            Entry::Founded { cluster, timeouts } => self.found(cluster, timeouts),
            Entry::Joined { node, name } => self.join(node, name),
            Entry::Rows { node, boot, rows } => self.rows(index, node, boot, rows),
            Entry::Claim(claim) => match self.claim(index, claim) {
                Ok(verdict) => return Answer::Claim(verdict),
                Err(refusal) => Err(refusal),
            },
            Entry::Unclaimed { node, boot, number } => match self.unclaimed(node, boot, number) {
                Ok(verdict) => return Answer::Claim(verdict),
                Err(refusal) => Err(refusal),
            },
            Entry::NodeDead { node, boot } => {
                let known = self.state.nodes.get(&node);
                if known.is_some_and(|known| known.boot == Some(boot) && !known.is_dead) {
                    if node == self.me {
                        self.outputs.push(Output::Died { boot });
                    }
                    self.bury(node);
                }
                Ok(())
            }
            Entry::NodeRemoved { node } => {
                self.remove(node);
                Ok(())
            }
            Entry::Ban {
                client_id,
                is_banned,
            } => {
                let changed = if is_banned {
                    self.state.bans.insert(client_id.clone())
                } else {
                    self.state.bans.remove(&client_id)
                };
                if changed {
                    self.outputs.push(Output::Ban {
                        client_id,
                        is_banned,
                    });
                }
                Ok(())
            }
        };
        match done {
            Ok(()) => Answer::Done,
            Err(refusal) => Answer::Refused(refusal),
        }
    }

    fn found(&mut self, cluster: NonZeroU64, timeouts: Timeouts) -> Result<(), Refusal> {
        if self.state.cluster.is_some() {
            return Err(Refusal::Founded);
        }
        if !timeouts.are_possible() {
            return Err(Refusal::Timeouts);
        }
        self.state.cluster = Some(cluster);
        self.state.timeouts = Some(timeouts);
        Ok(())
    }

    fn join(&mut self, node: NodeId, name: CompactString) -> Result<(), Refusal> {
        let mut others = self.state.nodes.iter();
        if let Some((other, _)) = others.find(|(id, row)| **id != node && row.name == name) {
            return Err(Refusal::NameTaken(*other));
        }
        self.state.nodes.entry(node).or_default().name = name;
        self.outputs.push(Output::Members);
        Ok(())
    }

    /// The row of a member whose present start is `boot`, and is not over.
    fn current(&mut self, node: NodeId, boot: Boot) -> Result<&mut Node, Refusal> {
        let row = self.state.nodes.get_mut(&node).ok_or(Refusal::NoMember)?;
        if row.boot != Some(boot) || row.is_dead {
            return Err(Refusal::OtherBoot { current: row.boot });
        }
        Ok(row)
    }

    fn rows(&mut self, index: u64, node: NodeId, boot: Boot, rows: Rows) -> Result<(), Refusal> {
        match rows {
            Rows::Series {
                part,
                is_last,
                sessions,
                deltas,
            } => {
                if part == 0 && !self.begin_series(node, boot)? {
                    return Ok(());
                }
                let row = self.current(node, boot)?;
                match row.part {
                    Some(next) if next == part => row.part = Some(part + 1),
                    // a repeat
                    None => return Ok(()),
                    Some(next) if part < next => return Ok(()),
                    Some(next) => return Err(Refusal::Gap { next: next.into() }),
                }
                for (client_id, user, expiry_secs) in sessions {
                    self.state_session(index, node, boot, client_id, user, expiry_secs);
                }
                self.deltas(index, node, boot, deltas);
                if is_last {
                    self.end_series(node, boot);
                }
                Ok(())
            }
            Rows::Deltas { first, mut deltas } => {
                let row = self.current(node, boot)?;
                if row.part.is_some() {
                    return Err(Refusal::Gap { next: 0 });
                }
                if first > row.delta {
                    return Err(Refusal::Gap { next: row.delta });
                }
                let known = (row.delta - first).min(deltas.len() as u64);
                row.delta += deltas.len() as u64 - known;
                deltas.drain(..known as usize);
                self.deltas(index, node, boot, deltas);
                Ok(())
            }
        }
    }

    /// A node has started anew: whether that was not known. What it said in its former start is over as if it were dead.
    fn begin_series(&mut self, node: NodeId, boot: Boot) -> Result<bool, Refusal> {
        let row = self.state.nodes.get(&node).ok_or(Refusal::NoMember)?;
        if row.boot == Some(boot) && !row.is_dead {
            return Ok(false);
        }
        if row.boot.is_some_and(|known| known >= boot) {
            return Err(Refusal::OtherBoot { current: row.boot });
        }
        if row.boot.is_some() && !row.is_dead {
            self.bury(node);
        }
        if let Some(row) = self.state.nodes.get_mut(&node) {
            row.boot = Some(boot);
            row.is_dead = false;
            row.part = Some(0);
            row.delta = 1;
            row.claims.clear();
            row.answered = 0;
        }
        Ok(true)
    }

    /// A node's store has a session.
    fn state_session(
        &mut self,
        index: u64,
        node: NodeId,
        boot: Boot,
        client_id: CompactString,
        user: Option<CompactString>,
        expiry_secs: u32,
    ) {
        let row = self.state.clients.get(&client_id);
        let back_at = row
            .filter(|row| row.holder() == Some(node))
            .map(|row| row.epoch);
        let mut ended = false;
        if let Some(row) = self.state.nodes.get_mut(&node)
            && let Some(epoch) = row.ended.get(&client_id).copied()
        {
            // the node has claimed it again since
            ended = back_at.is_none_or(|back_at| back_at < epoch);
            if !ended {
                row.ended.remove(&client_id);
            }
        }
        let epoch = match self.state.clients.get(&client_id) {
            // the node did not know yet when it said this
            _ if ended => return,
            // and may not have had it on its disk when it said that this one was gone
            Some(row) if row.holder() != Some(node) => {
                let epoch = row.epoch;
                return self.end_held(node, client_id, epoch);
            }
            Some(row) => row.epoch,
            None => index,
        };
        let row = ClientRow {
            user,
            kind: Kind::Kept {
                holder: node,
                expiry_secs,
            },
            connected: None,
            epoch,
            boot,
        };
        self.state.clients.insert(client_id, row);
    }

    /// What the series did not name is not there any more.
    fn end_series(&mut self, node: NodeId, boot: Boot) {
        let is_old = |row: &ClientRow| row.holder() == Some(node) && row.boot < boot;
        for client_id in self.state.clients.names(is_old) {
            self.state.clients.remove(&client_id);
        }
        let Some(row) = self.state.nodes.get_mut(&node) else {
            return;
        };
        row.part = None;
        for filter in row.routes.names(|route| route.boot < boot) {
            row.routes.remove(&filter);
            if node != self.me {
                let want = None;
                self.outputs.push(Output::Route { node, filter, want });
            }
        }
        self.outputs.push(Output::Members);
        // there may have been nobody else to send them
        self.assign_wills();
    }

    fn deltas(&mut self, index: u64, node: NodeId, boot: Boot, deltas: Vec<Delta>) {
        for (at, delta) in deltas.into_iter().enumerate() {
            match delta {
                Delta::Route { filter, want } => self.route(node, boot, filter, want),
                Delta::Connected {
                    client_id,
                    user,
                    connection,
                    since,
                } => self.connected(index, node, boot, client_id, user, connection, since),
                Delta::Disconnected {
                    client_id,
                    connection,
                } => self.disconnected(node, &client_id, connection),
                Delta::Ended { client_id, epoch } => self.ended(node, &client_id, epoch),
                Delta::WillSent { id, client_id } => self.will_sent(node, id, &client_id),
                Delta::Will { client_id, will } => {
                    let id = WillId {
                        node,
                        boot,
                        index,
                        delta: at as u32,
                    };
                    self.will(id, client_id, will);
                }
            }
        }
    }

    fn route(&mut self, node: NodeId, boot: Boot, filter: CompactString, want: Option<Want>) {
        let Some(row) = self.state.nodes.get_mut(&node) else {
            return;
        };
        let old = match want {
            Some(want) => row.routes.insert(filter.clone(), RouteRow { want, boot }),
            None => row.routes.remove(&filter),
        };
        if node != self.me && old.map(|old| old.want) != want {
            self.outputs.push(Output::Route { node, filter, want });
        }
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "the parts of one delta, and whose it is"
    )]
    fn connected(
        &mut self,
        index: u64,
        node: NodeId,
        boot: Boot,
        client_id: CompactString,
        user: Option<CompactString>,
        connection: u64,
        since: u64,
    ) {
        if let Some(row) = self.state.clients.get(&client_id) {
            if row
                .connected
                .is_some_and(|(at, known)| at == node && known > connection)
            {
                return;
            }
            let is_elsewhere = row.owners().any(|owner| owner != node);
            if is_elsewhere && row.epoch > since {
                return self.take(node, client_id, boot, connection);
            }
        }
        let row = ClientRow {
            user,
            kind: Kind::Clean,
            connected: Some((node, connection)),
            epoch: index,
            boot,
        };
        self.give(client_id, row);
    }

    /// A client id has a new owner: those before it hear of it.
    fn give(&mut self, client_id: CompactString, row: ClientRow) {
        let (owner, holder, epoch) = (row.connected, row.holder(), row.epoch);
        let old = self.state.clients.insert(client_id.clone(), row);
        let goes_on = holder.is_some() && old.as_ref().and_then(ClientRow::holder) == holder;
        if let Some(old) = old {
            if let Some((node, connection)) = old.connected
                && owner.map(|(node, _)| node) != Some(node)
            {
                self.take(node, client_id.clone(), old.boot, connection);
            }
            if let Some(former) = old.holder()
                && holder != Some(former)
            {
                self.end_held(former, client_id.clone(), epoch);
            }
        }
        self.settle_due(&client_id, goes_on);
    }

    /// A node's connection of a client is over.
    fn take(&mut self, node: NodeId, client_id: CompactString, boot: Boot, connection: u64) {
        if node == self.me {
            self.outputs.push(Output::Taken {
                client_id,
                boot,
                connection,
            });
        }
    }

    /// A session that a node holds is over; it may not know for long.
    fn end_held(&mut self, holder: NodeId, client_id: CompactString, epoch: u64) {
        let Some(row) = self.state.nodes.get_mut(&holder) else {
            return;
        };
        row.ended.insert(client_id.clone(), epoch);
        if holder == self.me {
            self.outputs.push(Output::Ended { client_id, epoch });
        }
    }

    /// A node's store does not have a session any more.
    fn ended(&mut self, node: NodeId, client_id: &str, epoch: u64) {
        if let Some(row) = self.state.nodes.get_mut(&node)
            && row.ended.get(client_id) == Some(&epoch)
        {
            row.ended.remove(client_id);
        }
        let row = self.state.clients.get(client_id);
        if row.is_some_and(|row| row.holder() == Some(node) && row.epoch == epoch) {
            self.state.clients.remove(client_id);
        }
    }

    /// A client is back whose will was due. If its session goes on the will is void `[MQTT5-3.1.3-9]`; otherwise that
    /// session has ended, and the will is due at once.
    fn settle_due(&mut self, client_id: &str, goes_on: bool) {
        let nodes: Vec<NodeId> = self.state.nodes.keys().copied().collect();
        for node in nodes {
            let key = will_key(node, client_id);
            let Some(will) = self.state.wills.get(&key) else {
                continue;
            };
            let Some(sender) = will.sender else { continue };
            let id = will.id;
            if goes_on {
                self.state.wills.remove(&key);
                if sender == self.me {
                    self.outputs.push(Output::WillVoid { id });
                }
            } else if will.delay_secs > 0 {
                let will = WillRow {
                    delay_secs: 0,
                    ..will.clone()
                };
                if sender == self.me {
                    self.outputs.push(due(&will));
                }
                self.state.wills.insert(key, will);
            }
        }
    }

    fn disconnected(&mut self, node: NodeId, client_id: &CompactString, connection: u64) {
        let Some(row) = self.state.clients.get(client_id) else {
            return;
        };
        if row.connected != Some((node, connection)) {
            return;
        }
        match row.kind {
            Kind::Clean => {
                self.state.clients.remove(client_id);
            }
            Kind::Kept { .. } => {
                let row = ClientRow {
                    connected: None,
                    ..row.clone()
                };
                self.state.clients.insert(client_id.clone(), row);
            }
        }
    }

    fn will(&mut self, id: WillId, client_id: CompactString, will: Option<Will>) {
        let key = will_key(id.node, &client_id);
        let known = self.state.wills.get(&key);
        // one that is due is its sender's
        let due = known.and_then(|known| Some((known.id, known.sender?)));
        match (will, due) {
            (Some(will), due) => {
                if let Some((id, sender)) = due
                    && sender == self.me
                {
                    self.outputs.push(Output::WillVoid { id });
                }
                let row = WillRow {
                    id,
                    client_id,
                    delay_secs: will.delay_secs,
                    message: will.message,
                    sender: None,
                };
                self.state.wills.insert(key, row);
            }
            (None, None) => {
                self.state.wills.remove(&key);
            }
            (None, Some(_)) => {}
        }
    }

    fn will_sent(&mut self, node: NodeId, id: WillId, client_id: &str) {
        let key = will_key(id.node, client_id);
        let will = self.state.wills.get(&key);
        if will.is_some_and(|will| will.id == id && will.sender == Some(node)) {
            self.state.wills.remove(&key);
        }
    }

    fn claim(&mut self, index: u64, claim: Claim) -> Result<Verdict, Refusal> {
        let row = self.current(claim.node, claim.boot)?;
        if row.part.is_some() {
            return Err(Refusal::OtherBoot { current: row.boot });
        }
        if claim.answered > row.answered {
            row.answered = claim.answered;
            row.claims = row.claims.split_off(&claim.answered);
        }
        if claim.number < row.answered {
            return Err(Refusal::Answered);
        }
        if let Some(verdict) = row.claims.get(&claim.number) {
            return Ok(verdict.clone());
        }
        let (node, number) = (claim.node, claim.number);
        let verdict = self.judge(index, claim);
        if let Some(row) = self.state.nodes.get_mut(&node) {
            row.claims.insert(number, verdict.clone());
        }
        Ok(verdict)
    }

    /// A claim is void from now on, or was judged before; its verdict.
    fn unclaimed(&mut self, node: NodeId, boot: Boot, number: u64) -> Result<Verdict, Refusal> {
        let row = self.current(node, boot)?;
        if number < row.answered {
            return Err(Refusal::Answered);
        }
        let verdict = row.claims.entry(number).or_insert(Verdict::Void);
        Ok(verdict.clone())
    }

    fn judge(&mut self, index: u64, claim: Claim) -> Verdict {
        let mut is_held_here = false;
        if let Some(row) = self.state.clients.get(&claim.client_id) {
            if row.user != claim.user {
                return Verdict::OtherUser;
            }
            if let Some(holder) = row.holder()
                && holder != claim.node
                && !claim.clean_start
            {
                return Verdict::HeldBy(holder);
            }
            is_held_here = row.holder() == Some(claim.node);
        }
        // a session that goes on is kept, if only up to the end of this connection
        let goes_on = !claim.clean_start && is_held_here;
        let kind = match claim.expiry_secs {
            0 if !goes_on => Kind::Clean,
            expiry_secs => Kind::Kept {
                holder: claim.node,
                expiry_secs,
            },
        };
        let row = ClientRow::new(&claim, kind, index);
        self.give(claim.client_id, row);
        Verdict::Granted { epoch: index }
    }

    /// A start of a node is over: what goes with its connections goes, and its wills are due.
    fn bury(&mut self, node: NodeId) {
        let Some(row) = self.state.nodes.get_mut(&node) else {
            return;
        };
        row.is_dead = true;
        row.part = None;
        for filter in row
            .routes
            .names(|route| route.want.of_dead() != Some(route.want))
        {
            let Some(RouteRow { want, boot }) = row.routes.remove(&filter) else {
                continue;
            };
            let want = want.of_dead();
            if let Some(want) = want {
                row.routes.insert(filter.clone(), RouteRow { want, boot });
            }
            if node != self.me {
                self.outputs.push(Output::Route { node, filter, want });
            }
        }
        let is_here = |row: &ClientRow| row.connected.is_some_and(|(at, _)| at == node);
        for client_id in self.state.clients.names(is_here) {
            if let Some(connection) = self
                .state
                .clients
                .get(&client_id)
                .and_then(|row| row.connected)
            {
                self.disconnected(node, &client_id, connection.1);
            }
        }
        self.outputs.push(Output::Members);
        self.assign_wills();
    }

    /// Every will of a start that is over has a live sender, as far as there is one.
    fn assign_wills(&mut self) {
        let nodes = &self.state.nodes;
        let live: Vec<NodeId> = nodes
            .iter()
            .filter(|(_, row)| row.is_live())
            .map(|(node, _)| *node)
            .collect();
        let is_over = |id: WillId| {
            nodes
                .get(&id.node)
                .is_none_or(|row| row.is_dead || row.boot != Some(id.boot))
        };
        let orphaned = |will: &WillRow| match will.sender {
            None => is_over(will.id),
            Some(sender) => !live.contains(&sender),
        };
        for key in self.state.wills.names(orphaned) {
            let Some(will) = self.state.wills.get(&key).cloned() else {
                continue;
            };
            let sender = rendezvous(&live, &will.client_id);
            if will.sender == Some(self.me) {
                self.outputs.push(Output::WillVoid { id: will.id });
            }
            if sender == Some(self.me) {
                self.outputs.push(due(&will));
            }
            self.state.wills.insert(key, WillRow { sender, ..will });
        }
    }

    fn remove(&mut self, node: NodeId) {
        if self.state.nodes.get(&node).is_some_and(|row| !row.is_dead) {
            self.bury(node);
        }
        let Some(row) = self.state.nodes.remove(&node) else {
            return;
        };
        for filter in row.routes.names(|_| true) {
            if node != self.me {
                let want = None;
                self.outputs.push(Output::Route { node, filter, want });
            }
        }
        let is_held = |row: &ClientRow| row.holder() == Some(node);
        for client_id in self.state.clients.names(is_held) {
            self.state.clients.remove(&client_id);
        }
        self.outputs.push(Output::Members);
    }

    /// What has become of this node's own since `before`.
    fn say_changes(&mut self, before: &Self) {
        let me = self.me;
        let was_here = |row: &ClientRow| row.connected.is_some_and(|(node, _)| node == me);
        for client_id in before.state.clients.names(was_here) {
            let Some(old) = before.state.clients.get(&client_id) else {
                continue;
            };
            let now = self
                .state
                .clients
                .get(&client_id)
                .and_then(|row| row.connected);
            if let Some((_, connection)) = old.connected
                && now.is_none_or(|(node, _)| node != me)
            {
                self.take(me, client_id, old.boot, connection);
            }
        }
        for key in before.state.wills.names(|will| will.sender == Some(me)) {
            let Some(id) = before.state.wills.get(&key).map(|will| will.id) else {
                continue;
            };
            let now = self.state.wills.get(&key);
            if now.is_none_or(|will| will.id != id || will.sender != Some(me)) {
                self.outputs.push(Output::WillVoid { id });
            }
        }
    }

    /// Everything that others than this node have said, as if it were new.
    fn say_all(&mut self) {
        let me = self.me;
        for (node, row) in &self.state.nodes {
            if *node != me {
                let mut routes: Vec<_> = row.routes.iter().collect();
                routes.sort_unstable_by_key(|(filter, _)| *filter);
                self.outputs
                    .extend(routes.into_iter().map(|(filter, route)| Output::Route {
                        node: *node,
                        filter: filter.clone(),
                        want: Some(route.want),
                    }));
            }
            if *node == me
                && let Some(boot) = row.boot.filter(|_| row.is_dead)
            {
                self.outputs.push(Output::Died { boot });
            }
        }
        for (client_id, epoch) in self.ended_of(me) {
            self.outputs.push(Output::Ended { client_id, epoch });
        }
        for key in self.state.wills.names(|will| will.sender == Some(me)) {
            if let Some(will) = self.state.wills.get(&key) {
                self.outputs.push(due(will));
            }
        }
        let bans = self.state.bans.iter().map(|client_id| Output::Ban {
            client_id: client_id.clone(),
            is_banned: true,
        });
        self.outputs.extend(bans);
        self.outputs.push(Output::Members);
    }
}

impl ClientRow {
    /// Of a claim that was granted at that index.
    pub(crate) fn new(claim: &Claim, kind: Kind, epoch: u64) -> Self {
        Self {
            user: claim.user.clone(),
            kind,
            connected: Some((claim.node, claim.connection)),
            epoch,
            boot: claim.boot,
        }
    }

    /// Whose store has its session.
    #[must_use]
    pub const fn holder(&self) -> Option<NodeId> {
        match self.kind {
            Kind::Clean => None,
            Kind::Kept { holder, .. } => Some(holder),
        }
    }

    /// Nodes that have its connection or its session.
    fn owners(&self) -> impl Iterator<Item = NodeId> {
        let connected = self.connected.map(|(node, _)| node);
        connected.into_iter().chain(self.holder())
    }
}

/// A client may have one on each node.
fn will_key(node: NodeId, client_id: &str) -> CompactString {
    compact_str::format_compact!("{:016x}{client_id}", node.0)
}

fn due(will: &WillRow) -> Output {
    Output::WillDue {
        id: will.id,
        client_id: will.client_id.clone(),
        will: Will {
            delay_secs: will.delay_secs,
            message: will.message.clone(),
        },
    }
}

/// The same node everywhere, and another one for another client (highest random weight, Thaler and Ravishankar 1998).
fn rendezvous(nodes: &[NodeId], client_id: &str) -> Option<NodeId> {
    let weight = |node: &NodeId| {
        let mut key = node.0.get().to_le_bytes().to_vec();
        key.extend_from_slice(client_id.as_bytes());
        (xxh3_64(&key), *node)
    };
    nodes.iter().copied().max_by_key(weight)
}

fn numbers<V: std::hash::Hash>(table: &Table<V>) -> TableNumbers {
    TableNumbers {
        rows: table.len(),
        digest: table.digest(),
    }
}

fn sum(tables: impl Iterator<Item = TableNumbers>) -> TableNumbers {
    tables.fold(TableNumbers::default(), |sum, table| TableNumbers {
        rows: sum.rows + table.rows,
        digest: sum.digest.wrapping_add(table.digest),
    })
}
