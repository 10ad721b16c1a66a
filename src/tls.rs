// SPDX-License-Identifier: Apache-2.0
//! Certificates, keys and revocation lists: from files to what listeners show, at start and whenever they are read again.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use corqtt_transport::tls::Terms;
use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use rustls::version::{TLS12, TLS13};

use crate::settings::{TlsSettings, TlsVersion};

/// Tickets for 1.3 after a handshake: a client has one connection, and comes back with one of them.
const TICKETS: usize = 1;

/// Reads a listener's files. With `earlier`, clients that have a ticket of that time can still resume.
///
/// # Errors
/// A file cannot be read, holds something else, or does not fit the others: the error names the file and the next step.
pub fn terms(settings: &TlsSettings, earlier: Option<&Terms>) -> anyhow::Result<Terms> {
    let provider = Arc::new(ring::default_provider());
    let chain = certificates(&settings.server_cert)?;
    let key = key(&settings.server_key)?;
    let versions: &[_] = match settings.min_version {
        TlsVersion::Tls12 => &[&TLS13, &TLS12],
        TlsVersion::Tls13 => &[&TLS13],
    };
    let clients = match &settings.ca_cert {
        Some(authorities) => Some(clients(authorities, settings.crl.as_deref(), &provider)?),
        None => None,
    };
    let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(versions)?;
    let builder = match &clients {
        Some(clients) => builder.with_client_cert_verifier(clients.clone()),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key).with_context(|| {
        format!(
            "the certificate in {} and the key in {} cannot be used together; check that they belong to each other",
            settings.server_cert.display(),
            settings.server_key.display()
        )
    })?;
    config.ticketer = match earlier {
        Some(earlier) => earlier.config.ticketer.clone(),
        None => ring::Ticketer::new().context("no random numbers for TLS tickets")?,
    };
    config.send_tls13_tickets = TICKETS;
    Ok(Terms {
        config: Arc::new(config),
        clients,
    })
}

fn clients(
    authorities: &Path,
    revoked: Option<&Path>,
    provider: &Arc<rustls::crypto::CryptoProvider>,
) -> anyhow::Result<Arc<dyn ClientCertVerifier>> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(authorities)? {
        roots
            .add(certificate)
            .with_context(|| format!("{} holds what is no certificate", authorities.display()))?;
    }
    let mut builder = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
    if let Some(path) = revoked {
        let lists = CertificateRevocationListDer::pem_file_iter(path);
        let lists: Vec<_> = all(path, lists)?;
        if lists.is_empty() {
            bail!(
                "{} holds no revocation list; it must be PEM with X509 CRL",
                path.display()
            );
        }
        // the list is about clients; one for the authorities between would be another file
        builder = builder.with_crls(lists).only_check_end_entity_revocation();
    }
    builder
        .build()
        .with_context(|| format!("clients cannot be judged by {}", authorities.display()))
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let chain = all(path, CertificateDer::pem_file_iter(path))?;
    if chain.is_empty() {
        bail!(
            "{} holds no certificate; it must be PEM with CERTIFICATE",
            path.display()
        );
    }
    Ok(chain)
}

fn key(path: &Path) -> anyhow::Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| match error {
        pem::Error::NoItemsFound => anyhow::anyhow!(
            "{} holds no private key; it must be PEM with PRIVATE KEY, and not encrypted",
            path.display()
        ),
        error => anyhow::anyhow!("{} cannot be read: {error}", path.display()),
    })
}

/// Everything of a kind in a PEM file.
fn all<T>(
    path: &Path,
    items: Result<impl Iterator<Item = Result<T, pem::Error>>, pem::Error>,
) -> anyhow::Result<Vec<T>> {
    items
        .and_then(Iterator::collect)
        .map_err(|error| anyhow::anyhow!("{} cannot be read: {error}", path.display()))
}
