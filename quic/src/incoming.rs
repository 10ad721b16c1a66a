// SPDX-License-Identifier: Apache-2.0
//! The receiving end of an ordered stream: each entry once, in order, and what became of it.

use std::collections::VecDeque;
use std::fmt;

use crate::frame::{ENTRY_MAX, Frame, Mark};

/// The receiving end of one ordered stream; it outlives the links that carry it.
///
/// `kept <= done <= received` (entries).
#[derive(Clone, Debug, Default)]
pub struct Incoming {
    received: u64,
    done: u64,
    kept: u64,
    /// Of entries whose mark the sender may not have got, ascending.
    verdicts: VecDeque<(u64, u8)>,
}

/// A sender's frames do not follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfOrder {
    /// Number of the first entry of the frame, or the floor of the stream.
    pub first: u64,
    /// The last entry that was received.
    pub received: u64,
}

impl fmt::Display for OutOfOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, received } = self;
        write!(f, "the peer sent entry {first} after entry {received}")
    }
}

impl std::error::Error for OutOfOrder {}

impl Incoming {
    /// A stream of which all entries up to `kept` are kept.
    #[must_use]
    pub const fn new(kept: u64) -> Self {
        Self {
            received: kept,
            done: kept,
            kept,
            verdicts: VecDeque::new(),
        }
    }

    /// The last entry that was received.
    #[must_use]
    pub const fn received(&self) -> u64 {
        self.received
    }

    /// A link brings the stream. Its sender has nothing up to `floor` any more, and has got all marks up to `done`: how
    /// many entries are missing for good.
    ///
    /// # Errors
    /// When no stream has such entries.
    pub fn handle_opening(&mut self, floor: u64, done: u64) -> Result<u64, OutOfOrder> {
        if floor > ENTRY_MAX {
            let (first, received) = (floor, self.received);
            return Err(OutOfOrder { first, received });
        }
        let missing = floor.saturating_sub(self.received);
        self.received += missing;
        self.done = self.done.max(floor);
        self.kept = self.kept.max(floor);
        self.handle_marked(done);
        Ok(missing)
    }

    /// A frame came: how many of its first entries came before, over another link. All of them: it says nothing new.
    ///
    /// # Errors
    /// When entries are missing before it: the link is to be closed.
    pub fn handle_frame(&mut self, frame: &Frame) -> Result<u32, OutOfOrder> {
        let next = self.received + 1;
        if frame.first > next || frame.first > ENTRY_MAX {
            return Err(OutOfOrder {
                first: frame.first,
                received: self.received,
            });
        }
        self.handle_marked(frame.done);
        let known = (next - frame.first).min(frame.count.into());
        self.received = self.received.max(frame.last());
        Ok(known as u32)
    }

    /// The sender has the marks up to an entry.
    fn handle_marked(&mut self, done: u64) {
        while self
            .verdicts
            .front()
            .is_some_and(|(entry, _)| *entry <= done)
        {
            self.verdicts.pop_front();
        }
    }

    /// All entries up to `done` are handled, and those up to `kept` kept, but for the verdicts, which ascend. Never less
    /// than before.
    pub fn finish(&mut self, done: u64, kept: u64, verdicts: &[(u64, u8)]) {
        debug_assert!(kept <= done, "what is kept was handled");
        debug_assert!(done <= self.received, "what is handled was received");
        self.done = self.done.max(done);
        self.kept = self.kept.max(kept);
        self.verdicts.extend(verdicts);
    }

    /// What a new link's sender is told first: all that it may not know.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark {
            done: self.done,
            kept: self.kept,
            verdicts: self.verdicts.iter().copied().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn frame(first: u64, count: u32, done: u64) -> Frame {
        Frame {
            first,
            count,
            applied: 0,
            done,
            body: Bytes::new(),
        }
    }

    #[test]
    fn repeats_are_known_and_gaps_refused() {
        let mut incoming = Incoming::default();
        assert_eq!(incoming.handle_frame(&frame(1, 2, 0)), Ok(0));
        assert_eq!(incoming.handle_frame(&frame(1, 2, 0)), Ok(2));
        assert_eq!(incoming.handle_frame(&frame(3, 0, 0)), Ok(0));
        assert_eq!(incoming.handle_frame(&frame(3, 1, 0)), Ok(0));
        let (first, received) = (5, 3);
        assert_eq!(
            incoming.handle_frame(&frame(5, 1, 0)),
            Err(OutOfOrder { first, received })
        );
        assert_eq!(incoming.received(), 3);
        // a part of it was kept, the rest lost with the process
        let mut incoming = Incoming::new(2);
        assert_eq!(incoming.handle_frame(&frame(1, 5, 0)), Ok(2));
        assert_eq!(incoming.received(), 5);
    }

    #[test]
    fn a_receiver_below_the_floor_takes_the_floor_and_says_what_is_missing() {
        let mut incoming = Incoming::new(3);
        assert_eq!(incoming.handle_opening(2, 0), Ok(0));
        assert_eq!(incoming.handle_opening(7, 7), Ok(4));
        assert_eq!(incoming.mark().kept, 7);
        assert_eq!(incoming.handle_frame(&frame(8, 1, 7)), Ok(0));
        let (first, received) = (u64::MAX, 8);
        assert_eq!(
            incoming.handle_opening(u64::MAX, 0),
            Err(OutOfOrder { first, received })
        );
    }

    #[test]
    fn verdicts_are_told_again_until_the_sender_has_them() {
        let mut incoming = Incoming::default();
        incoming
            .handle_frame(&frame(1, 9, 0))
            .expect("it is the first");
        incoming.finish(4, 2, &[(1, 0x97), (4, 0x80)]);
        incoming.finish(9, 9, &[(7, 0x97)]);
        assert_eq!(incoming.mark().verdicts, [(1, 0x97), (4, 0x80), (7, 0x97)]);
        assert_eq!(incoming.handle_opening(0, 1), Ok(0));
        assert_eq!(incoming.mark().verdicts, [(4, 0x80), (7, 0x97)]);
        incoming.handle_frame(&frame(10, 1, 6)).expect("it follows");
        let mark = incoming.mark();
        assert_eq!(
            (mark.done, mark.kept, &mark.verdicts[..]),
            (9, 9, &[(7, 0x97)][..])
        );
    }
}
