// SPDX-License-Identifier: Apache-2.0
//! The header that a load balancer puts before a connection to name its client: PROXY protocol, versions 1 and 2.
//!
//! * A header is believed only where it comes from a trusted network; that is the caller's to know.
//! * Bytes that cannot become a header are refused as soon as they are there, so a client that speaks to the wrong
//!   listener is told apart from a slow one: signatures byte by byte, fields of version 1 when they end (and when a byte
//!   comes that none of them can have), the fixed part of version 2 byte by byte, its addresses when all are there.
//! * Nothing is allocated, and nothing is kept: the caller hands in all bytes from the connection's first on, again
//!   when there are more.
//!
//! Sections are those of haproxy's `proxy-protocol.txt`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

#[cfg(test)]
mod tests;

/// Bytes of a header, TLVs of version 2 included; a longer one is refused.
pub const HEADER_BYTES_MAX: usize = 4096;

/// Bytes of a version 1 header, its line end included (section 2.1).
const V1_BYTES_MAX: usize = 107;

const V1_SIGNATURE: &[u8] = b"PROXY ";
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// The fixed part of version 2: signature, version and command, family and protocol, length of the rest.
const V2_FIXED_BYTES: usize = 16;

const _: () = assert!(V2_SIGNATURE.len() + 4 == V2_FIXED_BYTES);

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Where the client is. `None` (UNKNOWN, LOCAL, an unspecified or unix family): the connection's own address holds.
    pub source: Option<SocketAddr>,
    /// Size of the header; what follows is the client's.
    pub bytes: usize,
}

/// Why bytes are not a header; the connection must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ProxyError {
    /// Neither version begins like that.
    Signature,
    /// Version 1: no line end within 107 bytes.
    LineTooLong,
    /// Version 1: CR or LF alone.
    LineEnd,
    /// Version 1: neither TCP4 nor TCP6 nor UNKNOWN.
    Protocol,
    /// Version 1: not two addresses and two ports with one space between them.
    Fields,
    /// Version 1: an address that is none of its family.
    Address,
    /// Version 1: a port that is no decimal number up to 65,535, or is written with zeros in front.
    Port,
    /// A version other than 1 and 2.
    Version,
    /// Version 2: neither LOCAL nor PROXY.
    Command,
    /// Version 2: a family and protocol that do not exist.
    Family,
    /// Version 2: a client over datagrams.
    Datagram,
    /// Version 2: shorter than the addresses of its family.
    TooShort,
    /// Version 2: longer than [`HEADER_BYTES_MAX`].
    TooLong,
    /// Version 2: an extension ends behind the header, or has the wrong size.
    Extension,
    /// Version 2: the checksum says that the header is damaged.
    Checksum,
}

impl fmt::Display for ProxyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Signature => {
                "the connection does not begin with a PROXY protocol header (is the sender told to send one?)"
            }
            Self::LineTooLong => "the line of a PROXY protocol header has no end within 107 bytes",
            Self::LineEnd => "the line of a PROXY protocol header does not end with CR LF",
            Self::Protocol => "the protocol in a PROXY header is not TCP4, TCP6 or UNKNOWN",
            Self::Fields => {
                "a PROXY header does not have two addresses and two ports with one space between them"
            }
            Self::Address => "an address in a PROXY header is not of the family that it names",
            Self::Port => "a port in a PROXY header is not a decimal number from 0 to 65535",
            Self::Version => "a PROXY header of a version other than 1 and 2",
            Self::Command => "the command in a PROXY header is neither LOCAL nor PROXY",
            Self::Family => "the address family in a PROXY header does not exist",
            Self::Datagram => "a PROXY header for a client over datagrams",
            Self::TooShort => "a PROXY header is shorter than the addresses of its family",
            Self::TooLong => "a PROXY header is longer than 4096 bytes",
            Self::Extension => "an extension of a PROXY header is malformed",
            Self::Checksum => "the checksum of a PROXY header is wrong",
        })
    }
}

impl std::error::Error for ProxyError {}

/// Reads the header from `bytes`, which begin with the connection's first byte; `None`: more of them are needed.
///
/// Once it found a header or an error, further bytes don't change that.
///
/// # Errors
/// When no header can begin with these bytes.
pub fn parse(bytes: &[u8]) -> Result<Option<Header>, ProxyError> {
    if begins(bytes, V1_SIGNATURE) {
        parse_v1(bytes)
    } else if begins(bytes, V2_SIGNATURE) {
        parse_v2(bytes)
    } else {
        Err(ProxyError::Signature)
    }
}

/// As far as `bytes` go, they are those of `signature`.
fn begins(bytes: &[u8], signature: &[u8]) -> bool {
    bytes
        .iter()
        .zip(signature)
        .all(|(byte, expected)| byte == expected)
}

/// A line, section 2.1: `PROXY TCP4 192.0.2.1 192.0.2.2 56324 1883`.
fn parse_v1(bytes: &[u8]) -> Result<Option<Header>, ProxyError> {
    let bytes = bytes.get(..V1_BYTES_MAX).unwrap_or(bytes);
    let end = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n'));
    let (line, line_end) = bytes.split_at(end.unwrap_or(bytes.len()));
    let Some(fields) = line.get(V1_SIGNATURE.len()..) else {
        return Ok(None);
    };
    match (parse_fields(fields, end.is_some())?, line_end) {
        (Fields::Whole(source), [b'\r', b'\n', ..]) => Ok(Some(Header {
            source,
            bytes: line.len() + 2,
        })),
        (_, [] | [b'\r']) if bytes.len() < V1_BYTES_MAX => Ok(None),
        (_, [] | [b'\r']) => Err(ProxyError::LineTooLong),
        _ => Err(ProxyError::LineEnd),
    }
}

/// What is behind `PROXY ` in a line.
enum Fields {
    /// Nothing is wrong so far.
    Begun,
    Whole(Option<SocketAddr>),
}

fn parse_fields(fields: &[u8], line_ended: bool) -> Result<Fields, ProxyError> {
    let mut fields = fields.split(|&byte| byte == b' ').peekable();
    // a field, and whether no byte can be added to it
    let mut next = || {
        let field = fields.next().ok_or(ProxyError::Fields)?;
        Ok((field, line_ended || fields.peek().is_some()))
    };
    let is_v6 = match next()? {
        (b"TCP4", true) => false,
        (b"TCP6", true) => true,
        // whatever follows up to the line end is to be ignored
        (b"UNKNOWN", true) if line_ended => return Ok(Fields::Whole(None)),
        (b"UNKNOWN", true) => return Ok(Fields::Begun),
        (begun, false)
            if ["TCP4", "TCP6", "UNKNOWN"]
                .iter()
                .any(|name| name.as_bytes().starts_with(begun)) =>
        {
            return Ok(Fields::Begun);
        }
        _ => return Err(ProxyError::Protocol),
    };
    let mut addresses = [None; 2];
    for address in &mut addresses {
        *address = match next()? {
            (field, true) => Some(parse_address(field, is_v6)?),
            (begun, false) if begun.iter().all(|&byte| is_address_byte(byte, is_v6)) => {
                return Ok(Fields::Begun);
            }
            _ => return Err(ProxyError::Address),
        };
    }
    let mut ports = [None; 2];
    for port in &mut ports {
        *port = match next()? {
            (b"", false) => return Ok(Fields::Begun),
            (field, true) => Some(parse_port(field)?),
            (begun, false) => {
                parse_port(begun)?;
                return Ok(Fields::Begun);
            }
        };
    }
    if next().is_ok() {
        return Err(ProxyError::Fields);
    }
    let ([source, _], [port, _]) = (addresses, ports);
    Ok(Fields::Whole(source.zip(port).map(SocketAddr::from)))
}

fn parse_address(field: &[u8], is_v6: bool) -> Result<IpAddr, ProxyError> {
    let text = std::str::from_utf8(field).map_err(|_| ProxyError::Address)?;
    let address = if is_v6 {
        text.parse().map(IpAddr::V6)
    } else {
        text.parse().map(IpAddr::V4)
    };
    address.map_err(|_| ProxyError::Address)
}

const fn is_address_byte(byte: u8, is_v6: bool) -> bool {
    match byte {
        // a v6 address may end like a v4 one
        b'0'..=b'9' | b'.' => true,
        b'a'..=b'f' | b'A'..=b'F' | b':' => is_v6,
        _ => false,
    }
}

/// What begins a port is one too.
fn parse_port(field: &[u8]) -> Result<u16, ProxyError> {
    match field {
        [b'0', _, ..] | [] => Err(ProxyError::Port),
        _ => field
            .iter()
            .try_fold(0_u16, |port, byte| match byte {
                b'0'..=b'9' => port.checked_mul(10)?.checked_add(u16::from(byte - b'0')),
                _ => None,
            })
            .ok_or(ProxyError::Port),
    }
}

/// Who the connection is from, section 2.2.
#[derive(Clone, Copy)]
enum V2Family {
    /// LOCAL, or a family that names nobody: what follows is not to be looked at.
    Unspecified,
    Inet,
    Inet6,
    Unix,
}

/// Binary, section 2.2.
fn parse_v2(bytes: &[u8]) -> Result<Option<Header>, ProxyError> {
    let Some(&version_command) = bytes.get(V2_SIGNATURE.len()) else {
        return Ok(None);
    };
    let is_local = match (version_command >> 4, version_command & 0xf) {
        (2, 0) => true,
        (2, 1) => false,
        (2, _) => return Err(ProxyError::Command),
        _ => return Err(ProxyError::Version),
    };
    let Some(&family_protocol) = bytes.get(V2_SIGNATURE.len() + 1) else {
        return Ok(None);
    };
    let (family, addresses_bytes) = match family_protocol {
        // the family of a LOCAL header is to be ignored
        _ if is_local => (V2Family::Unspecified, 0),
        0x00 => (V2Family::Unspecified, 0),
        0x11 => (V2Family::Inet, 2 * 4 + 2 * 2),
        0x21 => (V2Family::Inet6, 2 * 16 + 2 * 2),
        0x31 => (V2Family::Unix, 2 * 108),
        0x12 | 0x22 | 0x32 => return Err(ProxyError::Datagram),
        _ => return Err(ProxyError::Family),
    };
    let Some((fixed, rest)) = bytes.split_at_checked(V2_FIXED_BYTES) else {
        return Ok(None);
    };
    let &[.., high, low] = fixed else {
        return Ok(None);
    };
    let rest_bytes = usize::from(u16::from_be_bytes([high, low]));
    if rest_bytes < addresses_bytes {
        return Err(ProxyError::TooShort);
    }
    if V2_FIXED_BYTES + rest_bytes > HEADER_BYTES_MAX {
        return Err(ProxyError::TooLong);
    }
    // nothing of it may be read before all of it is there
    let Some(rest) = rest.get(..rest_bytes) else {
        return Ok(None);
    };
    let (addresses, extensions) = rest.split_at(addresses_bytes);
    let source = match family {
        V2Family::Unspecified | V2Family::Unix => None,
        V2Family::Inet => v2_source::<4, Ipv4Addr>(addresses),
        V2Family::Inet6 => v2_source::<16, Ipv6Addr>(addresses),
    };
    if !matches!(family, V2Family::Unspecified) {
        check_extensions(&bytes[..V2_FIXED_BYTES + rest_bytes], extensions)?;
    }
    Ok(Some(Header {
        source,
        bytes: V2_FIXED_BYTES + rest_bytes,
    }))
}

/// Two addresses of `N` bytes, then two ports; each time the source comes first.
fn v2_source<const N: usize, A: From<[u8; N]> + Into<IpAddr>>(
    addresses: &[u8],
) -> Option<SocketAddr> {
    let (source, rest) = addresses.split_first_chunk::<N>()?;
    let (_, ports) = rest.split_first_chunk::<N>()?;
    let (port, _) = ports.split_first_chunk()?;
    let source: IpAddr = A::from(*source).into();
    Some(SocketAddr::new(source, u16::from_be_bytes(*port)))
}

/// PP2_TYPE_CRC32C
const EXTENSION_CRC32C: u8 = 3;

/// Type, length and value of each must fit. None is of use here; a checksum is checked (section 2.2.3).
fn check_extensions(header: &[u8], mut extensions: &[u8]) -> Result<(), ProxyError> {
    let mut checksum = None;
    while !extensions.is_empty() {
        let (&[kind, high, low], rest) = extensions
            .split_first_chunk()
            .ok_or(ProxyError::Extension)?;
        let value_bytes = usize::from(u16::from_be_bytes([high, low]));
        let (value, rest) = rest
            .split_at_checked(value_bytes)
            .ok_or(ProxyError::Extension)?;
        if kind == EXTENSION_CRC32C {
            let value: [u8; 4] = value.try_into().map_err(|_| ProxyError::Extension)?;
            let behind = rest.len();
            // two of them can't both be right, and each costs a pass over the header
            if checksum
                .replace((u32::from_be_bytes(value), behind))
                .is_some()
            {
                return Err(ProxyError::Extension);
            }
        }
        extensions = rest;
    }
    let Some((expected, behind)) = checksum else {
        return Ok(());
    };
    // taken while the field itself was 0
    let (before, after) = header.split_at(header.len() - behind);
    let crc = crc32c(!0, &before[..before.len() - 4]);
    let crc = crc32c(crc, &[0; 4]);
    if !crc32c(crc, after) == expected {
        Ok(())
    } else {
        Err(ProxyError::Checksum)
    }
}

/// CRC-32C (Castagnoli, RFC 4960 appendix B) of bytes before, gone on with `bytes`; begins with all ones, ends inverted.
fn crc32c(before: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(before, |crc, &byte| {
        (crc >> 8) ^ CRC32C_TABLE[usize::from(crc as u8 ^ byte)]
    })
}

const CRC32C_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < table.len() {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & 0_u32.wrapping_sub(crc & 1));
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
};
