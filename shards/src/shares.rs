// SPDX-License-Identifier: Apache-2.0
//! What each shard holds, for limits that are the whole node's.
//!
//! Each shard writes its own share and reads all of them only when it is about to hold more. So a limit costs nothing
//! while nothing grows, and may be exceeded by what other shards take in at the same moment.

use std::sync::atomic::{AtomicU64, Ordering};

/// What the shards hold, a share each.
#[derive(Debug)]
pub(crate) struct Shares(Box<[Share]>);

/// Written by one shard; in cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Share {
    retained_messages: AtomicU64,
    retained_bytes: AtomicU64,
    memory_bytes: AtomicU64,
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
