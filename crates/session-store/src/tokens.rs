//! The token ledger: records of issued tokens, stored with their session.

use crate::Error;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use session_core::{Actor, AuditAction, AuditRecord, PrincipalId, SessionKey, Timestamp, TokenId, TokenUse};
use std::collections::BTreeMap;
use std::time::Duration;

/// Time for which a token stays recorded after its expiry: longer than any use of it
/// (`tokens.reattach_grace` of a proxy is at most 12 h).
pub const TOKEN_RETENTION: Duration = Duration::from_secs(12 * 3600 + 600);

/// Record of an issued token, never the token itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// The JWT's `jti`.
    pub id: TokenId,
    /// The JWT's `kid`.
    pub key_id: String,
    /// Principal of the token.
    pub subject: PrincipalId,
    /// Token epoch at issuance.
    pub epoch: u64,
    /// `iat`.
    pub issued_at: Timestamp,
    /// `exp`.
    pub expires_at: Timestamp,
    /// Client address of the request, if known: only for the audit trail, not stored in
    /// the ledger.
    #[serde(skip)]
    pub address: String,
}

impl TokenRecord {
    /// Audit record of the issuance.
    pub(crate) fn audited(&self, key: &SessionKey) -> AuditRecord {
        AuditRecord::new(self.issued_at, AuditAction::TokenIssued)
            .by(Actor::Principal(self.subject.clone()))
            .from_address(&self.address)
            .on_session(key)
            .on_token(&self.id)
            .on(&self.key_id)
    }

    /// Sorts tokens in list order.
    pub(crate) fn sort_oldest_first(tokens: &mut [Self]) {
        tokens.sort_by(|a, b| (a.issued_at, &a.id).cmp(&(b.issued_at, &b.id)));
    }
}

/// Audit record of the first use of a token.
pub(crate) fn first_use(key: &SessionKey, id: &TokenId, at: Timestamp) -> AuditRecord {
    AuditRecord::new(at, AuditAction::TokenFirstUsed)
        .on_session(key)
        .on_token(id)
}

/// The token ledger: issued tokens by session, never a token itself.
#[async_trait]
pub trait Tokens {
    /// Records a token before the issuer returns it, if the session is live, its epoch
    /// is the token's, and it has fewer than `limit` live tokens (not expired, of this
    /// epoch, not revoked). Recording a token again changes nothing. Tokens that are no
    /// longer live are deleted to make room, oldest first, so at most `limit` are
    /// stored; tokens that expired longer than [`TOKEN_RETENTION`] ago are deleted.
    async fn record_token(&self, key: &SessionKey, token: TokenRecord, limit: u32) -> Result<(), Error>;

    /// The unexpired tokens of a session's present epoch, oldest first. A token that
    /// was revoked individually (see [`session_core::Session`]) is included until its
    /// room is needed.
    async fn live_tokens(&self, key: &SessionKey) -> Result<Vec<TokenRecord>, Error>;

    /// [`crate::Tokens::live_tokens`] and the tokens that expired within
    /// [`TOKEN_RETENTION`], as far as there was room: running streams and reattaches
    /// outlive their token.
    async fn recent_tokens(&self, key: &SessionKey) -> Result<Vec<TokenRecord>, Error>;

    /// Times of use of the tokens that [`crate::Tokens::live_tokens`] lists.
    async fn token_uses(&self, key: &SessionKey) -> Result<BTreeMap<TokenId, TokenUse>, Error>;
}
