//! The due-queue: the next time at which each session must be reconciled.

use crate::Error;
use async_trait::async_trait;
use session_core::{SessionKey, Timestamp};
use std::time::Duration;

/// Times at which sessions must be reconciled.
#[async_trait]
pub trait DueQueue {
    /// Sets the due time of a session (`None`: never) if its version is still
    /// `version`. Creates no event.
    async fn set_due(&self, key: &SessionKey, version: u64, due: Option<Timestamp>) -> Result<(), Error>;

    /// Claims up to `limit` due sessions, the longest due first, and makes them due
    /// again after `lease`, so that a crash loses none. A caller that finds no record
    /// removes the entry with [`crate::DueQueue::set_due`].
    async fn claim_due(&self, limit: usize, lease: Duration) -> Result<Vec<SessionKey>, Error>;

    /// Due time of the first entry, past or future.
    async fn oldest_due(&self) -> Result<Option<Timestamp>, Error>;
}
