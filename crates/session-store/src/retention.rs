//! Retention of ended sessions: limits and deletion.

use crate::Error;
use async_trait::async_trait;
use std::time::Duration;

/// Limits of retention by time and number; beyond them, sessions that ended first are
/// deleted first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tombstones {
    /// Maximum time since the end of a session.
    pub age: Duration,
    /// Maximum number per owner.
    pub per_owner: usize,
    /// Maximum number per organization.
    pub per_org: usize,
}

impl Default for Tombstones {
    fn default() -> Self {
        Self {
            age: Duration::from_secs(7 * 24 * 3600),
            per_owner: 5_000,
            per_org: 20_000,
        }
    }
}

/// Deletion of ended sessions.
#[async_trait]
pub trait Retention {
    /// Deletes up to `limit` ended sessions beyond the limits of `keep`, with their
    /// history, tokens and usage, and returns their number. Never deletes a live
    /// session, nor an ended one that is still due: it must be reconciled once more.
    async fn trim_ended(&self, keep: &Tombstones, limit: usize) -> Result<usize, Error>;
}
