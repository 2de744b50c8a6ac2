//! Who calls an API: the one place that turns a bearer credential into a
//! [`Caller`].
//!
//! There are two kinds of credentials and no third: a service-account key
//! ([`Accounts`]) and a token of a configured identity provider ([`oidc`]).
//! What a token is, how it is signed and read, is not known here: a program
//! brings a [`TokenFormat`]. Neither are the words for roles; they pass
//! through, except those that only configuration may grant.

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

/// An authenticated caller in plain words; programs turn it into their own type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Who vouched for it; [`ISSUER_ALIAS`] for service accounts.
    pub issuer_alias: String,
    /// Its name at that issuer.
    pub subject: String,
    /// The organization it acts in.
    pub org: String,
    /// Its roles.
    pub roles: Vec<String>,
    /// Its teams.
    pub teams: Vec<String>,
    /// The teams it administers.
    pub team_admin_of: Vec<String>,
}

/// Why a credential was refused. No byte of the credential is in any of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CallerError {
    /// Not a kind of credential that is accepted here.
    #[error("the credential is neither a service-account key nor a token of an identity provider")]
    NotACredential,
    /// Nobody who may call.
    #[error("the caller is not known here")]
    Unknown,
    /// No such key.
    #[error("the service-account key is not known")]
    UnknownKey,
    /// The key's time is over.
    #[error("the service-account key has expired")]
    KeyExpired,
    /// A token of an issuer that is not configured.
    #[error("the token's issuer is not one that is trusted here")]
    UnknownIssuer,
    /// A token that is not good.
    #[error("the token is refused: {0}")]
    Token(&'static str),
    /// The token's time is over.
    #[error("the token has expired")]
    TokenExpired,
    /// A good token without an organization, or of one that its issuer may not speak for.
    #[error("the token's issuer may not speak for the organization that the token names, or it names none")]
    NotPinned,
    /// The issuer's keys could not be read yet.
    #[error("the keys of the token's issuer cannot be read at the moment")]
    Unavailable,
}

/// Why a token was refused by its [`TokenVerifier`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenProblem {
    /// Well-formed, but signed with a key that is not known (yet).
    UnknownKey,
    /// Good once.
    Expired,
    /// Not good, in fixed words.
    Refused(&'static str),
}

/// What the tokens of an issuer must be like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRules {
    /// The exact `iss`.
    pub issuer: String,
    /// One of these must be in `aud`.
    pub audiences: Vec<String>,
    /// May `aud` name others beside?
    pub other_audiences: bool,
    /// If not empty, the client that the token was made for.
    pub authorized_parties: Vec<String>,
    /// By their JOSE names.
    pub algorithms: Vec<String>,
    /// How far clocks may differ.
    pub leeway: Duration,
    /// The longest `exp - iat`; without `iat` from `nbf`, without both from now.
    pub max_ttl: Duration,
}

/// What a good token says.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenClaims {
    /// Its `sub`.
    pub subject: String,
    /// Everything.
    pub all: Map<String, Value>,
}

/// Reads foreign tokens; a program brings it.
pub trait TokenFormat: Send + Sync + fmt::Debug {
    /// Whom a token names as its issuer, unchecked.
    ///
    /// # Errors
    /// When it is no foreign token at all.
    fn issuer_of(&self, token: &str) -> Result<String, TokenProblem>;

    /// A verifier by these rules, without keys.
    ///
    /// # Errors
    /// In words, when they cannot be followed.
    fn verifier(&self, rules: TokenRules) -> Result<Arc<dyn TokenVerifier>, String>;
}

/// Checks the tokens of one issuer.
pub trait TokenVerifier: Send + Sync + fmt::Debug {
    /// Trusts exactly the keys of this key set from now on.
    ///
    /// # Errors
    /// When it holds none that can be used; the last ones stay then.
    fn replace_keys(&self, jwks: &str) -> anyhow::Result<()>;

    /// Trusts no key any more.
    fn forget_keys(&self);

    /// Has it keys?
    fn has_keys(&self) -> bool;

    /// What a good token says.
    ///
    /// # Errors
    /// Why it is not good.
    fn verify(&self, token: &str, now: SystemTime) -> Result<TokenClaims, TokenProblem>;
}

/// Knows everybody who may call.
#[derive(Debug)]
pub struct Authenticator {
    accounts: Arc<ArcSwap<Accounts>>,
    file: Option<AccountsFile>,
    issuers: Vec<Issuer>,
    format: Option<Arc<dyn TokenFormat>>,
}

impl Authenticator {
    /// Service accounts only.
    pub fn new(accounts: &[ServiceAccountConfig]) -> Self {
        Self {
            accounts: Arc::new(ArcSwap::from_pointee(Accounts::new(accounts))),
            file: None,
            issuers: Vec::new(),
            format: None,
        }
    }

    /// More accounts, from a file that is followed.
    ///
    /// # Errors
    /// When it cannot be used now.
    pub fn with_file(mut self, file: AccountsFile) -> anyhow::Result<Self> {
        self.accounts.store(Arc::new(file.read()?));
        self.file = Some(file);
        Ok(self)
    }

    /// Identity providers too. `roles` are those that a claim may grant.
    ///
    /// # Errors
    /// When one cannot be set up; not when it cannot be reached.
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

    /// Who holds this bearer credential. The time is given so that tests own
    /// it. Waits only for the keys of an issuer, and for those not long.
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

    /// Follows the accounts' file and the issuers' keys until told to stop.
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
