//! Organizations: the tenants, their limits, and disabled organizations and
//! principals.

use crate::id::OrgId;
use crate::principal::PrincipalId;
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};

/// A tenant; every object belongs to exactly one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Org {
    /// Name of the organization.
    pub id: OrgId,
    /// Its limits.
    #[serde(default)]
    pub limits: Limits,
    /// Whether the configuration declares it; then the API cannot change it.
    #[serde(default)]
    pub managed_by_config: bool,
    /// Version number; each change raises it.
    #[serde(default)]
    pub version: u64,
}

impl Org {
    /// An organization without a definition, with Berth's default limits.
    pub fn undefined(id: OrgId) -> Self {
        Self {
            id,
            limits: Limits::default(),
            managed_by_config: false,
            version: 0,
        }
    }
}

/// Quotas, exact under concurrency.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Live (not closed, not failed) sessions of one owner.
    pub live_sessions_per_owner: u32,
    /// Live sessions of the organization.
    pub live_sessions: u32,
    /// Sessions that one owner may create per minute.
    pub creates_per_minute: u32,
    /// Labels on one session.
    pub labels: u32,
    /// Live tokens of one session.
    pub tokens_per_session: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            live_sessions_per_owner: 10,
            live_sessions: 200,
            creates_per_minute: 30,
            labels: 32,
            tokens_per_session: 100,
        }
    }
}

/// A limit outside its bounds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be {min} to {max}, not {given}")]
pub struct LimitOutOfBounds {
    /// Name of the limit.
    pub field: &'static str,
    /// Minimum.
    pub min: u32,
    /// Maximum.
    pub max: u32,
    /// The rejected value.
    pub given: u32,
}

impl Limits {
    /// Checks that all limits are within their bounds.
    ///
    /// # Errors
    /// The first limit outside its bounds.
    pub fn check(&self) -> Result<(), LimitOutOfBounds> {
        for (field, given, max) in [
            (
                "limits.live_sessions_per_owner",
                self.live_sessions_per_owner,
                100_000,
            ),
            ("limits.live_sessions", self.live_sessions, 1_000_000),
            ("limits.creates_per_minute", self.creates_per_minute, 10_000),
            ("limits.labels", self.labels, 64),
            ("limits.tokens_per_session", self.tokens_per_session, 1000),
        ] {
            if given < 1 || given > max {
                return Err(LimitOutOfBounds {
                    field,
                    min: 1,
                    max,
                    given,
                });
            }
        }
        Ok(())
    }
}

/// State of a disabled organization or principal. It is separate from the
/// definition of the organization, so that a declaration in the configuration
/// cannot prevent a disable in an emergency.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disabled {
    /// The organization.
    pub org: OrgId,
    /// The principal; `None` means the whole organization.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<PrincipalId>,
    /// The principal that disabled it.
    pub by: PrincipalId,
    /// Whether a platform admin disabled it; then only a platform admin can
    /// enable it.
    pub by_platform: bool,
    /// Time of the disable.
    pub at: Timestamp,
    /// Whether all sessions that were live at that time are closed.
    pub settled: bool,
    /// Version number; each change raises it.
    #[serde(default)]
    pub version: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_have_bounds() {
        assert_eq!(Limits::default().check(), Ok(()));
        let none = Limits {
            labels: 0,
            ..Limits::default()
        };
        assert_eq!(none.check().unwrap_err().field, "limits.labels");
        let many = Limits {
            tokens_per_session: 1001,
            ..Limits::default()
        };
        assert_eq!(many.check().unwrap_err().max, 1000);
    }
}
