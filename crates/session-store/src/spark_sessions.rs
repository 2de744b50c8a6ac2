//! Spark sessions on dedicated compute: their last generation, and the settings that
//! clients changed.
//!
//! The engine loses both when compute is replaced. With this data session-manager
//! recognizes an older Spark session and applies its settings again. The data is
//! bounded; data beyond the limits is not stored.

use crate::Error;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use session_core::{SessionKey, SparkSessionId};
use std::collections::BTreeMap;
use std::time::Duration;

/// Maximum number of Spark sessions per session; the least recently changed one is
/// deleted.
pub const MAX_SPARK_SESSIONS: usize = 32;
/// Maximum bytes of the settings of one Spark session, names and values together.
pub const MAX_SETTINGS_BYTES: usize = 8 * 1024;
/// Time of storage without a change: longer than the lifetime of any session.
pub const SPARK_SESSION_RETENTION: Duration = Duration::from_secs(8 * 24 * 3600);

/// Stored state of a Spark session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredSparkSession {
    /// Generation of the session at its last use.
    #[serde(rename = "g")]
    pub generation: u64,
    /// Settings that clients set and did not unset.
    #[serde(rename = "s", default)]
    pub settings: BTreeMap<String, String>,
}

/// A change of settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingsChange {
    /// The Spark session.
    pub spark_session: SparkSessionId,
    /// Generation on which the engine accepted it.
    pub generation: u64,
    /// Values by name.
    pub set: BTreeMap<String, String>,
    /// Names to remove.
    pub unset: Vec<String>,
}

/// Result of [`crate::SparkSessions::use_spark_session`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SparkSessionUse {
    /// First use.
    New,
    /// Used before on this generation or a later one.
    Again,
    /// Last used on an earlier generation. Returned to one caller only.
    Moved,
}

/// The Spark sessions of dedicated compute, and their settings.
#[async_trait]
pub trait SparkSessions {
    /// Stores a change of settings that the engine accepted. Returns false, without a
    /// change, if the settings would exceed [`MAX_SETTINGS_BYTES`] or the generation is
    /// older than the stored one. In one step; can be repeated.
    async fn store_settings(&self, key: &SessionKey, change: &SettingsChange) -> Result<bool, Error>;

    /// Records the use of a Spark session on `generation`, in one step.
    async fn use_spark_session(
        &self,
        key: &SessionKey,
        spark_session: &SparkSessionId,
        generation: u64,
    ) -> Result<SparkSessionUse, Error>;

    /// The stored Spark sessions of a session.
    async fn spark_sessions(
        &self,
        key: &SessionKey,
    ) -> Result<BTreeMap<SparkSessionId, StoredSparkSession>, Error>;

    /// Deletes the Spark sessions of a session.
    async fn forget_spark_sessions(&self, key: &SessionKey) -> Result<(), Error>;
}

impl StoredSparkSession {
    /// Applies a change; false if it must not be stored.
    pub(crate) fn take(&mut self, change: &SettingsChange) -> bool {
        if change.generation < self.generation {
            return false;
        }
        let mut settings = self.settings.clone();
        settings.extend(change.set.clone());
        for name in &change.unset {
            settings.remove(name);
        }
        let bytes: usize = settings
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        if bytes > MAX_SETTINGS_BYTES {
            return false;
        }
        self.settings = settings;
        self.generation = change.generation;
        true
    }
}
