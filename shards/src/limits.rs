// SPDX-License-Identifier: Apache-2.0
//! Limits that were reached: counted by reason, and told in the log at most once per second and reason.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};

use corqtt_port::ConnectionKey;

use crate::rate::Rate;
use crate::shard::Shard;
use crate::wheel::{Timer, Wheel};
use crate::wires::Stage;

/// A line about a limit is followed by the next one not sooner than this (ms).
const LINE_MS: u64 = 1000;

/// A limit that was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Limited {
    /// A connection was refused: there are too many.
    Connections,
    /// A connection was refused: its listener has too many.
    ListenerConnections,
    /// A connection was refused: its address has too many.
    ConnectionsPerIp,
    /// A CONNECT was refused: too many in this second.
    ConnectRate,
    /// A connection was closed: its CONNECT did not come in time.
    ConnectTimeout,
    /// The node held as much as it may.
    MemoryMax,
    /// A connection was refused because of that.
    MemoryConnections,
    /// A connection was closed because of that: it had half sent something large.
    MemoryReads,
    /// A connection is not read for a moment: its client published too much in this second.
    PublishRate,
    /// A connection is not read: this node is cut off from its cluster, and its client published with QoS 1 or 2.
    Lease,
    /// A SUBSCRIBE got 0x97 for a filter: the client has too many.
    Subscriptions,
    /// A message was not retained: there are too many.
    RetainedMessages,
    /// A message was not retained: there are too many bytes.
    RetainedBytes,
    /// A PUBLISH or a filter had too many levels.
    TopicLevels,
    /// A connection was closed: the topics behind its aliases are too long.
    AliasBytes,
    /// A connection was closed: it announced a packet that is too large.
    PacketSize,
    /// A connection was closed: it had more messages unacknowledged than our Receive Maximum.
    ReceiveMaximum,
}

impl Limited {
    /// All reasons with their names in metrics and in the log; where it is a setting's, that of its key.
    pub const REASONS: [(Self, &'static str); 17] = [
        (Self::Connections, "connections"),
        (Self::ListenerConnections, "max-connections"),
        (Self::ConnectionsPerIp, "connections-per-ip"),
        (Self::ConnectRate, "connect-rate"),
        (Self::ConnectTimeout, "connect-timeout"),
        (Self::MemoryMax, "memory-max"),
        (Self::MemoryConnections, "memory-max-connection"),
        (Self::MemoryReads, "memory-max-read"),
        (Self::PublishRate, "publish-rate"),
        (Self::Lease, "lease"),
        (Self::Subscriptions, "subscriptions"),
        (Self::RetainedMessages, "retained-messages"),
        (Self::RetainedBytes, "retained-bytes"),
        (Self::TopicLevels, "topic-levels"),
        (Self::AliasBytes, "alias-bytes"),
        (Self::PacketSize, "maximum-packet-size"),
        (Self::ReceiveMaximum, "receive-maximum"),
    ];

    /// Its name in metrics and in the log.
    #[must_use]
    pub const fn name(self) -> &'static str {
        Self::REASONS[self as usize].1
    }
}

/// How often each limit was reached since start. Single writer: the shard.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LimitCounts([u64; Limited::REASONS.len()]);

impl LimitCounts {
    /// (reason, how often).
    pub(crate) fn all(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Limited::REASONS
            .iter()
            .map(|(reason, name)| (*name, self.0[*reason as usize]))
    }
}

/// Lines about limits, over all shards: refusals come by the thousand, and an operator needs one line and a number.
#[derive(Debug, Default)]
pub(crate) struct Lines([Line; Limited::REASONS.len()]);

#[derive(Debug, Default)]
struct Line {
    /// Not in any line yet.
    untold: AtomicU64,
    /// Monotonic ms of the last line.
    told_at_ms: AtomicU64,
}

impl Lines {
    pub(crate) fn count(&self, reason: Limited) {
        self.0[reason as usize]
            .untold
            .fetch_add(1, Ordering::Relaxed);
    }

    /// How many the next line is about, if one is due and there is something to tell.
    pub(crate) fn due(&self, reason: Limited, now_ms: u64) -> Option<u64> {
        let line = &self.0[reason as usize];
        let told_at_ms = line.told_at_ms.load(Ordering::Relaxed);
        if line.untold.load(Ordering::Relaxed) == 0
            || (told_at_ms != 0 && now_ms < told_at_ms + LINE_MS)
        {
            return None;
        }
        // one shard tells it
        let mine = line.told_at_ms.compare_exchange(
            told_at_ms,
            now_ms,
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
        mine.ok()?;
        Some(line.untold.swap(0, Ordering::Relaxed))
    }
}

/// What clients may publish per second, and who waits for the next token.
#[derive(Debug, Default)]
pub(crate) struct PublishRates {
    rate: Option<Rate>,
    /// By session slot; see [`Rate::take`]. Empty without a limit.
    due_ns: Vec<u64>,
    /// Connections that are not decoded, by the tick at which they go on.
    waiting: BTreeMap<u64, Vec<ConnectionKey>>,
}

impl PublishRates {
    pub(crate) fn new(per_second: u64) -> Self {
        Self {
            rate: Rate::per_second(per_second),
            ..Self::default()
        }
    }

    /// There is a limit.
    #[inline]
    pub(crate) const fn are_limited(&self) -> bool {
        self.rate.is_some()
    }

    /// A slot holds another session from now on.
    pub(crate) fn forget(&mut self, session: u32) {
        if let Some(due_ns) = self.due_ns.get_mut(session as usize) {
            *due_ns = 0;
        }
    }

    /// One more publish of a session, or how many nanoseconds it must wait.
    fn take(&mut self, session: u32, now_ms: u64) -> Result<(), u64> {
        let Some(rate) = self.rate else {
            return Ok(());
        };
        let at = session as usize;
        if self.due_ns.len() <= at {
            self.due_ns.resize(at + 1, 0);
        }
        self.due_ns[at] = rate.take(self.due_ns[at], now_ms * 1_000_000)?;
        Ok(())
    }
}

impl Shard {
    /// Takes a token for the PUBLISH at hand. Without one the connection is not decoded until there is one again: what
    /// the client sends waits in its socket, acks and pings behind the PUBLISH too.
    pub(crate) fn may_publish(&mut self, slot: u32) -> bool {
        let connection = &self.wires.slots[slot as usize];
        if connection.stage != Stage::Live {
            return true;
        }
        let Err(wait_ns) = self
            .publish_rates
            .take(connection.session, self.now.mono_ms)
        else {
            return true;
        };
        self.wires.slots[slot as usize].throttled = true;
        self.limited_client(Limited::PublishRate, slot);
        let tick = Wheel::tick_of(self.now.mono_ms + wait_ns.div_ceil(1_000_000));
        let key = self.wires.key(slot);
        let waiting = self.publish_rates.waiting.entry(tick).or_default();
        if waiting.is_empty() {
            self.wheel.insert(tick, Timer::Publish);
        }
        waiting.push(key);
        false
    }

    /// Those whose tokens are back are decoded again.
    pub(crate) fn resume_publishers(&mut self) {
        let now = self.now.mono_ms;
        while let Some(first) = self.publish_rates.waiting.first_entry()
            && *first.key() <= Wheel::tick_now(now)
        {
            for key in first.remove() {
                if let Some(slot) = self.wires.find(key)
                    && std::mem::take(&mut self.wires.slots[slot as usize].throttled)
                {
                    // it was not silent: it was not read
                    self.wires.slots[slot as usize].heard(now);
                    self.make_ready(slot);
                }
            }
        }
    }

    /// A limit was reached. `whom` goes to the log with the first of several.
    #[cold]
    pub(crate) fn limited(&mut self, reason: Limited, whom: impl Display) {
        self.counters.limited.0[reason as usize] += 1;
        self.admission.lines.count(reason);
        if let Some(times) = self.admission.lines.due(reason, self.now.mono_ms) {
            log::warn!(limit = reason.name(), times = times, last:% = whom; "limit reached");
        }
    }

    /// As [`Shard::limited`], for a connection.
    #[cold]
    pub(crate) fn limited_client(&mut self, reason: Limited, slot: u32) {
        let peer = self.wires.slots[slot as usize].peer;
        self.limited(reason, peer);
    }

    /// Tells what came since the last line, where a second has passed.
    pub(crate) fn tell_limits(&self) {
        for (reason, name) in Limited::REASONS {
            if let Some(times) = self.admission.lines.due(reason, self.now.mono_ms) {
                log::warn!(limit = name, times = times; "limit reached");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_stand_at_their_own_places() {
        for (index, (reason, _)) in Limited::REASONS.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
    }

    #[test]
    fn a_line_per_second_and_reason_tells_all() {
        let lines = Lines::default();
        let (rate, levels) = (Limited::ConnectRate, Limited::TopicLevels);
        assert_eq!(lines.due(rate, 5000), None);
        lines.count(rate);
        assert_eq!(lines.due(rate, 5000), Some(1));
        for _ in 0..1000 {
            lines.count(rate);
            assert_eq!(lines.due(rate, 5999), None);
        }
        lines.count(levels);
        assert_eq!(lines.due(levels, 5999), Some(1));
        assert_eq!(lines.due(rate, 6000), Some(1000));
        assert_eq!(lines.due(rate, 7000), None);
    }
}
