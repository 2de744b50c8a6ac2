//! Organizations: the tenants, and how much each may use.

use crate::id::OrgId;
use serde::{Deserialize, Serialize};

/// A tenant; everything belongs to exactly one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Org {
    /// Its name.
    pub id: OrgId,
    /// A disabled organization can neither create nor use sessions.
    #[serde(default)]
    pub disabled: bool,
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
