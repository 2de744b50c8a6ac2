//! Deletes workers without use, in case Kubernetes does not: those
//! whose driver does not exist, and those that ended some time ago, which Sail
//! leaves behind while its driver runs.
//!
//! A worker is only an orphan by the API server's own answer, and is deleted by
//! its uid, so any number of managers may do this at once.

use crate::kubernetes::Shared;
use crate::kubernetes::names::{Owner, pod_name};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use std::collections::HashMap;
use std::sync::Weak;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// An orphan is gone after one interval and the time of a few calls.
const SWEEP_INTERVAL: Duration = Duration::from_secs(20);
/// Time for which an ended worker is kept, so that its log can be read.
const KEEP_ENDED: SignedDuration = SignedDuration::from_mins(10);
/// Pods that one sweep deletes; the next one continues.
const MAX_DELETES: usize = 200;

/// Sweeps a namespace until `stop`.
pub(in super::super) async fn sweep_workers(
    shared: Weak<Shared>,
    namespace: String,
    stop: CancellationToken,
) {
    let mut ticks = interval(SWEEP_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let Some(shared) = shared.upgrade() else {
            return;
        };
        match stop.run_until_cancelled(sweep(&shared, &namespace)).await {
            Some(Err(error)) => tracing::debug!(namespace, %error, "sweep of workers failed"),
            Some(Ok(deleted)) if deleted > 0 => {
                tracing::info!(namespace, deleted, "workers without a driver or work deleted");
            }
            Some(Ok(_)) => {}
            None => return,
        }
    }
}

/// Returns how many workers it deleted.
async fn sweep(shared: &Shared, namespace: &str) -> Result<usize, kube::Error> {
    let workers = shared.api.workers(namespace, &shared.config.install_id).await?;
    let mut drivers = HashMap::new();
    let mut deleted = 0;
    let mut failed = None;
    for worker in &workers {
        if worker.metadata.deletion_timestamp.is_some() || deleted >= MAX_DELETES {
            continue;
        }
        let (Some(name), Some(uid)) = (&worker.metadata.name, &worker.metadata.uid) else {
            continue;
        };
        if has_ended(worker, Timestamp::now()) || is_orphan(shared, namespace, worker, &mut drivers).await? {
            // One that cannot be deleted does not keep the others.
            match shared.api.delete_pod(namespace, name, Some(uid)).await {
                Ok(_) => deleted += 1,
                Err(error) => failed = Some(error),
            }
        }
    }
    failed.map_or(Ok(deleted), Err)
}

/// Whether the driver of a worker does not exist. `drivers` are the answers so
/// far: name and uid.
async fn is_orphan(
    shared: &Shared,
    namespace: &str,
    worker: &Pod,
    drivers: &mut HashMap<String, Option<String>>,
) -> Result<bool, kube::Error> {
    let Some(owner) = worker.metadata.labels.as_ref().and_then(Owner::of_worker) else {
        return Ok(false);
    };
    let driver = pod_name(&owner.key.id, owner.generation);
    let uid = match drivers.get(&driver) {
        Some(uid) => uid.clone(),
        None => {
            let pod = shared.api.pod(namespace, &driver).await?;
            let uid = pod.and_then(|pod| pod.metadata.uid);
            drivers.insert(driver.clone(), uid.clone());
            uid
        }
    };
    let owners = worker.metadata.owner_references.as_deref().unwrap_or_default();
    let is_owned = |uid: &String| owners.is_empty() || owners.iter().any(|own| own.uid == *uid);
    Ok(!uid.as_ref().is_some_and(is_owned))
}

/// Whether every container of a worker ended long ago.
fn has_ended(worker: &Pod, now: Timestamp) -> bool {
    let Some(status) = &worker.status else {
        return false;
    };
    if !matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return false;
    }
    let ends = status.container_statuses.iter().flatten().map(|container| {
        let ended = container.state.as_ref()?.terminated.as_ref()?;
        Some(ended.finished_at.as_ref()?.0)
    });
    let created = worker.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let last = ends.map(|end| end.or(created)).max().flatten().or(created);
    last.is_some_and(|last| now.duration_since(last) > KEEP_ENDED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn worker(phase: &str, finished: &str) -> Pod {
        let state = json!({"terminated": {"exitCode": 0, "finishedAt": finished}});
        let status = json!({"phase": phase, "containerStatuses": [{
            "name": "worker", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": state
        }]});
        let metadata = json!({"name": "w", "creationTimestamp": "2026-01-01T00:00:00Z"});
        serde_json::from_value(json!({"metadata": metadata, "status": status})).unwrap()
    }

    #[test]
    fn only_workers_that_ended_long_ago_have_ended() {
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        for (phase, finished, wanted) in [
            ("Succeeded", "2026-01-01T00:49:59Z", true),
            ("Failed", "2026-01-01T00:49:59Z", true),
            ("Succeeded", "2026-01-01T00:50:01Z", false),
            ("Running", "2026-01-01T00:10:00Z", false),
        ] {
            assert_eq!(
                has_ended(&worker(phase, finished), now),
                wanted,
                "{phase} {finished}"
            );
        }
        let evicted =
            json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "status": {"phase": "Failed"}});
        assert!(has_ended(&serde_json::from_value(evicted).unwrap(), now));
    }
}
