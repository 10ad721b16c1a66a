// SPDX-License-Identifier: Apache-2.0
//! What travels on an ordered stream: frames of numbered entries one way, marks the other way.
//!
//! ```text
//!  frame  body length u32 | entries u32 | first entry u64 | applied index u64 | done u64 | body
//!  mark   verdicts u32 | done u64 | kept u64 | (entry u64, code u8) for each verdict
//! ```
//!
//! All numbers are little-endian. Entries are numbered from 1 over the whole life of a stream, whatever becomes of its
//! links.

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The longest body of a frame (bytes): the largest MQTT packet and what goes with it.
pub const FRAME_BYTES_MAX: usize = 272 << 20;
/// The most verdicts of a mark; more go in the next one.
pub(crate) const VERDICTS_MAX: usize = 64 * 1024;

pub(crate) const FRAME_HEADER_BYTES: usize = 32;
/// Beyond this nothing is numbered: adding to a number cannot overflow.
pub(crate) const ENTRY_MAX: u64 = u64::MAX >> 1;
const MARK_HEADER_BYTES: usize = 20;
const VERDICT_BYTES: usize = 9;

/// Some entries of a stream, in order. Without any it tells the applied index alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Number of its first entry; without entries, of the next one that will come.
    pub first: u64,
    /// How many entries the body has.
    pub count: u32,
    /// Up to which entry of the replicated log the sender's tables were when it wrote this.
    pub applied: u64,
    /// The last entry that the receiver has marked as done, as far as the sender knows.
    pub done: u64,
    /// The entries.
    pub body: Bytes,
}

/// What a receiver says of a stream, cumulative.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// The last entry that was handled.
    pub done: u64,
    /// The last entry of those whose effects are kept; at most `done`.
    pub kept: u64,
    /// Entries that were not taken, ascending, with the user's code; since the last mark.
    pub verdicts: Vec<(u64, u8)>,
}

/// A peer's bytes are no frame, or no mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidFrame {
    /// A body above [`FRAME_BYTES_MAX`].
    TooLong(u32),
    /// More verdicts than a mark may have.
    TooManyVerdicts(u32),
    /// An entry that no stream has.
    Number(u64),
}

impl fmt::Display for InvalidFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong(bytes) => {
                write!(f, "a frame of {bytes} bytes, allowed are {FRAME_BYTES_MAX}")
            }
            Self::TooManyVerdicts(count) => {
                write!(
                    f,
                    "a mark with {count} verdicts, allowed are {VERDICTS_MAX}"
                )
            }
            Self::Number(entry) => write!(f, "entry {entry}, which no stream has"),
        }
    }
}

impl std::error::Error for InvalidFrame {}

impl Frame {
    /// Number of the last entry; of the one before `first` if there is none.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.first + u64::from(self.count) - 1
    }

    pub(crate) fn put_header(&self, into: &mut BytesMut) {
        into.put_u32_le(self.body.len() as u32);
        into.put_u32_le(self.count);
        into.put_u64_le(self.first);
        into.put_u64_le(self.applied);
        into.put_u64_le(self.done);
    }
}

/// Takes the first frame out of what has come; `None`: it is not whole.
pub(crate) fn take_frame(from: &mut BytesMut) -> Result<Option<Frame>, InvalidFrame> {
    let mut header = &from[..];
    let Ok(length) = header.try_get_u32_le() else {
        return Ok(None);
    };
    if length as usize > FRAME_BYTES_MAX {
        return Err(InvalidFrame::TooLong(length));
    }
    if from.len() < FRAME_HEADER_BYTES + length as usize {
        return Ok(None);
    }
    let count = header.get_u32_le();
    let first = header.get_u64_le();
    let applied = header.get_u64_le();
    let done = header.get_u64_le();
    if !(1..=ENTRY_MAX).contains(&first) {
        return Err(InvalidFrame::Number(first));
    }
    from.advance(FRAME_HEADER_BYTES);
    Ok(Some(Frame {
        first,
        count,
        applied,
        done,
        body: from.split_to(length as usize).freeze(),
    }))
}

pub(crate) fn put_mark(mark: &Mark, into: &mut BytesMut) {
    into.reserve(MARK_HEADER_BYTES + mark.verdicts.len() * VERDICT_BYTES);
    into.put_u32_le(mark.verdicts.len() as u32);
    into.put_u64_le(mark.done);
    into.put_u64_le(mark.kept);
    for (entry, code) in &mark.verdicts {
        into.put_u64_le(*entry);
        into.put_u8(*code);
    }
}

/// Takes the first mark out of what has come; `None`: it is not whole.
pub(crate) fn take_mark(from: &mut BytesMut) -> Result<Option<Mark>, InvalidFrame> {
    let mut header = &from[..];
    let Ok(verdicts) = header.try_get_u32_le() else {
        return Ok(None);
    };
    if verdicts as usize > VERDICTS_MAX {
        return Err(InvalidFrame::TooManyVerdicts(verdicts));
    }
    if from.len() < MARK_HEADER_BYTES + verdicts as usize * VERDICT_BYTES {
        return Ok(None);
    }
    from.advance(4);
    let done = from.get_u64_le();
    let kept = from.get_u64_le();
    let verdicts: Vec<(u64, u8)> = (0..verdicts)
        .map(|_| (from.get_u64_le(), from.get_u8()))
        .collect();
    if let Some((entry, _)) = verdicts
        .iter()
        .find(|(entry, _)| !(1..=ENTRY_MAX).contains(entry))
    {
        return Err(InvalidFrame::Number(*entry));
    }
    Ok(Some(Mark {
        done,
        kept,
        verdicts,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(first: u64, count: u32, body: &'static [u8]) -> Frame {
        Frame {
            first,
            count,
            applied: 77,
            done: 5,
            body: Bytes::from_static(body),
        }
    }

    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_cut() {
        let frames = [frame(1, 3, b"abc"), frame(4, 0, b""), frame(4, 1, b"de")];
        let mut wire = BytesMut::new();
        for frame in &frames {
            frame.put_header(&mut wire);
            wire.put_slice(&frame.body);
        }
        for step in 1..=wire.len() {
            let (mut come, mut out) = (BytesMut::new(), Vec::new());
            for piece in wire.chunks(step) {
                come.put_slice(piece);
                while let Some(frame) = take_frame(&mut come).expect("a frame") {
                    out.push(frame);
                }
            }
            assert_eq!(out, frames);
            assert!(come.is_empty());
        }
    }

    #[test]
    fn marks_come_out_as_they_went_in_however_they_are_cut() {
        let marks = [
            Mark {
                done: 9,
                kept: 7,
                verdicts: vec![(3, 1), (8, 2)],
            },
            Mark {
                done: 10,
                kept: 10,
                verdicts: Vec::new(),
            },
        ];
        let mut wire = BytesMut::new();
        for mark in &marks {
            put_mark(mark, &mut wire);
        }
        for step in 1..=wire.len() {
            let (mut come, mut out) = (BytesMut::new(), Vec::new());
            for piece in wire.chunks(step) {
                come.put_slice(piece);
                while let Some(mark) = take_mark(&mut come).expect("a mark") {
                    out.push(mark);
                }
            }
            assert_eq!(out, marks);
        }
    }

    #[test]
    fn announced_lengths_beyond_the_limits_are_refused_at_once() {
        let mut come = BytesMut::new();
        come.put_u32_le(u32::MAX);
        assert_eq!(take_frame(&mut come), Err(InvalidFrame::TooLong(u32::MAX)));
        assert_eq!(
            take_mark(&mut come),
            Err(InvalidFrame::TooManyVerdicts(u32::MAX))
        );
    }

    #[test]
    fn numbers_that_no_stream_has_are_refused() {
        for first in [0, u64::MAX] {
            let mut wire = BytesMut::new();
            frame(first, 0, b"").put_header(&mut wire);
            assert_eq!(take_frame(&mut wire), Err(InvalidFrame::Number(first)));
            let mut wire = BytesMut::new();
            let verdicts = vec![(first, 1)];
            put_mark(
                &Mark {
                    done: 1,
                    kept: 1,
                    verdicts,
                },
                &mut wire,
            );
            assert_eq!(take_mark(&mut wire), Err(InvalidFrame::Number(first)));
        }
    }
}
