//! Leases in memory.

use super::MemoryStore;
use crate::{Error, Leases};
use async_trait::async_trait;
use session_core::Timestamp;
use std::time::Duration;

/// Holder of a lease.
pub(super) struct HeldLease {
    owner: String,
    until: Timestamp,
    fence: u64,
}

#[async_trait]
impl Leases for MemoryStore {
    async fn acquire_lease(&self, name: &str, owner: &str, ttl: Duration) -> Result<Option<u64>, Error> {
        let now = self.clock.now();
        let mut state = self.state();
        let held = state.leases.get(name).filter(|lease| lease.until > now);
        let fence = match held {
            Some(lease) if lease.owner != owner => return Ok(None),
            Some(lease) => lease.fence,
            None => (state.last_fence + 1).max(now.as_millis()),
        };
        state.last_fence = state.last_fence.max(fence);
        let lease = HeldLease {
            owner: owner.to_owned(),
            until: now.after(ttl),
            fence,
        };
        state.leases.insert(name.to_owned(), lease);
        Ok(Some(fence))
    }

    async fn release_lease(&self, name: &str, owner: &str) -> Result<(), Error> {
        let leases = &mut self.state().leases;
        if leases.get(name).is_some_and(|lease| lease.owner == owner) {
            leases.remove(name);
        }
        Ok(())
    }
}
