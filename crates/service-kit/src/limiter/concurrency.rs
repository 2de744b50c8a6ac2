//! Concurrent holders by key. The memory is bounded by the number of permits.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

/// Limits concurrent holders by key.
#[derive(Debug)]
pub struct ConcurrencyLimiter<K: Hash + Eq> {
    max_per_key: u32,
    open: Mutex<HashMap<K, u32>>,
}

/// One held permit; released on drop.
#[derive(Debug)]
pub struct Permit<K: Hash + Eq> {
    of: Arc<ConcurrencyLimiter<K>>,
    key: K,
}

impl<K: Hash + Eq + Clone> ConcurrencyLimiter<K> {
    /// Allows `max_per_key` concurrent permits of one key; zero means no limit.
    pub fn new(max_per_key: u32) -> Arc<Self> {
        Arc::new(Self {
            max_per_key,
            open: Mutex::default(),
        })
    }

    /// Acquires a permit of `key`; `None` at the limit.
    pub fn enter(self: &Arc<Self>, key: K) -> Option<Permit<K>> {
        let mut open = self.open.lock();
        let count = open.get(&key).copied().unwrap_or_default();
        if self.max_per_key > 0 && count >= self.max_per_key {
            return None;
        }
        open.insert(key.clone(), count + 1);
        drop(open);
        Some(Permit {
            of: Arc::clone(self),
            key,
        })
    }
}

impl<K: Hash + Eq> Drop for Permit<K> {
    fn drop(&mut self) {
        let mut open = self.of.open.lock();
        match open.get_mut(&self.key) {
            Some(count) if *count > 1 => *count -= 1,
            Some(_) | None => {
                open.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_no_limit() {
        let limiter = ConcurrencyLimiter::new(0);
        let permits: Vec<_> = (0..1000).filter_map(|_| limiter.enter(1)).collect();
        assert_eq!(permits.len(), 1000);
    }

    #[test]
    fn permits_count_by_key_and_leave_nothing_behind() {
        let limiter = ConcurrencyLimiter::new(2);
        let first = limiter.enter("a").unwrap();
        let second = limiter.enter("a").unwrap();
        assert!(limiter.enter("a").is_none() && limiter.enter("b").is_some());
        drop(first);
        assert!(limiter.enter("a").is_some());
        drop(second);
        assert!(limiter.open.lock().is_empty());
    }
}
