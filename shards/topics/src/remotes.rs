// SPDX-License-Identifier: Apache-2.0
//! Sets of other shards, each kept once however many filters have it.

use hashbrown::HashTable;

use crate::hash::mix;
use crate::slab::Slab;

/// No shard wants it.
pub(crate) const EMPTY: u32 = 0;

/// `persistent` is a part of `shards`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ShardSet {
    pub(crate) shards: u64,
    pub(crate) persistent: u64,
}

#[derive(Debug, Default)]
struct Counted {
    set: ShardSet,
    filters: u32,
}

#[derive(Debug)]
pub(crate) struct ShardSets {
    sets: Slab<Counted>,
    index: HashTable<u32>,
}

fn hash(set: ShardSet) -> u64 {
    mix(set.shards ^ mix(set.persistent))
}

impl ShardSets {
    pub(crate) fn new() -> Self {
        let mut sets = Slab::default();
        let empty = sets.insert(Counted::default());
        debug_assert_eq!(empty, EMPTY);
        Self {
            sets,
            index: HashTable::new(),
        }
    }

    #[inline]
    pub(crate) fn set(&self, at: u32) -> ShardSet {
        self.sets[at].set
    }

    /// One filter's set changes from `at` to `set`: the number of the new one.
    pub(crate) fn replace(&mut self, at: u32, set: ShardSet) -> u32 {
        if self.sets[at].set == set {
            return at;
        }
        let new = self.acquire(set);
        self.release(at);
        new
    }

    fn acquire(&mut self, set: ShardSet) -> u32 {
        if set == ShardSet::default() {
            return EMPTY;
        }
        let hash_of = hash(set);
        if let Some(at) = self.index.find(hash_of, |at| self.sets[*at].set == set) {
            self.sets[*at].filters += 1;
            return *at;
        }
        let at = self.sets.insert(Counted { set, filters: 1 });
        self.index
            .insert_unique(hash_of, at, |at| hash(self.sets[*at].set));
        at
    }

    fn release(&mut self, at: u32) {
        if at == EMPTY {
            return;
        }
        self.sets[at].filters -= 1;
        if self.sets[at].filters == 0 {
            let set = self.sets.remove(at).set;
            if let Ok(entry) = self.index.find_entry(hash(set), |other| *other == at) {
                entry.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_sets_are_kept_once_and_freed_with_their_last_filter() {
        let mut sets = ShardSets::new();
        let set = ShardSet {
            shards: 0b110,
            persistent: 0b100,
        };
        let first = sets.replace(EMPTY, set);
        let second = sets.replace(EMPTY, set);
        assert_eq!(first, second);
        assert_eq!(sets.set(first), set);
        assert_eq!(sets.replace(first, ShardSet::default()), EMPTY);
        assert_eq!(sets.sets.len(), 2);
        assert_eq!(sets.replace(second, ShardSet::default()), EMPTY);
        assert_eq!(sets.sets.len(), 1);
        assert_eq!(sets.index.len(), 0);
    }
}
