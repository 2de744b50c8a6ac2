//! Spark sessions in memory.

use super::MemoryStore;
use crate::Error;
use crate::spark_sessions::{
    MAX_SPARK_SESSIONS, SettingsChange, SparkSessionUse, SparkSessions, StoredSparkSession,
};
use async_trait::async_trait;
use session_core::{SessionKey, SparkSessionId};
use std::collections::{BTreeMap, HashMap};

#[derive(Default)]
pub(super) struct Sessions {
    sessions: HashMap<SessionKey, BTreeMap<SparkSessionId, (StoredSparkSession, u64)>>,
    changes: u64,
}

impl Sessions {
    fn change<T>(
        &mut self,
        key: &SessionKey,
        id: &SparkSessionId,
        change: impl FnOnce(&mut StoredSparkSession) -> (bool, T),
    ) -> T {
        let of = self.sessions.entry(key.clone()).or_default();
        let mut next = of.get(id).map_or_else(
            || StoredSparkSession {
                generation: 0,
                settings: BTreeMap::new(),
            },
            |(kept, _)| kept.clone(),
        );
        let (keep, outcome) = change(&mut next);
        if keep {
            self.changes += 1;
            of.insert(id.clone(), (next, self.changes));
            if of.len() > MAX_SPARK_SESSIONS {
                let oldest = of.iter().min_by_key(|(_, (_, at))| *at).map(|(id, _)| id.clone());
                oldest.and_then(|oldest| of.remove(&oldest));
            }
        }
        outcome
    }
}

#[async_trait]
impl SparkSessions for MemoryStore {
    async fn store_settings(&self, key: &SessionKey, change: &SettingsChange) -> Result<bool, Error> {
        let mut state = self.state();
        Ok(state.spark_sessions.change(key, &change.spark_session, |kept| {
            let taken = kept.take(change);
            (taken, taken)
        }))
    }

    async fn use_spark_session(
        &self,
        key: &SessionKey,
        spark_session: &SparkSessionId,
        generation: u64,
    ) -> Result<SparkSessionUse, Error> {
        let mut state = self.state();
        Ok(state.spark_sessions.change(key, spark_session, |kept| {
            let used = match kept.generation {
                0 => SparkSessionUse::New,
                known if known < generation => SparkSessionUse::Moved,
                _ => SparkSessionUse::Again,
            };
            kept.generation = kept.generation.max(generation);
            (used != SparkSessionUse::Again, used)
        }))
    }

    async fn spark_sessions(
        &self,
        key: &SessionKey,
    ) -> Result<BTreeMap<SparkSessionId, StoredSparkSession>, Error> {
        let state = self.state();
        let kept = state.spark_sessions.sessions.get(key).into_iter().flatten();
        Ok(kept.map(|(id, (kept, _))| (id.clone(), kept.clone())).collect())
    }

    async fn forget_spark_sessions(&self, key: &SessionKey) -> Result<(), Error> {
        self.state().spark_sessions.sessions.remove(key);
        Ok(())
    }
}
