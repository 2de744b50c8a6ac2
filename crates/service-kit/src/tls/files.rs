//! Certificates and keys in files.

use crate::config::{Problems, Validate};
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::path::{Path, PathBuf};

/// Files of a server: certificate chain, key and client authorities.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// PEM file with the certificate chain, server certificate first.
    pub cert: PathBuf,
    /// PEM file with the private key.
    pub key: PathBuf,
    /// PEM file with the authorities of client certificates. If set, a client
    /// without a valid certificate is rejected.
    #[serde(default)]
    pub client_ca: Option<PathBuf>,
}

impl Validate for TlsFiles {
    fn validate(&self, problems: &mut Problems) {
        must_be_file(problems, "cert", &self.cert);
        must_be_file(problems, "key", &self.key);
        if let Some(path) = &self.client_ca {
            must_be_file(problems, "client_ca", path);
        }
    }
}

pub(crate) fn must_be_file(problems: &mut Problems, key: &str, path: &Path) {
    if !path.is_file() {
        problems.add(key, format!("{} is not a readable file", path.display()));
    }
}

/// Reasons why certificates are unusable.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or has no usable content.
    #[error("{}: {what}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The problem.
        what: String,
    },
    /// Certificates and key do not match.
    #[error("the certificates cannot be used: {0}")]
    Unusable(String),
}

impl TlsError {
    pub(super) fn unusable(error: impl std::fmt::Display) -> Self {
        Self::Unusable(error.to_string())
    }

    fn file(path: &Path, what: impl std::fmt::Display) -> Self {
        Self::File {
            path: path.to_owned(),
            what: what.to_string(),
        }
    }
}

/// Reads a file once, so that certificate and fingerprint have the same bytes.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|error| TlsError::file(path, error))
}

pub(super) fn chain(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certs: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|e| TlsError::file(path, e))?;
    if certs.is_empty() {
        Err(TlsError::file(path, "no certificate in it"))
    } else {
        Ok(certs)
    }
}

pub(super) fn key(path: &Path, pem: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| TlsError::file(path, "no private key in it"))
}

pub(super) fn roots(path: &Path, pem: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for cert in chain(path, pem)? {
        store.add(cert).map_err(|error| TlsError::file(path, error))?;
    }
    Ok(store)
}

/// Fingerprint of a set of files, to detect changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fingerprint([u8; 32]);

impl Fingerprint {
    pub(super) fn of<'a>(contents: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hash = Sha256::new();
        for content in contents {
            hash.update((content.len() as u64).to_be_bytes());
            hash.update(content);
        }
        Self(hash.finalize().into())
    }
}
