//! The due-queue: the next time at which each session must be reconciled.

use crate::Error;
use async_trait::async_trait;
use session_core::{SessionKey, Timestamp};
use std::time::Duration;

/// When each session must be reconciled.
#[async_trait]
pub trait DueQueue {
    /// Sets when a session is due (never, if none), on the condition that its
    /// version is still `version`. Makes no event.
    async fn set_due(&self, key: &SessionKey, version: u64, due: Option<Timestamp>) -> Result<(), Error>;

    /// Takes up to `limit` sessions that are due, the longest due first, and
    /// makes them due again after `lease`, so that a crash loses none. Whoever
    /// finds no record under a key settles it by [`crate::DueQueue::set_due`].
    async fn claim_due(&self, limit: usize, lease: Duration) -> Result<Vec<SessionKey>, Error>;

    /// When the session that is due longest was, or will be, due.
    async fn oldest_due(&self) -> Result<Option<Timestamp>, Error>;
}
