//! The only verifier of session tokens.
//!
//! [`Verifier::verify`] is pure: the same token, keyring, time and grace give
//! the same result, so results can be cached.

use crate::TOKEN_TYPE;
use crate::claims::{Claims, at};
use crate::error::TokenError;
use crate::jws::{self, Parts};
use crate::keyring::Keyring;
use jsonwebtoken::{Algorithm, crypto::aws_lc};
use session_core::Timestamp;
use std::time::Duration;

const ALGORITHM: &str = "ES256";

/// Parameters of a verifier, equal for all verifiers of an installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifierConfig {
    /// Required `iss`.
    pub issuer: String,
    /// Required `aud`.
    pub audience: String,
    /// Maximum of `exp - iat`.
    pub max_ttl: Duration,
    /// Maximum difference between clocks.
    pub leeway: Duration,
    /// Time after `exp` in which calls are accepted that only reattach to, or
    /// release, a running operation. Zero disables it.
    pub reattach_grace: Duration,
    /// Time after `exp` in which running operations may be interrupted.
    pub interrupt_grace: Duration,
}

impl VerifierConfig {
    /// The default parameters for this issuer and audience.
    pub fn new(issuer: impl Into<String>, audience: impl Into<String>) -> Self {
        Self {
            issuer: issuer.into(),
            audience: audience.into(),
            max_ttl: Duration::from_secs(12 * 3600),
            leeway: Duration::from_secs(30),
            reattach_grace: Duration::from_secs(12 * 3600),
            interrupt_grace: Duration::from_secs(15 * 60),
        }
    }

    /// Time after `exp` in which a token can still be accepted for any call. A
    /// retired key must stay published and a revoked `jti` denied for this
    /// time.
    pub fn afterlife(&self) -> Duration {
        self.reattach_grace.max(self.interrupt_grace) + self.leeway
    }
}

/// Class of a call, which determines its grace after `exp`: a client cannot
/// change its token within a channel, and the expiry must not end running work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Grace {
    /// Any call that may start work.
    #[default]
    None,
    /// Reattaching to, or releasing, an operation.
    Reattach,
    /// Interrupting an operation.
    Interrupt,
}

/// A verified token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Its claims.
    pub claims: Claims,
    /// The key that signed it.
    pub kid: String,
    /// Whether it is past its `exp` and accepted by grace only.
    pub by_grace: bool,
}

/// Verifier of session tokens.
#[derive(Debug, Clone)]
pub struct Verifier {
    config: VerifierConfig,
}

impl Verifier {
    /// A verifier with these parameters.
    pub fn new(config: VerifierConfig) -> Self {
        Self { config }
    }

    /// The parameters.
    pub fn config(&self) -> &VerifierConfig {
        &self.config
    }

    /// Checks form, header, claims, signature and time, in this order: cheap
    /// checks first, and the expiry is reported only for a token with a valid
    /// signature.
    pub fn verify(
        &self,
        token: &str,
        keyring: &Keyring,
        now: Timestamp,
        grace: Grace,
    ) -> Result<Verified, TokenError> {
        let parts = jws::parse(token)?;
        self.check_header(&parts)?;
        self.check_claims(&parts.claims, now)?;
        let expiry = self.check_expiry(&parts.claims, now, grace);
        match keyring.signed(&parts.header.kid, token, |key| signed_by(&parts, key)) {
            Some(true) => {}
            Some(false) => return Err(TokenError::Invalid("the signature does not match")),
            // The key may have been retired long ago, so the error does not
            // cause a refetch.
            None if expiry.is_err() => {
                return Err(TokenError::Expired {
                    at: parts.claims.expires_at(),
                    session: None,
                });
            }
            None => return Err(TokenError::UnknownKid),
        }
        let by_grace = expiry?;
        Ok(Verified {
            claims: parts.claims,
            kid: parts.header.kid,
            by_grace,
        })
    }

    fn check_header(&self, parts: &Parts<'_>) -> Result<(), TokenError> {
        let header = &parts.header;
        if header.typ != TOKEN_TYPE {
            return Err(TokenError::Invalid("another typ"));
        }
        if header.alg != ALGORITHM {
            return Err(TokenError::Invalid("another alg"));
        }
        let thumbprint = header.kid.len() == 43
            && header
                .kid
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if !thumbprint {
            return Err(TokenError::Invalid("the kid is not a thumbprint"));
        }
        Ok(())
    }

    fn check_claims(&self, claims: &Claims, now: Timestamp) -> Result<(), TokenError> {
        if claims.iss != self.config.issuer {
            return Err(TokenError::Invalid("another iss"));
        }
        if claims.aud != self.config.audience {
            return Err(TokenError::Invalid("another aud"));
        }
        match claims.exp.checked_sub(claims.iat) {
            None | Some(0) => return Err(TokenError::Invalid("exp is not after iat")),
            Some(ttl) if ttl > self.config.max_ttl.as_secs() => {
                return Err(TokenError::Invalid("exp is too far from iat"));
            }
            Some(_) => {}
        }
        if claims.nbf >= claims.exp {
            return Err(TokenError::Invalid("nbf is not before exp"));
        }
        let soon = now.after(self.config.leeway);
        if at(claims.iat) > soon {
            return Err(TokenError::Invalid("iat is in the future"));
        }
        if at(claims.nbf) > soon {
            return Err(TokenError::Invalid("nbf is in the future"));
        }
        Ok(())
    }

    /// Whether the token is accepted by grace only.
    fn check_expiry(&self, claims: &Claims, now: Timestamp, grace: Grace) -> Result<bool, TokenError> {
        let end = claims.expires_at().after(self.config.leeway);
        let grace = match grace {
            Grace::None => Duration::ZERO,
            Grace::Reattach => self.config.reattach_grace,
            Grace::Interrupt => self.config.interrupt_grace,
        };
        if now >= end.after(grace) {
            return Err(TokenError::Expired {
                at: claims.expires_at(),
                session: Some(claims.sid.clone()),
            });
        }
        Ok(now >= end)
    }
}

/// ES256 of jsonwebtoken over the exact bytes of the first two parts.
fn signed_by(parts: &Parts<'_>, key: &jsonwebtoken::DecodingKey) -> bool {
    (aws_lc::DEFAULT_PROVIDER.verifier_factory)(&Algorithm::ES256, key)
        .is_ok_and(|verifier| verifier.verify(parts.message, &parts.signature).is_ok())
}
