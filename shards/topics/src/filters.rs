// SPDX-License-Identifier: Apache-2.0
//! The distinct filters of a shard by their text, each with who wants it.
//!
//! A filter with wildcards has its entry here as well; the trie only says which entries a topic matches.

use compact_str::CompactString;

use crate::hash::TextHash;
use crate::index::Index;
use crate::remotes;
use crate::slab::{NONE, Slab};
use crate::subscribers::{Subscriber, SubscriberList};
use crate::subscription::ClientKey;

/// A filter without its `$share/GROUP/`, and everyone who wants it.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) filter: CompactString,
    /// Plain subscribers on this shard.
    subscribers: Subscribers,
    /// Other shards that want it, in the table of shard sets.
    pub(crate) remotes: u32,
    /// The first of its shared groups.
    pub(crate) groups: u32,
}

/// Most filters have one subscriber.
#[derive(Debug, Default)]
enum Subscribers {
    #[default]
    None,
    One(Subscriber),
    Many(u32),
}

// A million filters must fit into 200 MB together with their clients' lists.
const _: () = assert!(size_of::<Entry>() == 48);

impl Default for Entry {
    fn default() -> Self {
        Self {
            filter: CompactString::const_new(""),
            subscribers: Subscribers::None,
            remotes: remotes::EMPTY,
            groups: NONE,
        }
    }
}

#[derive(Debug, Default)]
struct Many {
    list: SubscriberList,
    /// How many of them a publisher must wait for.
    persistent: u32,
}

#[derive(Debug)]
pub(crate) struct Filters {
    hash: TextHash,
    entries: Slab<Entry>,
    many: Slab<Many>,
    index: Index,
}

impl Filters {
    pub(crate) fn new(hash: TextHash) -> Self {
        Self {
            hash,
            entries: Slab::default(),
            many: Slab::default(),
            index: Index::default(),
        }
    }

    /// How many distinct filters there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    #[inline]
    pub(crate) fn find(&self, filter: &str) -> Option<u32> {
        self.find_hashed(self.hash.of(filter), filter)
    }

    #[inline]
    fn find_hashed(&self, hash: u64, filter: &str) -> Option<u32> {
        self.index
            .find(hash, |at| self.entries[at].filter == filter)
    }

    /// The entry of a filter, and whether it is new.
    pub(crate) fn find_or_insert(&mut self, filter: &str) -> (u32, bool) {
        let hash = self.hash.of(filter);
        if let Some(at) = self.find_hashed(hash, filter) {
            return (at, false);
        }
        let at = self.entries.insert(Entry {
            filter: CompactString::new(filter),
            ..Entry::default()
        });
        self.index
            .insert(hash, at, |at| self.hash.of(&self.entries[at].filter));
        (at, true)
    }

    #[inline]
    pub(crate) fn entry(&self, at: u32) -> &Entry {
        &self.entries[at]
    }

    #[inline]
    pub(crate) fn entry_mut(&mut self, at: u32) -> &mut Entry {
        &mut self.entries[at]
    }

    /// Frees an entry that nobody wants any more; its filter.
    pub(crate) fn remove_if_unwanted(&mut self, at: u32) -> Option<CompactString> {
        let entry = &self.entries[at];
        let unwanted = matches!(entry.subscribers, Subscribers::None)
            && entry.remotes == remotes::EMPTY
            && entry.groups == NONE;
        if !unwanted {
            return None;
        }
        let hash = self.hash.of(&entry.filter);
        self.index
            .remove(hash, at, |at| self.hash.of(&self.entries[at].filter));
        Some(self.entries.remove(at).filter)
    }

    #[inline]
    pub(crate) fn subscribers(&self, at: u32) -> &[Subscriber] {
        match &self.entries[at].subscribers {
            Subscribers::None => &[],
            Subscribers::One(one) => std::slice::from_ref(one),
            Subscribers::Many(many) => self.many[*many].list.as_slice(),
        }
    }

    pub(crate) fn subscriber_mut(&mut self, at: u32, position: u32) -> &mut Subscriber {
        match &mut self.entries[at].subscribers {
            Subscribers::None => unreachable!("a client's list names subscribers that exist"),
            Subscribers::One(one) => one,
            Subscribers::Many(many) => self.many[*many].list.at_mut(position),
        }
    }

    pub(crate) fn position(&self, at: u32, client: ClientKey) -> Option<u32> {
        match &self.entries[at].subscribers {
            Subscribers::None => None,
            Subscribers::One(one) => (one.client == client).then_some(0),
            Subscribers::Many(many) => self.many[*many].list.position(client),
        }
    }

    /// Whether a publisher must wait for one of its subscribers; `waits` answers for one.
    pub(crate) fn persistent(&self, at: u32, waits: impl Fn(&Subscriber) -> bool) -> bool {
        match &self.entries[at].subscribers {
            Subscribers::None => false,
            Subscribers::One(one) => waits(one),
            Subscribers::Many(many) => self.many[*many].persistent > 0,
        }
    }

    /// A subscriber of `at` began or ceased to be one that publishers wait for.
    pub(crate) fn count_persistent(&mut self, at: u32, was: bool, is: bool) {
        if let Subscribers::Many(many) = self.entries[at].subscribers {
            let persistent = &mut self.many[many].persistent;
            *persistent = *persistent + u32::from(is) - u32::from(was);
        }
    }

    /// Adds a client that does not subscribe to it yet; its position.
    pub(crate) fn subscribe(
        &mut self,
        at: u32,
        subscriber: Subscriber,
        waits: impl Fn(&Subscriber) -> bool,
    ) -> u32 {
        let subscribers = &mut self.entries[at].subscribers;
        match subscribers {
            Subscribers::None => {
                *subscribers = Subscribers::One(subscriber);
                0
            }
            Subscribers::One(one) => {
                let mut many = Many {
                    persistent: u32::from(waits(one)),
                    ..Many::default()
                };
                many.list.push(*one);
                many.persistent += u32::from(waits(&subscriber));
                let position = many.list.push(subscriber);
                *subscribers = Subscribers::Many(self.many.insert(many));
                position
            }
            Subscribers::Many(many) => {
                let many = &mut self.many[*many];
                many.persistent += u32::from(waits(&subscriber));
                many.list.push(subscriber)
            }
        }
    }

    /// Takes the subscriber at `position` out; the one that took its position, if any.
    pub(crate) fn unsubscribe(
        &mut self,
        at: u32,
        position: u32,
        waits: impl Fn(&Subscriber) -> bool,
    ) -> Option<Subscriber> {
        let subscribers = &mut self.entries[at].subscribers;
        let Subscribers::Many(many_at) = *subscribers else {
            *subscribers = Subscribers::None;
            return None;
        };
        let many = &mut self.many[many_at];
        let removed = many.list.swap_remove(position);
        many.persistent -= u32::from(waits(&removed));
        let moved = many.list.as_slice().get(position as usize).copied();
        if let [one] = many.list.as_slice() {
            *subscribers = Subscribers::One(*one);
            self.many.remove(many_at);
        }
        moved
    }
}
