// SPDX-License-Identifier: Apache-2.0
//! Reads the data types of section 1.5 off the front of a packet's body.

use crate::frame::{Varint, varint};
use crate::{DecodeError, ErrorKind, PacketId};

/// The bytes that are still to be read.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    #[inline]
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    #[inline]
    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All that is left.
    #[inline]
    pub(crate) const fn rest(self) -> &'a [u8] {
        self.0
    }

    /// Nothing may be left.
    #[inline]
    pub(crate) fn end(self) -> Result<(), DecodeError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(ErrorKind::TrailingBytes.into())
        }
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, tail) = self
            .0
            .split_first_chunk::<N>()
            .ok_or(ErrorKind::Truncated)?;
        self.0 = tail;
        Ok(*head)
    }

    #[inline]
    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array::<1>().map(|[byte]| byte)
    }

    #[inline]
    pub(crate) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_be_bytes)
    }

    #[inline]
    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_be_bytes)
    }

    /// A byte that is 0 or 1.
    #[inline]
    pub(crate) fn bool(&mut self) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(ErrorKind::PropertyValue.into()),
        }
    }

    #[inline]
    pub(crate) fn varint(&mut self) -> Result<u32, DecodeError> {
        if let Some((&byte, tail)) = self.0.split_first()
            && byte < 0x80
        {
            self.0 = tail;
            return Ok(u32::from(byte));
        }
        match varint(self.0) {
            Varint::Whole { value, bytes } => {
                self.take(bytes)?;
                Ok(value)
            }
            Varint::Incomplete => Err(ErrorKind::Truncated.into()),
            Varint::Malformed => Err(ErrorKind::VariableByteInteger.into()),
        }
    }

    #[inline]
    pub(crate) fn take(&mut self, bytes: usize) -> Result<&'a [u8], DecodeError> {
        let (head, tail) = self.0.split_at_checked(bytes).ok_or(ErrorKind::Truncated)?;
        self.0 = tail;
        Ok(head)
    }

    /// Binary data: two bytes of length, then as many bytes.
    #[inline]
    pub(crate) fn binary(&mut self) -> Result<&'a [u8], DecodeError> {
        let bytes = self.u16()?;
        self.take(usize::from(bytes))
    }

    /// A UTF-8 string.
    #[inline]
    pub(crate) fn string(&mut self) -> Result<&'a str, DecodeError> {
        let bytes = self.binary()?;
        // [MQTT-1.5.3-1] [MQTT5-1.5.4-1], surrogates included; a byte order mark is a character like any other
        // [MQTT-1.5.3-3] [MQTT5-1.5.4-3]
        let text = std::str::from_utf8(bytes).map_err(|_| ErrorKind::InvalidUtf8)?;
        // [MQTT-1.5.3-2] [MQTT5-1.5.4-2]
        if bytes.contains(&0) {
            return Err(ErrorKind::NulInString.into());
        }
        Ok(text)
    }

    /// Passes over a UTF-8 string that nobody looks at now; it is checked all the same. Mostly they are ASCII, which takes
    /// one pass over a few bytes.
    #[inline]
    pub(crate) fn skip_string(&mut self) -> Result<(), DecodeError> {
        let mut rest = *self;
        let bytes = rest.binary()?;
        if bytes.iter().all(|byte| (1..0x80).contains(byte)) {
            *self = rest;
            return Ok(());
        }
        self.string().map(|_| ())
    }

    /// Never 0: [MQTT-2.3.1-1] [MQTT5-2.2.1-3]
    #[inline]
    pub(crate) fn packet_id(&mut self) -> Result<PacketId, DecodeError> {
        let id = self.u16()?;
        PacketId::new(id).ok_or_else(|| ErrorKind::PacketIdZero.into())
    }

    /// The property block that starts here; its length is there even when it is 0 [MQTT5-2.2.2-1].
    #[inline]
    pub(crate) fn property_block(&mut self) -> Result<&'a [u8], DecodeError> {
        let bytes = self.varint()?;
        self.take(bytes as usize)
    }
}
