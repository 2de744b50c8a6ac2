//! At most so many of something for each of many, and in all.

use parking_lot::{Mutex, MutexGuard};
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

/// Counts what is under way in this process.
#[derive(Debug)]
pub(crate) struct ConcurrencyLimit<K> {
    each: usize,
    all: usize,
    taken: Mutex<HashMap<K, usize>>,
}

/// One of them; given back with its value.
#[derive(Debug)]
pub(crate) struct ConcurrencyPermit<K: Hash + Eq> {
    slots: Arc<ConcurrencyLimit<K>>,
    key: K,
}

/// What is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// All that one may have.
    Each,
    /// All that there are.
    All,
}

impl<K: Hash + Eq + Clone> ConcurrencyLimit<K> {
    pub(crate) fn new(each: usize, all: usize) -> Arc<Self> {
        Arc::new(Self {
            each,
            all,
            taken: Mutex::default(),
        })
    }

    /// One more for `key`, if there is one.
    pub(crate) fn take(self: &Arc<Self>, key: &K) -> Result<ConcurrencyPermit<K>, Full> {
        let mut taken = self.taken();
        if taken.values().sum::<usize>() >= self.all {
            return Err(Full::All);
        }
        let own = taken.get(key).copied().unwrap_or(0);
        if own >= self.each {
            return Err(Full::Each);
        }
        taken.insert(key.clone(), own + 1);
        Ok(ConcurrencyPermit {
            slots: Arc::clone(self),
            key: key.clone(),
        })
    }
}

impl<K> ConcurrencyLimit<K> {
    fn taken(&self) -> MutexGuard<'_, HashMap<K, usize>> {
        self.taken.lock()
    }
}

impl<K: Hash + Eq> Drop for ConcurrencyPermit<K> {
    fn drop(&mut self) {
        let mut taken = self.slots.taken();
        if let Some(own) = taken.get_mut(&self.key) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_and_all_are_limits_and_come_back() {
        let slots = ConcurrencyLimit::new(2, 3);
        let (first, second) = (slots.take(&"a").unwrap(), slots.take(&"a").unwrap());
        assert_eq!(slots.take(&"a").unwrap_err(), Full::Each);
        let third = slots.take(&"b").unwrap();
        assert_eq!(slots.take(&"b").unwrap_err(), Full::All);
        drop((first, third));
        assert!(slots.take(&"a").is_ok());
        drop(second);
        assert!(slots.taken().is_empty());
    }
}
