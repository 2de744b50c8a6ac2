//! Spark sessions in Redis: one hash per session, with a JSON text per Spark session.

use super::{RedisStore, Reply};
use crate::Error;
use crate::redis::schema::keys::Slot;
use crate::spark_sessions::{
    MAX_SETTINGS_BYTES, MAX_SPARK_SESSIONS, SPARK_SESSION_RETENTION, SettingsChange, SparkSessionUse,
    SparkSessions, StoredSparkSession,
};
use async_trait::async_trait;
use session_core::{SessionKey, SparkSessionId};
use std::collections::BTreeMap;

/// The field with the number of the last change.
const COUNTER: &str = "#";

fn retention_ms() -> u64 {
    u64::try_from(SPARK_SESSION_RETENTION.as_millis()).unwrap_or(u64::MAX)
}

fn answer(reply: &Reply) -> &str {
    reply.0.first().map_or("", String::as_str)
}

#[async_trait]
impl SparkSessions for RedisStore {
    async fn store_settings(&self, key: &SessionKey, change: &SettingsChange) -> Result<bool, Error> {
        // Settings are a convenience: under memory pressure they are not stored,
        // without an error.
        if self
            .is_short_of_memory(Slot::Partition(key.org.partition()))
            .await
        {
            return Ok(false);
        }
        let mut script = self.scripts.store_settings.key(self.keys.spark_sessions(key));
        script
            .arg(change.spark_session.as_str())
            .arg(change.generation)
            .arg(MAX_SPARK_SESSIONS)
            .arg(MAX_SETTINGS_BYTES)
            .arg(retention_ms())
            .arg(change.set.len());
        for (name, value) in &change.set {
            script.arg(name).arg(value);
        }
        script.arg(&change.unset);
        let reply = self.run(&script).await?;
        match answer(&reply) {
            "stored" => Ok(true),
            "not-stored" => Ok(false),
            other => Err(Error::Corrupt(format!("a script answered {other:?}"))),
        }
    }

    async fn use_spark_session(
        &self,
        key: &SessionKey,
        spark_session: &SparkSessionId,
        generation: u64,
    ) -> Result<SparkSessionUse, Error> {
        let mut script = self.scripts.use_spark_session.key(self.keys.spark_sessions(key));
        script
            .arg(spark_session.as_str())
            .arg(generation)
            .arg(MAX_SPARK_SESSIONS)
            .arg(retention_ms());
        let reply = self.run(&script).await?;
        match answer(&reply) {
            "new" => Ok(SparkSessionUse::New),
            "again" => Ok(SparkSessionUse::Again),
            "moved" => Ok(SparkSessionUse::Moved),
            other => Err(Error::Corrupt(format!("a script answered {other:?}"))),
        }
    }

    async fn spark_sessions(
        &self,
        key: &SessionKey,
    ) -> Result<BTreeMap<SparkSessionId, StoredSparkSession>, Error> {
        let mut cmd = redis::cmd("HGETALL");
        cmd.arg(self.keys.spark_sessions(key));
        let stored: BTreeMap<String, String> = self.connections.query(&cmd).await?;
        stored
            .iter()
            .filter(|(id, _)| *id != COUNTER)
            .map(|(id, text)| {
                let kept = serde_json::from_str(text).ok();
                id.parse().ok().zip(kept).ok_or_else(|| {
                    Error::Corrupt(format!("the stored Spark session {id:?} cannot be decoded"))
                })
            })
            .collect()
    }

    async fn forget_spark_sessions(&self, key: &SessionKey) -> Result<(), Error> {
        let mut cmd = redis::cmd("UNLINK");
        cmd.arg(self.keys.spark_sessions(key));
        self.connections.query::<i64>(&cmd).await.map(drop)
    }
}
