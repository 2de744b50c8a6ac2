//! Session records, and the conditional writes that change them.

use crate::Error;
use async_trait::async_trait;
use session_core::{EventRecord, Limits, OrgId, PrincipalId, Session, SessionKey, Timestamp};
use std::time::Duration;

/// How many changes of a session are kept readable.
pub const HISTORY: usize = 50;

/// How long a `request_id` is remembered.
pub const REQUEST_ID_MEMORY: Duration = Duration::from_secs(24 * 3600);

/// A session to be written for the first time.
#[derive(Debug, Clone)]
pub struct Create {
    /// The record, version 1.
    pub session: Session,
    /// Its first event.
    pub record: EventRecord,
    /// When it is due.
    pub due: Timestamp,
    /// Makes a repeated create return the first one's session: the caller's
    /// `request_id` and a digest of all other fields.
    pub request: Option<RequestId>,
    /// The quotas to hold: `live_sessions_per_owner`, `live_sessions`,
    /// `creates_per_minute` (a fixed window of 60 s of the store's clock).
    pub limits: Limits,
}

/// A caller's own name for a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId {
    /// As the caller gave it; unique per owner.
    pub id: String,
    /// A digest of every other field.
    pub fingerprint: String,
}

/// What a create did.
#[derive(Debug, Clone)]
pub struct Created {
    /// The session, as stored now.
    pub session: Session,
    /// False when an earlier create with the same `request_id` made it.
    pub new: bool,
}

/// A change to write, on the condition that the stored version is the one before.
#[derive(Debug, Clone)]
pub struct Commit {
    /// The new record; the stored one must have `version - 1`.
    pub session: Session,
    /// Its event.
    pub record: EventRecord,
    /// When it is due next; never, if none.
    pub due: Option<Timestamp>,
}

/// Session records: every write has a precondition and writes the record, its
/// indexes, due entry and event in one step.
#[async_trait]
pub trait Sessions {
    /// Writes a new session, its indexes, due entry and event, unless the
    /// `request_id` was seen or a quota is used up; all in one step.
    async fn create(&self, create: Create) -> Result<Created, Error>;

    /// Reads a session.
    async fn get(&self, key: &SessionKey) -> Result<Option<Session>, Error>;

    /// The session that an earlier create with this request made, if one did.
    /// [`Error::RequestIdReused`] if it had other fields.
    async fn find_by_request(
        &self,
        org: &OrgId,
        owner: &PrincipalId,
        request: &RequestId,
    ) -> Result<Option<Session>, Error>;

    /// Writes a change, its indexes, due entry, quota and event in one step.
    /// [`Error::Conflict`] unless the stored version is the one before. Owner,
    /// cluster and team of a session never change.
    async fn commit(&self, commit: Commit) -> Result<(), Error>;

    /// [`crate::Sessions::commit`] of what an idle clock decided: only while no
    /// proxy has a call in flight on the session's generation, and while
    /// `last_activity_at` is what the decision was made from; otherwise
    /// [`Error::Conflict`].
    async fn commit_if_idle(&self, commit: Commit, last_activity_at: Timestamp) -> Result<(), Error>;

    /// The last [`HISTORY`] changes of a session, oldest first; none of an
    /// unknown one.
    async fn events(&self, key: &SessionKey) -> Result<Vec<EventRecord>, Error>;
}
