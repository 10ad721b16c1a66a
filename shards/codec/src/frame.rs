// SPDX-License-Identifier: Apache-2.0
//! Where one packet ends and the next begins: the fixed header (section 2.1 of 5.0, 2.2 of 3.1.1).

use crate::{DecodeError, ErrorKind};

/// Control packet types, the high nibble of the first byte.
#[allow(missing_docs, reason = "the names are those of section 2.1.2")]
pub mod packet_type {
    pub const CONNECT: u8 = 1;
    pub const CONNACK: u8 = 2;
    pub const PUBLISH: u8 = 3;
    pub const PUBACK: u8 = 4;
    pub const PUBREC: u8 = 5;
    pub const PUBREL: u8 = 6;
    pub const PUBCOMP: u8 = 7;
    pub const SUBSCRIBE: u8 = 8;
    pub const SUBACK: u8 = 9;
    pub const UNSUBSCRIBE: u8 = 10;
    pub const UNSUBACK: u8 = 11;
    pub const PINGREQ: u8 = 12;
    pub const PINGRESP: u8 = 13;
    pub const DISCONNECT: u8 = 14;
    pub const AUTH: u8 = 15;
}

/// One whole packet, its fixed header taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// First byte: packet type and flags.
    pub first: u8,
    /// What Remaining Length counts: variable header and payload.
    pub body: &'a [u8],
}

impl Frame<'_> {
    /// The high nibble, see [`packet_type`].
    #[inline]
    #[must_use]
    pub const fn packet_type(&self) -> u8 {
        self.first >> 4
    }

    /// The low nibble.
    #[inline]
    #[must_use]
    pub const fn flags(&self) -> u8 {
        self.first & 0x0f
    }
}

/// The next whole packet in `buf` and its total bytes; `None` while bytes are missing.
///
/// `packet_bytes_max` bounds the total, fixed header included.
///
/// # Errors
/// A malformed Remaining Length, or a packet above the maximum as soon as its fixed header shows it, so that nobody
/// makes room for it.
#[inline]
pub fn frame<'a>(
    buf: &'a [u8],
    packet_bytes_max: u32,
) -> Result<Option<(Frame<'a>, usize)>, DecodeError> {
    let Some((first, header_bytes, remaining)) = fixed_header(buf)? else {
        return Ok(None);
    };
    let total = header_bytes + remaining;
    // [MQTT5-3.2.2-15]
    if total > packet_bytes_max as usize {
        return Err(ErrorKind::PacketTooLarge.into());
    }
    // [MQTT-7.1.1-1] [MQTT5-4.2-1] a stream of bytes brings packets in pieces of any size
    Ok(buf
        .get(header_bytes..total)
        .map(|body| (Frame { first, body }, total)))
}

/// Total bytes of the packet that starts at `buf`, fixed header included; `None` while the fixed header is incomplete.
///
/// # Errors
/// A malformed Remaining Length.
#[inline]
pub fn frame_len(buf: &[u8]) -> Result<Option<usize>, DecodeError> {
    Ok(fixed_header(buf)?.map(|(_, header_bytes, remaining)| header_bytes + remaining))
}

/// First byte, bytes of the fixed header, Remaining Length.
#[inline(always)]
fn fixed_header(buf: &[u8]) -> Result<Option<(u8, usize, usize)>, DecodeError> {
    match *buf {
        [first, low, ..] if low < 0x80 => Ok(Some((first, 2, usize::from(low)))),
        // a last byte of 0 would be one more than needed [MQTT5-1.5.5-1]; no version describes such a length
        [first, low, high, ..] if high.wrapping_sub(1) < 0x7f => Ok(Some((
            first,
            3,
            usize::from(low & 0x7f) | usize::from(high) << 7,
        ))),
        _ => long_header(buf),
    }
}

#[inline(never)]
fn long_header(buf: &[u8]) -> Result<Option<(u8, usize, usize)>, DecodeError> {
    let Some((&first, length)) = buf.split_first() else {
        return Ok(None);
    };
    match varint(length) {
        Varint::Whole { value, bytes } => Ok(Some((first, 1 + bytes, value as usize))),
        Varint::Incomplete => Ok(None),
        Varint::Malformed => Err(ErrorKind::RemainingLength.into()),
    }
}

/// What [`varint`] found.
pub(crate) enum Varint {
    /// A number and how many bytes it took.
    Whole { value: u32, bytes: usize },
    /// The bytes ended first.
    Incomplete,
    /// More than four bytes, or more than needed.
    Malformed,
}

/// Reads a Variable Byte Integer (section 1.5.5 of 5.0).
pub(crate) fn varint(bytes: &[u8]) -> Varint {
    let mut value = 0_u32;
    for (i, &byte) in bytes.iter().take(4).enumerate() {
        value |= u32::from(byte & 0x7f) << (7 * i);
        if byte < 0x80 {
            // [MQTT5-1.5.5-1]
            if byte == 0 && i > 0 {
                return Varint::Malformed;
            }
            return Varint::Whole {
                value,
                bytes: i + 1,
            };
        }
    }
    if bytes.len() < 4 {
        Varint::Incomplete
    } else {
        Varint::Malformed
    }
}
