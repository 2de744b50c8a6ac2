//! Leases with fencing numbers.

use crate::Error;
use async_trait::async_trait;
use std::time::Duration;

/// Leases with fencing numbers, for work that only one process may do at a time.
#[async_trait]
pub trait Leases {
    /// Acquires or renews the lease `name` for `owner`, for `ttl` from now; `None`
    /// while another owner holds it. Returns a fencing number: it stays the same while
    /// the lease is renewed, and a new acquisition has a higher one than all before,
    /// also after data loss.
    async fn acquire_lease(&self, name: &str, owner: &str, ttl: Duration) -> Result<Option<u64>, Error>;

    /// Releases a lease if `owner` holds it.
    async fn release_lease(&self, name: &str, owner: &str) -> Result<(), Error>;
}
