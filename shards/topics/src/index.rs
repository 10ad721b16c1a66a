// SPDX-License-Identifier: Apache-2.0
//! From a hash to a place in a slab, for tables that may hold millions.

use hashbrown::HashTable;

/// The index is this many tables, so that none is large when it has to grow: a shard must not stand still for the
/// rehash of a million entries.
const TABLES: usize = 256;

/// Where in a slab of the owner's something with a given hash is.
#[derive(Debug)]
pub struct Index {
    tables: Box<[HashTable<u32>]>,
}

/// Bits that the tables themselves use least.
#[inline]
fn table_of(hash: u64) -> usize {
    (hash >> 40) as usize % TABLES
}

impl Default for Index {
    fn default() -> Self {
        Self {
            tables: (0..TABLES).map(|_| HashTable::new()).collect(),
        }
    }
}

impl Index {
    /// The place with this hash for which `is` holds.
    #[inline]
    pub fn find(&self, hash: u64, mut is: impl FnMut(u32) -> bool) -> Option<u32> {
        self.tables[table_of(hash)]
            .find(hash, |at| is(*at))
            .copied()
    }

    /// Adds a place that is not in it. `hash_of` gives the hash of any place that is, the new one included.
    pub fn insert(&mut self, hash: u64, at: u32, hash_of: impl Fn(u32) -> u64) {
        self.tables[table_of(hash)].insert_unique(hash, at, |at| hash_of(*at));
    }

    /// Takes a place out; `hash_of` as for [`Self::insert`].
    pub fn remove(&mut self, hash: u64, at: u32, hash_of: impl Fn(u32) -> u64) {
        let table = &mut self.tables[table_of(hash)];
        if let Ok(found) = table.find_entry(hash, |other| *other == at) {
            found.remove();
        }
        if table.len() < table.capacity() / 8 {
            table.shrink_to(table.len() * 2, |at| hash_of(*at));
        }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.tables.iter().map(HashTable::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::scatter;

    fn hash_of(at: u32) -> u64 {
        scatter(u64::from(at))
    }

    #[test]
    fn what_was_inserted_is_found_until_it_is_removed() {
        let mut index = Index::default();
        for at in 0..10_000 {
            index.insert(hash_of(at), at, hash_of);
        }
        for at in 0..10_000 {
            assert_eq!(index.find(hash_of(at), |other| other == at), Some(at));
            index.remove(hash_of(at), at, hash_of);
            assert_eq!(index.find(hash_of(at), |other| other == at), None);
        }
        assert_eq!(index.len(), 0);
        assert!(index.tables.iter().all(|table| table.capacity() < 16));
    }
}
