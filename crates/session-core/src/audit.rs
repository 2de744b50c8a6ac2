//! The audit trail: who did what to what, and how it ended.
//!
//! A record names things and never holds them: no token, no key, no
//! credential has a field here. Every text is bounded, so that nobody can fill
//! the trail with one call, and free of control characters, so that nobody can
//! write lines of it.

use crate::id::{OrgId, SessionId, SessionKey, TokenId};
use crate::principal::Actor;
use crate::session::{EventRecord, Status};
use crate::spelled::spelled;
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};

spelled! {
    /// What was done, or tried.
    AuditAction {
        /// A session was created.
        SessionCreated => "session.created",
        /// A session changed: its reason says why, the statuses from what to what.
        SessionChanged => "session.changed",
        /// A token was recorded, and may leave the issuer.
        TokenIssued => "token.issued",
        /// A token was used for the first time.
        TokenFirstUsed => "token.first-used",
        /// A token was taken back.
        TokenRevoked => "token.revoked",
        /// All tokens of a session were taken back.
        TokensRevoked => "tokens.revoked",
        /// Operations were interrupted.
        OperationsInterrupted => "operations.interrupted",
        /// A cluster was created.
        ClusterCreated => "cluster.created",
        /// A cluster was changed.
        ClusterUpdated => "cluster.updated",
        /// A cluster takes no new sessions any more.
        ClusterDrained => "cluster.drained",
        /// A cluster was deleted.
        ClusterDeleted => "cluster.deleted",
        /// A catalog was created.
        CatalogCreated => "catalog.created",
        /// A catalog was changed.
        CatalogUpdated => "catalog.updated",
        /// A catalog was deleted.
        CatalogDeleted => "catalog.deleted",
        /// A catalog was tried out.
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
        /// A caller did not prove who it is.
        CallerRefused => "caller.refused",
    }
}

spelled! {
    /// How it ended.
    AuditOutcome {
        /// It was done.
        Done => "done",
        /// It was refused, and nothing was done.
        Denied => "denied",
    }
}

/// One entry of the trail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// When, by the clock of whoever saw it.
    pub at: Timestamp,
    /// What.
    pub action: AuditAction,
    /// How it ended.
    pub outcome: AuditOutcome,
    /// Why: a fixed spelling of [`crate::Reason`] or [`crate::ChangeReason`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Who; none when nobody could be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<Actor>,
    /// From which address, where it is known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub address: String,
    /// Whose thing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub org: Option<OrgId>,
    /// Which session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// Which token, by its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<TokenId>,
    /// Which signing key, cluster, catalog, organization or principal, by its name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub object: String,
    /// The session's status before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Status>,
    /// The session's status after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Status>,
    /// The version that the change made, of the session or of the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// The store could not promise that a failure does not undo it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub weak: bool,
}

impl AuditRecord {
    /// Longer texts are cut.
    pub const TEXT_BYTES: usize = 255;

    /// A record of something that was done by nobody in particular.
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
            weak: false,
        }
    }

    /// The record of a session's change, which is stored together with it.
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

    /// Who did it.
    #[must_use]
    pub fn by(mut self, actor: Actor) -> Self {
        self.actor = Some(actor);
        self
    }

    /// From which address.
    #[must_use]
    pub fn from_address(mut self, address: &str) -> Self {
        self.address = text(address);
        self
    }

    /// On which session.
    #[must_use]
    pub fn on_session(mut self, key: &SessionKey) -> Self {
        self.org = Some(key.org.clone());
        self.session = Some(key.id.clone());
        self
    }

    /// On something of which organization.
    #[must_use]
    pub fn of_org(mut self, org: &OrgId) -> Self {
        self.org = Some(org.clone());
        self
    }

    /// On which token.
    #[must_use]
    pub fn on_token(mut self, id: &TokenId) -> Self {
        self.token = Some(id.clone());
        self
    }

    /// On which named thing.
    #[must_use]
    pub fn on(mut self, object: &str) -> Self {
        self.object = text(object);
        self
    }

    /// It was refused, and why.
    #[must_use]
    pub fn denied(mut self, reason: &str) -> Self {
        self.outcome = AuditOutcome::Denied;
        self.reason = text(reason);
        self
    }

    /// Where it is kept: beside its organization's state; what belongs to none,
    /// in the first partition.
    pub fn partition(&self) -> u8 {
        self.org.as_ref().map_or(0, OrgId::partition)
    }
}

/// Cut to what a record takes, and of one line.
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
