//! The audit trail in Redis: in each partition a stream, and a list for each of its
//! organizations.

use super::scripts::Call;
use super::{RedisStore, decode, encode};
use crate::Error;
use crate::audit_trail::{AuditEntry, AuditPlace, AuditSource, AuditTrail};
use async_trait::async_trait;
use redis::streams::{StreamId, StreamRangeReply};
use session_core::AuditRecord;

/// The field of a stream entry that holds the record.
const RECORD: &str = "audit";

impl RedisStore {
    /// Adds the last two arguments of a script that also writes an audit record.
    pub(super) fn add_audit_args(&self, script: &mut Call<'_>, record: &AuditRecord) -> Result<(), Error> {
        script.arg(encode(record)?).arg(self.audit_length);
        Ok(())
    }
}

fn record(entry: &StreamId) -> Result<AuditRecord, Error> {
    let json: String = entry
        .get(RECORD)
        .ok_or_else(|| Error::Corrupt(format!("the audit entry {} holds no record", entry.id)))?;
    decode(&json)
}

fn place(entry: &StreamId, partition: u8) -> Result<AuditPlace, Error> {
    let parts = entry.id.split_once('-');
    let parts = parts.and_then(|(time, number)| Some((time.parse().ok()?, number.parse().ok()?)));
    let (time, number) =
        parts.ok_or_else(|| Error::Corrupt(format!("the audit entry {} has no position", entry.id)))?;
    Ok(AuditPlace::new(time, number, partition))
}

#[async_trait]
impl AuditTrail for RedisStore {
    async fn append_audit(&self, record: &AuditRecord) -> Result<(), Error> {
        let mut script = self.scripts.append_audit.key(self.keys.audit(record.partition()));
        self.add_audit_args(&mut script, record)?;
        self.run(&script).await?.done().map(drop)
    }

    async fn read_audit(&self, partition: u8, after: &str, limit: usize) -> Result<Vec<AuditEntry>, Error> {
        let from = if after.is_empty() {
            "-".to_owned()
        } else {
            format!("({after}")
        };
        let mut cmd = redis::cmd("XRANGE");
        cmd.arg(self.keys.audit(partition))
            .arg(from)
            .arg("+")
            .arg("COUNT")
            .arg(limit);
        let found: StreamRangeReply = self.connections.query(&cmd).await?;
        found
            .ids
            .into_iter()
            .map(|entry| {
                Ok(AuditEntry {
                    record: record(&entry)?,
                    position: entry.id,
                })
            })
            .collect()
    }

    async fn read_audit_before(
        &self,
        source: AuditSource,
        before: Option<AuditPlace>,
        limit: usize,
    ) -> Result<Vec<(AuditPlace, AuditRecord)>, Error> {
        let partition = source.partition();
        let trail = self.keys.audit(partition);
        let bound = before.map(|before| before.bound_in(partition));
        let found: StreamRangeReply = match (source, bound) {
            // Redis rejects an end before the first position.
            (_, Some((0, 0, false))) => return Ok(Vec::new()),
            (AuditSource::Partition(_), bound) => {
                let newest = bound.map_or("+".to_owned(), |(time, number, inclusive)| {
                    format!("{}{time}-{number}", if inclusive { "" } else { "(" })
                });
                let mut cmd = redis::cmd("XREVRANGE");
                cmd.arg(trail).arg(newest).arg("-").arg("COUNT").arg(limit);
                self.connections.query(&cmd).await?
            }
            (AuditSource::Org(org), bound) => {
                let positions = format!("{trail}:{org}");
                let mut script = self.scripts.read_audit_of_org.key(trail);
                script.key(positions).arg(limit);
                if let Some((time, number, inclusive)) = bound {
                    script.arg(time).arg(number).arg(u8::from(inclusive));
                }
                self.connections.run(&script).await?
            }
        };
        let placed = |entry: StreamId| Ok((place(&entry, partition)?, record(&entry)?));
        found.ids.into_iter().map(placed).collect()
    }

    async fn audit_export_position(&self, partition: u8) -> Result<String, Error> {
        let mut cmd = redis::cmd("HGET");
        cmd.arg(self.keys.audit_exported()).arg(partition);
        let position: Option<String> = self.connections.query(&cmd).await?;
        Ok(position.unwrap_or_default())
    }

    async fn set_audit_export_position(&self, partition: u8, position: &str) -> Result<(), Error> {
        let mut cmd = redis::cmd("HSET");
        cmd.arg(self.keys.audit_exported()).arg(partition).arg(position);
        self.connections.query::<i64>(&cmd).await.map(drop)
    }
}
