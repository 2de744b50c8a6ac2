//! Leases with fencing numbers.

use crate::Error;
use async_trait::async_trait;
use std::time::Duration;

/// Leases with fencing numbers, for work that one process at a time may do.
#[async_trait]
pub trait Leases {
    /// Takes `name` for `owner`, or keeps it, for `ttl` from now; none while
    /// another owner has it. The number is a fencing number: it stays while the lease is kept, and who takes the lease
    /// anew has a higher one than everybody before, also after data loss.
    async fn acquire_lease(&self, name: &str, owner: &str, ttl: Duration) -> Result<Option<u64>, Error>;

    /// Gives a lease back, if `owner` has it.
    async fn release_lease(&self, name: &str, owner: &str) -> Result<(), Error>;
}
