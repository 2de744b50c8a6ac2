//! Client side of TLS: trusted authorities and client certificate.

use super::files::{self, Fingerprint, TlsError, must_be_file};
use super::provider;
use crate::config::{Problems, Validate};
use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use rustls_platform_verifier::Verifier;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use tokio_rustls::TlsConnector;

/// TLS files of a client. Without them, the system's authorities are trusted
/// and no client certificate is sent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClientTlsFiles {
    /// PEM file with the trusted authorities; replaces the system's.
    pub ca: Option<PathBuf>,
    /// PEM file with the client certificate chain, for servers that request it.
    pub cert: Option<PathBuf>,
    /// PEM file with the private key of the client certificate.
    pub key: Option<PathBuf>,
    /// Required name in the server's certificate; default: the host of the
    /// address.
    pub server_name: Option<String>,
}

impl Validate for ClientTlsFiles {
    fn validate(&self, problems: &mut Problems) {
        for (key, path) in [("ca", &self.ca), ("cert", &self.cert), ("key", &self.key)] {
            if let Some(path) = path {
                must_be_file(problems, key, path);
            }
        }
        problems.require(
            self.cert.is_some() == self.key.is_some(),
            "key",
            "goes together with `cert`",
        );
        if let Some(name) = &self.server_name {
            problems.require(
                ServerName::try_from(name.as_str()).is_ok(),
                "server_name",
                "must be a DNS name or an IP address",
            );
        }
    }
}

/// TLS configuration of a client, reloaded when its files change.
pub struct ClientTls {
    files: ClientTlsFiles,
    alpn: &'static [&'static [u8]],
    current: Mutex<(Fingerprint, Arc<ClientConfig>)>,
}

impl ClientTls {
    /// Reads the files; fails if they are invalid.
    pub fn load(files: &ClientTlsFiles, alpn: &'static [&'static [u8]]) -> Result<Arc<Self>, TlsError> {
        let contents = Contents::read(files)?;
        let config = contents.config(files, alpn)?;
        Ok(Arc::new(Self {
            files: files.clone(),
            alpn,
            current: Mutex::new((contents.fingerprint(), Arc::new(config))),
        }))
    }

    /// A connector with the current content of the files, or the last valid
    /// one. Reads small files, so use it per connection, not per call.
    pub fn connector(&self) -> TlsConnector {
        if let Ok(contents) = Contents::read(&self.files) {
            let fingerprint = contents.fingerprint();
            let mut current = self.current.lock();
            if current.0 != fingerprint {
                current.0 = fingerprint;
                match contents.config(&self.files, self.alpn) {
                    Ok(config) => current.1 = Arc::new(config),
                    Err(error) => {
                        tracing::error!(%error, "reloading client certificate failed; the last valid one stays in use");
                    }
                }
            }
            return TlsConnector::from(Arc::clone(&current.1));
        }
        TlsConnector::from(Arc::clone(&self.current.lock().1))
    }

    /// The required name in the certificate of `host`.
    pub fn server_name(&self, host: &str) -> Result<ServerName<'static>, TlsError> {
        let name = self.files.server_name.as_deref().unwrap_or(host);
        let name = name
            .strip_prefix('[')
            .and_then(|n| n.strip_suffix(']'))
            .unwrap_or(name);
        ServerName::try_from(name.to_owned()).map_err(TlsError::unusable)
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls")
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

struct Contents {
    ca: Option<Vec<u8>>,
    cert: Option<Vec<u8>>,
    key: Option<Vec<u8>>,
}

impl Contents {
    fn read(files: &ClientTlsFiles) -> Result<Self, TlsError> {
        let read = |path: &Option<PathBuf>| path.as_deref().map(files::read).transpose();
        Ok(Self {
            ca: read(&files.ca)?,
            cert: read(&files.cert)?,
            key: read(&files.key)?,
        })
    }

    fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of([&self.ca, &self.cert, &self.key].map(|c| c.as_deref().unwrap_or_default()))
    }

    fn config(&self, files: &ClientTlsFiles, alpn: &[&[u8]]) -> Result<ClientConfig, TlsError> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(TlsError::unusable)?;
        let builder = match (&files.ca, &self.ca) {
            (Some(path), Some(pem)) => builder.with_root_certificates(files::roots(path, pem)?),
            _ => {
                let verifier = Verifier::new(provider()).map_err(TlsError::unusable)?;
                builder
                    .dangerous()
                    .with_custom_certificate_verifier(Arc::new(verifier))
            }
        };
        let mut config = match (&files.cert, &self.cert, &files.key, &self.key) {
            (Some(cert_path), Some(cert), Some(key_path), Some(key)) => builder
                .with_client_auth_cert(files::chain(cert_path, cert)?, files::key(key_path, key)?)
                .map_err(TlsError::unusable)?,
            _ => builder.with_no_client_auth(),
        };
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok(config)
    }
}
