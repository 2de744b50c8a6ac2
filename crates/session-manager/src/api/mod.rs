//! The gRPC services. Each method reads: who calls, what is asked, may they,
//! do it, answer.

pub(crate) mod activity;
mod bind;
pub(crate) mod catalogs;
pub(crate) mod clusters;
pub(crate) mod ledger;
mod operations;
pub(crate) mod orgs;
mod placement;
pub(crate) mod routes;
pub(crate) mod sessions;
mod spark_sessions;
pub(crate) mod test_catalog;
pub(crate) mod watch;

use crate::admission::authenticate::Callers;
use crate::admission::layer::Admitted;
use crate::audit::Trail;
use crate::change_feed::Hub;
use crate::definitions::Directory;
use crate::lifecycle::activity_reports::Reports;
use crate::lifecycle::disabling::ShutOut;
use crate::lifecycle::reconciler::Driver;
use crate::metrics::Metrics;
use service_kit::polled_document::Document;
use session_core::access::{self, Rpc};
use session_core::machine::Event;
use session_core::{Activity, Actor, Clock, OrgId, Principal, Reason, Role, Session, SessionId, SessionKey};
use session_proto::convert;
use session_proto::error::Refused;
use session_store::SessionStore;
use session_token::{Keyring, Verifier};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio_util::sync::CancellationToken;
use tonic::Request;
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
    pub(crate) shut_out: Arc<ShutOut>,
    pub(crate) watches: watch::Watches,
    pub(crate) trials: test_catalog::Trials,
    pub(crate) callers: Callers,
    pub(crate) verifier: Verifier,
    pub(crate) keyring: Arc<Keyring>,
    pub(crate) keys: Arc<Document>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) computes: crate::providers::registry::Providers,
    pub(crate) compute_config: crate::config::ComputeConfig,
    pub(crate) metrics: Arc<Metrics>,
    /// Ends the streams that would otherwise hold the drain up.
    pub(crate) stopping: CancellationToken,
}

impl Api {
    /// Who calls, as the door let them in.
    pub(crate) fn caller<T>(&self, request: &Request<T>) -> Result<Admitted, Refused> {
        match request.extensions().get::<Admitted>() {
            Some(who) => Ok(who.clone()),
            None => {
                tracing::error!("a call that no door let in");
                Err(Refused::no_key("no credential"))
            }
        }
    }

    /// The present, as credentials are judged by.
    pub(crate) fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.clock.now().as_millis())
    }

    /// Who calls, found out anew from the headers of a call that goes on.
    pub(crate) async fn caller_still(&self, metadata: &MetadataMap) -> Result<Principal, Refused> {
        let who = self.callers.identify(metadata.as_ref()).await?;
        self.let_in(&who).await?;
        Ok(who)
    }

    /// Refuses who is shut out. Platform admins are heard although their
    /// organization is: nobody could enable it again otherwise.
    pub(crate) async fn let_in(&self, who: &Principal) -> Result<(), Refused> {
        let standing = self.directory.standing(&who.org, &who.id).await;
        let standing = standing.map_err(crate::error::store)?;
        let platform = who.has(Role::PlatformAdmin);
        if let Some(disabled) = standing.principal
            && (disabled.by_platform || !platform)
        {
            tracing::info!(org = %who.org, actor = %who.id, "a disabled principal was refused");
            return Err(crate::admission::authenticate::shut_out(who));
        }
        if standing.org.is_some() && !platform {
            return Err(org_disabled(&who.org));
        }
        Ok(())
    }

    /// Reads a session that `who` may use so. "Not yours" and "no such" answer alike.
    pub(crate) async fn session_for(
        &self,
        who: &Principal,
        id: &str,
        rpc: Rpc,
    ) -> Result<(Session, Activity), Refused> {
        let key = self.key(who, id)?;
        let loaded = self.store.load(&key).await.map_err(crate::error::store)?;
        match loaded {
            Some(loaded) if access::call_on_session(who, rpc, &loaded.session) => {
                Ok((loaded.session, loaded.activity))
            }
            Some(_) | None => Err(Refused::not_authorized()),
        }
    }

    /// Carries out what `who` asks of a session that they may use so, and has
    /// it looked at.
    pub(crate) async fn change(
        &self,
        who: &Admitted,
        key: &SessionKey,
        rpc: Rpc,
        event: &Event,
    ) -> Result<(Session, Activity), Refused> {
        let may = |session: &Session| {
            if access::call_on_session(who, rpc, session) {
                Ok(())
            } else {
                Err(Refused::not_authorized())
            }
        };
        let actor = Actor::Principal(who.id.clone());
        let changed = self
            .driver
            .ask_from(&who.address, key, event, &actor, may)
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

pub(crate) fn org_disabled(org: &OrgId) -> Refused {
    Refused::new(
        Reason::OrgDisabled,
        format!("The organization {org} is disabled. Ask your platform team."),
    )
}

/// Things declared in configuration are read-only here.
pub(crate) fn managed_by_config(word: &str, name: &str) -> Refused {
    Refused::new(
        Reason::ManagedByConfig,
        format!("The {word} {name} is declared in the configuration file. Change it there."),
    )
}
