//! The keys a verifier trusts at this moment, replaceable while it works.

use crate::jwks::Jwks;
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
}

#[derive(Default)]
struct Set {
    keys: HashMap<String, DecodingKey>,
    refreshed: Option<Timestamp>,
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

    /// Trusts exactly this set from now on.
    pub fn replace(&self, jwks: &Jwks, now: Timestamp) {
        let keys = jwks.keys().iter().filter_map(|jwk| {
            let (x, y) = jwk.coordinates();
            Some((jwk.kid().to_owned(), DecodingKey::from_ec_components(x, y).ok()?))
        });
        self.set.store(Arc::new(Set {
            keys: keys.collect(),
            refreshed: Some(now),
        }));
    }

    /// The set was asked for again and had not changed (HTTP 304).
    pub fn confirm(&self, now: Timestamp) {
        self.set.rcu(|set| Set {
            keys: set.keys.clone(),
            refreshed: Some(now),
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

    /// Runs `check` on the key of this name, if it is known.
    pub(crate) fn with_key<T>(&self, kid: &str, check: impl FnOnce(&DecodingKey) -> T) -> Option<T> {
        self.set.load().keys.get(kid).map(check)
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
