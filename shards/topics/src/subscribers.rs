// SPDX-License-Identifier: Apache-2.0
//! The subscribers of one filter: added, found and removed in constant time however many there are.
//!
//! A subscriber knows its place in its client's list and that list knows the subscriber's position here, so moving
//! either one is two writes.

use hashbrown::HashTable;

use crate::hash::mix;
use crate::subscription::{ClientKey, Packed};

/// Longer lists have an index; shorter ones are looked through.
const SCAN_MAX: usize = 32;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Subscriber {
    pub(crate) client: ClientKey,
    /// Position in the client's own list.
    pub(crate) slot: u32,
    pub(crate) sub: Packed,
}

/// Subscribers of one filter, each client at most once.
#[derive(Debug, Default)]
pub(crate) struct SubscriberList {
    subs: Vec<Subscriber>,
    /// Positions by client while there are more than [`SCAN_MAX`] (or have been, and still more than half of it).
    index: HashTable<u32>,
}

fn hash(client: ClientKey) -> u64 {
    mix(u64::from(client.0))
}

impl SubscriberList {
    #[inline]
    pub(crate) fn as_slice(&self) -> &[Subscriber] {
        &self.subs
    }

    #[inline]
    pub(crate) fn at(&self, position: u32) -> &Subscriber {
        &self.subs[position as usize]
    }

    /// For changing the options and the slot; the client stays.
    #[inline]
    pub(crate) fn at_mut(&mut self, position: u32) -> &mut Subscriber {
        &mut self.subs[position as usize]
    }

    #[inline]
    pub(crate) fn len(&self) -> u32 {
        self.subs.len() as u32
    }

    pub(crate) fn position(&self, client: ClientKey) -> Option<u32> {
        if self.index.is_empty() {
            return self
                .subs
                .iter()
                .position(|s| s.client == client)
                .map(|position| position as u32);
        }
        self.index
            .find(hash(client), |position| self.at(*position).client == client)
            .copied()
    }

    /// Adds a client that is not here; its position.
    pub(crate) fn push(&mut self, subscriber: Subscriber) -> u32 {
        let position = self.len();
        if self.subs.is_empty() {
            self.subs.reserve_exact(2);
        }
        self.subs.push(subscriber);
        let subs = &self.subs;
        let rehash = |position: &u32| hash(subs[*position as usize].client);
        if !self.index.is_empty() {
            self.index
                .insert_unique(hash(subscriber.client), position, rehash);
        } else if subs.len() > SCAN_MAX {
            self.index.reserve(subs.len(), rehash);
            for (position, subscriber) in subs.iter().enumerate() {
                self.index
                    .insert_unique(hash(subscriber.client), position as u32, rehash);
            }
        }
        position
    }

    /// Exchanges two subscribers.
    pub(crate) fn swap(&mut self, a: u32, b: u32) {
        if a == b {
            return;
        }
        // Both are found before either changes: in between the index would be ambiguous.
        let entries = (self.index_entry(a), self.index_entry(b));
        if let (Some(of_a), Some(of_b)) = entries {
            self.set_index(of_a, b);
            self.set_index(of_b, a);
        }
        self.subs.swap(a as usize, b as usize);
    }

    /// Takes the subscriber at `position` out; the last one moves there.
    pub(crate) fn swap_remove(&mut self, position: u32) -> Subscriber {
        let last = self.len() - 1;
        if let Some(leaving) = self.index_entry(position) {
            let moved = self.index_entry(last).filter(|_| last != position);
            if let Ok(entry) = self.index.get_bucket_entry(leaving) {
                entry.remove();
            }
            // Removing an entry moves no other one.
            if let Some(moved) = moved {
                self.set_index(moved, position);
            }
        }
        let removed = self.subs.swap_remove(position as usize);
        if self.subs.len() <= SCAN_MAX / 2 && !self.index.is_empty() {
            self.index = HashTable::new();
        }
        if self.subs.len() < self.subs.capacity() / 4 {
            self.subs.shrink_to(self.subs.len() * 2);
        }
        removed
    }

    /// Where the index keeps the subscriber at `position`.
    fn index_entry(&self, position: u32) -> Option<usize> {
        if self.index.is_empty() {
            return None;
        }
        self.index
            .find_bucket_index(hash(self.at(position).client), |p| *p == position)
    }

    fn set_index(&mut self, entry: usize, position: u32) {
        if let Some(value) = self.index.get_bucket_mut(entry) {
            *value = position;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscriber(client: u32) -> Subscriber {
        Subscriber {
            client: ClientKey(client),
            slot: client,
            sub: Packed::default(),
        }
    }

    #[test]
    fn positions_stay_true_while_the_list_grows_shuffles_and_shrinks() {
        let mut list = SubscriberList::default();
        for client in 0..100 {
            assert_eq!(list.push(subscriber(client)), client);
        }
        for (a, b) in [(0, 99), (5, 50), (50, 51), (99, 98)] {
            list.swap(a, b);
        }
        let mut random = 1_u64;
        while list.len() > 0 {
            for position in 0..list.len() {
                assert_eq!(list.position(list.at(position).client), Some(position));
            }
            random = mix(random);
            let removed = list.swap_remove((random % u64::from(list.len())) as u32);
            assert_eq!(list.position(removed.client), None);
        }
    }
}
