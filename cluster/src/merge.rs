// SPDX-License-Identifier: Apache-2.0
//! One numbered order of what several sources have for one shard, and its marks taken back to each of them.
//!
//! A shard knows one lane per node, whose items are numbered from 1 without a gap. What comes over it has numbers of its
//! own: entries of the node's streams, of which there may be several, and changes of the tables.

use std::collections::VecDeque;

/// What a shard has marked of one source, in the source's own numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marked<S> {
    /// Which.
    pub source: S,
    /// All up to this one are done, since the last time; 0: nothing new.
    pub done: u64,
    /// All up to this one are kept, but for those that were refused; 0: nothing new.
    pub kept: u64,
    /// Those of them that were refused, ascending.
    pub refused: Vec<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Part<S> {
    first: u64,
    count: u32,
    source: S,
    /// The source's number of the first.
    of_source: u64,
}

impl<S> Part<S> {
    const fn last(&self) -> u64 {
        self.first + self.count as u64 - 1
    }

    /// The source's number of an item of this part.
    const fn number(&self, item: u64) -> u64 {
        self.of_source + (item - self.first)
    }
}

/// The order; it keeps what is not kept by the shard.
#[derive(Clone, Debug)]
pub struct Merge<S> {
    last: u64,
    done: u64,
    kept: u64,
    parts: VecDeque<Part<S>>,
}

impl<S> Default for Merge<S> {
    fn default() -> Self {
        Self {
            last: 0,
            done: 0,
            kept: 0,
            parts: VecDeque::new(),
        }
    }
}

impl<S: Copy + PartialEq> Merge<S> {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends `count` items, at least one, of a source, whose number of the first is `of_source`; the number of the
    /// first here.
    pub fn push(&mut self, source: S, of_source: u64, count: u32) -> u64 {
        debug_assert!(count > 0, "a part has items");
        let first = self.last + 1;
        self.last += u64::from(count);
        self.parts.push_back(Part {
            first,
            count,
            source,
            of_source,
        });
        first
    }

    /// Items that the shard has not kept.
    #[must_use]
    pub const fn outstanding(&self) -> u64 {
        self.last - self.kept
    }

    /// The shard is done with all items up to `done`, and has kept those up to `kept`, but for `refused` (ascending, none
    /// above `kept`). What that says to each source, in the order in which they came.
    pub fn handle_mark(&mut self, done: u64, kept: u64, refused: &[u64]) -> Vec<Marked<S>> {
        let done = done.min(self.last).max(self.done);
        let kept = kept.min(done).max(self.kept);
        let mut all: Vec<Marked<S>> = Vec::new();
        for part in &self.parts {
            if part.first > done {
                break;
            }
            let upto = |mark: u64, before: u64| {
                let item = mark.min(part.last());
                let is_new = item > before && item >= part.first;
                if is_new { part.number(item) } else { 0 }
            };
            let (newly_done, newly_kept) = (upto(done, self.done), upto(kept, self.kept));
            if newly_done == 0 && newly_kept == 0 {
                continue;
            }
            let from = refused.partition_point(|item| *item < part.first);
            let to = refused.partition_point(|item| *item <= part.last().min(kept));
            let refused = refused[from..to.max(from)].iter();
            let refused = refused
                .filter(|item| **item > self.kept)
                .map(|item| part.number(*item));
            match all.iter_mut().find(|known| known.source == part.source) {
                Some(known) => {
                    known.done = known.done.max(newly_done);
                    known.kept = known.kept.max(newly_kept);
                    known.refused.extend(refused);
                }
                None => all.push(Marked {
                    source: part.source,
                    done: newly_done,
                    kept: newly_kept,
                    refused: refused.collect(),
                }),
            }
        }
        (self.done, self.kept) = (done, kept);
        while self.parts.front().is_some_and(|part| part.last() <= kept) {
            self.parts.pop_front();
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked(source: char, done: u64, kept: u64, refused: &[u64]) -> Marked<char> {
        Marked {
            source,
            done,
            kept,
            refused: refused.to_vec(),
        }
    }

    #[test]
    fn marks_go_back_in_the_numbers_of_each_source() {
        let mut merge = Merge::new();
        assert_eq!(merge.push('a', 10, 3), 1);
        assert_eq!(merge.push('b', 1, 2), 4);
        assert_eq!(merge.push('a', 13, 1), 6);
        // in the middle of a part
        assert_eq!(merge.handle_mark(2, 0, &[]), [marked('a', 11, 0, &[])]);
        assert_eq!(
            merge.handle_mark(5, 2, &[2]),
            [marked('a', 12, 11, &[11]), marked('b', 2, 0, &[])]
        );
        assert_eq!(merge.outstanding(), 4);
        // nothing new
        assert_eq!(merge.handle_mark(5, 2, &[]), []);
        assert_eq!(
            merge.handle_mark(6, 6, &[3, 5]),
            [marked('a', 13, 13, &[12]), marked('b', 0, 2, &[2])]
        );
        assert_eq!(merge.outstanding(), 0);
        assert_eq!(merge.push('c', 1, 1), 7);
        assert_eq!(merge.handle_mark(7, 7, &[]), [marked('c', 1, 1, &[])]);
    }

    #[test]
    fn a_mark_that_goes_too_far_or_back_says_no_more_than_it_can() {
        let mut merge = Merge::new();
        merge.push('a', 1, 2);
        assert_eq!(merge.handle_mark(9, 9, &[]), [marked('a', 2, 2, &[])]);
        merge.push('a', 3, 2);
        assert_eq!(merge.handle_mark(1, 1, &[]), []);
        assert_eq!(merge.handle_mark(3, 4, &[]), [marked('a', 3, 3, &[])]);
    }

    /// Against a model that remembers each item.
    #[test]
    fn it_agrees_with_a_model() {
        let mut seed = 7_u64;
        let mut dice = |sides: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % sides
        };
        for _ in 0..200 {
            let mut merge = Merge::new();
            let (mut items, mut next) = (Vec::new(), [1; 3]);
            let (mut done, mut kept) = (0, 0);
            let (mut dones, mut keeps, mut refusals) = ([0; 3], [0; 3], Vec::new());
            let (mut told_dones, mut told_keeps, mut told_refusals) = ([0; 3], [0; 3], Vec::new());
            for _ in 0..50 {
                if dice(2) == 0 {
                    let (source, count) = (dice(3) as usize, dice(4) + 1);
                    merge.push(source, next[source], count as u32);
                    for _ in 0..count {
                        items.push((source, next[source]));
                        next[source] += 1;
                    }
                    continue;
                }
                let before = kept;
                done += dice(items.len() as u64 - done + 1);
                kept += dice(done - kept + 1);
                let mut refused = Vec::new();
                for item in before + 1..=kept {
                    let (source, number) = items[item as usize - 1];
                    keeps[source] = number;
                    if dice(4) == 0 {
                        refused.push(item);
                        refusals.push((source, number));
                    }
                }
                for (source, number) in &items[..done as usize] {
                    dones[*source] = *number;
                }
                for marked in merge.handle_mark(done, kept, &refused) {
                    let source = marked.source;
                    told_dones[source] = marked.done.max(told_dones[source]);
                    told_keeps[source] = marked.kept.max(told_keeps[source]);
                    told_refusals.extend(marked.refused.iter().map(|number| (source, *number)));
                }
                assert_eq!((told_dones, told_keeps), (dones, keeps));
                refusals.sort_unstable();
                told_refusals.sort_unstable();
                assert_eq!(told_refusals, refusals);
                assert_eq!(merge.outstanding(), items.len() as u64 - kept);
            }
        }
    }
}
