//! Concurrency limits per key and in all.

use parking_lot::{Mutex, MutexGuard};
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

/// Limits the permits of each key and of all keys together, in this process.
#[derive(Debug)]
pub(crate) struct ConcurrencyLimit<K> {
    each: usize,
    all: usize,
    held: Mutex<HashMap<K, usize>>,
}

/// A permit; dropping it returns it.
#[derive(Debug)]
pub(crate) struct ConcurrencyPermit<K: Hash + Eq> {
    limit: Arc<ConcurrencyLimit<K>>,
    key: K,
}

/// Which limit is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// The limit of this key.
    Each,
    /// The limit of all keys together.
    All,
}

impl<K: Hash + Eq + Clone> ConcurrencyLimit<K> {
    pub(crate) fn new(each: usize, all: usize) -> Arc<Self> {
        Arc::new(Self {
            each,
            all,
            held: Mutex::default(),
        })
    }

    /// Takes a permit for `key`.
    ///
    /// # Errors
    /// The limit that is reached.
    pub(crate) fn take(self: &Arc<Self>, key: &K) -> Result<ConcurrencyPermit<K>, Full> {
        let mut held = self.held();
        if held.values().sum::<usize>() >= self.all {
            return Err(Full::All);
        }
        let own = held.get(key).copied().unwrap_or(0);
        if own >= self.each {
            return Err(Full::Each);
        }
        held.insert(key.clone(), own + 1);
        Ok(ConcurrencyPermit {
            limit: Arc::clone(self),
            key: key.clone(),
        })
    }
}

impl<K> ConcurrencyLimit<K> {
    fn held(&self) -> MutexGuard<'_, HashMap<K, usize>> {
        self.held.lock()
    }
}

impl<K: Hash + Eq> Drop for ConcurrencyPermit<K> {
    fn drop(&mut self) {
        let mut held = self.limit.held();
        if let Some(own) = held.get_mut(&self.key) {
            *own -= 1;
            if *own == 0 {
                held.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_are_limited_per_key_and_in_all_and_returned_when_dropped() {
        let limit = ConcurrencyLimit::new(2, 3);
        let (first, second) = (limit.take(&"a").unwrap(), limit.take(&"a").unwrap());
        assert_eq!(limit.take(&"a").unwrap_err(), Full::Each);
        let third = limit.take(&"b").unwrap();
        assert_eq!(limit.take(&"b").unwrap_err(), Full::All);
        drop((first, third));
        assert!(limit.take(&"a").is_ok());
        drop(second);
        assert!(limit.held().is_empty());
    }
}
