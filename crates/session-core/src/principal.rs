//! Callers: principals, roles and actors.

use crate::id::{InvalidId, OrgId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// `issuer-alias|sub`: qualified by the issuer, so that subjects of two
/// identity providers never collide. Service-account keys use the alias `sa`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PrincipalId(String);

impl PrincipalId {
    /// Issuer alias of service-account keys.
    pub const SERVICE_ACCOUNT: &'static str = "sa";

    /// Joins an issuer's alias and its subject. Stricter than parsing a stored
    /// id: a new id must be [`printable`].
    pub fn new(issuer_alias: &str, subject: &str) -> Result<Self, InvalidId> {
        if !printable::all_printable(subject) {
            return Err(InvalidId {
                kind: "principal",
                expected: "\"issuer-alias|subject\" without control or invisible characters",
            });
        }
        format!("{issuer_alias}|{subject}").parse()
    }

    /// The full text `issuer-alias|sub`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PrincipalId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let invalid = InvalidId {
            kind: "principal",
            expected: "\"issuer-alias|subject\", at most 255 bytes without control characters",
        };
        let Some((alias, subject)) = text.split_once('|') else {
            return Err(invalid);
        };
        if alias.is_empty() || subject.is_empty() || text.len() > 255 || text.chars().any(char::is_control) {
            return Err(invalid);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for PrincipalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for PrincipalId {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

impl From<PrincipalId> for String {
    fn from(id: PrincipalId) -> String {
        id.0
    }
}

/// Permissions of a principal beyond its own sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// May create sessions and use their own.
    Member,
    /// May see and manage every session and catalog of the organization.
    OrgAdmin,
    /// May define clusters and organizations. Only the configuration grants it.
    PlatformAdmin,
}

impl Role {
    /// The name of the role in configurations, claims and APIs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Member => "member",
            Self::OrgAdmin => "org-admin",
            Self::PlatformAdmin => "platform-admin",
        }
    }
}

/// An authenticated caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Principal {
    /// The principal's id.
    pub id: PrincipalId,
    /// Its organization.
    pub org: OrgId,
    /// Its roles.
    pub roles: BTreeSet<Role>,
    /// The teams it belongs to.
    pub teams: BTreeSet<String>,
    /// The teams it administers.
    pub team_admin_of: BTreeSet<String>,
}

impl Principal {
    /// Whether the principal has `role`.
    pub fn has(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }
}

/// Actor of a change, as recorded in events and the audit trail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Actor {
    /// Berth itself: a deadline passed, or compute changed.
    #[serde(rename = "system")]
    System,
    /// A person or program.
    #[serde(rename = "p")]
    Principal(PrincipalId),
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System => f.write_str("system"),
            Self::Principal(id) => id.fmt(f),
        }
    }
}
