//! How to use a Redis, and why one cannot be used.

use crate::Error;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// How to use a Redis.
#[derive(Debug, Clone)]
pub struct Options {
    /// Put before every key, so that several installs can share a Redis.
    pub prefix: String,
    /// The longest any call takes; then it is [`Error::Unavailable`].
    pub call_timeout: Duration,
    /// Accept a Redis that may evict keys, that is, lose sessions.
    pub allow_eviction: bool,
    /// Records that each of the 16 partitions of the audit trail keeps, at least.
    pub audit_length: usize,
    /// Calls that may be in flight; one more is [`Error::Unavailable`] at once.
    pub max_in_flight: usize,
    /// For the servers that keep state; these win over the URL's.
    pub credentials: Credentials,
    /// For the sentinels.
    pub sentinel_credentials: Credentials,
    /// Certificates, where the URL asks for TLS.
    pub tls: TlsFiles,
}

/// How to log in.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// An ACL user; `default` if none is given.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<String>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .field("password", &self.password.as_ref().map(|_| "[hidden]"))
            .finish()
    }
}

/// PEM files; read again for each new connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authorities to trust; the system's if none are given.
    pub ca: Option<PathBuf>,
    /// The certificate to show, with its chain.
    pub certificate: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            prefix: "berth:".to_owned(),
            call_timeout: Duration::from_secs(2),
            allow_eviction: false,
            max_in_flight: 4096,
            credentials: Credentials::default(),
            sentinel_credentials: Credentials::default(),
            tls: TlsFiles::default(),
            audit_length: crate::audit_trail::AUDIT_LENGTH,
        }
    }
}

/// Why a Redis cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The URL cannot be used. Says why without repeating it, as it may hold a password.
    #[error("the Redis URL cannot be used: {0}")]
    Url(String),
    /// The key prefix holds a brace.
    #[error("the Redis key prefix may not hold '{{' or '}}': they choose the hash slot")]
    Prefix,
    /// The certificate files cannot be used.
    #[error("the Redis certificates cannot be used: {0}")]
    Tls(String),
    /// Redis would drop keys when memory is short.
    #[error(
        "Redis has maxmemory-policy {policy} and may throw sessions away when memory is short; \
         set `maxmemory-policy noeviction`, or allow eviction in the configuration"
    )]
    Evicts {
        /// What it is set to.
        policy: String,
    },
    /// It cannot be reached now.
    #[error(transparent)]
    Unavailable(Error),
}
