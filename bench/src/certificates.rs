// SPDX-License-Identifier: Apache-2.0

//! Certificates for a bench on loopback: a CA, and a server and a client that it signs, ECDSA P-256 each.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};

/// Writes ca.pem, server.pem, server-key.pem, client.pem and client-key.pem into `dir`, which it makes.
pub(crate) fn write(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let mut ca = CertificateParams::new(Vec::new())?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    ca.distinguished_name
        .push(DnType::CommonName, "corqtt-bench CA");
    // the key of the CA is forgotten: nothing more is to be signed
    let ca_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let put = |name: &str, text: String| {
        let path = dir.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    put("ca.pem", ca.self_signed(&ca_key)?.pem())?;
    let issuer = Issuer::new(ca, ca_key);

    let names = [crate::tls::SERVER_NAME, "127.0.0.1", "::1"].map(String::from);
    for (name, subject, names, purpose) in [
        (
            "server",
            crate::tls::SERVER_NAME,
            names.to_vec(),
            ExtendedKeyUsagePurpose::ServerAuth,
        ),
        (
            "client",
            "corqtt-bench client",
            Vec::new(),
            ExtendedKeyUsagePurpose::ClientAuth,
        ),
    ] {
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, subject);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![purpose];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        put(
            &format!("{name}.pem"),
            params.signed_by(&key, &issuer)?.pem(),
        )?;
        put(&format!("{name}-key.pem"), key.serialize_pem())?;
    }
    Ok(())
}
