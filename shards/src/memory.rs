// SPDX-License-Identifier: Apache-2.0
//! memory-max: what clients make this shard hold, and what happens when that is too much.
//!
//! Counted are read buffers, queues, messages in flight, out-buffers, and payloads of 2 KiB and more for as long as
//! anybody has them. Each part keeps its own sum as it changes; a turn adds the few sums, and tells the other shards
//! when the result has changed by more than a grain. Nothing is looked through, and there is nothing per message.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use corqtt_codec::ReasonCode;

use crate::limits::Limited;
use crate::shard::Shard;
use crate::wires::{Close, Why};

/// A change of a shard's share that is not worth telling (bytes), and the part of memory-max that it is at most.
const GRAIN_BYTES: usize = 64 * 1024;
const GRAIN_PART: usize = 256;
/// The part of memory-max that is left free.
const MARGIN_PART: u64 = 16;
/// What the process takes without clients (bytes), and the part of memory-max that is kept for it at most.
const PROCESS_BYTES: u64 = 16 << 20;
const PROCESS_PART: u64 = 8;
/// Connections closed in a turn because of what they have half sent.
const READS_CLOSED_MAX: usize = 64;
/// Above this part of memory-max connections are not even accepted.
const ACCEPT_PERCENT: u64 = 110;

/// A shard's memory. `large` is also changed by other threads, which drop what this shard sent them.
#[derive(Debug)]
pub(crate) struct Memory {
    /// `u64::MAX`: no limit.
    maximum: u64,
    grain_bytes: usize,
    large_bytes: Arc<AtomicUsize>,
    /// What the other shards know of this one.
    told_bytes: usize,
    full: bool,
}

/// The buffer of a large payload.
struct Large {
    bytes: Vec<u8>,
    counted: usize,
    total: Arc<AtomicUsize>,
}

impl AsRef<[u8]> for Large {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Large {
    fn drop(&mut self) {
        self.total.fetch_sub(self.counted, Ordering::Relaxed);
    }
}

impl Memory {
    pub(crate) fn new(bytes_max: u64) -> Self {
        let maximum = match bytes_max {
            0 => u64::MAX,
            // what a turn takes in before it is judged, what the allocator needs, and the process itself have room below it
            bytes_max => {
                bytes_max - bytes_max / MARGIN_PART - PROCESS_BYTES.min(bytes_max / PROCESS_PART)
            }
        };
        let part = usize::try_from(maximum).unwrap_or(usize::MAX) / GRAIN_PART;
        Self {
            maximum,
            grain_bytes: part.clamp(1, GRAIN_BYTES),
            large_bytes: Arc::default(),
            told_bytes: 0,
            full: false,
        }
    }

    /// A buffer that can be shared, and is counted until nobody has it any more.
    pub(crate) fn large(&self, bytes: Vec<u8>) -> Bytes {
        let counted = bytes.capacity();
        self.large_bytes.fetch_add(counted, Ordering::Relaxed);
        Bytes::from_owner(Large {
            bytes,
            counted,
            total: self.large_bytes.clone(),
        })
    }
}

impl Shard {
    /// Bytes that this shard's clients make it hold.
    pub(crate) fn held_bytes(&self) -> usize {
        self.wires.held_bytes
            + corqtt_session::held_bytes()
            + self.memory.large_bytes.load(Ordering::Relaxed)
    }

    /// Once per turn: tells the other shards what is held here, and acts where the node holds too much.
    pub(crate) fn watch_memory(&mut self) {
        if self.memory.maximum == u64::MAX {
            return;
        }
        let held = self.held_bytes();
        let grown = held > self.memory.told_bytes;
        if held.abs_diff(self.memory.told_bytes) >= self.memory.grain_bytes {
            self.memory.told_bytes = held;
            let me = usize::from(self.me.0);
            self.admission.shares.set_memory(me, held as u64);
            if grown || self.memory.full {
                self.judge_memory();
            }
        } else if self.memory.full {
            self.judge_memory();
        }
    }

    /// Looks at what all shards hold.
    pub(crate) fn judge_memory(&mut self) {
        let total = self.admission.shares.memory();
        let maximum = self.memory.maximum;
        let full = total >= maximum;
        if full && !self.memory.full {
            let text = format_args!("{total} of {maximum} bytes");
            self.limited(Limited::MemoryMax, text);
        }
        self.memory.full = full;
        self.session_limits.memory_full = full;
        if full {
            self.close_partial_reads(total);
        }
    }

    /// Closes what is half sent, the largest first, until this shard's part of what is too much is gone. What is in
    /// queues and out-buffers goes by their own rules.
    fn close_partial_reads(&mut self, total: u64) {
        // those that end already have not given back theirs
        if !self.closing.is_empty() {
            return;
        }
        let (over, own) = (total - self.memory.maximum, self.memory.told_bytes);
        let part = u128::from(over) * own as u128 / u128::from(total.max(1));
        let mut left = part as usize + 1;
        for _ in 0..READS_CLOSED_MAX {
            let Some((bytes, slot)) = self.wires.largest_partial_read() else {
                return;
            };
            self.limited_client(Limited::MemoryReads, slot);
            let close = Close {
                reason: Some(ReasonCode::QUOTA_EXCEEDED),
                why: Why::Limit(Limited::MemoryReads),
                keep_will: true,
            };
            self.close_soon(slot, close);
            left = left.saturating_sub(bytes);
            if left == 0 {
                return;
            }
        }
    }

    /// A new client: is there memory for it? One that comes for what waits in its session makes room.
    pub(crate) fn memory_for_client(&self, client_id: &str) -> Result<(), Limited> {
        let waits = |session: u32| {
            let session = &self.sessions.slots[session as usize].session;
            session.queue_len() + session.inflight_len() > 0
        };
        match self.memory_below(100) {
            Err(_) if self.sessions.find(client_id).is_some_and(waits) => Ok(()),
            verdict => verdict,
        }
    }

    /// A new connection: is there memory to hear it out, and tell it that there is none?
    pub(crate) fn memory_for_connection(&self) -> Result<(), Limited> {
        self.memory_below(ACCEPT_PERCENT)
    }

    fn memory_below(&self, percent: u64) -> Result<(), Limited> {
        let maximum = self.memory.maximum;
        let is_below = maximum == u64::MAX
            || u128::from(self.admission.shares.memory()) * 100
                < u128::from(maximum) * u128::from(percent);
        is_below.then_some(()).ok_or(Limited::MemoryConnections)
    }
}
