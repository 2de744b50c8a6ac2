//! Certificates for servers with TLS.

use anyhow::Context;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use std::path::PathBuf;
use tempfile::TempDir;

/// A private authority with a server and a client certificate, as PEM files.
/// The files are deleted on drop.
#[derive(Debug)]
pub struct Certificates {
    dir: TempDir,
}

impl Certificates {
    /// Creates them for `127.0.0.1` and `localhost`.
    pub fn make() -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("berth-redis-tls-").tempdir()?;
        let made = Self { dir };
        let key = KeyPair::generate()?;
        let mut authority = CertificateParams::new(Vec::new())?;
        // With equal names, OpenSSL would take each certificate for its own issuer.
        authority
            .distinguished_name
            .push(DnType::CommonName, "a private authority");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        std::fs::write(made.ca(), authority.self_signed(&key)?.pem())?;
        let issuer = Issuer::new(authority, key);
        for (name, purpose) in [
            ("server", ExtendedKeyUsagePurpose::ServerAuth),
            ("client", ExtendedKeyUsagePurpose::ClientAuth),
        ] {
            let key = KeyPair::generate()?;
            let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
            let mut params = CertificateParams::new(names)?;
            params.distinguished_name.push(DnType::CommonName, name);
            // Servers are clients of each other.
            params.extended_key_usages = vec![purpose, ExtendedKeyUsagePurpose::ClientAuth];
            std::fs::write(made.file(name, "pem"), params.signed_by(&key, &issuer)?.pem())?;
            std::fs::write(made.file(name, "key"), key.serialize_pem())?;
        }
        Ok(made)
    }

    /// Certificate of the authority.
    pub fn ca(&self) -> PathBuf {
        self.file("ca", "pem")
    }

    /// Certificate and key of a client.
    pub fn client(&self) -> (PathBuf, PathBuf) {
        (self.file("client", "pem"), self.file("client", "key"))
    }

    /// Arguments of a server with TLS on `port` that requires client certificates.
    pub fn words(&self, port: u16) -> anyhow::Result<Vec<String>> {
        let mut words = vec!["--tls-port".to_owned(), port.to_string()];
        words.extend(
            self.server_files()?
                .into_iter()
                .flat_map(|(name, value)| [format!("--{name}"), value]),
        );
        Ok(words)
    }

    /// Settings of a server that requires client certificates, without the port.
    pub(super) fn server_files(&self) -> anyhow::Result<[(&'static str, String); 4]> {
        let path = |path: PathBuf| {
            path.into_os_string()
                .into_string()
                .ok()
                .context("a path is not text")
        };
        Ok([
            ("tls-ca-cert-file", path(self.ca())?),
            ("tls-cert-file", path(self.file("server", "pem"))?),
            ("tls-key-file", path(self.file("server", "key"))?),
            ("tls-auth-clients", "yes".to_owned()),
        ])
    }

    fn file(&self, name: &str, kind: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.{kind}"))
    }
}
