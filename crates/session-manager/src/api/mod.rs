//! The gRPC services. Each method reads the caller and the request, authorizes,
//! acts, records and responds, in this order.

pub(crate) mod activity;
pub(crate) mod audit;
mod audit_page;
mod bind;
pub(crate) mod catalogs;
pub(crate) mod client_advice;
pub(crate) mod clusters;
pub(crate) mod ledger;
mod operations;
pub(crate) mod orgs;
mod placement;
pub(crate) mod routes;
pub(crate) mod session_page;
pub(crate) mod sessions;
mod spark_sessions;
pub(crate) mod test_catalog;
mod usage;
pub(crate) mod watch;

use crate::admission::Admission;
use crate::audit::Trail;
use crate::caller::AuthenticatedCaller;
use crate::change_feed::ChangeFanOut;
use crate::definitions::DefinitionStore;
use crate::lifecycle::activity_reports::ReportIntake;
use crate::lifecycle::disabling::Disabling;
use crate::lifecycle::reconciler::Reconciler;
use crate::metrics::Metrics;
use service_kit::polled_document::Document;
use session_core::access::{self, Rpc};
use session_core::machine::Event;
use session_core::{
    Activity, Actor, AuditAction, AuditRecord, Clock, Principal, Reason, Session, SessionId, SessionKey,
};
use session_proto::convert;
use session_proto::error::Refused;
use session_store::SessionStore;
use session_token::{Keyring, Verifier};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tonic::Request;

/// The parts that the services share.
#[derive(Debug)]
pub(crate) struct Api {
    pub(crate) admission: Arc<Admission>,
    pub(crate) trail: Arc<Trail>,
    pub(crate) store: Arc<dyn SessionStore>,
    pub(crate) definitions: DefinitionStore,
    pub(crate) reconciler: Arc<Reconciler>,
    pub(crate) fan_out: Arc<ChangeFanOut>,
    pub(crate) reports: Arc<ReportIntake>,
    pub(crate) disabling: Arc<Disabling>,
    pub(crate) watches: watch::Watches,
    pub(crate) read_limits: audit::ReadLimits,
    pub(crate) cluster_versions: client_advice::ClusterVersions,
    pub(crate) catalog_tests: test_catalog::CatalogTests,
    pub(crate) verifier: Verifier,
    pub(crate) keyring: Arc<Keyring>,
    pub(crate) keys: Arc<Document>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) computes: crate::providers::registry::Providers,
    pub(crate) compute_config: crate::config::ComputeConfig,
    pub(crate) metrics: Arc<Metrics>,
    /// Ends open streams, which would otherwise delay the drain.
    pub(crate) stopping: CancellationToken,
}

impl Api {
    /// The authenticated caller that admission attached to the request.
    pub(crate) fn caller<T>(&self, request: &Request<T>) -> Result<AuthenticatedCaller, Refused> {
        match request.extensions().get::<AuthenticatedCaller>() {
            Some(who) => Ok(who.clone()),
            None => {
                tracing::error!("request without an authenticated caller");
                Err(Refused::no_key("no credential"))
            }
        }
    }

    /// Records an action of `who` in the audit trail.
    pub(crate) async fn audit(
        &self,
        who: &AuthenticatedCaller,
        action: AuditAction,
        more: impl FnOnce(AuditRecord) -> AuditRecord,
    ) {
        self.trail.record(who, action, more).await;
    }

    /// Reads a session on which `who` may call `rpc`.
    ///
    /// # Errors
    /// The same error for a session that does not exist and for one that `who` may
    /// not use.
    pub(crate) async fn session_for(
        &self,
        who: &Principal,
        id: &str,
        rpc: Rpc,
    ) -> Result<(Session, Activity), Refused> {
        let key = self.key(who, id)?;
        let loaded = self
            .store
            .get_with_activity(&key)
            .await
            .map_err(crate::error::store)?;
        match loaded {
            Some(loaded) if access::call_on_session(who, rpc, &loaded.session) => {
                Ok((loaded.session, loaded.activity))
            }
            Some(_) | None => Err(Refused::not_authorized()),
        }
    }

    /// Applies an event to a session on which `who` may call `rpc`, and enqueues
    /// the session for reconciliation.
    pub(crate) async fn change(
        &self,
        who: &AuthenticatedCaller,
        key: &SessionKey,
        rpc: Rpc,
        event: &Event,
    ) -> Result<(Session, Activity), Refused> {
        self.change_if(who, key, rpc, event, |_| Ok(())).await
    }

    /// The same, if `precondition` is met by the session that changes.
    pub(crate) async fn change_if(
        &self,
        who: &AuthenticatedCaller,
        key: &SessionKey,
        rpc: Rpc,
        event: &Event,
        precondition: impl Fn(&Session) -> Result<(), Refused>,
    ) -> Result<(Session, Activity), Refused> {
        let may = |session: &Session| {
            if access::call_on_session(who, rpc, session) {
                precondition(session)
            } else {
                Err(Refused::not_authorized())
            }
        };
        let actor = Actor::Principal(who.id.clone());
        let changed = self
            .reconciler
            .apply_from(&who.address, key, event, &actor, may)
            .await?;
        self.reconciler.enqueue(key.clone());
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

/// The error for a change of a definition from the configuration.
pub(crate) fn managed_by_config(word: &str, name: &str) -> Refused {
    Refused::new(
        Reason::ManagedByConfig,
        format!("The {word} {name} is declared in the configuration file. Change it there."),
    )
}
