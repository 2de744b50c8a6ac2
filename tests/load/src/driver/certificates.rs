//! A private authority and a certificate for `localhost`, P-256.

use anyhow::Result;
use std::path::Path;

/// Writes `ca.pem`, `cert.pem`, `key.pem`, and `both.pem` for haproxy.
pub(super) fn write(dir: &Path) -> Result<()> {
    let ca_key = rcgen::KeyPair::generate()?;
    let mut ca_params = rcgen::CertificateParams::new(Vec::new())?;
    ca_params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    // Another name than the certificate's, which would look self-signed otherwise.
    ca_params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "berth load authority");
    let ca = ca_params.self_signed(&ca_key)?;
    let issuer = rcgen::Issuer::new(ca_params, ca_key);
    let key = rcgen::KeyPair::generate()?;
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let cert = rcgen::CertificateParams::new(names)?.signed_by(&key, &issuer)?;
    std::fs::write(dir.join("ca.pem"), ca.pem())?;
    std::fs::write(dir.join("cert.pem"), cert.pem())?;
    std::fs::write(dir.join("key.pem"), key.serialize_pem())?;
    std::fs::write(
        dir.join("both.pem"),
        format!("{}{}", cert.pem(), key.serialize_pem()),
    )?;
    Ok(())
}
