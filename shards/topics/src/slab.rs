// SPDX-License-Identifier: Apache-2.0
//! A growing table whose freed places are used again, addressed by 32-bit numbers.

use std::ops::{Index, IndexMut};

/// No place: what a link holds that leads nowhere.
pub(crate) const NONE: u32 = u32::MAX;

#[derive(Debug)]
pub(crate) struct Slab<T> {
    items: Vec<T>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            items: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T: Default> Slab<T> {
    pub(crate) fn insert(&mut self, item: T) -> u32 {
        if let Some(at) = self.free.pop() {
            self.items[at as usize] = item;
            return at;
        }
        let at = u32::try_from(self.items.len()).ok().filter(|at| *at < NONE);
        self.items.push(item);
        at.expect("a shard holds fewer than 2^32 of anything")
    }

    pub(crate) fn remove(&mut self, at: u32) -> T {
        let item = std::mem::take(&mut self.items[at as usize]);
        self.free.push(at);
        if self.free.len() == self.items.len() {
            // Empty: the memory of a peak is given back.
            *self = Self::default();
        }
        item
    }

    /// Places in use.
    pub(crate) fn len(&self) -> usize {
        self.items.len() - self.free.len()
    }

    /// All places, the free ones (default values) too.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.items.iter_mut()
    }
}

impl<T> Index<u32> for Slab<T> {
    type Output = T;

    #[inline]
    fn index(&self, at: u32) -> &T {
        &self.items[at as usize]
    }
}

impl<T> IndexMut<u32> for Slab<T> {
    #[inline]
    fn index_mut(&mut self, at: u32) -> &mut T {
        &mut self.items[at as usize]
    }
}
