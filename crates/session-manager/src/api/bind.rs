//! Binding a Spark session on a shared server to a session: the first one that
//! uses an id has it. When the answer is yes, the session's default catalog is
//! current there.

use super::Api;
use compute::{CatalogSelection, ComputeSpec};
use session_core::machine::{Cause, Event};
use session_core::{Actor, Engine, Reason, Route, Session, SparkSessionId};
use session_proto::error::Refused;
use session_store::spark_bindings::{Bind, Binding, Bound, SparkSession};
use std::sync::Arc;
use std::time::Duration;

/// The most Spark sessions of one session; the least recently bound makes room.
const MOST: usize = 256;
/// What a preparer has: longer than choosing a catalog may take, and the calls
/// to the store around it.
const PREPARE: Duration = Duration::from_secs(15);
/// No bind takes longer.
const LIMIT: Duration = Duration::from_secs(25);
/// When to try again while too many are under way.
const RETRY: Duration = Duration::from_secs(2);
/// How often one who waits for another's preparation looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

const _: () = assert!(PREPARE.as_secs() > compute::shared_servers::SELECT_CATALOG_TIMEOUT.as_secs());

/// Binds `id` on the server of `route` to `session`; false if another session
/// has it. Goes on when the caller leaves, so that nothing is left half done.
/// What is `cloned` has the catalog of what it was cloned from.
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
        .retry_after(RETRY));
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
            prepare: (session.catalog.is_some() && !cloned).then_some(PREPARE),
            limit: MOST,
        },
        session,
    };
    let work = tokio::spawn(async move {
        let _permit = permit;
        let late = wanted.late();
        tokio::time::timeout(LIMIT, wanted.bind())
            .await
            .unwrap_or(Err(late))
    });
    work.await.unwrap_or_else(|error| {
        tracing::error!(%error, "a bind broke off");
        Err(Refused::new(
            Reason::Internal,
            "The Spark session could not be bound. Try again; if it stays so, tell your platform team.",
        ))
    })
}

/// A session in a state in which it has no server now: ask for its route again.
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

/// What became of a preparation.
enum Prepared {
    Bound,
    /// The binding went to somebody else meanwhile, or away.
    Lost,
}

impl Wanted {
    async fn bind(&self) -> Result<bool, Refused> {
        let mut touched = false;
        loop {
            let bound = self.api.store.bind(&self.bind).await;
            match bound.map_err(crate::error::store)? {
                Bound::Ready => return Ok(true),
                Bound::Taken => return Ok(false),
                Bound::Wait => tokio::time::sleep(LOOK_AGAIN).await,
                Bound::Release(binding) => self.make_room(&binding).await?,
                Bound::Prepare => match self.prepare().await? {
                    Prepared::Bound => return Ok(true),
                    Prepared::Lost => touched = true,
                },
                Bound::Sealed => {
                    if touched {
                        self.clean_up().await?;
                    }
                    return Err(self.over().await?);
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

    /// Makes the default catalog current, and the binding ready.
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
            // The server will have no Spark session of this id: the client
            // hears so from it, and makes another one.
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
                "the default catalog cannot be chosen"
            );
            self.unusable(&cause)
        })
    }

    /// Gives one of the session's own Spark sessions back. Its proxies are told
    /// first, so that none goes on with it.
    async fn make_room(&self, binding: &Binding) -> Result<(), Refused> {
        if binding.generation == self.session.generation {
            let key = self.session.key();
            let told = self
                .api
                .reconciler
                .ask(&key, &Event::ReleaseSparkSession, &Actor::System, |_| Ok(()));
            told.await?;
        }
        let spec = self.spec().await?;
        let given_back = self.api.reconciler.bindings.give_back_one(&spec, binding).await;
        if given_back.map_err(crate::error::store)? {
            return Ok(());
        }
        Err(Refused::new(
            Reason::BackendUnavailable,
            "The session's server does not answer, and an older Spark session must be released there first. \
             Try again shortly.",
        ))
    }

    /// The session ended while its catalog was being chosen, so a Spark session
    /// may have come to be after all were ended. Spark finds it by our user
    /// alone; on Sail an ended id stays ended.
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
                tracing::warn!(session = %self.session.id, %error, "a late Spark session was not ended");
            }
        }
        Ok(())
    }

    /// Why the session takes no more bindings.
    async fn over(&self) -> Result<Refused, Refused> {
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

    fn late(&self) -> Refused {
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
