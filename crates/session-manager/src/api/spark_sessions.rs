//! Spark sessions on dedicated compute: their settings survive a replacement of the
//! compute.
//!
//! Settings that a client changed are stored when the engine has accepted them, and
//! applied again before the first call on the next generation. One manager at a
//! time, by a lease, applies the settings of a Spark session and then records its
//! use on that generation. After a crash in between they are applied once more,
//! which is idempotent.

use super::{Api, bind};
use session_core::{PrincipalId, Reason, Route, Session, SparkSessionId, WakePolicy};
use session_proto::error::Refused;
use session_proto::internal as wire;
use session_store::spark_sessions::{SettingsChange, SparkSessionUse};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Time limit of a call that waits for settings to be applied.
const APPLY_TIMEOUT: Duration = Duration::from_secs(20);
/// Lease of the manager that applies them: longer than that takes.
const LEASE: Duration = Duration::from_secs(15);
/// Time between two attempts to acquire the lease.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Settings that one change may contain.
const MAX_CHANGED: usize = 256;

/// The Spark sessions with settings of an earlier generation, for the route.
pub(super) async fn outdated(api: &Api, session: &Session) -> Result<Vec<String>, Refused> {
    if session.generation == 1 || session.policy.wake != WakePolicy::Restore {
        return Ok(Vec::new());
    }
    let kept = api.store.spark_sessions(&session.key()).await;
    let kept = kept.map_err(crate::error::store)?.into_iter();
    Ok(kept
        .filter(|(_, kept)| kept.generation < session.generation && !kept.settings.is_empty())
        .map(|(id, _)| id.to_string())
        .collect())
}

/// Serves `BindSparkSession` for dedicated compute.
pub(super) async fn bind(
    api: &Arc<Api>,
    session: &Session,
    route: &Route,
    user: &PrincipalId,
    id: SparkSessionId,
    request: &wire::BindSparkSessionRequest,
) -> Result<wire::BindSparkSessionResponse, Refused> {
    if !request.set.is_empty() || !request.unset.is_empty() {
        return keep(api, session, id, request).await;
    }
    let moved = tokio::time::timeout(APPLY_TIMEOUT, move_to_generation(api, session, route, user, &id));
    let moved = moved.await.unwrap_or_else(|_| Err(bind::changing(session)))?;
    Ok(wire::BindSparkSessionResponse {
        bound: true,
        replaced: moved == SparkSessionUse::Moved,
        not_kept: false,
    })
}

async fn keep(
    api: &Api,
    session: &Session,
    id: SparkSessionId,
    request: &wire::BindSparkSessionRequest,
) -> Result<wire::BindSparkSessionResponse, Refused> {
    let bound = |not_kept| wire::BindSparkSessionResponse {
        bound: true,
        replaced: false,
        not_kept,
    };
    if request.set.len() + request.unset.len() > MAX_CHANGED {
        return Ok(bound(true));
    }
    let change = SettingsChange {
        spark_session: id,
        generation: request.generation,
        set: request
            .set
            .iter()
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect(),
        unset: request.unset.clone(),
    };
    let kept = api.store.store_settings(&session.key(), &change).await;
    Ok(bound(!kept.map_err(crate::error::store)?))
}

/// Applies the stored settings of a Spark session on the session's generation and
/// records its use there.
async fn move_to_generation(
    api: &Api,
    session: &Session,
    route: &Route,
    user: &PrincipalId,
    id: &SparkSessionId,
) -> Result<SparkSessionUse, Refused> {
    let (key, generation) = (session.key(), session.generation);
    let name = format!("spark-settings:{}:{id}", key.id);
    let holder = format!("{:016x}", rand::random::<u64>());
    let move_it = async || {
        let used = api.store.use_spark_session(&key, id, generation).await;
        used.map_err(crate::error::store)
    };
    loop {
        if outdated_settings(api, session, id).await?.is_none() {
            return move_it().await;
        }
        let leased = api.store.acquire_lease(&name, &holder, LEASE).await;
        if leased.map_err(crate::error::store)?.is_none() {
            tokio::time::sleep(POLL_INTERVAL).await;
            continue;
        }
        let work = async {
            // Read under the lease: another manager may have applied them since, and a client
            // may have changed them on this generation after that.
            if let Some(settings) = outdated_settings(api, session, id).await? {
                apply(api, session, route, user, id, &settings).await?;
            }
            move_it().await
        };
        let used = work.await;
        // If this fails, the lease expires.
        let _ = api.store.release_lease(&name, &holder).await;
        return used;
    }
}

/// The settings of a Spark session if they must be applied again.
async fn outdated_settings(
    api: &Api,
    session: &Session,
    id: &SparkSessionId,
) -> Result<Option<BTreeMap<String, String>>, Refused> {
    let kept = api.store.spark_sessions(&session.key()).await;
    let mut kept = kept.map_err(crate::error::store)?;
    Ok(kept
        .remove(id)
        .filter(|kept| kept.generation < session.generation && applies(session))
        .map(|kept| kept.settings))
}

fn applies(session: &Session) -> bool {
    match session.policy.wake {
        WakePolicy::Restore => true,
        // The client creates a new Spark session.
        WakePolicy::Signal => false,
    }
}

async fn apply(
    api: &Api,
    session: &Session,
    route: &Route,
    user: &PrincipalId,
    id: &SparkSessionId,
    settings: &BTreeMap<String, String>,
) -> Result<(), Refused> {
    if settings.is_empty() {
        return Ok(());
    }
    let cluster = api.definitions.cluster(&session.cluster).await;
    let cluster = cluster
        .map_err(crate::error::store)?
        .ok_or_else(|| bind::changing(session))?;
    let target = api.computes.target(&cluster, route);
    let applied = match target {
        Ok(target) => compute::settings::apply(&target, user.as_str(), id, settings).await,
        Err(cause) => Err(cause),
    };
    match applied {
        Ok(refused) if refused.is_empty() => {}
        Ok(refused) => tracing::warn!(
            session = %session.id, spark_session = %id, settings = ?refused,
            "the engine rejected stored settings of a Spark session"
        ),
        Err(cause) => {
            tracing::warn!(
                session = %session.id, spark_session = %id, cause = cause.text, detail = cause.detail,
                "applying stored settings failed"
            );
            return Err(Refused::new(
                Reason::BackendUnavailable,
                format!(
                    "The settings of your Spark session cannot be applied again on the session's new compute: {}. \
                     Nothing was run. Try again shortly.",
                    cause.text
                ),
            ));
        }
    }
    Ok(())
}
