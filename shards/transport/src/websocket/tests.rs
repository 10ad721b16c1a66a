// SPDX-License-Identifier: Apache-2.0

use super::frame::write_binary_header;
use super::*;
use crate::fuzzing::{REQUEST, client_frame, server_frames};

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// A connection and everything that came out of it.
struct Client {
    socket: WebSocket,
    mqtt: Vec<u8>,
    answer: Vec<u8>,
}

impl Client {
    fn new() -> Self {
        Self::to(Origins::default())
    }

    fn to(origins: Origins) -> Self {
        Self {
            socket: WebSocket::new(Arc::new(origins)),
            mqtt: Vec::new(),
            answer: Vec::new(),
        }
    }

    /// Behind the upgrade.
    fn open() -> Self {
        let mut client = Self::new();
        client.send(REQUEST).unwrap();
        assert!(client.socket.is_open());
        client.answer.clear();
        client
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), WebSocketError> {
        self.socket
            .handle_bytes(&mut bytes.to_vec(), &mut self.mqtt, &mut self.answer)
    }

    fn answer(&self) -> &str {
        std::str::from_utf8(&self.answer).unwrap()
    }

    /// The Close frame that is all of the answer.
    fn close_code(&self) -> u16 {
        match &server_frames(&self.answer)[..] {
            [(0x88, code)] => u16::from_be_bytes(code[..].try_into().unwrap()),
            other => panic!("{other:?}"),
        }
    }
}

/// [`REQUEST`] with something else in it.
fn request_with(line: &str, instead: &str) -> Vec<u8> {
    let request = std::str::from_utf8(REQUEST).unwrap();
    assert!(request.contains(line), "{line:?}");
    request.replacen(line, instead, 1).into_bytes()
}

fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    client_frame(first, payload, MASK)
}

// The upgrade.

#[test]
fn the_request_is_answered_with_its_key() {
    let mut client = Client::new();
    client.send(REQUEST).unwrap();
    assert_eq!(
        client.answer(),
        "HTTP/1.1 101 Switching Protocols\r\n\
         Upgrade: websocket\r\n\
         Connection: Upgrade\r\n\
         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\
         Sec-WebSocket-Protocol: mqtt\r\n\r\n"
    );
    assert!(client.socket.is_open());
}

#[test]
fn requests_as_they_really_are_written_are_accepted() {
    for (line, instead) in [
        ("GET /mqtt ", "GET / "),
        ("GET /mqtt ", "GET /a/b?c=d&e=%20 "),
        ("Upgrade: websocket", "upgrade: WebSocket"),
        ("Upgrade: websocket", "Upgrade: h2c, websocket"),
        ("keep-alive, Upgrade", "upgrade"),
        ("keep-alive, Upgrade", "keep-alive\r\nConnection: Upgrade"),
        ("Sec-WebSocket-Version: 13", "SEC-WEBSOCKET-VERSION:13 "),
        (
            "Version: 13",
            "Version: 13\r\nSec-WebSocket-Extensions: permessage-deflate",
        ),
        ("Version: 13", "Version: 13\r\nOrigin: https://example.org"),
        ("Version: 13", "Version: 13\r\nContent-Length: 0"),
        ("Version: 13", "Version: 13\r\nCookie: a=é; b=\"c\""),
    ] {
        let mut client = Client::new();
        assert_eq!(
            client.send(&request_with(line, instead)),
            Ok(()),
            "{instead:?}"
        );
        assert!(client.socket.is_open());
        assert!(!client.answer().contains("Extensions"));
    }
}

// [MQTT-6.0.0-3] [MQTT-6.0.0-4] [MQTT5-6.0.0-3] [MQTT5-6.0.0-4]
#[test]
fn mqtt_is_chosen_wherever_it_is_offered() {
    for (offered, chosen) in [
        ("mqtt", "mqtt"),
        ("mqttv3.1, mqtt", "mqtt"),
        ("chat,mqtt,\tother", "mqtt"),
        ("chat\r\nSec-WebSocket-Protocol: mqtt", "mqtt"),
        ("mqttv3.1", "mqttv3.1"),
    ] {
        let mut client = Client::new();
        client
            .send(&request_with(
                "Protocol: mqtt",
                &format!("Protocol: {offered}"),
            ))
            .unwrap();
        let line = format!("\r\nSec-WebSocket-Protocol: {chosen}\r\n");
        assert!(client.answer().contains(&line), "{offered:?}");
    }
}

// without an offer of `mqtt`: [MQTT-6.0.0-3] [MQTT5-6.0.0-3]
#[test]
fn refused_requests_say_why() {
    use WebSocketError::*;
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
    let protocol = "Sec-WebSocket-Protocol: mqtt\r\n";
    let version = "Sec-WebSocket-Version: 13\r\n";
    let rows: [(&str, &str, u16, WebSocketError); 36] = [
        ("GET", "POST", 405, Method),
        ("GET", "HEAD", 405, Method),
        ("GET", "get", 405, Method),
        ("HTTP/1.1", "HTTP/1.0", 505, HttpVersion),
        ("HTTP/1.1", "HTTP/2.0", 505, HttpVersion),
        ("HTTP/1.1", "", 505, HttpVersion),
        ("GET /mqtt ", "GET ", 400, Request),
        ("GET", "G(T", 400, Request),
        ("Host:", "Ho st:", 400, Request),
        ("Host:", "Host", 400, Request),
        ("Host: broker.example\r\n", "", 400, HeaderCount),
        ("Host: b", "Host: a\r\nHost: b", 400, HeaderCount),
        ("Upgrade: websocket\r\n", "", 426, NoUpgrade),
        ("Upgrade: websocket\r\n", "Upgrade: h2c\r\n", 426, NoUpgrade),
        ("keep-alive, Upgrade", "keep-alive", 426, NoUpgrade),
        ("Connection: keep-alive, Upgrade\r\n", "", 426, NoUpgrade),
        (version, "", 400, HeaderCount),
        (
            version,
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Version: 13\r\n",
            400,
            HeaderCount,
        ),
        (version, "Sec-WebSocket-Version: 8\r\n", 426, Version),
        (version, "Sec-WebSocket-Version: 13, 8\r\n", 426, Version),
        (version, "Sec-WebSocket-Version: 013\r\n", 426, Version),
        (key, "X: y", 400, HeaderCount),
        (key, "Sec-WebSocket-Key:", 400, Key),
        (key, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=", 400, Key),
        (key, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZTIz", 400, Key),
        (key, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j*Q==", 400, Key),
        (
            key,
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==, a",
            400,
            Key,
        ),
        (protocol, "", 400, Subprotocol),
        (
            protocol,
            "Sec-WebSocket-Protocol: chat\r\n",
            400,
            Subprotocol,
        ),
        (
            protocol,
            "Sec-WebSocket-Protocol: MQTT\r\n",
            400,
            Subprotocol,
        ),
        (
            protocol,
            "Sec-WebSocket-Protocol: mqttx\r\n",
            400,
            Subprotocol,
        ),
        (
            version,
            "Sec-WebSocket-Version: 13\r\nContent-Length: 3\r\n",
            400,
            Body,
        ),
        (
            version,
            "Sec-WebSocket-Version: 13\r\nTransfer-Encoding: chunked\r\n",
            400,
            Body,
        ),
        (
            version,
            "Sec-WebSocket-Version: 13\r\nOrigin: http://evil.example\r\n",
            403,
            Origin,
        ),
        (
            version,
            "Sec-WebSocket-Version: 13\r\nOrigin: null\r\n",
            403,
            Origin,
        ),
        (
            version,
            "Sec-WebSocket-Version: 13\r\nOrigin: http://[::1]\r\nOrigin: http://[::1]\r\n",
            400,
            HeaderCount,
        ),
    ];
    for (line, instead, status, error) in rows {
        let mut client = Client::to(Origins::new([], true).unwrap());
        assert_eq!(
            client.send(&request_with(line, instead)),
            Err(error),
            "{instead:?}"
        );
        assert!(!client.socket.is_open());
        let (head, body) = client.answer().split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        assert!(head.contains("\r\nConnection: close"));
        assert!(head.contains(&format!("\r\nContent-Length: {}", body.len())));
        assert_eq!(body, format!("{error}\n"));
    }
}

#[test]
fn another_version_is_told_which_there_is() {
    let mut client = Client::new();
    let request = request_with("Version: 13", "Version: 8");
    assert_eq!(client.send(&request), Err(WebSocketError::Version));
    assert!(
        client
            .answer()
            .contains("\r\nSec-WebSocket-Version: 13\r\n")
    );
    assert!(client.answer().contains("\r\nUpgrade: websocket\r\n"));
}

#[test]
fn another_method_is_told_which_there_is() {
    let mut client = Client::new();
    let request = request_with("GET", "PUT");
    assert_eq!(client.send(&request), Err(WebSocketError::Method));
    assert!(client.answer().contains("\r\nAllow: GET\r\n"));
}

#[test]
fn other_protocols_are_refused_at_their_first_byte() {
    // TLS, MQTT, an empty line, a frame
    for first in [b"\x16", b"\x10", b"\n", b"\x82"] {
        let mut client = Client::new();
        assert_eq!(client.send(first), Err(WebSocketError::Request));
        assert!(client.answer().starts_with("HTTP/1.1 400 "));
    }
}

#[test]
fn a_head_of_8192_bytes_is_accepted_and_a_longer_one_refused_at_once() {
    let padding = HEAD_BYTES_MAX - REQUEST.len() - "X: \r\n".len();
    let fits = request_with("Host", &format!("X: {}\r\nHost", "x".repeat(padding)));
    assert_eq!(fits.len(), HEAD_BYTES_MAX);
    let mut client = Client::new();
    assert_eq!(client.send(&fits), Ok(()));
    assert!(client.socket.is_open());

    let endless = [b"GET / HTTP/1.1\r\nX: ", &[b'x'; HEAD_BYTES_MAX][..]].concat();
    for piece_bytes in [1, 100, HEAD_BYTES_MAX] {
        let mut client = Client::new();
        let mut sent = 0;
        let refused = endless.chunks(piece_bytes).find_map(|piece| {
            sent += piece.len();
            client.send(piece).err()
        });
        assert_eq!(refused, Some(WebSocketError::HeadTooLarge));
        assert_eq!(
            sent,
            (HEAD_BYTES_MAX + 1)
                .next_multiple_of(piece_bytes)
                .min(endless.len())
        );
        assert!(client.answer().starts_with("HTTP/1.1 431 "));
    }
}

#[test]
fn more_than_64_headers_are_refused() {
    // there are six others
    for (more, expected) in [(58, Ok(())), (59, Err(WebSocketError::HeadTooLarge))] {
        let mut client = Client::new();
        let request = request_with("Host", &format!("{}Host", "X: y\r\n".repeat(more)));
        assert_eq!(client.send(&request), expected);
    }
}

#[test]
fn the_head_takes_no_more_memory_than_came_and_none_behind_the_upgrade() {
    let mut client = Client::new();
    let padded = request_with("Host", &format!("X: {}\r\nHost", "x".repeat(5000)));
    for (sent, byte) in padded.iter().enumerate() {
        assert!(client.socket.memory_bytes() <= (2 * sent).min(HEAD_BYTES_MAX));
        client.send(&[*byte]).unwrap();
    }
    assert!(client.socket.is_open());
    assert_eq!(client.socket.memory_bytes(), 0);
}

#[test]
fn frames_may_follow_the_request_in_the_same_read() {
    let mut client = Client::new();
    let bytes = [REQUEST, &frame(0x82, b"\xc0\0"), &frame(0x82, b"\xe0\0")].concat();
    client.send(&bytes).unwrap();
    assert_eq!(client.mqtt, b"\xc0\0\xe0\0");
}

#[test]
fn a_connection_may_be_cut_at_every_byte() {
    let frames = [
        frame(0x02, b"\x30\x05"),
        frame(0x89, b"ping"),
        frame(0x80, &[7; 200]),
        frame(0x82, b""),
        frame(0x88, b"\x03\xe8bye"),
    ];
    let bytes = [REQUEST, &frames.concat()].concat();
    let mut whole = Client::new();
    whole.send(&bytes).unwrap();
    assert_eq!(whole.mqtt, [b"\x30\x05", &[7; 200][..]].concat());
    assert!(whole.socket.is_ended());
    for cut in 0..=bytes.len() {
        let mut client = Client::new();
        client.send(&bytes[..cut]).unwrap();
        client.send(&bytes[cut..]).unwrap();
        assert_eq!(client.mqtt, whole.mqtt, "cut at {cut}");
        assert_eq!(client.answer, whole.answer, "cut at {cut}");
        assert!(client.socket.is_ended());
    }
}

// Frames. The examples of RFC 6455 5.7 are all there.

#[test]
fn the_masked_hello_of_the_rfc_is_read() {
    let mut client = Client::open();
    client
        .send(b"\x82\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58")
        .unwrap();
    assert_eq!(client.mqtt, b"Hello");
}

// [MQTT-6.0.0-1] [MQTT5-6.0.0-1]
#[test]
fn text_is_refused_as_data_that_is_not_accepted() {
    for text in [
        &b"\x81\x05\x48\x65\x6c\x6c\x6f"[..],
        b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58",
        b"\x01\x03\x48\x65\x6c\x80\x02\x6c\x6f",
    ] {
        let mut client = Client::open();
        assert_eq!(client.send(text), Err(WebSocketError::Text));
        assert_eq!(client.close_code(), 1003);
        assert_eq!(client.mqtt, b"");
    }
}

#[test]
fn the_unmasked_ping_of_the_rfc_is_refused_from_a_client() {
    let mut client = Client::open();
    assert_eq!(
        client.send(b"\x89\x05\x48\x65\x6c\x6c\x6f"),
        Err(WebSocketError::Unmasked)
    );
    assert_eq!(client.close_code(), 1002);
}

#[test]
fn the_masked_pong_of_the_rfc_is_not_answered() {
    let mut client = Client::open();
    client
        .send(b"\x8a\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58")
        .unwrap();
    assert_eq!(client.answer, b"");
    assert_eq!(client.mqtt, b"");
}

#[test]
fn the_ping_of_the_rfc_is_answered_with_its_payload() {
    let mut client = Client::open();
    client.send(&frame(0x89, b"Hello")).unwrap();
    assert_eq!(client.answer, b"\x8a\x05\x48\x65\x6c\x6c\x6f");
}

// all of them are of binary frames: [MQTT-6.0.0-1] [MQTT5-6.0.0-1]
#[test]
fn the_headers_of_256_bytes_and_64_kib_are_those_of_the_rfc() {
    let client = Client::open();
    for (payload_bytes, header) in [
        (0, &b"\x82\x00"[..]),
        (125, b"\x82\x7d"),
        (126, b"\x82\x7e\x00\x7e"),
        (256, b"\x82\x7e\x01\x00"),
        (65_535, b"\x82\x7e\xff\xff"),
        (65_536, b"\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
    ] {
        let mut into = Vec::new();
        client.socket.header(payload_bytes, &mut into);
        assert_eq!(into, header);
    }
}

#[test]
fn no_header_is_longer_than_it_may_be() {
    let mut into = Vec::new();
    write_binary_header(usize::MAX, &mut into);
    assert_eq!(into.len(), HEADER_BYTES_MAX);
}

// [MQTT-6.0.0-2] [MQTT5-6.0.0-2]
#[test]
fn packets_may_be_cut_by_frames_and_frames_may_hold_several() {
    let mut client = Client::open();
    let packets = b"\xc0\0\x30\x05\0\x01tab\xc0\0";
    for frames in [
        frame(0x82, packets),
        [frame(0x82, &packets[..3]), frame(0x82, &packets[3..])].concat(),
        [
            frame(0x02, &packets[..1]),
            frame(0x00, &packets[1..9]),
            frame(0x80, &packets[9..]),
        ]
        .concat(),
    ] {
        client.mqtt.clear();
        client.send(&frames).unwrap();
        assert_eq!(client.mqtt, packets);
    }
}

#[test]
fn data_arrives_before_the_end_of_its_frame() {
    let mut client = Client::open();
    let bytes = frame(0x82, b"abcdefghij");
    client.send(&bytes[..6 + 3]).unwrap();
    assert_eq!(client.mqtt, b"abc");
    client.send(&bytes[6 + 3..6 + 9]).unwrap();
    assert_eq!(client.mqtt, b"abcdefghi");
}

#[test]
fn a_frame_may_announce_63_bits_and_costs_what_came() {
    let mut client = Client::open();
    client
        .send(b"\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff\0\0\0\0abc")
        .unwrap();
    assert_eq!(client.mqtt, b"abc");
    assert_eq!(client.socket.memory_bytes(), 0);
}

#[test]
fn data_is_unmasked_at_any_offset() {
    let payload: Vec<u8> = (0..100).collect();
    let bytes = frame(0x82, &payload);
    for first in 0..40 {
        for second in 0..20 {
            let mut client = Client::open();
            client.send(&bytes[..6 + first]).unwrap();
            client.send(&bytes[6 + first..6 + first + second]).unwrap();
            client.send(&bytes[6 + first + second..]).unwrap();
            assert_eq!(client.mqtt, payload, "cut at {first} and {second}");
        }
    }
}

#[test]
fn refused_frames_are_refused_at_the_byte_that_is_wrong() {
    use WebSocketError::*;
    let rows: [(&[u8], WebSocketError); 21] = [
        (b"\xc2", ReservedBits),
        (b"\xa2", ReservedBits),
        (b"\x92", ReservedBits),
        (b"\x83", Opcode),
        (b"\x87", Opcode),
        (b"\x8b", Opcode),
        (b"\x8f", Opcode),
        (b"\x00", Continuation),
        (b"\x80", Continuation),
        (b"\x02\x80\0\0\0\0\x82", Continuation),
        (b"\x02\x80\0\0\0\0\x02", Continuation),
        (b"\x02\x80\0\0\0\0\x80\x80\0\0\0\0\x80", Continuation),
        (b"\x08", FragmentedControl),
        (b"\x09", FragmentedControl),
        (b"\x0a", FragmentedControl),
        (b"\x82\x05", Unmasked),
        (b"\x89\xfe", ControlTooLong),
        (b"\x88\xff", ControlTooLong),
        (b"\x82\xfe\x00\x7d", Length),
        (b"\x82\xff\x00\x00\x00\x00\x00\x00\xff\xff", Length),
        (b"\x82\xff\x80\x00\x00\x00\x00\x00\x00\x00", Length),
    ];
    for (bytes, error) in rows {
        let (last, before) = bytes.split_last().unwrap();
        let mut client = Client::open();
        assert_eq!(client.send(before), Ok(()), "{bytes:02x?}");
        assert_eq!(client.send(&[*last]), Err(error), "{bytes:02x?}");
        assert_eq!(client.close_code(), 1002);
        assert!(!client.socket.is_open());
    }
}

#[test]
fn what_came_before_a_wrong_frame_is_passed_on() {
    let mut client = Client::open();
    let bytes = [frame(0x82, b"\xc0\0"), frame(0x89, b"x"), frame(0x81, b"")].concat();
    assert_eq!(client.send(&bytes), Err(WebSocketError::Text));
    assert_eq!(client.mqtt, b"\xc0\0");
    assert_eq!(client.answer, b"\x8a\x01x\x88\x02\x03\xeb");
}

#[test]
fn an_error_stays_and_is_told_once() {
    let mut client = Client::open();
    client.send(b"\x81").unwrap_err();
    client.answer.clear();
    assert_eq!(client.send(&frame(0x82, b"x")), Err(WebSocketError::Text));
    client.socket.close(1001, &mut client.answer);
    assert_eq!(client.answer, b"");
    assert_eq!(client.mqtt, b"");
}

#[test]
fn of_several_pings_in_one_read_the_last_is_answered() {
    let mut client = Client::open();
    let pings: Vec<u8> = (0..200).flat_map(|n| frame(0x89, &[n; 125])).collect();
    client.send(&pings).unwrap();
    assert_eq!(server_frames(&client.answer), [(0x8a, vec![199; 125])]);
}

#[test]
fn pings_in_several_reads_are_each_answered() {
    let mut client = Client::open();
    client.send(&frame(0x89, b"1")).unwrap();
    client.send(&frame(0x89, b"2")).unwrap();
    assert_eq!(client.answer, b"\x8a\x011\x8a\x012");
}

#[test]
fn a_pong_does_not_touch_what_else_is_to_be_sent() {
    let mut client = Client::open();
    client.answer.extend_from_slice(b"before");
    client
        .send(&[frame(0x89, b"1"), frame(0x89, b"22")].concat())
        .unwrap();
    assert_eq!(client.answer, b"before\x8a\x0222");
}

#[test]
fn control_frames_may_come_between_fragments() {
    let mut client = Client::open();
    let bytes = [
        frame(0x02, b"ab"),
        frame(0x89, b"?"),
        frame(0x8a, b""),
        frame(0x80, b"cd"),
    ];
    client.send(&bytes.concat()).unwrap();
    assert_eq!(client.mqtt, b"abcd");
    assert_eq!(client.answer, b"\x8a\x01?");
}

#[test]
fn of_a_cut_control_frame_no_more_than_its_payload_is_kept() {
    let mut client = Client::open();
    let bytes = frame(0x89, &[1; 125]);
    for byte in &bytes {
        client.send(&[*byte]).unwrap();
        assert!(client.socket.memory_bytes() <= 125);
    }
    assert_eq!(client.socket.memory_bytes(), 0);
    assert_eq!(server_frames(&client.answer), [(0x8a, vec![1; 125])]);
}

// Closing.

#[test]
fn close_is_answered_with_its_code() {
    for (payload, expected) in [
        (&b""[..], &b"\x88\x00"[..]),
        (b"\x03\xe8", b"\x88\x02\x03\xe8"),
        (b"\x03\xe9going away \xe2\x98\x83", b"\x88\x02\x03\xe9"),
        (b"\x13\x87", b"\x88\x02\x13\x87"),
    ] {
        let mut client = Client::open();
        client.send(&frame(0x88, payload)).unwrap();
        assert_eq!(client.answer, expected);
        assert!(client.socket.is_ended());
        assert!(!client.socket.is_open());
    }
}

#[test]
fn close_with_a_code_that_must_not_be_sent_is_refused() {
    for code in [
        0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535_u16,
    ] {
        let mut client = Client::open();
        let sent = client.send(&frame(0x88, &code.to_be_bytes()));
        assert_eq!(sent, Err(WebSocketError::CloseCode), "{code}");
        assert_eq!(client.close_code(), 1002);
    }
}

#[test]
fn close_with_half_a_code_is_refused() {
    let mut client = Client::open();
    assert_eq!(
        client.send(&frame(0x88, b"\x03")),
        Err(WebSocketError::CloseCode)
    );
    assert_eq!(client.close_code(), 1002);
}

#[test]
fn close_with_a_reason_that_is_not_utf8_is_refused() {
    let mut client = Client::open();
    let sent = client.send(&frame(0x88, b"\x03\xe8\xff"));
    assert_eq!(sent, Err(WebSocketError::CloseReason));
    assert_eq!(client.close_code(), 1007);
}

#[test]
fn what_follows_close_is_ignored() {
    let mut client = Client::open();
    let bytes = [frame(0x88, b""), frame(0x82, b"x"), b"\xff\xff".to_vec()].concat();
    client.send(&bytes).unwrap();
    client.send(b"\xff").unwrap();
    assert_eq!(client.mqtt, b"");
    assert_eq!(client.answer, b"\x88\x00");
}

#[test]
fn our_close_is_sent_once_and_the_answer_to_it_ends_the_connection() {
    let mut client = Client::open();
    client.socket.close(1000, &mut client.answer);
    client.socket.close(1001, &mut client.answer);
    assert_eq!(client.close_code(), 1000);
    assert!(!client.socket.is_open());
    assert!(!client.socket.is_ended());
    client.send(&frame(0x88, b"\x03\xe8")).unwrap();
    assert!(client.socket.is_ended());
    assert_eq!(client.close_code(), 1000);
}

#[test]
fn behind_our_close_data_is_dropped_and_pings_are_not_answered() {
    let mut client = Client::open();
    let bytes = frame(0x82, b"abcd");
    client.send(&bytes[..8]).unwrap();
    client.socket.close(1000, &mut client.answer);
    client.send(&bytes[8..]).unwrap();
    client.send(&frame(0x89, b"?")).unwrap();
    client.send(&frame(0x82, b"ef")).unwrap();
    assert_eq!(client.mqtt, b"ab");
    assert_eq!(client.close_code(), 1000);
}

#[test]
fn an_error_behind_our_close_is_not_told_with_another() {
    let mut client = Client::open();
    client.socket.close(1000, &mut client.answer);
    assert_eq!(client.send(b"\x81"), Err(WebSocketError::Text));
    assert_eq!(client.close_code(), 1000);
}

#[test]
fn close_before_the_upgrade_says_nothing_and_ends_it() {
    let mut client = Client::new();
    client.send(&REQUEST[..20]).unwrap();
    client.socket.close(1001, &mut client.answer);
    client.send(&REQUEST[20..]).unwrap();
    assert_eq!(client.answer, b"");
    assert!(!client.socket.is_open());
    assert_eq!(client.socket.memory_bytes(), 0);
}

// Origins.

fn accepted(allowed: &[&str], loopback_only: bool, origin: &str) -> bool {
    Origins::new(allowed.iter().copied(), loopback_only)
        .unwrap()
        .accept(Some(origin.as_bytes()))
}

#[test]
fn without_an_origin_every_rule_accepts() {
    for origins in [
        Origins::new([], true),
        Origins::new([], false),
        Origins::new(["https://a.example"], true),
    ] {
        assert!(origins.unwrap().accept(None));
    }
}

#[test]
fn an_empty_list_accepts_every_origin_unless_it_is_for_loopback() {
    for origin in ["https://a.example", "null", "garbage"] {
        assert!(accepted(&[], false, origin));
        assert!(!accepted(&[], true, origin));
    }
}

#[test]
fn loopback_is_what_browsers_call_so() {
    for origin in [
        "http://localhost",
        "https://LocalHost:8080",
        "http://app.localhost:3000",
        "http://a.b.localhost",
        "http://127.0.0.1",
        "http://127.1.2.3:1",
        "http://[::1]",
        "http://[::1]:8080",
    ] {
        assert!(accepted(&[], true, origin), "{origin}");
    }
    for origin in [
        "",
        "localhost",
        "http://",
        "http://localhost.evil.example",
        "http://notlocalhost",
        "http://localhost@evil.example",
        "http://evil.example/localhost",
        "http://evil.example#.localhost",
        "http://127.0.0.1.evil.example",
        "http://128.0.0.1",
        "http://0.0.0.0",
        "http://[::2]",
        "http://[::1",
        "http://[::1]evil",
        "http://localhost:",
        "http://localhost:99999",
        "http://localhost:+80",
        "file://",
    ] {
        assert!(!accepted(&[], true, origin), "{origin}");
    }
}

#[test]
fn a_list_accepts_what_it_names_in_any_case() {
    let list = [
        "https://App.Example",
        "http://b.example:8080",
        "capacitor://localhost",
    ];
    for origin in [
        "https://app.example",
        "HTTPS://APP.EXAMPLE",
        "https://app.example:443",
        "http://b.example:8080",
        "capacitor://localhost",
    ] {
        assert!(accepted(&list, true, origin), "{origin}");
    }
    for origin in [
        "http://app.example",
        "https://app.example:8443",
        "https://app.example.evil.example",
        "https://xapp.example",
        "http://b.example",
        "http://localhost",
        "null",
        "*",
    ] {
        assert!(!accepted(&list, true, origin), "{origin}");
    }
}

#[test]
fn a_port_that_the_scheme_implies_may_be_named_or_not() {
    assert!(accepted(
        &["https://a.example:443"],
        false,
        "https://a.example"
    ));
    assert!(accepted(
        &["http://a.example"],
        false,
        "http://a.example:80"
    ));
    assert!(!accepted(
        &["http://a.example"],
        false,
        "http://a.example:443"
    ));
}

#[test]
fn null_is_accepted_where_it_or_everything_is_named() {
    assert!(accepted(&["null"], true, "null"));
    assert!(accepted(&["*"], true, "null"));
    assert!(!accepted(&["https://a.example"], true, "null"));
    assert!(!accepted(&["null"], true, "http://localhost"));
}

#[test]
fn a_star_accepts_everything_beside_other_entries_too() {
    assert!(accepted(
        &["https://a.example", "*"],
        true,
        "http://evil.example"
    ));
}

#[test]
fn entries_that_could_never_match_are_refused() {
    for entry in [
        "",
        "a.example",
        "https://",
        "https://a.example/",
        "https://a.example/path",
        "https://*.a.example",
        "https://a.example:port",
        "https://a b",
        "1http://a",
        "http://[a]",
        "NULL",
    ] {
        let error = Origins::new([entry], false).unwrap_err();
        assert!(
            error.to_string().starts_with(&format!("{entry:?} ")),
            "{entry:?}"
        );
    }
}
