//! The keys a verifier trusts at this moment, replaceable while it works.

use crate::jwks::Jwks;
use crate::signature_cache::Proven;
use arc_swap::ArcSwap;
use jsonwebtoken::DecodingKey;
use session_core::Timestamp;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Public keys by `kid`, with the time they were last known to be current.
///
/// Readers never wait: a refresh swaps the whole set. A failed refresh calls
/// nothing here, so the last good set stays and [`Keyring::age`] grows.
#[derive(Default)]
pub struct Keyring {
    set: ArcSwap<Set>,
    /// Signatures that are remembered.
    remembers: usize,
}

#[derive(Default)]
struct Set {
    keys: HashMap<String, DecodingKey>,
    refreshed: Option<Timestamp>,
    /// What these keys signed: forgotten with them.
    proven: Arc<Proven>,
}

impl Keyring {
    /// A keyring that knows nothing yet.
    pub fn empty() -> Self {
        Self::default()
    }

    /// A keyring of this set.
    pub fn new(jwks: &Jwks, now: Timestamp) -> Self {
        let keyring = Self::default();
        keyring.replace(jwks, now);
        keyring
    }

    /// One that remembers up to this many good signatures, for a verifier that
    /// sees the same tokens again and again. Only the signature is remembered;
    /// all else is checked every time.
    pub fn remembering(signatures: usize) -> Self {
        Self {
            set: ArcSwap::default(),
            remembers: signatures,
        }
    }

    /// Trusts exactly this set from now on.
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

    /// The set was asked for again and had not changed (HTTP 304).
    pub fn confirm(&self, now: Timestamp) {
        self.set.rcu(|set| Set {
            keys: set.keys.clone(),
            refreshed: Some(now),
            proven: Arc::clone(&set.proven),
        });
    }

    /// Is a key of this name in the set?
    pub fn knows(&self, kid: &str) -> bool {
        self.set.load().keys.contains_key(kid)
    }

    /// Has it no key, so that no token can be accepted?
    pub fn is_empty(&self) -> bool {
        self.set.load().keys.is_empty()
    }

    /// When the set was last known to be current; `None` before the first set.
    pub fn last_refreshed(&self) -> Option<Timestamp> {
        self.set.load().refreshed
    }

    /// How old the set is; `None` before the first set.
    pub fn age(&self, now: Timestamp) -> Option<Duration> {
        self.last_refreshed().map(|then| now.since(then))
    }

    /// Did the key of this name sign the token, as `check` says? None if the key
    /// is not known.
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
