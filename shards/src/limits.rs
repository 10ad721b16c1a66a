// SPDX-License-Identifier: Apache-2.0
//! Limits that were reached: counted by reason, and told in the log at most once per second and reason.

use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::shard::Shard;

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
    /// A SUBSCRIBE got 0x97 for a filter: the client has too many.
    Subscriptions,
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
    pub const REASONS: [(Self, &'static str); 10] = [
        (Self::Connections, "connections"),
        (Self::ListenerConnections, "max-connections"),
        (Self::ConnectionsPerIp, "connections-per-ip"),
        (Self::ConnectRate, "connect-rate"),
        (Self::ConnectTimeout, "connect-timeout"),
        (Self::Subscriptions, "subscriptions"),
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
        self.0[reason as usize].untold.fetch_add(1, Ordering::Relaxed);
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

impl Shard {
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
