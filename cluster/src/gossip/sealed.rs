// SPDX-License-Identifier: Apache-2.0
//! The streams that whole states travel on: TCP with TLS 1.3, both ends proven before memberlist reads a byte.
//!
//! memberlist encrypts its messages too, but reads their lengths before it knows who sent them, and makes room for
//! 4 GiB if they say so; a stranger does not get so far here. Handshakes are beside each other, so one that takes its time
//! delays nobody.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use memberlist::agnostic::tokio::TokioRuntime;
use memberlist::net::stream_layer::{Listener, PromisedStream, StreamLayer};
use memberlist::proto::{ProtoReader, ProtoWriter};
use memberlist::transport::Connection;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

/// Handshakes beside each other; the next caller waits.
const HANDSHAKES_MAX: usize = 64;
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// Accepting pauses for so long when the process has no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Hears of callers that are not let in.
pub type OnStranger = Arc<dyn Fn(SocketAddr, &io::Error) + Send + Sync>;

/// Who this node is, and what becomes of strangers.
#[derive(Clone)]
pub(super) struct Terms {
    pub(super) server: Arc<ServerConfig>,
    pub(super) client: Arc<ClientConfig>,
    pub(super) name: ServerName<'static>,
    pub(super) on_stranger: OnStranger,
}

impl fmt::Debug for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terms").finish_non_exhaustive()
    }
}

#[derive(Debug)]
pub(super) struct Sealed(Terms);

impl StreamLayer for Sealed {
    type Runtime = TokioRuntime;
    type Listener = SealedListener;
    type Stream = SealedStream;
    type Options = Terms;

    async fn new(terms: Terms) -> io::Result<Self> {
        Ok(Self(terms))
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<SealedStream> {
        let connecting = async {
            let stream = TcpStream::connect(address).await?;
            let local = stream.local_addr()?;
            let connector = TlsConnector::from(self.0.client.clone());
            let stream = connector.connect(self.0.name.clone(), stream).await?;
            Ok(SealedStream::new(stream.into(), local, address))
        };
        timeout(HANDSHAKE_MAX, connecting)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn bind(&self, address: SocketAddr) -> io::Result<SealedListener> {
        let listener = TcpListener::bind(address).await?;
        let local = listener.local_addr()?;
        let (sender, admitted) = mpsc::channel(1);
        let accepting = tokio::spawn(accept(listener, local, self.0.clone(), sender));
        Ok(SealedListener {
            admitted: Mutex::new(admitted),
            local,
            accepting,
        })
    }

    /// False, so that memberlist encrypts here as it does its packets: it checks both alike.
    fn is_secure() -> bool {
        false
    }
}

async fn accept(
    listener: TcpListener,
    local: SocketAddr,
    terms: Terms,
    sender: mpsc::Sender<SealedStream>,
) {
    let acceptor = TlsAcceptor::from(terms.server.clone());
    let places = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    // nobody closes the semaphore
    while let Ok(place) = places.clone().acquire_owned().await {
        let Ok((stream, from)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let handshake = acceptor.accept(stream);
        let (sender, on_stranger) = (sender.clone(), terms.on_stranger.clone());
        tokio::spawn(async move {
            let shaken = timeout(HANDSHAKE_MAX, handshake)
                .await
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            drop(place);
            match shaken {
                // it fails when the listener is gone
                Ok(stream) => drop(
                    sender
                        .send(SealedStream::new(stream.into(), local, from))
                        .await,
                ),
                Err(error) => on_stranger(from, &error),
            }
        });
    }
}

#[derive(Debug)]
pub(super) struct SealedListener {
    admitted: Mutex<mpsc::Receiver<SealedStream>>,
    local: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Listener for SealedListener {
    type Stream = SealedStream;

    async fn accept(&self) -> io::Result<(SealedStream, SocketAddr)> {
        let admitted = self.admitted.lock().await.recv().await;
        let stream = admitted.ok_or(io::ErrorKind::NotConnected)?;
        let peer = stream.peer;
        Ok((stream, peer))
    }

    fn local_addr(&self) -> SocketAddr {
        self.local
    }

    async fn shutdown(&self) -> io::Result<()> {
        self.accepting.abort();
        Ok(())
    }
}

impl Drop for SealedListener {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Bytes that were looked at come again.
#[derive(Debug)]
pub(super) struct Peeked<R> {
    reader: R,
    /// Read and not taken.
    ahead: Vec<u8>,
}

impl<R: AsyncRead + Unpin + Send> Peeked<R> {
    const fn new(reader: R) -> Self {
        Self {
            reader,
            ahead: Vec::new(),
        }
    }

    fn take(&mut self, into: &mut [u8]) -> usize {
        let count = self.ahead.len().min(into.len());
        into[..count].copy_from_slice(&self.ahead[..count]);
        self.ahead.drain(..count);
        count
    }

    async fn read_some(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self.take(into) {
            0 => self.reader.read(into).await,
            count => Ok(count),
        }
    }

    async fn read_all(&mut self, into: &mut [u8]) -> io::Result<()> {
        let count = self.take(into);
        self.reader.read_exact(&mut into[count..]).await?;
        Ok(())
    }

    /// One read, if nothing is ahead.
    async fn look(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.ahead.is_empty() {
            self.read_ahead(into.len()).await?;
        }
        let count = self.ahead.len().min(into.len());
        into[..count].copy_from_slice(&self.ahead[..count]);
        Ok(count)
    }

    async fn look_all(&mut self, into: &mut [u8]) -> io::Result<()> {
        while self.ahead.len() < into.len() {
            if self.read_ahead(into.len() - self.ahead.len()).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        into.copy_from_slice(&self.ahead[..into.len()]);
        Ok(())
    }

    async fn read_ahead(&mut self, count_max: usize) -> io::Result<usize> {
        let old = self.ahead.len();
        self.ahead.resize(old + count_max, 0);
        let read = self.reader.read(&mut self.ahead[old..]).await;
        self.ahead.truncate(old + *read.as_ref().unwrap_or(&0));
        read
    }
}

impl<R: AsyncRead + Unpin + Send + Sync> ProtoReader for Peeked<R> {
    async fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.read_some(into).await
    }

    async fn read_exact(&mut self, into: &mut [u8]) -> io::Result<()> {
        self.read_all(into).await
    }

    async fn peek(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.look(into).await
    }

    async fn peek_exact(&mut self, into: &mut [u8]) -> io::Result<()> {
        self.look_all(into).await
    }
}

#[derive(Debug)]
pub(super) struct Writer(WriteHalf<TlsStream<TcpStream>>);

impl ProtoWriter for Writer {
    async fn close(&mut self) -> io::Result<()> {
        self.0.shutdown().await
    }

    async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        write(&mut self.0, bytes).await
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.0.flush().await
    }
}

/// TLS holds back what the socket had no room for, until it is flushed.
async fn write(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes).await?;
    to.flush().await
}

#[derive(Debug)]
pub(super) struct SealedStream {
    stream: Peeked<TlsStream<TcpStream>>,
    local: SocketAddr,
    peer: SocketAddr,
}

impl SealedStream {
    const fn new(stream: TlsStream<TcpStream>, local: SocketAddr, peer: SocketAddr) -> Self {
        Self {
            stream: Peeked::new(stream),
            local,
            peer,
        }
    }
}

impl Connection for SealedStream {
    type Reader = Peeked<ReadHalf<TlsStream<TcpStream>>>;
    type Writer = Writer;

    fn split(self) -> (Self::Reader, Self::Writer) {
        let (reader, writer) = tokio::io::split(self.stream.reader);
        let ahead = self.stream.ahead;
        (Peeked { reader, ahead }, Writer(writer))
    }

    async fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.stream.read_some(into).await
    }

    async fn read_exact(&mut self, into: &mut [u8]) -> io::Result<()> {
        self.stream.read_all(into).await
    }

    async fn peek(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.stream.look(into).await
    }

    async fn peek_exact(&mut self, into: &mut [u8]) -> io::Result<()> {
        self.stream.look_all(into).await
    }

    async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        write(&mut self.stream.reader, bytes).await
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.stream.reader.flush().await
    }

    async fn close(&mut self) -> io::Result<()> {
        self.stream.reader.shutdown().await
    }
}

impl PromisedStream for SealedStream {
    type Instant = tokio::time::Instant;

    fn local_addr(&self) -> SocketAddr {
        self.local
    }

    fn peer_addr(&self) -> SocketAddr {
        self.peer
    }
}
