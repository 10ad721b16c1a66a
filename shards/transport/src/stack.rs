// SPDX-License-Identifier: Apache-2.0
//! The layers between one socket and its MQTT bytes, put on top of each other.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::proxy::{self, ProxyError};
use crate::tls::{Terms, Tls, TlsError};
use crate::websocket::{Origins, WebSocket, WebSocketError};

/// Which layers a connection has, from the socket up.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    /// A load balancer says first for whom it speaks.
    pub proxy: bool,
    /// The listener's certificates as they are now.
    pub tls: Option<Arc<Terms>>,
    /// Who may open a WebSocket.
    pub websocket: Option<Arc<Origins>>,
}

/// Buffers that layers need while they work; one for all connections of a thread.
#[derive(Debug, Default)]
pub struct Workspace {
    /// Between TLS and WebSocket, in either direction.
    plain: Vec<u8>,
}

/// A layer cannot go on: the connection is over.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum TransportError {
    /// The PROXY header.
    Proxy(ProxyError),
    /// TLS.
    Tls(TlsError),
    /// The WebSocket.
    WebSocket(WebSocketError),
}

impl TransportError {
    /// The word for the layer that cannot go on.
    #[must_use]
    pub const fn layer(&self) -> &'static str {
        match self {
            Self::Proxy(_) => "proxy-header",
            Self::Tls(_) => "tls",
            Self::WebSocket(_) => "websocket",
        }
    }
}

impl fmt::Display for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Proxy(error) => error.fmt(f),
            Self::Tls(error) => error.fmt(f),
            Self::WebSocket(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for TransportError {}

impl From<ProxyError> for TransportError {
    fn from(error: ProxyError) -> Self {
        Self::Proxy(error)
    }
}

impl From<TlsError> for TransportError {
    fn from(error: TlsError) -> Self {
        Self::Tls(error)
    }
}

impl From<WebSocketError> for TransportError {
    fn from(error: WebSocketError) -> Self {
        Self::WebSocket(error)
    }
}

/// What stands in front of a connection's first bytes.
#[derive(Debug)]
enum Front {
    /// The PROXY header, as far as it has come.
    Header(Vec<u8>),
    /// Nothing more.
    Done,
}

/// The layers of one connection; plain TCP has none of it.
///
/// Contract: all bytes of the socket go through [`Transport::handle_bytes`] in their order, and everything that calls
/// append to `socket` leaves through it in that order. After an error only what was appended may still be sent.
#[derive(Debug)]
pub struct Transport {
    front: Front,
    source: Option<SocketAddr>,
    // boxed: rustls' state is a kilobyte, and a WebSocket alone has none
    tls: Option<Box<Tls>>,
    websocket: Option<WebSocket>,
}

impl Transport {
    /// Before the socket's first byte; `None` if there is no layer.
    ///
    /// # Errors
    /// If the TLS configuration cannot serve any version.
    pub fn new(layers: &Layers) -> Result<Option<Self>, TransportError> {
        if !layers.proxy && layers.tls.is_none() && layers.websocket.is_none() {
            return Ok(None);
        }
        let tls = layers.tls.as_ref().map(|terms| Tls::new(terms));
        Ok(Some(Self {
            front: if layers.proxy {
                Front::Header(Vec::new())
            } else {
                Front::Done
            },
            source: None,
            tls: tls.transpose()?.map(Box::new),
            websocket: layers.websocket.clone().map(WebSocket::new),
        }))
    }

    /// Takes bytes of the socket (they are scratch afterwards). Appends MQTT bytes to `mqtt`, and what layers have to
    /// answer to `socket_out`. `wall_ms`: now.
    ///
    /// # Errors
    /// The connection is over; `socket_out` ends with what the peer should still be told.
    pub fn handle_bytes(
        &mut self,
        socket: &mut [u8],
        mqtt: &mut Vec<u8>,
        socket_out: &mut Vec<u8>,
        workspace: &mut Workspace,
        wall_ms: u64,
    ) -> Result<(), TransportError> {
        let Front::Header(header) = &mut self.front else {
            return self.handle_layers(socket, mqtt, socket_out, workspace, wall_ms);
        };
        header.extend_from_slice(socket);
        let Some(parsed) = proxy::parse(header)? else {
            return Ok(());
        };
        self.source = parsed.source;
        let mut rest = header.split_off(parsed.bytes);
        self.front = Front::Done;
        self.handle_layers(&mut rest, mqtt, socket_out, workspace, wall_ms)
    }

    fn handle_layers(
        &mut self,
        socket: &mut [u8],
        mqtt: &mut Vec<u8>,
        socket_out: &mut Vec<u8>,
        workspace: &mut Workspace,
        wall_ms: u64,
    ) -> Result<(), TransportError> {
        match (&mut self.tls, &mut self.websocket) {
            (None, None) => mqtt.extend_from_slice(socket),
            (None, Some(websocket)) => websocket.handle_bytes(socket, mqtt, socket_out)?,
            (Some(tls), None) => tls.handle_bytes(socket, mqtt, socket_out, wall_ms)?,
            (Some(tls), Some(websocket)) => {
                let plain = &mut workspace.plain;
                plain.clear();
                tls.handle_bytes(socket, plain, socket_out, wall_ms)?;
                if plain.is_empty() {
                    return Ok(());
                }
                let mut answer = Vec::new();
                let handled = websocket.handle_bytes(plain, mqtt, &mut answer);
                if !answer.is_empty() {
                    tls.wrap(&answer, socket_out)?;
                }
                handled?;
            }
        }
        Ok(())
    }

    /// Wraps MQTT bytes, `parts` one behind the other, and appends what is to be written to `socket_out`. Only once
    /// MQTT bytes have come, so that all layers are open.
    ///
    /// # Errors
    /// When the TLS key is used up.
    pub fn wrap<'a>(
        &mut self,
        parts: impl Iterator<Item = &'a [u8]> + Clone,
        socket_out: &mut Vec<u8>,
        workspace: &mut Workspace,
    ) -> Result<(), TransportError> {
        // Close was said, by either side: nobody listens to what was under way
        if self.websocket.as_ref().is_some_and(|each| !each.is_open()) {
            return Ok(());
        }
        let put = |websocket: &Option<WebSocket>, into: &mut Vec<u8>| {
            if let Some(websocket) = websocket {
                websocket.header(parts.clone().map(<[u8]>::len).sum(), into);
            }
            for part in parts.clone() {
                into.extend_from_slice(part);
            }
        };
        match &mut self.tls {
            None => put(&self.websocket, socket_out),
            Some(tls) => {
                let plain = &mut workspace.plain;
                plain.clear();
                put(&self.websocket, plain);
                tls.wrap(plain, socket_out)?;
            }
        }
        Ok(())
    }

    /// Says goodbye on every layer that has one and is open. Nothing may be wrapped afterwards. `going_away`: since the
    /// broker stops, not since this connection is done.
    pub fn close(&mut self, going_away: bool, socket_out: &mut Vec<u8>) {
        let mut frame = Vec::new();
        if let Some(websocket) = &mut self.websocket {
            let code = if going_away {
                GOING_AWAY
            } else {
                NORMAL_CLOSURE
            };
            websocket.close(code, &mut frame);
        }
        match &mut self.tls {
            None => socket_out.append(&mut frame),
            Some(tls) => {
                if !frame.is_empty() && !tls.is_handshaking() {
                    // it is closing: that the frame does not leave is seen by nobody
                    let _ = tls.wrap(&frame, socket_out);
                }
                tls.close(socket_out);
            }
        }
    }

    /// The client for whom a load balancer speaks, once.
    pub fn poll_source(&mut self) -> Option<SocketAddr> {
        self.source.take()
    }

    /// TLS is still at its handshake, whose steps take long.
    #[inline]
    #[must_use]
    pub fn is_handshaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_handshaking())
    }

    /// A layer is open that ends with a goodbye.
    #[must_use]
    pub fn is_open(&self) -> bool {
        match &self.tls {
            Some(tls) => !tls.is_handshaking(),
            None => self.websocket.as_ref().is_some_and(WebSocket::is_open),
        }
    }

    /// Every layer is done: the socket carries plain MQTT from here on, and this may be thrown away.
    #[must_use]
    pub const fn is_transparent(&self) -> bool {
        matches!(self.front, Front::Done) && self.tls.is_none() && self.websocket.is_none()
    }

    /// The peer said that nothing more will come.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_ended())
            || self.websocket.as_ref().is_some_and(WebSocket::is_ended)
    }

    /// Bytes of memory that wait for their rest.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let front = match &self.front {
            Front::Header(header) => header.capacity(),
            Front::Done => 0,
        };
        front
            + self.tls.as_ref().map_or(0, |tls| tls.memory_bytes())
            + self.websocket.as_ref().map_or(0, WebSocket::memory_bytes)
    }
}

/// RFC 6455, section 7.4.1.
const NORMAL_CLOSURE: u16 = 1000;
const GOING_AWAY: u16 = 1001;

#[cfg(test)]
mod tests;
