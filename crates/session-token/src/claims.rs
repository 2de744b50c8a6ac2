//! What a session token says.

use serde::{Deserialize, Serialize};
use session_core::{OrgId, PrincipalId, SessionId, Timestamp, TokenId};
use std::time::Duration;

/// The claims of one session token: all ten, always, and no others.
///
/// Times are whole seconds since the Unix epoch, as JWT writes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    /// The installation's token issuer.
    pub iss: String,
    /// The one audience.
    pub aud: String,
    /// Who the token was issued to.
    pub sub: PrincipalId,
    /// The organization of the session.
    pub org: OrgId,
    /// The one session it opens.
    pub sid: SessionId,
    /// The session's token epoch when it was issued.
    pub epoch: u64,
    /// Issued at.
    pub iat: u64,
    /// Not valid before.
    pub nbf: u64,
    /// Not accepted for new calls after.
    pub exp: u64,
    /// The token's own name.
    pub jti: TokenId,
}

impl Claims {
    /// When it expires.
    pub fn expires_at(&self) -> Timestamp {
        at(self.exp)
    }

    /// When it was issued.
    pub fn issued_at(&self) -> Timestamp {
        at(self.iat)
    }
}

/// A claim's seconds as a moment.
pub(crate) fn at(secs: u64) -> Timestamp {
    Timestamp::ZERO.after(Duration::from_secs(secs))
}
