// SPDX-License-Identifier: Apache-2.0
//! A table whose content can be compared between nodes by a number.

use std::hash::{Hash, Hasher};

use compact_str::CompactString;
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use xxhash_rust::xxh3::Xxh3Default;

/// Rows by name. The digest is the same wherever the rows are the same.
#[derive(Clone, Debug)]
pub(crate) struct Table<V> {
    rows: HashMap<CompactString, V, RandomState>,
    digest: u64,
}

impl<V> Default for Table<V> {
    fn default() -> Self {
        Self {
            rows: HashMap::default(),
            digest: 0,
        }
    }
}

fn digest_of(key: &str, row: &impl Hash) -> u64 {
    let mut hasher = Xxh3Default::new();
    key.hash(&mut hasher);
    row.hash(&mut hasher);
    hasher.finish()
}

impl<V: Hash> Table<V> {
    pub(crate) fn get(&self, key: &str) -> Option<&V> {
        self.rows.get(key)
    }

    pub(crate) fn insert(&mut self, key: CompactString, row: V) -> Option<V> {
        self.digest = self.digest.wrapping_add(digest_of(&key, &row));
        let old = match self.rows.get_mut(&key) {
            Some(known) => Some(std::mem::replace(known, row)),
            None => {
                self.rows.insert(key.clone(), row);
                None
            }
        };
        if let Some(old) = &old {
            self.digest = self.digest.wrapping_sub(digest_of(&key, old));
        }
        old
    }

    pub(crate) fn remove(&mut self, key: &str) -> Option<V> {
        let row = self.rows.remove(key)?;
        self.digest = self.digest.wrapping_sub(digest_of(key, &row));
        Some(row)
    }

    /// The names of the rows for which `is` holds, in order: what is done with them is the same on every node.
    pub(crate) fn names(&self, mut is: impl FnMut(&V) -> bool) -> Vec<CompactString> {
        let mut names: Vec<_> = self
            .rows
            .iter()
            .filter(|(_, row)| is(row))
            .map(|(name, _)| name.clone())
            .collect();
        names.sort_unstable();
        names
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&CompactString, &V)> {
        self.rows.iter()
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(crate) const fn digest(&self) -> u64 {
        self.digest
    }
}

impl<V: Serialize> Serialize for Table<V> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(&self.rows)
    }
}

impl<'de, V: Deserialize<'de> + Hash> Deserialize<'de> for Table<V> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let rows = std::collections::BTreeMap::<CompactString, V>::deserialize(from)?;
        let mut table = Self::default();
        for (key, row) in rows {
            table.insert(key, row);
        }
        Ok(table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_depends_on_the_rows_alone() {
        let mut one = Table::default();
        one.insert("a".into(), 1);
        one.insert("b".into(), 2);
        one.insert("a".into(), 3);
        let mut other = Table::default();
        other.insert("c".into(), 9);
        other.insert("b".into(), 2);
        other.insert("a".into(), 3);
        assert_ne!(one.digest(), other.digest());
        assert_eq!(other.remove("c"), Some(9));
        assert_eq!(one.digest(), other.digest());
        other.insert("b".into(), 4);
        assert_ne!(one.digest(), other.digest());
        other.remove("a");
        other.remove("b");
        assert_eq!(other.digest(), 0);
    }
}
