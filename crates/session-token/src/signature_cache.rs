//! Cache of tokens with a valid signature, because the signature check takes
//! longer than all other checks of a token.

use aws_lc_rs::digest::{SHA256, digest};
use parking_lot::Mutex;
use std::collections::HashSet;

type Digest = [u8; 32];

/// Digests of tokens whose signatures are valid under one key set.
#[derive(Default)]
pub(crate) struct SignatureCache {
    capacity: usize,
    generations: Mutex<Generations>,
}

/// Two generations; the older half is dropped as a whole.
#[derive(Default)]
struct Generations {
    recent: HashSet<Digest>,
    older: HashSet<Digest>,
}

impl SignatureCache {
    /// A cache of up to `capacity` tokens; 0 disables it.
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            generations: Mutex::default(),
        }
    }

    /// Whether the token's signature is valid, from the cache or by `check`.
    pub(crate) fn is_valid(&self, token: &str, check: impl FnOnce() -> bool) -> bool {
        let mut name = Digest::default();
        if self.capacity == 0 {
            return check();
        }
        name.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        // The lock is not held during the check.
        let known = self.with_generations(|all| all.recent.contains(&name) || all.older.contains(&name));
        let good = known || check();
        if good {
            self.with_generations(|all| all.insert(name, self.capacity));
        }
        good
    }

    fn with_generations<T>(&self, with: impl FnOnce(&mut Generations) -> T) -> T {
        with(&mut self.generations.lock())
    }
}

impl Generations {
    fn insert(&mut self, name: Digest, capacity: usize) {
        if self.recent.contains(&name) {
            return;
        }
        if self.recent.len() >= capacity.div_ceil(2) {
            self.older = std::mem::take(&mut self.recent);
        }
        self.recent.insert(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_valid_signatures_are_cached() {
        let cache = SignatureCache::new(4);
        assert!(!cache.is_valid("a", || false));
        assert!(cache.is_valid("a", || true), "an invalid one was cached");
        assert!(cache.is_valid("a", || panic!("it was checked again")));
        assert!(!cache.is_valid("b", || false), "another one");
    }

    #[test]
    fn the_least_recently_seen_tokens_are_dropped() {
        let cache = SignatureCache::new(4);
        for token in ["a", "b", "c", "a", "d", "e"] {
            assert!(cache.is_valid(token, || true));
        }
        assert!(cache.is_valid("a", || panic!("it was seen recently")));
        assert!(!cache.is_valid("b", || false), "the least recently seen one");
        let many = SignatureCache::new(4);
        for n in 0..1000 {
            assert!(many.is_valid(&n.to_string(), || true));
        }
        assert!(many.with_generations(|all| all.recent.len() + all.older.len()) <= 4);
    }

    #[test]
    fn capacity_zero_disables_the_cache() {
        let cache = SignatureCache::default();
        assert!(cache.is_valid("a", || true));
        assert!(!cache.is_valid("a", || false));
    }
}
