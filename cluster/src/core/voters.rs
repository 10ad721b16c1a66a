// SPDX-License-Identifier: Apache-2.0
//! Which members vote: the largest odd number of those that can, up to five; of two both.

use std::collections::BTreeSet;

use crate::entry::NodeId;

/// More voters make each commit slower, and survive more than three failures at once.
const VOTERS_MAX: usize = 5;

/// What a leader knows of a member.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Member {
    pub(crate) node: NodeId,
    pub(crate) votes: bool,
    /// It is not dead.
    pub(crate) is_live: bool,
    /// It has about all that the leader has.
    pub(crate) has_caught_up: bool,
}

const fn voters_of(able: usize) -> usize {
    match able {
        0..=2 => able,
        able if able >= VOTERS_MAX => VOTERS_MAX,
        able => able - (able + 1) % 2,
    }
}

/// The voters that there should be, if not those that there are; `leader` stays one. Dead voters stay as long as nobody
/// can take their place: a smaller cluster would agree to what they do not know.
pub(crate) fn next_voters(leader: NodeId, members: &[Member]) -> Option<BTreeSet<NodeId>> {
    let present: BTreeSet<NodeId> = of(members, |member| member.votes);
    let mut able = of(members, |member| {
        !member.votes && member.is_live && member.has_caught_up
    });
    let dead = of(members, |member| member.votes && !member.is_live);
    let mut voters = present.clone();
    for gone in dead {
        if let Some(next) = able.pop_first() {
            voters.remove(&gone);
            voters.insert(next);
        }
    }
    let wanted = voters_of(voters.len() + able.len());
    while voters.len() < wanted
        && let Some(next) = able.pop_first()
    {
        voters.insert(next);
    }
    // after a removal there may be an even number
    while voters.len() > wanted.max(1)
        && let Some(last) = voters.iter().rev().find(|node| **node != leader).copied()
    {
        voters.remove(&last);
    }
    (voters != present).then_some(voters)
}

fn of(members: &[Member], which: impl Fn(&Member) -> bool) -> BTreeSet<NodeId> {
    let found = members.iter().filter(|member| which(member));
    found.map(|member| member.node).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u64) -> NodeId {
        NodeId::new(number).expect("it is not 0")
    }

    /// `V` votes, `v` votes and is dead, `L` has caught up, `l` has not, `d` is dead; numbered from 1, which leads.
    fn next(members: &str) -> Option<Vec<u64>> {
        let members: Vec<Member> = members
            .chars()
            .zip(1..)
            .map(|(kind, number)| Member {
                node: node(number),
                votes: matches!(kind, 'V' | 'v'),
                is_live: matches!(kind, 'V' | 'L' | 'l'),
                has_caught_up: matches!(kind, 'V' | 'L'),
            })
            .collect();
        let voters = next_voters(node(1), &members)?;
        Some(voters.into_iter().map(|node| node.0.get()).collect())
    }

    #[test]
    fn as_many_vote_as_are_odd_up_to_five_and_of_two_both() {
        assert_eq!(next("V"), None);
        assert_eq!(next("VL"), Some(vec![1, 2]));
        assert_eq!(next("VLL"), Some(vec![1, 2, 3]));
        assert_eq!(next("VVL"), Some(vec![1, 2, 3]));
        assert_eq!(next("VLLL"), Some(vec![1, 2, 3]));
        assert_eq!(next("VVVL"), None);
        assert_eq!(next("VVVLL"), Some(vec![1, 2, 3, 4, 5]));
        assert_eq!(next("VVVVVLL"), None);
    }

    #[test]
    fn who_lags_or_is_dead_does_not_become_a_voter() {
        assert_eq!(next("Vl"), None);
        assert_eq!(next("Vd"), None);
        assert_eq!(next("VlL"), Some(vec![1, 3]));
        assert_eq!(next("VVl"), None);
    }

    #[test]
    fn a_dead_voter_gives_its_place_to_who_can_take_it_and_else_keeps_it() {
        assert_eq!(next("VVv"), None);
        assert_eq!(next("VvVL"), Some(vec![1, 3, 4]));
        assert_eq!(next("Vvl"), None);
        assert_eq!(next("VvvL"), Some(vec![1, 3, 4]));
    }

    #[test]
    fn an_even_number_that_a_removal_left_becomes_odd_again() {
        assert_eq!(next("VVVV"), Some(vec![1, 2, 3]));
        assert_eq!(next("VV"), None);
    }
}
