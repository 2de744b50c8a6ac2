//! The gRPC services. Each method reads: who calls, what is asked, may they,
//! do it, answer.

pub(crate) mod activity;
mod bind;
pub(crate) mod catalogs;
pub(crate) mod clusters;
pub(crate) mod ledger;
pub(crate) mod orgs;
pub(crate) mod routes;
pub(crate) mod sessions;

use crate::audit::Trail;
use crate::directory::Directory;
use crate::driver::Driver;
use crate::feed::Hub;
use crate::metrics::Metrics;
use crate::reports::Reports;
use service_kit::caller::{Authenticator, Caller, ISSUER_ALIAS, ServiceAccountConfig};
use service_kit::document::Document;
use session_core::access::{self, SessionAction};
use session_core::machine::Event;
use session_core::{
    Activity, Actor, AuditAction, Clock, Principal, PrincipalId, Reason, Role, Session, SessionId, SessionKey,
};
use session_proto::convert;
use session_proto::error::Refused;
use session_store::SessionStore;
use session_token::{Keyring, Verifier};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::metadata::MetadataMap;

/// What every service works with.
#[derive(Debug)]
pub(crate) struct Api {
    pub(crate) trail: Trail,
    pub(crate) store: Arc<dyn SessionStore>,
    pub(crate) directory: Directory,
    pub(crate) driver: Arc<Driver>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) reports: Arc<Reports>,
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
    /// Who calls: a service-account key in `authorization`.
    pub(crate) fn caller(&self, metadata: &MetadataMap) -> Result<Principal, Refused> {
        let caller = self.authenticate(metadata);
        if let Err(refused) = &caller {
            self.trail
                .refused(AuditAction::CallerRefused, refused, |record| record);
        }
        caller
    }

    fn authenticate(&self, metadata: &MetadataMap) -> Result<Principal, Refused> {
        let bearer = service_kit::grpc::bearer(metadata.as_ref()).map_err(Refused::no_key)?;
        let caller = self
            .authenticator
            .authenticate(
                bearer,
                std::time::UNIX_EPOCH + std::time::Duration::from_millis(self.clock.now().as_millis()),
            )
            .map_err(|problem| {
                Refused::new(
                    Reason::CallerUnknown,
                    format!("{problem}. Ask your platform team for a new one."),
                )
            })?;
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

/// What a later release will do.
pub(crate) fn not_yet<T>(what: &str) -> Result<T, Status> {
    Err(Status::unimplemented(format!(
        "{what} is not available in this release"
    )))
}

/// Things declared in configuration are read-only here.
pub(crate) fn managed_by_config(word: &str, name: &str) -> Refused {
    Refused::new(
        Reason::ManagedByConfig,
        format!("The {word} {name} is declared in the configuration file. Change it there."),
    )
}
