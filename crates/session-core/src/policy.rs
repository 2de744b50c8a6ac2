//! Session policy: timeouts and deadlines with defaults and bounds.

use crate::time::millis;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Treatment of the compute of an idle session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IdlePolicy {
    /// Release it; the next query warms new compute.
    Release,
    /// Keep it; the next query continues at once.
    Keep,
}

/// Behaviour of a Spark session that is older than its session's compute,
/// because the compute was released or lost and then replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WakePolicy {
    /// Its settings are applied again, and its calls continue.
    #[default]
    Restore,
    /// Its first call ends with `INVALID_HANDLE.SESSION_CHANGED`.
    Signal,
}

impl WakePolicy {
    /// Spelling in configuration and APIs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Restore => "restore",
            Self::Signal => "signal",
        }
    }

    /// Whether it is the default.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Resolved timeouts of one session; fixed at its creation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionPolicy {
    /// Time without calls after which the session becomes idle.
    #[serde(with = "millis")]
    pub idle_timeout: Duration,
    /// Idle time after which it is closed; at least
    /// [`crate::machine::RELEASE_GRACE`].
    #[serde(with = "millis")]
    pub close_after_idle: Duration,
    /// Maximum lifetime in all states.
    #[serde(with = "millis")]
    pub max_lifetime: Duration,
    /// Time limit of provisioning, warming and restart.
    #[serde(with = "millis")]
    pub provisioning_deadline: Duration,
    /// Treatment of idle compute.
    pub on_idle: IdlePolicy,
    /// Behaviour of older Spark sessions on replaced compute.
    #[serde(default, skip_serializing_if = "WakePolicy::is_default")]
    pub wake: WakePolicy,
    /// Whether the compute serves this session only.
    pub dedicated: bool,
}

/// Timeouts that a caller requests; absent means the cluster's default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PolicyRequest {
    /// Time without calls after which the session becomes idle.
    pub idle_timeout: Option<Duration>,
    /// Idle time after which it is closed.
    pub close_after_idle: Option<Duration>,
    /// Maximum lifetime in all states.
    pub max_lifetime: Option<Duration>,
}

/// Default timeouts of a cluster; absent means Berth's default.
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

/// A timeout outside its bounds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {}", range(.min, .max, .given))]
pub struct OutOfBounds {
    /// Name of the timeout.
    pub field: &'static str,
    /// Minimum.
    pub min: Duration,
    /// Maximum.
    pub max: Duration,
    /// The requested value.
    pub given: Duration,
}

impl OutOfBounds {
    /// What the timeout must be, without its name.
    pub fn range(&self) -> String {
        range(&self.min, &self.max, &self.given)
    }
}

fn range(min: &Duration, max: &Duration, given: &Duration) -> String {
    format!("must be between {min:?} and {max:?}, not {given:?}")
}

/// Maximum lifetime of any session, including extensions by ExtendSession.
pub const MAX_LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);
