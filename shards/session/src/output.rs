// SPDX-License-Identifier: Apache-2.0
//! What is to be written to one connection: small packets in one run of bytes, large payloads shared by counting.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes};

/// Shared payloads from this size on are not copied but chained behind their header (bytes).
pub const SHARED_PAYLOAD_BYTES_MIN: usize = 2048;

/// Written bytes are cut off the front of the buffer when they are more than this.
const WRITTEN_BYTES_MAX: usize = 256 * 1024;

/// Bytes waiting for the socket, oldest first.
///
/// `bytes` holds headers and small packets; a large payload belongs after the first `at` bytes that were ever put
/// into `bytes` since it was last empty. Invariant: `written <= bytes.len()` and every `at` is in
/// `written..=bytes.len()`, ascending.
#[derive(Debug, Default)]
pub struct Output {
    bytes: Vec<u8>,
    written: usize,
    large: VecDeque<(usize, Bytes)>,
    large_bytes: usize,
    /// Of application messages in it; after a partial write an estimate from the bytes that are left.
    messages: usize,
    /// What its owner counted as its memory.
    counted_bytes: usize,
    /// Packets put in since they were last asked for.
    packets: u64,
}

impl Output {
    /// Where an encoder appends one packet, or all of one but a large payload.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut Vec<u8> {
        self.packets += 1;
        &mut self.bytes
    }

    /// Appends a payload: copied when small, counted when it is large and shared.
    #[inline]
    pub fn push_payload(&mut self, payload: corqtt_codec::Payload<'_>) {
        match payload.shared {
            Some(shared) if shared.len() >= SHARED_PAYLOAD_BYTES_MIN => {
                self.push_large(shared.clone())
            }
            _ => self.bytes.extend_from_slice(payload.bytes),
        }
    }

    /// One more application message was put in.
    #[inline]
    pub fn count_message(&mut self) {
        self.messages += 1;
    }

    /// Application messages that are not written yet. Where a write took a part of them, so many as the part of the
    /// bytes that is left: where packets end is not kept.
    #[inline]
    #[must_use]
    pub const fn messages(&self) -> usize {
        self.messages
    }

    fn push_large(&mut self, payload: Bytes) {
        self.large_bytes += payload.len();
        self.large.push_back((self.bytes.len(), payload));
    }

    /// Packets put in since the last call.
    #[inline]
    pub fn take_packets(&mut self) -> u64 {
        std::mem::take(&mut self.packets)
    }

    /// Bytes not yet written.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len() - self.written + self.large_bytes
    }

    /// Nothing to write.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.len() == self.written && self.large.is_empty()
    }

    /// The bytes to write where there is no large payload among them: one plain `write` will do.
    #[inline]
    #[must_use]
    pub fn plain(&self) -> Option<&[u8]> {
        if self.large.is_empty() {
            self.bytes.get(self.written..)
        } else {
            None
        }
    }

    /// The next slices to write, at most as many as fit `slices`; returns how many were filled.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let capacity = slices.len();
        let mut count = 0;
        let mut from = self.written;
        let mut put = |part: &'a [u8], count: &mut usize| {
            if !part.is_empty()
                && let Some(slot) = slices.get_mut(*count)
            {
                *slot = IoSlice::new(part);
                *count += 1;
            }
        };
        for (at, payload) in &self.large {
            if count >= capacity {
                return count;
            }
            put(&self.bytes[from..*at], &mut count);
            put(payload, &mut count);
            from = *at;
        }
        put(&self.bytes[from..], &mut count);
        count
    }

    /// Takes `count` written bytes off the front.
    ///
    /// # Panics
    /// If more was written than was there.
    pub fn advance(&mut self, mut count: usize) {
        let before = self.len();
        if count < before {
            let left = (before - count) as u128;
            self.messages = (self.messages as u128 * left).div_ceil(before as u128) as usize;
        } else {
            self.messages = 0;
        }
        while count > 0 {
            let run = self.large.front().map_or(self.bytes.len(), |(at, _)| *at) - self.written;
            let taken = run.min(count);
            self.written += taken;
            count -= taken;
            if count == 0 {
                break;
            }
            let (_, payload) = self
                .large
                .front_mut()
                .expect("the kernel wrote no more than it was given");
            let taken = payload.len().min(count);
            payload.advance(taken);
            self.large_bytes -= taken;
            count -= taken;
            if payload.is_empty() {
                self.large.pop_front();
            }
        }
        if self.is_empty() {
            self.bytes.clear();
            self.written = 0;
        } else if self.written > WRITTEN_BYTES_MAX {
            self.bytes.drain(..self.written);
            for (at, _) in &mut self.large {
                *at -= self.written;
            }
            self.written = 0;
        }
    }

    /// Empties it and gives back memory beyond `bytes_max`.
    pub fn reset(&mut self, bytes_max: usize) {
        self.bytes.clear();
        self.written = 0;
        self.large.clear();
        self.large_bytes = 0;
        self.messages = 0;
        self.packets = 0;
        self.bytes.shrink_to(bytes_max);
    }

    /// Bytes of memory that the buffer holds.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Bytes of memory that it takes now, without payloads that are shared by counting, and what this said last time.
    pub fn count_memory(&mut self) -> (usize, usize) {
        let entries = self.large.capacity() * size_of::<(usize, Bytes)>();
        let now = self.bytes.capacity() + entries;
        (now, std::mem::replace(&mut self.counted_bytes, now))
    }

    /// What [`Output::count_memory`] said last; from now on that is 0.
    pub fn uncount_memory(&mut self) -> usize {
        std::mem::take(&mut self.counted_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use corqtt_codec::Payload;

    fn drain(output: &mut Output, step: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while !output.is_empty() {
            let mut slices = [IoSlice::new(&[]); 3];
            let count = output.slices(&mut slices);
            let joined: Vec<u8> = slices[..count]
                .iter()
                .flat_map(|s| s.iter().copied())
                .collect();
            let taken = joined.len().min(step);
            all.extend_from_slice(&joined[..taken]);
            output.advance(taken);
        }
        all
    }

    #[test]
    fn headers_and_large_payloads_leave_in_order_however_little_is_written() {
        for step in [1, 7, 1000, 100_000] {
            let mut output = Output::default();
            let large = Bytes::from(vec![b'x'; 5000]);
            let mut expected = Vec::new();
            for head in [b"one".as_slice(), b"", b"three"] {
                output.bytes_mut().extend_from_slice(head);
                output.push_payload(Payload::shared(&large));
                expected.extend_from_slice(head);
                expected.extend_from_slice(&large);
            }
            output.bytes_mut().extend_from_slice(b"tail");
            expected.extend_from_slice(b"tail");
            assert_eq!(output.len(), expected.len());
            assert_eq!(drain(&mut output, step), expected);
            assert!(output.is_empty());
            assert_eq!(output.len(), 0);
        }
    }

    #[test]
    fn written_bytes_are_dropped_though_the_output_is_never_empty() {
        let mut output = Output::default();
        let large = Bytes::from(vec![b'x'; SHARED_PAYLOAD_BYTES_MIN]);
        let mut written = 0;
        let mut queued = 0;
        for round in 0..4_000_u32 {
            output.bytes_mut().extend_from_slice(&[round as u8; 500]);
            output.push_payload(Payload::shared(&large));
            queued += 500 + large.len();
            if round == 0 {
                continue;
            }
            // always one packet behind
            while queued - written > 500 + large.len() {
                let mut slices = [IoSlice::new(&[]); 2];
                output.slices(&mut slices);
                let part = slices[0].len();
                if part == 500 {
                    assert_eq!(slices[0][0], (round - 1) as u8);
                }
                output.advance(part);
                written += part;
            }
            assert_eq!(output.len(), queued - written);
        }
        assert!(output.capacity() < 4 * WRITTEN_BYTES_MAX);
    }

    #[test]
    fn messages_are_counted_until_they_are_written() {
        let mut output = Output::default();
        for _ in 0..10 {
            output.bytes_mut().extend_from_slice(b"0123456789");
            output.count_message();
        }
        assert_eq!(output.messages(), 10);
        output.advance(5);
        assert_eq!(output.messages(), 10, "half of the first is left");
        output.advance(57);
        assert_eq!(output.messages(), 4);
        output.advance(38);
        assert_eq!(output.messages(), 0);
        output.bytes_mut().extend_from_slice(b"an acknowledgement");
        assert_eq!(output.messages(), 0);
    }

    #[test]
    fn a_reader_that_is_never_done_does_not_gather_messages() {
        let mut output = Output::default();
        for _ in 0..1000 {
            for _ in 0..100 {
                output.bytes_mut().extend_from_slice(b"0123456789");
                output.count_message();
            }
            if output.len() > 1000 {
                output.advance(1000);
            }
        }
        assert_eq!(output.len(), 1000);
        assert!((100..=101).contains(&output.messages()), "{output:?}");
    }

    #[test]
    fn small_payloads_are_copied_into_the_plain_run() {
        let mut output = Output::default();
        output.push_payload(Payload::borrowed(b"small"));
        assert_eq!(output.plain(), Some(b"small".as_slice()));
    }
}
