//! Authentication of API callers: converts a bearer credential to a [`Caller`].
//!
//! There are exactly two kinds of credentials: a service-account key
//! ([`Accounts`]) and a token of a configured identity provider ([`oidc`]).
//! Parsing and verification of tokens are not implemented here: a program
//! provides a [`TokenFormat`]. Role names are not interpreted, except those
//! that only the configuration may grant.

mod accounts;
mod file;
pub mod oidc;

pub use accounts::{
    Accounts, ISSUER_ALIAS, KEY_PREFIX, NewKey, ServiceAccountConfig, generate_key, key_sha256,
    validate_accounts,
};
pub use file::AccountsFile;

use arc_swap::ArcSwap;
use oidc::{Issuer, IssuerConfig};
use serde_json::{Map, Value};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio_util::sync::CancellationToken;

/// An authenticated caller as plain texts; programs convert it to their own
/// type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Alias of the issuer; [`ISSUER_ALIAS`] for service accounts.
    pub issuer_alias: String,
    /// Its subject at that issuer.
    pub subject: String,
    /// Its organization.
    pub org: String,
    /// Its roles.
    pub roles: Vec<String>,
    /// Its teams.
    pub teams: Vec<String>,
    /// The teams it administers.
    pub team_admin_of: Vec<String>,
}

/// Reasons for the rejection of a credential. No text contains a byte of the
/// credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CallerError {
    /// Not an accepted kind of credential.
    #[error("the credential is neither a service-account key nor a token of an identity provider")]
    NotACredential,
    /// The caller may not call.
    #[error("the caller is not known here")]
    Unknown,
    /// The key is not configured.
    #[error("the service-account key is not known")]
    UnknownKey,
    /// The key has expired.
    #[error("the service-account key has expired")]
    KeyExpired,
    /// The token's issuer is not configured.
    #[error("the token's issuer is not trusted here")]
    UnknownIssuer,
    /// The token is invalid.
    #[error("the token is refused: {0}")]
    Token(&'static str),
    /// The token has expired.
    #[error("the token has expired")]
    TokenExpired,
    /// A valid token without an organization, or with one that its issuer may
    /// not assert.
    #[error("the token's issuer may not speak for the organization that the token names, or it names none")]
    NotPinned,
    /// The issuer's keys could not be read yet.
    #[error("the keys of the token's issuer cannot be read at the moment")]
    Unavailable,
}

/// Reasons for the rejection of a token by its [`TokenVerifier`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenProblem {
    /// Well-formed, but signed with an unknown key.
    UnknownKey,
    /// Correctly signed, but expired.
    Expired,
    /// Invalid, with a fixed text.
    Refused(&'static str),
}

/// Requirements for the tokens of an issuer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRules {
    /// Required `iss`.
    pub issuer: String,
    /// One of these must be in `aud`.
    pub audiences: Vec<String>,
    /// Whether `aud` may contain other audiences.
    pub other_audiences: bool,
    /// If not empty, the allowed clients of a token.
    pub authorized_parties: Vec<String>,
    /// Allowed algorithms, by JOSE names.
    pub algorithms: Vec<String>,
    /// Maximum difference between clocks.
    pub leeway: Duration,
    /// Maximum of `exp - iat`; without `iat` from `nbf`, without both from the
    /// current time.
    pub max_ttl: Duration,
}

/// Claims of a valid token.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenClaims {
    /// Its `sub`.
    pub subject: String,
    /// All claims.
    pub all: Map<String, Value>,
}

/// Parser of external tokens, provided by the program.
pub trait TokenFormat: Send + Sync + fmt::Debug {
    /// The issuer in an unverified token.
    ///
    /// # Errors
    /// When the text is not an external token.
    fn issuer_of(&self, token: &str) -> Result<String, TokenProblem>;

    /// A verifier for these rules, without keys.
    ///
    /// # Errors
    /// When the rules are invalid, with the reason.
    fn verifier(&self, rules: TokenRules) -> Result<Arc<dyn TokenVerifier>, String>;
}

/// Verifier of the tokens of one issuer.
pub trait TokenVerifier: Send + Sync + fmt::Debug {
    /// Replaces all keys by this key set.
    ///
    /// # Errors
    /// When the set has no usable key; the last keys then stay.
    fn replace_keys(&self, jwks: &str) -> anyhow::Result<()>;

    /// Removes all keys.
    fn forget_keys(&self);

    /// Whether it has a key.
    fn has_keys(&self) -> bool;

    /// Verifies a token and returns its claims.
    ///
    /// # Errors
    /// The reason of the rejection.
    fn verify(&self, token: &str, now: SystemTime) -> Result<TokenClaims, TokenProblem>;
}

/// Authenticator of all callers.
#[derive(Debug)]
pub struct Authenticator {
    accounts: Arc<ArcSwap<Accounts>>,
    file: Option<AccountsFile>,
    issuers: Vec<Issuer>,
    format: Option<Arc<dyn TokenFormat>>,
}

impl Authenticator {
    /// With service accounts only.
    pub fn new(accounts: &[ServiceAccountConfig]) -> Self {
        Self {
            accounts: Arc::new(ArcSwap::from_pointee(Accounts::new(accounts))),
            file: None,
            issuers: Vec::new(),
            format: None,
        }
    }

    /// Adds accounts from a polled file.
    ///
    /// # Errors
    /// When the file is unusable.
    pub fn with_file(mut self, file: AccountsFile) -> anyhow::Result<Self> {
        self.accounts.store(Arc::new(file.read()?));
        self.file = Some(file);
        Ok(self)
    }

    /// Adds identity providers. `roles` are those that a claim may grant.
    ///
    /// # Errors
    /// When a configuration is invalid; not when a provider is unavailable.
    pub fn with_issuers(
        mut self,
        issuers: &[IssuerConfig],
        roles: &[&str],
        format: Arc<dyn TokenFormat>,
    ) -> anyhow::Result<Self> {
        self.issuers = issuers
            .iter()
            .map(|config| Issuer::new(config, roles, &*format))
            .collect::<anyhow::Result<_>>()?;
        self.format = Some(format);
        Ok(self)
    }

    /// Authenticates a bearer credential. The time is a parameter for tests.
    /// Waits only for the keys of an issuer, and with a short limit.
    ///
    /// # Errors
    /// [`CallerError`].
    pub async fn authenticate(&self, bearer: &str, now: SystemTime) -> Result<Caller, CallerError> {
        if bearer.starts_with(KEY_PREFIX) {
            return self.accounts.load().authenticate(bearer, now);
        }
        let Some(format) = self.format.as_ref().filter(|_| bearer.contains('.')) else {
            return Err(CallerError::NotACredential);
        };
        let named = match format.issuer_of(bearer) {
            Ok(named) => named,
            Err(TokenProblem::Refused(why)) => return Err(CallerError::Token(why)),
            Err(TokenProblem::UnknownKey | TokenProblem::Expired) => {
                return Err(CallerError::NotACredential);
            }
        };
        let issuer = self.issuers.iter().find(|issuer| issuer.is_named(&named));
        issuer
            .ok_or(CallerError::UnknownIssuer)?
            .authenticate(bearer, now)
            .await
    }

    /// Keeps the accounts' file and the issuers' keys fresh until `stop`.
    pub async fn keep_fresh(&self, stop: CancellationToken) {
        let accounts = async {
            if let Some(file) = &self.file {
                file.follow(&self.accounts, &stop).await;
            }
        };
        let issuers = self.issuers.iter().map(|issuer| issuer.keep_fresh(&stop));
        futures::future::join(accounts, futures::future::join_all(issuers)).await;
    }
}
