// SPDX-License-Identifier: Apache-2.0
//! In a cluster: while this node may not trust its tables, nothing is matched that would be acknowledged.

use crate::limits::Limited;
use crate::shard::Shard;
use crate::wheel::{Timer, Wheel};
use crate::wires::Stage;

/// How often a shard looks whether those that it holds may go on (ms).
const LOOK_MS: u64 = 20;

impl Shard {
    /// What the tables say may be trusted now; the clock is read here.
    pub(crate) fn is_current(&self) -> bool {
        self.lease.as_ref().is_none_or(|lease| lease.is_current())
    }

    /// Whether the PUBLISH at hand, with a QoS above 0, may be matched. If not, its connection is not decoded before it may: it is one that its
    /// client sends again, and nothing behind it overtakes it.
    pub(crate) fn may_match(&mut self, slot: u32) -> bool {
        if self.is_current() {
            return true;
        }
        let connection = &mut self.wires.slots[slot as usize];
        if connection.stage != Stage::Live {
            return true;
        }
        connection.throttled = true;
        self.limited_client(Limited::Lease, slot);
        if self.held.is_empty() {
            self.look_at_lease();
        }
        let key = self.wires.key(slot);
        self.held.push(key);
        false
    }

    fn look_at_lease(&mut self) {
        let tick = Wheel::tick_of(self.now.mono_ms + LOOK_MS);
        self.wheel.insert(tick, Timer::Lease);
    }

    /// Those that are held go on, if they may.
    pub(crate) fn resume_held(&mut self) {
        if !self.is_current() {
            return self.look_at_lease();
        }
        for key in std::mem::take(&mut self.held) {
            if let Some(slot) = self.wires.find(key)
                && std::mem::take(&mut self.wires.slots[slot as usize].throttled)
            {
                // it was not silent: it was not read
                self.wires.slots[slot as usize].heard(self.now.mono_ms);
                self.make_ready(slot);
            }
        }
    }
}
