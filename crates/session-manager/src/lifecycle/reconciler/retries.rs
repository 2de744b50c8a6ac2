//! Sessions to reconcile again as soon as the store answers. Without them a session
//! whose due entry was claimed just before a fail-over would wait until the claim
//! expires.

use parking_lot::Mutex;
use session_core::SessionKey;
use std::collections::{HashSet, VecDeque};

/// Further sessions wait until their claims expire.
const MAX_RETRIES: usize = 65_536;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Retries(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    /// The longest waiting first.
    queue: VecDeque<SessionKey>,
    known: HashSet<SessionKey>,
}

impl Retries {
    /// Adds a session, once.
    pub(super) fn add(&self, key: &SessionKey) {
        let mut waiting = self.0.lock();
        if waiting.queue.len() < MAX_RETRIES && waiting.known.insert(key.clone()) {
            waiting.queue.push_back(key.clone());
        }
    }

    /// Removes and returns at most `limit` sessions.
    pub(super) fn take(&self, limit: usize) -> Vec<SessionKey> {
        let mut waiting = self.0.lock();
        let count = limit.min(waiting.queue.len());
        let taken: Vec<_> = waiting.queue.drain(..count).collect();
        for key in &taken {
            waiting.known.remove(key);
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: usize) -> SessionKey {
        SessionKey {
            org: "acme".parse().expect("valid"),
            id: format!("s-{n:020}").parse().expect("valid"),
        }
    }

    #[test]
    fn each_session_is_retried_once_in_order() {
        let retries = Retries::default();
        for n in [3, 1, 1, 2] {
            retries.add(&key(n));
        }
        assert_eq!(retries.take(0), Vec::new());
        assert_eq!(retries.take(2), [key(3), key(1)]);
        retries.add(&key(3));
        assert_eq!(retries.take(9), [key(2), key(3)]);
        assert_eq!(retries.take(9), Vec::new());
    }

    #[test]
    fn retries_are_bounded() {
        let retries = Retries::default();
        for n in 0..=MAX_RETRIES {
            retries.add(&key(n));
        }
        assert_eq!(retries.take(usize::MAX).len(), MAX_RETRIES);
    }
}
