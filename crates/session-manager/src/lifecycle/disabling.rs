//! Shutting out an organization, or one principal of it.
//!
//! What is disabled is a definition of its own. From the moment it is written
//! every call is refused, and every look at a session of theirs closes it
//! (`driver`), so also one that was created in that moment. Sessions that
//! nobody need look at for hours are found by a pass over the live ones: by
//! whoever disabled them, and by any manager again until a pass came to its
//! end. So a crash half-way leaves nothing open.

use crate::definitions::{Defined, DefinitionStore, ResolvedDefinitions};
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
/// Of these, so many are closed at once.
const TOGETHER: usize = 32;
/// How often passes that came to no end are looked for.
const SWEEP: Duration = Duration::from_secs(5);
/// How often a lost race is run again.
const RACES: usize = 8;

impl Defined for Disabled {
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

/// An organization's name has no slash, so the two forms never meet.
fn name(org: &OrgId, principal: Option<&PrincipalId>) -> String {
    principal.map_or_else(|| org.to_string(), |principal| format!("{org}/{principal}"))
}

/// Whether a principal, or all of its organization, is shut out.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    pub(crate) org: Option<Disabled>,
    pub(crate) principal: Option<Disabled>,
}

impl Standing {
    fn names(org: &OrgId, principal: &PrincipalId) -> [(Kind, String); 2] {
        [name(org, None), name(org, Some(principal))].map(|name| (Kind::Disabled, name))
    }

    fn of(found: &mut ResolvedDefinitions) -> Result<Self, Error> {
        Ok(Self {
            org: found.next()?,
            principal: found.next()?,
        })
    }

    /// Why a session of this owner may not go on, and by whom.
    pub(crate) fn closes(&self) -> Option<(ChangeReason, Actor)> {
        let by = |disabled: &Disabled| Actor::Principal(disabled.by.clone());
        let org = self.org.as_ref().map(|org| (ChangeReason::OrgDisabled, by(org)));
        let owner = self.principal.as_ref();
        org.or_else(|| owner.map(|owner| (ChangeReason::OwnerDisabled, by(owner))))
    }
}

impl DefinitionStore {
    pub(crate) async fn standing(&self, org: &OrgId, principal: &PrincipalId) -> Result<Standing, Error> {
        let wanted = Standing::names(org, principal);
        Standing::of(&mut self.some(&wanted).await?)
    }

    /// What a session hangs on: its cluster, if that still exists, and how its
    /// owner stands.
    pub(crate) async fn ground_of(&self, session: &Session) -> Result<(Option<Cluster>, Standing), Error> {
        let [org, owner] = Standing::names(&session.org, &session.owner);
        let cluster = (Kind::Cluster, session.cluster.to_string());
        let mut found = self.some(&[cluster, org, owner]).await?;
        Ok((found.next()?, Standing::of(&mut found)?))
    }

    pub(crate) async fn is_disabled(&self, org: &OrgId) -> Result<bool, Error> {
        Ok(self.get::<Disabled>(&name(org, None)).await?.is_some())
    }
}

/// Disables and enables.
#[derive(Debug)]
pub(crate) struct Disabling {
    store: Arc<dyn SessionStore>,
    definitions: DefinitionStore,
    reconciler: Arc<Reconciler>,
    /// How long after its end a token might be accepted somewhere.
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

    /// Closes what is live of who is disabled; the number of sessions closed.
    /// Goes on when the caller leaves.
    pub(crate) async fn close(self: &Arc<Self>, disabled: Disabled) -> Result<u32, Refused> {
        let this = Arc::clone(self);
        let pass = tokio::spawn(async move { this.close_all(&disabled).await });
        pass.await.unwrap_or_else(|error| {
            tracing::error!(%error, "closing the sessions of who was disabled broke off");
            Err(Refused::new(
                Reason::Internal,
                "It is disabled, and its sessions are still being closed. Repeat the call to hear of the end.",
            ))
        })
    }

    /// Writes it down: from now on it is in force.
    pub(crate) async fn write(&self, wanted: Disabled) -> Result<Disabled, Refused> {
        for _ in 0..RACES {
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
                        actor = %disabled.by, "disabled"
                    );
                    return Ok(disabled);
                }
                Err(refused) if is_race(&refused) => {}
                Err(refused) => return Err(refused),
            }
        }
        Err(keeps_changing())
    }

    /// Lets it in again, if `may` allows to undo what is written; fine if it is not disabled.
    pub(crate) async fn enable(
        &self,
        org: &OrgId,
        principal: Option<&PrincipalId>,
        may: impl Fn(&Disabled) -> bool,
    ) -> Result<(), Refused> {
        for _ in 0..RACES {
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

    /// Takes up passes that came to no end, until `stop`.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(SWEEP) => {}
            }
            if let Err(error) = self.sweep().await {
                tracing::warn!(
                    error = error.message,
                    "sessions of who is disabled cannot be closed yet"
                );
            }
        }
    }

    async fn sweep(&self) -> Result<(), Refused> {
        let shares = self.definitions.shares::<Disabled>().await;
        for share in shares.map_err(crate::error::store)? {
            let all = self.definitions.all_of::<Disabled>(share.as_ref()).await;
            for disabled in all.map_err(crate::error::store)? {
                if !disabled.settled {
                    self.close_all(&disabled).await?;
                }
            }
        }
        Ok(())
    }

    /// One pass over the organization's live sessions. At its end nothing is
    /// left of what was live at its beginning, and whatever came later is
    /// closed by the look that every new session gets.
    async fn close_all(&self, disabled: &Disabled) -> Result<u32, Refused> {
        let mut query = ListQuery::live_of_org(disabled.org.clone(), PAGE);
        let mut closed = 0;
        loop {
            let stored = self.definitions.get::<Disabled>(&disabled.name()).await;
            // Enabled meanwhile: what is left lives on.
            let Some(stored) = stored.map_err(crate::error::store)? else {
                return Ok(closed);
            };
            let page = self.store.list(&query).await.map_err(crate::error::store)?;
            let outcomes: Vec<_> = stream::iter(page.sessions)
                .map(|session| self.shut(disabled, session))
                .buffer_unordered(TOGETHER)
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
            // Somebody else did, or it was enabled.
            Err(refused) if is_race(&refused) => Ok(()),
            Err(refused) => Err(refused),
        }
    }

    /// Closes a session of theirs. Of others' sessions, takes back their tokens.
    async fn shut(&self, disabled: &Disabled, session: Session) -> Result<bool, Refused> {
        let actor = Actor::Principal(disabled.by.clone());
        let reason = match &disabled.principal {
            None => ChangeReason::OrgDisabled,
            Some(principal) if session.owner == *principal => ChangeReason::OwnerDisabled,
            Some(principal) => {
                self.revoke(&session, principal, &actor).await?;
                return Ok(false);
            }
        };
        self.tell(&session, &Event::Close { reason }, &actor).await?;
        Ok(true)
    }

    async fn revoke(&self, session: &Session, subject: &PrincipalId, actor: &Actor) -> Result<(), Refused> {
        // Also those that expired: what they began runs on, and may be reattached.
        let tokens = self.store.recent_tokens(&session.key()).await;
        for token in tokens.map_err(crate::error::store)? {
            if token.subject == *subject {
                let until = token.expires_at.after(self.afterlife);
                self.tell(session, &Event::RevokeToken { id: token.id, until }, actor)
                    .await?;
            }
        }
        Ok(())
    }

    async fn tell(&self, session: &Session, event: &Event, actor: &Actor) -> Result<(), Refused> {
        let key = session.key();
        match self.reconciler.ask(&key, event, actor, |_| Ok(())).await {
            Ok(_) => {
                self.reconciler.enqueue(key);
                Ok(())
            }
            // It ended by itself.
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
