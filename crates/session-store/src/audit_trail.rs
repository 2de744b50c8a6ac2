//! The audit trail, stored beside the sessions that it describes.
//!
//! A change of a session and its audit record are written in one step, so neither
//! exists without the other. The trail is bounded: the oldest records of a partition
//! are deleted first; an organization with more than its share loses its own records
//! first. Export the trail to keep it longer.

use crate::Error;
use async_trait::async_trait;
use session_core::{AuditRecord, OrgId, Timestamp};
use std::cmp::Reverse;
use std::fmt;
use std::str::FromStr;

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

/// Whose records are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuditSource {
    /// All records of a partition.
    Partition(u8),
    /// Those of one organization, so that neither the records nor their places say anything of
    /// others in its partition.
    Org(OrgId),
}

impl AuditSource {
    /// The partition that has the records.
    pub fn partition(&self) -> u8 {
        match self {
            Self::Partition(partition) => *partition,
            Self::Org(org) => org.partition(),
        }
    }
}

/// The place of a record in the order of all partitions: by the time of its write, then
/// by its number in that millisecond. Of two partitions with the same, the lower is newer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AuditPlace {
    time: u64,
    number: u64,
    partition: Reverse<u8>,
}

impl AuditPlace {
    pub(crate) const fn new(time: u64, number: u64, partition: u8) -> Self {
        Self {
            time,
            number,
            partition: Reverse(partition),
        }
    }

    /// When the record was written, by the clock of the store.
    pub fn written_at(self) -> Timestamp {
        Timestamp::from_millis(self.time)
    }

    /// Time and number up to which records of `partition` come before this place, and
    /// whether the record with exactly these does.
    pub(crate) fn bound_in(self, partition: u8) -> (u64, u64, bool) {
        (self.time, self.number, partition > self.partition.0)
    }
}

/// `<time>-<number>-<partition>`, the form of page tokens.
impl fmt::Display for AuditPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.time, self.number, self.partition.0)
    }
}

impl FromStr for AuditPlace {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let mut parts = text.split('-').map(str::parse::<u64>);
        let mut next = || parts.next().and_then(Result::ok).ok_or(Error::BadPageToken);
        let (time, number, partition) = (next()?, next()?, next()?);
        let partition = u8::try_from(partition).ok().filter(|at| *at < OrgId::PARTITIONS);
        match (partition, parts.next()) {
            (Some(partition), None) => Ok(Self::new(time, number, partition)),
            _ => Err(Error::BadPageToken),
        }
    }
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

    /// Returns the newest records of a source before the place `before`, at most
    /// `limit`, newest first; the newest of all without a place.
    async fn read_audit_before(
        &self,
        source: AuditSource,
        before: Option<AuditPlace>,
        limit: usize,
    ) -> Result<Vec<(AuditPlace, AuditRecord)>, Error>;

    /// Returns the position up to which a partition was exported; empty before the
    /// first export.
    async fn audit_export_position(&self, partition: u8) -> Result<String, Error>;

    /// Records that a partition was exported up to `position`.
    async fn set_audit_export_position(&self, partition: u8, position: &str) -> Result<(), Error>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_ordered_by_time_number_and_partition() {
        let place = AuditPlace::new;
        let newest_first = [place(7, 1, 0), place(7, 0, 2), place(7, 0, 3), place(6, 9, 0)];
        assert!(newest_first.is_sorted_by(|one, next| one > next));
        for before in newest_first {
            assert_eq!(before.to_string().parse::<AuditPlace>().unwrap(), before);
            for other in newest_first {
                let (time, number, inclusive) = before.bound_in(other.partition.0);
                let within = (other.time, other.number) < (time, number)
                    || inclusive && (other.time, other.number) == (time, number);
                assert_eq!(within, other < before, "{other} before {before}");
            }
        }
        for text in [
            "", "1", "1-2", "1-2-16", "1-2-300", "1-2-3-4", "1--3", "-1-2-3", "a-b-c",
        ] {
            assert!(
                matches!(text.parse::<AuditPlace>(), Err(Error::BadPageToken)),
                "{text}"
            );
        }
    }
}
