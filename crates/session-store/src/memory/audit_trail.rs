//! The audit trail in memory.

use super::MemoryStore;
use crate::Error;
use crate::audit_trail::{AUDIT_SHARE, AuditEntry, AuditPlace, AuditTrail, MAX_AUDIT_RECORDS};
use async_trait::async_trait;
use session_core::AuditRecord;
use std::collections::{HashMap, VecDeque};

/// Records by partition, each with its number.
#[derive(Default)]
pub(super) struct Trail {
    records: HashMap<u8, VecDeque<(u64, AuditRecord)>>,
    exported: HashMap<u8, String>,
    last: u64,
}

impl Trail {
    pub(super) fn add(&mut self, record: AuditRecord) {
        self.last += 1;
        let records = self.records.entry(record.partition()).or_default();
        let org = record.org.clone();
        records.push_back((self.last, record));
        if records.len() <= MAX_AUDIT_RECORDS {
            return;
        }
        let of_org = |(_, record): &&(u64, AuditRecord)| record.org == org;
        let own = records.iter().filter(of_org).count();
        let evicted = if own > MAX_AUDIT_RECORDS / AUDIT_SHARE {
            records.iter().position(|record| of_org(&record))
        } else {
            Some(0)
        };
        evicted.and_then(|position| records.remove(position));
    }
}

#[async_trait]
impl AuditTrail for MemoryStore {
    async fn append_audit(&self, record: &AuditRecord) -> Result<(), Error> {
        self.state().trail.add(record.clone());
        Ok(())
    }

    async fn read_audit(&self, partition: u8, after: &str, limit: usize) -> Result<Vec<AuditEntry>, Error> {
        let after: u64 = after.parse().unwrap_or(0);
        let state = self.state();
        let records = state.trail.records.get(&partition).into_iter().flatten();
        Ok(records
            .filter(|(number, _)| *number > after)
            .take(limit)
            .map(|(number, record)| AuditEntry {
                position: number.to_string(),
                record: record.clone(),
            })
            .collect())
    }

    async fn read_audit_before(
        &self,
        partition: u8,
        before: Option<AuditPlace>,
        limit: usize,
    ) -> Result<Vec<(AuditPlace, AuditRecord)>, Error> {
        let state = self.state();
        let records = state.trail.records.get(&partition).into_iter().flatten().rev();
        Ok(records
            .map(|(number, record)| (AuditPlace::new(*number, 0, partition), record))
            .filter(|(place, _)| before.is_none_or(|before| *place < before))
            .take(limit)
            .map(|(place, record)| (place, record.clone()))
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
