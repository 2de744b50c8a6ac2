//! Signatures that were found good: to check one takes longer than all else
//! that is done with a token.

use aws_lc_rs::digest::{SHA256, digest};
use parking_lot::Mutex;
use std::collections::HashSet;

type Digest = [u8; 32];

/// Tokens, by digest, whose signatures are good by the keys that this belongs to.
#[derive(Default)]
pub(crate) struct Proven {
    most: usize,
    seen: Mutex<Seen>,
}

/// Half of them are forgotten at a time: those not seen for longest.
#[derive(Default)]
struct Seen {
    lately: HashSet<Digest>,
    before: HashSet<Digest>,
}

impl Proven {
    /// Remembers up to `most`; none at all if that is 0.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            seen: Mutex::default(),
        }
    }

    /// Is the token's signature good: because it was before, or by `check`?
    pub(crate) fn is(&self, token: &str, check: impl FnOnce() -> bool) -> bool {
        let mut name = Digest::default();
        if self.most == 0 {
            return check();
        }
        name.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        // Not held while it is checked.
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
