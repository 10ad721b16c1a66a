// SPDX-License-Identifier: Apache-2.0
//! The sending end of an ordered stream: what the peer has not kept yet, in order, however often the link breaks.

use std::collections::VecDeque;
use std::fmt;

use bytes::Bytes;

use crate::frame::{FRAME_BYTES_MAX, FRAME_HEADER_BYTES, Frame, Mark};

/// The sending end of one ordered stream.
///
/// Entries are pushed at any time. While a link is there ([`Self::handle_opened`]) their frames are polled in order, each
/// once; when it breaks ([`Self::handle_closed`]) nothing is lost: the next link begins behind what the receiver has.
///
/// `floor <= kept <= done <= last` (entries).
#[derive(Debug)]
pub struct Outgoing {
    /// Not wholly kept yet, ascending.
    frames: VecDeque<Sent>,
    /// How many of them the present link was given.
    written: usize,
    is_open: bool,
    last: u64,
    done: u64,
    kept: u64,
    /// Of the frames, with their headers.
    bytes: usize,
    bytes_max: usize,
    /// The applied index that is to be told, and that was told over the present link.
    applied: u64,
    told: u64,
}

#[derive(Debug)]
struct Sent {
    first: u64,
    count: u32,
    applied: u64,
    body: Bytes,
}

impl Sent {
    fn last(&self) -> u64 {
        self.first + u64::from(self.count) - 1
    }

    fn wire_bytes(&self) -> usize {
        FRAME_HEADER_BYTES + self.body.len()
    }
}

/// Entries that a stream does not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PushError {
    /// The peer has not kept enough of what it was sent.
    Full {
        /// What the frame would need (bytes).
        wanted: usize,
        /// What is free (bytes).
        free: usize,
    },
    /// Above [`FRAME_BYTES_MAX`].
    TooLong(usize),
}

impl fmt::Display for PushError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full { wanted, free } => {
                write!(
                    f,
                    "a frame of {wanted} bytes has no room in a stream with {free} bytes free"
                )
            }
            Self::TooLong(bytes) => {
                write!(f, "a frame of {bytes} bytes, allowed are {FRAME_BYTES_MAX}")
            }
        }
    }
}

impl std::error::Error for PushError {}

/// A receiver said of a stream what cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidMark {
    /// It has entries that were never sent.
    Ahead {
        /// What it says.
        upto: u64,
        /// The last one that there is.
        last: u64,
    },
    /// It has less than it said before.
    Behind {
        /// What it says.
        upto: u64,
        /// What it said.
        before: u64,
    },
}

impl fmt::Display for InvalidMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ahead { upto, last } => {
                write!(
                    f,
                    "the peer marks entry {upto}, the last one sent is {last}"
                )
            }
            Self::Behind { upto, before } => {
                write!(f, "the peer marks entry {upto} after it marked {before}")
            }
        }
    }
}

impl std::error::Error for InvalidMark {}

impl Outgoing {
    /// A stream without entries that holds at most `bytes_max` bytes of what is not kept.
    #[must_use]
    pub const fn new(bytes_max: usize) -> Self {
        Self {
            frames: VecDeque::new(),
            written: 0,
            is_open: false,
            last: 0,
            done: 0,
            kept: 0,
            bytes: 0,
            bytes_max,
            applied: 0,
            told: 0,
        }
    }

    /// Appends `count` entries, at least one, which were matched at the `applied` index; the first one's number. An empty
    /// stream takes a frame of any size that there may be.
    ///
    /// # Errors
    /// When there is no room, or the frame is too long.
    pub fn push(&mut self, count: u32, applied: u64, body: Bytes) -> Result<u64, PushError> {
        assert!(
            count > 0,
            "a frame without entries has no place in the order"
        );
        if body.len() > FRAME_BYTES_MAX {
            return Err(PushError::TooLong(body.len()));
        }
        let first = self.last + 1;
        let sent = Sent {
            first,
            count,
            applied,
            body,
        };
        let wanted = sent.wire_bytes();
        let free = self.bytes_max.saturating_sub(self.bytes);
        if wanted > free && !self.frames.is_empty() {
            return Err(PushError::Full { wanted, free });
        }
        self.last = sent.last();
        self.bytes += wanted;
        self.applied = self.applied.max(applied);
        self.frames.push_back(sent);
        Ok(first)
    }

    /// The peer is to hear of this applied index, with the next entries or without.
    pub fn tell_applied(&mut self, applied: u64) {
        self.applied = self.applied.max(applied);
    }

    /// Number of the last entry; 0: there was none.
    #[must_use]
    pub const fn last(&self) -> u64 {
        self.last
    }

    /// Entries up to this one are gone: kept by the peer.
    #[must_use]
    pub fn floor(&self) -> u64 {
        self.frames.front().map_or(self.kept, |sent| sent.first - 1)
    }

    /// The last entry that the receiver has handled, as far as it said so.
    #[must_use]
    pub const fn done(&self) -> u64 {
        self.done
    }

    /// Bytes of what the peer has not kept.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Entries that the peer has not handled.
    #[must_use]
    pub const fn outstanding(&self) -> u64 {
        self.last - self.done
    }

    /// A link is there, and the receiver has all entries up to `received`, which is not below [`Self::floor`]. What it had
    /// handled beyond it is lost, and comes again.
    ///
    /// # Errors
    /// When that cannot be; the stream stays closed.
    pub fn handle_opened(&mut self, received: u64) -> Result<(), InvalidMark> {
        self.handle_closed();
        if received > self.last {
            return Err(InvalidMark::Ahead {
                upto: received,
                last: self.last,
            });
        }
        let before = self.floor();
        if received < before {
            return Err(InvalidMark::Behind {
                upto: received,
                before,
            });
        }
        self.done = self.done.min(received).max(self.kept);
        let whole = |sent: &&Sent| sent.last() <= received;
        self.written = self.frames.iter().take_while(whole).count();
        self.told = 0;
        self.is_open = true;
        Ok(())
    }

    /// The link is gone.
    pub const fn handle_closed(&mut self) {
        self.is_open = false;
        self.written = 0;
    }

    /// The next frame for the link.
    pub fn poll_frame(&mut self) -> Option<Frame> {
        if !self.is_open {
            return None;
        }
        if let Some(sent) = self.frames.get(self.written) {
            self.written += 1;
            self.told = self.told.max(sent.applied);
            return Some(Frame {
                first: sent.first,
                count: sent.count,
                applied: sent.applied,
                done: self.done,
                body: sent.body.clone(),
            });
        }
        if self.told >= self.applied {
            return None;
        }
        self.told = self.applied;
        Some(Frame {
            first: self.last + 1,
            count: 0,
            applied: self.applied,
            done: self.done,
            body: Bytes::new(),
        })
    }

    /// The receiver said how far it is.
    ///
    /// # Errors
    /// When that cannot be: the link is to be closed.
    pub fn handle_mark(&mut self, mark: &Mark) -> Result<(), InvalidMark> {
        let Mark { done, kept, .. } = *mark;
        if done > self.last || kept > done {
            return Err(InvalidMark::Ahead {
                upto: done.max(kept),
                last: self.last.min(done),
            });
        }
        for (upto, before) in [(done, self.done), (kept, self.kept)] {
            if upto < before {
                return Err(InvalidMark::Behind { upto, before });
            }
        }
        self.done = done;
        self.kept = kept;
        while let Some(sent) = self.frames.front()
            && sent.last() <= kept
        {
            self.bytes -= sent.wire_bytes();
            self.frames.pop_front();
            self.written = self.written.saturating_sub(1);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: usize = FRAME_HEADER_BYTES + 2;

    fn push(outgoing: &mut Outgoing, count: u32) -> u64 {
        outgoing
            .push(count, 0, Bytes::from_static(b"xx"))
            .expect("there is room")
    }

    fn polled(outgoing: &mut Outgoing) -> Vec<u64> {
        std::iter::from_fn(|| outgoing.poll_frame().map(|frame| frame.first)).collect()
    }

    fn mark(done: u64, kept: u64) -> Mark {
        Mark {
            done,
            kept,
            ..Mark::default()
        }
    }

    #[test]
    fn frames_go_out_once_per_link_and_again_from_where_the_receiver_is() {
        let mut outgoing = Outgoing::new(1 << 20);
        assert_eq!(push(&mut outgoing, 2), 1);
        assert_eq!(push(&mut outgoing, 1), 3);
        assert_eq!(polled(&mut outgoing), []);
        outgoing.handle_opened(0).expect("nothing was received");
        assert_eq!(polled(&mut outgoing), [1, 3]);
        assert_eq!(push(&mut outgoing, 3), 4);
        assert_eq!(polled(&mut outgoing), [4]);
        outgoing.handle_mark(&mark(3, 2)).expect("a mark");
        outgoing.handle_closed();
        assert_eq!(polled(&mut outgoing), []);
        outgoing.handle_opened(3).expect("two frames were received");
        assert_eq!(polled(&mut outgoing), [4]);
        outgoing.handle_mark(&mark(6, 6)).expect("a mark");
        assert_eq!(
            (outgoing.bytes(), outgoing.floor(), outgoing.outstanding()),
            (0, 6, 0)
        );
    }

    #[test]
    fn a_receiver_that_lost_what_it_had_not_kept_gets_it_again_and_marks_it_again() {
        let mut outgoing = Outgoing::new(1 << 20);
        push(&mut outgoing, 2);
        push(&mut outgoing, 1);
        outgoing.handle_opened(0).expect("nothing was received");
        polled(&mut outgoing);
        outgoing.handle_mark(&mark(3, 2)).expect("a mark");
        outgoing.handle_opened(2).expect("it has what it kept");
        assert_eq!(polled(&mut outgoing), [3]);
        assert_eq!(outgoing.outstanding(), 1);
        outgoing.handle_mark(&mark(2, 2)).expect("a mark");
        outgoing.handle_mark(&mark(3, 3)).expect("a mark");
    }

    #[test]
    fn a_frame_of_which_only_a_part_was_kept_comes_again_as_a_whole() {
        let mut outgoing = Outgoing::new(1 << 20);
        push(&mut outgoing, 4);
        outgoing.handle_opened(0).expect("nothing was received");
        polled(&mut outgoing);
        outgoing.handle_mark(&mark(2, 2)).expect("a mark");
        assert_eq!(outgoing.floor(), 0);
        outgoing.handle_opened(2).expect("a part was received");
        assert_eq!(polled(&mut outgoing), [1]);
    }

    #[test]
    fn what_is_kept_makes_room_and_what_is_only_done_does_not() {
        let mut outgoing = Outgoing::new(2 * FRAME);
        push(&mut outgoing, 1);
        push(&mut outgoing, 1);
        outgoing.handle_opened(0).expect("nothing was received");
        polled(&mut outgoing);
        outgoing.handle_mark(&mark(2, 0)).expect("a mark");
        let full = outgoing.push(1, 0, Bytes::from_static(b"xx"));
        let (wanted, free) = (FRAME, 0);
        assert_eq!(full, Err(PushError::Full { wanted, free }));
        outgoing.handle_mark(&mark(2, 1)).expect("a mark");
        assert_eq!(push(&mut outgoing, 1), 3);
    }

    #[test]
    fn an_empty_stream_takes_a_frame_of_any_size() {
        let mut outgoing = Outgoing::new(1);
        assert_eq!(push(&mut outgoing, 1), 1);
        let long = Bytes::from(vec![0; FRAME_BYTES_MAX + 1]);
        let error = Outgoing::new(usize::MAX).push(1, 0, long);
        assert_eq!(error, Err(PushError::TooLong(FRAME_BYTES_MAX + 1)));
    }

    #[test]
    fn the_applied_index_is_told_once_per_link_and_takes_no_room() {
        let mut outgoing = Outgoing::new(FRAME);
        outgoing.handle_opened(0).expect("nothing was received");
        outgoing.tell_applied(5);
        outgoing.tell_applied(4);
        let frame = outgoing.poll_frame().expect("something to tell");
        assert_eq!((frame.first, frame.count, frame.applied), (1, 0, 5));
        assert_eq!(outgoing.poll_frame(), None);
        // with the entries that come anyway
        outgoing
            .push(1, 6, Bytes::from_static(b"xx"))
            .expect("there is room");
        assert_eq!(outgoing.poll_frame().map(|frame| frame.count), Some(1));
        assert_eq!(outgoing.poll_frame(), None);
        outgoing.handle_opened(1).expect("it was received");
        let frame = outgoing.poll_frame().expect("something to tell");
        assert_eq!((frame.first, frame.count, frame.applied), (2, 0, 6));
    }

    #[test]
    fn marks_that_cannot_be_are_refused() {
        let mut outgoing = Outgoing::new(1 << 20);
        push(&mut outgoing, 4);
        assert_eq!(
            outgoing.handle_opened(5),
            Err(InvalidMark::Ahead { upto: 5, last: 4 })
        );
        assert_eq!(outgoing.poll_frame(), None);
        outgoing.handle_opened(0).expect("nothing was received");
        polled(&mut outgoing);
        let invalid = outgoing.handle_mark(&mark(5, 0));
        assert_eq!(invalid, Err(InvalidMark::Ahead { upto: 5, last: 4 }));
        let invalid = outgoing.handle_mark(&mark(3, 4));
        assert_eq!(invalid, Err(InvalidMark::Ahead { upto: 4, last: 3 }));
        outgoing.handle_mark(&mark(4, 4)).expect("a mark");
        assert_eq!(
            outgoing.handle_opened(3),
            Err(InvalidMark::Behind { upto: 3, before: 4 })
        );
        let invalid = outgoing.handle_mark(&mark(3, 0));
        assert_eq!(invalid, Err(InvalidMark::Behind { upto: 3, before: 4 }));
    }
}
