//! Organizations: the tenants, how much each may use, and who is shut out.

use crate::id::OrgId;
use crate::principal::PrincipalId;
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};

/// A tenant; everything belongs to exactly one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Org {
    /// Its name.
    pub id: OrgId,
    /// How much it may use.
    #[serde(default)]
    pub limits: Limits,
    /// Declared in configuration, hence read-only in the API.
    #[serde(default)]
    pub managed_by_config: bool,
    /// Rises with every change.
    #[serde(default)]
    pub version: u64,
}

impl Org {
    /// One that nobody defined has Berth's default limits.
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
    /// Creates of one owner in a minute.
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
    /// Which.
    pub field: &'static str,
    /// The least it may be.
    pub min: u32,
    /// The most it may be.
    pub max: u32,
    /// What was asked for.
    pub given: u32,
}

impl Limits {
    /// Are all within their bounds?
    ///
    /// # Errors
    /// The first that is not.
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

/// An organization, or one principal of it, that is shut out. Apart from the
/// definition of the organization, so that whoever declares that cannot stand
/// in the way of an emergency.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disabled {
    /// The organization.
    pub org: OrgId,
    /// Only this principal of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<PrincipalId>,
    /// Who did it.
    pub by: PrincipalId,
    /// A platform admin did: then only one can undo it.
    pub by_platform: bool,
    /// When.
    pub at: Timestamp,
    /// Everything that was live at that time is closed.
    pub settled: bool,
    /// Rises with every change.
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
