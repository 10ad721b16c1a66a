// SPDX-License-Identifier: Apache-2.0
//! A rate per second with a burst of one second's worth, kept in one number (generic cell rate algorithm).
//!
//! The number is when the next event would be due if they all came evenly spaced. An event may come as long as that is
//! less than a second ahead; so nothing has to run while nothing happens, and a new number 0 is a full second's worth.

/// Nanoseconds of the burst.
const BURST_NS: u64 = 1_000_000_000;

/// So many per second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    interval_ns: u64,
}

impl Rate {
    /// `None` for 0, which is no limit.
    pub(crate) fn per_second(count: u64) -> Option<Self> {
        (count > 0).then(|| Self {
            interval_ns: (BURST_NS / count).max(1),
        })
    }

    /// One more event now: the number to keep, or how many nanoseconds it must wait.
    #[inline]
    pub(crate) fn take(self, due_ns: u64, now_ns: u64) -> Result<u64, u64> {
        let due_ns = due_ns.max(now_ns);
        let (ahead_ns, room_ns) = (due_ns - now_ns, BURST_NS - self.interval_ns);
        if ahead_ns <= room_ns {
            Ok(due_ns + self.interval_ns)
        } else {
            Err(ahead_ns - room_ns)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `events` at once go through at `now_ns`.
    fn burst(rate: Rate, due_ns: &mut u64, now_ns: u64, events: usize) -> usize {
        let mut through = 0;
        for _ in 0..events {
            if let Ok(next) = rate.take(*due_ns, now_ns) {
                *due_ns = next;
                through += 1;
            }
        }
        through
    }

    #[test]
    fn a_second_s_worth_may_come_at_once_and_not_one_more() {
        for count in [1, 2, 3, 7, 1000] {
            let rate = Rate::per_second(count).expect("not 0");
            let (mut due, now) = (0, 5_000_000_000);
            assert_eq!(burst(rate, &mut due, now, 2000), count as usize);
            assert_eq!(
                burst(rate, &mut due, now + 3_600_000_000_000, 2000),
                count as usize
            );
        }
    }

    #[test]
    fn what_must_wait_is_told_how_long() {
        let rate = Rate::per_second(4).expect("not 0");
        let (mut due, now) = (0, 5_000_000_000);
        assert_eq!(burst(rate, &mut due, now, 4), 4);
        let wait = rate.take(due, now).expect_err("a fifth");
        assert_eq!(wait, 250_000_000);
        assert!(rate.take(due, now + wait - 1).is_err());
        assert!(rate.take(due, now + wait).is_ok());
    }

    #[test]
    fn over_a_long_time_the_rate_holds() {
        let rate = Rate::per_second(10).expect("not 0");
        let (mut due, mut through) = (0, 0);
        for tick in 0..1000 {
            through += burst(rate, &mut due, 1_000_000_000 + tick * 100_000_000, 50);
        }
        // a burst, and ten in each of the 99.9 seconds after it
        assert_eq!(through, 10 + 999);
    }

    #[test]
    fn no_rate_is_no_limit() {
        assert!(Rate::per_second(0).is_none());
        assert!(Rate::per_second(u64::MAX).is_some());
    }
}
