//! Exponential backoff with an upper bound and jitter.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use std::time::Duration;

/// A sequence of delays: doubles from `first` to `most`, each reduced by a
/// random share of up to half.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    failures: u32,
    rng: StdRng,
}

impl Backoff {
    /// Delays between half of `first` and `most`.
    pub fn new(first: Duration, most: Duration) -> Self {
        Self::seeded(first, most, rand::random())
    }

    /// Like [`Self::new`], with a given random seed.
    pub fn seeded(first: Duration, most: Duration, seed: u64) -> Self {
        Self {
            first,
            most,
            failures: 0,
            rng: StdRng::seed_from_u64(seed),
        }
    }

    /// Resets the sequence after a success.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Number of delays since the last success.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// The next delay.
    pub fn next_delay(&mut self) -> Duration {
        let factor = 2_u32.saturating_pow(self.failures.min(30));
        self.failures = self.failures.saturating_add(1);
        let full = self.first.saturating_mul(factor).min(self.most);
        full.mul_f64(self.rng.random_range(0.5..=1.0))
    }

    /// Waits for the next delay. Cancel-safe: a drop loses only the delay.
    pub async fn wait(&mut self) {
        tokio::time::sleep(self.next_delay()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_bound_and_start_over() {
        let (first, most) = (Duration::from_millis(100), Duration::from_secs(5));
        let mut backoff = Backoff::seeded(first, most, 1);
        let delays: Vec<_> = (0..100).map(|_| backoff.next_delay()).collect();
        assert!(delays[0] >= first / 2 && delays[0] <= first);
        assert!(delays[3] >= first * 4 && delays[3] <= first * 8);
        assert!(delays.iter().skip(6).all(|d| *d >= most / 2 && *d <= most));
        assert!(delays[50] != delays[51], "no jitter");
        backoff.reset();
        assert!(backoff.next_delay() <= first);
    }
}
