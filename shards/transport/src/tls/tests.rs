// SPDX-License-Identifier: Apache-2.0
//! A rustls client and [`Tls`] face to face.

use std::io::{Read, Write};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    AlertDescription, ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion,
};

use super::*;

/// An authority, and what it signs.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("an authority"))
    }

    fn sign(&self, name: &str) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new([name.to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        (certificate.der().clone(), key)
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).expect("an authority");
        Arc::new(roots)
    }
}

/// Terms with a certificate for `localhost`; with `clients`, theirs must be of that authority.
pub(crate) fn terms(authority: &Authority, clients: Option<&Authority>) -> Terms {
    let provider = Arc::new(ring::default_provider());
    let (certificate, key) = authority.sign("localhost");
    let clients = clients.map(|clients| {
        WebPkiClientVerifier::builder_with_provider(clients.roots(), provider.clone())
            .build()
            .expect("a verifier")
    });
    let builder = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions");
    let builder = match &clients {
        Some(clients) => builder.with_client_cert_verifier(clients.clone()),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder
        .with_single_cert(vec![certificate], key)
        .expect("a certificate and its key");
    config.ticketer = ring::Ticketer::new().expect("a ticketer");
    Terms {
        config: Arc::new(config),
        clients,
    }
}

pub(crate) fn client_config(
    authority: &Authority,
    own: Option<&Authority>,
    versions: &[&'static SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .expect("versions")
        .with_root_certificates(authority.roots());
    Arc::new(match own {
        Some(own) => {
            let (certificate, key) = own.sign("client");
            builder
                .with_client_auth_cert(vec![certificate], key)
                .expect("a certificate and its key")
        }
        None => builder.with_no_client_auth(),
    })
}

/// Both ends, and the bytes that the server got out of it.
struct Pair {
    client: ClientConnection,
    server: Tls,
    plain: Vec<u8>,
    heard: Vec<u8>,
    /// Bytes handed to the server at once.
    cut: usize,
}

impl Pair {
    fn new(terms: &Terms, config: &Arc<ClientConfig>, cut: usize) -> Self {
        let name = ServerName::try_from("localhost").expect("a name");
        Self {
            client: ClientConnection::new(config.clone(), name).expect("a client"),
            server: Tls::new(terms).expect("a server"),
            plain: Vec::new(),
            heard: Vec::new(),
            cut,
        }
    }

    /// Both ends after a handshake, of a client without a certificate.
    fn established(cut: usize) -> Self {
        let authority = Authority::new();
        let config = client_config(&authority, None, &VERSIONS);
        let mut pair = Self::new(&terms(&authority, None), &config, cut);
        pair.talk().expect("a handshake");
        pair
    }

    /// Moves bytes until neither end has any; the server's error ends it.
    fn talk(&mut self) -> Result<(), TlsError> {
        loop {
            let mut sent = Vec::new();
            while self.client.wants_write() {
                self.client.write_tls(&mut sent).expect("memory");
            }
            if sent.is_empty() {
                return Ok(());
            }
            for part in sent.chunks_mut(self.cut) {
                let mut answer = Vec::new();
                let handled = self
                    .server
                    .handle_bytes(part, &mut self.plain, &mut answer, NOW_MS);
                self.hear(&answer);
                handled?;
            }
        }
    }

    /// The client reads what the server sent, up to an error of its own.
    fn hear(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            self.client.read_tls(&mut bytes).expect("memory");
            if self.client.process_new_packets().is_err() {
                return;
            }
            match self.client.reader().read_to_end(&mut self.heard) {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn heard(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.heard)
    }
}

/// Some day of 2026; certificates here are valid for all times.
pub(crate) const NOW_MS: u64 = 1_790_000_000_000;
const CUTS: [usize; 3] = [1, 7, usize::MAX];
pub(crate) const VERSIONS: [&SupportedProtocolVersion; 2] =
    [&rustls::version::TLS12, &rustls::version::TLS13];

#[test]
fn bytes_travel_both_ways_however_they_are_cut() {
    let authority = Authority::new();
    let terms = terms(&authority, None);
    for version in VERSIONS {
        for cut in CUTS {
            let mut pair = Pair::new(&terms, &client_config(&authority, None, &[version]), cut);
            pair.client.writer().write_all(b"CONNECT").expect("memory");
            pair.talk().expect("a handshake");
            assert!(!pair.server.is_handshaking());
            assert_eq!(pair.plain, b"CONNECT");
            let large = vec![b'x'; 100_000];
            let mut socket = Vec::new();
            pair.server.wrap(&large, &mut socket).expect("records");
            pair.hear(&socket);
            assert_eq!(pair.heard(), large);
            pair.client
                .writer()
                .write_all(&large[..40_000])
                .expect("memory");
            pair.talk().expect("records");
            assert_eq!(pair.plain.len(), 7 + 40_000);
        }
    }
}

#[test]
fn an_idle_connection_holds_nothing() {
    let authority = Authority::new();
    let terms = terms(&authority, None);
    let mut pair = Pair::new(&terms, &client_config(&authority, None, &VERSIONS), 1);
    pair.client.writer().write_all(b"one").expect("memory");
    pair.talk().expect("a handshake");
    assert_eq!(pair.server.memory_bytes(), 0);
}

#[test]
fn what_is_written_between_two_halves_of_a_record_disturbs_neither() {
    let mut pair = Pair::established(usize::MAX);
    pair.client
        .writer()
        .write_all(b"in two halves")
        .expect("memory");
    let mut record = Vec::new();
    pair.client.write_tls(&mut record).expect("memory");
    let (first, second) = record.split_at_mut(9);
    let mut answer = Vec::new();
    for half in [first, second] {
        pair.server
            .handle_bytes(half, &mut pair.plain, &mut answer, NOW_MS)
            .expect("a record");
        pair.server
            .wrap(b"meanwhile", &mut answer)
            .expect("records");
    }
    pair.hear(&answer);
    assert_eq!(pair.plain, b"in two halves");
    assert_eq!(pair.heard(), b"meanwhilemeanwhile");
}

#[test]
fn the_clients_key_update_is_answered() {
    let mut pair = Pair::established(3);
    pair.client.refresh_traffic_keys().expect("1.3 is spoken");
    pair.client.writer().write_all(b"new keys").expect("memory");
    pair.talk().expect("records");
    assert_eq!(pair.plain, b"new keys");
    let mut socket = Vec::new();
    pair.server
        .wrap(b"to you too", &mut socket)
        .expect("records");
    pair.hear(&socket);
    assert_eq!(pair.heard(), b"to you too");
}

#[test]
fn garbage_is_answered_by_an_alert() {
    let authority = Authority::new();
    let mut server = Tls::new(&terms(&authority, None)).expect("a server");
    let mut answer = Vec::new();
    let mut garbage = *b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x3c\x00\x02id";
    let error = server
        .handle_bytes(&mut garbage, &mut Vec::new(), &mut answer, NOW_MS)
        .expect_err("no TLS");
    assert!(matches!(error, TlsError::Rustls(_)), "{error}");
    // an alert record, fatal
    assert_eq!((answer[0], answer[5]), (21, 2));
    let sent = answer.len();
    server.close(&mut answer);
    assert_eq!(answer.len(), sent, "nothing follows an alert");
}

#[test]
fn nothing_is_written_behind_an_alert() {
    let mut pair = Pair::established(usize::MAX);
    pair.client.writer().write_all(b"changed").expect("memory");
    let mut record = Vec::new();
    pair.client.write_tls(&mut record).expect("memory");
    *record.last_mut().expect("a tag") ^= 1;
    let mut answer = Vec::new();
    pair.server
        .handle_bytes(&mut record, &mut pair.plain, &mut answer, NOW_MS)
        .expect_err("its tag is wrong");
    let sent = answer.len();
    assert!(sent > 0, "the alert");
    pair.server
        .wrap(b"late", &mut answer)
        .expect("it is dropped");
    pair.server.close(&mut answer);
    assert_eq!(answer.len(), sent);
}

#[test]
fn a_message_in_the_smallest_records_is_held_to_a_bound() {
    let authority = Authority::new();
    let mut server = Tls::new(&terms(&authority, None)).expect("a server");
    // the header of a ClientHello of 65,535 bytes, then a byte in each record
    let mut records = b"\x16\x03\x01\0\x04\x01\0\xff\xff".to_vec();
    for _ in 0..65_000 {
        records.extend_from_slice(b"\x16\x03\x01\0\x01\0");
    }
    let (mut plain, mut answer) = (Vec::new(), Vec::new());
    let failed = records.chunks(46 * 1024).find_map(|part| {
        let handled = server.handle_bytes(&mut part.to_vec(), &mut plain, &mut answer, NOW_MS);
        assert!(server.memory_bytes() <= 2 * PARTIAL_BYTES_MAX);
        handled.err()
    });
    assert!(failed.is_some(), "390 KB were kept");
    assert_eq!(server.memory_bytes(), 0);
}

#[test]
fn a_goodbye_is_said_once_and_heard() {
    let mut pair = Pair::established(usize::MAX);
    let mut socket = Vec::new();
    pair.server.close(&mut socket);
    pair.hear(&socket);
    assert_eq!(pair.client.reader().read(&mut [0; 1]).expect("the end"), 0);
    pair.client.send_close_notify();
    pair.talk().expect("a goodbye");
    assert!(pair.server.is_ended());
}

#[test]
fn a_client_must_show_a_certificate_of_the_right_authority() {
    let (authority, clients, strangers) = (Authority::new(), Authority::new(), Authority::new());
    let terms = terms(&authority, Some(&clients));
    for version in VERSIONS {
        let known = client_config(&authority, Some(&clients), &[version]);
        Pair::new(&terms, &known, 5)
            .talk()
            .expect("a client that is known");
        for own in [None, Some(&strangers)] {
            let unknown = client_config(&authority, own, &[version]);
            let mut pair = Pair::new(&terms, &unknown, 5);
            pair.talk().expect_err("a client that is not known");
            assert!(pair.server.is_handshaking());
        }
    }
}

#[test]
fn a_ticket_does_not_outlive_the_authority_that_vouched_for_its_client() {
    let (authority, clients, others) = (Authority::new(), Authority::new(), Authority::new());
    for version in VERSIONS {
        let before = terms(&authority, Some(&clients));
        let config = client_config(&authority, Some(&clients), &[version]);
        let mut pair = Pair::new(&before, &config, usize::MAX);
        pair.talk().expect("a full handshake");
        let mut pair = Pair::new(&before, &config, usize::MAX);
        pair.talk().expect("a resumed handshake");
        assert_eq!(pair.client.handshake_kind(), Some(HandshakeKind::Resumed));

        let mut after = terms(&authority, Some(&others));
        // as after a reload: the same ticketer
        let mut kept = ServerConfig::clone(&after.config);
        kept.ticketer = before.config.ticketer.clone();
        after.config = Arc::new(kept);
        let mut pair = Pair::new(&after, &config, usize::MAX);
        pair.client.writer().write_all(b"CONNECT").expect("memory");
        pair.talk().expect_err("its authority is gone");
        assert_eq!(pair.plain, b"");
    }
}

#[test]
fn a_version_that_is_too_old_is_refused_with_an_alert() {
    let authority = Authority::new();
    let mut newest = terms(&authority, None);
    let (certificate, key) = authority.sign("localhost");
    newest.config = Arc::new(
        ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("a version")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("a certificate and its key"),
    );
    let config = client_config(&authority, None, &[&rustls::version::TLS12]);
    let mut pair = Pair::new(&newest, &config, usize::MAX);
    pair.talk().expect_err("too old");
    let error = pair.client.process_new_packets().expect_err("an alert");
    assert_eq!(
        error,
        Error::AlertReceived(AlertDescription::ProtocolVersion)
    );
}
