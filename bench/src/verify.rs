// SPDX-License-Identifier: Apache-2.0

//! What was lost, doubled or out of order, told from sequence numbers while the load runs.

use std::collections::VecDeque;

/// The sequence numbers that arrived, for one publisher at one subscriber or one shared group.
///
/// Everything below `base` was seen; above it one bit per number. In order arrival keeps it empty.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    base: u64,
    words: VecDeque<u64>,
}

impl Tally {
    /// Notes an arrival; false when this number was here before.
    #[inline]
    pub(crate) fn mark(&mut self, sequence: u64) -> bool {
        if sequence == self.base && self.words.is_empty() {
            self.base += 1;
            return true;
        }
        self.mark_apart(sequence)
    }

    #[cold]
    fn mark_apart(&mut self, sequence: u64) -> bool {
        if sequence < self.base {
            return false;
        }
        // bit 0 of the first word stands for `base` rounded down to a multiple of 64
        let first = self.base / 64;
        let word = (sequence / 64 - first) as usize;
        if self.words.is_empty() {
            self.words.push_back((1 << (self.base % 64)) - 1);
        }
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let bit = 1 << (sequence % 64);
        if self.words[word] & bit != 0 {
            return false;
        }
        self.words[word] |= bit;
        self.settle();
        true
    }

    /// Moves `base` past what has become whole.
    fn settle(&mut self) {
        while self.words.front() == Some(&u64::MAX) {
            self.words.pop_front();
            self.base = (self.base / 64 + 1) * 64;
        }
        let Some(&front) = self.words.front() else {
            return;
        };
        self.base = self.base / 64 * 64 + u64::from(front.trailing_ones());
        if self.words.len() == 1 && front >> (self.base % 64) == 0 {
            self.words.clear();
        }
    }
}

/// What a run found wrong. `misordered` counts a first arrival that came after a later message of the same publisher
/// to the same subscriber; `foreign` one that this run did not send, or not to that subscriber.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Faults {
    pub(crate) lost: u64,
    pub(crate) duplicates: u64,
    pub(crate) misordered: u64,
    pub(crate) foreign: u64,
    pub(crate) refused: u64,
    pub(crate) acks_missing: u64,
    pub(crate) acks_misordered: u64,
}

impl Faults {
    /// Why this run must not pass, for the quality of service it ran at.
    ///
    /// QoS 0 may lose; QoS 1 may double, though without a reconnect no broker has a reason to.
    pub(crate) fn verdict(&self, qos: u8) -> Vec<String> {
        let rules = [
            (self.lost, qos > 0, "lost"),
            (self.duplicates, qos != 1, "duplicated"),
            (self.misordered, true, "out of order"),
            (
                self.foreign,
                true,
                "not sent to that subscriber in this run",
            ),
            (self.refused, true, "refused"),
            (self.acks_missing, true, "never acknowledged"),
            (self.acks_misordered, true, "acknowledged out of order"),
        ];
        let broken = rules
            .iter()
            .filter(|(count, counts, _)| *counts && *count > 0);
        broken
            .map(|(count, _, what)| format!("{count} messages {what}"))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_order_arrival_needs_no_bits() {
        let mut tally = Tally::default();
        assert!((0..1000).all(|sequence| tally.mark(sequence)));
        assert!(tally.words.is_empty());
        assert!((0..1000).all(|sequence| !tally.mark(sequence)));
    }

    #[test]
    fn arrival_in_any_order_is_counted_once_each() {
        // 7919 is prime to 4096, so the walk visits each number once
        let mut tally = Tally::default();
        let order: Vec<u64> = (0..4096).map(|step| step * 7919 % 4096).collect();
        assert!(order.iter().all(|&sequence| tally.mark(sequence)));
        assert_eq!(tally.base, 4096);
        assert!(tally.words.is_empty());
        assert!(order.iter().all(|&sequence| !tally.mark(sequence)));
    }

    #[test]
    fn a_gap_stays_open_until_it_is_filled() {
        let mut tally = Tally::default();
        for sequence in (0..300).filter(|&sequence| sequence != 70) {
            assert!(tally.mark(sequence));
        }
        assert_eq!(tally.base, 70);
        assert!(!tally.mark(299));
        assert!(tally.mark(70));
        assert_eq!(tally.base, 300);
    }

    #[test]
    fn loss_fails_a_run_above_qos_0_only() {
        let faults = Faults {
            lost: 3,
            ..Faults::default()
        };
        assert!(faults.verdict(0).is_empty());
        assert_eq!(faults.verdict(1), ["3 messages lost"]);
    }

    #[test]
    fn a_double_fails_a_run_except_at_qos_1() {
        let faults = Faults {
            duplicates: 1,
            ..Faults::default()
        };
        assert!(!faults.verdict(0).is_empty());
        assert!(faults.verdict(1).is_empty());
        assert!(!faults.verdict(2).is_empty());
    }
}
