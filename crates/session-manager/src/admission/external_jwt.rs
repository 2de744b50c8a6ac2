//! Adapter between the caller authentication of service-kit and the token
//! verification of session-token, which do not depend on each other.

use crate::config::callers::algorithms;
use service_kit::caller::{TokenClaims, TokenFormat, TokenProblem, TokenRules, TokenVerifier};
use session_core::Timestamp;
use session_token::{ExternalError, ExternalKeys, ExternalRules, ExternalVerifier, external_issuer_of};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Tokens of external issuers in the format of [`session_token`].
#[derive(Debug)]
pub(crate) struct Foreign;

#[derive(Debug)]
struct Verifier {
    verifier: ExternalVerifier,
}

impl TokenFormat for Foreign {
    fn issuer_of(&self, token: &str) -> Result<String, TokenProblem> {
        external_issuer_of(token).map_err(problem)
    }

    fn verifier(&self, rules: TokenRules) -> Result<Arc<dyn TokenVerifier>, String> {
        let rules = ExternalRules {
            algorithms: algorithms(&rules.algorithms)?,
            issuer: rules.issuer,
            audiences: rules.audiences,
            other_audiences: rules.other_audiences,
            authorized_parties: rules.authorized_parties,
            leeway: rules.leeway,
            max_ttl: rules.max_ttl,
        };
        Ok(Arc::new(Verifier {
            verifier: ExternalVerifier::new(rules),
        }))
    }
}

impl TokenVerifier for Verifier {
    fn replace_keys(&self, jwks: &str) -> anyhow::Result<()> {
        let keys = ExternalKeys::from_json(jwks)?;
        anyhow::ensure!(!keys.is_empty(), "it holds no key that checks signatures");
        self.verifier.replace(keys);
        Ok(())
    }

    fn forget_keys(&self) {
        self.verifier.replace(ExternalKeys::default());
    }

    fn has_keys(&self) -> bool {
        !self.verifier.is_empty()
    }

    fn verify(&self, token: &str, now: SystemTime) -> Result<TokenClaims, TokenProblem> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = Timestamp::from_millis(u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
        let claims = self.verifier.verify(token, now).map_err(problem)?;
        Ok(TokenClaims {
            subject: claims.subject,
            all: claims.all,
        })
    }
}

fn problem(error: ExternalError) -> TokenProblem {
    match error {
        ExternalError::SessionToken => TokenProblem::Refused(
            "it is a session token, which opens one session at the Spark Connect port and nothing here",
        ),
        ExternalError::Malformed(why) | ExternalError::Invalid(why) => TokenProblem::Refused(why),
        ExternalError::Expired { .. } => TokenProblem::Expired,
        ExternalError::UnknownKid => TokenProblem::UnknownKey,
    }
}
