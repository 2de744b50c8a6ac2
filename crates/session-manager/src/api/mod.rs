//! The gRPC services. Each method reads: who calls, what is asked, may they,
//! do it, answer.

pub(crate) mod activity;
mod bind;
pub(crate) mod catalogs;
pub(crate) mod clusters;
pub(crate) mod ledger;
mod operations;
pub(crate) mod orgs;
mod placing;
pub(crate) mod routes;
pub(crate) mod sessions;
pub(crate) mod trial;
pub(crate) mod watch;

use crate::directory::Directory;
use crate::driver::Driver;
use crate::feed::Hub;
use crate::metrics::Metrics;
use crate::reports::Reports;
use crate::shut_out::ShutOut;
use service_kit::caller::{Authenticator, Caller, CallerError, ISSUER_ALIAS, ServiceAccountConfig};
use service_kit::document::Document;
use session_core::access::{self, SessionAction};
use session_core::machine::Event;
use session_core::{
    Activity, Actor, Clock, OrgId, Principal, PrincipalId, Reason, Role, Session, SessionId, SessionKey,
};
use session_proto::convert;
use session_proto::error::Refused;
use session_store::SessionStore;
use session_token::{Keyring, Verifier};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;

/// What every service works with.
#[derive(Debug)]
pub(crate) struct Api {
    pub(crate) store: Arc<dyn SessionStore>,
    pub(crate) directory: Directory,
    pub(crate) driver: Arc<Driver>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) reports: Arc<Reports>,
    pub(crate) shut_out: Arc<ShutOut>,
    pub(crate) watches: watch::Watches,
    pub(crate) trials: trial::Trials,
    pub(crate) authenticator: Authenticator,
    pub(crate) verifier: Verifier,
    pub(crate) keyring: Arc<Keyring>,
    pub(crate) keys: Arc<Document>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) computes: crate::computes::Computes,
    pub(crate) compute_config: crate::config::ComputeConfig,
    pub(crate) metrics: Arc<Metrics>,
    /// Ends the streams that would otherwise hold the drain up.
    pub(crate) stopping: CancellationToken,
}

impl Api {
    /// Who calls, if they are let in.
    pub(crate) async fn caller(&self, metadata: &MetadataMap) -> Result<Principal, Refused> {
        let who = self.authenticated(metadata)?;
        self.let_in(&who).await?;
        Ok(who)
    }

    /// Refuses who is shut out. Platform admins are heard although their
    /// organization is: nobody could enable it again otherwise.
    pub(crate) async fn let_in(&self, who: &Principal) -> Result<(), Refused> {
        let standing = self.directory.standing(&who.org, &who.id).await;
        let standing = standing.map_err(crate::refuse::store)?;
        let platform = who.has(Role::PlatformAdmin);
        if let Some(disabled) = standing.principal
            && (disabled.by_platform || !platform)
        {
            tracing::info!(org = %who.org, actor = %who.id, "a disabled principal was refused");
            return Err(unknown(CallerError::Unknown));
        }
        if standing.org.is_some() && !platform {
            return Err(org_disabled(&who.org));
        }
        Ok(())
    }

    /// Who calls: a service-account key in `authorization`.
    fn authenticated(&self, metadata: &MetadataMap) -> Result<Principal, Refused> {
        let bearer = service_kit::grpc::bearer(metadata.as_ref()).map_err(Refused::no_key)?;
        let caller = self
            .authenticator
            .authenticate(
                bearer,
                std::time::UNIX_EPOCH + std::time::Duration::from_millis(self.clock.now().as_millis()),
            )
            .map_err(unknown)?;
        principal(&caller).map_err(|problem| {
            tracing::error!(
                subject = caller.subject,
                problem,
                "a configured caller cannot be used"
            );
            Refused::new(
                Reason::CallerUnknown,
                "This key is not set up correctly. Tell your platform team.",
            )
        })
    }

    /// Reads a session that `who` may use so. "Not yours" and "no such" answer alike.
    pub(crate) async fn session_for(
        &self,
        who: &Principal,
        id: &str,
        action: SessionAction,
    ) -> Result<(Session, Activity), Refused> {
        let key = self.key(who, id)?;
        let loaded = self.store.load(&key).await.map_err(crate::refuse::store)?;
        match loaded {
            Some(loaded) if access::on_session(who, action, &loaded.session) => {
                Ok((loaded.session, loaded.activity))
            }
            Some(_) | None => Err(Refused::not_authorized()),
        }
    }

    /// Carries out what `who` asks of a session that they may use so, and has
    /// it looked at.
    pub(crate) async fn change(
        &self,
        who: &Principal,
        key: &SessionKey,
        action: SessionAction,
        event: &Event,
    ) -> Result<(Session, Activity), Refused> {
        let may = |session: &Session| {
            if access::on_session(who, action, session) {
                Ok(())
            } else {
                Err(Refused::not_authorized())
            }
        };
        let changed = self
            .driver
            .ask(key, event, &Actor::Principal(who.id.clone()), may)
            .await?;
        self.driver.kick(key.clone());
        Ok(changed)
    }

    pub(crate) fn key(&self, who: &Principal, id: &str) -> Result<SessionKey, Refused> {
        let id: SessionId = convert::parse("session_id", id)?;
        Ok(SessionKey {
            org: who.org.clone(),
            id,
        })
    }
}

/// No such caller; the same for one that is shut out.
fn unknown(problem: CallerError) -> Refused {
    Refused::new(
        Reason::CallerUnknown,
        format!("{problem}. Ask your platform team for a new one."),
    )
}

pub(crate) fn org_disabled(org: &OrgId) -> Refused {
    Refused::new(
        Reason::OrgDisabled,
        format!("The organization {org} is disabled. Ask your platform team."),
    )
}

/// A configured caller as the domain knows it.
pub(crate) fn principal(caller: &Caller) -> Result<Principal, String> {
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

/// Things declared in configuration are read-only here.
pub(crate) fn managed_by_config(word: &str, name: &str) -> Refused {
    Refused::new(
        Reason::ManagedByConfig,
        format!("The {word} {name} is declared in the configuration file. Change it there."),
    )
}
