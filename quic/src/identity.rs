// SPDX-License-Identifier: Apache-2.0
//! Who a node is to its peers: a key made from the cluster's secret, or a certificate of the cluster's authority.
//!
//! From a secret each node makes the same Ed25519 key, shows it as a raw public key (RFC 7250) and accepts no other; the
//! TLS 1.3 handshake proves on both sides that the secret is known, and nothing of it travels. Making the key is slow on
//! purpose (PBKDF2, RFC 8018): who reaches a node sees its public key, and must not find a weak secret by trying.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption, WebPkiServerVerifier};
use rustls::crypto::verify_tls13_signature_with_raw_key;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring as provider};
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer,
    UnixTime,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error,
    PeerIncompatible, RootCertStore, ServerConfig, SignatureScheme,
};

/// The shortest secret (bytes).
pub const SECRET_BYTES_MIN: usize = 16;

/// About 50 ms of one core per secret, at start and reload.
const ROUNDS: NonZeroU32 = NonZeroU32::new(100_000).expect("it is not 0");
const SALT: &[u8] = b"corqtt cluster link 1";
const SEED_BYTES: usize = 32;
/// What comes before an Ed25519 seed in PKCS#8 (RFC 8410, section 7).
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
/// Both ends speak this protocol, or there is no link.
const ALPN: &[u8] = b"corqtt-link/1";

/// What a node shows its peers, and whom it accepts.
#[derive(Clone, Debug)]
pub struct Identity {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    name: ServerName<'static>,
}

/// A secret or a certificate cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidIdentity {
    /// There is no secret.
    NoSecret,
    /// A secret is shorter than [`SECRET_BYTES_MIN`]; its place, from 1.
    ShortSecret(usize),
    /// Certificates or key are refused by TLS.
    Tls(String),
}

impl fmt::Display for InvalidIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSecret => f.write_str("there is no cluster secret"),
            Self::ShortSecret(line) => write!(
                f,
                "cluster secret {line} is shorter than {SECRET_BYTES_MIN} bytes; `openssl rand -hex 32` makes one"
            ),
            Self::Tls(cause) => write!(f, "the link's certificates cannot be used: {cause}"),
        }
    }
}

impl std::error::Error for InvalidIdentity {}

impl From<Error> for InvalidIdentity {
    fn from(error: Error) -> Self {
        Self::Tls(error.to_string())
    }
}

impl Identity {
    /// The identity of all who know the first of `secrets`; who knows any of them is accepted.
    ///
    /// # Errors
    /// When there is none, or one is too short.
    pub fn of_secrets<S: AsRef<[u8]>>(secrets: &[S]) -> Result<Self, InvalidIdentity> {
        check_secrets(secrets)?;
        let keys = secrets
            .iter()
            .map(|secret| key_of(secret.as_ref()))
            .collect::<Result<Vec<_>, _>>()?;
        let own = keys.first().ok_or(InvalidIdentity::NoSecret)?.clone();
        let known = Arc::new(Known {
            keys: keys.iter().map(|key| key.cert[0].to_vec()).collect(),
            algorithms: provider::default_provider().signature_verification_algorithms,
        });
        let server = server_builder()?
            .with_client_cert_verifier(known.clone())
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(
                own.clone(),
            )));
        let client = client_builder()?
            .dangerous()
            .with_custom_certificate_verifier(known)
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(own)));
        Ok(Self::new(server, client, "corqtt"))
    }

    /// The identity of a certificate; who shows one of the same authorities is accepted, whatever name is in it. Peers
    /// are dialled as `name`, which each certificate must be good for.
    ///
    /// # Errors
    /// When TLS refuses one of them.
    pub fn of_certificates(
        authorities: RootCertStore,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        name: &str,
    ) -> Result<Self, InvalidIdentity> {
        let authorities = Arc::new(authorities);
        let provider = crypto();
        let clients =
            WebPkiClientVerifier::builder_with_provider(authorities.clone(), provider.clone())
                .build()
                .map_err(|error| InvalidIdentity::Tls(error.to_string()))?;
        let servers = WebPkiServerVerifier::builder_with_provider(authorities, provider)
            .build()
            .map_err(|error| InvalidIdentity::Tls(error.to_string()))?;
        let name = ServerName::try_from(name.to_owned())
            .map_err(|_| InvalidIdentity::Tls(format!("{name} is no DNS name")))?;
        let server = server_builder()?
            .with_client_cert_verifier(clients)
            .with_single_cert(chain.clone(), key.clone_key())?;
        let client = client_builder()?
            .with_webpki_verifier(servers)
            .with_client_auth_cert(chain, key)?;
        Ok(Self::new(server, client, &name.to_str()))
    }

    fn new(mut server: ServerConfig, mut client: ClientConfig, name: &str) -> Self {
        server.alpn_protocols = vec![ALPN.to_vec()];
        client.alpn_protocols = vec![ALPN.to_vec()];
        // a ticket would outlive the secret that it was given for
        server.send_tls13_tickets = 0;
        client.resumption = Resumption::disabled();
        Self {
            server: Arc::new(server),
            client: Arc::new(client),
            name: ServerName::try_from(name.to_owned()).expect("it was a name before"),
        }
    }

    /// The same identity for TLS over TCP, where both ends speak `protocol`: for the end that accepts, and for the one
    /// that dials with the name that it dials.
    #[must_use]
    pub fn over_tcp(
        &self,
        protocol: &[u8],
    ) -> (Arc<ServerConfig>, Arc<ClientConfig>, ServerName<'static>) {
        let (mut server, mut client) = ((*self.server).clone(), (*self.client).clone());
        server.alpn_protocols = vec![protocol.to_vec()];
        client.alpn_protocols = vec![protocol.to_vec()];
        (Arc::new(server), Arc::new(client), self.name.clone())
    }

    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        self.client.clone()
    }

    pub(crate) fn name(&self) -> String {
        self.name.to_str().into_owned()
    }
}

fn check_secrets<S: AsRef<[u8]>>(secrets: &[S]) -> Result<(), InvalidIdentity> {
    if secrets.is_empty() {
        return Err(InvalidIdentity::NoSecret);
    }
    let short = |secret: &S| secret.as_ref().len() < SECRET_BYTES_MIN;
    match secrets.iter().position(short) {
        Some(at) => Err(InvalidIdentity::ShortSecret(at + 1)),
        None => Ok(()),
    }
}

/// A key of 256 bits for each secret, as slow to make as the identity's and of no use for it; `purpose` tells apart what
/// keys are for.
///
/// # Errors
/// When there is no secret, or one is too short.
pub fn keys_of_secrets<S: AsRef<[u8]>>(
    secrets: &[S],
    purpose: &str,
) -> Result<Vec<[u8; 32]>, InvalidIdentity> {
    check_secrets(secrets)?;
    let salt = [SALT, b": ", purpose.as_bytes()].concat();
    let keys = secrets.iter().map(|secret| {
        let mut key = [0; 32];
        let algorithm = ring::pbkdf2::PBKDF2_HMAC_SHA256;
        ring::pbkdf2::derive(algorithm, ROUNDS, &salt, secret.as_ref(), &mut key);
        key
    });
    Ok(keys.collect())
}

fn crypto() -> Arc<CryptoProvider> {
    Arc::new(provider::default_provider())
}

type ServerBuilder = rustls::ConfigBuilder<ServerConfig, rustls::WantsVerifier>;
type ClientBuilder = rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>;

fn server_builder() -> Result<ServerBuilder, Error> {
    ServerConfig::builder_with_provider(crypto()).with_protocol_versions(&[&rustls::version::TLS13])
}

fn client_builder() -> Result<ClientBuilder, Error> {
    ClientConfig::builder_with_provider(crypto()).with_protocol_versions(&[&rustls::version::TLS13])
}

/// The key of all who know a secret, with its public half in place of a certificate.
fn key_of(secret: &[u8]) -> Result<Arc<CertifiedKey>, Error> {
    let mut der = [0; PKCS8_PREFIX.len() + SEED_BYTES];
    let (prefix, seed) = der.split_at_mut(PKCS8_PREFIX.len());
    prefix.copy_from_slice(&PKCS8_PREFIX);
    ring::pbkdf2::derive(ring::pbkdf2::PBKDF2_HMAC_SHA256, ROUNDS, SALT, secret, seed);
    let key = provider::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(&der[..]))?;
    let public = key
        .public_key()
        .ok_or(Error::General("the key has no public half".to_owned()))?;
    let public = CertificateDer::from(public.to_vec());
    Ok(Arc::new(CertifiedKey::new(vec![public], key)))
}

/// Accepts exactly the public keys of the secrets.
#[derive(Debug)]
struct Known {
    /// SubjectPublicKeyInfo, DER.
    keys: Vec<Vec<u8>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Known {
    fn verify(&self, shown: &CertificateDer<'_>) -> Result<(), Error> {
        // public keys: nothing is learned from how long this takes
        if self.keys.iter().any(|key| key == shown.as_ref()) {
            Ok(())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = SubjectPublicKeyInfoDer::from(shown.as_ref());
        verify_tls13_signature_with_raw_key(message, &key, signature, &self.algorithms)
    }

    fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls13RequiredForQuic.into())
    }
}

impl ServerCertVerifier for Known {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(shown).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _shown: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify_signature(message, shown, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Known {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        shown: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(shown).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _shown: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify_signature(message, shown, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_or_short_secret_is_refused_by_its_place() {
        let none: [&str; 0] = [];
        let error = Identity::of_secrets(&none).expect_err("there is none");
        assert_eq!(error, InvalidIdentity::NoSecret);
        let secrets = ["0123456789abcdef", "0123456789abcde"];
        let error = Identity::of_secrets(&secrets).expect_err("one is short");
        assert_eq!(error, InvalidIdentity::ShortSecret(2));
    }

    #[test]
    fn the_same_secret_makes_the_same_key_and_another_one_another() {
        let public = |secret: &[u8]| key_of(secret).expect("a key").cert[0].clone();
        assert_eq!(public(b"0123456789abcdef"), public(b"0123456789abcdef"));
        assert_ne!(public(b"0123456789abcdef"), public(b"0123456789abcdeg"));
        let keys = |secrets: &[&str], purpose| keys_of_secrets(secrets, purpose).expect("keys");
        let (one, other) = ("0123456789abcdef", "0123456789abcdeg");
        assert_eq!(keys(&[one], "a"), keys(&[one, other], "a")[..1]);
        assert_ne!(keys(&[one], "a"), keys(&[one], "b"));
        assert_ne!(keys(&[one], "a"), keys(&[other], "a"));
    }
}
