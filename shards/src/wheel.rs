// SPDX-License-Identifier: Apache-2.0
//! The timer wheel of a shard: keep-alive, expiry and will delay of all its clients behind one timer of the kernel.
//!
//! Four levels of 64 slots; a tick is 100 ms, so the levels span 6.4 s, 7 min, 7 h and 19 days; what is later waits
//! in the last level and is put in again. An entry is not taken out when its reason goes: its owner looks at its own
//! deadline when the entry fires, and puts a new one in if it is not due yet. An owner remembers the earliest entry it
//! has, so that it has few.

/// Milliseconds of a tick.
pub(crate) const TICK_MS: u64 = 100;

const SLOTS: u64 = 64;
const LEVELS: usize = 4;

/// What an entry is about: an index in the shard's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Timer {
    /// Connection slot: CONNECT deadline, keep-alive, lingering close.
    Connection(u32),
    /// Session slot: expiry, will delay.
    Session(u32),
    /// Listeners that rest.
    Accept,
    /// Connections that wait for publish-rate.
    Publish,
    /// Connections that wait for the cluster's lease.
    Lease,
    /// Expiry of retained messages.
    Sweep,
}

#[derive(Debug)]
pub(crate) struct Wheel {
    /// Ticks since the clock's zero that have fired.
    now: u64,
    levels: [[Vec<(u64, Timer)>; SLOTS as usize]; LEVELS],
    /// A bit per slot that holds something.
    occupied: [u64; LEVELS],
}

impl Wheel {
    pub(crate) fn new(now_ms: u64) -> Self {
        Self {
            now: now_ms / TICK_MS,
            levels: std::array::from_fn(|_| std::array::from_fn(|_| Vec::new())),
            occupied: [0; LEVELS],
        }
    }

    /// The tick at which an entry for `at_ms` fires: never early, at most one tick late.
    pub(crate) fn tick_of(at_ms: u64) -> u64 {
        at_ms.div_ceil(TICK_MS)
    }

    /// The tick whose entries have fired by `now_ms`.
    pub(crate) fn tick_now(now_ms: u64) -> u64 {
        now_ms / TICK_MS
    }

    /// Puts an entry in; it fires in the first [`Wheel::advance`] to its tick or later.
    pub(crate) fn insert(&mut self, tick: u64, timer: Timer) {
        let tick = tick.max(self.now + 1);
        let (level, slot) = self.place(tick);
        self.levels[level][slot].push((tick, timer));
        self.occupied[level] |= 1 << slot;
    }

    fn place(&self, tick: u64) -> (usize, usize) {
        for level in 0..LEVELS {
            let shift = 6 * level as u32;
            let here = self.now >> shift;
            // the current slot of a level is already emptied into the one below: an entry for it belongs there
            let ahead = (tick >> shift) - here;
            if ahead < SLOTS || level == LEVELS - 1 {
                let at = here + ahead.min(SLOTS - 1);
                return (level, (at % SLOTS) as usize);
            }
        }
        unreachable!("the last level takes everything")
    }

    /// Moves to `now_ms`; what is due goes to `due`.
    pub(crate) fn advance(&mut self, now_ms: u64, due: &mut Vec<Timer>) {
        let target = now_ms / TICK_MS;
        while self.now < target {
            // no slot is due before it: a pause of hours costs no more than what was missed in it
            let next = self.next_tick().unwrap_or(u64::MAX);
            if next > target {
                self.now = target;
                return;
            }
            self.now = next;
            for level in (1..LEVELS).rev() {
                if self.now.is_multiple_of(1 << (6 * level)) {
                    self.cascade(level);
                }
            }
            let slot = (self.now % SLOTS) as usize;
            if self.occupied[0] & (1 << slot) != 0 {
                self.occupied[0] &= !(1 << slot);
                let mut entries = std::mem::take(&mut self.levels[0][slot]);
                for (tick, timer) in entries.drain(..) {
                    if tick <= self.now {
                        due.push(timer);
                    } else {
                        self.insert(tick, timer);
                    }
                }
                if self.levels[0][slot].is_empty() {
                    self.levels[0][slot] = entries;
                }
            }
        }
    }

    fn cascade(&mut self, level: usize) {
        let slot = ((self.now >> (6 * level)) % SLOTS) as usize;
        if self.occupied[level] & (1 << slot) == 0 {
            return;
        }
        self.occupied[level] &= !(1 << slot);
        for (tick, timer) in std::mem::take(&mut self.levels[level][slot]) {
            // due now: into the slot that this advance is about to empty
            if tick <= self.now {
                let slot = (self.now % SLOTS) as usize;
                self.levels[0][slot].push((tick, timer));
                self.occupied[0] |= 1 << slot;
            } else {
                self.insert(tick, timer);
            }
        }
    }

    /// When to look again, milliseconds: not later than the first entry is due.
    pub(crate) fn next_ms(&self) -> Option<u64> {
        self.next_tick().map(|tick| tick * TICK_MS)
    }

    /// The first tick at which a slot is to be emptied.
    fn next_tick(&self) -> Option<u64> {
        let mut next: Option<u64> = None;
        for (level, occupied) in self.occupied.iter().enumerate() {
            if *occupied == 0 {
                continue;
            }
            let shift = 6 * level as u32;
            let here = self.now >> shift;
            let ahead = u64::from(
                occupied
                    .rotate_right(((here + 1) % SLOTS) as u32)
                    .trailing_zeros(),
            ) + 1;
            let tick = (here + ahead) << shift;
            next = Some(next.map_or(tick, |next| next.min(tick)));
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_fires_on_time_and_once() {
        let mut wheel = Wheel::new(12_345);
        let mut seed = 1u64;
        let mut expected = Vec::new();
        for n in 0..5000u32 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let delay = match n % 4 {
                0 => seed >> 50,
                1 => seed >> 44,
                2 => seed >> 40,
                _ => seed >> 36,
            };
            let tick = Wheel::tick_of(12_345 + delay);
            wheel.insert(tick, Timer::Connection(n));
            expected.push((tick.max(124), n));
        }
        expected.sort_unstable();
        let mut fired = Vec::new();
        while let Some(at) = wheel.next_ms() {
            let mut due = Vec::new();
            wheel.advance(at, &mut due);
            let mut now: Vec<_> = due
                .into_iter()
                .map(|timer| match timer {
                    Timer::Connection(n) => (at / TICK_MS, n),
                    other => panic!("{other:?} was never put in"),
                })
                .collect();
            now.sort_unstable();
            fired.append(&mut now);
        }
        assert_eq!(fired, expected);
    }

    #[test]
    fn an_entry_at_the_edge_of_a_level_fires_on_time() {
        for start in (0..200).chain(4_000..4_200).chain(262_080..262_208) {
            for ahead in [62, 63, 64, 65, 4_031, 4_032, 4_095, 4_096, 262_143, 262_144] {
                let mut wheel = Wheel::new(start * TICK_MS);
                wheel.insert(start + ahead, Timer::Session(1));
                let mut due = Vec::new();
                wheel.advance((start + ahead - 1) * TICK_MS, &mut due);
                assert_eq!(due, [], "{start} {ahead}");
                wheel.advance((start + ahead) * TICK_MS, &mut due);
                assert_eq!(due, [Timer::Session(1)], "{start} {ahead}");
            }
        }
    }

    #[test]
    fn a_long_pause_fires_everything_that_was_missed() {
        let mut wheel = Wheel::new(0);
        for n in 1..1000 {
            wheel.insert(u64::from(n) * 7, Timer::Session(n));
        }
        let mut due = Vec::new();
        wheel.advance(10_000_000, &mut due);
        assert_eq!(due.len(), 999);
        assert_eq!(wheel.next_ms(), None);
    }
}
