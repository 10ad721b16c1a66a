// SPDX-License-Identifier: Apache-2.0
//! What each shard holds, for limits that are the whole node's.
//!
//! Each shard writes its own share and reads all of them only when it is about to hold more. So a limit costs nothing
//! while nothing grows, and may be exceeded by what other shards take in at the same moment. Who subscribes reads whether
//! another shard retains anything: before a publisher is answered its message is on its way there, so that no look is left
//! out that would find it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What the shards hold, a share each.
#[derive(Debug)]
pub(crate) struct Shares(Box<[Share]>);

/// Written by one shard, but for the last; in cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Share {
    retained_messages: AtomicU64,
    retained_bytes: AtomicU64,
    memory_bytes: AtomicU64,
    /// Written by whoever is the first.
    retains: AtomicBool,
}

/// Retained messages and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Retainable {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

impl Shares {
    pub(crate) fn new(shards: u8) -> Self {
        Self((0..shards).map(|_| Share::default()).collect())
    }

    pub(crate) fn set_retained(&self, shard: usize, holds: Retainable) {
        let share = &self.0[shard];
        share
            .retained_messages
            .store(holds.messages, Ordering::Relaxed);
        share.retained_bytes.store(holds.bytes, Ordering::Relaxed);
    }

    /// A message is on its way to the shard that retains it.
    pub(crate) fn will_retain(&self, shard: usize) {
        if !self.retains(shard) {
            self.0[shard].retains.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a shard was ever given something to retain.
    pub(crate) fn retains(&self, shard: usize) -> bool {
        self.0[shard].retains.load(Ordering::Relaxed)
    }

    pub(crate) fn set_memory(&self, shard: usize, bytes: u64) {
        self.0[shard].memory_bytes.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn memory(&self) -> u64 {
        self.sum(|share| &share.memory_bytes)
    }

    pub(crate) fn retained(&self) -> Retainable {
        Retainable {
            messages: self.sum(|share| &share.retained_messages),
            bytes: self.sum(|share| &share.retained_bytes),
        }
    }

    fn sum(&self, of: fn(&Share) -> &AtomicU64) -> u64 {
        let loads = self.0.iter().map(|share| of(share).load(Ordering::Relaxed));
        loads.sum()
    }
}
