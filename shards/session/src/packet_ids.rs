// SPDX-License-Identifier: Apache-2.0
//! Entries in the order of their packet ids, found by id in constant time while ids run on without gaps.

use std::collections::VecDeque;

use corqtt_codec::PacketId;

/// Entries in the order in which they were pushed; some may be gone from the middle.
///
/// While packet ids were pushed one after the other (`dense`), an id's place is its distance from the first; after
/// an id out of line it is looked for, newest last. Removed entries stay as holes until they reach an end.
#[derive(Debug)]
pub(crate) struct PacketIds<T> {
    slots: VecDeque<(PacketId, Option<T>)>,
    live: usize,
    dense: bool,
}

impl<T> Default for PacketIds<T> {
    fn default() -> Self {
        Self {
            slots: VecDeque::new(),
            live: 0,
            dense: true,
        }
    }
}

/// The id after `id`: 1 follows 65,535.
#[inline]
pub(crate) fn next_id(id: PacketId) -> PacketId {
    PacketId::new(id.value().wrapping_add(1)).unwrap_or(PacketId(std::num::NonZeroU16::MIN))
}

/// How many steps `to` is after `from` in the ring of 65,535 ids.
#[inline]
fn distance(from: PacketId, to: PacketId) -> usize {
    let (from, to) = (usize::from(from.value()), usize::from(to.value()));
    if to >= from {
        to - from
    } else {
        to + 65_535 - from
    }
}

impl<T> PacketIds<T> {
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.live
    }

    #[inline]
    fn position(&self, id: PacketId) -> Option<usize> {
        let (first, _) = self.slots.front()?;
        let guess = distance(*first, id);
        match self.slots.get(guess) {
            Some((at, Some(_))) if *at == id => Some(guess),
            _ if self.dense => None,
            _ => self
                .slots
                .iter()
                .rposition(|(at, entry)| *at == id && entry.is_some()),
        }
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, id: PacketId) -> Option<&mut T> {
        let position = self.position(id)?;
        self.slots.get_mut(position)?.1.as_mut()
    }

    #[inline]
    pub(crate) fn contains(&self, id: PacketId) -> bool {
        self.position(id).is_some()
    }

    /// Appends an entry; its id must not be there.
    pub(crate) fn push(&mut self, id: PacketId, entry: T) {
        if self.slots.len() > 64 && self.slots.len() > 2 * self.live {
            self.slots.retain(|(_, entry)| entry.is_some());
            self.dense = false;
        }
        match self.slots.back() {
            None => self.dense = true,
            Some((last, _)) => {
                let in_line = next_id(*last) == id && self.slots.len() < 65_535;
                if !in_line {
                    // a hole with this id may be left over: only live entries are kept then
                    self.slots.retain(|(_, entry)| entry.is_some());
                    self.dense = self.slots.is_empty();
                }
            }
        }
        debug_assert!(!self.contains(id));
        self.slots.push_back((id, Some(entry)));
        self.live += 1;
    }

    #[inline]
    pub(crate) fn remove(&mut self, id: PacketId) -> Option<T> {
        let position = self.position(id)?;
        let entry = self.slots[position].1.take()?;
        self.live -= 1;
        while matches!(self.slots.front(), Some((_, None))) {
            self.slots.pop_front();
        }
        if self.slots.is_empty() && self.slots.capacity() > 256 {
            self.slots.shrink_to(0);
        }
        Some(entry)
    }

    /// Live entries, oldest first.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (PacketId, &mut T)> {
        self.slots
            .iter_mut()
            .filter_map(|(id, entry)| Some((*id, entry.as_mut()?)))
    }

    /// Empties it.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = (PacketId, T)> {
        self.live = 0;
        self.dense = true;
        std::mem::take(&mut self.slots)
            .into_iter()
            .filter_map(|(id, entry)| Some((id, entry?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(value: u16) -> PacketId {
        PacketId::new(value).expect("not 0 in a test")
    }

    #[test]
    fn ids_are_found_and_freed_in_any_order() {
        let mut ids = PacketIds::default();
        for value in 1..=100 {
            ids.push(id(value), value);
        }
        for value in (1..=100).rev() {
            assert_eq!(ids.remove(id(value)), Some(value));
            assert_eq!(ids.remove(id(value)), None);
        }
        assert_eq!(ids.len(), 0);
    }

    #[test]
    fn a_stuck_first_id_does_not_keep_holes() {
        let mut ids = PacketIds::default();
        ids.push(id(1), 1);
        let mut next = id(2);
        for _ in 0..200_000u32 {
            if next == id(1) {
                next = id(2);
            }
            ids.push(next, next.value());
            assert_eq!(ids.remove(next), Some(next.value()));
            next = next_id(next);
        }
        assert!(
            ids.slots.len() < 200,
            "{} slots for one entry",
            ids.slots.len()
        );
        assert!(ids.contains(id(1)));
    }

    #[test]
    fn ids_run_over_the_end_of_their_range() {
        let mut ids = PacketIds::default();
        ids.push(id(65_535), 'a');
        ids.push(id(1), 'b');
        assert_eq!(ids.remove(id(1)), Some('b'));
        assert_eq!(ids.remove(id(65_535)), Some('a'));
    }
}
