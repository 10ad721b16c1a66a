// SPDX-License-Identifier: Apache-2.0
//! The server's side of TLS 1.2 and 1.3, over rustls' unbuffered connection.
//!
//! rustls keeps no buffers of its own in that form: bytes are decrypted where they were read, and only the beginning of
//! a record or a handshake message whose end has not come is kept here, in the records that it came in. After an error
//! rustls is not asked again: it would want the bytes back that it failed at, and panics without them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::UnixTime;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ServerConfig, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus,
};
use rustls::{Error, HandshakeKind, InvalidMessage};

/// What a listener's TLS stands on; exchanged as a whole when certificates are read again.
#[derive(Debug)]
pub struct Terms {
    /// Certificate, versions and ticketer.
    pub config: Arc<ServerConfig>,
    /// Who judges clients' certificates, where clients must show one: the same as in `config`.
    pub clients: Option<Arc<dyn ClientCertVerifier>>,
}

/// A handshake or a record failed, or the keys are used up.
#[derive(Clone, Debug, PartialEq)]
pub enum TlsError {
    /// What rustls says; the peer has been told by an alert where there is one.
    Rustls(Error),
    /// No more records may be sent under this key.
    KeyExhausted,
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rustls(error) => write!(f, "TLS: {error}"),
            Self::KeyExhausted => f.write_str("TLS: the key has encrypted all that it may"),
        }
    }
}

impl std::error::Error for TlsError {}

impl From<Error> for TlsError {
    fn from(error: Error) -> Self {
        Self::Rustls(error)
    }
}

/// A record's header, its tag, and what 1.2 or 1.3 add to a fragment (bytes).
const RECORD_OVERHEAD_BYTES: usize = 64;
/// Room for most messages of a handshake; a certificate says how much it takes.
const MESSAGE_BYTES: usize = 512;
/// Bytes of the peer that may wait for others: a handshake message of 64 KiB with room for how it is cut, and a record
/// behind it. Records that are cut smaller than anybody does, or padded, would hold a thousand times as much.
const PARTIAL_BYTES_MAX: usize = 160 * 1024;
/// Plain bytes of a record, at most.
const FRAGMENT_BYTES_MAX: usize = 16 * 1024;

/// One connection's TLS.
///
/// Contract: all bytes of the socket go through [`Tls::handle_bytes`] in their order; what it and the verbs append to
/// `answer` or `socket` leaves in that order too. After an error only what was appended may still be sent.
pub struct Tls {
    connection: UnbufferedServerConnection,
    /// What of the peer's bytes cannot be handled yet. Must stand in front of what comes next.
    partial: Vec<u8>,
    clients: Option<Arc<dyn ClientCertVerifier>>,
    is_established: bool,
    is_ended: bool,
    /// rustls must not be asked again: it would want the bytes back that it failed at.
    has_failed: bool,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("partial", &self.partial.len())
            .field("is_established", &self.is_established)
            .field("is_ended", &self.is_ended)
            .finish_non_exhaustive()
    }
}

/// What a pass over the peer's bytes is for.
enum Aim<'a> {
    Read,
    Write(&'a [u8]),
    Close,
}

impl Tls {
    /// Before the peer's first byte.
    ///
    /// # Errors
    /// If the configuration cannot serve any version.
    pub fn new(terms: &Terms) -> Result<Self, TlsError> {
        Ok(Self {
            connection: UnbufferedServerConnection::new(terms.config.clone())?,
            partial: Vec::new(),
            clients: terms.clients.clone(),
            is_established: false,
            is_ended: false,
            has_failed: false,
        })
    }

    /// Takes bytes of the socket, decrypting in place. Appends what they hold to `plain` and what must be answered to
    /// `answer`: handshake messages, tickets, alerts. `wall_ms` is when a resumed client's certificate must be valid.
    ///
    /// # Errors
    /// The connection is over; `answer` ends with the alert that says so.
    pub fn handle_bytes(
        &mut self,
        socket: &mut [u8],
        plain: &mut Vec<u8>,
        answer: &mut Vec<u8>,
        wall_ms: u64,
    ) -> Result<(), TlsError> {
        let before = plain.len();
        if self.partial.is_empty() {
            let (used, result) = self.process(socket, Aim::Read, plain, answer);
            result?;
            if used < socket.len() {
                self.partial = socket[used..].to_vec();
            }
        } else {
            let mut bytes = std::mem::take(&mut self.partial);
            bytes.extend_from_slice(socket);
            let (used, result) = self.process(&mut bytes, Aim::Read, plain, answer);
            result?;
            if used < bytes.len() {
                if used > 0 {
                    bytes.drain(..used);
                    bytes.shrink_to_fit();
                }
                self.partial = bytes;
            }
        }
        if self.partial.len() > PARTIAL_BYTES_MAX {
            self.partial = Vec::new();
            self.has_failed = true;
            return Err(Error::InvalidMessage(InvalidMessage::HandshakePayloadTooLarge).into());
        }
        if !self.is_established && !self.connection.is_handshaking() {
            if let Err(error) = self.check_resumed(wall_ms) {
                // nothing that came behind the handshake counts; the client believes to be connected
                plain.truncate(before);
                let _ = self.act(Aim::Close, answer);
                self.has_failed = true;
                return Err(error);
            }
            self.is_established = true;
        }
        Ok(())
    }

    /// A ticket remembers the client's certificate but not that it was revoked, or its authority replaced, since.
    fn check_resumed(&self, wall_ms: u64) -> Result<(), TlsError> {
        if let Some(clients) = &self.clients
            && self.connection.handshake_kind() == Some(HandshakeKind::Resumed)
            && let Some((own, between)) = self
                .connection
                .peer_certificates()
                .and_then(<[_]>::split_first)
        {
            let now = UnixTime::since_unix_epoch(Duration::from_millis(wall_ms));
            clients.verify_client_cert(own, between, now)?;
        }
        Ok(())
    }

    /// Encrypts `plain`, appending records to `socket`. Only once established.
    ///
    /// # Errors
    /// When the key is used up.
    pub fn wrap(&mut self, plain: &[u8], socket: &mut Vec<u8>) -> Result<(), TlsError> {
        self.act(Aim::Write(plain), socket)
    }

    /// Says that nothing more will be sent.
    pub fn close(&mut self, socket: &mut Vec<u8>) {
        if self.is_established {
            // a connection that fails here is closed all the same
            let _ = self.act(Aim::Close, socket);
        }
    }

    /// An act of ours, with what is left of the peer's bytes: rustls must see it in front of what comes next.
    fn act(&mut self, aim: Aim<'_>, socket: &mut Vec<u8>) -> Result<(), TlsError> {
        // nobody listens behind an alert
        if self.has_failed {
            return Ok(());
        }
        let mut partial = std::mem::take(&mut self.partial);
        // whole records were handled when they came, so there is nothing to read among them
        let mut plain = Vec::new();
        let (used, result) = self.process(&mut partial, aim, &mut plain, socket);
        debug_assert!(plain.is_empty());
        partial.drain(..used);
        self.partial = partial;
        result
    }

    /// Lets rustls look at the peer's bytes until it wants more; returns how many are done with.
    fn process(
        &mut self,
        bytes: &mut [u8],
        aim: Aim<'_>,
        plain: &mut Vec<u8>,
        answer: &mut Vec<u8>,
    ) -> (usize, Result<(), TlsError>) {
        let mut used = 0;
        loop {
            let UnbufferedStatus { discard, state } =
                self.connection.process_tls_records(&mut bytes[used..]);
            let done = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    let mut failed = None;
                    while let Some(record) = traffic.next_record() {
                        match record {
                            Ok(record) => plain.extend_from_slice(record.payload),
                            Err(error) => failed = Some(error),
                        }
                    }
                    failed.map(|error| Err(error.into()))
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    encode(answer, MESSAGE_BYTES, |room| encoded(data.encode(room)));
                    None
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    // it leaves with the rest of `answer`, whose order is kept
                    data.done();
                    None
                }
                Ok(ConnectionState::PeerClosed) => {
                    self.is_ended = true;
                    None
                }
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    let written = match aim {
                        Aim::Read => Some(0),
                        Aim::Write(plain) => {
                            let records = plain.len() / FRAGMENT_BYTES_MAX + 1;
                            let bytes = plain.len() + records * RECORD_OVERHEAD_BYTES;
                            encode(answer, bytes, |room| {
                                encrypted(traffic.encrypt(plain, room))
                            })
                        }
                        Aim::Close => encode(answer, RECORD_OVERHEAD_BYTES, |room| {
                            encrypted(traffic.queue_close_notify(room))
                        }),
                    };
                    Some(written.map(drop).ok_or(TlsError::KeyExhausted))
                }
                // early data is not accepted, so there never is any
                Ok(ConnectionState::ReadEarlyData(_) | ConnectionState::Closed) => {
                    self.is_ended = true;
                    Some(Ok(()))
                }
                // the handshake goes on when the peer's next bytes come
                Ok(_) => Some(Ok(())),
                Err(error) => {
                    self.has_failed = true;
                    self.alert(answer);
                    Some(Err(error.into()))
                }
            };
            used += discard;
            if let Some(result) = done {
                return (used, result);
            }
        }
    }

    /// After an error: what rustls still wants to tell the peer.
    fn alert(&mut self, answer: &mut Vec<u8>) {
        // what waits to be sent comes before rustls looks at any bytes, and it must not look at those again
        while self.connection.wants_write() {
            match self.connection.process_tls_records(&mut []).state {
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    encode(answer, MESSAGE_BYTES, |room| encoded(data.encode(room)));
                }
                _ => return,
            }
        }
    }

    /// The handshake is not over.
    #[inline]
    #[must_use]
    pub const fn is_handshaking(&self) -> bool {
        !self.is_established
    }

    /// The peer said that it sends nothing more.
    #[inline]
    #[must_use]
    pub const fn is_ended(&self) -> bool {
        self.is_ended
    }

    /// Bytes of memory that wait for the rest of a record; rustls' own state is not counted.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.partial.capacity()
    }
}

/// A size, or how much room it takes, or nothing.
type Sized = Result<usize, Option<InsufficientSizeError>>;

fn encoded(result: Result<usize, EncodeError>) -> Sized {
    result.map_err(|error| match error {
        EncodeError::InsufficientSize(error) => Some(error),
        EncodeError::AlreadyEncoded => None,
    })
}

fn encrypted(result: Result<usize, EncryptError>) -> Sized {
    result.map_err(|error| match error {
        EncryptError::InsufficientSize(error) => Some(error),
        EncryptError::EncryptExhausted => None,
    })
}

/// Lets `write` fill the end of `into`: `room` bytes of it, or as many as it asks for; `None` if it cannot write at all.
fn encode(
    into: &mut Vec<u8>,
    mut room: usize,
    mut write: impl FnMut(&mut [u8]) -> Sized,
) -> Option<usize> {
    let end = into.len();
    loop {
        into.resize(end + room, 0);
        match write(&mut into[end..]) {
            Ok(count) => {
                into.truncate(end + count);
                return Some(count);
            }
            Err(Some(InsufficientSizeError { required_size })) if required_size > room => {
                room = required_size;
            }
            Err(_) => {
                into.truncate(end);
                return None;
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
