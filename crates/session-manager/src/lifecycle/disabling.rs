//! Disabling an organization, or one principal of it.
//!
//! The disabled state is a definition of its own. Once it is written, every call is
//! rejected and every reconciliation of an affected session closes it, also if the
//! session was created concurrently. Other sessions are closed by a pass over the
//! live ones: first by the manager that wrote the definition, then by any manager
//! until one pass is complete. So a crash leaves no session open.

use crate::definitions::{DefinitionStore, ResolvedDefinitions, Versioned};
use crate::lifecycle::reconciler::Reconciler;
use futures::{StreamExt, stream};
use session_core::machine::Event;
use session_core::{Actor, ChangeReason, Cluster, Disabled, OrgId, PrincipalId, Quota, Reason, Session};
use session_proto::error::Refused;
use session_store::{DefinitionQuota, Error, Kind, ListQuery, SessionStore};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Sessions that one page of a pass reads.
const PAGE: usize = 256;
/// Sessions that a pass closes concurrently.
const MAX_CONCURRENT_CLOSES: usize = 32;
/// Time between two searches for incomplete passes.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);
/// Attempts of a write before it fails with a conflict.
const MAX_ATTEMPTS: usize = 8;

impl Versioned for Disabled {
    const KIND: Kind = Kind::Disabled;
    const WORD: &'static str = "entry";
    const QUOTA: Option<DefinitionQuota> = Some(DefinitionQuota {
        entries: (Quota::DisabledPrincipals, 10_000),
        bytes: (Quota::DisabledBytes, 8 << 20),
    });

    fn name(&self) -> String {
        name(&self.org, self.principal.as_ref())
    }
    fn set_version(&mut self, version: u64) {
        self.version = version;
    }
    fn version(&self) -> u64 {
        self.version
    }
    fn managed_by_config(&self) -> bool {
        false
    }
    fn orphaned(self) -> Option<Self> {
        Some(self)
    }
}

/// The name of the definition. An organization's name has no slash, so the two
/// forms are distinct.
fn name(org: &OrgId, principal: Option<&PrincipalId>) -> String {
    principal.map_or_else(|| org.to_string(), |principal| format!("{org}/{principal}"))
}

/// Whether a principal or its organization is disabled.
#[derive(Debug, Default)]
pub(crate) struct DisabledState {
    pub(crate) org: Option<Disabled>,
    pub(crate) principal: Option<Disabled>,
}

impl DisabledState {
    fn names(org: &OrgId, principal: &PrincipalId) -> [(Kind, String); 2] {
        [name(org, None), name(org, Some(principal))].map(|name| (Kind::Disabled, name))
    }

    fn read(resolved: &mut ResolvedDefinitions) -> Result<Self, Error> {
        Ok(Self {
            org: resolved.next()?,
            principal: resolved.next()?,
        })
    }

    /// Why a session of this owner must close, and who disabled it.
    pub(crate) fn close_reason(&self) -> Option<(ChangeReason, Actor)> {
        let by = |disabled: &Disabled| Actor::Principal(disabled.by.clone());
        let org = self.org.as_ref().map(|org| (ChangeReason::OrgDisabled, by(org)));
        let owner = self.principal.as_ref();
        org.or_else(|| owner.map(|owner| (ChangeReason::OwnerDisabled, by(owner))))
    }
}

impl DefinitionStore {
    /// Whether a principal or its organization is disabled.
    pub(crate) async fn disabled_state(
        &self,
        org: &OrgId,
        principal: &PrincipalId,
    ) -> Result<DisabledState, Error> {
        let wanted = DisabledState::names(org, principal);
        DisabledState::read(&mut self.get_many(&wanted).await?)
    }

    /// The definitions that a session depends on: its cluster, if that still
    /// exists, and the disabled state of its owner.
    pub(crate) async fn load_dependencies(
        &self,
        session: &Session,
    ) -> Result<(Option<Cluster>, DisabledState), Error> {
        let [org, owner] = DisabledState::names(&session.org, &session.owner);
        let cluster = (Kind::Cluster, session.cluster.to_string());
        let mut resolved = self.get_many(&[cluster, org, owner]).await?;
        Ok((resolved.next()?, DisabledState::read(&mut resolved)?))
    }

    pub(crate) async fn is_disabled(&self, org: &OrgId) -> Result<bool, Error> {
        Ok(self.get::<Disabled>(&name(org, None)).await?.is_some())
    }
}

/// Disables and enables organizations and principals.
#[derive(Debug)]
pub(crate) struct Disabling {
    store: Arc<dyn SessionStore>,
    definitions: DefinitionStore,
    reconciler: Arc<Reconciler>,
    /// Time after its expiry during which a token may still be accepted.
    afterlife: Duration,
}

impl Disabling {
    pub(crate) fn new(
        store: Arc<dyn SessionStore>,
        definitions: DefinitionStore,
        reconciler: Arc<Reconciler>,
        afterlife: Duration,
    ) -> Arc<Self> {
        Arc::new(Self {
            store,
            definitions,
            reconciler,
            afterlife,
        })
    }

    /// Closes the live sessions of a disabled organization or principal. Returns
    /// their number. Continues if the caller disconnects.
    ///
    /// # Errors
    /// A store error; the sweep continues the pass later.
    pub(crate) async fn close(self: &Arc<Self>, disabled: Disabled) -> Result<u32, Refused> {
        let this = Arc::clone(self);
        let pass = tokio::spawn(async move { this.close_all(&disabled).await });
        pass.await.unwrap_or_else(|error| {
            tracing::error!(%error, "closing sessions of a disabled principal or organization aborted");
            Err(Refused::new(
                Reason::Internal,
                "It is disabled, and its sessions are still being closed. Repeat the call to wait for the end.",
            ))
        })
    }

    /// Writes the definition, which is in force from then on. One that a platform
    /// admin wrote is kept.
    ///
    /// # Errors
    /// A store error, or a conflict after [`MAX_ATTEMPTS`].
    pub(crate) async fn write(&self, wanted: Disabled) -> Result<Disabled, Refused> {
        for _ in 0..MAX_ATTEMPTS {
            let stored: Option<Disabled> = self
                .definitions
                .get(&wanted.name())
                .await
                .map_err(crate::error::store)?;
            let written = match stored {
                Some(stored) if stored.by_platform || !wanted.by_platform => return Ok(stored),
                Some(stored) => {
                    let version = stored.version;
                    self.definitions
                        .replace(Disabled {
                            version,
                            ..wanted.clone()
                        })
                        .await
                }
                None => self.definitions.create(wanted.clone()).await,
            };
            match written {
                Ok(disabled) => {
                    tracing::info!(
                        org = %disabled.org, principal = disabled.principal.as_ref().map(PrincipalId::as_str),
                        actor = %disabled.by, "disabled state written"
                    );
                    return Ok(disabled);
                }
                Err(refused) if is_race(&refused) => {}
                Err(refused) => return Err(refused),
            }
        }
        Err(keeps_changing())
    }

    /// Deletes the definition if `may` permits. Succeeds if there is none.
    ///
    /// # Errors
    /// [`Reason::NotAuthorized`] if `may` forbids it, a store error, or a conflict
    /// after [`MAX_ATTEMPTS`].
    pub(crate) async fn enable(
        &self,
        org: &OrgId,
        principal: Option<&PrincipalId>,
        may: impl Fn(&Disabled) -> bool,
    ) -> Result<(), Refused> {
        for _ in 0..MAX_ATTEMPTS {
            let stored: Option<Disabled> = self
                .definitions
                .get(&name(org, principal))
                .await
                .map_err(crate::error::store)?;
            let Some(stored) = stored else { return Ok(()) };
            if !may(&stored) {
                return Err(Refused::not_authorized());
            }
            match self.definitions.delete(&stored).await {
                Ok(()) => return Ok(()),
                Err(refused) if is_race(&refused) => {}
                Err(refused) => return Err(refused),
            }
        }
        Err(keeps_changing())
    }

    /// Repeats incomplete passes until `stop`.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(SWEEP_INTERVAL) => {}
            }
            if let Err(error) = self.sweep().await {
                tracing::warn!(
                    error = error.message,
                    "closing sessions of a disabled principal or organization failed; it is retried"
                );
            }
        }
    }

    async fn sweep(&self) -> Result<(), Refused> {
        let orgs = self.definitions.owning_orgs::<Disabled>().await;
        for org in orgs.map_err(crate::error::store)? {
            let all = self.definitions.all_of_org::<Disabled>(org.as_ref()).await;
            for disabled in all.map_err(crate::error::store)? {
                if !disabled.settled {
                    self.close_all(&disabled).await?;
                }
            }
        }
        Ok(())
    }

    /// One pass over the organization's live sessions. At its end all sessions that
    /// were live at its beginning are closed; later ones are closed by the
    /// reconciliation that every new session gets.
    async fn close_all(&self, disabled: &Disabled) -> Result<u32, Refused> {
        let mut query = ListQuery::live_of_org(disabled.org.clone(), PAGE);
        let mut closed = 0;
        loop {
            let stored = self.definitions.get::<Disabled>(&disabled.name()).await;
            // Enabled in the meantime: the remaining sessions continue.
            let Some(stored) = stored.map_err(crate::error::store)? else {
                return Ok(closed);
            };
            let page = self.store.list(&query).await.map_err(crate::error::store)?;
            let outcomes: Vec<_> = stream::iter(page.sessions)
                .map(|session| self.close_or_revoke(disabled, session))
                .buffer_unordered(MAX_CONCURRENT_CLOSES)
                .collect()
                .await;
            for outcome in outcomes {
                closed += u32::from(outcome?);
            }
            if page.next.is_none() {
                self.settle(stored).await?;
                return Ok(closed);
            }
            query.page_token = page.next;
        }
    }

    async fn settle(&self, stored: Disabled) -> Result<(), Refused> {
        if stored.settled {
            return Ok(());
        }
        let settled = Disabled {
            settled: true,
            ..stored
        };
        match self.definitions.replace(settled).await {
            Ok(_) => Ok(()),
            // Another manager did, or it was enabled.
            Err(refused) if is_race(&refused) => Ok(()),
            Err(refused) => Err(refused),
        }
    }

    /// Closes a session of the disabled owner or organization; for other sessions,
    /// revokes the tokens of the disabled principal. True if the session was closed.
    async fn close_or_revoke(&self, disabled: &Disabled, session: Session) -> Result<bool, Refused> {
        let actor = Actor::Principal(disabled.by.clone());
        let reason = match &disabled.principal {
            None => ChangeReason::OrgDisabled,
            Some(principal) if session.owner == *principal => ChangeReason::OwnerDisabled,
            Some(principal) => {
                self.revoke(&session, principal, &actor).await?;
                return Ok(false);
            }
        };
        self.apply(&session, &Event::Close { reason }, &actor).await?;
        Ok(true)
    }

    async fn revoke(&self, session: &Session, subject: &PrincipalId, actor: &Actor) -> Result<(), Refused> {
        // Including expired ones: operations they started may still be reattached.
        let tokens = self.store.recent_tokens(&session.key()).await;
        for token in tokens.map_err(crate::error::store)? {
            if token.subject == *subject {
                let until = token.expires_at.after(self.afterlife);
                self.apply(session, &Event::RevokeToken { id: token.id, until }, actor)
                    .await?;
            }
        }
        Ok(())
    }

    async fn apply(&self, session: &Session, event: &Event, actor: &Actor) -> Result<(), Refused> {
        let key = session.key();
        match self.reconciler.apply(&key, event, actor, |_| Ok(())).await {
            Ok(_) => {
                self.reconciler.enqueue(key);
                Ok(())
            }
            // It has ended already.
            Err(refused)
                if matches!(
                    refused.reason,
                    Reason::SessionClosed | Reason::SessionFailed | Reason::NotAuthorized
                ) =>
            {
                Ok(())
            }
            Err(refused) => Err(refused),
        }
    }
}

fn is_race(refused: &Refused) -> bool {
    matches!(refused.reason, Reason::Conflict | Reason::AlreadyExists)
}

fn keeps_changing() -> Refused {
    Refused::new(Reason::Conflict, "It keeps changing. Try again.")
}
