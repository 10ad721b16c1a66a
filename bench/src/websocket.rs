// SPDX-License-Identifier: Apache-2.0

//! The client's side of WebSocket (RFC 6455) as MQTT uses it. Sans-IO.
//!
//! Written by hand like the MQTT bytes, so that the broker's framing is checked against something else. A batch of
//! packets leaves as one masked binary frame; data frames are taken in pieces as they arrive, in place, whatever their
//! length. Nothing is kept but the head of a frame that has not arrived whole and the payload of a control frame.

use std::fmt;

/// The nonce and its answer from RFC 6455, section 1.3: no server may tell a fixed key from a drawn one.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// An answer to the upgrade that is longer than this is none.
const RESPONSE_MAX_BYTES: usize = 8 * 1024;

const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;

/// RFC 6455, section 5.5: the payload of a control frame is at most 125 bytes
const CONTROL_MAX_BYTES: usize = 125;

mod opcode {
    pub(super) const CONTINUATION: u8 = 0;
    pub(super) const BINARY: u8 = 2;
    pub(super) const CLOSE: u8 = 8;
    pub(super) const PING: u8 = 9;
    pub(super) const PONG: u8 = 10;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WebSocketError {
    /// The answer to the upgrade: its first line, and what is wrong with it.
    Upgrade(String, &'static str),
    Frame(&'static str),
    /// The broker's close frame, with its code.
    Closed(u16),
}

impl fmt::Display for WebSocketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Upgrade(line, wrong) => {
                write!(f, "the broker answered the upgrade with {line:?}: {wrong}")
            }
            Self::Frame(wrong) => write!(f, "the broker sent a WebSocket frame {wrong}"),
            Self::Closed(code) => write!(f, "the broker closed the WebSocket with code {code}"),
        }
    }
}

impl std::error::Error for WebSocketError {}

enum State {
    /// The answer to the upgrade so far.
    Upgrading(Vec<u8>),
    Head(Head),
    /// Bytes of a data frame's payload that are still to come.
    Data(u64),
    /// A control frame's opcode, the length of its payload and what has come of it.
    Control(u8, usize, Vec<u8>),
}

#[derive(Default)]
struct Head {
    bytes: [u8; 10],
    filled: usize,
}

pub(crate) struct WebSocket {
    state: State,
    mask: u32,
    /// The upgrade and pongs, until they are fetched by `take_output`.
    output: Vec<u8>,
}

impl WebSocket {
    pub(crate) fn new(host: &str) -> Self {
        let upgrade = format!(
            "GET /mqtt HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
        );
        Self {
            state: State::Upgrading(Vec::new()),
            mask: 1,
            output: upgrade.into_bytes(),
        }
    }

    /// Data frames may be sent.
    pub(crate) fn is_open(&self) -> bool {
        !matches!(self.state, State::Upgrading(_))
    }

    /// Takes what has arrived and leaves the payload of data frames at its front; how many bytes that is.
    pub(crate) fn handle_bytes(&mut self, bytes: &mut [u8]) -> Result<usize, WebSocketError> {
        let (mut at, mut kept) = (0, 0);
        while at < bytes.len() {
            match &mut self.state {
                State::Upgrading(response) => {
                    response.push(bytes[at]);
                    at += 1;
                    if response.ends_with(b"\r\n\r\n") {
                        check_upgrade(response)?;
                        self.state = State::Head(Head::default());
                    } else if response.len() >= RESPONSE_MAX_BYTES {
                        return Err(WebSocketError::Upgrade(
                            first_line(response),
                            "it is too long",
                        ));
                    }
                }
                State::Head(head) => {
                    head.bytes[head.filled] = bytes[at];
                    head.filled += 1;
                    at += 1;
                    if let Some(next) = head.next()? {
                        self.enter(next)?;
                    }
                }
                State::Data(left) => {
                    let available = bytes.len() - at;
                    let taken =
                        usize::try_from(*left).map_or(available, |left| left.min(available));
                    bytes.copy_within(at..at + taken, kept);
                    at += taken;
                    kept += taken;
                    *left -= taken as u64;
                    if *left == 0 {
                        self.state = State::Head(Head::default());
                    }
                }
                State::Control(code, length, payload) => {
                    let taken = (*length - payload.len()).min(bytes.len() - at);
                    payload.extend_from_slice(&bytes[at..at + taken]);
                    at += taken;
                    if payload.len() == *length {
                        let (code, payload) = (*code, std::mem::take(payload));
                        self.handle_control(code, &payload)?;
                    }
                }
            }
        }
        Ok(kept)
    }

    /// A frame without payload is over at once.
    fn enter(&mut self, next: State) -> Result<(), WebSocketError> {
        self.state = next;
        match self.state {
            State::Data(0) => self.state = State::Head(Head::default()),
            State::Control(code, 0, _) => self.handle_control(code, &[])?,
            _ => {}
        }
        Ok(())
    }

    fn handle_control(&mut self, code: u8, payload: &[u8]) -> Result<(), WebSocketError> {
        self.state = State::Head(Head::default());
        match code {
            opcode::PING => {
                let mut output = std::mem::take(&mut self.output);
                self.put_frame(opcode::PONG, payload, &mut output);
                self.output = output;
                Ok(())
            }
            opcode::CLOSE => Err(WebSocketError::Closed(
                payload
                    .first_chunk()
                    .map_or(1005, |code| u16::from_be_bytes(*code)),
            )),
            _ => Ok(()),
        }
    }

    /// One frame with `payload`.
    pub(crate) fn send(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        self.put_frame(opcode::BINARY, payload, out);
    }

    pub(crate) fn close(&mut self, out: &mut Vec<u8>) {
        const NORMAL: u16 = 1000;
        self.put_frame(opcode::CLOSE, &NORMAL.to_be_bytes(), out);
    }

    /// What this side has to say of its own accord.
    pub(crate) fn take_output(&mut self) -> Option<Vec<u8>> {
        (!self.output.is_empty()).then(|| std::mem::take(&mut self.output))
    }

    fn put_frame(&mut self, code: u8, payload: &[u8], out: &mut Vec<u8>) {
        out.push(FIN | code);
        match payload.len() {
            length @ 0..=125 => out.push(MASKED | length as u8),
            length @ 126..=0xffff => {
                out.push(MASKED | 126);
                out.extend_from_slice(&(length as u16).to_be_bytes());
            }
            length => {
                out.push(MASKED | 127);
                out.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        // a new mask for each frame; it has nothing to hide from
        self.mask = self.mask.wrapping_mul(0x9e37_79b1).wrapping_add(1);
        let mask = self.mask.to_be_bytes();
        out.extend_from_slice(&mask);
        let start = out.len();
        out.extend_from_slice(payload);
        apply_mask(&mut out[start..], mask);
    }
}

impl Head {
    /// What follows the head, once it is whole.
    fn next(&self) -> Result<Option<State>, WebSocketError> {
        let &[first, second, ..] = &self.bytes;
        if self.filled == 1 {
            if first & 0x70 != 0 {
                return Err(WebSocketError::Frame("with a reserved bit"));
            }
            return Ok(None);
        }
        if second & MASKED != 0 {
            return Err(WebSocketError::Frame("that is masked"));
        }
        let head_bytes = match second {
            127 => 10,
            126 => 4,
            _ => 2,
        };
        if self.filled < head_bytes {
            return Ok(None);
        }
        let mut length = [0; 8];
        let extended = &self.bytes[2..head_bytes];
        length[8 - extended.len()..].copy_from_slice(extended);
        let length = if extended.is_empty() {
            u64::from(second)
        } else {
            u64::from_be_bytes(length)
        };
        match first & 0x0f {
            opcode::BINARY | opcode::CONTINUATION => Ok(Some(State::Data(length))),
            code @ (opcode::CLOSE | opcode::PING | opcode::PONG) => {
                if first & FIN == 0 || length > CONTROL_MAX_BYTES as u64 {
                    return Err(WebSocketError::Frame(
                        "of control that is fragmented or too long",
                    ));
                }
                Ok(Some(State::Control(code, length as usize, Vec::new())))
            }
            // [MQTT-6.0.0-1] [MQTT5-6.0.0-1] binary frames only
            _ => Err(WebSocketError::Frame("that is neither binary nor control")),
        }
    }
}

fn apply_mask(bytes: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let mut chunks = bytes.chunks_exact_mut(8);
    for chunk in &mut chunks {
        let chunk: &mut [u8; 8] = chunk.try_into().expect("chunks of eight");
        *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in chunks.into_remainder().iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

fn check_upgrade(response: &[u8]) -> Result<(), WebSocketError> {
    let refused = |wrong| Err(WebSocketError::Upgrade(first_line(response), wrong));
    let text = String::from_utf8_lossy(response);
    let mut lines = text.split("\r\n");
    if !lines
        .next()
        .is_some_and(|line| line.starts_with("HTTP/1.1 101"))
    {
        return refused("101 is expected");
    }
    let (mut accepted, mut mqtt) = (false, false);
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        accepted |= name.eq_ignore_ascii_case("sec-websocket-accept") && value == ACCEPT;
        mqtt |= name.eq_ignore_ascii_case("sec-websocket-protocol") && value == "mqtt";
    }
    if !accepted {
        return refused("Sec-WebSocket-Accept does not fit the key");
    }
    // [MQTT-6.0.0-4] [MQTT5-6.0.0-4]
    if !mqtt {
        return refused("the subprotocol is not mqtt");
    }
    Ok(())
}

fn first_line(response: &[u8]) -> String {
    let line = response.split(|&byte| byte == b'\r').next();
    String::from_utf8_lossy(line.unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\
        sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n";

    fn open() -> WebSocket {
        let mut web = WebSocket::new("localhost");
        assert!(web.take_output().is_some());
        assert_eq!(web.handle_bytes(&mut ANSWER.to_vec()), Ok(0));
        assert!(web.is_open());
        web
    }

    /// What `bytes` carry when they arrive in pieces of `size`.
    fn payload(web: &mut WebSocket, bytes: &[u8], size: usize) -> Result<Vec<u8>, WebSocketError> {
        let mut all = Vec::new();
        for piece in bytes.chunks(size) {
            let mut piece = piece.to_vec();
            let kept = web.handle_bytes(&mut piece)?;
            all.extend_from_slice(&piece[..kept]);
        }
        Ok(all)
    }

    /// A client's frame as its server reads it: opcode and unmasked payload.
    fn unmask(frame: &[u8]) -> (u8, Vec<u8>) {
        assert_eq!(frame[0] & 0xf0, FIN);
        assert_eq!(frame[1] & MASKED, MASKED);
        let (length, head) = match frame[1] & 0x7f {
            126 => (usize::from(u16::from_be_bytes([frame[2], frame[3]])), 4),
            127 => (
                u64::from_be_bytes(frame[2..10].try_into().expect("eight")) as usize,
                10,
            ),
            length => (usize::from(length), 2),
        };
        let mask = &frame[head..head + 4];
        let payload: Vec<u8> = frame[head + 4..]
            .iter()
            .zip(mask.iter().cycle())
            .map(|(byte, mask)| byte ^ mask)
            .collect();
        assert_eq!(payload.len(), length);
        assert_ne!(mask, [0; 4]);
        (frame[0] & 0x0f, payload)
    }

    #[test]
    fn a_batch_of_any_length_is_one_masked_binary_frame() {
        let mut web = open();
        for length in [0, 1, 7, 8, 125, 126, 127, 65_535, 65_536, 100_001] {
            let batch: Vec<u8> = (0..length).map(|at| at as u8).collect();
            let mut frame = Vec::new();
            web.send(&batch, &mut frame);
            assert_eq!(unmask(&frame), (opcode::BINARY, batch), "{length}");
        }
    }

    #[test]
    fn frames_of_every_length_arrive_whole_in_pieces_of_every_size() {
        let mut stream = Vec::new();
        let mut sent = Vec::new();
        for length in [0_usize, 1, 125, 126, 300, 65_536] {
            let data: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            stream.push(FIN | opcode::BINARY);
            match length {
                0..=125 => stream.push(length as u8),
                126..=0xffff => {
                    stream.push(126);
                    stream.extend_from_slice(&(length as u16).to_be_bytes());
                }
                _ => {
                    stream.push(127);
                    stream.extend_from_slice(&(length as u64).to_be_bytes());
                }
            }
            stream.extend_from_slice(&data);
            sent.extend_from_slice(&data);
        }
        for size in [1, 2, 3, 7, 1000, stream.len()] {
            assert_eq!(
                payload(&mut open(), &stream, size),
                Ok(sent.clone()),
                "{size}"
            );
        }
    }

    #[test]
    fn a_fragmented_message_with_a_ping_in_between_is_one_stream_and_the_ping_is_answered() {
        let mut web = open();
        let stream = b"\x02\x02ab\x89\x03png\x80\x01c\x8a\x00\x82\x01d";
        assert_eq!(payload(&mut web, stream, 1), Ok(b"abcd".to_vec()));
        let pong = web.take_output().expect("a ping is answered");
        assert_eq!(unmask(&pong), (opcode::PONG, b"png".to_vec()));
        assert_eq!(web.take_output(), None);
    }

    #[test]
    fn frames_behind_the_answer_in_the_same_read_are_taken() {
        let mut web = WebSocket::new("localhost");
        let stream = [ANSWER, b"\x82\x02hi"].concat();
        assert_eq!(payload(&mut web, &stream, stream.len()), Ok(b"hi".to_vec()));
    }

    #[test]
    fn what_a_server_must_not_send_is_refused() {
        for bytes in [
            b"\x81\x01a".as_slice(),
            b"\x82\x81\0\0\0\0a",
            b"\xc2\x01a",
            b"\x09\x00",
            b"\x89\x7e\x00\x7e",
            b"\x83\x00",
        ] {
            assert!(
                matches!(
                    payload(&mut open(), bytes, 1),
                    Err(WebSocketError::Frame(_))
                ),
                "{bytes:?}"
            );
        }
        assert_eq!(
            payload(&mut open(), b"\x88\x02\x03\xea", 1),
            Err(WebSocketError::Closed(1002))
        );
    }

    #[test]
    fn an_answer_without_upgrade_key_or_subprotocol_is_refused() {
        let text = String::from_utf8_lossy(ANSWER);
        for answer in [
            text.replace("101", "400"),
            text.replace("s3pP", "s3pQ"),
            text.replace(": mqtt", ": chat"),
            "x".repeat(RESPONSE_MAX_BYTES),
        ] {
            let mut web = WebSocket::new("localhost");
            assert!(
                matches!(
                    payload(&mut web, answer.as_bytes(), 100),
                    Err(WebSocketError::Upgrade(..))
                ),
                "{answer}"
            );
        }
    }
}
