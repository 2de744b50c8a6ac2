//! Tokens of OpenID Connect providers: discovery, key rotation, and the allowed
//! claims of each issuer.
//!
//! While an issuer is unavailable, only its new keys are missing: the last
//! valid keys stay for `keep_keys`. A token with an unknown key triggers a read
//! of the keys, one at a time and at most every 30 s, independent of the number
//! of such tokens.

mod claims;
mod config;

pub use config::{IssuerConfig, SubjectConfig, validate_issuers};

use super::{Caller, CallerError, TokenClaims, TokenFormat, TokenProblem, TokenVerifier};
use crate::backoff::Backoff;
use crate::config::{Problems, Validate as _};
use crate::polled_document::{Document, DocumentConfig, Fetched};
use anyhow::{Context as _, ensure};
use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// One trusted identity provider.
pub struct Issuer {
    config: IssuerConfig,
    grantable: BTreeSet<String>,
    verifier: Arc<dyn TokenVerifier>,
    /// `None` if the location of the key set is configured.
    discovery: Option<Arc<Document>>,
    /// The key set location from discovery.
    found: Arc<ArcSwapOption<String>>,
    keys: ArcSwapOption<Keys>,
    confirmed: Arc<Mutex<Option<Instant>>>,
    /// Whether an omitted oversized claim was logged.
    overage_logged: AtomicBool,
}

/// The key set at its current location.
struct Keys {
    location: String,
    document: Arc<Document>,
}

/// The used fields of the discovery document.
#[derive(Deserialize)]
struct Description {
    issuer: String,
    jwks_uri: String,
}

impl Issuer {
    /// `grantable` are the roles that its tokens may contain.
    pub(super) fn new(
        config: &IssuerConfig,
        grantable: &[&str],
        format: &dyn TokenFormat,
    ) -> anyhow::Result<Self> {
        let verifier = format
            .verifier(config.rules())
            .map_err(anyhow::Error::msg)
            .with_context(|| config.alias.clone())?;
        let found = Arc::new(ArcSwapOption::empty());
        let discovery = match config.keys_location() {
            Some(_) => None,
            None => {
                let (config, found) = (config.clone(), Arc::clone(&found));
                let document = config.document(config.discovery());
                let accept = move |fetched: Fetched<'_>| match fetched {
                    Fetched::Same => Ok(()),
                    Fetched::New(text) => {
                        found.store(Some(Arc::new(described(&config, text)?)));
                        Ok(())
                    }
                };
                Some(Document::new(&document, accept)?)
            }
        };
        Ok(Self {
            config: config.clone(),
            grantable: grantable.iter().map(|role| (*role).to_owned()).collect(),
            verifier,
            discovery,
            found,
            keys: ArcSwapOption::empty(),
            confirmed: Arc::default(),
            overage_logged: AtomicBool::new(false),
        })
    }

    pub(super) fn is_named(&self, issuer: &str) -> bool {
        self.config.issuer == issuer
    }

    pub(super) async fn authenticate(&self, token: &str, now: SystemTime) -> Result<Caller, CallerError> {
        self.forget_old_keys();
        let mut outcome = self.verifier.verify(token, now);
        if outcome == Err(TokenProblem::UnknownKey) {
            match self.fetch_again().await {
                Ok(()) => outcome = self.verifier.verify(token, now),
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::warn!(alias = self.config.alias, error, "reading issuer keys failed");
                }
            }
        }
        match outcome {
            Ok(claims) => {
                self.log_overage(&claims);
                claims::caller(&self.config, &self.grantable, claims)
            }
            Err(TokenProblem::UnknownKey) if !self.verifier.has_keys() => Err(CallerError::Unavailable),
            Err(TokenProblem::UnknownKey) => Err(CallerError::Token("its signing key is not known")),
            Err(TokenProblem::Expired) => Err(CallerError::TokenExpired),
            Err(TokenProblem::Refused(why)) => Err(CallerError::Token(why)),
        }
    }

    /// Logs once that tokens lack a claim, so that the roles or teams of some
    /// callers are missing; the provider must be configured for fewer groups.
    fn log_overage(&self, claims: &TokenClaims) {
        let Some(claim) = claims::left_out(&self.config, &claims.all) else {
            return;
        };
        if !self.overage_logged.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                alias = self.config.alias,
                claim,
                "identity provider omitted an oversized claim from a token; \
                 callers in too many groups have no roles or teams from it"
            );
        }
    }

    /// Reads discovery and keys until the first success, then at the refresh
    /// interval.
    pub(super) async fn keep_fresh(&self, stop: &CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
        loop {
            let wait = match self.fetch().await {
                Ok(()) => {
                    backoff.reset();
                    self.config.refresh()
                }
                Err(error) => {
                    if backoff.failures() == 2 {
                        let error = format!("{error:#}");
                        tracing::warn!(
                            alias = self.config.alias,
                            error,
                            "reading identity provider failed; retrying"
                        );
                    }
                    backoff.next_delay()
                }
            };
            self.forget_old_keys();
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn fetch(&self) -> anyhow::Result<()> {
        if let Some(discovery) = &self.discovery {
            discovery.fetch().await.context("discovery")?;
        }
        self.keys()?.document.fetch().await.context("key set")
    }

    /// Reads again because a key was missing; skips documents that were read
    /// recently.
    async fn fetch_again(&self) -> anyhow::Result<()> {
        if self.found.load().is_none()
            && let Some(discovery) = &self.discovery
        {
            discovery.fetch_again().await.context("discovery")?;
        }
        self.keys()?
            .document
            .fetch_again()
            .await
            .context("key set")
            .map(drop)
    }

    /// The key set at the configured location, or at the last discovered one.
    fn keys(&self) -> anyhow::Result<Arc<Keys>> {
        let found = self.found.load_full();
        if let Some(location) = self
            .config
            .keys_location()
            .or(found.as_deref().map(String::as_str))
        {
            self.read_keys_at(location)?;
        }
        self.keys.load_full().context("the key set is not discovered yet")
    }

    fn read_keys_at(&self, location: &str) -> anyhow::Result<()> {
        if self
            .keys
            .load()
            .as_ref()
            .is_some_and(|keys| keys.location == location)
        {
            return Ok(());
        }
        let (verifier, confirmed) = (Arc::clone(&self.verifier), Arc::clone(&self.confirmed));
        let document = Document::new(&self.config.document(location), move |fetched| {
            if let Fetched::New(text) = fetched {
                verifier.replace_keys(text)?;
            }
            *confirmed.lock() = Some(Instant::now());
            Ok(())
        })?;
        self.keys.store(Some(Arc::new(Keys {
            location: location.to_owned(),
            document,
        })));
        Ok(())
    }

    /// Drops keys that were not confirmed for too long, because they may be
    /// revoked.
    fn forget_old_keys(&self) {
        let mut confirmed = self.confirmed.lock();
        if confirmed.is_some_and(|at| at.elapsed() > self.config.keep_keys) {
            *confirmed = None;
            self.verifier.forget_keys();
            // The ETag is dropped with the keys, so that the next read returns
            // the whole set.
            self.keys.store(None);
            tracing::error!(
                alias = self.config.alias,
                "issuer keys expired without a successful read; tokens of this issuer are rejected"
            );
        }
    }
}

/// The key set location from a discovery document of this issuer.
fn described(config: &IssuerConfig, text: &str) -> anyhow::Result<String> {
    let description: Description =
        serde_json::from_str(text).map_err(|_| anyhow::anyhow!("the discovery document is invalid"))?;
    ensure!(
        description.issuer == config.issuer,
        "the discovery document is not of issuer {}",
        config.issuer
    );
    let location = description.jwks_uri;
    // Never a file: a provider must not select local files.
    ensure!(
        location.starts_with("https://") || location.starts_with("http://"),
        "its jwks_uri is not a URL"
    );
    let document: DocumentConfig = config.document(&location);
    let mut problems = Problems::default();
    document.validate(&mut problems);
    if let Some(problem) = problems.found().iter().find(|problem| problem.key == "location") {
        anyhow::bail!("its jwks_uri {}", problem.what);
    }
    Ok(location)
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issuer")
            .field("alias", &self.config.alias)
            .finish_non_exhaustive()
    }
}
