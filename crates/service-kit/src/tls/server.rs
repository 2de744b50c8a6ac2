//! Server side of TLS: one rustls configuration, reloaded when its files
//! change.

use super::files::{self, Fingerprint, TlsError, TlsFiles};
use super::provider;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// Poll interval of the files.
pub(super) const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// Certificates of a port, replaceable at run time.
pub struct ServerTls {
    files: TlsFiles,
    alpn: &'static [&'static [u8]],
    current: ArcSwap<ServerConfig>,
    /// Fingerprint of the last read content, valid or not.
    seen: Mutex<Fingerprint>,
}

impl ServerTls {
    /// Reads the files; fails if they are invalid.
    pub fn load(files: &TlsFiles, alpn: &'static [&'static [u8]]) -> Result<Arc<Self>, TlsError> {
        let contents = Contents::read(files)?;
        Ok(Arc::new(Self {
            files: files.clone(),
            alpn,
            current: ArcSwap::from_pointee(contents.config(files, alpn)?),
            seen: Mutex::new(contents.fingerprint()),
        }))
    }

    /// The current configuration, for one handshake.
    pub fn current(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }

    /// An acceptor with the current certificates, for one handshake.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.current())
    }

    /// Reloads changed files and returns whether there were any. Unusable files
    /// (half-written, or not matching) leave the last valid ones in use and are
    /// reported once per change.
    pub fn reload_if_changed(&self) -> Result<bool, TlsError> {
        let contents = Contents::read(&self.files)?;
        let fingerprint = contents.fingerprint();
        {
            let mut seen = self.seen.lock();
            if *seen == fingerprint {
                return Ok(false);
            }
            *seen = fingerprint;
        }
        self.current
            .store(Arc::new(contents.config(&self.files, self.alpn)?));
        Ok(true)
    }

    /// Polls the files until `stop`; run it as a task.
    pub async fn keep_fresh(self: Arc<Self>, stop: CancellationToken) {
        let mut unreadable = false;
        while stop
            .run_until_cancelled(tokio::time::sleep(POLL_INTERVAL))
            .await
            .is_some()
        {
            let tls = Arc::clone(&self);
            let Ok(result) = tokio::task::spawn_blocking(move || tls.reload_if_changed()).await else {
                continue;
            };
            match result {
                Ok(true) => tracing::info!(cert = %self.files.cert.display(), "certificate replaced"),
                Ok(false) => {}
                Err(_) if unreadable => {}
                Err(ref error) => {
                    tracing::error!(%error, "reloading certificate failed; the last valid one stays in use")
                }
            }
            unreadable = matches!(result, Err(TlsError::File { .. }));
        }
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls")
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

struct Contents {
    cert: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

impl Contents {
    fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        Ok(Self {
            cert: files::read(&files.cert)?,
            key: files::read(&files.key)?,
            client_ca: files.client_ca.as_deref().map(files::read).transpose()?,
        })
    }

    fn fingerprint(&self) -> Fingerprint {
        let client_ca = self.client_ca.as_deref().unwrap_or_default();
        Fingerprint::of([self.cert.as_slice(), self.key.as_slice(), client_ca])
    }

    fn config(&self, files: &TlsFiles, alpn: &[&[u8]]) -> Result<ServerConfig, TlsError> {
        let chain = files::chain(&files.cert, &self.cert)?;
        let key = files::key(&files.key, &self.key)?;
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(TlsError::unusable)?;
        let builder = match (&files.client_ca, &self.client_ca) {
            (Some(path), Some(pem)) => {
                let roots = Arc::new(files::roots(path, pem)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).build();
                builder.with_client_cert_verifier(verifier.map_err(TlsError::unusable)?)
            }
            _ => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(chain, key).map_err(TlsError::unusable)?;
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        if files.client_ca.is_some() {
            // Session resumption would skip the check of the client
            // certificate, so a certificate could be used after its expiry for
            // the lifetime of tickets.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        Ok(config)
    }
}
