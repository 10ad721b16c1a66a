// SPDX-License-Identifier: Apache-2.0
//! The socket of a node's links: dials peers and hears who dials.

use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, EndpointConfig, IdleTimeout, ServerConfig, TransportConfig, VarInt};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::LinkError;
use crate::identity::Identity;
use crate::link::{Arrivals, Link, read_short, write_short};

/// A link is over when nothing comes for so long; each end says something three times within it.
const SILENCE_MAX: Duration = Duration::from_secs(3);
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// What may be on its way in one stream, and in all of a link (bytes).
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const LINK_WINDOW_BYTES: u32 = 16 << 20;
/// Streams of a link that its dialer has open: one per shard, and requests.
const STREAMS_MAX: u32 = 1024;
/// Callers between their first packet and their hello; others are not heard meanwhile.
const HANDSHAKES_MAX: usize = 64;
/// How long a handshake and a hello, or a dial, may take.
const GREETING_MAX: Duration = Duration::from_secs(5);
/// What is kept of a stranger's packets before the handshake begins (bytes).
const EARLY_BYTES_MAX: u64 = 16 << 10;
/// A hello or its answer (bytes).
const HELLO_BYTES_MAX: usize = 4 << 10;

/// The close code of a refusal; its reason is a text.
pub(crate) const REFUSED: VarInt = VarInt::from_u32(1);
/// The close code of an end that goes on purpose.
const LEAVING: VarInt = VarInt::from_u32(0);

/// The socket of all links of a node.
#[derive(Debug)]
pub struct Endpoint {
    quinn: quinn::Endpoint,
    /// For the next dial, with the name that peers are dialled as.
    client: Mutex<(ClientConfig, String)>,
    handshakes: Arc<Semaphore>,
}

impl Endpoint {
    /// Takes a bound socket. To be called, and used, inside a tokio runtime with IO and time.
    ///
    /// # Errors
    /// When the socket cannot be used.
    pub fn new(socket: UdpSocket, identity: &Identity) -> Result<Self, LinkError> {
        let quinn = quinn::Endpoint::new(
            EndpointConfig::default(),
            Some(server_config(identity)),
            socket,
            Arc::new(quinn::TokioRuntime),
        )?;
        Ok(Self {
            quinn,
            client: Mutex::new((client_config(identity), identity.name())),
            handshakes: Arc::new(Semaphore::new(HANDSHAKES_MAX)),
        })
    }

    /// Takes another identity for the links to come; those that are there stay.
    pub fn set_identity(&self, identity: &Identity) {
        self.quinn.set_server_config(Some(server_config(identity)));
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) =
            (client_config(identity), identity.name());
    }

    /// Where peers reach it.
    ///
    /// # Errors
    /// When the socket is broken.
    pub fn address(&self) -> Result<SocketAddr, LinkError> {
        Ok(self.quinn.local_addr()?)
    }

    /// Dials a peer, and says who this node is (at most 4 KiB).
    ///
    /// # Errors
    /// When nobody answers within 3 s, an end does not know the other's identity, or the peer refuses.
    pub async fn dial(&self, address: SocketAddr, hello: &[u8]) -> Result<Link, LinkError> {
        tokio::time::timeout(GREETING_MAX, self.greet(address, hello))
            .await
            .unwrap_or(Err(LinkError::Ended))
    }

    async fn greet(&self, address: SocketAddr, hello: &[u8]) -> Result<Link, LinkError> {
        let (config, name) = self
            .client
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let connecting = self
            .quinn
            .connect_with(config, address, &name)
            .map_err(LinkError::Address)?;
        let connection = connecting.await?;
        let (mut send, mut recv) = connection.open_bi().await?;
        write_short(&mut send, hello).await?;
        send.finish()?;
        let answer = match read_short(&mut recv, "an answer to a hello", HELLO_BYTES_MAX).await {
            Ok(answer) => answer,
            // a refusal ends the link: its reason says more than the end of the stream
            Err(LinkError::Ended) => return Err(connection.closed().await.into()),
            Err(error) => return Err(error),
        };
        Ok(Link::new(connection, answer))
    }

    /// The next one that dials this node; `None` once the endpoint is closed. The rest is to be done beside the next call:
    /// a stranger takes his time.
    ///
    /// Before it costs anything a caller has shown that he is where he says (RFC 9000, section 8.1.2).
    pub async fn accept(&self) -> Option<Caller> {
        loop {
            let incoming = self.quinn.accept().await?;
            if !incoming.remote_address_validated() && incoming.may_retry() {
                // it may, so it does
                let _ = incoming.retry();
                continue;
            }
            match self.handshakes.clone().try_acquire_owned() {
                Ok(place) => return Some(Caller { incoming, place }),
                // he tries again
                Err(_) => incoming.ignore(),
            }
        }
    }

    /// Ends all links, and waits until the peers were told.
    pub async fn close(&self) {
        self.quinn.close(LEAVING, b"leaving");
        self.quinn.wait_idle().await;
    }
}

/// Somebody who dials; nothing is known of him but where he is.
#[derive(Debug)]
pub struct Caller {
    incoming: quinn::Incoming,
    /// One of those that may greet at a time.
    place: OwnedSemaphorePermit,
}

impl Caller {
    /// Where he is.
    #[must_use]
    pub fn remote(&self) -> SocketAddr {
        self.incoming.remote_address()
    }

    /// Goes through the handshake, and hears who he is.
    ///
    /// # Errors
    /// When he does not know the identity, or says no hello, within 5 s.
    pub async fn knock(self) -> Result<Knock, LinkError> {
        let Self { incoming, place } = self;
        let greeting = async {
            let connection = incoming.accept()?.await?;
            let (send, mut recv) = connection.accept_bi().await?;
            let hello = read_short(&mut recv, "a hello", HELLO_BYTES_MAX).await?;
            Ok::<_, LinkError>(Knock {
                connection,
                send,
                hello,
            })
        };
        let knock = tokio::time::timeout(GREETING_MAX, greeting).await;
        drop(place);
        knock.unwrap_or(Err(LinkError::Ended))
    }
}

/// A peer that has proved its identity and said its hello.
#[derive(Debug)]
pub struct Knock {
    connection: quinn::Connection,
    send: quinn::SendStream,
    hello: Bytes,
}

impl Knock {
    /// What it says of itself.
    #[must_use]
    pub fn hello(&self) -> &[u8] {
        &self.hello
    }

    /// Where it is.
    #[must_use]
    pub fn remote(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    /// Lets it in, with what this node says of itself (at most 4 KiB).
    ///
    /// # Errors
    /// When it is gone.
    pub async fn admit(mut self, answer: &[u8]) -> Result<Arrivals, LinkError> {
        write_short(&mut self.send, answer).await?;
        self.send.finish()?;
        Ok(Arrivals::new(self.connection))
    }

    /// Sends it away, and tells it why.
    pub fn refuse(self, reason: &str) {
        self.connection.close(REFUSED, reason.as_bytes());
    }
}

fn transport() -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    let idle = IdleTimeout::try_from(SILENCE_MAX).expect("seconds are milliseconds of 62 bits");
    transport
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_concurrent_bidi_streams(STREAMS_MAX.into())
        .max_concurrent_uni_streams(0u8.into())
        .stream_receive_window(STREAM_WINDOW_BYTES.into())
        .receive_window(LINK_WINDOW_BYTES.into())
        .send_window(u64::from(LINK_WINDOW_BYTES))
        .datagram_receive_buffer_size(None);
    Arc::new(transport)
}

fn server_config(identity: &Identity) -> ServerConfig {
    let tls = QuicServerConfig::try_from(identity.server()).expect("an identity speaks TLS 1.3");
    let mut config = ServerConfig::with_crypto(Arc::new(tls));
    config
        .transport_config(transport())
        .max_incoming(HANDSHAKES_MAX)
        .incoming_buffer_size(EARLY_BYTES_MAX)
        .incoming_buffer_size_total(EARLY_BYTES_MAX * HANDSHAKES_MAX as u64);
    config
}

fn client_config(identity: &Identity) -> ClientConfig {
    let tls = QuicClientConfig::try_from(identity.client()).expect("an identity speaks TLS 1.3");
    let mut config = ClientConfig::new(Arc::new(tls));
    config.transport_config(transport());
    config
}
