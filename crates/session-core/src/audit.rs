//! The audit trail: actor, action, object and outcome.
//!
//! A record contains names only: it has no field for a token, key or
//! credential. Every text is bounded in length, so that one call cannot fill
//! the trail, and free of control characters, so that no text can forge a line.

use crate::id::{OrgId, SessionId, SessionKey, TokenId};
use crate::principal::Actor;
use crate::reason::ChangeReason;
use crate::session::{EventRecord, Status};
use crate::string_enum::string_enum;
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};

string_enum! {
    /// The action.
    AuditAction {
        /// A session was created.
        SessionCreated => "session.created",
        /// A session changed: the reason gives the cause, the statuses the
        /// transition.
        SessionChanged => "session.changed",
        /// A token was recorded; the issuer may now return it.
        TokenIssued => "token.issued",
        /// A token was used for the first time.
        TokenFirstUsed => "token.first-used",
        /// A token was revoked.
        TokenRevoked => "token.revoked",
        /// All tokens of a session were revoked.
        TokensRevoked => "tokens.revoked",
        /// Operations were interrupted.
        OperationsInterrupted => "operations.interrupted",
        /// A cluster was created.
        ClusterCreated => "cluster.created",
        /// A cluster was changed.
        ClusterUpdated => "cluster.updated",
        /// A cluster stopped accepting new sessions.
        ClusterDrained => "cluster.drained",
        /// A cluster was deleted.
        ClusterDeleted => "cluster.deleted",
        /// A catalog was created.
        CatalogCreated => "catalog.created",
        /// A catalog was changed.
        CatalogUpdated => "catalog.updated",
        /// A catalog was deleted.
        CatalogDeleted => "catalog.deleted",
        /// A catalog was tested.
        CatalogTested => "catalog.tested",
        /// An organization was created.
        OrgCreated => "org.created",
        /// An organization's settings or limits were changed.
        OrgUpdated => "org.updated",
        /// An organization was disabled.
        OrgDisabled => "org.disabled",
        /// An organization was enabled again.
        OrgEnabled => "org.enabled",
        /// A principal was disabled.
        PrincipalDisabled => "principal.disabled",
        /// A principal was enabled again.
        PrincipalEnabled => "principal.enabled",
        /// Authentication failed.
        CallerRefused => "caller.refused",
    }
}

impl AuditAction {
    /// Whether platform admins may do it in organizations that are not theirs.
    pub const fn is_for_platform_admins(self) -> bool {
        match self {
            Self::ClusterCreated
            | Self::ClusterUpdated
            | Self::ClusterDrained
            | Self::ClusterDeleted
            | Self::OrgCreated
            | Self::OrgUpdated
            | Self::OrgDisabled
            | Self::OrgEnabled
            | Self::PrincipalDisabled
            | Self::PrincipalEnabled => true,
            Self::SessionCreated
            | Self::SessionChanged
            | Self::TokenIssued
            | Self::TokenFirstUsed
            | Self::TokenRevoked
            | Self::TokensRevoked
            | Self::OperationsInterrupted
            | Self::CatalogCreated
            | Self::CatalogUpdated
            | Self::CatalogDeleted
            | Self::CatalogTested
            | Self::CallerRefused => false,
        }
    }
}

string_enum! {
    /// The outcome.
    AuditOutcome {
        /// Completed.
        Done => "done",
        /// Rejected, without an effect.
        Denied => "denied",
    }
}

/// One record of the trail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// Time, by the clock of the recording service.
    pub at: Timestamp,
    /// The action.
    pub action: AuditAction,
    /// The outcome.
    pub outcome: AuditOutcome,
    /// The reason: a fixed spelling of [`crate::Reason`] or
    /// [`crate::ChangeReason`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The actor; `None` if unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<Actor>,
    /// Client IP, where known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub address: String,
    /// Organization of the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub org: Option<OrgId>,
    /// The session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// The token, by its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<TokenId>,
    /// Signing key, cluster, catalog, organization or principal, by its name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub object: String,
    /// The session's status before the change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Status>,
    /// The session's status after the change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Status>,
    /// Version of the session or the object after the change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Whether a failure of the store may undo the change, because replicas did
    /// not confirm it.
    #[serde(default, rename = "weak", skip_serializing_if = "std::ops::Not::not")]
    pub unreplicated: bool,
}

impl AuditRecord {
    /// Maximum length of a text in bytes; longer texts are cut.
    pub const TEXT_BYTES: usize = 255;

    /// A record without an actor.
    pub fn new(at: Timestamp, action: AuditAction) -> Self {
        Self {
            at,
            action,
            outcome: AuditOutcome::Done,
            reason: String::new(),
            actor: None,
            address: String::new(),
            org: None,
            session: None,
            token: None,
            object: String::new(),
            from: None,
            to: None,
            version: None,
            unreplicated: false,
        }
    }

    /// Whether it is an action of a platform admin, also in organizations that are not theirs.
    pub fn is_of_platform_admin(&self) -> bool {
        self.action.is_for_platform_admins() || self.reason == ChangeReason::ClusterDestroyed.as_str()
    }

    /// The record of a session's change, which is stored in the same write.
    pub fn of_change(key: &SessionKey, event: &EventRecord) -> Self {
        let action = match event.from {
            None => AuditAction::SessionCreated,
            Some(_) => AuditAction::SessionChanged,
        };
        Self {
            reason: event.reason.as_str().to_owned(),
            from: event.from,
            to: Some(event.to),
            version: Some(event.version),
            ..Self::new(event.at, action)
                .by(event.actor.clone())
                .from_address(&event.address)
                .on_session(key)
        }
    }

    /// Sets the actor.
    #[must_use]
    pub fn by(mut self, actor: Actor) -> Self {
        self.actor = Some(actor);
        self
    }

    /// Sets the client IP.
    #[must_use]
    pub fn from_address(mut self, address: &str) -> Self {
        self.address = text(address);
        self
    }

    /// Sets the session.
    #[must_use]
    pub fn on_session(mut self, key: &SessionKey) -> Self {
        self.org = Some(key.org.clone());
        self.session = Some(key.id.clone());
        self
    }

    /// Sets the organization of the object.
    #[must_use]
    pub fn of_org(mut self, org: &OrgId) -> Self {
        self.org = Some(org.clone());
        self
    }

    /// Sets the token.
    #[must_use]
    pub fn on_token(mut self, id: &TokenId) -> Self {
        self.token = Some(id.clone());
        self
    }

    /// Sets the name of the object.
    #[must_use]
    pub fn on(mut self, object: &str) -> Self {
        self.object = text(object);
        self
    }

    /// Marks the record as rejected, with the reason.
    #[must_use]
    pub fn denied(mut self, reason: &str) -> Self {
        self.outcome = AuditOutcome::Denied;
        self.reason = text(reason);
        self
    }

    /// The partition of the record: that of its organization, or the first one
    /// without an organization.
    pub fn partition(&self) -> u8 {
        self.org.as_ref().map_or(0, OrgId::partition)
    }
}

/// Cuts a text to the limit of a record and removes control characters.
fn text(text: &str) -> String {
    let mut kept = String::new();
    for c in text.chars() {
        let c = if printable::is_printable(c) { c } else { '?' };
        if kept.len() + c.len_utf8() > AuditRecord::TEXT_BYTES {
            break;
        }
        kept.push(c);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_bounded_and_of_one_line() {
        let long = "é\n".repeat(1000);
        let record = AuditRecord::new(Timestamp::ZERO, AuditAction::CallerRefused)
            .on(&long)
            .from_address(&long)
            .denied(&long);
        for text in [&record.object, &record.address, &record.reason] {
            assert!(text.len() <= AuditRecord::TEXT_BYTES && text.starts_with("é?é?"));
        }
        assert!(serde_json::to_string(&record).unwrap().len() < 1024);
    }

    #[test]
    fn what_is_not_known_is_not_written() {
        let record = AuditRecord::new(Timestamp::from_millis(5), AuditAction::OrgDisabled);
        let json = serde_json::to_string(&record).unwrap();
        assert_eq!(json, r#"{"at":5,"action":"org.disabled","outcome":"done"}"#);
        assert_eq!(serde_json::from_str::<AuditRecord>(&json).unwrap(), record);
    }
}
