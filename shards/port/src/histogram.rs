// SPDX-License-Identifier: Apache-2.0
//! Durations counted in fixed buckets: one writer, no allocation, a few comparisons per entry.

/// Durations by size, since start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// One for each bound, and one for what is above the last.
    counts: [u64; Self::BOUNDS_NS.len() + 1],
    sum_ns: u64,
    max_ns: u64,
}

impl Histogram {
    /// Upper bounds of the buckets, inclusive (nanoseconds).
    pub const BOUNDS_NS: [u64; 11] = [
        50_000,
        100_000,
        250_000,
        500_000,
        1_000_000,
        2_000_000,
        5_000_000,
        10_000_000,
        50_000_000,
        100_000_000,
        1_000_000_000,
    ];

    /// Counts one duration.
    #[inline]
    pub fn record(&mut self, ns: u64) {
        // most of what is counted is short: the first bounds decide
        let bucket = Self::BOUNDS_NS
            .iter()
            .position(|bound| ns <= *bound)
            .unwrap_or(Self::BOUNDS_NS.len());
        self.counts[bucket] += 1;
        self.sum_ns = self.sum_ns.saturating_add(ns);
        self.max_ns = self.max_ns.max(ns);
    }

    /// How many fell into each bucket; the last is for what is above every bound.
    #[must_use]
    pub const fn counts(&self) -> &[u64; Self::BOUNDS_NS.len() + 1] {
        &self.counts
    }

    /// How many were counted.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// All of them together.
    #[must_use]
    pub const fn sum_ns(&self) -> u64 {
        self.sum_ns
    }

    /// The longest.
    #[must_use]
    pub const fn max_ns(&self) -> u64 {
        self.max_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_falls_into_the_first_bucket_that_holds_it() {
        let mut histogram = Histogram::default();
        for bound in Histogram::BOUNDS_NS {
            histogram.record(bound);
        }
        histogram.record(0);
        histogram.record(2_000_000_000);
        assert_eq!(histogram.counts(), &[2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]);
        assert_eq!(histogram.total(), 13);
        assert_eq!(histogram.max_ns(), 2_000_000_000);
        let bounds: u64 = Histogram::BOUNDS_NS.iter().sum();
        assert_eq!(histogram.sum_ns(), bounds + 2_000_000_000);
    }

    #[test]
    fn a_sum_never_goes_back() {
        let mut histogram = Histogram::default();
        histogram.record(u64::MAX);
        histogram.record(u64::MAX);
        assert_eq!(histogram.sum_ns(), u64::MAX);
        assert_eq!(histogram.counts()[Histogram::BOUNDS_NS.len()], 2);
    }
}
