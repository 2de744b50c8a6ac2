//! The token ledger: what is recorded of issued tokens, with their session.

use crate::Error;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use session_core::{Actor, AuditAction, AuditRecord, PrincipalId, SessionKey, Timestamp, TokenId, TokenUse};
use std::collections::BTreeMap;
use std::time::Duration;

/// So long after its end a token is kept on record: for longer than any use is
/// made of it (`tokens.reattach_grace` of a proxy is 12 h at most).
pub const TOKEN_MEMORY: Duration = Duration::from_secs(12 * 3600 + 600);

/// What is kept of an issued token: never the token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// The JWT's `jti`.
    pub id: TokenId,
    /// The JWT's `kid`.
    pub key_id: String,
    /// For whom it was issued.
    pub subject: PrincipalId,
    /// The epoch it belongs to.
    pub epoch: u64,
    /// `iat`.
    pub issued_at: Timestamp,
    /// `exp`.
    pub expires_at: Timestamp,
    /// From which address it was asked for, where that is known: for the audit
    /// trail, and kept nowhere else.
    #[serde(skip)]
    pub address: String,
}

impl TokenRecord {
    /// What the trail says when it is recorded.
    pub(crate) fn audited(&self, key: &SessionKey) -> AuditRecord {
        AuditRecord::new(self.issued_at, AuditAction::TokenIssued)
            .by(Actor::Principal(self.subject.clone()))
            .from_address(&self.address)
            .on_session(key)
            .on_token(&self.id)
            .on(&self.key_id)
    }

    /// The order in which tokens are listed.
    pub(crate) fn sort_oldest_first(tokens: &mut [Self]) {
        tokens.sort_by(|a, b| (a.issued_at, &a.id).cmp(&(b.issued_at, &b.id)));
    }
}

/// What the trail says when a token is used for the first time.
pub(crate) fn first_use(key: &SessionKey, id: &TokenId, at: Timestamp) -> AuditRecord {
    AuditRecord::new(at, AuditAction::TokenFirstUsed)
        .on_session(key)
        .on_token(id)
}

/// The token ledger: issued tokens by session, never a token itself.
#[async_trait]
pub trait Tokens {
    /// Records a token before it leaves the issuer, on the condition that the
    /// session is live and its epoch is still the token's, and that it has
    /// fewer than `limit` live tokens: not expired, of this epoch, not taken
    /// back. Recording a token twice is recording it once. Tokens that no
    /// longer count make room for it, the oldest first, so never more than
    /// `limit` are kept; nor are those that expired before [`TOKEN_MEMORY`].
    async fn record_token(&self, key: &SessionKey, token: TokenRecord, limit: u32) -> Result<(), Error>;

    /// The tokens of a session's present epoch that have not expired, oldest
    /// first. One that was revoked alone is among them, as [`session_core::Session`] tells
    /// which those are, until its room is needed.
    async fn live_tokens(&self, key: &SessionKey) -> Result<Vec<TokenRecord>, Error>;

    /// The same and, where there was room to keep them, those that expired within
    /// [`TOKEN_MEMORY`]: a stream that runs and a reattach outlive their token.
    async fn recent_tokens(&self, key: &SessionKey) -> Result<Vec<TokenRecord>, Error>;

    /// When those of a session's tokens were used that [`crate::Tokens::live_tokens`] lists.
    async fn token_uses(&self, key: &SessionKey) -> Result<BTreeMap<TokenId, TokenUse>, Error>;
}
