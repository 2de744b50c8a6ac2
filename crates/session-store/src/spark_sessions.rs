//! Spark sessions on compute that is a session's own: on which generation each
//! was used last, and the settings that its clients changed.
//!
//! The engine forgets both when compute is replaced. What is kept here lets
//! session-manager tell an older Spark session from a new one, and apply its
//! settings again. It is bounded, and what is beyond the bounds is not kept.

use crate::Error;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use session_core::{SessionKey, SparkSessionId};
use std::collections::BTreeMap;
use std::time::Duration;

/// Spark sessions of one session that are kept; the longest unchanged make room.
pub const MAX_SPARK_SESSIONS: usize = 32;
/// Bytes of one Spark session's settings, names and values together.
pub const MAX_SETTINGS_BYTES: usize = 8 * 1024;
/// How long they are kept without a change: longer than any session lives.
pub const SPARK_SESSION_MEMORY: Duration = Duration::from_secs(8 * 24 * 3600);

/// A Spark session as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptSparkSession {
    /// The session's generation that it was used on last.
    #[serde(rename = "g")]
    pub generation: u64,
    /// The settings that its clients set and did not unset.
    #[serde(rename = "s", default)]
    pub settings: BTreeMap<String, String>,
}

/// A change of settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingsChange {
    /// Of which Spark session.
    pub spark_session: SparkSessionId,
    /// The generation that took it.
    pub generation: u64,
    /// By name.
    pub set: BTreeMap<String, String>,
    /// Names.
    pub unset: Vec<String>,
}

/// What became of [`crate::SparkSessions::use_spark_session`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Used {
    /// It was not known.
    New,
    /// It was used on this generation before, or on a later one.
    Again,
    /// It was last used on an earlier generation. Only one caller is told so.
    Moved,
}

/// The Spark sessions of dedicated compute, and their settings.
#[async_trait]
pub trait SparkSessions {
    /// Keeps a change of settings, which the engine took. False if it would
    /// exceed [`MAX_SETTINGS_BYTES`], or is of an earlier generation than what
    /// is kept: then nothing changes. All in one step; safe to call again.
    async fn keep_settings(&self, key: &SessionKey, change: &SettingsChange) -> Result<bool, Error>;

    /// The Spark session is used on `generation` from now on. In one step.
    async fn use_spark_session(
        &self,
        key: &SessionKey,
        spark_session: &SparkSessionId,
        generation: u64,
    ) -> Result<Used, Error>;

    /// What is kept of a session's Spark sessions.
    async fn spark_sessions(
        &self,
        key: &SessionKey,
    ) -> Result<BTreeMap<SparkSessionId, KeptSparkSession>, Error>;

    /// Forgets them, with the session.
    async fn forget_spark_sessions(&self, key: &SessionKey) -> Result<(), Error>;
}

impl KeptSparkSession {
    /// Takes a change; false if it is not to be kept.
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
