//! Sign-in at OpenID Connect providers: authorization code with PKCE and nonce.
//!
//! ```text
//! browser ─ auth/login ─▶ pending (sealed cookie) ─▶ provider ─ auth/callback ─▶ tokens ─▶ id_token
//! ```
//!
//! The code is written on the parts of Berth that check tokens anyway
//! ([`session_token::ExternalVerifier`], service-kit's polled documents). A
//! general client library would add a second set of JOSE and crypto crates.
//!
//! - `discovery`: the provider's endpoints and keys, read on demand
//! - `id_token`: what an ID token must say
//! - `pending`: a sign-in that has not finished, in a cookie of its own
//! - `tokens`: the token endpoint: exchange of the code, and renewal

mod discovery;
mod id_token;
mod pending;
mod tokens;

pub(crate) use pending::{PENDING_AGE, Pending};

use super::config::{CredentialToken, ProviderConfig};
use crate::sign_in::session::SignedIn;
use anyhow::{Context as _, Result};
use discovery::Discovery;
use form_urlencoded::Serializer;
use session_core::Timestamp;
use session_token::MAX_EXTERNAL_TOKEN_BYTES;
use std::fmt;
use std::time::Duration;
use tokens::{Grant, TokenResponse};

/// Reasons why a sign-in did not finish. The texts are for the person.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LoginError {
    /// The provider could not be asked.
    #[error("The identity provider cannot be reached at the moment. Try again in a minute.")]
    Unavailable,
    /// The provider rejected the code or the refresh token.
    #[error("The identity provider no longer accepts this sign-in. Sign in again.")]
    Rejected,
    /// The token does not fit into requests or cookies.
    #[error(
        "Your token is too large. Ask the administrator of your identity provider for a token with fewer groups or claims."
    )]
    TooLarge,
    /// The provider answered with a token that is not valid here.
    #[error(
        "The identity provider's answer is not valid here. Ask your administrator; the log of the console has the reason."
    )]
    InvalidToken,
}

/// A provider.
pub(crate) struct Provider {
    config: ProviderConfig,
    redirect_uri: String,
    discovery: Discovery,
    verifier: id_token::IdTokens,
}

impl Provider {
    /// `redirect_uri` is the address of `auth/callback`.
    ///
    /// # Errors
    /// When the TLS files or the algorithms are unusable; not when the provider
    /// is unavailable.
    pub(crate) fn new(config: &ProviderConfig, redirect_uri: &str) -> Result<Self> {
        let verifier = id_token::IdTokens::new(config)?;
        Ok(Self {
            discovery: Discovery::new(config, verifier.keys())
                .with_context(|| format!("identity provider {}", config.id))?,
            verifier,
            config: config.clone(),
            redirect_uri: redirect_uri.to_owned(),
        })
    }

    /// Its configuration.
    pub(crate) fn config(&self) -> &ProviderConfig {
        &self.config
    }

    /// The address at the provider that the browser goes to.
    ///
    /// # Errors
    /// When the provider cannot be read.
    pub(crate) async fn authorization_url(&self, pending: &Pending) -> Result<String, LoginError> {
        let endpoints = self.discovery.endpoints().await.map_err(|error| {
            self.log("reading identity provider failed", &error);
            LoginError::Unavailable
        })?;
        let mut query = Serializer::new(String::new());
        for (name, value) in &self.config.parameters {
            query.append_pair(name, value);
        }
        query
            .append_pair("response_type", "code")
            .append_pair("client_id", &self.config.client_id)
            .append_pair("redirect_uri", &self.redirect_uri)
            .append_pair("scope", &self.scope())
            .append_pair("state", &pending.state)
            .append_pair("nonce", &pending.nonce)
            .append_pair("code_challenge", &pending.code_challenge())
            .append_pair("code_challenge_method", "S256");
        if let Some(resource) = &self.config.resource {
            query.append_pair("resource", resource);
        }
        let address = &endpoints.authorization_endpoint;
        let joint = if address.contains('?') { '&' } else { '?' };
        Ok(format!("{address}{joint}{}", query.finish()))
    }

    /// Whether a callback with this `iss` parameter may be this provider's (RFC
    /// 9207); providers that announce the parameter must send it.
    pub(crate) async fn is_issuer(&self, named: Option<&str>) -> bool {
        match named {
            Some(named) => named == self.config.issuer,
            None => {
                let endpoints = self.discovery.endpoints().await;
                endpoints.is_ok_and(|endpoints| !endpoints.names_issuer)
            }
        }
    }

    /// Exchanges the code of a callback.
    ///
    /// # Errors
    /// [`LoginError`].
    pub(crate) async fn finish(
        &self,
        pending: &Pending,
        code: &str,
        now: Timestamp,
        max_age: Duration,
    ) -> Result<SignedIn, LoginError> {
        let grant = Grant::Code {
            code,
            verifier: &pending.verifier,
            redirect_uri: &self.redirect_uri,
        };
        let response = self.ask(&grant).await?;
        let Some(id_token) = &response.id_token else {
            self.log(
                "signing in failed",
                &anyhow::anyhow!("no id_token in the response"),
            );
            return Err(LoginError::InvalidToken);
        };
        if id_token.len() > MAX_EXTERNAL_TOKEN_BYTES {
            return Err(LoginError::TooLarge);
        }
        let checked = self.verify(id_token, Some(&pending.nonce), now).await?;
        let (credential, expires_at) = self.credential(&response, Some(checked.expires_at), now)?;
        Ok(SignedIn::new(credential, &self.config.id, now, max_age)
            .expiring(expires_at, now)
            .of_subject(checked.subject)
            .refreshable(response.refresh_token))
    }

    /// The same sign-in with a new credential.
    ///
    /// # Errors
    /// [`LoginError`].
    pub(crate) async fn renew(&self, signed_in: &SignedIn, now: Timestamp) -> Result<SignedIn, LoginError> {
        let Some(refresh_token) = &signed_in.refresh_token else {
            return Err(LoginError::Rejected);
        };
        let response = self.ask(&Grant::Refresh(refresh_token)).await?;
        let checked = match &response.id_token {
            Some(id_token) => Some(self.verify(id_token, None, now).await?),
            None => None,
        };
        // OpenID Connect Core 1.0, section 12.2.
        if let (Some(checked), Some(subject)) = (&checked, &signed_in.subject)
            && checked.subject != *subject
        {
            self.log(
                "renewal rejected",
                &anyhow::anyhow!("the ID token is for another subject"),
            );
            return Err(LoginError::InvalidToken);
        }
        let (subject, expires_at) = checked
            .map(|checked| (checked.subject, checked.expires_at))
            .unzip();
        let (credential, expires_at) = self.credential(&response, expires_at, now)?;
        let next = signed_in.renewed(credential, response.refresh_token, expires_at, now);
        Ok(match subject {
            Some(subject) => next.of_subject(subject),
            None => next,
        })
    }

    async fn ask(&self, grant: &Grant<'_>) -> Result<TokenResponse, LoginError> {
        let endpoints = self.discovery.endpoints().await.map_err(|error| {
            self.log("reading identity provider failed", &error);
            LoginError::Unavailable
        })?;
        tokens::request(&self.config, &endpoints, grant)
            .await
            .map_err(|failure| {
                self.log("token request failed", &failure.why);
                failure.error
            })
    }

    async fn verify(
        &self,
        token: &str,
        nonce: Option<&str>,
        now: Timestamp,
    ) -> Result<id_token::Checked, LoginError> {
        let mut outcome = self.verifier.verify(token, nonce, now);
        if matches!(outcome, Err(id_token::Problem::UnknownKey)) {
            self.discovery.fetch_keys().await.map_err(|error| {
                self.log("reading keys of identity provider failed", &error);
                LoginError::Unavailable
            })?;
            outcome = self.verifier.verify(token, nonce, now);
        }
        outcome.map_err(|problem| {
            self.log("ID token rejected", &anyhow::Error::new(problem));
            LoginError::InvalidToken
        })
    }

    /// The token for the gRPC APIs, and when it expires.
    fn credential(
        &self,
        response: &TokenResponse,
        id_token_expires: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<(String, Option<Timestamp>), LoginError> {
        let (token, expires_at) = match self.config.credential {
            CredentialToken::IdToken => (response.id_token.clone(), id_token_expires),
            CredentialToken::AccessToken => {
                let life = response.expires_in.map(Duration::from_secs);
                (response.access_token.clone(), life.map(|life| now.after(life)))
            }
        };
        match token {
            Some(token) if token.len() > MAX_EXTERNAL_TOKEN_BYTES => Err(LoginError::TooLarge),
            Some(token) => Ok((token, expires_at)),
            None => {
                self.log(
                    "signing in failed",
                    &anyhow::anyhow!("the response lacks the token"),
                );
                Err(LoginError::InvalidToken)
            }
        }
    }

    fn scope(&self) -> String {
        let others = self.config.scopes.iter().filter(|scope| *scope != "openid");
        let all: Vec<&str> = std::iter::once("openid")
            .chain(others.map(String::as_str))
            .collect();
        all.join(" ")
    }

    fn log(&self, message: &str, error: &anyhow::Error) {
        let error = format!("{error:#}");
        tracing::warn!(provider = self.config.id, error, "{message}");
    }
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Provider")
            .field("id", &self.config.id)
            .finish_non_exhaustive()
    }
}
