//! Options of the Redis store, and connection errors.

use crate::Error;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Options of the Redis store.
#[derive(Debug, Clone)]
pub struct Options {
    /// Prefix of every key, so that several installations can share a Redis.
    pub prefix: String,
    /// Time limit of a call; after it, [`Error::Unavailable`].
    pub call_timeout: Duration,
    /// Accepts a Redis that may evict keys and so lose sessions.
    pub allow_eviction: bool,
    /// Minimum number of records that each of the 16 partitions of the audit trail
    /// keeps.
    pub audit_length: usize,
    /// Maximum number of calls in flight; one more is [`Error::Unavailable`] at once.
    pub max_in_flight: usize,
    /// Credentials of the servers with state; they override those of the URL.
    pub credentials: Credentials,
    /// Credentials of the sentinels.
    pub sentinel_credentials: Credentials,
    /// Certificate files, for URLs with TLS.
    pub tls: TlsFiles,
}

/// User and password.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// ACL user; `default` if `None`.
    pub username: Option<String>,
    /// Password of the user.
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

/// PEM files, read again for each new connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Trusted authorities; the system's if `None`.
    pub ca: Option<PathBuf>,
    /// Client certificate with its chain.
    pub certificate: Option<PathBuf>,
    /// Key of the client certificate.
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
            audit_length: crate::audit_trail::MAX_AUDIT_RECORDS,
        }
    }
}

/// Error of a connection to Redis.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The URL is invalid. The text does not contain it, because it may contain a
    /// password.
    #[error("the Redis URL cannot be used: {0}")]
    Url(String),
    /// The key prefix contains a brace.
    #[error("the Redis key prefix must not contain '{{' or '}}': they determine the hash slot")]
    Prefix,
    /// The certificate files are unusable.
    #[error("the Redis certificates cannot be used: {0}")]
    Tls(String),
    /// Redis evicts keys when memory is short.
    #[error(
        "Redis has maxmemory-policy {policy} and may delete sessions when memory is short; \
         set `maxmemory-policy noeviction`, or allow eviction in the configuration"
    )]
    Evicts {
        /// The present policy.
        policy: String,
    },
    /// Redis is unreachable.
    #[error(transparent)]
    Unavailable(Error),
}
