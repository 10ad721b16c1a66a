// SPDX-License-Identifier: Apache-2.0
//! What this node wants: the sum of what its shards want of each filter.

use compact_str::CompactString;
use hashbrown::HashMap;
use smallvec::SmallVec;

use crate::entry::{Delta, Want};

/// Shards' wants by filter. Each shard tells the whole truth of a filter each time, so a repeat changes nothing.
#[derive(Debug, Default)]
pub struct OwnRoutes {
    filters: HashMap<CompactString, SmallVec<[(u8, Want); 1]>, foldhash::fast::RandomState>,
}

impl OwnRoutes {
    /// None.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A shard wants this of a filter from now on, or nothing. The change of the node's row, if it changes.
    pub fn set(&mut self, shard: u8, filter: &str, want: Option<Want>) -> Option<Delta> {
        let before = self.filters.get(filter).and_then(|wants| sum(wants));
        let after = match want {
            Some(want) => {
                let wants = self.filters.entry(filter.into()).or_default();
                match wants.iter_mut().find(|(of, _)| *of == shard) {
                    Some((_, known)) => *known = want,
                    None => wants.push((shard, want)),
                }
                sum(wants)
            }
            None => {
                let wants = self.filters.get_mut(filter)?;
                wants.retain(|(of, _)| *of != shard);
                let after = sum(wants);
                if wants.is_empty() {
                    self.filters.remove(filter);
                }
                after
            }
        };
        (before != after).then(|| Delta::Route {
            filter: filter.into(),
            want: after,
        })
    }

    /// All of the node's rows, in no order.
    pub fn all(&self) -> impl Iterator<Item = Delta> {
        self.filters.iter().map(|(filter, wants)| Delta::Route {
            filter: filter.clone(),
            want: sum(wants),
        })
    }

    /// How many filters are wanted.
    #[must_use]
    pub fn len(&self) -> usize {
        self.filters.len()
    }

    /// Nothing is wanted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.filters.is_empty()
    }
}

fn sum(wants: &[(u8, Want)]) -> Option<Want> {
    wants
        .iter()
        .map(|(_, want)| *want)
        .reduce(|a, b| match (a, b) {
            (
                Want::Group {
                    clean,
                    kept,
                    offline,
                    persistent,
                },
                Want::Group {
                    clean: other_clean,
                    kept: other_kept,
                    offline: other_offline,
                    persistent: other_persistent,
                },
            ) => Want::Group {
                clean: clean.saturating_add(other_clean),
                kept: kept.saturating_add(other_kept),
                offline: offline.saturating_add(other_offline),
                persistent: persistent | other_persistent,
            },
            // a filter is a group's or it is not, on all shards
            (a, b) => Want::Plain {
                persistent: is_persistent(a) | is_persistent(b),
            },
        })
}

const fn is_persistent(want: Want) -> bool {
    match want {
        Want::Plain { persistent } | Want::Group { persistent, .. } => persistent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn plain(persistent: bool) -> Option<Want> {
        Some(Want::Plain { persistent })
    }

    const fn group(clean: u32, kept: u32, offline: u32, persistent: bool) -> Option<Want> {
        Some(Want::Group {
            clean,
            kept,
            offline,
            persistent,
        })
    }

    fn route(filter: &str, want: Option<Want>) -> Option<Delta> {
        Some(Delta::Route {
            filter: filter.into(),
            want,
        })
    }

    #[test]
    fn a_filter_is_wanted_as_long_as_a_shard_wants_it() {
        let mut own = OwnRoutes::new();
        assert_eq!(own.set(0, "a", plain(false)), route("a", plain(false)));
        assert_eq!(own.set(1, "a", plain(false)), None);
        assert_eq!(own.set(1, "a", plain(true)), route("a", plain(true)));
        assert_eq!(own.set(0, "a", None), None);
        assert_eq!(own.set(0, "a", None), None);
        assert_eq!(own.set(1, "a", plain(false)), route("a", plain(false)));
        assert_eq!(own.set(1, "a", None), route("a", None));
        assert_eq!(own.set(1, "a", None), None);
        assert!(own.is_empty());
    }

    #[test]
    fn a_groups_members_are_those_of_all_shards() {
        let mut own = OwnRoutes::new();
        let filter = "$share/g/a";
        own.set(0, filter, group(1, 0, 2, true));
        assert_eq!(
            own.set(3, filter, group(2, 1, 0, false)),
            route(filter, group(3, 1, 2, true))
        );
        assert_eq!(
            own.set(0, filter, None),
            route(filter, group(2, 1, 0, false))
        );
        let all: Vec<_> = own.all().map(Some).collect();
        assert_eq!(all, [route(filter, group(2, 1, 0, false))]);
        assert_eq!(own.len(), 1);
    }
}
