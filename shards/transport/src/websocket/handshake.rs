// SPDX-License-Identifier: Apache-2.0
//! The request that turns an HTTP connection into a WebSocket, and its answer (RFC 6455 section 4.2).
//!
//! The head is parsed once, when its empty line is there; until then only bytes are refused that no head can have, so
//! that a client which speaks TLS or bare MQTT to this port is answered at its first byte.

use std::io::Write;
use std::sync::Arc;

use httparse::{EMPTY_HEADER, Request, Status};
use tungstenite::handshake::derive_accept_key;

use super::{Origins, WebSocketError};

/// Bytes of the request head, from its method to its empty line.
pub const HEAD_BYTES_MAX: usize = 8192;

/// A browser sends about 15, a proxy adds a few.
const HEADERS_MAX: usize = 64;

/// The names of MQTT, the preferred one first.
// [MQTT-6.0.0-3] [MQTT-6.0.0-4] [MQTT5-6.0.0-3] [MQTT5-6.0.0-4]: `mqtt` is offered and answered. What was written
// before that, for MQTT 3.1, offers only the other and fails unless that is answered.
const SUBPROTOCOLS: [&str; 2] = ["mqtt", "mqttv3.1"];

/// The request, as far as it came.
#[derive(Debug)]
pub(super) struct Handshake {
    /// Empty when the head comes in one piece; `head.capacity() <= HEAD_BYTES_MAX`.
    head: Vec<u8>,
    origins: Arc<Origins>,
}

impl Handshake {
    pub(super) const fn new(origins: Arc<Origins>) -> Self {
        Self {
            head: Vec::new(),
            origins,
        }
    }

    pub(super) const fn memory_bytes(&self) -> usize {
        self.head.capacity()
    }

    /// Appends the answer and returns how many of the bytes belong to the head; `None`: more are needed.
    pub(super) fn handle_bytes(
        &mut self,
        socket: &[u8],
        answer: &mut Vec<u8>,
    ) -> Result<Option<usize>, WebSocketError> {
        let Some(end) = self.end_of_head(socket)? else {
            self.keep(socket);
            return Ok(None);
        };
        let head = if self.head.is_empty() {
            &socket[..end]
        } else {
            self.keep(&socket[..end]);
            &self.head
        };
        accept(head, &self.origins, answer)?;
        Ok(Some(end))
    }

    fn end_of_head(&self, socket: &[u8]) -> Result<Option<usize>, WebSocketError> {
        let mut last = self.head.last().copied();
        let mut line_is_empty = self.head.ends_with(b"\n") || self.head.ends_with(b"\n\r");
        for (at, &byte) in socket.iter().enumerate() {
            if self.head.len() + at == HEAD_BYTES_MAX {
                return Err(WebSocketError::HeadTooLarge);
            }
            match (last, byte) {
                (None, byte) if !byte.is_ascii_alphabetic() => return Err(WebSocketError::Request),
                (_, b'\n') if line_is_empty => return Ok(Some(at + 1)),
                (_, b'\n') => line_is_empty = true,
                (Some(b'\r'), _) => return Err(WebSocketError::Request),
                (_, b'\r') => {}
                (_, b'\t' | b' '..=b'~' | 0x80..) => line_is_empty = false,
                _ => return Err(WebSocketError::Request),
            }
            last = Some(byte);
        }
        Ok(None)
    }

    /// The buffer doubles, but not beyond what a head may have.
    fn keep(&mut self, bytes: &[u8]) {
        let needed = self.head.len() + bytes.len();
        if needed > self.head.capacity() {
            let capacity = needed.next_power_of_two().min(HEAD_BYTES_MAX);
            self.head.reserve_exact(capacity - self.head.len());
        }
        self.head.extend_from_slice(bytes);
    }
}

fn accept(head: &[u8], origins: &Origins, answer: &mut Vec<u8>) -> Result<(), WebSocketError> {
    let mut headers = [EMPTY_HEADER; HEADERS_MAX];
    let mut request = Request::new(&mut headers);
    match request.parse(head) {
        Ok(Status::Complete(bytes)) if bytes == head.len() => {}
        Err(httparse::Error::TooManyHeaders) => return Err(WebSocketError::HeadTooLarge),
        Err(httparse::Error::Version) => return Err(WebSocketError::HttpVersion),
        Ok(_) | Err(_) => return Err(WebSocketError::Request),
    }
    if request.method != Some("GET") {
        return Err(WebSocketError::Method);
    }
    if request.version != Some(1) {
        return Err(WebSocketError::HttpVersion);
    }
    let headers = Headers(request.headers);
    // a body would be taken for frames
    let has_body = headers.all("Content-Length").any(|bytes| bytes != b"0")
        || headers.all("Transfer-Encoding").next().is_some();
    if has_body {
        return Err(WebSocketError::Body);
    }
    if !headers.lists("Upgrade", "websocket") || !headers.lists("Connection", "Upgrade") {
        return Err(WebSocketError::NoUpgrade);
    }
    headers.one("Host")?;
    if headers.one("Sec-WebSocket-Version")? != b"13" {
        return Err(WebSocketError::Version);
    }
    let key = headers.one("Sec-WebSocket-Key")?;
    if !is_key(key) {
        return Err(WebSocketError::Key);
    }
    let mut from = headers.all("Origin");
    let origin = from.next();
    if from.next().is_some() {
        return Err(WebSocketError::HeaderCount);
    }
    if !origins.accept(origin) {
        return Err(WebSocketError::Origin);
    }
    let subprotocol = SUBPROTOCOLS
        .iter()
        .find(|name| headers.offers_subprotocol(name))
        .ok_or(WebSocketError::Subprotocol)?;
    put(
        answer,
        format_args!(
            "HTTP/1.1 101 Switching Protocols\r\n\
             Upgrade: websocket\r\n\
             Connection: Upgrade\r\n\
             Sec-WebSocket-Accept: {}\r\n\
             Sec-WebSocket-Protocol: {subprotocol}\r\n\r\n",
            derive_accept_key(key)
        ),
    );
    Ok(())
}

/// The HTTP response for an error; nothing follows it.
pub(super) fn refuse(error: WebSocketError, answer: &mut Vec<u8>) {
    let status = match error.http_status() {
        Some(403) => "403 Forbidden",
        // a 405 names the methods there are, a 426 what to upgrade to (RFC 9110 15.5.6, 15.5.22; RFC 6455 4.4)
        Some(405) => "405 Method Not Allowed\r\nAllow: GET",
        Some(426) => "426 Upgrade Required\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13",
        Some(431) => "431 Request Header Fields Too Large",
        Some(505) => "505 HTTP Version Not Supported",
        _ => "400 Bad Request",
    };
    let body = format!("{error}\n");
    put(
        answer,
        format_args!(
            "HTTP/1.1 {status}\r\n\
             Connection: close\r\n\
             Content-Type: text/plain; charset=utf-8\r\n\
             Content-Length: {}\r\n\r\n\
             {body}",
            body.len()
        ),
    );
}

fn put(answer: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    answer
        .write_fmt(text)
        .expect("writing to a Vec does not fail");
}

struct Headers<'a>(&'a [httparse::Header<'a>]);

impl<'a> Headers<'a> {
    fn all(&self, name: &'static str) -> impl Iterator<Item = &'a [u8]> {
        let with_name =
            move |header: &&httparse::Header<'a>| header.name.eq_ignore_ascii_case(name);
        self.0.iter().filter(with_name).map(|header| header.value)
    }

    fn one(&self, name: &'static str) -> Result<&'a [u8], WebSocketError> {
        let mut all = self.all(name);
        match (all.next(), all.next()) {
            (Some(value), None) => Ok(value),
            _ => Err(WebSocketError::HeaderCount),
        }
    }

    /// A list may go on in further headers of its name (RFC 9110 5.6.1).
    fn elements(&self, name: &'static str) -> impl Iterator<Item = &'a [u8]> {
        self.all(name)
            .flat_map(|value| value.split(|&byte| byte == b','))
            .map(<[u8]>::trim_ascii)
    }

    fn lists(&self, name: &'static str, token: &str) -> bool {
        self.elements(name)
            .any(|element| element.eq_ignore_ascii_case(token.as_bytes()))
    }

    /// Their case matters.
    fn offers_subprotocol(&self, subprotocol: &str) -> bool {
        self.elements("Sec-WebSocket-Protocol")
            .any(|element| element == subprotocol.as_bytes())
    }
}

/// Base64 of 16 bytes. Their last four bits are padding, which decoders ignore; so does this.
fn is_key(key: &[u8]) -> bool {
    key.len() == 24
        && key.strip_suffix(b"==").is_some_and(|digits| {
            digits
                .iter()
                .all(|&digit| digit.is_ascii_alphanumeric() || matches!(digit, b'+' | b'/'))
        })
}
