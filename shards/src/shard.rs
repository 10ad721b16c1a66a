// SPDX-License-Identifier: Apache-2.0
//! A shard and its turn.

use std::collections::{HashMap, VecDeque};
use std::fmt::Display;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use corqtt_port::ConnectionKey;
use corqtt_port::auth::Auth;
use corqtt_port::claims::{Lease, Said};
use corqtt_port::events::Event;
use corqtt_port::lane::{Receiver, Sender};
use corqtt_port::store::Store;
use corqtt_session::{Drops, Frame, Now};
use corqtt_topics::{Interest, Matches, Partition, Retained, ShardId};
use corqtt_transport::{Carry, Transport};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};

use crate::admission::Admission;
use crate::background::{FanOut, Job};
use crate::bans::Bans;
use crate::config::Config;
use crate::extended::Method;
use crate::keeping::Keeping;
use crate::lanes::{DrainStep, Lane, ToShard, Waiter};
use crate::layers::{HANDSHAKES_MAX, LayerScratch, Layered};
use crate::limits::{LimitCounts, PublishRates};
use crate::listener::Peer;
use crate::memory::Memory;
use crate::numbers::{self, Clients, Meter};
use crate::restore::Restored;
use crate::retain::Pages;
use crate::sessions::Sessions;
use crate::wheel::{TICK_MS, Timer, Wheel};
use crate::wills::Wills;
use crate::wires::{Close, Flushed, NONE, Stage, Why, Wires};

/// Bytes of one read, behind the room for what an earlier read left over.
pub(crate) const READ_BYTES: usize = 64 * 1024;
/// Room in front of a read for what an earlier one left over.
pub(crate) const CARRY_BYTES: usize = 16 * 1024;
/// Packets and deliveries of a turn; at some 50 to 100 ns each this is well below a millisecond.
pub(crate) const WORK_MAX: i64 = 8_000;
/// The part of a turn that goes to connections in the middle of a large packet: some 512 KiB, and what comes of them.
pub(crate) const BULK_WORK: i64 = 2_000;
/// Sockets written to in a turn; at one to two microseconds each this is well below a millisecond.
const FLUSHES_MAX: usize = 512;
/// What is counted in work or sockets costs several times as much when the kernel has to wake whoever waits at the other
/// end, or on a slow machine: each half of a turn, taking in and giving out, also ends when it has lasted this long.
const HALF_TURN_NS: u64 = 500_000;
/// Sockets written to, or timers, between two looks at the clock.
const STEPS_PER_LOOK: usize = 8;
/// Small steps between two looks at the clock: items of another shard, retained messages.
pub(crate) const SMALL_STEPS_PER_LOOK: usize = 32;
/// What one connection is worth between two looks at the clock.
pub(crate) const WORK_PER_LOOK: i64 = 256;
/// Connections closed in each half of a turn even if it has lasted long enough.
const CLOSES_MIN: usize = 4;
/// Sockets accepted in a turn; at some ten microseconds each this is below a millisecond.
const ACCEPTS_MAX: usize = 64;
/// Timers that fire in a turn even if it has no work or time left.
const TIMERS_MIN: usize = 64;
/// Events taken from the kernel in a turn.
const EVENTS_MAX: usize = 512;
/// Large fan-outs under way; above this no more publishes are decoded.
const FAN_OUTS_MAX: usize = 16;
/// What closing a connection costs, in packets or deliveries: mostly the kernel's part.
pub(crate) const CLOSE_WORK: i64 = 128;
/// How long a listener rests when the process has no file descriptor left (ms).
const ACCEPT_PAUSE_MS: u64 = 100;

const KEY_INBOX: u64 = u64::MAX;
const KEY_TIMER: u64 = u64::MAX - 1;
const KEY_LISTENER: u64 = u64::MAX - 1024;

/// A shard's edges.
pub struct Ports {
    /// Who may do what.
    pub auth: Box<dyn Auth>,
    /// What is kept.
    pub store: Box<dyn Store>,
    /// Who knows whose a client id is; `None`: there is no cluster.
    pub claims: Option<Sender<Said>>,
    /// How long the tables may be trusted; `None`: there is no cluster.
    pub lease: Option<Arc<Lease>>,
    /// Who wants to know what happens.
    pub events: Option<Sender<Event>>,
    /// Everything that arrives.
    pub inbox: Receiver<ToShard>,
    /// The inboxes of all shards, by number; one's own is unused.
    pub shards: Vec<Sender<ToShard>>,
    /// As `shards`, for marks.
    pub marks: Vec<Sender<ToShard>>,
    /// Who may come in; the same for all shards.
    pub admission: Arc<Admission>,
    /// Connected clients of the whole process.
    pub clients: Arc<Clients>,
    /// What its store kept, up to the end of the channel; the shard does not listen before it is told to. `None`: there
    /// is nothing to wait for.
    pub restored: Option<Restored>,
}

impl std::fmt::Debug for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ports").finish_non_exhaustive()
    }
}

/// Counters that no other place keeps. Single writer: the shard.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) bytes_received: u64,
    pub(crate) packets_received: u64,
    pub(crate) messages_received: u64,
    pub(crate) messages_sent: u64,
    pub(crate) lane_full: u64,
    pub(crate) limited: LimitCounts,
}

/// What was marked to another shard, by item numbers of its stream.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Marked {
    pub(crate) upto: u64,
    pub(crate) kept: u64,
}

/// An item of another node that is not kept yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owing {
    pub(crate) item: u64,
    /// Shards, and the store, that have not kept it.
    pub(crate) left: u32,
}

#[derive(Debug)]
struct Listening {
    id: Arc<str>,
    /// Its place in the configuration.
    number: u16,
    fd: OwnedFd,
    /// Monotonic ms until which it rests, 0: it listens.
    paused_until_ms: u64,
}

/// One core's part of the broker.
pub struct Shard {
    pub(crate) me: ShardId,
    pub(crate) config: Arc<Config>,
    pub(crate) now: Now,
    pub(crate) wires: Wires,
    pub(crate) sessions: Sessions,
    /// Authentication methods of the connections that used one, by slot.
    pub(crate) methods: HashMap<u32, Method>,
    pub(crate) topics: Partition,
    pub(crate) retained: Retained,
    pub(crate) lanes: Vec<Lane>,
    pub(crate) marks: Vec<Sender<ToShard>>,
    pub(crate) wheel: Wheel,
    pub(crate) matches: Matches,
    pub(crate) changes: Vec<Interest>,
    pub(crate) frame: Frame,
    pub(crate) drops: Drops,
    pub(crate) counters: Counters,
    pub(crate) meter: Meter,
    pub(crate) auth: Box<dyn Auth>,
    pub(crate) checks_publish: bool,
    pub(crate) checks_subscribe: bool,
    pub(crate) keeping: Keeping,
    pub(crate) bans: Bans,
    pub(crate) claims: Option<Sender<Said>>,
    pub(crate) lease: Option<Arc<Lease>>,
    /// Sessions that were ended elsewhere, by which claim, and that a store may still have.
    pub(crate) dropping: VecDeque<(Arc<str>, u64)>,
    /// Connections that are not decoded before the lease is there again.
    pub(crate) held: Vec<ConnectionKey>,
    pub(crate) events: Option<Sender<Event>>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) publish_rates: PublishRates,
    pub(crate) memory: Memory,
    /// As configured, but for what changes.
    pub(crate) session_limits: corqtt_session::Limits,
    pub(crate) resolved: Vec<(Waiter, bool)>,
    /// Per shard: what the last mark to it said.
    pub(crate) marked: Vec<Marked>,
    /// Per shard: items of its stream that a full queue or a limit refused and that are not marked yet, ascending.
    pub(crate) refused: Vec<Vec<u64>>,
    /// Per node: items of its stream that other shards or the store still owe something for, ascending.
    pub(crate) owing: Vec<VecDeque<Owing>>,
    /// Connections with something to read or decode.
    pub(crate) ready: VecDeque<u32>,
    /// The same in the middle of a large packet: they come after the others, and thousands of them delay nobody else.
    bulk: VecDeque<u32>,
    /// Connections that end with this turn, and why.
    pub(crate) closing: VecDeque<(ConnectionKey, Close)>,
    pub(crate) fan_outs: VecDeque<FanOut>,
    pub(crate) jobs: VecDeque<Job>,
    pub(crate) wills: Wills,
    /// Connections with subscriptions that still get retained messages, by slot.
    pub(crate) pages: HashMap<u32, Pages>,
    /// Those of them that may go on.
    pub(crate) page_ready: Vec<u32>,
    pub(crate) paging_number: u64,
    pub(crate) deferred: Vec<VecDeque<(corqtt_port::routes::Batch, usize)>>,
    /// Shards, a bit each, whose deferred batches go on in the next turn: this one had no work left.
    pub(crate) runnable_batches: u64,
    /// Work left in this turn.
    pub(crate) work: i64,
    /// Sockets that this turn may still accept.
    accepts: usize,
    pub(crate) scratch: Vec<u8>,
    pub(crate) layer_scratch: LayerScratch,
    pub(crate) stamp: u64,
    pub(crate) rng: u64,
    pub(crate) draining: Option<DrainStep>,
    drain_reply: Option<Sender<ShardId>>,
    /// Who waits until the other shards know this one's interest.
    restored_reply: Option<Sender<ShardId>>,
    /// The shards know the interest of each other; clients may come, timers fire.
    opened: bool,
    /// While the broker goes down: those who are told goodbye when they have got what waits for them.
    farewells: Option<Vec<ConnectionKey>>,
    /// Bytes sent when they were looked at last with progress, and when (monotonic ms).
    farewell_progress: (u64, u64),
    finished: bool,
    listeners: Vec<Listening>,
    epoll: OwnedFd,
    timer: OwnedFd,
    /// When the kernel's timer fires (ms), `u64::MAX`: not set.
    timer_ms: u64,
    inbox: Receiver<ToShard>,
    /// Taken from the inbox, to be handled in their order.
    pub(crate) messages: VecDeque<ToShard>,
    taken: Vec<ToShard>,
    events_buffer: Vec<epoll::Event>,
    due: Vec<Timer>,
    /// When the half of the turn under way is to end ([`numbers::clock_ns`]).
    half_ends_ns: u64,
    flush_list: Vec<u32>,
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shard")
            .field("id", &self.me)
            .finish_non_exhaustive()
    }
}

impl Shard {
    /// Builds a shard and its descriptors on the thread that will run it.
    ///
    /// # Errors
    /// When the process has no file descriptor left, or a listener cannot be opened.
    pub fn new(me: ShardId, config: Arc<Config>, ports: Ports) -> rustix::io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let timer = timerfd_create(
            TimerfdClockId::Boottime,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )?;
        if let Some(fd) = ports.inbox.fd() {
            epoll::add(
                &epoll,
                fd,
                EventData::new_u64(KEY_INBOX),
                EventFlags::IN | EventFlags::ET,
            )?;
        }
        epoll::add(
            &epoll,
            &timer,
            EventData::new_u64(KEY_TIMER),
            EventFlags::IN | EventFlags::ET,
        )?;
        let (now, _) = clocks();
        let mut seed = [0u8; 8];
        rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())?;
        let mut topics = Partition::new(me, config.lanes(), config.hash_seed, config.strategy);
        for (group, strategy) in &config.group_strategies {
            topics.set_group_strategy(group, *strategy);
        }
        let mut shard = Self {
            me,
            now,
            wires: Wires::default(),
            sessions: Sessions::new(config.hash_seed),
            methods: HashMap::new(),
            topics,
            retained: Retained::new(),
            lanes: ports.shards.into_iter().map(Lane::new).collect(),
            marks: ports.marks,
            wheel: Wheel::new(now.mono_ms),
            matches: Matches::default(),
            changes: Vec::new(),
            frame: Frame::default(),
            drops: Drops::default(),
            counters: Counters::default(),
            meter: Meter::new(usize::from(config.lanes()), ports.clients),
            checks_publish: ports.auth.checks_publish(),
            checks_subscribe: ports.auth.checks_subscribe(),
            auth: ports.auth,
            bans: Bans::default(),
            keeping: Keeping::new(ports.store, config.lanes(), config.start),
            claims: ports.claims,
            lease: ports.lease,
            dropping: VecDeque::new(),
            held: Vec::new(),
            events: ports.events,
            admission: ports.admission,
            publish_rates: PublishRates::new(config.limits.publishes_per_sec),
            memory: Memory::new(config.limits.memory_bytes_max),
            session_limits: config.session.clone(),
            resolved: Vec::new(),
            marked: vec![Marked::default(); usize::from(config.lanes())],
            refused: (0..config.lanes()).map(|_| Vec::new()).collect(),
            owing: (0..config.nodes).map(|_| VecDeque::new()).collect(),
            ready: VecDeque::new(),
            bulk: VecDeque::new(),
            closing: VecDeque::new(),
            fan_outs: VecDeque::new(),
            jobs: VecDeque::new(),
            wills: Wills::default(),
            pages: HashMap::new(),
            page_ready: Vec::new(),
            paging_number: 0,
            deferred: (0..config.lanes()).map(|_| VecDeque::new()).collect(),
            runnable_batches: 0,
            work: 0,
            accepts: 0,
            scratch: vec![0; CARRY_BYTES + READ_BYTES],
            layer_scratch: LayerScratch::default(),
            stamp: 0,
            rng: u64::from_ne_bytes(seed) | 1,
            draining: None,
            drain_reply: None,
            farewells: None,
            farewell_progress: (0, 0),
            finished: false,
            listeners: Vec::new(),
            restored_reply: None,
            opened: false,
            epoll,
            timer,
            timer_ms: u64::MAX,
            inbox: ports.inbox,
            messages: VecDeque::new(),
            taken: Vec::new(),
            events_buffer: Vec::with_capacity(EVENTS_MAX),
            due: Vec::new(),
            half_ends_ns: 0,
            flush_list: Vec::new(),
            config,
        };
        shard
            .wheel
            .insert(Wheel::tick_of(now.mono_ms + SWEEP_MS), Timer::Sweep);
        match ports.restored {
            Some(restored) => shard.restore(&restored),
            None => shard.listen()?,
        }
        Ok(shard)
    }

    /// Opens all listeners.
    fn listen(&mut self) -> rustix::io::Result<()> {
        self.opened = true;
        let config = self.config.clone();
        for (index, listener) in config.listeners.iter().enumerate() {
            let Some(fd) = listener.bound.open(self.me.0)? else {
                continue;
            };
            let key = KEY_LISTENER + self.listeners.len() as u64;
            epoll::add(&self.epoll, &fd, EventData::new_u64(key), EventFlags::IN)?;
            self.listeners.push(Listening {
                id: listener.id.as_str().into(),
                number: index as u16,
                fd,
                paused_until_ms: 0,
            });
        }
        Ok(())
    }

    /// The one descriptor to wait for: readable when [`Shard::poll_kernel`] would find something.
    #[must_use]
    pub fn epoll_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// True once the shard has been drained: the thread may end.
    #[must_use]
    pub const fn is_finished(&self) -> bool {
        self.finished
    }

    /// Prepares for waiting. False: there is work already, take a turn at once.
    pub fn arm(&mut self) -> bool {
        let ready = !self.ready.is_empty() || !self.bulk.is_empty();
        if (ready && !self.lane_is_full())
            || !self.messages.is_empty()
            || self.runnable_batches != 0
            || !self.wires.dirty.is_empty()
            || !self.fan_outs.is_empty()
            || !self.jobs.is_empty()
            || !self.due.is_empty()
            || !self.closing.is_empty()
            || !self.page_ready.is_empty()
            || self.keeping.has_due()
            || self.keeping.wants_commit()
            || self.finished
        {
            return false;
        }
        self.set_timer();
        self.inbox.arm()
    }

    fn set_timer(&mut self) {
        let Some(next_ms) = self.wheel.next_ms().filter(|_| self.opened) else {
            return;
        };
        // an earlier one may stay: it wakes the shard once for nothing, which is cheaper than setting it each time
        if next_ms < self.timer_ms || self.timer_ms <= self.now.mono_ms {
            let at = Timespec {
                tv_sec: (next_ms / 1000) as i64,
                tv_nsec: ((next_ms % 1000) * 1_000_000) as i64,
            };
            let spec = Itimerspec {
                it_interval: Timespec {
                    tv_sec: 0,
                    tv_nsec: 0,
                },
                it_value: at,
            };
            // fails only for a malformed time
            if timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &spec).is_ok() {
                self.timer_ms = next_ms;
            }
        }
    }

    /// Asks the kernel what is ready, and waits for it at most `wait` (whole milliseconds; `None`: as long as it takes).
    /// [`Shard::arm`] came before a wait.
    ///
    /// # Errors
    /// If the epoll descriptor is broken, which ends the process.
    pub fn poll_kernel(&mut self, wait: Option<Duration>) -> rustix::io::Result<()> {
        self.events_buffer.clear();
        // one that does not fit is as long as any
        let timeout = wait.and_then(|wait| Timespec::try_from(wait).ok());
        let result = epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut self.events_buffer),
            timeout.as_ref(),
        );
        match result {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// The last [`Shard::poll_kernel`] found something.
    #[must_use]
    pub const fn has_events(&self) -> bool {
        !self.events_buffer.is_empty()
    }

    /// One turn: everything that is ready goes in, everything that came of it goes out.
    pub fn turn(&mut self) {
        self.inbox.disarm();
        let now_ns;
        (self.now, now_ns) = clocks();
        self.meter.turns.begin(now_ns, numbers::thread_cpu_ns);
        self.half_ends_ns = now_ns + HALF_TURN_NS;
        self.work = WORK_MAX;
        self.layer_scratch.handshakes = Duration::ZERO;
        self.accepts = ACCEPTS_MAX;
        let woken = !self.events_buffer.is_empty();
        let events = std::mem::take(&mut self.events_buffer);
        for event in &events {
            self.handle_event(event.data.u64(), event.flags);
        }
        self.events_buffer = events;
        self.take_messages();
        self.continue_kept();
        self.fire_timers();
        self.continue_fan_outs();
        self.continue_jobs();
        self.serve_ready();
        self.continue_paging();
        self.close_connections();
        self.commit();
        let busy = woken || self.work < WORK_MAX;
        self.flush_lanes();
        self.flush_dirty();
        self.close_connections();
        if self.commit() {
            self.flush_lanes();
        }
        self.watch_memory();
        self.check_restored();
        self.check_drained();
        let turns = &mut self.meter.turns;
        turns.end(numbers::clock_ns(), busy, numbers::thread_cpu_ns);
    }

    fn handle_event(&mut self, key: u64, flags: EventFlags) {
        match key {
            // edge-triggered: each wake-up is an event of its own, and its counter is not looked at
            KEY_INBOX => {}
            KEY_TIMER => self.timer_ms = u64::MAX,
            key if key >= KEY_LISTENER => self.accept((key - KEY_LISTENER) as usize),
            key => {
                let (slot, generation) = (key as u32, (key >> 32) as u32);
                let Some(connection) = self.wires.slots.get_mut(slot as usize) else {
                    return;
                };
                if connection.generation != generation || connection.stage == Stage::Free {
                    return;
                }
                if flags.intersects(
                    EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR,
                ) {
                    connection.readable = true;
                    connection.hangup |=
                        flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
                    self.make_ready(slot);
                }
                if flags.contains(EventFlags::OUT) {
                    let connection = &mut self.wires.slots[slot as usize];
                    if connection.write_blocked {
                        connection.write_blocked = false;
                        if !connection.dirty {
                            connection.dirty = true;
                            self.wires.dirty.push(slot);
                        }
                    }
                }
            }
        }
    }

    /// Puts a connection on the ready list.
    #[inline]
    pub(crate) fn make_ready(&mut self, slot: u32) {
        let connection = &mut self.wires.slots[slot as usize];
        if !connection.ready {
            connection.ready = true;
            match connection.carry {
                Carry::Large { .. } => self.bulk.push_back(slot),
                _ => self.ready.push_back(slot),
            }
        }
    }

    /// A large packet is there as a whole: it is the first of its kind in the next turn.
    pub(crate) fn make_next(&mut self, slot: u32) {
        let connection = &mut self.wires.slots[slot as usize];
        if !connection.ready {
            connection.ready = true;
            self.bulk.push_front(slot);
        }
    }

    fn accept(&mut self, index: usize) {
        if self.draining.is_some() {
            return;
        }
        let mut accepted = 0;
        while self.accepts > 0 {
            // what is left waits in the kernel, whose event comes again
            if accepted > 0 && accepted % STEPS_PER_LOOK == 0 && self.is_late() {
                return;
            }
            accepted += 1;
            self.accepts -= 1;
            let listener = &mut self.listeners[index];
            let flags = rustix::net::SocketFlags::NONBLOCK | rustix::net::SocketFlags::CLOEXEC;
            match rustix::net::acceptfrom_with(&listener.fd, flags) {
                Ok((fd, peer)) => {
                    let number = listener.number;
                    // a client of a unix socket has no name of its own
                    let peer = peer
                        .and_then(|peer| peer.try_into().ok())
                        .map_or(Peer::Unix, Peer::Ip);
                    let layers = self.config.listeners[usize::from(number)].layers(peer.ip());
                    // whom a load balancer speaks for is counted once it says so
                    let address = if layers.proxy { None } else { peer.ip() };
                    if !self.admit(number, address, peer) {
                        continue;
                    }
                    let timeout = self.config.limits.connect_timeout;
                    let deadline_ms = self.now.mono_ms + timeout.as_millis() as u64;
                    match Transport::new(&layers) {
                        Ok(transport) => {
                            let layers = transport.map(|each| Box::new(Layered::new(each)));
                            let counted = address.is_some();
                            self.adopt(fd, layers, peer, number, deadline_ms, counted);
                        }
                        Err(error) => {
                            self.admission.leave(number, address);
                            log::warn!(remote:% = peer, error:% = error; "connection refused");
                        }
                    }
                }
                Err(Errno::AGAIN | Errno::INTR) => return,
                // accept(2): what became of the connection before it was accepted
                Err(
                    Errno::CONNABORTED
                    | Errno::NETDOWN
                    | Errno::PROTO
                    | Errno::NOPROTOOPT
                    | Errno::HOSTDOWN
                    | Errno::NONET
                    | Errno::HOSTUNREACH
                    | Errno::OPNOTSUPP
                    | Errno::NETUNREACH
                    | Errno::PERM,
                ) => {}
                Err(errno) => {
                    // out of descriptors or memory: rest, or the level-triggered event would come at once again
                    log::warn!(listener:% = listener.id, error:% = errno; "listener pauses: accept failed");
                    listener.paused_until_ms = self.now.mono_ms + ACCEPT_PAUSE_MS;
                    let _ = epoll::delete(&self.epoll, &listener.fd);
                    let tick = Wheel::tick_of(listener.paused_until_ms);
                    self.wheel.insert(tick, Timer::Accept);
                    return;
                }
            }
        }
    }

    /// A connection was accepted: is there room for it? If not it is counted, and closed by dropping it.
    pub(crate) fn admit(
        &mut self,
        listener: u16,
        address: Option<IpAddr>,
        peer: impl Display,
    ) -> bool {
        let admitted = self
            .memory_for_connection()
            .and_then(|()| self.admission.admit(listener, address));
        if let Err(limit) = admitted {
            self.limited(limit, peer);
        }
        admitted.is_ok()
    }

    /// Registers a socket; it belongs to this shard from now on.
    pub(crate) fn adopt(
        &mut self,
        fd: OwnedFd,
        layers: Option<Box<Layered>>,
        peer: Peer,
        listener: u16,
        deadline_ms: u64,
        address_counted: bool,
    ) -> Option<u32> {
        let slot = self
            .wires
            .add(fd, layers, peer, listener, deadline_ms, address_counted);
        let key = self.wires.key(slot);
        let data = EventData::new_u64(u64::from(key.slot) | u64::from(key.generation) << 32);
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let fd = self.wires.slots[slot as usize].fd.as_ref();
        let added = fd.map(|fd| epoll::add(&self.epoll, fd, data, flags));
        if let Some(Err(errno)) = added {
            log::warn!(remote:% = peer, error:% = errno; "connection refused: it cannot be watched");
            self.forget(slot);
            return None;
        }
        self.connection_deadline(slot, deadline_ms);
        Some(slot)
    }

    /// Takes a socket out of the epoll set, to hand it to another shard.
    pub(crate) fn unwatch(&mut self, slot: u32) -> Option<OwnedFd> {
        let fd = self.wires.slots[slot as usize].fd.take()?;
        let _ = epoll::delete(&self.epoll, &fd);
        Some(fd)
    }

    /// Frees a slot; the socket closes.
    pub(crate) fn forget(&mut self, slot: u32) {
        let connection = &self.wires.slots[slot as usize];
        let address = connection.peer.ip().filter(|_| connection.address_counted);
        self.admission.leave(connection.listener, address);
        if connection.stage == Stage::Lingering {
            self.meter.lingered();
        }
        self.wires.remove(slot);
        if !self.methods.is_empty() {
            self.methods.remove(&slot);
        }
    }

    fn take_messages(&mut self) {
        self.inbox.drain(&mut self.taken);
        self.messages.extend(self.taken.drain(..));
        self.continue_runnable_batches();
        // what other shards send leaves room for what clients send
        while self.work > WORK_MAX / 2 && self.runnable_batches == 0 {
            let Some(message) = self.messages.pop_front() else {
                break;
            };
            match message {
                ToShard::Batch(batch) => self.handle_batch(batch),
                ToShard::Mark(mark) => {
                    let mut resolved = std::mem::take(&mut self.resolved);
                    let from = usize::from(mark.from.0);
                    self.lanes[from].handle_mark(&mark, &mut resolved);
                    let now_ns = self.meter.turns.now_ns();
                    self.meter.waits.marked(from, mark.upto, now_ns);
                    self.resolve(&mut resolved);
                    self.resolved = resolved;
                }
                ToShard::Connection(hand_off) => self.take_over_socket(*hand_off),
                ToShard::RetainedAsk(ask) => self.answer_retained(ask),
                ToShard::RetainedPage(page) => self.handle_retained_page(page),
                ToShard::Auth(answer) => self.handle_verdict(answer),
                ToShard::Store(answer) => self.handle_store(answer),
                ToShard::Told(told) => self.handle_told(told),
                ToShard::Restored(reply) => self.restored_reply = Some(reply),
                // its addresses were bound before, so only descriptors can be missing
                ToShard::Listen(reply) => {
                    if self.draining.is_none() {
                        self.listen().expect("a file descriptor for each listener");
                    }
                    reply.push(self.me);
                }
                ToShard::Admin(query) => self.handle_admin(query),
                ToShard::Drain(step, reply) => self.drain(step, reply),
            }
        }
    }

    fn fire_timers(&mut self) {
        // what is due after a start waits until the shards know whom the others have for it
        if !self.opened {
            return;
        }
        let mut due = std::mem::take(&mut self.due);
        // behind those that an earlier turn left
        self.wheel.advance(self.now.mono_ms, &mut due);
        let mut fired = 0;
        for timer in &due {
            let late = fired % STEPS_PER_LOOK == 0 && self.is_late();
            if (self.work <= 0 || late) && fired >= TIMERS_MIN {
                break;
            }
            fired += 1;
            self.work -= 1;
            match *timer {
                Timer::Connection(slot) => self.connection_timer(slot),
                Timer::Session(slot) => self.session_timer(slot),
                Timer::Accept => self.resume_listeners(),
                Timer::Publish => self.resume_publishers(),
                Timer::Lease => self.resume_held(),
                Timer::Sweep => self.sweep(),
            }
        }
        due.drain(..fired);
        self.due = due;
    }

    fn resume_listeners(&mut self) {
        for (index, listener) in self.listeners.iter_mut().enumerate() {
            if listener.paused_until_ms != 0 && listener.paused_until_ms <= self.now.mono_ms {
                listener.paused_until_ms = 0;
                let key = EventData::new_u64(KEY_LISTENER + index as u64);
                match epoll::add(&self.epoll, &listener.fd, key, EventFlags::IN) {
                    Ok(()) => log::info!(listener:% = listener.id; "listener goes on"),
                    Err(errno) => {
                        log::warn!(listener:% = listener.id, error:% = errno; "listener stays paused");
                        listener.paused_until_ms = self.now.mono_ms + ACCEPT_PAUSE_MS;
                        let tick = Wheel::tick_of(listener.paused_until_ms);
                        self.wheel.insert(tick, Timer::Accept);
                    }
                }
            }
        }
    }

    fn sweep(&mut self) {
        let expired = self.retained.expire_step(SWEEP_ENTRIES, self.now.wall_ms);
        if expired > 0 && self.config.limits.retained() {
            self.share_retained();
        }
        self.judge_memory();
        self.tell_limits();
        self.wheel
            .insert(Wheel::tick_of(self.now.mono_ms + SWEEP_MS), Timer::Sweep);
    }

    /// Nothing more is decoded until a shard has caught up; its mark is on its way. Who waits for another node waits for
    /// that alone.
    fn lane_is_full(&self) -> bool {
        let near = self.lanes.iter().take(self.config.interested());
        near.into_iter().any(Lane::is_full)
    }

    fn serve_ready(&mut self) {
        // those that are put back while this runs are served in the next turn
        for _ in 0..self.ready.len() {
            if self.stops_serving() {
                break;
            }
            let Some(slot) = self.ready.pop_front() else {
                break;
            };
            if self.layer_scratch.handshakes >= HANDSHAKES_MAX && self.wires.is_handshaking(slot) {
                self.ready.push_back(slot);
                continue;
            }
            self.wires.slots[slot as usize].ready = false;
            self.serve(slot);
            if self.is_late() {
                break;
            }
        }
        self.serve_bulk();
    }

    /// Large packets on their way: with a small part of a turn, which they get in every turn.
    fn serve_bulk(&mut self) {
        let before = self.work;
        if before < -BULK_WORK {
            // the last of the others was a large one itself
            return;
        }
        self.work = BULK_WORK;
        for _ in 0..self.bulk.len() {
            if self.stops_serving() {
                break;
            }
            let Some(slot) = self.bulk.pop_front() else {
                break;
            };
            self.wires.slots[slot as usize].ready = false;
            self.serve(slot);
        }
        self.work += before - BULK_WORK;
    }

    fn stops_serving(&self) -> bool {
        self.work <= 0 || self.lane_is_full() || self.fan_outs.len() >= FAN_OUTS_MAX
    }

    fn flush_lanes(&mut self) {
        if self.lanes.len() > 1 {
            for lane in &mut self.lanes {
                lane.flush();
            }
        }
    }

    /// This half of the turn has lasted long enough.
    pub(crate) fn is_late(&self) -> bool {
        numbers::clock_ns() >= self.half_ends_ns
    }

    fn flush_dirty(&mut self) {
        // what queues refill is work of its own, or a busy shard would never come to it
        self.work = WORK_MAX / 2;
        let mut list = std::mem::take(&mut self.flush_list);
        let count = self.wires.dirty.len().min(FLUSHES_MAX);
        if count > 0 {
            self.half_ends_ns = numbers::clock_ns() + HALF_TURN_NS;
        }
        list.extend(self.wires.dirty.drain(..count));
        let mut flushed = 0;
        for slot in &list {
            self.wires.slots[*slot as usize].dirty = false;
            self.flush(*slot);
            flushed += 1;
            if flushed % STEPS_PER_LOOK == 0 && self.is_late() {
                break;
            }
        }
        // the others are the first of the next turn
        let left = list.drain(..).skip(flushed);
        self.wires.dirty.splice(..0, left);
        self.flush_list = list;
    }

    /// Offers a connection's output to the kernel, and refills it from the session's queue.
    pub(crate) fn flush(&mut self, slot: u32) {
        let before = self.wires.bytes_sent;
        let flushed = self.wires.flush(slot);
        if self.draining.is_some() && self.wires.bytes_sent > before {
            self.lingers_on(slot);
        }
        match flushed {
            Flushed::All => {
                self.resume(slot);
                let connection = &self.wires.slots[slot as usize];
                if connection.stage == Stage::Lingering {
                    self.wires.end_output(slot);
                }
                if connection.paging {
                    self.wake_pages(slot);
                }
                let connection = &self.wires.slots[slot as usize];
                if connection.stage == Stage::Live
                    && self.sessions.slots[connection.session as usize]
                        .session
                        .wants_pump(&self.config.session)
                {
                    let session = connection.session;
                    if self.work > 0 {
                        self.pump(session);
                    } else {
                        self.wires.output(slot);
                    }
                }
            }
            Flushed::Blocked => self.wires.count_output(slot),
            Flushed::Broken(why) => {
                if self.wires.slots[slot as usize].stage == Stage::Lingering {
                    self.forget(slot);
                } else {
                    let close = Close {
                        reason: None,
                        why,
                        keep_will: true,
                    };
                    self.close_soon(slot, close);
                }
            }
        }
    }

    /// Sends what a session has waiting, as far as its client can take it.
    pub(crate) fn pump(&mut self, session: u32) {
        let slot = &mut self.sessions.slots[session as usize];
        if slot.connection == NONE || !slot.session.wants_pump(&self.config.session) {
            return;
        }
        let out = self.wires.output(slot.connection);
        let limits = &self.session_limits;
        let before = slot.session.inflight_len();
        let sent = slot.session.pump(
            out,
            &mut self.frame,
            limits,
            &mut self.drops,
            PUMP_MAX,
            self.now,
        );
        let after = slot.session.inflight_len();
        self.meter.inflight_changed(before, after);
        self.counters.messages_sent += sent as u64;
        self.work -= sent as i64;
        self.note_news(session);
    }

    pub(crate) fn close_connections(&mut self) {
        let mut closed = 0;
        while closed == 0 || (self.work > 0 && (closed < CLOSES_MIN || !self.is_late())) {
            let Some((key, close)) = self.closing.pop_front() else {
                return;
            };
            closed += 1;
            self.work -= CLOSE_WORK;
            if let Some(slot) = self.wires.find(key)
                && self.wires.slots[slot as usize].closing
            {
                self.close(slot, &close);
            }
        }
    }

    /// Ends a connection soon; until then nothing of it is handled any more. The first reason counts.
    pub(crate) fn close_soon(&mut self, slot: u32, close: Close) {
        let connection = &mut self.wires.slots[slot as usize];
        if connection.stage == Stage::Free || connection.closing {
            return;
        }
        connection.closing = true;
        self.closing.push_back((self.wires.key(slot), close));
    }

    /// Ends a connection now; the reason of an end that is due already counts.
    pub(crate) fn close_now(&mut self, slot: u32, close: Close) {
        let close = if self.wires.slots[slot as usize].closing {
            let key = self.wires.key(slot);
            let due = self.closing.iter().position(|(due, _)| *due == key);
            due.and_then(|at| self.closing.remove(at))
                .map_or(close, |(_, due)| due)
        } else {
            close
        };
        self.close(slot, &close);
    }

    fn drain(&mut self, step: DrainStep, reply: Sender<ShardId>) {
        self.draining = Some(step);
        match step {
            DrainStep::Wills => {
                for listener in self.listeners.drain(..) {
                    // main holds a unix socket open: it would stay in the set, and nobody shall wait in its queue
                    let _ = epoll::delete(&self.epoll, &listener.fd);
                    let _ = rustix::net::shutdown(&listener.fd, rustix::net::Shutdown::Both);
                }
                self.publish_wills(0);
                self.drain_reply = Some(reply);
            }
            // as soon as nothing is on its way any more
            DrainStep::Close => self.drain_reply = Some(reply),
        }
    }

    /// Work that was begun, and that clients are to get before they are told goodbye.
    fn delivers(&self) -> bool {
        !self.fan_outs.is_empty()
            || !self.jobs.is_empty()
            || !self.wills.is_empty()
            || !self.messages.is_empty()
            || self.deferred.iter().any(|batches| !batches.is_empty())
    }

    /// Whether a client still gets what ends with this process: what a store has comes after the next start.
    fn awaits_more(&self, slot: u32) -> bool {
        let connection = &self.wires.slots[slot as usize];
        if connection.stage != Stage::Live || connection.closing {
            return false;
        }
        let session = &self.sessions.slots[connection.session as usize].session;
        !session.is_kept() && (session.queue_len() > 0 || self.wires.output_len(slot) > 0)
    }

    /// Goodbye to all who have what waited for them; to the others later, or when nobody takes anything any more.
    fn say_goodbyes(&mut self) {
        let now_ms = self.now.mono_ms;
        let left = match self.farewells.take() {
            Some(left) => left,
            None => {
                self.farewell_progress = (self.wires.bytes_sent, now_ms);
                self.wires
                    .in_use()
                    .map(|slot| self.wires.key(slot))
                    .collect()
            }
        };
        if self.wires.bytes_sent > self.farewell_progress.0 {
            self.farewell_progress = (self.wires.bytes_sent, now_ms);
        }
        let is_over = now_ms >= self.farewell_progress.1 + FAREWELL_SILENCE_MS;
        let (mut later, mut missed) = (Vec::new(), (0, 0));
        for key in left {
            let Some(slot) = self.wires.find(key) else {
                continue;
            };
            if self.awaits_more(slot) {
                if !is_over {
                    later.push(key);
                    continue;
                }
                let session = self.wires.slots[slot as usize].session;
                missed.0 += 1;
                missed.1 += self.sessions.slots[session as usize].session.queue_len();
            }
            self.say_goodbye(slot);
        }
        if missed.0 > 0 {
            log::warn!(clients = missed.0, messages = missed.1; "clients that read nothing for 10 s do not get what waited for them");
        }
        self.farewells = Some(later);
    }

    /// Everybody was told.
    fn has_said_goodbye(&self) -> bool {
        self.farewells.as_ref().is_some_and(Vec::is_empty)
    }

    fn say_goodbye(&mut self, slot: u32) {
        if self.wires.slots[slot as usize].stage == Stage::Lingering {
            return;
        }
        // all wills are published but those that wait in the store for the next start
        let session = self.wires.slots[slot as usize].session;
        let keep_will = session != NONE && self.sessions.slots[session as usize].session.is_kept();
        let close = Close {
            reason: Some(corqtt_codec::ReasonCode::SERVER_SHUTTING_DOWN),
            why: Why::Broker("shutting down"),
            keep_will,
        };
        self.close_soon(slot, close);
    }

    fn check_restored(&mut self) {
        if self.restored_reply.is_some()
            && self.unconfirmed_interest().is_empty()
            && let Some(reply) = self.restored_reply.take()
        {
            reply.push(self.me);
        }
    }

    fn check_drained(&mut self) {
        match self.draining {
            None => {}
            Some(DrainStep::Wills) => {
                if !self.delivers()
                    && let Some(reply) = self.drain_reply.take()
                {
                    reply.push(self.me);
                }
            }
            Some(DrainStep::Close) => {
                if !self.has_said_goodbye() && !self.delivers() {
                    self.say_goodbyes();
                }
                if self.wires.count() == 0
                    && self.has_said_goodbye()
                    && self.keeping.is_settled()
                    && let Some(reply) = self.drain_reply.take()
                {
                    reply.push(self.me);
                    self.finished = true;
                }
            }
        }
    }

    /// Makes sure that the wheel looks at a connection not later than `at_ms`.
    pub(crate) fn connection_deadline(&mut self, slot: u32, at_ms: u64) {
        let tick = Wheel::tick_of(at_ms.min(self.now.mono_ms + LOOK_AGAIN_MS));
        let connection = &mut self.wires.slots[slot as usize];
        if connection.timer_tick == 0 || tick < connection.timer_tick {
            connection.timer_tick = tick;
            self.wheel.insert(tick, Timer::Connection(slot));
        }
    }

    /// Makes sure that the wheel looks at a session not later than `at_ms`.
    pub(crate) fn session_deadline(&mut self, session: u32, at_ms: u64) {
        let tick = Wheel::tick_of(at_ms.min(self.now.mono_ms + LOOK_AGAIN_MS));
        let slot = &mut self.sessions.slots[session as usize];
        if slot.timer_tick == 0 || tick < slot.timer_tick {
            slot.timer_tick = tick;
            self.wheel.insert(tick, Timer::Session(session));
        }
    }

    /// A number that nobody can guess well (xorshift64*), for choices among members and for client ids.
    pub(crate) fn random(&mut self) -> u64 {
        self.rng ^= self.rng >> 12;
        self.rng ^= self.rng << 25;
        self.rng ^= self.rng >> 27;
        self.rng.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}

/// An entry of the wheel is no further away than this (ms). An earlier one does not take a later one out, so a slot
/// that is used again and again would gather entries without end.
const LOOK_AGAIN_MS: u64 = 10 * 60 * 1000;
/// How often retained messages are looked through for expired ones (ms).
const SWEEP_MS: u64 = 1000;
/// While the broker goes down: when nobody has taken a byte for so long, those who have more to get are told goodbye.
const FAREWELL_SILENCE_MS: u64 = 10_000;
/// How many are looked at each time.
const SWEEP_ENTRIES: usize = 2000;
/// Messages sent from a session's queue at once.
const PUMP_MAX: usize = 256;

/// Both clocks, once per turn; the first also in nanoseconds.
fn clocks() -> (Now, u64) {
    let mono_ns = numbers::clock_ns();
    let now = Now {
        mono_ms: mono_ns / 1_000_000,
        wall_ms: numbers::nanoseconds(clock_gettime(ClockId::Realtime)) / 1_000_000,
    };
    (now, mono_ns)
}

const _: () = assert!(TICK_MS <= ACCEPT_PAUSE_MS);
const _: () = assert!(size_of::<MaybeUninit<epoll::Event>>() <= 16);
