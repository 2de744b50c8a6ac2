//! What an ID token must say (OpenID Connect Core 1.0, section 3.1.3.7).

use crate::sign_in::config::ProviderConfig;
use anyhow::{Result, anyhow};
use serde_json::{Map, Value};
use session_core::Timestamp;
use session_token::{ExternalAlgorithm, ExternalError, ExternalRules, ExternalVerifier};
use std::sync::Arc;
use std::time::Duration;

/// Maximum lifetime of an ID token.
const MAX_TTL: Duration = Duration::from_secs(7 * 24 * 3600);

/// Reasons for the rejection of an ID token. No text contains a byte of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Problem {
    /// Its key is not in the set.
    #[error("its signing key is not known")]
    UnknownKey,
    /// Invalid, by the rules of all external tokens.
    #[error("{0}")]
    Invalid(ExternalError),
    /// Issued for another client, or to another client.
    #[error("it is for another client")]
    AnotherClient,
    /// Of another sign-in.
    #[error("its nonce is not that of this sign-in")]
    AnotherNonce,
}

/// A valid ID token.
#[derive(Debug)]
pub(super) struct Checked {
    /// The person at this provider.
    pub(super) subject: String,
    pub(super) expires_at: Timestamp,
}

/// Verifier of the ID tokens of one provider.
#[derive(Debug)]
pub(super) struct IdTokens {
    client_id: String,
    verifier: Arc<ExternalVerifier>,
}

impl IdTokens {
    pub(super) fn new(config: &ProviderConfig) -> Result<Self> {
        let algorithms = config.algorithms.iter().map(|name| {
            let parsed = name.parse::<ExternalAlgorithm>();
            parsed.map_err(|()| anyhow!("algorithm {name:?} is not accepted"))
        });
        let audiences = std::iter::once(&config.client_id).chain(&config.audiences);
        let rules = ExternalRules {
            issuer: config.issuer.clone(),
            audiences: audiences.cloned().collect(),
            other_audiences: false,
            authorized_parties: Vec::new(),
            algorithms: algorithms.collect::<Result<_>>()?,
            leeway: config.leeway,
            max_ttl: MAX_TTL,
        };
        Ok(Self {
            client_id: config.client_id.clone(),
            verifier: Arc::new(ExternalVerifier::new(rules)),
        })
    }

    /// Where its keys are put.
    pub(super) fn keys(&self) -> Arc<ExternalVerifier> {
        Arc::clone(&self.verifier)
    }

    /// Verifies a token. `nonce` is that of the
    /// sign-in; a renewed token has none, or the first one.
    pub(super) fn verify(
        &self,
        token: &str,
        nonce: Option<&str>,
        now: Timestamp,
    ) -> Result<Checked, Problem> {
        let claims = self.verifier.verify(token, now).map_err(|error| match error {
            ExternalError::UnknownKid => Problem::UnknownKey,
            other => Problem::Invalid(other),
        })?;
        self.check(&claims.all, nonce)?;
        Ok(Checked {
            subject: claims.subject,
            expires_at: claims.expires_at,
        })
    }

    fn check(&self, claims: &Map<String, Value>, nonce: Option<&str>) -> Result<(), Problem> {
        let is_client = |value: &Value| value.as_str() == Some(&self.client_id);
        let for_client = match claims.get("aud") {
            Some(Value::Array(many)) => many.iter().any(is_client),
            Some(one) => is_client(one),
            None => false,
        };
        if !for_client || !claims.get("azp").is_none_or(is_client) {
            return Err(Problem::AnotherClient);
        }
        let says = claims.get("nonce").and_then(Value::as_str);
        match nonce {
            Some(nonce) if says != Some(nonce) => Err(Problem::AnotherNonce),
            Some(_) | None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn client_and_nonce_must_be_those_of_the_sign_in() {
        let config = ProviderConfig::new("corp", "https://login.example.org", "console");
        let tokens = IdTokens::new(&config).unwrap();
        let check = |claims: Value, nonce| tokens.check(claims.as_object().unwrap(), nonce);
        let good = json!({"aud": "console", "nonce": "n", "azp": "console"});
        assert_eq!(check(good.clone(), Some("n")), Ok(()));
        assert_eq!(check(json!({"aud": ["berth", "console"]}), None), Ok(()));
        assert_eq!(check(good, Some("m")), Err(Problem::AnotherNonce));
        for claims in [
            json!({"aud": "berth", "nonce": "n"}),
            json!({"aud": ["berth"], "nonce": "n"}),
            json!({"aud": "console", "azp": "other", "nonce": "n"}),
            json!({"aud": "console", "azp": 5, "nonce": "n"}),
            json!({"nonce": "n"}),
        ] {
            assert_eq!(
                check(claims.clone(), Some("n")),
                Err(Problem::AnotherClient),
                "{claims}"
            );
        }
        for claims in [
            json!({"aud": "console"}),
            json!({"aud": "console", "nonce": ["n"]}),
        ] {
            assert_eq!(check(claims, Some("n")), Err(Problem::AnotherNonce));
        }
    }
}
