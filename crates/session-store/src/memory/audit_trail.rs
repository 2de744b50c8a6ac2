//! The audit trail in memory.

use super::MemoryStore;
use crate::Error;
use crate::audit_trail::{AUDIT_SHARE, AuditEntry, AuditPlace, AuditSource, AuditTrail, MAX_AUDIT_RECORDS};
use async_trait::async_trait;
use session_core::{AuditRecord, Timestamp};
use std::collections::{HashMap, VecDeque};

/// Records by partition.
#[derive(Default)]
pub(super) struct Trail {
    records: HashMap<u8, VecDeque<Entry>>,
    exported: HashMap<u8, String>,
    last: u64,
    last_written: Timestamp,
}

struct Entry {
    number: u64,
    written_at: Timestamp,
    record: AuditRecord,
}

impl Trail {
    pub(super) fn add(&mut self, record: AuditRecord, now: Timestamp) {
        self.last += 1;
        // As in Redis, places rise also when the clock is set back.
        self.last_written = self.last_written.max(now);
        let records = self.records.entry(record.partition()).or_default();
        let org = record.org.clone();
        records.push_back(Entry {
            number: self.last,
            written_at: self.last_written,
            record,
        });
        if records.len() <= MAX_AUDIT_RECORDS {
            return;
        }
        let of_org = |entry: &&Entry| entry.record.org == org;
        let own = records.iter().filter(of_org).count();
        let evicted = if own > MAX_AUDIT_RECORDS / AUDIT_SHARE {
            records.iter().position(|entry| of_org(&entry))
        } else {
            Some(0)
        };
        evicted.and_then(|position| records.remove(position));
    }
}

#[async_trait]
impl AuditTrail for MemoryStore {
    async fn append_audit(&self, record: &AuditRecord) -> Result<(), Error> {
        let now = self.clock.now();
        self.state().trail.add(record.clone(), now);
        Ok(())
    }

    async fn read_audit(&self, partition: u8, after: &str, limit: usize) -> Result<Vec<AuditEntry>, Error> {
        let after: u64 = after.parse().unwrap_or(0);
        let state = self.state();
        let records = state.trail.records.get(&partition).into_iter().flatten();
        Ok(records
            .filter(|entry| entry.number > after)
            .take(limit)
            .map(|entry| AuditEntry {
                position: entry.number.to_string(),
                record: entry.record.clone(),
            })
            .collect())
    }

    async fn read_audit_before(
        &self,
        source: AuditSource,
        before: Option<AuditPlace>,
        limit: usize,
    ) -> Result<Vec<(AuditPlace, AuditRecord)>, Error> {
        let partition = source.partition();
        let is_in = |record: &AuditRecord| match &source {
            AuditSource::Partition(_) => true,
            AuditSource::Org(org) => record.org.as_ref() == Some(org),
        };
        let place = |entry: &Entry| AuditPlace::new(entry.written_at.as_millis(), entry.number, partition);
        let state = self.state();
        let records = state.trail.records.get(&partition).into_iter().flatten().rev();
        Ok(records
            .filter(|entry| is_in(&entry.record))
            .map(|entry| (place(entry), entry))
            .filter(|(place, _)| before.is_none_or(|before| *place < before))
            .take(limit)
            .map(|(place, entry)| (place, entry.record.clone()))
            .collect())
    }

    async fn audit_export_position(&self, partition: u8) -> Result<String, Error> {
        let state = self.state();
        Ok(state.trail.exported.get(&partition).cloned().unwrap_or_default())
    }

    async fn set_audit_export_position(&self, partition: u8, position: &str) -> Result<(), Error> {
        self.state().trail.exported.insert(partition, position.to_owned());
        Ok(())
    }
}
