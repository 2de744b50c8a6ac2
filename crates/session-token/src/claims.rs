//! Claims of a session token.

use serde::{Deserialize, Serialize};
use session_core::{OrgId, PrincipalId, SessionId, Timestamp, TokenId};
use std::time::Duration;

/// The claims of one session token: exactly these ten.
///
/// Times are whole seconds since the Unix epoch, as in JWT.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    /// Issuer: the installation's token-issuer.
    pub iss: String,
    /// Audience.
    pub aud: String,
    /// Subject: the principal to which the token was issued.
    pub sub: PrincipalId,
    /// The organization of the session.
    pub org: OrgId,
    /// The session of the token.
    pub sid: SessionId,
    /// The session's token epoch at the time of issue.
    pub epoch: u64,
    /// Time of issue.
    pub iat: u64,
    /// Not valid before.
    pub nbf: u64,
    /// Expiry: no new calls are accepted after it.
    pub exp: u64,
    /// Id of the token.
    pub jti: TokenId,
}

impl Claims {
    /// The time of `exp`.
    pub fn expires_at(&self) -> Timestamp {
        at(self.exp)
    }

    /// The time of `iat`.
    pub fn issued_at(&self) -> Timestamp {
        at(self.iat)
    }
}

/// Converts the seconds of a claim.
pub(crate) fn at(secs: u64) -> Timestamp {
    Timestamp::ZERO.after(Duration::from_secs(secs))
}
