//! Authenticates callers: service-kit verifies the credential, configuration
//! decides which principals administer the platform.

use super::external_jwt::Foreign;
use crate::caller::{CLAIMABLE_ROLES, principal};
use crate::config::Config;
use anyhow::{Context as _, Result};
use http::HeaderMap;
use service_kit::caller::{AccountsFile, Authenticator, CallerError, ISSUER_ALIAS};
use session_core::{Clock, Principal, PrincipalId, Reason, Role};
use session_proto::error::Refused;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};
use tokio_util::sync::CancellationToken;

/// Authenticates callers by the credentials that the configuration accepts.
#[derive(Debug)]
pub(crate) struct CallerAuthenticator {
    authenticator: Authenticator,
    platform_admins: BTreeSet<PrincipalId>,
    clock: Arc<dyn Clock>,
}

impl CallerAuthenticator {
    /// An authenticator for the configured accounts and issuers.
    ///
    /// # Errors
    /// If the accounts file or an issuer is invalid.
    pub(crate) fn new(config: &Config, clock: Arc<dyn Clock>) -> Result<Self> {
        let mut authenticator = Authenticator::new(&config.service_accounts);
        if let Some(path) = &config.service_accounts_file {
            let judge = config.clone();
            let file = AccountsFile::new(path.clone(), &config.service_accounts, move |all| {
                judge.check_accounts(all)
            });
            authenticator = authenticator.with_file(file).context("service_accounts_file")?;
        }
        let authenticator = authenticator
            .with_issuers(&config.oidc, &CLAIMABLE_ROLES, Arc::new(Foreign))
            .context("oidc")?;
        Ok(Self {
            authenticator,
            platform_admins: config
                .platform_admins
                .iter()
                .filter_map(|id| id.parse().ok())
                .collect(),
            clock,
        })
    }

    /// Keeps accounts and issuers' keys fresh until `stop`.
    pub(crate) async fn keep_fresh(&self, stop: CancellationToken) {
        self.authenticator.keep_fresh(stop).await;
    }

    /// The principal whose credential these headers carry.
    pub(crate) async fn authenticate(&self, headers: &HeaderMap) -> Result<Principal, Refused> {
        let bearer = service_kit::grpc::bearer(headers).map_err(Refused::no_key)?;
        let now = UNIX_EPOCH + Duration::from_millis(self.clock.now().as_millis());
        let caller = self
            .authenticator
            .authenticate(bearer, now)
            .await
            .map_err(rejected)?;
        let mut who = principal(&caller).map_err(|problem| {
            tracing::error!(
                subject = caller.subject,
                problem,
                "caller rejected: its credential is not configured correctly"
            );
            Refused::new(
                Reason::CallerUnknown,
                "This credential is not set up correctly. Tell your platform team.",
            )
        })?;
        if self.platform_admins.contains(&who.id) {
            who.roles.insert(Role::PlatformAdmin);
        }
        Ok(who)
    }
}

/// The error for the caller, with the next step.
fn rejected(problem: CallerError) -> Refused {
    let next = match problem {
        CallerError::UnknownKey | CallerError::KeyExpired => "Ask your platform team for a new one",
        CallerError::Token(_) | CallerError::TokenExpired => {
            "Get a new token for Berth from your identity provider"
        }
        CallerError::NotACredential
        | CallerError::Unknown
        | CallerError::UnknownIssuer
        | CallerError::NotPinned => "Check which credential you use, or ask your platform team",
        CallerError::Unavailable => "Try again shortly",
    };
    let reason = match problem {
        CallerError::Unavailable => Reason::ControlPlaneUnavailable,
        CallerError::UnknownKey
        | CallerError::KeyExpired
        | CallerError::Token(_)
        | CallerError::TokenExpired
        | CallerError::NotACredential
        | CallerError::Unknown
        | CallerError::UnknownIssuer
        | CallerError::NotPinned => Reason::CallerUnknown,
    };
    Refused::new(reason, format!("{problem}. {next}."))
}

/// A disabled principal gets the same error as an unknown caller.
pub(crate) fn disabled(who: &Principal) -> Refused {
    let service_account = who.id.as_str().split('|').next() == Some(ISSUER_ALIAS);
    rejected(if service_account {
        CallerError::UnknownKey
    } else {
        CallerError::Unknown
    })
}
