// SPDX-License-Identifier: Apache-2.0
//! Between this node's shards and the cluster: what shards send to a lane goes to the tables or to a node, what comes
//! from there goes to the shards, and marks go back on the same way.
//!
//! ```text
//!  shard ─ interest ─► OwnRoutes ─► deltas ─► tables            settled ─► mark
//!  shard ─ publish ──► wire ─► Stream (per node and shard) ─►   Mark ────► mark
//!  tables ─ Route ───► interest ─┐
//!  node ── Stream ─► wire ───────┴► Merge (per node and shard) ─► batch    mark ─► applied index, or the stream's mark
//! ```
//!
//! Lanes are numbered as shards number them: the shards of this node, the tables, the other nodes.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use corqtt_port::routes::{Batch, Item, Mark};
use corqtt_quic::{Incoming, MarkSender, Opening, Stream};
use corqtt_topics::{Interest, ShardId, Want as ShardWant};
use corqtt_wire::{StreamHeader, decode_publishes, encode_publishes};
use tokio::sync::Notify;

use crate::core::Carrier;
use crate::entry::{Delta, NodeId, Want};
use crate::machine::Output;
use crate::merge::Merge;
use crate::own::OwnRoutes;
use crate::threads::lock;

/// What a stream keeps for a peer at most (bytes): more than a lane lets out before it is full.
const STREAM_BYTES_MAX: usize = 256 << 20;
/// Items of one node that a shard has not kept; its streams are not read beyond.
const OUTSTANDING_MAX: u64 = 64 * 1024;
/// The verdict of an entry that was refused.
const REFUSED: u8 = 1;

/// The shards of this node, as seen from here. Must not wait.
pub trait Shards: Send + Sync + 'static {
    /// For a shard, from the lane that the batch names.
    fn batch(&self, shard: ShardId, batch: Batch);
    /// To a shard, from the lane that the mark names.
    fn mark(&self, shard: ShardId, mark: Mark);
}

/// Where items of a node's lane come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Tables,
    /// A stream, by its place.
    Stream(usize),
}

/// A stream of a peer's shard; it outlives the links that carry it.
#[derive(Debug)]
struct Source {
    peer: NodeId,
    /// As its sender names it.
    stream: u64,
    of_shard: u8,
    state: Mutex<Arriving>,
}

#[derive(Debug, Default)]
struct Arriving {
    incoming: Incoming,
    /// Which link carries it: what still comes over an earlier one is not for it.
    link: u64,
    marks: Option<MarkSender>,
    done: u64,
    kept: u64,
}

/// The order of what one node has for one of the shards.
#[derive(Debug)]
struct Inbound {
    merge: Merge<Origin>,
    /// Items of the tables so far.
    of_tables: u64,
    /// (number among them, index of the entry) that are not done, ascending.
    applying: VecDeque<(u64, u64)>,
}

#[derive(Debug)]
struct Node {
    /// Per shard of this node.
    streams: Vec<Arc<Stream>>,
    inbound: Vec<Inbound>,
}

#[derive(Debug, Default)]
struct State {
    lanes: BTreeMap<NodeId, u8>,
    nodes: Vec<Option<Node>>,
    sources: Vec<Arc<Source>>,
    own: OwnRoutes,
    /// Per shard: (last item, ticket) that are not settled, ascending.
    settling: Vec<VecDeque<(u64, u64)>>,
    ticket: u64,
    /// What was pushed up to this ticket is settled.
    settled: u64,
    /// Batches that are not done, by index of their entry.
    applying: BTreeMap<u64, u32>,
    /// The last entry.
    index: u64,
}

/// Between the shards and the cluster.
pub struct Exchange {
    shards: u8,
    /// Lanes that there are for nodes.
    nodes: u8,
    /// Drawn for this process: its streams are nobody else's.
    store: u64,
    to: Box<dyn Shards>,
    state: Mutex<State>,
    /// A shard has marked something.
    marked: Notify,
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange")
            .field("shards", &self.shards)
            .field("nodes", &self.nodes)
            .finish_non_exhaustive()
    }
}

fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

impl Exchange {
    /// Of a node with so many shards, and lanes for so many other nodes. `store` is drawn for this process.
    #[must_use]
    pub fn new(shards: u8, nodes: u8, store: u64, to: Box<dyn Shards>) -> Arc<Self> {
        let state = State {
            nodes: (0..nodes).map(|_| None).collect(),
            settling: (0..shards).map(|_| VecDeque::new()).collect(),
            ..State::default()
        };
        Arc::new(Self {
            shards,
            nodes,
            store,
            to,
            state: Mutex::new(state),
            marked: Notify::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// It is the lane to the tables; those behind it are nodes'.
    #[must_use]
    pub const fn is_of_tables(&self, lane: ShardId) -> bool {
        lane.0 == self.shards
    }

    const fn lane(&self, node: u8) -> ShardId {
        ShardId(self.shards + 1 + node)
    }

    /// The place of a node among the lanes; it gets one. `None`: there are no more.
    fn place(&self, state: &mut State, node: NodeId) -> Option<u8> {
        if let Some(place) = state.lanes.get(&node) {
            return Some(*place);
        }
        let free = state.nodes.iter().position(Option::is_none)?;
        let of_shards = || 0..self.shards;
        state.nodes[free] = Some(Node {
            streams: of_shards()
                .map(|_| Arc::new(Stream::new(STREAM_BYTES_MAX)))
                .collect(),
            inbound: of_shards()
                .map(|_| Inbound {
                    merge: Merge::new(),
                    of_tables: 0,
                    applying: VecDeque::new(),
                })
                .collect(),
        });
        state.lanes.insert(node, free as u8);
        Some(free as u8)
    }

    /// A shard tells the tables' lane what it wants: what the node says of it, with `push`, which gives the ticket of the
    /// last one (see [`crate::Proposer::push`]). It is called under a lock, so that tickets are in order.
    pub fn interest(&self, batch: &Batch, push: impl FnOnce(Vec<Delta>) -> u64) {
        let mut state = self.state();
        let shard = batch.from.0;
        let deltas: Vec<Delta> = batch
            .items
            .iter()
            .filter_map(|item| match item {
                Item::Interest(interest) => {
                    let want = node_want(interest.want);
                    state.own.set(shard, &interest.filter, want)
                }
                Item::Publish(_) | Item::Retain(..) => None,
            })
            .collect();
        if !deltas.is_empty() {
            state.ticket = push(deltas);
        }
        let last = batch.first + batch.items.len() as u64 - 1;
        let (ticket, settled) = (state.ticket, state.settled);
        state.settling[usize::from(shard)].push_back((last, ticket));
        drop(state);
        // where nothing changed it may be settled already
        if ticket <= settled {
            self.settled(settled);
        }
    }

    /// All of this node's routes.
    #[must_use]
    pub fn routes(&self) -> Vec<Delta> {
        self.state().own.all().collect()
    }

    /// The tables' lane is done with what was pushed up to this ticket.
    pub fn settled(&self, ticket: u64) {
        let mut marks = Vec::new();
        let mut state = self.state();
        state.settled = state.settled.max(ticket);
        for (shard, settling) in (0..).zip(&mut state.settling) {
            let mut upto = None;
            while let Some((item, _)) = settling.front().filter(|(_, of)| *of <= ticket) {
                upto = Some(*item);
                settling.pop_front();
            }
            marks.extend(upto.map(|upto| (ShardId(shard), upto)));
        }
        drop(state);
        for (shard, upto) in marks {
            let mark = Mark {
                from: ShardId(self.shards),
                upto,
                kept: upto,
                refused: Vec::new(),
            };
            self.to.mark(shard, mark);
        }
    }

    /// A shard has messages for the node of a lane. False: there is no node there.
    pub fn publish(&self, lane: ShardId, batch: &Batch, applied: u64) -> bool {
        let stream = {
            let state = self.state();
            let node = lane.0.checked_sub(self.shards + 1).map(usize::from);
            let node = node.and_then(|node| state.nodes.get(node)?.as_ref());
            node.map(|node| node.streams[usize::from(batch.from.0)].clone())
        };
        let Some(stream) = stream else { return false };
        for body in encode_publishes(batch) {
            let pushed = stream.push(body.count, applied, body.bytes);
            pushed.expect("a lane is full before its stream is");
        }
        true
    }

    /// An entry was applied: the shards are told what other nodes want. Up to which index all shards have applied all.
    pub fn apply(&self, index: u64, outputs: &[Output]) -> u64 {
        let mut state = self.state();
        state.index = index;
        let mut interests: BTreeMap<u8, Vec<Interest>> = BTreeMap::new();
        for output in outputs {
            if let Output::Route { node, filter, want } = output {
                let Some(place) = self.place(&mut state, *node) else {
                    log::error!(nodes = self.nodes; "there are more nodes than lanes for them: what another one wants is not known here");
                    continue;
                };
                let filter = filter.clone();
                let want = shard_want(&filter, *want);
                interests
                    .entry(place)
                    .or_default()
                    .push(Interest { filter, want });
            }
        }
        for (place, interests) in interests {
            for shard in 0..self.shards {
                let lane = self.lane(place);
                let Some(node) = &mut state.nodes[usize::from(place)] else {
                    continue;
                };
                let inbound = &mut node.inbound[usize::from(shard)];
                let count = interests.len() as u32;
                let of_source = inbound.of_tables + 1;
                let first = inbound.merge.push(Origin::Tables, of_source, count);
                inbound.of_tables += u64::from(count);
                inbound.applying.push_back((inbound.of_tables, index));
                *state.applying.entry(index).or_default() += 1;
                let batch = Batch {
                    from: lane,
                    first,
                    items: interests.iter().cloned().map(Item::Interest).collect(),
                    text: Vec::new(),
                    is_awaited: true,
                };
                self.to.batch(ShardId(shard), batch);
            }
        }
        applied(&state)
    }

    /// A shard has marked items of a node's lane. Up to which index all shards have applied all.
    pub fn marked_by_shard(&self, lane: ShardId, mark: &Mark) -> u64 {
        let mut state = self.state();
        let place = lane.0.checked_sub(self.shards + 1).map(usize::from);
        let shard = usize::from(mark.from.0);
        let State {
            nodes,
            sources,
            applying,
            ..
        } = &mut *state;
        let node = place.and_then(|place| nodes.get_mut(place)?.as_mut());
        if let Some(inbound) = node.and_then(|node| node.inbound.get_mut(shard)) {
            for marked in inbound
                .merge
                .handle_mark(mark.upto, mark.kept, &mark.refused)
            {
                match marked.source {
                    Origin::Tables => {
                        while let Some((_, index)) = inbound
                            .applying
                            .front()
                            .copied()
                            .filter(|(number, _)| *number <= marked.done)
                        {
                            inbound.applying.pop_front();
                            if let Some(left) = applying.get_mut(&index) {
                                *left -= 1;
                                if *left == 0 {
                                    applying.remove(&index);
                                }
                            }
                        }
                    }
                    Origin::Stream(at) => {
                        sources[at].marked(marked.done, marked.kept, &marked.refused);
                    }
                }
            }
        }
        self.marked.notify_waiters();
        applied(&state)
    }

    /// The receiving end of a peer's stream; a new one unless it goes on.
    fn source(&self, peer: NodeId, header: &StreamHeader) -> Option<(usize, Arc<Source>)> {
        let mut state = self.state();
        self.place(&mut state, peer)?;
        let is_known = |source: &Arc<Source>| {
            source.peer == peer && source.stream == header.stream && source.of_shard == header.shard
        };
        if let Some(at) = state.sources.iter().position(is_known) {
            return Some((at, state.sources[at].clone()));
        }
        let source = Arc::new(Source {
            peer,
            stream: header.stream,
            of_shard: header.shard,
            state: Mutex::default(),
        });
        state.sources.push(source.clone());
        Some((state.sources.len() - 1, source))
    }

    async fn arrive(self: Arc<Self>, peer: NodeId, opening: Opening) {
        let header = match StreamHeader::decode(opening.header()) {
            Ok(header) => header,
            Err(error) => return log::warn!(error:% = error; "a peer's stream is refused"),
        };
        let ahead_ms = i64::try_from(header.now_ms).unwrap_or(0) - wall_ms() as i64;
        let Some((at, source)) = self.source(peer, &header) else {
            return;
        };
        let (link, mut incoming) = {
            let mut state = source.state();
            state.link += 1;
            (state.link, state.incoming.clone())
        };
        let Ok(mut accepted) = opening.accept(&mut incoming).await else {
            return;
        };
        if accepted.missing > 0 {
            log::error!(entries = accepted.missing; "a peer does not have messages any more that never came");
        }
        {
            let mut state = source.state();
            if state.link != link {
                return;
            }
            state.incoming = incoming;
            state.marks = Some(accepted.marks.clone());
        }
        let shard = ShardId(header.shard % self.shards);
        let reading = async {
            while let Ok(frame) = accepted.frames.next().await {
                let known = {
                    let mut state = source.state();
                    if state.link != link {
                        break;
                    }
                    match state.incoming.handle_frame(&frame) {
                        Ok(known) => known,
                        Err(error) => {
                            log::warn!(error:% = error; "a peer's stream is not in order");
                            break;
                        }
                    }
                };
                if known >= frame.count {
                    continue;
                }
                let (count, first) = (frame.count, frame.first);
                let decoded =
                    decode_publishes(&frame.body, count, first, known, ShardId(0), ahead_ms);
                match decoded {
                    Ok(batch) => self.arrived(peer, at, shard, batch).await,
                    Err(error) => {
                        log::error!(error:% = error; "a peer's messages cannot be read");
                        break;
                    }
                }
            }
        };
        tokio::select! {
            () = reading => {}
            _ = accepted.writer.run() => {}
        }
    }

    /// Messages of a stream go to their shard, when it has not too many of that node.
    async fn arrived(&self, peer: NodeId, at: usize, shard: ShardId, mut batch: Batch) {
        loop {
            // before it is looked at, or a mark in between would not be heard
            let marked = self.marked.notified();
            {
                let mut state = self.state();
                let Some(place) = self.place(&mut state, peer) else {
                    return;
                };
                let Some(node) = &mut state.nodes[usize::from(place)] else {
                    return;
                };
                let merge = &mut node.inbound[usize::from(shard.0)].merge;
                if merge.outstanding() < OUTSTANDING_MAX {
                    batch.from = self.lane(place);
                    let count = batch.items.len() as u32;
                    batch.first = merge.push(Origin::Stream(at), batch.first, count);
                    // under the lock: what is numbered first is first there
                    return self.to.batch(shard, batch);
                }
            }
            marked.await;
        }
    }
}

impl Source {
    fn state(&self) -> MutexGuard<'_, Arriving> {
        lock(&self.state)
    }

    fn marked(&self, done: u64, kept: u64, refused: &[u64]) {
        let mut state = self.state();
        state.done = state.done.max(done);
        state.kept = state.kept.max(kept);
        let verdicts: Vec<(u64, u8)> = refused.iter().map(|entry| (*entry, REFUSED)).collect();
        let (done, kept) = (state.done, state.kept);
        state.incoming.finish(done, kept, &verdicts);
        if let Some(marks) = &state.marks {
            marks.mark(done, kept, &verdicts);
        }
    }
}

/// Up to which index all shards have applied all.
fn applied(state: &State) -> u64 {
    let first = state.applying.keys().next();
    first.map_or(state.index, |first| first - 1)
}

/// What the cluster is told of what a shard wants.
fn node_want(want: ShardWant) -> Option<Want> {
    match want {
        ShardWant::Plain { any, persistent } => any.then_some(Want::Plain { persistent }),
        ShardWant::Group {
            online,
            offline,
            persistent,
        } => (online > 0 || offline > 0).then_some(Want::Group {
            clean: if persistent { 0 } else { online },
            kept: if persistent { online } else { 0 },
            offline,
            persistent,
        }),
    }
}

/// What a shard is told of what another node wants.
fn shard_want(filter: &str, want: Option<Want>) -> ShardWant {
    match want {
        Some(Want::Plain { persistent }) => ShardWant::Plain {
            any: true,
            persistent,
        },
        Some(Want::Group {
            clean,
            kept,
            offline,
            persistent,
        }) => ShardWant::Group {
            online: clean.saturating_add(kept),
            offline,
            persistent,
        },
        None if filter.starts_with(corqtt_codec::SHARE_PREFIX) => ShardWant::Group {
            online: 0,
            offline: 0,
            persistent: false,
        },
        None => ShardWant::Plain {
            any: false,
            persistent: false,
        },
    }
}

/// An exchange as the links see it.
#[derive(Clone, Debug)]
pub struct Carried(pub Arc<Exchange>);

impl Carrier for Carried {
    fn streams(&self, me: NodeId, peer: NodeId) -> Vec<(Arc<Stream>, Vec<u8>)> {
        let exchange = &self.0;
        let mut state = exchange.state();
        let Some(place) = exchange.place(&mut state, peer) else {
            return Vec::new();
        };
        let node = state.nodes[usize::from(place)].as_ref();
        let streams = node.map(|node| node.streams.clone()).unwrap_or_default();
        (0..)
            .zip(streams)
            .map(|(shard, stream)| {
                let header = StreamHeader {
                    node: me.0.get(),
                    store: exchange.store,
                    // one per process and peer's shard: a restart begins others
                    stream: exchange.store,
                    shard,
                    shards: exchange.shards,
                    now_ms: wall_ms(),
                };
                (stream, header.encode())
            })
            .collect()
    }

    fn marked(&self, peer: NodeId, stream: usize, mark: &corqtt_quic::Mark) {
        let exchange = &self.0;
        let place = exchange.state().lanes.get(&peer).copied();
        let Some(place) = place else { return };
        let refused = mark.verdicts.iter().map(|(entry, _)| *entry).collect();
        let mark = Mark {
            from: exchange.lane(place),
            upto: mark.done,
            kept: mark.kept,
            refused,
        };
        exchange.to.mark(ShardId(stream as u8), mark);
    }

    fn receive(&self, peer: NodeId, opening: Opening) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(self.0.clone().arrive(peer, opening))
    }
}
