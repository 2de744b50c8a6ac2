//! Token buckets by key in bounded memory.
//!
//! A bucket is stored as one instant: the one at which it is full again. A
//! bucket whose instant has passed needs no memory. When the table is full, all
//! new keys share one bucket, so that an attacker with many addresses is
//! limited too and uses no more memory.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;
use tokio::time::Instant;

/// Maximum number of keys in one table.
const MAX_KEYS: usize = 50_000;
/// Minimum time between two removals of full buckets from a full table.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Limits events per time by key.
#[derive(Debug)]
pub struct RateLimiter<K> {
    /// Time until one token is refilled; zero means no limit.
    interval: Duration,
    burst: Duration,
    max_keys: usize,
    buckets: Mutex<Buckets<K>>,
}

#[derive(Debug)]
struct Buckets<K> {
    full_at: HashMap<K, Instant>,
    /// The bucket of all keys that do not fit.
    shared_full_at: Option<Instant>,
    swept_at: Option<Instant>,
}

impl<K: Hash + Eq + Clone> RateLimiter<K> {
    /// Allows `count` events per `period`, at most `burst` of them at one
    /// instant. A count of zero means no limit.
    pub fn new(count: u32, period: Duration, burst: u32) -> Self {
        Self::bounded(count, period, burst, MAX_KEYS)
    }

    fn bounded(count: u32, period: Duration, burst: u32, max_keys: usize) -> Self {
        let interval = period.checked_div(count).unwrap_or_default();
        Self {
            interval,
            burst: interval.saturating_mul(burst.max(1)),
            max_keys,
            buckets: Mutex::new(Buckets {
                full_at: HashMap::new(),
                shared_full_at: None,
                swept_at: None,
            }),
        }
    }

    /// Takes one token of `key`.
    ///
    /// # Errors
    /// The time until the next token, if the bucket is empty.
    pub fn take(&self, key: &K, now: Instant) -> Result<(), Duration> {
        if self.interval.is_zero() {
            return Ok(());
        }
        let mut buckets = self.buckets.lock();
        if buckets.full_at.len() >= self.max_keys && !buckets.full_at.contains_key(key) {
            buckets.sweep(now);
        }
        let fits = buckets.full_at.len() < self.max_keys || buckets.full_at.contains_key(key);
        let full_at = if fits {
            buckets.full_at.entry(key.clone()).or_insert(now)
        } else {
            buckets.shared_full_at.get_or_insert(now)
        };
        let next = (*full_at).max(now) + self.interval;
        let wait = next.saturating_duration_since(now + self.burst);
        if wait.is_zero() {
            *full_at = next;
            Ok(())
        } else {
            Err(wait)
        }
    }

    /// Checks whether `key` has a token, without taking it.
    ///
    /// # Errors
    /// The time until the next token, if the bucket is empty.
    pub fn peek(&self, key: &K, now: Instant) -> Result<(), Duration> {
        let buckets = self.buckets.lock();
        let full_at = match buckets.full_at.get(key) {
            Some(at) => Some(*at),
            None if buckets.full_at.len() >= self.max_keys => buckets.shared_full_at,
            None => None,
        };
        let wait = full_at.map(|at| (at + self.interval).saturating_duration_since(now + self.burst));
        match wait {
            Some(wait) if !wait.is_zero() => Err(wait),
            Some(_) | None => Ok(()),
        }
    }
}

impl<K: Hash + Eq> Buckets<K> {
    fn sweep(&mut self, now: Instant) {
        let due = self
            .swept_at
            .is_none_or(|at| now.saturating_duration_since(at) >= SWEEP_INTERVAL);
        if due {
            self.swept_at = Some(now);
            self.full_at.retain(|_, full_at| *full_at > now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_burst_then_the_rate_and_each_key_by_itself() {
        let rates = RateLimiter::new(10, SECOND, 20);
        let now = Instant::now();
        let taken = (0..100).filter(|_| rates.take(&"a", now).is_ok()).count();
        assert_eq!(taken, 20);
        let wait = rates.take(&"a", now).unwrap_err();
        assert_eq!(wait, SECOND / 10);
        assert!(rates.take(&"b", now).is_ok());
        assert!(rates.take(&"a", now + wait).is_ok());
        assert!(rates.take(&"a", now + wait).is_err());
        let taken = (0..100)
            .filter(|_| rates.take(&"a", now + 100 * SECOND).is_ok())
            .count();
        assert_eq!(taken, 20);
    }

    #[test]
    fn to_peek_takes_nothing() {
        let rates = RateLimiter::new(1, SECOND, 1);
        let now = Instant::now();
        for _ in 0..10 {
            assert!(rates.peek(&1, now).is_ok());
        }
        assert!(rates.take(&1, now).is_ok());
        assert!(rates.peek(&1, now).is_err());
        assert!(rates.peek(&2, now).is_ok());
        assert!(rates.peek(&1, now + SECOND).is_ok());
    }

    #[test]
    fn zero_is_no_limit() {
        let rates = RateLimiter::new(0, SECOND, 0);
        assert!((0..1000).all(|_| rates.take(&1, Instant::now()).is_ok()));
    }

    #[test]
    fn many_keys_cost_bounded_memory_and_still_are_limited() {
        let rates = RateLimiter::bounded(1, SECOND, 2, 100);
        let now = Instant::now();
        let taken = (0..10_000)
            .filter(|key: &u32| rates.take(key, now).is_ok())
            .count();
        assert_eq!(
            taken, 102,
            "100 keys with a bucket, and one bucket for all others"
        );
        assert_eq!(rates.buckets.lock().full_at.len(), 100);
        assert!(rates.peek(&9_999, now).is_err() && rates.peek(&1, now).is_ok());
        let later = now + 10 * SECOND;
        assert!(rates.take(&20_000, later).is_ok());
        assert_eq!(rates.buckets.lock().full_at.len(), 1, "full buckets are removed");
    }
}
