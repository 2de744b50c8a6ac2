//! The audit trail and the signing keys, as the memory store keeps them.

use super::MemoryStore;
use crate::Error;
use crate::audit_trail::{AUDIT_LENGTH, AUDIT_SHARE, AuditTrail, Audited};
use crate::signing_keys::{KEY_GAP, KEY_MEMORY, KnownKey, KnownKeys, MOST_KEYS, SigningKeys};
use async_trait::async_trait;
use session_core::{AuditRecord, Timestamp};
use std::collections::{BTreeMap, HashMap, VecDeque};

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
        if records.len() <= AUDIT_LENGTH {
            return;
        }
        let of_org = |(_, record): &&(u64, AuditRecord)| record.org == org;
        let own = records.iter().filter(of_org).count();
        let evicted = if own > AUDIT_LENGTH / AUDIT_SHARE {
            records.iter().position(|record| of_org(&record))
        } else {
            Some(0)
        };
        evicted.and_then(|place| records.remove(place));
    }
}

/// Keys by id.
#[derive(Default)]
pub(super) struct Keys(BTreeMap<String, Kept>);

struct Kept {
    since: Timestamp,
    signed: Option<Timestamp>,
    seen: Timestamp,
}

#[async_trait]
impl AuditTrail for MemoryStore {
    async fn audit(&self, record: &AuditRecord) -> Result<(), Error> {
        self.state().trail.add(record.clone());
        Ok(())
    }

    async fn audited(&self, partition: u8, after: &str, limit: usize) -> Result<Vec<Audited>, Error> {
        let after: u64 = after.parse().unwrap_or(0);
        let state = self.state();
        let records = state.trail.records.get(&partition).into_iter().flatten();
        Ok(records
            .filter(|(number, _)| *number > after)
            .take(limit)
            .map(|(number, record)| Audited {
                place: number.to_string(),
                record: record.clone(),
            })
            .collect())
    }

    async fn exported(&self, partition: u8) -> Result<String, Error> {
        let state = self.state();
        Ok(state.trail.exported.get(&partition).cloned().unwrap_or_default())
    }

    async fn set_exported(&self, partition: u8, place: &str) -> Result<(), Error> {
        self.state().trail.exported.insert(partition, place.to_owned());
        Ok(())
    }
}

#[async_trait]
impl SigningKeys for MemoryStore {
    async fn report_keys(&self, published: &[String], signing: Option<&str>) -> Result<KnownKeys, Error> {
        let now = self.clock.now();
        let mut state = self.state();
        let kept = &mut state.signing_keys.0;
        kept.retain(|_, key| now.since(key.seen) <= KEY_MEMORY);
        let mut keys = Vec::new();
        for id in published {
            if !kept.contains_key(id) && kept.len() >= MOST_KEYS {
                let gone = kept.iter().filter(|(_, key)| now.since(key.seen) > KEY_GAP);
                let stalest = gone.min_by_key(|(_, key)| key.seen).map(|(id, _)| id.clone());
                let Some(stalest) = stalest else { continue };
                kept.remove(&stalest);
            }
            let key = kept.entry(id.clone()).or_insert(Kept {
                since: now,
                signed: None,
                seen: now,
            });
            if now.since(key.seen) > KEY_GAP {
                key.since = now;
            }
            key.seen = now;
            if signing == Some(id) {
                key.signed = Some(now);
            }
            keys.push(KnownKey {
                id: id.clone(),
                published_since: key.since,
                signed_at: key.signed,
            });
        }
        Ok(KnownKeys { now, keys })
    }
}
