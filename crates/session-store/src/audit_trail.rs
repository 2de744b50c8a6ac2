//! The audit trail: what was done, kept beside what it was done to.
//!
//! A change of a session and its record are written in one step, so neither is
//! ever there without the other. The trail is bounded: the oldest records of a
//! partition go first, those of an organization with more than its share before
//! those of others. Whoever must keep them longer has them exported.

use crate::Error;
use async_trait::async_trait;
use session_core::AuditRecord;

/// How many records a partition keeps, unless configured: some 3 MiB each.
pub const AUDIT_LENGTH: usize = 10_000;

/// An organization that has more than this part of a full partition (1 of so
/// many) replaces its own oldest records, not those of others.
pub const AUDIT_SHARE: usize = 4;

/// A record and where it stands in its partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audited {
    /// Its place; sorts by nothing but the store.
    pub place: String,
    /// What happened.
    pub record: AuditRecord,
}

/// The audit trail. `create`, `commit`, `commit_if_idle`, `record_token` and the
/// first use in `apply_report` write their records themselves.
#[async_trait]
pub trait AuditTrail {
    /// Adds a record to its partition.
    async fn append_audit(&self, record: &AuditRecord) -> Result<(), Error>;

    /// Up to `limit` records of a partition that come after the place `after`,
    /// the oldest that is kept if it is empty or gone.
    async fn read_audit(&self, partition: u8, after: &str, limit: usize) -> Result<Vec<Audited>, Error>;

    /// The place up to which a partition was exported; empty at first.
    async fn audit_export_position(&self, partition: u8) -> Result<String, Error>;

    /// A partition was exported up to `place`.
    async fn set_audit_export_position(&self, partition: u8, place: &str) -> Result<(), Error>;
}
