//! Which ended sessions are kept, and the deletion of the others.

use crate::Error;
use async_trait::async_trait;
use std::time::Duration;

/// How long ended sessions stay listed, and how many: beyond that, the longest
/// ended go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tombstones {
    /// Since their end.
    pub age: Duration,
    /// Of each owner.
    pub per_owner: usize,
    /// Of each organization.
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
    /// Forgets up to `limit` ended sessions that are not kept any more, with
    /// their history, tokens and uses, and tells how many. Never one that
    /// lives, nor one that is still due: somebody must look at that once more.
    async fn trim_ended(&self, keep: &Tombstones, limit: usize) -> Result<usize, Error>;
}
