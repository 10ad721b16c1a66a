// SPDX-License-Identifier: Apache-2.0
//! What must hold for any bytes of a socket, however they are cut; the fuzz target and ordinary tests feed it.

use std::io::Write;
use std::sync::{Arc, OnceLock};

use rustls::crypto::ring;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig};

use crate::proxy;
use crate::tls::{Terms, Tls};
use crate::websocket::{HEAD_BYTES_MAX, Origins, WebSocket, WebSocketError};

#[cfg(test)]
mod tests;

/// A request that is accepted.
pub(crate) const REQUEST: &[u8] = b"GET /mqtt HTTP/1.1\r\n\
    Host: broker.example\r\n\
    Upgrade: websocket\r\n\
    Connection: keep-alive, Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Protocol: mqtt\r\n\
    Sec-WebSocket-Version: 13\r\n\r\n";

/// What the first byte chooses.
#[derive(Clone, Copy)]
enum Subject {
    /// The beginning of a connection that should have a PROXY header.
    Proxy,
    /// A connection to a WebSocket listener.
    Request,
    /// The same behind an accepted request.
    Frames,
    /// Commands to a client that keeps to the rules.
    Client,
    /// A connection to a TLS listener.
    Hello,
    /// What a TLS client sends, with some of it changed on the way.
    Records,
}

const SUBJECTS: [Subject; 6] = [
    Subject::Proxy,
    Subject::Request,
    Subject::Frames,
    Subject::Client,
    Subject::Hello,
    Subject::Records,
];

/// Bytes to begin with: what the tables of the unit tests have, behind the two bytes that choose subject and cuts.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    let mut add =
        |subject: Subject, bytes: &[u8]| seeds.push([&[subject as u8, 3], bytes].concat());
    for bytes in [
        &b"PROXY UNKNOWN\r\nrest"[..],
        b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 1883\r\nrest",
        b"PROXY TCP6 2001:db8::1 ::ffff:192.0.2.2 56324 1883\r\nrest",
        b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0rest",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc0\0\x02\x02\xdc\x04\x07\x5brest",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x13\xc0\0\x02\x01\xc0\0\x02\x02\xdc\x04\x07\x5b\x03\0\x04\0\0\0\0rest",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x14\xc0\0\x02\x01\xc0\0\x02\x02\xdc\x04\x07\x5b\x01\0\x01h\x04\0\x01\0rest",
    ] {
        add(Subject::Proxy, bytes);
    }
    add(
        Subject::Request,
        &[REQUEST, &client_frame(0x82, b"\xc0\0", [1, 2, 3, 4])].concat(),
    );
    add(Subject::Request, b"POST / HTTP/1.1\r\nHost: a\r\n\r\n");
    add(Subject::Request, b"GET / HTTP/1.1\nhost: a\n\n");
    for frames in [
        &[(0x82, &b"\xc0\0"[..])][..],
        &[(0x02, b"\x30\x05"), (0x89, b"ping"), (0x80, b"\0\x01ta")],
        &[
            (0x89, b"1"),
            (0x89, b"2"),
            (0x8a, b"3"),
            (0x88, b"\x03\xe8bye"),
        ],
        &[(0x81, b"text")],
        &[(0x82, &[0; 300])],
        &[(0x88, b"\x03")],
    ] {
        let frames = frames
            .iter()
            .map(|(first, payload)| client_frame(*first, payload, [9, 0, 200, 7]));
        add(Subject::Frames, &frames.collect::<Vec<_>>().concat());
    }
    add(Subject::Client, b"\0\x01\x02\x03\x04\x05\x06\x07\x08\x09");
    let mut hello = Vec::new();
    // memory takes everything
    let _ = tls_client().write_tls(&mut hello);
    add(Subject::Hello, &hello);
    add(Subject::Hello, b"\x15\x03\x01\0\x02\x02\x28");
    add(Subject::Hello, b"\x10\x0e\0\x04MQTT\x04\x02\0\x3c\0\x02id");
    for at in [0, 5, 40, 120, 200] {
        add(Subject::Records, &[at, 1, at, 0x80]);
    }
    seeds
}

/// Reads the first byte as a subject, the second as how the others are cut.
///
/// # Panics
/// When a property does not hold.
pub fn check(data: &[u8]) {
    let [choice, cuts, bytes @ ..] = data else {
        return;
    };
    match SUBJECTS[usize::from(*choice) % SUBJECTS.len()] {
        Subject::Proxy => check_proxy(bytes),
        Subject::Request => drop(check_web_socket(bytes, *cuts)),
        Subject::Frames => drop(check_web_socket(&[REQUEST, bytes].concat(), *cuts)),
        Subject::Client => check_client(bytes, *cuts),
        Subject::Hello => check_tls(bytes, *cuts),
        Subject::Records => check_records(bytes, *cuts),
    }
}

/// Calls for each piece of `bytes`: byte for byte, or of up to as many as `cuts` says.
fn for_each_piece(bytes: &[u8], cuts: u8, mut handle: impl FnMut(&[u8]) -> bool) {
    let mut rest = bytes;
    let mut random = u32::from(cuts);
    while !rest.is_empty() {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let piece_bytes = 1 + (random >> 16) as usize % usize::from(cuts).max(1);
        let (piece, behind) = rest.split_at(piece_bytes.min(rest.len()));
        rest = behind;
        if !handle(piece) {
            return;
        }
    }
}

/// `None` until the last byte of the header is there, the same from then on; what is refused stays refused.
fn check_proxy(bytes: &[u8]) {
    let whole = proxy::parse(bytes);
    let header_bytes = whole.map_or(None, |header| Some(header?.bytes));
    let mut refused = false;
    let near_end = header_bytes.map_or(0..0, |end| end.saturating_sub(2)..end + 2);
    for part in (0..300).chain(near_end).filter_map(|end| bytes.get(..end)) {
        let found = proxy::parse(part);
        match (whole, header_bytes) {
            (Ok(_), Some(header_bytes)) if part.len() >= header_bytes => assert_eq!(found, whole),
            (Ok(_), _) => assert_eq!(found, Ok(None), "{} bytes", part.len()),
            (Err(_), _) => assert!(!matches!(found, Ok(Some(_)))),
        }
        assert!(!refused || found.is_err());
        refused = found.is_err();
    }
    assert!(header_bytes <= Some(bytes.len().min(proxy::HEADER_BYTES_MAX)));
    assert!(whole != Ok(None) || bytes.len() < proxy::HEADER_BYTES_MAX);
}

/// A certificate for `localhost`, made once, and who trusts it.
fn tls_ends() -> &'static (Terms, Arc<ClientConfig>) {
    static ENDS: OnceLock<(Terms, Arc<ClientConfig>)> = OnceLock::new();
    ENDS.get_or_init(|| {
        let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a name");
        let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).expect("a key");
        let mut roots = RootCertStore::empty();
        roots.add(own.cert.der().clone()).expect("a certificate");
        let provider = Arc::new(ring::default_provider());
        let server = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![own.cert.der().clone()], key)
            .expect("a certificate and its key");
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let terms = Terms {
            config: Arc::new(server),
            clients: None,
        };
        (terms, Arc::new(client))
    })
}

fn tls_client() -> ClientConnection {
    let name = ServerName::try_from("localhost").expect("a name");
    ClientConnection::new(tls_ends().1.clone(), name).expect("a configuration that serves")
}

/// What TLS may keep of a peer: a handshake message, and the read that it came with.
const TLS_KEPT_BYTES_MAX: usize = 2 * (64 + 64) * 1024;

/// Nobody gets through with bytes of his own, and what they cost is bounded; after an error nothing more is said.
fn check_tls(bytes: &[u8], cuts: u8) {
    let mut server = Tls::new(&tls_ends().0).expect("a configuration that serves");
    let (mut plain, mut answer) = (Vec::new(), Vec::new());
    let mut failed = false;
    for_each_piece(bytes, cuts, |piece| {
        failed = server
            .handle_bytes(&mut piece.to_vec(), &mut plain, &mut answer, 0)
            .is_err();
        assert!(server.memory_bytes() <= TLS_KEPT_BYTES_MAX);
        !failed
    });
    assert!(plain.is_empty() && server.is_handshaking());
    let sent = answer.len();
    server.close(&mut answer);
    assert_eq!(answer.len(), sent);
}

/// A handshake and a message, of which `changes` turns some bytes: (where, by what). What arrives is the beginning of what
/// was sent, or nothing.
fn check_records(changes: &[u8], cuts: u8) {
    const SENT: &[u8] = b"a message that is to arrive";
    let mut server = Tls::new(&tls_ends().0).expect("a configuration that serves");
    let mut client = tls_client();
    client.writer().write_all(SENT).expect("memory");
    let mut changes = changes.chunks_exact(2);
    let (mut plain, mut failed) = (Vec::new(), false);
    let mut changed = false;
    while !failed && client.wants_write() {
        let mut sent = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut sent).expect("memory");
        }
        if let Some(&[at, by]) = changes.next()
            && let Some(byte) = sent.get_mut(usize::from(at))
        {
            changed |= by != 0;
            *byte ^= by;
        }
        let mut answer = Vec::new();
        for_each_piece(&sent, cuts, |piece| {
            failed = server
                .handle_bytes(&mut piece.to_vec(), &mut plain, &mut answer, 0)
                .is_err();
            !failed
        });
        let mut heard = answer.as_slice();
        while !heard.is_empty() {
            client.read_tls(&mut heard).expect("memory");
            if client.process_new_packets().is_err() {
                return;
            }
        }
    }
    assert!(SENT.starts_with(&plain));
    assert!(changed || plain == SENT);
}

/// What a connection came to.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    result: Result<(), WebSocketError>,
    mqtt: Vec<u8>,
    /// The HTTP response.
    response: Vec<u8>,
    /// Of what was sent behind it: all but pongs, and the last pong.
    frames: Vec<(u8, Vec<u8>)>,
    pong: Option<Vec<u8>>,
    is_open: bool,
    is_ended: bool,
}

/// All pieces give what the whole gives.
fn check_web_socket(bytes: &[u8], cuts: u8) -> Outcome {
    let mut whole = Connection::new();
    if !bytes.is_empty() {
        whole.handle_bytes(bytes);
    }
    let mut pieces = Connection::new();
    for_each_piece(bytes, cuts, |piece| pieces.handle_bytes(piece));
    let whole = whole.outcome(bytes.len());
    assert_eq!(pieces.outcome(bytes.len()), whole);
    whole
}

struct Connection {
    socket: WebSocket,
    result: Result<(), WebSocketError>,
    mqtt: Vec<u8>,
    answer: Vec<u8>,
}

impl Connection {
    fn new() -> Self {
        Self {
            socket: WebSocket::new(Arc::new(Origins::default())),
            result: Ok(()),
            mqtt: Vec::new(),
            answer: Vec::new(),
        }
    }

    /// False: no more is to be handed in.
    fn handle_bytes(&mut self, bytes: &[u8]) -> bool {
        self.result =
            self.socket
                .handle_bytes(&mut bytes.to_vec(), &mut self.mqtt, &mut self.answer);
        let is_waiting_for_request = self.answer.is_empty();
        let memory_bytes_max = if is_waiting_for_request {
            HEAD_BYTES_MAX
        } else {
            125
        };
        assert!(self.socket.memory_bytes() <= memory_bytes_max);
        self.result.is_ok()
    }

    fn outcome(mut self, bytes: usize) -> Outcome {
        // an error stays, the end stays, and neither says anything more
        if self.result.is_err() || self.socket.is_ended() {
            let before = (self.mqtt.clone(), self.answer.clone());
            let again =
                self.socket
                    .handle_bytes(&mut [0x82, 0x80], &mut self.mqtt, &mut self.answer);
            assert_eq!(again, self.result);
            self.socket.close(1001, &mut self.answer);
            assert_eq!((&self.mqtt, &self.answer), (&before.0, &before.1));
            assert!(!self.socket.is_open());
            assert_eq!(self.socket.memory_bytes(), 0);
        }
        // nobody gets more out than was put in, but for one response
        assert!(self.mqtt.len() <= bytes);
        assert!(self.answer.len() <= 512 + bytes);
        let head_end = self.answer.windows(4).position(|end| end == b"\r\n\r\n");
        let frames_at = match head_end {
            Some(end) if self.answer.starts_with(b"HTTP/1.1 101 ") => end + 4,
            _ => self.answer.len(),
        };
        let (response, sent) = self.answer.split_at(frames_at);
        let (pongs, frames): (Vec<_>, Vec<_>) = server_frames(sent)
            .into_iter()
            .partition(|(first, _)| *first == 0x8a);
        Outcome {
            result: self.result,
            mqtt: self.mqtt,
            response: response.to_vec(),
            frames,
            pong: pongs.into_iter().next_back().map(|(_, payload)| payload),
            is_open: self.socket.is_open(),
            is_ended: self.socket.is_ended(),
        }
    }
}

/// Splits short frames without a mask into their first byte and payload.
pub(crate) fn server_frames(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut frames = Vec::new();
    while let [first, payload_bytes, rest @ ..] = bytes {
        assert!(*payload_bytes <= 125);
        let (payload, behind) = rest.split_at(usize::from(*payload_bytes));
        frames.push((*first, payload.to_vec()));
        bytes = behind;
    }
    assert!(bytes.is_empty(), "half a frame");
    frames
}

/// A frame as a client sends it.
pub(crate) fn client_frame(first: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        bytes @ 0..=125 => frame.push(0x80 | bytes as u8),
        bytes @ 126..=0xffff => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(bytes as u16).to_be_bytes());
        }
        bytes => {
            frame.push(0x80 | 127);
            frame.extend_from_slice(&(bytes as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&mask);
    let masked = payload
        .iter()
        .enumerate()
        .map(|(i, byte)| byte ^ mask[i % 4]);
    frame.extend(masked);
    frame
}

/// What a client sends in frames of any kind and size arrives.
fn check_client(commands: &[u8], cuts: u8) {
    let mut sent = REQUEST.to_vec();
    let (mut mqtt, mut pong) = (Vec::new(), None);
    let mut in_message = false;
    let mut is_ended = false;
    for (i, &command) in commands.iter().enumerate() {
        let mask = (i as u32).wrapping_mul(0x9e37_79b9).to_be_bytes();
        let payload_bytes = match command >> 4 {
            small @ 0..12 => usize::from(small),
            12 => 125,
            13 => 126,
            14 => 0xffff,
            _ => 0x1_0000,
        };
        // one large frame is enough, and keeps a run short
        let payload_bytes = if i == 0 {
            payload_bytes
        } else {
            payload_bytes.min(300)
        };
        let payload: Vec<u8> = (0..payload_bytes).map(|n| (n + i) as u8).collect();
        let control = &payload[..payload.len().min(125)];
        match command & 0xf {
            0..10 => {
                let is_final = command & 1 == 0;
                let first = match (is_final, in_message) {
                    (true, true) => 0x80,
                    (true, false) => 0x82,
                    (false, true) => 0,
                    (false, false) => 2,
                };
                in_message = !is_final;
                sent.extend(client_frame(first, &payload, mask));
                mqtt.extend_from_slice(&payload);
            }
            10..13 => {
                sent.extend(client_frame(0x89, control, mask));
                pong = Some(control.to_vec());
            }
            13 | 14 => sent.extend(client_frame(0x8a, control, mask)),
            _ => {
                sent.extend(client_frame(0x88, &1001_u16.to_be_bytes(), mask));
                is_ended = true;
                break;
            }
        }
    }
    let outcome = check_web_socket(&sent, cuts);
    assert_eq!(outcome.result, Ok(()));
    assert!(outcome.mqtt == mqtt, "MQTT bytes arrive as they were sent");
    assert_eq!(outcome.pong, pong);
    assert_eq!(outcome.is_ended, is_ended);
    assert_eq!(outcome.is_open, !is_ended);
    let close = (0x88, 1001_u16.to_be_bytes().to_vec());
    assert_eq!(
        outcome.frames,
        if is_ended { vec![close] } else { Vec::new() }
    );
}
