//! What all token issuers know together of their signing keys: since when each
//! was published without a break, and when it last signed. Of the store's
//! clock, so that replicas agree and a restart forgets nothing.

use crate::Error;
use async_trait::async_trait;
use session_core::Timestamp;
use std::time::Duration;

/// A key that nobody reported for this long is published anew when it comes
/// back: verifiers may have dropped it meanwhile.
pub const KEY_GAP: Duration = Duration::from_secs(60);
/// A key that nobody reported for this long is not remembered.
pub const KEY_MEMORY: Duration = Duration::from_secs(30 * 24 * 3600);
/// Keys that are remembered; beyond it those go first that nobody reports any more.
pub const MOST_KEYS: usize = 64;

/// What is known of one signing key: never the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownKey {
    /// Its `kid`.
    pub id: String,
    /// Since when it is published.
    pub published_since: Timestamp,
    /// When an issuer last said that it signs with it.
    pub signed_at: Option<Timestamp>,
}

/// What [`crate::SigningKeys::report_signing_keys`] says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownKeys {
    /// The store's present.
    pub now: Timestamp,
    /// The reported keys, in the order they were reported in. One that is
    /// beyond [`MOST_KEYS`] is missing.
    pub keys: Vec<KnownKey>,
}

/// What token issuers report of their signing keys.
#[async_trait]
pub trait SigningKeys {
    /// An issuer publishes these keys now, and signs with `signing` until it
    /// says otherwise.
    async fn report_signing_keys(
        &self,
        published: &[String],
        signing: Option<&str>,
    ) -> Result<KnownKeys, Error>;
}
