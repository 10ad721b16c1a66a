// SPDX-License-Identifier: Apache-2.0
//! Frames: taken apart as they come (RFC 6455 section 5), and begun.
//!
//! Headers are read here and not by tungstenite's `FrameHeader`, which waits for a whole header before it says that its
//! first byte is wrong and takes lengths in more bytes than they need.

use std::mem;

use super::WebSocketError;

/// Bytes that [`super::WebSocket::header`] appends at most.
pub const HEADER_BYTES_MAX: usize = 10;

/// A client's header has a mask too.
const CLIENT_HEADER_BYTES_MAX: usize = HEADER_BYTES_MAX + 4;
const CONTROL_BYTES_MAX: u8 = 125;

const FINAL: u8 = 0x80;
const RESERVED_BITS: u8 = 0x70;
const MASKED: u8 = 0x80;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opcode {
    Continuation = 0,
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

/// Where the next byte belongs.
#[derive(Debug)]
pub(super) struct Frames {
    part: Part,
    /// A message has begun whose last frame has not.
    in_message: bool,
    close_sent: bool,
}

#[derive(Debug)]
enum Part {
    /// `bytes[..kept]` came so far.
    Header {
        bytes: [u8; CLIENT_HEADER_BYTES_MAX],
        kept: u8,
    },
    Data {
        missing: u64,
        mask: [u8; 4],
    },
    /// `payload.len() + missing <= 125`; `payload` stays empty when all comes at once.
    Control {
        opcode: Opcode,
        missing: u8,
        mask: [u8; 4],
        payload: Vec<u8>,
    },
}

impl Part {
    const START: Self = Self::Header {
        bytes: [0; CLIENT_HEADER_BYTES_MAX],
        kept: 0,
    };
}

impl Frames {
    pub(super) const fn new() -> Self {
        Self {
            part: Part::START,
            in_message: false,
            close_sent: false,
        }
    }

    pub(super) const fn close_sent(&self) -> bool {
        self.close_sent
    }

    pub(super) const fn memory_bytes(&self) -> usize {
        match &self.part {
            Part::Control { payload, .. } => payload.capacity(),
            Part::Header { .. } | Part::Data { .. } => 0,
        }
    }

    /// Sends Close unless it was sent.
    pub(super) fn close(&mut self, code: u16, into: &mut Vec<u8>) {
        if !mem::replace(&mut self.close_sent, true) {
            write_control(Opcode::Close, &code.to_be_bytes(), into);
        }
    }

    /// Takes all bytes; true: the peer's Close was among them.
    pub(super) fn handle_bytes(
        &mut self,
        mut socket: &mut [u8],
        mqtt: &mut Vec<u8>,
        answer: &mut Vec<u8>,
    ) -> Result<bool, WebSocketError> {
        let mut pong_at = None;
        loop {
            match &mut self.part {
                Part::Header { bytes, kept } => {
                    let before = usize::from(*kept);
                    let end = bytes.len().min(before + socket.len());
                    bytes[before..end].copy_from_slice(&socket[..end - before]);
                    let Some(header) = ClientHeader::parse(&bytes[..end], self.in_message)? else {
                        *kept = end as u8;
                        return Ok(false);
                    };
                    socket = &mut mem::take(&mut socket)[header.bytes - before..];
                    self.part = match header.opcode {
                        Opcode::Continuation | Opcode::Binary => {
                            self.in_message = !header.is_final;
                            Part::Data {
                                missing: header.payload_bytes,
                                mask: header.mask,
                            }
                        }
                        Opcode::Close | Opcode::Ping | Opcode::Pong => Part::Control {
                            opcode: header.opcode,
                            missing: header.payload_bytes as u8,
                            mask: header.mask,
                            payload: Vec::new(),
                        },
                    };
                }
                Part::Data { missing, mask } => {
                    let here =
                        usize::try_from(*missing).map_or(socket.len(), |n| n.min(socket.len()));
                    let (payload, behind) = mem::take(&mut socket).split_at_mut(here);
                    socket = behind;
                    if !self.close_sent {
                        unmask(payload, mask);
                        mqtt.extend_from_slice(payload);
                    }
                    *missing -= here as u64;
                    if *missing > 0 {
                        return Ok(false);
                    }
                    self.part = Part::START;
                }
                Part::Control {
                    opcode,
                    missing,
                    mask,
                    payload,
                } => {
                    let here = usize::from(*missing).min(socket.len());
                    let (came, behind) = mem::take(&mut socket).split_at_mut(here);
                    socket = behind;
                    unmask(came, mask);
                    *missing -= here as u8;
                    if *missing > 0 || !payload.is_empty() {
                        payload.reserve_exact(here + usize::from(*missing));
                        payload.extend_from_slice(came);
                    }
                    if *missing > 0 {
                        return Ok(false);
                    }
                    let whole = if payload.is_empty() { &*came } else { payload };
                    match opcode {
                        Opcode::Close => {
                            let code = close_code(whole)?;
                            match code {
                                Some(code) => self.close(code, answer),
                                None if self.close_sent => {}
                                None => {
                                    write_control(Opcode::Close, &[], answer);
                                    self.close_sent = true;
                                }
                            }
                            return Ok(true);
                        }
                        Opcode::Ping if !self.close_sent => {
                            // only the last of several need be answered (5.5.3), so that pings don't pile up here
                            let at = *pong_at.get_or_insert(answer.len());
                            answer.truncate(at);
                            write_control(Opcode::Pong, whole, answer);
                        }
                        _ => {}
                    }
                    self.part = Part::START;
                }
            }
        }
    }
}

/// Section 5.2.
struct ClientHeader {
    opcode: Opcode,
    is_final: bool,
    payload_bytes: u64,
    mask: [u8; 4],
    /// Of the header.
    bytes: usize,
}

impl ClientHeader {
    /// `None`: more bytes are needed; never with [`CLIENT_HEADER_BYTES_MAX`] of them.
    fn parse(bytes: &[u8], in_message: bool) -> Result<Option<Self>, WebSocketError> {
        let Some((&first, rest)) = bytes.split_first() else {
            return Ok(None);
        };
        if first & RESERVED_BITS != 0 {
            return Err(WebSocketError::ReservedBits);
        }
        let is_final = first & FINAL != 0;
        let opcode = match first & 0xf {
            0 => Opcode::Continuation,
            // [MQTT-6.0.0-1] [MQTT5-6.0.0-1]
            1 => return Err(WebSocketError::Text),
            2 => Opcode::Binary,
            8 => Opcode::Close,
            9 => Opcode::Ping,
            10 => Opcode::Pong,
            _ => return Err(WebSocketError::Opcode),
        };
        let is_control = match opcode {
            Opcode::Continuation | Opcode::Binary => {
                // fragments of a message may not be mixed with those of another (5.4)
                if in_message != (opcode == Opcode::Continuation) {
                    return Err(WebSocketError::Continuation);
                }
                false
            }
            Opcode::Close | Opcode::Ping | Opcode::Pong => {
                if !is_final {
                    return Err(WebSocketError::FragmentedControl);
                }
                true
            }
        };
        let Some((&second, rest)) = rest.split_first() else {
            return Ok(None);
        };
        if second & MASKED == 0 {
            return Err(WebSocketError::Unmasked);
        }
        let short = second & !MASKED;
        if is_control && short > CONTROL_BYTES_MAX {
            return Err(WebSocketError::ControlTooLong);
        }
        let (payload_bytes, least, rest) = match short {
            126 => match rest.split_first_chunk() {
                Some((bytes, rest)) => (u64::from(u16::from_be_bytes(*bytes)), 126, rest),
                None => return Ok(None),
            },
            127 => match rest.split_first_chunk() {
                Some((bytes, rest)) => (u64::from_be_bytes(*bytes), 0x1_0000, rest),
                None => return Ok(None),
            },
            short => (u64::from(short), 0, rest),
        };
        if payload_bytes < least || payload_bytes > i64::MAX as u64 {
            return Err(WebSocketError::Length);
        }
        Ok(rest.split_first_chunk().map(|(mask, rest)| Self {
            opcode,
            is_final,
            payload_bytes,
            mask: *mask,
            bytes: bytes.len() - rest.len(),
        }))
    }
}

/// The code in a Close frame, if there is one (5.5.1, 7.4).
fn close_code(payload: &[u8]) -> Result<Option<u16>, WebSocketError> {
    if payload.is_empty() {
        return Ok(None);
    }
    let (code, reason) = payload
        .split_first_chunk()
        .ok_or(WebSocketError::CloseCode)?;
    let code = u16::from_be_bytes(*code);
    // 1004 is reserved, 1005, 1006 and 1015 stand for what was not sent, 1016 to 2999 are for other versions
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(WebSocketError::CloseCode);
    }
    if std::str::from_utf8(reason).is_err() {
        return Err(WebSocketError::CloseReason);
    }
    Ok(Some(code))
}

/// Section 5.3. Leaves in `mask` what the next byte needs.
fn unmask(payload: &mut [u8], mask: &mut [u8; 4]) {
    let [a, b, c, d] = *mask;
    let twice = [a, b, c, d, a, b, c, d];
    let word = u64::from_ne_bytes(twice);
    mask.rotate_left(payload.len() % 4);
    let (words, tail) = payload.as_chunks_mut();
    for bytes in words {
        *bytes = (u64::from_ne_bytes(*bytes) ^ word).to_ne_bytes();
    }
    for (byte, key) in tail.iter_mut().zip(twice) {
        *byte ^= key;
    }
}

#[inline]
pub(super) fn write_binary_header(payload_bytes: usize, into: &mut Vec<u8>) {
    write_header(Opcode::Binary, payload_bytes, into);
}

fn write_control(opcode: Opcode, payload: &[u8], into: &mut Vec<u8>) {
    debug_assert!(payload.len() <= usize::from(CONTROL_BYTES_MAX));
    write_header(opcode, payload.len(), into);
    into.extend_from_slice(payload);
}

/// Of a whole message in one frame; a server does not mask (5.1).
#[inline]
fn write_header(opcode: Opcode, payload_bytes: usize, into: &mut Vec<u8>) {
    let first = FINAL | opcode as u8;
    match payload_bytes {
        0..126 => into.extend_from_slice(&[first, payload_bytes as u8]),
        126..0x1_0000 => {
            let [high, low] = (payload_bytes as u16).to_be_bytes();
            into.extend_from_slice(&[first, 126, high, low]);
        }
        _ => {
            into.extend_from_slice(&[first, 127]);
            into.extend_from_slice(&(payload_bytes as u64).to_be_bytes());
        }
    }
}
