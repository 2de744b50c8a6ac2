//! The keys that a verifier currently trusts; replaceable at run time.

use crate::jwks::{Jwks, JwksError};
use crate::signature_cache::SignatureCache;
use arc_swap::ArcSwap;
use jsonwebtoken::DecodingKey;
use session_core::Timestamp;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Public keys by `kid`, with the time of the last confirmed refresh.
///
/// Readers never block: a refresh swaps the whole set. A failed refresh does
/// not change the keyring, so the last valid set stays and [`Keyring::age`]
/// grows.
#[derive(Default)]
pub struct Keyring {
    set: ArcSwap<Set>,
    /// Capacity of the signature cache.
    remembers: usize,
}

#[derive(Default)]
struct Set {
    /// The source of `keys`.
    jwks: Jwks,
    keys: HashMap<String, DecodingKey>,
    refreshed: Option<Timestamp>,
    /// Signature cache of this key set; replaced together with the keys.
    signature_cache: Arc<SignatureCache>,
}

impl Keyring {
    /// A keyring without keys.
    pub fn empty() -> Self {
        Self::default()
    }

    /// A keyring with the keys of this set.
    pub fn new(jwks: &Jwks, now: Timestamp) -> Self {
        let keyring = Self::default();
        keyring.replace(jwks, now);
        keyring
    }

    /// A keyring with a cache of up to this many valid signatures, for a
    /// verifier that receives the same tokens repeatedly. Only the signature is
    /// cached; all other checks run every time.
    pub fn with_signature_cache(signatures: usize) -> Self {
        Self {
            set: ArcSwap::default(),
            remembers: signatures,
        }
    }

    /// Replaces all keys by this set.
    pub fn replace(&self, jwks: &Jwks, now: Timestamp) {
        let keys = jwks.keys().iter().filter_map(|jwk| {
            let (x, y) = jwk.coordinates();
            Some((jwk.kid().to_owned(), DecodingKey::from_ec_components(x, y).ok()?))
        });
        self.set.store(Arc::new(Set {
            jwks: jwks.clone(),
            keys: keys.collect(),
            refreshed: Some(now),
            signature_cache: Arc::new(SignatureCache::new(self.remembers)),
        }));
    }

    /// Records that the set is unchanged (HTTP 304).
    pub fn confirm(&self, now: Timestamp) {
        self.set.rcu(|set| Set {
            jwks: set.jwks.clone(),
            keys: set.keys.clone(),
            refreshed: Some(now),
            signature_cache: Arc::clone(&set.signature_cache),
        });
    }

    /// Applies a response of the key set's source: a document, or `None` if it is
    /// unchanged (HTTP 304). Returns whether the trusted keys changed.
    ///
    /// # Errors
    /// [`UpdateError`]; the last valid set stays.
    pub fn update(&self, document: Option<&str>, now: Timestamp) -> Result<bool, UpdateError> {
        let jwks = document.map(Jwks::from_json).transpose()?;
        match jwks {
            Some(jwks) if jwks.is_empty() => Err(UpdateError::NoKey),
            Some(jwks) if self.is_empty() || self.set.load().jwks != jwks => {
                self.replace(&jwks, now);
                Ok(true)
            }
            None if self.is_empty() => Err(UpdateError::Expired),
            Some(_) | None => {
                self.confirm(now);
                Ok(false)
            }
        }
    }

    /// Drops a set that is older than `max_age`, because its keys may have been
    /// withdrawn. Returns whether it was dropped.
    pub fn expire(&self, max_age: Duration, now: Timestamp) -> bool {
        let expired = !self.is_empty() && self.age(now).is_some_and(|age| age > max_age);
        if expired {
            self.replace(&Jwks::default(), now);
        }
        expired
    }

    /// Whether the set has a key with this `kid`.
    pub fn knows(&self, kid: &str) -> bool {
        self.set.load().keys.contains_key(kid)
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.set.load().keys.len()
    }

    /// Whether the set has no key; then no token is accepted.
    pub fn is_empty(&self) -> bool {
        self.set.load().keys.is_empty()
    }

    /// Time of the last confirmed refresh; `None` before the first set.
    pub fn last_refreshed(&self) -> Option<Timestamp> {
        self.set.load().refreshed
    }

    /// Age of the set; `None` before the first set.
    pub fn age(&self, now: Timestamp) -> Option<Duration> {
        self.last_refreshed().map(|then| now.since(then))
    }

    /// Whether the key with this id signed the token, by `check` or the cache;
    /// `None` without such a key.
    pub(crate) fn signed(
        &self,
        kid: &str,
        token: &str,
        check: impl FnOnce(&DecodingKey) -> bool,
    ) -> Option<bool> {
        let set = self.set.load();
        let key = set.keys.get(kid)?;
        Some(set.signature_cache.is_valid(token, || check(key)))
    }
}

/// Reason why a fetched key set is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpdateError {
    /// It is not a key set.
    #[error(transparent)]
    Malformed(#[from] JwksError),
    /// It has no key for session tokens.
    #[error("it has no key for session tokens")]
    NoKey,
    /// It is unchanged since it was dropped for its age.
    #[error("the last set was dropped for its age")]
    Expired,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = self.set.load();
        f.debug_struct("Keyring")
            .field("kids", &set.keys.keys().collect::<Vec<_>>())
            .field("refreshed", &set.refreshed)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Signer, generate_key_pem};

    fn document() -> String {
        let signer = Signer::from_pkcs8_pem(&generate_key_pem().unwrap()).unwrap();
        serde_json::to_string(&Jwks::new([signer.public_jwk()])).unwrap()
    }

    #[test]
    fn a_key_set_is_replaced_confirmed_and_dropped_for_its_age() {
        let (keyring, at) = (Keyring::empty(), Timestamp::from_millis);
        let (first, second) = (document(), document());
        assert_eq!(keyring.update(None, at(0)), Err(UpdateError::Expired));
        assert_eq!(keyring.update(Some(&first), at(1000)), Ok(true));
        assert_eq!(keyring.update(Some(&first), at(2000)), Ok(false));
        assert_eq!(keyring.update(None, at(3000)), Ok(false));
        assert_eq!(keyring.age(at(3000)), Some(Duration::ZERO));
        for bad in [r#"{"keys":[]}"#, "[]"] {
            assert!(keyring.update(Some(bad), at(4000)).is_err());
        }
        assert_eq!(keyring.update(Some(&second), at(5000)), Ok(true));
        assert!(!keyring.expire(Duration::from_secs(1), at(6000)));
        assert!(keyring.expire(Duration::from_secs(1), at(6001)));
        assert!(keyring.is_empty() && !keyring.expire(Duration::ZERO, at(9000)));
        assert_eq!(keyring.update(None, at(9000)), Err(UpdateError::Expired));
        assert_eq!(keyring.update(Some(&second), at(9000)), Ok(true));
    }
}
