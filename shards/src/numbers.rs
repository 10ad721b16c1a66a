// SPDX-License-Identifier: Apache-2.0
//! What a shard counts about itself. Single writer: the shard; operators get copies when they ask.
//!
//! * Every gauge is kept as it changes. Nothing is counted by looking through sessions or connections, so an answer
//!   costs the same with a million of them.
//! * A turn is timed with one more look at a clock that needs no system call. The CPU clock of the thread needs one, and
//!   is read only around turns that were long on the wall clock; see [`Turns`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use corqtt_port::admin::{ByReason, Numbers};
use corqtt_port::histogram::Histogram;
use corqtt_port::store::Token;
use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::shard::Shard;
use crate::wires::{Close, Why};

/// How old the last look at the thread's CPU clock may be when a turn begins. What it is older counts as this turn's
/// (nanoseconds).
const CPU_SLACK_NS: u64 = 250_000;

/// No CONNECT came in time.
const REFUSED_NO_CONNECT: &str = "no-connect";
/// The client ended it.
const BY_CLIENT: &str = "client";
/// The network ended it.
const BY_TRANSPORT: &str = "transport";

/// Connected clients of the whole process. Every shard writes it, but only when a client comes or goes.
#[derive(Debug, Default)]
pub struct Clients {
    connected: AtomicU64,
    maximum: AtomicU64,
}

impl Clients {
    fn come(&self) {
        let now = self.connected.fetch_add(1, Ordering::Relaxed) + 1;
        self.maximum.fetch_max(now, Ordering::Relaxed);
    }

    fn go(&self) {
        self.connected.fetch_sub(1, Ordering::Relaxed);
    }

    /// The most that were connected at once since start.
    #[must_use]
    pub fn maximum(&self) -> u64 {
        self.maximum.load(Ordering::Relaxed)
    }
}

/// Counts by reason, for what is rare: each count looks its reason up.
#[derive(Debug)]
pub(crate) struct Tally(ByReason);

impl Tally {
    /// These reasons are told from the start, with 0; others join when they first occur.
    fn of(reasons: &[&'static str]) -> Self {
        Self(reasons.iter().map(|reason| (*reason, 0)).collect())
    }

    pub(crate) fn count(&mut self, reason: &'static str) {
        match self.0.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, count)) => *count += 1,
            None => self.0.push((reason, 1)),
        }
    }
}

/// What no other part of the shard counts.
#[derive(Debug)]
pub(crate) struct Meter {
    pub(crate) turns: Turns,
    pub(crate) waits: Waits,
    /// Connections that ended before their client was connected.
    refused: Tally,
    /// Connected clients whose connection ended.
    closed: Tally,
    clients: Arc<Clients>,
    connected: u64,
    lingering: u64,
    /// QoS 1 and 2 messages of all sessions that are begun and not acknowledged to the end.
    pub(crate) inflight: u64,
    pub(crate) inflight_dropped: u64,
    pub(crate) messages_received_by_qos: [u64; 3],
}

impl Meter {
    pub(crate) fn new(shards: usize, clients: Arc<Clients>) -> Self {
        Self {
            turns: Turns::default(),
            waits: Waits {
                lanes: vec![None; shards],
                store: None,
                for_shards: Histogram::default(),
                for_store: Histogram::default(),
            },
            refused: Tally::of(&[REFUSED_NO_CONNECT, BY_CLIENT, BY_TRANSPORT]),
            closed: Tally::of(&[BY_CLIENT, BY_TRANSPORT]),
            clients,
            connected: 0,
            lingering: 0,
            inflight: 0,
            inflight_dropped: 0,
            messages_received_by_qos: [0; 3],
        }
    }

    pub(crate) fn client_came(&mut self) {
        self.connected += 1;
        self.clients.come();
    }

    /// A connection is over; `was_live`: its client was connected.
    pub(crate) fn connection_ended(&mut self, close: &Close, was_live: bool) {
        let reason = match &close.why {
            Why::Client(_) => BY_CLIENT,
            Why::Transport(_) => BY_TRANSPORT,
            Why::Layers(error) => error.layer(),
            Why::Limit(limit) => limit.name(),
            Why::Malformed(error) => error.reason().name(),
            Why::Broker(_) => close
                .reason
                .map_or(REFUSED_NO_CONNECT, |reason| reason.name()),
        };
        if was_live {
            self.connected -= 1;
            self.clients.go();
            self.closed.count(reason);
        } else {
            self.refused.count(reason);
        }
    }

    pub(crate) fn lingers(&mut self) {
        self.lingering += 1;
    }

    pub(crate) fn lingered(&mut self) {
        self.lingering -= 1;
    }

    /// What a session has in flight changed.
    pub(crate) fn inflight_changed(&mut self, before: usize, after: usize) {
        self.inflight = self.inflight + after as u64 - before as u64;
    }

    /// A session ended with so much in flight.
    pub(crate) fn inflight_ended(&mut self, messages: usize) {
        self.inflight -= messages as u64;
        self.inflight_dropped += messages as u64;
    }
}

/// How long turns take.
///
/// The CPU time of a turn is not measured but bounded: a turn that was short on the wall clock took no more CPU than
/// that, and is counted so. Only a longer one is measured, since the last look at the CPU clock, which was at most
/// 250 µs before it began. So a bucket never holds a turn that belongs into a higher one, and holds one that belongs
/// lower only by that much.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    pub(crate) cpu: Histogram,
    pub(crate) wall: Histogram,
    /// When the turn under way began.
    began_ns: u64,
    /// The last look at the CPU clock: when it was, and what it said.
    looked_ns: u64,
    cpu_ns: u64,
}

impl Turns {
    /// A turn begins. `cpu_clock` is read if need be.
    #[inline]
    pub(crate) fn begin(&mut self, now_ns: u64, cpu_clock: impl FnOnce() -> u64) {
        self.began_ns = now_ns;
        if now_ns.saturating_sub(self.looked_ns) > CPU_SLACK_NS {
            self.looked_ns = now_ns;
            self.cpu_ns = cpu_clock();
        }
    }

    /// It ends; `busy`: it had something to do.
    #[inline]
    pub(crate) fn end(&mut self, now_ns: u64, busy: bool, cpu_clock: impl FnOnce() -> u64) {
        let wall_ns = now_ns.saturating_sub(self.began_ns);
        if busy {
            self.wall.record(wall_ns);
        }
        let cpu_ns = if wall_ns <= CPU_SLACK_NS {
            wall_ns
        } else {
            let before = self.cpu_ns;
            self.looked_ns = now_ns;
            self.cpu_ns = cpu_clock();
            self.cpu_ns.saturating_sub(before).min(wall_ns)
        };
        self.cpu.record(cpu_ns);
    }

    /// When the turn under way began (nanoseconds).
    pub(crate) const fn now_ns(&self) -> u64 {
        self.began_ns
    }
}

/// How long acknowledgements wait for others: of each lane, and of the store, one at a time is followed.
#[derive(Debug)]
pub(crate) struct Waits {
    /// By shard: the item that is followed, and since when.
    lanes: Vec<Option<(u64, u64)>>,
    /// The token that is followed, and since when.
    store: Option<(Token, u64)>,
    for_shards: Histogram,
    for_store: Histogram,
}

impl Waits {
    /// Something waits for an item of a lane.
    #[inline]
    pub(crate) fn lane(&mut self, shard: usize, item: u64, now_ns: u64) {
        self.lanes[shard].get_or_insert((item, now_ns));
    }

    /// Something waits for the store.
    #[inline]
    pub(crate) fn store(&mut self, token: Token, now_ns: u64) {
        self.store.get_or_insert((token, now_ns));
    }

    /// A shard has marked its items up to `upto`.
    #[inline]
    pub(crate) fn marked(&mut self, shard: usize, upto: u64, now_ns: u64) {
        if let Some((_, since)) = self.lanes[shard].take_if(|(item, _)| *item <= upto) {
            self.for_shards.record(now_ns.saturating_sub(since));
        }
    }

    /// The store has kept batches up to `upto`.
    #[inline]
    pub(crate) fn kept(&mut self, upto: Token, now_ns: u64) {
        if let Some((_, since)) = self.store.take_if(|(token, _)| *token <= upto) {
            self.for_store.record(now_ns.saturating_sub(since));
        }
    }
}

/// CPU time that this thread has used (nanoseconds). A system call.
pub(crate) fn thread_cpu_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::ThreadCPUTime))
}

/// The clock that turns are timed with (nanoseconds).
pub(crate) fn clock_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::Boottime))
}

pub(crate) const fn nanoseconds(time: Timespec) -> u64 {
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

impl Shard {
    /// A copy of all counters.
    pub(crate) fn numbers(&self) -> Numbers {
        let mut dropped: Vec<_> = corqtt_session::Drops::REASONS
            .iter()
            .map(|(reason, name)| (*name, self.drops.of(*reason)))
            .collect();
        dropped.push(("lane-full", self.counters.lane_full));
        let meter = &self.meter;
        let connections = self.wires.count() as u64;
        Numbers {
            bytes_received: self.counters.bytes_received,
            bytes_sent: self.wires.bytes_sent,
            packets_received: self.counters.packets_received,
            packets_sent: self.wires.packets_sent,
            messages_received: self.counters.messages_received,
            messages_received_by_qos: meter.messages_received_by_qos,
            messages_sent: self.counters.messages_sent,
            dropped,
            limited: self.counters.limited.all().collect(),
            refused: meter.refused.0.clone(),
            closed: meter.closed.0.clone(),
            connections_opening: connections - meter.connected - meter.lingering,
            connections_lingering: meter.lingering,
            clients_connected: meter.connected,
            clients_total: self.sessions.count() as u64,
            subscriptions: self.topics.len() as u64,
            retained: self.retained.of_clients() as u64,
            retained_bytes: self.retained.bytes_of_clients() as u64,
            held_bytes: self.held_bytes() as u64,
            inflight: meter.inflight,
            inflight_dropped: meter.inflight_dropped,
            turn_cpu: meter.turns.cpu.clone(),
            turn_wall: meter.turns.wall.clone(),
            waited_for_shards: meter.waits.for_shards.clone(),
            waited_for_store: meter.waits.for_store.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A CPU clock that must not be looked at.
    fn unread() -> u64 {
        panic!("the CPU clock is a system call, and was not needed")
    }

    const US: u64 = 1_000;
    const MS: u64 = 1_000_000;

    /// Upper bounds of the buckets that hold something.
    fn filled(histogram: &Histogram) -> Vec<u64> {
        let counts = histogram.counts().iter().enumerate();
        counts
            .filter(|(_, count)| **count > 0)
            .map(|(at, _)| Histogram::BOUNDS_NS.get(at).copied().unwrap_or(u64::MAX))
            .collect()
    }

    #[test]
    fn short_turns_in_a_row_do_not_look_at_the_cpu_clock() {
        let mut turns = Turns::default();
        turns.begin(10 * MS, || 7 * MS);
        turns.end(10 * MS + 20 * US, true, unread);
        turns.begin(10 * MS + 100 * US, unread);
        turns.end(10 * MS + 180 * US, true, unread);
        assert_eq!(filled(&turns.cpu), [50 * US, 100 * US]);
        assert_eq!(turns.cpu.sum_ns(), 100 * US);
    }

    #[test]
    fn a_long_turn_counts_its_cpu_and_not_its_wall_clock() {
        let mut turns = Turns::default();
        turns.begin(10 * MS, || 7 * MS);
        turns.end(15 * MS, true, || 7 * MS + 400 * US);
        assert_eq!(filled(&turns.cpu), [500 * US]);
        assert_eq!(filled(&turns.wall), [5 * MS]);
    }

    #[test]
    fn what_was_used_before_a_turn_counts_for_no_more_than_the_slack() {
        let mut turns = Turns::default();
        turns.begin(10 * MS, || 0);
        turns.end(10 * MS + 200 * US, true, unread);
        // 200 µs of CPU before this one began, 300 µs in it
        turns.begin(10 * MS + 240 * US, unread);
        turns.end(11 * MS, true, || 500 * US);
        assert_eq!(turns.cpu.max_ns(), 500 * US);
        // the next one begins with a look of its own
        turns.begin(12 * MS, || 900 * US);
        turns.end(13 * MS, true, || 1200 * US);
        assert_eq!(turns.cpu.sum_ns(), 200 * US + 500 * US + 300 * US);
    }

    #[test]
    fn a_turn_took_no_more_cpu_than_it_took_time() {
        let mut turns = Turns::default();
        turns.begin(10 * MS, || 0);
        turns.end(10 * MS + 200 * US, true, unread);
        turns.begin(10 * MS + 220 * US, unread);
        turns.end(10 * MS + 520 * US, true, || 500 * US);
        assert_eq!(turns.cpu.max_ns(), 300 * US);
    }

    #[test]
    fn a_turn_without_work_has_no_latency() {
        let mut turns = Turns::default();
        turns.begin(MS, || 0);
        turns.end(MS + US, false, unread);
        assert_eq!((turns.wall.total(), turns.cpu.total()), (0, 1));
    }

    #[test]
    fn one_wait_of_a_lane_is_followed_at_a_time() {
        let mut waits = Meter::new(2, Arc::default()).waits;
        waits.lane(1, 5, 100);
        waits.lane(1, 6, 150);
        waits.marked(1, 4, 200);
        assert_eq!(waits.for_shards.total(), 0);
        waits.marked(1, 6, 300);
        assert_eq!(
            (waits.for_shards.total(), waits.for_shards.sum_ns()),
            (1, 200)
        );
        // the next wait is a new one
        waits.marked(1, 7, 400);
        waits.lane(1, 8, 500);
        waits.marked(1, 8, 600);
        assert_eq!(
            (waits.for_shards.total(), waits.for_shards.sum_ns()),
            (2, 300)
        );
    }

    #[test]
    fn the_peak_of_clients_stays_when_they_go() {
        let clients = Arc::new(Clients::default());
        let mut meters = [
            Meter::new(1, clients.clone()),
            Meter::new(1, clients.clone()),
        ];
        meters[0].client_came();
        meters[1].client_came();
        let close = Close {
            reason: None,
            why: Why::Client("DISCONNECT"),
            keep_will: false,
        };
        meters[0].connection_ended(&close, true);
        meters[1].client_came();
        assert_eq!(clients.maximum(), 2);
        assert_eq!(meters[0].closed.0, [(BY_CLIENT, 1), (BY_TRANSPORT, 0)]);
    }
}
