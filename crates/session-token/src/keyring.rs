//! The keys that a verifier currently trusts; replaceable at run time.

use crate::jwks::Jwks;
use crate::signature_cache::Proven;
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
    keys: HashMap<String, DecodingKey>,
    refreshed: Option<Timestamp>,
    /// Signature cache of this key set; replaced together with the keys.
    proven: Arc<Proven>,
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
    pub fn remembering(signatures: usize) -> Self {
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
            keys: keys.collect(),
            refreshed: Some(now),
            proven: Arc::new(Proven::new(self.remembers)),
        }));
    }

    /// Records that the set is unchanged (HTTP 304).
    pub fn confirm(&self, now: Timestamp) {
        self.set.rcu(|set| Set {
            keys: set.keys.clone(),
            refreshed: Some(now),
            proven: Arc::clone(&set.proven),
        });
    }

    /// Whether the set has a key with this id.
    pub fn knows(&self, kid: &str) -> bool {
        self.set.load().keys.contains_key(kid)
    }

    /// Whether the set has no key; then no token can be accepted.
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
        Some(set.proven.is(token, || check(key)))
    }
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
