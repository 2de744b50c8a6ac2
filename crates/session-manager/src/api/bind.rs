//! Binding of Spark sessions on shared servers: an id belongs to the first session
//! that uses it. The session's default catalog is current in a bound Spark session.

use super::Api;
use compute::{CatalogSelection, ComputeSpec};
use session_core::machine::{Cause, Event};
use session_core::{Actor, Engine, Reason, Route, Session, SparkSessionId};
use session_proto::error::Refused;
use session_store::spark_bindings::{Bind, Binding, Bound, SparkSession};
use std::sync::Arc;
use std::time::Duration;

/// Spark sessions of one session; above it the least recently bound one is ended.
const MAX_BINDINGS: usize = 256;
/// Lease of a preparation: longer than the choice of a catalog with the store
/// calls around it.
const PREPARATION_LEASE: Duration = Duration::from_secs(15);
/// Time limit of a bind.
const BIND_TIMEOUT: Duration = Duration::from_secs(25);
/// Retry delay of a caller when too many binds are in progress.
const RETRY_DELAY: Duration = Duration::from_secs(2);
/// Time between two checks for the end of another manager's preparation.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

const _: () =
    assert!(PREPARATION_LEASE.as_secs() > compute::shared_servers::SELECT_CATALOG_TIMEOUT.as_secs());

/// Binds `id` on the server of `route` to `session`; false if another session
/// has it. Continues if the caller disconnects, so that no bind stays incomplete.
/// A `cloned` Spark session has the catalog of its origin already.
pub(crate) async fn bind(
    api: &Arc<Api>,
    session: Session,
    route: &Route,
    id: SparkSessionId,
    cloned: bool,
) -> Result<bool, Refused> {
    let Ok(permit) = Arc::clone(&api.reconciler.bindings.binds).try_acquire_owned() else {
        return Err(Refused::new(
            Reason::TooManyWaiting,
            "Too many Spark sessions are being made ready at the moment. Try again shortly.",
        )
        .retry_after(RETRY_DELAY));
    };
    let wanted = Wanted {
        api: Arc::clone(api),
        bind: Bind {
            spark: SparkSession {
                server: route.endpoint.to_ascii_lowercase(),
                id,
            },
            holder: session.key(),
            generation: session.generation,
            ticket: format!("{:016x}", rand::random::<u64>()),
            prepare: (session.catalog.is_some() && !cloned).then_some(PREPARATION_LEASE),
            limit: MAX_BINDINGS,
        },
        session,
    };
    let work = tokio::spawn(async move {
        let _permit = permit;
        let timed_out = wanted.timed_out();
        tokio::time::timeout(BIND_TIMEOUT, wanted.bind())
            .await
            .unwrap_or(Err(timed_out))
    });
    work.await.unwrap_or_else(|error| {
        tracing::error!(%error, "binding a Spark session aborted");
        Err(Refused::new(
            Reason::Internal,
            "The Spark session could not be bound. Try again; if it stays so, tell your platform team.",
        ))
    })
}

/// The error for a session without a server at present: the proxy must resolve its
/// route again.
pub(crate) fn changing(session: &Session) -> Refused {
    Refused::new(
        Reason::SessionWarming,
        format!("Session {} is being made ready. Try again shortly.", session.id),
    )
}

struct Wanted {
    api: Arc<Api>,
    session: Session,
    bind: Bind,
}

/// Outcome of a preparation.
enum Prepared {
    Bound,
    /// The binding was removed or given to another session in the meantime.
    Lost,
}

impl Wanted {
    async fn bind(&self) -> Result<bool, Refused> {
        let mut may_exist = false;
        loop {
            let bound = self.api.store.bind(&self.bind).await;
            match bound.map_err(crate::error::store)? {
                Bound::Ready => return Ok(true),
                Bound::Taken => return Ok(false),
                Bound::Wait => tokio::time::sleep(POLL_INTERVAL).await,
                Bound::Release(binding) => self.make_room(&binding).await?,
                Bound::Prepare => match self.prepare().await? {
                    Prepared::Bound => return Ok(true),
                    Prepared::Lost => may_exist = true,
                },
                Bound::Sealed => {
                    if may_exist {
                        self.clean_up().await?;
                    }
                    return Err(self.sealed_error().await?);
                }
            }
        }
    }

    async fn spec(&self) -> Result<ComputeSpec, Refused> {
        let definitions = &self.api.definitions;
        let cluster = definitions.cluster(&self.session.cluster).await;
        let cluster = cluster.map_err(crate::error::store)?.ok_or_else(|| {
            let text = format!("The cluster {} no longer exists.", self.session.cluster);
            Refused::new(Reason::ClusterNotActive, text)
        })?;
        let catalog = match &self.session.catalog {
            None => None,
            Some(name) => definitions
                .catalog(&self.session.org, name)
                .await
                .map_err(crate::error::store)?,
        };
        Ok(ComputeSpec {
            key: self.session.key(),
            generation: self.session.generation,
            cluster,
            catalog,
        })
    }

    /// Makes the default catalog current and the binding ready.
    async fn prepare(&self) -> Result<Prepared, Refused> {
        let outcome = self.choose().await;
        let ready = matches!(outcome, Ok(CatalogSelection::Current));
        let Bind {
            holder,
            spark,
            ticket,
            ..
        } = &self.bind;
        let ours = self
            .api
            .store
            .finish_preparation(holder, spark, ticket, ready)
            .await;
        match (outcome, ours) {
            (Err(refused), _) => Err(refused),
            (Ok(_), Err(error)) => Err(crate::error::store(error)),
            (Ok(_), Ok(false)) => Ok(Prepared::Lost),
            // The server has no Spark session of this id any more: it reports so to the
            // client, which creates another one.
            (Ok(CatalogSelection::Current | CatalogSelection::Ended), Ok(true)) => Ok(Prepared::Bound),
        }
    }

    async fn choose(&self) -> Result<CatalogSelection, Refused> {
        let spec = self.spec().await?;
        if spec.catalog.is_none() && self.session.catalog.is_some() {
            return Err(self.unusable(&Cause::from("it no longer exists")));
        }
        let SparkSession { server, id } = &self.bind.spark;
        let shared = self.api.computes.shared(&spec.cluster);
        let shared = shared.map_err(|error| self.unusable(&Cause::from(error.to_string())))?;
        shared.select_catalog(&spec, server, id).await.map_err(|cause| {
            tracing::warn!(
                session = %self.session.id, cause = cause.text, detail = cause.detail,
                "choosing the default catalog failed"
            );
            self.unusable(&cause)
        })
    }

    /// Releases one of the session's Spark sessions. Proxies are notified first, so
    /// that none continues to use it.
    async fn make_room(&self, binding: &Binding) -> Result<(), Refused> {
        if binding.generation == self.session.generation {
            let key = self.session.key();
            let event = Event::ReleaseSparkSession;
            let reconciler = &self.api.reconciler;
            reconciler.apply(&key, &event, &Actor::System, |_| Ok(())).await?;
        }
        let spec = self.spec().await?;
        let released = self.api.reconciler.bindings.release_one(&spec, binding).await;
        if released.map_err(crate::error::store)? {
            return Ok(());
        }
        Err(Refused::new(
            Reason::BackendUnavailable,
            "The session's server does not answer, and an older Spark session must be released there first. \
             Try again shortly.",
        ))
    }

    /// Ends the Spark session if the session ended during the choice of its catalog,
    /// which may have created it after all others were ended. On Sail an ended id
    /// stays ended, so nothing remains.
    async fn clean_up(&self) -> Result<(), Refused> {
        let spec = self.spec().await?;
        if spec.cluster.engine == Engine::Spark {
            let SparkSession { server, id } = &self.bind.spark;
            let ended = match self.api.computes.shared(&spec.cluster) {
                Ok(shared) => {
                    shared
                        .end_spark_sessions(&spec, server, std::slice::from_ref(id))
                        .await
                }
                Err(error) => Err(error),
            };
            if let Err(error) = ended {
                tracing::warn!(session = %self.session.id, %error, "ending a Spark session of an ended session failed");
            }
        }
        Ok(())
    }

    /// The error for a session that accepts no more bindings.
    async fn sealed_error(&self) -> Result<Refused, Refused> {
        let now = self.api.store.get(&self.session.key()).await;
        let now = now.map_err(crate::error::store)?;
        Ok(match now {
            Some(session) if session.status().is_terminal() => crate::error::ended_for_spark(&session),
            Some(_) | None => changing(&self.session),
        })
    }

    fn unusable(&self, cause: &Cause) -> Refused {
        let catalog = self
            .session
            .catalog
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default();
        Refused::new(
            Reason::CatalogUnavailable,
            format!(
                "The default catalog {catalog} cannot be used on this session's server: {}. \
                 Try again; if it stays so, ask your platform team, or create a session without it.",
                cause.text
            ),
        )
    }

    fn timed_out(&self) -> Refused {
        if self.session.catalog.is_some() {
            self.unusable(&Cause::from("choosing it takes too long"))
        } else {
            Refused::new(
                Reason::BackendUnavailable,
                "Binding the Spark session takes too long. Try again shortly.",
            )
        }
    }
}
