//! Session records, and the conditional writes that change them.

use crate::Error;
use async_trait::async_trait;
use session_core::{EventRecord, Limits, OrgId, PrincipalId, Session, SessionKey, Timestamp};
use std::time::Duration;

/// Number of changes in the history of a session.
pub const MAX_HISTORY: usize = 50;

/// Time for which a `request_id` is stored.
pub const REQUEST_ID_RETENTION: Duration = Duration::from_secs(24 * 3600);

/// A session to be written for the first time.
#[derive(Debug, Clone)]
pub struct Create {
    /// The record, version 1.
    pub session: Session,
    /// Its first event.
    pub record: EventRecord,
    /// Time of the first reconciliation.
    pub due: Timestamp,
    /// Identifies a repeated create, which then returns the session of the first one.
    pub request: Option<RequestId>,
    /// Quotas to enforce: `live_sessions_per_owner`, `live_sessions`,
    /// `creates_per_minute` (fixed window of 60 s of the store's clock).
    pub limits: Limits,
}

/// Identifier of a request, chosen by the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId {
    /// The caller's value; unique per owner.
    pub id: String,
    /// Digest of all other fields.
    pub fingerprint: String,
}

/// Result of a create.
#[derive(Debug, Clone)]
pub struct Created {
    /// The session as stored.
    pub session: Session,
    /// False if an earlier create with the same `request_id` created it.
    pub new: bool,
}

/// A change to write, if the stored version is the one before.
#[derive(Debug, Clone)]
pub struct Commit {
    /// The new record; the stored one must have `version - 1`.
    pub session: Session,
    /// The event of the change.
    pub record: EventRecord,
    /// Next due time; `None`: never.
    pub due: Option<Timestamp>,
}

/// Session records: every write has a precondition and writes the record, its
/// indexes, due entry and event in one step.
#[async_trait]
pub trait Sessions {
    /// Writes a new session, its indexes, due entry and event in one step, unless the
    /// `request_id` was used or a quota is exhausted.
    async fn create(&self, create: Create) -> Result<Created, Error>;

    /// Reads a session.
    async fn get(&self, key: &SessionKey) -> Result<Option<Session>, Error>;

    /// The session that an earlier create with this request created, if any.
    /// [`Error::RequestIdReused`] if it had other fields.
    async fn find_by_request(
        &self,
        org: &OrgId,
        owner: &PrincipalId,
        request: &RequestId,
    ) -> Result<Option<Session>, Error>;

    /// Writes a change, its indexes, due entry, quota and event in one step.
    /// [`Error::Conflict`] unless the stored version is the one before. Owner, cluster
    /// and team of a session never change.
    async fn commit(&self, commit: Commit) -> Result<(), Error>;

    /// [`crate::Sessions::commit`] for a decision of an idle timeout: only while no
    /// proxy has a call in flight on the session's generation and `last_activity_at` is
    /// unchanged since the decision; otherwise [`Error::Conflict`].
    async fn commit_if_idle(&self, commit: Commit, last_activity_at: Timestamp) -> Result<(), Error>;

    /// The last [`MAX_HISTORY`] changes of a session, oldest first; empty for an unknown
    /// session.
    async fn events(&self, key: &SessionKey) -> Result<Vec<EventRecord>, Error>;
}
