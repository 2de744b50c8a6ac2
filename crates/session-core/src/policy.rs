//! The clocks of a session: defaults, bounds, and what a caller may ask for.

use crate::time::millis;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What becomes of compute when its session goes idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IdlePolicy {
    /// Give it back; the next query warms a new one.
    Release,
    /// Keep it; the next query goes on at once.
    Keep,
}

/// What a Spark session that is older than its session's compute meets, after
/// the compute was given back or lost and replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WakePolicy {
    /// Its settings are applied again, and its calls go on.
    #[default]
    Restore,
    /// Its first call ends with `INVALID_HANDLE.SESSION_CHANGED`.
    Signal,
}

impl WakePolicy {
    /// As configuration and APIs spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Restore => "restore",
            Self::Signal => "signal",
        }
    }

    /// Is it the default?
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The settled clocks of one session; fixed when it is created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionPolicy {
    /// Idle after this much silence.
    #[serde(with = "millis")]
    pub idle_timeout: Duration,
    /// Closed after this long in idle; never before [`crate::machine::RELEASE_GRACE`] is over.
    #[serde(with = "millis")]
    pub close_after_idle: Duration,
    /// Closed after this long in all, whatever else happens.
    #[serde(with = "millis")]
    pub max_lifetime: Duration,
    /// How long provisioning, warming or a restart may take.
    #[serde(with = "millis")]
    pub provisioning_deadline: Duration,
    /// What idling does with compute.
    pub on_idle: IdlePolicy,
    /// What older Spark sessions meet on replaced compute.
    #[serde(default, skip_serializing_if = "WakePolicy::is_default")]
    pub wake: WakePolicy,
    /// Compute serves this session only.
    pub dedicated: bool,
}

/// What a caller may ask for; absent means the cluster's default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PolicyRequest {
    /// Idle after this much silence.
    pub idle_timeout: Option<Duration>,
    /// Closed after this long in idle.
    pub close_after_idle: Option<Duration>,
    /// Closed after this long in all.
    pub max_lifetime: Option<Duration>,
}

/// A cluster's own defaults; absent means Berth's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyRange {
    /// Default 15 min; 1 min (6 min on Spark) to 8 h.
    #[serde(skip_serializing_if = "Option::is_none", with = "maybe_millis")]
    pub idle_timeout: Option<Duration>,
    /// Default 60 min; 0 to 24 h.
    #[serde(skip_serializing_if = "Option::is_none", with = "maybe_millis")]
    pub close_after_idle: Option<Duration>,
    /// Default 24 h; 10 min to 7 d.
    #[serde(skip_serializing_if = "Option::is_none", with = "maybe_millis")]
    pub max_lifetime: Option<Duration>,
    /// Default 120 s; 10 s to 15 min.
    #[serde(skip_serializing_if = "Option::is_none", with = "maybe_millis")]
    pub provisioning_deadline: Option<Duration>,
}

mod maybe_millis {
    use serde::{Deserialize, Deserializer, Serializer};
    use std::time::Duration;

    #[expect(clippy::ref_option, reason = "serde's `with` passes a reference to the field")]
    pub(super) fn serialize<S: Serializer>(value: &Option<Duration>, ser: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => ser.serialize_u64(u64::try_from(value.as_millis()).unwrap_or(u64::MAX)),
            None => ser.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(de: D) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(de)?.map(Duration::from_millis))
    }
}

/// A clock outside its bounds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} must be between {min:?} and {max:?}, not {given:?}")]
pub struct OutOfBounds {
    /// The clock's name.
    pub field: &'static str,
    /// The least it may be.
    pub min: Duration,
    /// The most it may be.
    pub max: Duration,
    /// What was asked for.
    pub given: Duration,
}

/// The longest any session may live, also by ExtendSession.
pub const LONGEST_LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);
