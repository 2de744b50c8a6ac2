//! Cache of tokens with a valid signature, because the signature check takes
//! longer than all other checks of a token.

use aws_lc_rs::digest::{SHA256, digest};
use parking_lot::Mutex;
use std::collections::HashSet;

type Digest = [u8; 32];

/// Digests of tokens whose signatures are valid under one key set.
#[derive(Default)]
pub(crate) struct Proven {
    most: usize,
    seen: Mutex<Seen>,
}

/// Two generations; the older half is dropped as a whole.
#[derive(Default)]
struct Seen {
    lately: HashSet<Digest>,
    before: HashSet<Digest>,
}

impl Proven {
    /// A cache of up to `most` tokens; 0 disables it.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            seen: Mutex::default(),
        }
    }

    /// Whether the token's signature is valid, from the cache or by `check`.
    pub(crate) fn is(&self, token: &str, check: impl FnOnce() -> bool) -> bool {
        let mut name = Digest::default();
        if self.most == 0 {
            return check();
        }
        name.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        // The lock is not held during the check.
        let known = self.seen(|seen| seen.lately.contains(&name) || seen.before.contains(&name));
        let good = known || check();
        if good {
            self.seen(|seen| seen.note(name, self.most));
        }
        good
    }

    fn seen<T>(&self, with: impl FnOnce(&mut Seen) -> T) -> T {
        with(&mut self.seen.lock())
    }
}

impl Seen {
    fn note(&mut self, name: Digest, most: usize) {
        if self.lately.contains(&name) {
            return;
        }
        if self.lately.len() >= most.div_ceil(2) {
            self.before = std::mem::take(&mut self.lately);
        }
        self.lately.insert(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_ones_are_remembered_bad_ones_never() {
        let proven = Proven::new(4);
        assert!(!proven.is("a", || false));
        assert!(proven.is("a", || true), "a bad one was remembered");
        assert!(proven.is("a", || panic!("it was checked again")));
        assert!(!proven.is("b", || false), "another one");
    }

    #[test]
    fn those_not_seen_for_longest_are_forgotten() {
        let proven = Proven::new(4);
        for token in ["a", "b", "c", "a", "d", "e"] {
            assert!(proven.is(token, || true));
        }
        assert!(proven.is("a", || panic!("it was seen lately")));
        assert!(!proven.is("b", || false), "the one not seen for longest");
        let many = Proven::new(4);
        for n in 0..1000 {
            assert!(many.is(&n.to_string(), || true));
        }
        assert!(many.seen(|seen| seen.lately.len() + seen.before.len()) <= 4);
    }

    #[test]
    fn none_are_remembered_unless_asked_for() {
        let proven = Proven::default();
        assert!(proven.is("a", || true));
        assert!(!proven.is("a", || false));
    }
}
