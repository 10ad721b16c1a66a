// SPDX-License-Identifier: Apache-2.0

//! The one clock of the generator: monotonic nanoseconds, read once per turn or per read, never per message.

use rustix::time::{ClockId, clock_gettime};

pub(crate) const SECOND_NS: u64 = 1_000_000_000;

pub(crate) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * SECOND_NS + now.tv_nsec as u64
}

pub(crate) fn seconds(ns: u64) -> f64 {
    ns as f64 / SECOND_NS as f64
}
