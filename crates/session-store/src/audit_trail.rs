//! The audit trail, stored beside the sessions that it describes.
//!
//! A change of a session and its audit record are written in one step, so neither
//! exists without the other. The trail is bounded: the oldest records of a partition
//! are deleted first; an organization with more than its share loses its own records
//! first. Export the trail to keep it longer.

use crate::Error;
use async_trait::async_trait;
use session_core::AuditRecord;

/// Records per partition unless configured, about 3 MiB.
pub const MAX_AUDIT_RECORDS: usize = 10_000;

/// An organization with more than 1/`AUDIT_SHARE` of a full partition replaces its own
/// oldest records instead of those of others.
pub const AUDIT_SHARE: usize = 4;

/// A record with its position in the partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEntry {
    /// Opaque position; only the store can order positions.
    pub position: String,
    /// The record.
    pub record: AuditRecord,
}

/// The audit trail. `create`, `commit`, `commit_if_idle`, `record_token` and the first
/// use of a token in `apply_report` write their records themselves.
#[async_trait]
pub trait AuditTrail {
    /// Appends a record to its partition.
    async fn append_audit(&self, record: &AuditRecord) -> Result<(), Error>;

    /// Returns up to `limit` records of a partition after the position `after`; from
    /// the oldest record if `after` is empty or deleted.
    async fn read_audit(&self, partition: u8, after: &str, limit: usize) -> Result<Vec<AuditEntry>, Error>;

    /// Returns the position up to which a partition was exported; empty before the
    /// first export.
    async fn audit_export_position(&self, partition: u8) -> Result<String, Error>;

    /// Records that a partition was exported up to `position`.
    async fn set_audit_export_position(&self, partition: u8, position: &str) -> Result<(), Error>;
}
