// SPDX-License-Identifier: Apache-2.0
//! The beginning of a packet whose end has not come yet, kept between reads.
//!
//! An idle connection, and one whose packets come whole, keeps nothing.

/// From this size on a packet is collected in a buffer of its own, which then becomes the shared payload (bytes).
pub const LARGE_PACKET_BYTES_MIN: usize = 16 * 1024;

/// Such a buffer is made for so many bytes at once (or the whole packet, if it has fewer), and doubled from there on.
/// Memory of that size comes from the kernel page by page as it is written, and goes back when it is freed, so a packet
/// that stays half sent takes what came of it and leaves no holes behind.
pub const LARGE_BUFFER_BYTES: usize = 256 * 1024;

/// What an earlier read left over.
#[derive(Debug, Default)]
pub enum Carry {
    /// Nothing is left over.
    #[default]
    Empty,
    /// Bytes to be put before the next read: the beginning of a small packet, or whole packets that had to wait.
    Small(Vec<u8>),
    /// A large packet being collected; `bytes.len() <= packet_bytes`, and beyond [`LARGE_BUFFER_BYTES`] its capacity grows
    /// with what came, not with what was announced.
    Large {
        /// What came so far.
        bytes: Vec<u8>,
        /// Size of the packet, fixed header included.
        packet_bytes: usize,
    },
}

impl Carry {
    /// Keeps `rest`, the end of a read. `packet_bytes`: size of the packet it begins with, where that is known.
    #[must_use]
    pub fn keep(rest: &[u8], packet_bytes: Option<usize>) -> Self {
        match packet_bytes {
            _ if rest.is_empty() => Self::Empty,
            Some(packet_bytes)
                if packet_bytes >= LARGE_PACKET_BYTES_MIN && rest.len() < packet_bytes =>
            {
                let mut bytes =
                    Vec::with_capacity(packet_bytes.min(LARGE_BUFFER_BYTES.max(rest.len())));
                bytes.extend_from_slice(rest);
                Self::Large {
                    bytes,
                    packet_bytes,
                }
            }
            _ => Self::Small(rest.to_vec()),
        }
    }

    /// Bytes of memory that it holds; of a large buffer, the pages that were written.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        match self {
            Self::Empty => 0,
            Self::Small(bytes) => bytes.capacity(),
            Self::Large { bytes, .. } => bytes.len().next_multiple_of(PAGE_BYTES),
        }
    }

    /// Nothing is left over.
    #[inline]
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }
}

/// The kernel's, on most machines (bytes).
const PAGE_BYTES: usize = 4096;

/// Makes room for the next read of a large packet: at most as much again as came already, never more than is missing.
pub fn reserve_for_read(bytes: &mut Vec<u8>, packet_bytes: usize) {
    let missing = packet_bytes.saturating_sub(bytes.len());
    if bytes.capacity() == bytes.len() {
        bytes.reserve_exact(missing.min(bytes.len().max(LARGE_BUFFER_BYTES)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_read_keeps_nothing() {
        assert!(Carry::keep(&[], None).is_empty());
    }

    #[test]
    fn the_beginning_of_a_small_packet_is_kept_small() {
        assert!(matches!(Carry::keep(b"\x30", None), Carry::Small(bytes) if bytes == b"\x30"));
        assert!(matches!(
            Carry::keep(b"\x30\x10abc", Some(18)),
            Carry::Small(_)
        ));
    }

    #[test]
    fn memory_grows_with_what_came_not_with_what_was_announced() {
        let Carry::Large {
            mut bytes,
            packet_bytes,
        } = Carry::keep(b"\x30\xff\xff\xff\x7f", Some(268_435_460))
        else {
            panic!("a large packet");
        };
        assert!(bytes.capacity() <= LARGE_BUFFER_BYTES);
        for _ in 0..10 {
            bytes.resize(bytes.capacity(), 0);
            let before = bytes.len();
            reserve_for_read(&mut bytes, packet_bytes);
            assert!(bytes.capacity() > before);
            assert!(bytes.capacity() <= 2 * before);
        }
    }

    #[test]
    fn room_ends_with_the_packet() {
        let mut bytes = vec![0; 20_000];
        bytes.shrink_to_fit();
        reserve_for_read(&mut bytes, 20_010);
        assert_eq!(bytes.capacity(), 20_010);
    }
}
