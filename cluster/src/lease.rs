// SPDX-License-Identifier: Apache-2.0
//! How long a node may trust its tables, and which members a leader waits for.
//!
//! A node asks the leader; the leader answers with its commit index once a quorum has confirmed, after the question, that
//! it still leads. All that was committed before the question is at or below that index, so once the node has applied it
//! nothing that was acknowledged anywhere before the question is missing in its tables. It may rely on that until a lease
//! after it *asked*: by then a leader that does not hear of it stops waiting for it.
//!
//! Times are nanoseconds of a clock that goes on while the machine sleeps (`CLOCK_BOOTTIME`).

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::entry::NodeId;

/// A node asks so many times per lease: one lost question does not end it.
const QUESTIONS_PER_LEASE: u64 = 5;

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A node's own lease.
#[derive(Clone, Debug)]
pub struct Lease {
    lease_ns: u64,
    /// Numbers and times of the questions of the last lease that are not answered, ascending.
    asked: VecDeque<(u64, u64)>,
    next_question: u64,
    next_ask_ns: u64,
    /// (index, time of the question): granted from then on, once the index is applied. As few as questions.
    granted: Vec<(u64, u64)>,
    applied: u64,
    /// What is applied was current at this time.
    current_at_ns: Option<u64>,
}

impl Lease {
    /// No lease yet.
    #[must_use]
    pub fn new(lease: Duration) -> Self {
        Self {
            lease_ns: nanos(lease),
            asked: VecDeque::new(),
            next_question: 1,
            next_ask_ns: 0,
            granted: Vec::new(),
            applied: 0,
            current_at_ns: None,
        }
    }

    /// The number of the question that is to be asked now, if one is.
    pub fn poll_question(&mut self, now_ns: u64) -> Option<u64> {
        if now_ns < self.next_ask_ns {
            return None;
        }
        self.next_ask_ns = now_ns + self.lease_ns / QUESTIONS_PER_LEASE;
        let number = self.next_question;
        self.next_question += 1;
        self.asked.push_back((number, now_ns));
        // an answer to an earlier one would be worth nothing
        if self.asked.len() as u64 > QUESTIONS_PER_LEASE {
            self.asked.pop_front();
        }
        Some(number)
    }

    /// When to poll again.
    #[must_use]
    pub const fn next_question_ns(&self) -> u64 {
        self.next_ask_ns
    }

    /// The leader answered a question with its commit index.
    pub fn handle_answer(&mut self, number: u64, index: u64) {
        let place = self.asked.iter().position(|(asked, _)| *asked == number);
        if let Some((_, asked_ns)) = place.and_then(|place| self.asked.remove(place)) {
            self.granted.push((index, asked_ns));
            // the first one is worth nothing by now
            if self.granted.len() as u64 > QUESTIONS_PER_LEASE {
                self.granted.remove(0);
            }
            self.settle();
        }
    }

    /// All shards have applied the entries up to an index.
    pub fn handle_applied(&mut self, index: u64) {
        self.applied = self.applied.max(index);
        self.settle();
    }

    fn settle(&mut self) {
        let applied = self.applied;
        let current_at_ns = &mut self.current_at_ns;
        self.granted.retain(|(index, asked_ns)| {
            let waits = *index > applied;
            if !waits {
                *current_at_ns = (*current_at_ns).max(Some(*asked_ns));
            }
            waits
        });
    }

    /// The tables may be trusted until then; `None`: not at all.
    #[must_use]
    pub fn until_ns(&self) -> Option<u64> {
        self.current_at_ns
            .map(|at_ns| at_ns.saturating_add(self.lease_ns))
    }
}

/// What a leader knows of the members' leases.
#[derive(Clone, Debug)]
pub struct Grants {
    lease_ns: u64,
    /// It has led since then: before a lease is over members may have one of its predecessor's.
    since_ns: u64,
    /// When each asked last.
    asked_ns: BTreeMap<NodeId, u64>,
}

impl Grants {
    /// Of a leader since `now_ns`.
    #[must_use]
    pub fn new(lease: Duration, now_ns: u64) -> Self {
        Self {
            lease_ns: nanos(lease),
            since_ns: now_ns,
            asked_ns: BTreeMap::new(),
        }
    }

    /// A member asked.
    pub fn handle_question(&mut self, node: NodeId, now_ns: u64) {
        self.asked_ns.insert(node, now_ns);
    }

    /// Whether a member may still trust its tables; a tenth longer than a lease, since two clocks are never as fast.
    #[must_use]
    pub fn is_live(&self, node: NodeId, now_ns: u64) -> bool {
        let asked_ns = self.asked_ns.get(&node).copied().unwrap_or(self.since_ns);
        now_ns
            < asked_ns
                .max(self.since_ns)
                .saturating_add(self.lease_ns / 10 * 11)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;

    const LEASE: Duration = Duration::from_secs(2);
    const SECOND: u64 = 1_000_000_000;

    fn asked(lease: &mut Lease, now_ns: u64) -> u64 {
        lease.poll_question(now_ns).expect("it is time")
    }

    #[test]
    fn a_lease_counts_from_the_question_and_begins_when_its_index_is_applied() {
        let mut lease = Lease::new(LEASE);
        let question = asked(&mut lease, 10 * SECOND);
        assert_eq!(lease.until_ns(), None);
        lease.handle_answer(question, 7);
        assert_eq!(lease.until_ns(), None);
        lease.handle_applied(6);
        assert_eq!(lease.until_ns(), None);
        lease.handle_applied(7);
        assert_eq!(lease.until_ns(), Some(12 * SECOND));
        // longer with the next one, and not with one whose index is not applied
        let question = asked(&mut lease, 11 * SECOND);
        lease.handle_answer(question, 9);
        assert_eq!(lease.until_ns(), Some(12 * SECOND));
        lease.handle_applied(9);
        assert_eq!(lease.until_ns(), Some(13 * SECOND));
    }

    #[test]
    fn each_answer_counts_from_its_own_question_and_once() {
        let mut lease = Lease::new(LEASE);
        let first = asked(&mut lease, SECOND);
        let second = asked(&mut lease, 2 * SECOND);
        lease.handle_answer(second, 0);
        assert_eq!(lease.until_ns(), Some(4 * SECOND));
        // one that is late takes nothing away
        lease.handle_answer(first, 0);
        assert_eq!(lease.until_ns(), Some(4 * SECOND));
        lease.handle_answer(second, 0);
        lease.handle_answer(99, 0);
        assert_eq!(lease.until_ns(), Some(4 * SECOND));
    }

    #[test]
    fn an_answer_that_takes_longer_than_a_lease_is_void() {
        let mut lease = Lease::new(LEASE);
        let first = asked(&mut lease, 0);
        for number in 1..=QUESTIONS_PER_LEASE {
            asked(&mut lease, number * SECOND);
        }
        lease.handle_answer(first, 0);
        assert_eq!(lease.until_ns(), None);
    }

    #[test]
    fn questions_come_several_times_per_lease() {
        let mut lease = Lease::new(LEASE);
        let mut now_ns = 100 * SECOND;
        for number in 1..=10 {
            assert_eq!(lease.poll_question(now_ns), Some(number));
            assert_eq!(lease.poll_question(now_ns), None);
            now_ns = lease.next_question_ns();
        }
        assert_eq!(now_ns, 104 * SECOND);
    }

    #[test]
    fn a_leader_waits_for_who_asked_within_a_lease_and_at_first_for_everybody() {
        let node = |id| NodeId(NonZeroU64::new(id).expect("it is not 0"));
        let mut grants = Grants::new(LEASE, 10 * SECOND);
        assert!(grants.is_live(node(1), 11 * SECOND));
        assert!(grants.is_live(node(2), 11 * SECOND));
        grants.handle_question(node(1), 11 * SECOND);
        assert!(grants.is_live(node(2), 12 * SECOND));
        assert!(grants.is_live(node(1), 13 * SECOND));
        assert!(!grants.is_live(node(2), 13 * SECOND));
        assert!(!grants.is_live(node(1), 14 * SECOND));
    }
}
