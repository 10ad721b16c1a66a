// SPDX-License-Identifier: Apache-2.0
//! Entries in the order in which they came, found by packet id in constant time.

use std::collections::VecDeque;

use corqtt_codec::PacketId;
use hashbrown::HashMap;

/// Entries in the order in which they were pushed; some may be gone from the middle.
///
/// While packet ids were pushed one after the other, an id's place is its distance from the first. From the first id
/// out of line on until it is empty again, an index says where an id is. Removed entries stay as holes until they
/// reach the front or outnumber the live ones, so that every operation takes constant time (amortised).
#[derive(Debug)]
pub(crate) struct PacketIds<T> {
    slots: VecDeque<(PacketId, Option<T>)>,
    live: usize,
    index: Option<Box<Index>>,
}

/// Where the live ids are once they are not in line.
#[derive(Debug, Default)]
struct Index {
    /// The place of a live id, counted from the slot that was the first when the index was made.
    places: HashMap<PacketId, u32, foldhash::fast::RandomState>,
    /// Slots that have left the front since.
    gone: u32,
}

impl<T> Default for PacketIds<T> {
    fn default() -> Self {
        Self {
            slots: VecDeque::new(),
            live: 0,
            index: None,
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
    /// Live entries.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.live
    }

    /// Live entries and holes.
    #[inline]
    pub(crate) fn slots(&self) -> usize {
        self.slots.len()
    }

    #[inline]
    fn position(&self, id: PacketId) -> Option<usize> {
        let (first, _) = self.slots.front()?;
        let guess = distance(*first, id);
        match self.slots.get(guess) {
            Some((at, Some(_))) if *at == id => Some(guess),
            _ => {
                let index = self.index.as_ref()?;
                let place = index.places.get(&id)?;
                Some(place.wrapping_sub(index.gone) as usize)
            }
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
        debug_assert!(!self.contains(id));
        if self.slots.len() > 64 && self.slots.len() > 2 * self.live {
            self.compact();
        }
        if let Some(index) = &mut self.index {
            let place = index.gone.wrapping_add(self.slots.len() as u32);
            index.places.insert(id, place);
        } else if let Some((last, _)) = self.slots.back()
            && (next_id(*last) != id || self.slots.len() >= 65_535)
        {
            // a hole with this id may be left over, which is why the index comes before the entry
            let mut index = Box::<Index>::default();
            index.number(&self.slots);
            index.places.insert(id, self.slots.len() as u32);
            self.index = Some(index);
        }
        self.slots.push_back((id, Some(entry)));
        self.live += 1;
    }

    /// Drops the holes.
    fn compact(&mut self) {
        self.slots.retain(|(_, entry)| entry.is_some());
        self.index.get_or_insert_default().number(&self.slots);
    }

    #[inline]
    pub(crate) fn remove(&mut self, id: PacketId) -> Option<T> {
        let position = self.position(id)?;
        let entry = self.slots.get_mut(position)?.1.take()?;
        self.live -= 1;
        if let Some(index) = &mut self.index {
            index.places.remove(&id);
        }
        while matches!(self.slots.front(), Some((_, None))) {
            self.slots.pop_front();
            if let Some(index) = &mut self.index {
                index.gone = index.gone.wrapping_add(1);
            }
        }
        if self.slots.is_empty() {
            self.index = None;
            if self.slots.capacity() > 256 {
                self.slots.shrink_to(0);
            }
        }
        Some(entry)
    }

    /// The oldest live entry among the last `left` slots. `left` becomes what begins with it: removing entries does
    /// not move it, since slots leave at the front only. Nothing may be pushed between two calls.
    pub(crate) fn oldest_of_last(&mut self, left: &mut usize) -> Option<(PacketId, &mut T)> {
        let start = self.slots.len().saturating_sub(*left);
        let Some(holes) = self
            .slots
            .range(start..)
            .position(|(_, entry)| entry.is_some())
        else {
            *left = 0;
            return None;
        };
        *left = self.slots.len() - start - holes;
        let (id, entry) = self.slots.get_mut(start + holes)?;
        Some((*id, entry.as_mut()?))
    }

    /// Live entries, oldest first.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (PacketId, &mut T)> {
        self.slots
            .iter_mut()
            .filter_map(|(id, entry)| Some((*id, entry.as_mut()?)))
    }

    /// Empties it: entries and holes, oldest first.
    pub(crate) fn take(&mut self) -> VecDeque<(PacketId, Option<T>)> {
        self.live = 0;
        self.index = None;
        std::mem::take(&mut self.slots)
    }
}

impl Index {
    fn number<T>(&mut self, slots: &VecDeque<(PacketId, Option<T>)>) {
        self.gone = 0;
        self.places.clear();
        let live = slots.iter().enumerate();
        let live = live.filter(|(_, (_, entry))| entry.is_some());
        self.places
            .extend(live.map(|(place, (id, _))| (*id, place as u32)));
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

    #[test]
    fn ids_out_of_line_are_found_among_many_by_their_index() {
        // a linear search would take minutes here
        let mut ids = PacketIds::default();
        let scattered = |value: u32| id((value * 7_919 % 65_535 + 1) as u16);
        for value in 0..65_535 {
            ids.push(scattered(value), value);
        }
        assert_eq!(ids.len(), 65_535);
        for value in (0..65_535).rev() {
            assert_eq!(ids.get_mut(scattered(value)), Some(&mut value.clone()));
            assert_eq!(ids.remove(scattered(value)), Some(value));
            assert!(!ids.contains(scattered(value)));
        }
        assert_eq!(ids.slots(), 0);
        assert!(ids.index.is_none());
    }

    #[test]
    fn order_is_that_of_the_pushes_after_ids_came_again() {
        let mut ids = PacketIds::default();
        for value in [5, 6, 7, 2, 9] {
            ids.push(id(value), value);
        }
        ids.remove(id(6));
        ids.push(id(6), 60);
        ids.remove(id(5));
        ids.remove(id(2));
        let order: Vec<_> = ids
            .iter_mut()
            .map(|(id, entry)| (id.value(), *entry))
            .collect();
        assert_eq!(order, [(7, 7), (9, 9), (6, 60)]);
        assert_eq!(ids.remove(id(6)), Some(60));
    }

    #[test]
    fn a_walk_from_the_back_survives_removals() {
        let mut ids = PacketIds::default();
        for value in 1..=5 {
            ids.push(id(value), value);
        }
        ids.remove(id(5));
        let mut left = ids.slots();
        let mut walked = Vec::new();
        while let Some((id, _)) = ids.oldest_of_last(&mut left) {
            walked.push(id.value());
            left -= 1;
            match id.value() {
                1 => drop(ids.remove(self::id(3))),
                2 => drop((ids.remove(self::id(1)), ids.remove(self::id(2)))),
                _ => {}
            }
        }
        assert_eq!(walked, [1, 2, 4]);
        assert_eq!(left, 0);
    }
}
