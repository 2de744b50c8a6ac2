//! Who calls, in the domain's words: service-kit says who holds a credential,
//! configuration says who of them administers the platform.

use crate::admission::external_jwt::Foreign;
use crate::config::Config;
use anyhow::{Context as _, Result};
use http::HeaderMap;
use service_kit::caller::{
    AccountsFile, Authenticator, Caller, CallerError, ISSUER_ALIAS, ServiceAccountConfig,
};
use session_core::{Clock, Principal, PrincipalId, Reason, Role};
use session_proto::error::Refused;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};
use tokio_util::sync::CancellationToken;

/// The roles that an identity provider's token may claim. That of a platform
/// admin is not among them: only configuration grants it.
pub(crate) const CLAIMABLE: [&str; 2] = ["member", "org-admin"];

/// Everybody who may call.
#[derive(Debug)]
pub(crate) struct Callers {
    authenticator: Authenticator,
    platform_admins: BTreeSet<PrincipalId>,
    clock: Arc<dyn Clock>,
}

impl Callers {
    /// Those of the configuration.
    ///
    /// # Errors
    /// When the accounts' file or an issuer cannot be used.
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
            .with_issuers(&config.oidc, &CLAIMABLE, Arc::new(Foreign))
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

    /// Follows files and issuers until told to stop.
    pub(crate) async fn keep_fresh(&self, stop: CancellationToken) {
        self.authenticator.keep_fresh(stop).await;
    }

    /// Who holds the credential of this call.
    pub(crate) async fn identify(&self, headers: &HeaderMap) -> Result<Principal, Refused> {
        let bearer = service_kit::grpc::bearer(headers).map_err(Refused::no_key)?;
        let now = UNIX_EPOCH + Duration::from_millis(self.clock.now().as_millis());
        let caller = self
            .authenticator
            .authenticate(bearer, now)
            .await
            .map_err(refused)?;
        let mut who = principal(&caller).map_err(|problem| {
            tracing::error!(subject = caller.subject, problem, "a caller cannot be used");
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

/// What to say, and what to do next.
pub(crate) fn refused(problem: CallerError) -> Refused {
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

/// One who is shut out hears what one hears who never was let in.
pub(crate) fn shut_out(who: &Principal) -> Refused {
    let service_account = who.id.as_str().split('|').next() == Some(ISSUER_ALIAS);
    refused(if service_account {
        CallerError::UnknownKey
    } else {
        CallerError::Unknown
    })
}

/// A caller as the domain knows it.
fn principal(caller: &Caller) -> Result<Principal, String> {
    let roles = caller
        .roles
        .iter()
        .map(|role| role_of(role))
        .collect::<Result<_, _>>()?;
    Ok(Principal {
        id: PrincipalId::new(&caller.issuer_alias, &caller.subject).map_err(|error| error.to_string())?,
        org: caller
            .org
            .parse()
            .map_err(|error: session_core::id::InvalidId| error.to_string())?,
        roles,
        teams: caller.teams.iter().cloned().collect(),
        team_admin_of: caller.team_admin_of.iter().cloned().collect(),
    })
}

/// Checks that a configured account can be used.
pub(crate) fn account_principal(account: &ServiceAccountConfig) -> Result<Principal, String> {
    principal(&Caller {
        issuer_alias: ISSUER_ALIAS.to_owned(),
        subject: account.name.clone(),
        org: account.org.clone(),
        roles: account.roles.clone(),
        teams: account.teams.clone(),
        team_admin_of: account.team_admin_of.clone(),
    })
}

fn role_of(text: &str) -> Result<Role, String> {
    match text {
        "member" => Ok(Role::Member),
        "org-admin" => Ok(Role::OrgAdmin),
        "platform-admin" => Ok(Role::PlatformAdmin),
        other => Err(format!(
            "{other:?} is not a role: use member, org-admin or platform-admin"
        )),
    }
}
