//! State of the signing keys, common to all token issuers: since when each was
//! published without a gap, and its last signature. Times are the store's, so that
//! replicas agree and the state survives a restart.

use crate::Error;
use async_trait::async_trait;
use session_core::Timestamp;
use std::time::Duration;

/// A key without a report for this long starts a new publication when it returns:
/// verifiers may have dropped it.
pub const KEY_GAP: Duration = Duration::from_secs(60);
/// A key without a report for this long is deleted.
pub const KEY_RETENTION: Duration = Duration::from_secs(30 * 24 * 3600);
/// Maximum number of stored keys; beyond it, keys that are no longer reported are
/// deleted first.
pub const MAX_SIGNING_KEYS: usize = 64;

/// State of one signing key, never the key itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownKey {
    /// Its `kid`.
    pub id: String,
    /// Start of its present publication.
    pub published_since: Timestamp,
    /// Last report of an issuer that signs with it.
    pub signed_at: Option<Timestamp>,
}

/// Result of [`crate::SigningKeys::report_signing_keys`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownKeys {
    /// Time of the store.
    pub now: Timestamp,
    /// The reported keys, in the same order. A key beyond [`MAX_SIGNING_KEYS`] is
    /// missing.
    pub keys: Vec<KnownKey>,
}

/// Reports of the token issuers about their signing keys.
#[async_trait]
pub trait SigningKeys {
    /// Records that an issuer publishes these keys and signs with `signing`, until its
    /// next report.
    async fn report_signing_keys(
        &self,
        published: &[String],
        signing: Option<&str>,
    ) -> Result<KnownKeys, Error>;
}
