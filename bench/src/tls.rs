// SPDX-License-Identifier: Apache-2.0

//! TLS for clients and for the relay: rustls with ring, its buffered API fed with bytes instead of sockets.
//!
//! A client verifies the first certificate and signature of a run in full. After that it believes the same certificate:
//! to check two signatures costs a client more than to make one costs the server, and the generator must not be what a
//! storm waits for.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use anyhow::{Context, Result, ensure};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{
    ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue,
    WebPkiServerVerifier,
};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ProducesTickets;
use rustls::{
    ClientConfig, ConnectionCommon, DigitallySignedStruct, NamedGroup, RootCertStore, ServerConfig,
    SideData, SignatureScheme,
};

/// The name that every broker's certificate must be valid for.
pub(crate) const SERVER_NAME: &str = "localhost";

/// Most plaintext that may come of bytes received earlier: one record whose end was missing.
pub(crate) const RECORD_MAX_BYTES: usize = 16 * 1024 + 256;

/// More tickets than connections are ever made at once; what comes beyond is forgotten.
const TICKETS_MAX: usize = 16 * 1024;

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A client that trusts the certificates in `ca`, and resumes sessions where it gets a place for their tickets.
pub(crate) fn client_config(ca: &Path, tickets: Option<Arc<Tickets>>) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca)? {
        roots
            .add(certificate)
            .with_context(|| format!("{} holds no CA certificate", ca.display()))?;
    }
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build()?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(FirstInFull {
            inner,
            certificate: OnceLock::new(),
            signed: OnceLock::new(),
        }))
        .with_no_client_auth();
    config.resumption =
        tickets.map_or_else(Resumption::disabled, |tickets| Resumption::store(tickets));
    Ok(Arc::new(config))
}

/// A server with one certificate: TLS 1.2 and 1.3, stateless tickets.
pub(crate) fn server_config(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>> {
    let key_der = PrivateKeyDer::from_pem_file(key)
        .with_context(|| format!("cannot read a private key from {}", key.display()))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(certificates(certificate)?, key_der)
        .with_context(|| format!("{} does not fit {}", key.display(), certificate.display()))?;
    let ticketer: Arc<dyn ProducesTickets> = rustls::crypto::ring::Ticketer::new()?;
    config.ticketer = ticketer;
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read = || CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
    let certificates =
        read().with_context(|| format!("cannot read certificates from {}", path.display()))?;
    ensure!(
        !certificates.is_empty(),
        "{} holds no certificate",
        path.display()
    );
    Ok(certificates)
}

/// Takes TLS records as they arrive; the plaintext goes to `out`, which has room for `bytes` and a record. How much
/// that is, and whether the peer has said that nothing follows.
pub(crate) fn decrypt(
    tls: &mut ConnectionCommon<impl SideData>,
    mut bytes: &[u8],
    out: &mut [u8],
) -> io::Result<(usize, bool)> {
    assert!(
        out.len() > bytes.len() + RECORD_MAX_BYTES,
        "plaintext is never longer than its records"
    );
    let mut filled = 0;
    let mut ended = false;
    while !bytes.is_empty() && !ended {
        tls.read_tls(&mut bytes)?;
        tls.process_new_packets().map_err(io::Error::other)?;
        loop {
            match tls.reader().read(&mut out[filled..]) {
                Ok(0) => {
                    ended = true;
                    break;
                }
                Ok(count) => filled += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
    }
    Ok((filled, ended))
}

/// Moves finished records to the end of `wire`.
pub(crate) fn take_records(
    tls: &mut ConnectionCommon<impl SideData>,
    wire: &mut Vec<u8>,
) -> io::Result<()> {
    while tls.wants_write() {
        tls.write_tls(wire)?;
    }
    Ok(())
}

/// Seals `bytes`; before the handshake is over they wait for its end.
pub(crate) fn encrypt(tls: &mut ConnectionCommon<impl SideData>, bytes: &[u8]) -> io::Result<()> {
    tls.writer().write_all(bytes)
}

/// Verifies in full what it has not verified yet.
#[derive(Debug)]
struct FirstInFull {
    inner: Arc<WebPkiServerVerifier>,
    /// Found good; and found to belong to who showed it.
    certificate: OnceLock<CertificateDer<'static>>,
    signed: OnceLock<CertificateDer<'static>>,
}

impl FirstInFull {
    fn signature(
        &self,
        certificate: &CertificateDer<'_>,
        verify: impl FnOnce() -> Result<HandshakeSignatureValid, rustls::Error>,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        if self.signed.get() == Some(certificate) {
            return Ok(HandshakeSignatureValid::assertion());
        }
        let valid = verify()?;
        let _ = self.signed.set(certificate.clone().into_owned());
        Ok(valid)
    }
}

impl ServerCertVerifier for FirstInFull {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.certificate.get() == Some(end_entity) {
            return Ok(ServerCertVerified::assertion());
        }
        let verified = self.inner.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        )?;
        let _ = self.certificate.set(end_entity.clone().into_owned());
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signature(certificate, || {
            self.inner
                .verify_tls12_signature(message, certificate, signature)
        })
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signature(certificate, || {
            self.inner
                .verify_tls13_signature(message, certificate, signature)
        })
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// The tickets of all clients of a run, each used once, oldest first. rustls' own store keeps eight per server.
/// At first they are only collected.
#[derive(Debug, Default)]
pub(crate) struct Tickets {
    waiting: Mutex<VecDeque<Tls13ClientSessionValue>>,
    given_out: AtomicBool,
}

impl Tickets {
    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Tls13ClientSessionValue>> {
        self.waiting.lock().expect("the generator has one thread")
    }

    /// From here on clients resume.
    pub(crate) fn give_out(&self) {
        self.given_out.store(true, Ordering::Relaxed);
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        let mut waiting = self.lock();
        if waiting.len() < TICKETS_MAX {
            waiting.push_back(ticket);
        }
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        if !self.given_out.load(Ordering::Relaxed) {
            return None;
        }
        self.lock().pop_front()
    }
}
