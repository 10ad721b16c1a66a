// SPDX-License-Identifier: Apache-2.0

//! What lies between a client's MQTT bytes and its socket: nothing, TLS, WebSocket, or WebSocket in TLS. Sans-IO.
//!
//! ```text
//! packets -> send -> [one masked frame] -> [TLS records] -> wire -> socket
//! socket -> handle_bytes -> [TLS records] -> [frames] -> packets, or the beginning of one
//! ```
//!
//! `handle_bytes` may leave something to say (a handshake's next flight, a pong): `poll_output` after it, and once at
//! the start. `send` only after `is_open`. After an error the connection is of no use.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, HandshakeKind};

use crate::args::Args;
use crate::target::Endpoint;
use crate::tls::{self, RECORD_MAX_BYTES, Tickets};
use crate::websocket::WebSocket;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Tls,
    Ws,
    Wss,
}

impl Transport {
    pub(crate) const ALL: [Self; 4] = [Self::Tcp, Self::Tls, Self::Ws, Self::Wss];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Ws => "ws",
            Self::Wss => "wss",
        }
    }

    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.name() == name)
    }

    pub(crate) fn is_tls(self) -> bool {
        matches!(self, Self::Tls | Self::Wss)
    }

    fn is_web(self) -> bool {
        matches!(self, Self::Ws | Self::Wss)
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How the clients of a scenario reach a broker, whichever it is.
#[derive(Clone, Debug)]
pub(crate) struct Way {
    pub(crate) transport: Transport,
    ca: Option<PathBuf>,
}

impl Way {
    pub(crate) fn tcp() -> Self {
        Self {
            transport: Transport::Tcp,
            ca: None,
        }
    }

    pub(crate) fn parse(args: &Args) -> Result<Self> {
        let name = args.text("transport").unwrap_or("tcp");
        let Some(transport) = Transport::parse(name) else {
            bail!("--transport is tcp, tls, ws or wss, not {name}")
        };
        Ok(Self {
            transport,
            ca: args.text("ca").map(Into::into),
        })
    }

    #[cfg(test)]
    pub(crate) fn tls(ca: PathBuf) -> Self {
        Self {
            transport: Transport::Tls,
            ca: Some(ca),
        }
    }

    pub(crate) fn to(&self, endpoint: &Endpoint) -> Result<Dial> {
        self.resuming(endpoint, None)
    }

    /// With `tickets`: sessions are resumed while there are any.
    pub(crate) fn resuming(
        &self,
        endpoint: &Endpoint,
        tickets: Option<Arc<Tickets>>,
    ) -> Result<Dial> {
        let tls = if self.transport.is_tls() {
            let ca = self.ca.as_deref().context(
                "name the CA of the broker's certificate with --ca=FILE (corqtt-bench certificates makes one)",
            )?;
            Some(tls::client_config(ca, tickets)?)
        } else {
            None
        };
        Ok(Dial {
            addr: endpoint.addr(self.transport)?,
            transport: self.transport,
            tls,
        })
    }
}

/// How clients reach one broker.
#[derive(Clone, Debug)]
pub(crate) struct Dial {
    pub(crate) addr: SocketAddr,
    transport: Transport,
    tls: Option<Arc<ClientConfig>>,
}

pub(crate) struct Layers {
    tls: Option<Box<ClientConnection>>,
    web: Option<Box<WebSocket>>,
    /// Frames on their way into records.
    frames: Vec<u8>,
    ended: bool,
}

impl Layers {
    pub(crate) fn new(dial: &Dial) -> Result<Self> {
        let connect = |config: &Arc<ClientConfig>| -> Result<_> {
            let name = ServerName::try_from(tls::SERVER_NAME)?;
            let mut tls = ClientConnection::new(Arc::clone(config), name)?;
            // the generator bounds what it sends itself
            tls.set_buffer_limit(None);
            Ok(Box::new(tls))
        };
        let web = || Box::new(WebSocket::new(&dial.addr.to_string()));
        Ok(Self {
            tls: dial.tls.as_ref().map(connect).transpose()?,
            web: dial.transport.is_web().then(web),
            frames: Vec::new(),
            ended: false,
        })
    }

    /// MQTT bytes are socket bytes.
    pub(crate) fn is_plain(&self) -> bool {
        self.tls.is_none() && self.web.is_none()
    }

    /// All handshakes are over.
    pub(crate) fn is_open(&self) -> bool {
        self.tls.as_ref().is_none_or(|tls| !tls.is_handshaking())
            && self.web.as_ref().is_none_or(|web| web.is_open())
    }

    /// The peer has said that nothing follows.
    pub(crate) fn is_ended(&self) -> bool {
        self.ended
    }

    pub(crate) fn is_resumed(&self) -> bool {
        self.tls
            .as_ref()
            .is_some_and(|tls| tls.handshake_kind() == Some(HandshakeKind::Resumed))
    }

    /// How many socket bytes may be taken at once, for `room` bytes of MQTT and themselves.
    pub(crate) fn intake(room: usize) -> usize {
        room.saturating_sub(RECORD_MAX_BYTES + 1) / 2
    }

    /// Takes socket bytes. MQTT bytes go to `out`, which has room for as many and a record; how many they are.
    pub(crate) fn handle_bytes(&mut self, bytes: &[u8], out: &mut [u8]) -> io::Result<usize> {
        let mut filled = bytes.len();
        match &mut self.tls {
            Some(tls) => (filled, self.ended) = tls::decrypt(tls, bytes, out)?,
            None => out[..filled].copy_from_slice(bytes),
        }
        match &mut self.web {
            Some(web) => web
                .handle_bytes(&mut out[..filled])
                .map_err(io::Error::other),
            None => Ok(filled),
        }
    }

    /// A batch of packets to the end of `wire`: one frame, and as few records as hold it.
    pub(crate) fn send(&mut self, mqtt: &[u8], wire: &mut Vec<u8>) -> io::Result<()> {
        match (&mut self.web, &mut self.tls) {
            (None, None) => wire.extend_from_slice(mqtt),
            (Some(web), None) => web.send(mqtt, wire),
            (None, Some(tls)) => tls::encrypt(tls, mqtt)?,
            (Some(web), Some(tls)) => {
                self.frames.clear();
                web.send(mqtt, &mut self.frames);
                tls::encrypt(tls, &self.frames)?;
            }
        }
        self.poll_output(wire)
    }

    /// What the layers have to say to the end of `wire`.
    pub(crate) fn poll_output(&mut self, wire: &mut Vec<u8>) -> io::Result<()> {
        if let Some(output) = self.web.as_mut().and_then(|web| web.take_output()) {
            match &mut self.tls {
                Some(tls) => tls::encrypt(tls, &output)?,
                None => wire.extend_from_slice(&output),
            }
        }
        match &mut self.tls {
            Some(tls) => tls::take_records(tls, wire),
            None => Ok(()),
        }
    }

    /// Says goodbye on every layer.
    pub(crate) fn close(&mut self, wire: &mut Vec<u8>) -> io::Result<()> {
        let mut goodbye = Vec::new();
        if let Some(web) = &mut self.web {
            web.close(&mut goodbye);
        }
        match &mut self.tls {
            Some(tls) => {
                tls::encrypt(tls, &goodbye)?;
                tls.send_close_notify();
                tls::take_records(tls, wire)
            }
            None => {
                wire.extend_from_slice(&goodbye);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rustls::ServerConnection;

    use super::*;
    use crate::tests::Certificates;

    const UPGRADED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Protocol: mqtt\r\n\
        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

    /// The other side: what rustls makes of records, and the little of WebSocket that a test needs.
    struct Server {
        tls: Option<ServerConnection>,
        plain: Vec<u8>,
        wire: Vec<u8>,
    }

    impl Server {
        fn handle_bytes(&mut self, bytes: &[u8]) {
            let mut out = vec![0; bytes.len() + 2 * RECORD_MAX_BYTES];
            let filled = match &mut self.tls {
                Some(tls) => {
                    let (filled, _) = tls::decrypt(tls, bytes, &mut out).expect("good records");
                    tls::take_records(tls, &mut self.wire).expect("a Vec takes all");
                    filled
                }
                None => {
                    out[..bytes.len()].copy_from_slice(bytes);
                    bytes.len()
                }
            };
            self.plain.extend_from_slice(&out[..filled]);
            if self.plain.starts_with(b"GET ") && self.plain.ends_with(b"\r\n\r\n") {
                self.plain.clear();
                self.send(UPGRADED);
            }
        }

        fn send(&mut self, bytes: &[u8]) {
            match &mut self.tls {
                Some(tls) => {
                    tls::encrypt(tls, bytes).expect("a connection takes plaintext");
                    tls::take_records(tls, &mut self.wire).expect("a Vec takes all");
                }
                None => self.wire.extend_from_slice(bytes),
            }
        }
    }

    /// Carries bytes both ways in pieces until nobody has anything to say; what the client received.
    fn pump(client: &mut Layers, server: &mut Server, mut wire: Vec<u8>, size: usize) -> Vec<u8> {
        let mut received = Vec::new();
        loop {
            client.poll_output(&mut wire).expect("a Vec takes all");
            if wire.is_empty() && server.wire.is_empty() {
                return received;
            }
            for piece in std::mem::take(&mut wire).chunks(size) {
                server.handle_bytes(piece);
            }
            let mut out = vec![0; size + 2 * RECORD_MAX_BYTES];
            for piece in std::mem::take(&mut server.wire).chunks(size) {
                let filled = client.handle_bytes(piece, &mut out).expect("good bytes");
                received.extend_from_slice(&out[..filled]);
                client.poll_output(&mut wire).expect("a Vec takes all");
            }
        }
    }

    #[test]
    fn every_transport_opens_and_carries_bytes_both_ways_in_pieces() {
        let certificates = Certificates::new();
        let path = |name: &str| certificates.path(name);
        let config = tls::server_config(&path("server.pem"), &path("server-key.pem"));
        let config = config.expect("they fit");
        let message: Vec<u8> = (0..40_000_u32).map(|at| at as u8).collect();
        for transport in Transport::ALL {
            let way = Way {
                transport,
                ca: Some(path("ca.pem")),
            };
            let mut endpoint = Endpoint::tcp("127.0.0.1:1".parse().expect("an address"), None);
            endpoint.set(transport, 2);
            let dial = way.to(&endpoint).expect("the CA is there");
            for size in [1, 7, 1000, 100_000] {
                let mut client = Layers::new(&dial).expect("a good name");
                assert_eq!(client.is_plain(), transport == Transport::Tcp);
                let tls = transport.is_tls().then(|| {
                    ServerConnection::new(Arc::clone(&config)).expect("a good configuration")
                });
                let mut server = Server {
                    tls,
                    plain: Vec::new(),
                    wire: Vec::new(),
                };
                let early = pump(&mut client, &mut server, Vec::new(), size);
                assert!(client.is_open() && early.is_empty(), "{transport} {size}");

                let mut wire = Vec::new();
                client.send(&message, &mut wire).expect("it is open");
                pump(&mut client, &mut server, wire, size);
                if transport.is_web() {
                    // one frame: FIN and binary, masked, 16 bits of length
                    let head = [0x82, 0xfe, 0x9c, 0x40];
                    assert_eq!(server.plain[..4], head, "{transport} {size}");
                    assert_eq!(server.plain.len(), 8 + message.len());
                    server.send(&[0x82, 0x7e, 0x9c, 0x40]);
                } else {
                    assert_eq!(server.plain, message, "{transport} {size}");
                }
                server.send(&message);
                let received = pump(&mut client, &mut server, Vec::new(), size);
                assert_eq!(received, message, "{transport} {size}");
            }
        }
    }

    #[test]
    fn a_server_that_says_that_nothing_follows_has_ended() {
        let certificates = Certificates::new();
        let path = |name: &str| certificates.path(name);
        let config = tls::server_config(&path("server.pem"), &path("server-key.pem"));
        let mut endpoint = Endpoint::tcp("127.0.0.1:1".parse().expect("an address"), None);
        endpoint.set(Transport::Tls, 2);
        let dial = Way::tls(path("ca.pem")).to(&endpoint);
        let mut client = Layers::new(&dial.expect("the CA is there")).expect("a good name");
        let tls = ServerConnection::new(config.expect("they fit")).expect("a good configuration");
        let mut server = Server {
            tls: Some(tls),
            plain: Vec::new(),
            wire: Vec::new(),
        };
        pump(&mut client, &mut server, Vec::new(), 1000);
        assert!(!client.is_ended());
        if let Some(tls) = &mut server.tls {
            tls.send_close_notify();
        }
        server.send(&[]);
        pump(&mut client, &mut server, Vec::new(), 1000);
        assert!(client.is_ended());
    }
}
