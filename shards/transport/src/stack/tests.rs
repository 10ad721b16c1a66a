// SPDX-License-Identifier: Apache-2.0
//! All layers on top of each other, spoken to from the outside.

use std::io::{Read, Write};

use rustls::ClientConnection;
use rustls::pki_types::ServerName;

use super::*;
use crate::tls::tests::{Authority, NOW_MS, VERSIONS, client_config, terms};

const HEADER: &[u8] = b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 8883\r\n";
const REQUEST: &[u8] =
    b"GET /mqtt HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Protocol: mqtt\r\n\r\n";
/// A binary frame with `MQTT`, masked with zeros.
const FRAME: &[u8] = b"\x82\x84\0\0\0\0MQTT";

fn anybody() -> Arc<Origins> {
    Arc::new(Origins::new([], false).expect("no origins"))
}

fn layers(proxy: bool, tls: Option<Terms>, websocket: bool) -> Layers {
    Layers {
        proxy,
        tls: tls.map(Arc::new),
        websocket: websocket.then(anybody),
    }
}

fn transport(layers: &Layers) -> Transport {
    Transport::new(layers).expect("layers").expect("some layer")
}

/// Hands over `bytes` in parts of `cut`; the MQTT bytes, and what is to be sent.
fn hand_over(transport: &mut Transport, bytes: &[u8], cut: usize) -> (Vec<u8>, Vec<u8>) {
    let (mut mqtt, mut out, mut workspace) = (Vec::new(), Vec::new(), Workspace::default());
    for part in bytes.to_vec().chunks_mut(cut) {
        transport
            .handle_bytes(part, &mut mqtt, &mut out, &mut workspace, NOW_MS)
            .expect("well-formed bytes");
    }
    (mqtt, out)
}

#[test]
fn plain_tcp_has_no_layers() {
    assert!(
        Transport::new(&Layers::default())
            .expect("no layer")
            .is_none()
    );
}

#[test]
fn a_header_alone_leaves_nothing_behind() {
    for cut in [1, usize::MAX] {
        let mut transport = transport(&layers(true, None, false));
        assert!(!transport.is_transparent());
        let bytes = [HEADER, b"\x10CONNECT"].concat();
        let (mqtt, out) = hand_over(&mut transport, &bytes, cut);
        assert_eq!(
            (mqtt.as_slice(), out.as_slice()),
            (b"\x10CONNECT".as_slice(), b"".as_slice())
        );
        assert_eq!(transport.poll_source(), "192.0.2.7:4711".parse().ok());
        assert_eq!(transport.poll_source(), None);
        assert!(transport.is_transparent());
        assert_eq!(transport.memory_bytes(), 0);
    }
}

#[test]
fn a_header_that_is_none_ends_the_connection() {
    let mut transport = transport(&layers(true, None, false));
    let error = transport
        .handle_bytes(
            &mut b"\x10CONNECT".to_vec(),
            &mut Vec::new(),
            &mut Vec::new(),
            &mut Workspace::default(),
            NOW_MS,
        )
        .expect_err("no header");
    assert!(matches!(error, TransportError::Proxy(_)));
}

#[test]
fn a_websocket_behind_a_load_balancer() {
    for cut in [1, usize::MAX] {
        let mut transport = transport(&layers(true, None, true));
        let bytes = [HEADER, REQUEST, FRAME].concat();
        let (mqtt, out) = hand_over(&mut transport, &bytes, cut);
        assert_eq!(mqtt, b"MQTT");
        assert!(out.starts_with(b"HTTP/1.1 101 "));
        assert!(transport.is_open());
        let mut out = Vec::new();
        let parts: [&[u8]; 2] = [b"CON", b"NACK"];
        transport
            .wrap(parts.into_iter(), &mut out, &mut Workspace::default())
            .expect("a frame");
        assert_eq!(out, b"\x82\x07CONNACK");
        out.clear();
        transport.close(false, &mut out);
        assert_eq!(out, b"\x88\x02\x03\xe8");
        assert!(!transport.is_open());
    }
}

#[test]
fn a_broker_that_stops_is_going_away() {
    let mut transport = transport(&layers(false, None, true));
    hand_over(&mut transport, REQUEST, usize::MAX);
    let mut out = Vec::new();
    transport.close(true, &mut out);
    assert_eq!(out, b"\x88\x02\x03\xe9");
}

#[test]
fn nothing_is_wrapped_once_close_was_said() {
    let mut transport = transport(&layers(false, None, true));
    let bytes = [REQUEST, b"\x88\x80\0\0\0\0"].concat();
    let (_, out) = hand_over(&mut transport, &bytes, usize::MAX);
    assert!(out.ends_with(b"\x88\0"));
    assert!(transport.is_ended());
    let mut out = Vec::new();
    transport
        .wrap(
            [b"late".as_slice()].into_iter(),
            &mut out,
            &mut Workspace::default(),
        )
        .expect("it is dropped");
    assert_eq!(out, b"");
}

#[test]
fn all_layers_at_once_however_the_bytes_are_cut() {
    let authority = Authority::new();
    for cut in [1, 11, usize::MAX] {
        let mut transport = transport(&layers(true, Some(terms(&authority, None)), true));
        let name = ServerName::try_from("localhost").expect("a name");
        let config = client_config(&authority, None, &VERSIONS);
        let mut client = ClientConnection::new(config, name).expect("a client");
        client.writer().write_all(REQUEST).expect("memory");
        client.writer().write_all(FRAME).expect("memory");
        let (mut all, mut first) = (Vec::new(), HEADER.to_vec());
        while client.wants_write() {
            let mut sent = std::mem::take(&mut first);
            client.write_tls(&mut sent).expect("memory");
            let (mqtt, out) = hand_over(&mut transport, &sent, cut);
            all.extend(mqtt);
            client.read_tls(&mut out.as_slice()).expect("memory");
            client.process_new_packets().expect("TLS");
        }
        assert_eq!(all, b"MQTT");
        assert!(transport.poll_source().is_some());
        let mut out = Vec::new();
        transport
            .wrap(
                [b"CONNACK".as_slice()].into_iter(),
                &mut out,
                &mut Workspace::default(),
            )
            .expect("a record");
        transport.close(false, &mut out);
        let mut rest = out.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).expect("memory");
            client.process_new_packets().expect("TLS");
        }
        let mut heard = Vec::new();
        client
            .reader()
            .read_to_end(&mut heard)
            .expect("an end in order");
        assert!(heard.starts_with(b"HTTP/1.1 101 "));
        assert!(heard.ends_with(b"\x82\x07CONNACK\x88\x02\x03\xe8"));
    }
}
