//! Several pods of one session generation: which one stays, and the end of the others.
//!
//! Managers that start one generation at once can each claim or create a pod. Each
//! looks for another one after its own write. If one of them gets no answer then, or
//! dies, two pods are left. So every manager also sweeps the pods that its watches
//! show. A second pod is one only by the API server's own answer, and is deleted by
//! its uid, so any number of managers may do this at once.

use super::Shared;
use super::names::{CLAIMED_ANNOTATION, Owner};
use super::watcher::Pods;
use crate::{ComputeSpec, Error};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Weak;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// A second pod is gone after two intervals and the time of a few calls.
const SWEEP_INTERVAL: Duration = Duration::from_secs(15);
/// Within this time those that made the pods find each other's themselves.
const SETTLE: SignedDuration = SignedDuration::from_secs(5);
/// Pods that one sweep deletes; the next one continues.
const MAX_DELETES: usize = 200;
/// Times of creation are whole seconds, those of claims are exact. A pod that may have
/// been made after a claim counts as made after it.
const CREATION_PRECISION: SignedDuration = SignedDuration::from_secs(1);

/// Order of the pods of one generation; the first one stays. It is the one that has
/// belonged to the session for longest, so a pod that serves the session is not
/// deleted because of a later one. All managers agree on it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank(Timestamp, String);

impl Rank {
    pub(super) fn of(pod: &Pod) -> Self {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        Self(since(pod).unwrap_or(Timestamp::MAX), uid)
    }
}

/// Since when a pod has belonged to its session: its claim, or its creation.
fn since(pod: &Pod) -> Option<Timestamp> {
    let annotations = pod.metadata.annotations.as_ref();
    let claimed = annotations.and_then(|all| all.get(CLAIMED_ANNOTATION)?.parse().ok());
    claimed.or_else(|| {
        let created = pod.metadata.creation_timestamp.as_ref()?.0;
        created.checked_add(CREATION_PRECISION).ok()
    })
}

/// A pod of a generation, as a watch shows it.
struct Member {
    owner: Owner,
    namespace: String,
    /// It has belonged to its session for longer than [`SETTLE`].
    is_settled: bool,
}

pub(super) fn is_live(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none()
}

/// Deletes second pods until `stop`.
pub(super) async fn sweep_duplicates(shared: Weak<Shared>, stop: CancellationToken) {
    let mut ticks = interval(SWEEP_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let Some(shared) = shared.upgrade() else {
            return;
        };
        match stop.run_until_cancelled(shared.delete_duplicates()).await {
            Some(Err(error)) => tracing::debug!(%error, "sweep of second pods failed; it is repeated"),
            Some(Ok(())) => {}
            None => return,
        }
    }
}

impl Shared {
    /// Whether the pod `uid` is the one that stays, if several have this session
    /// generation by the API server's own answer.
    pub(super) async fn stays(&self, namespace: &str, spec: &ComputeSpec, uid: &str) -> Result<bool, Error> {
        let pods = self.api.pods_of(namespace, &spec.key, spec.generation).await;
        let pods = pods.map_err(|error| Error::Unavailable(error.to_string()))?;
        let first = pods
            .iter()
            .filter(|pod| is_live(pod))
            .min_by_key(|pod| Rank::of(pod));
        Ok(first.is_none_or(|pod| pod.metadata.uid.as_deref() == Some(uid)))
    }

    /// Whether another pod than `uid` has this session generation, by the API
    /// server's own answer; the pod that is being deleted does not count.
    pub(super) async fn has_rival(
        &self,
        namespace: &str,
        spec: &ComputeSpec,
        uid: &str,
    ) -> Result<bool, Error> {
        let pods = self.api.pods_of(namespace, &spec.key, spec.generation).await;
        let pods = pods.map_err(|error| Error::Unavailable(error.to_string()))?;
        Ok(pods
            .iter()
            .any(|pod| is_live(pod) && pod.metadata.uid.as_deref() != Some(uid)))
    }

    /// One sweep.
    ///
    /// # Errors
    /// The last error; one generation does not keep the others.
    async fn delete_duplicates(&self) -> Result<(), kube::Error> {
        let mut deleted = 0;
        let mut failed = None;
        for (owner, namespaces) in self.duplicated(Timestamp::now()) {
            if deleted >= MAX_DELETES {
                break;
            }
            match self.delete_all_but_one(&owner, &namespaces).await {
                Ok(count) => deleted += count,
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// The generations that have several pods as the watches show them, with the
    /// namespaces of the pods; without those whose pods are still being sorted out.
    fn duplicated(&self, now: Timestamp) -> Vec<(Owner, BTreeSet<String>)> {
        let mut all: BTreeMap<(String, u64), Vec<Member>> = BTreeMap::new();
        for pod in self.namespaces.values().flat_map(Pods::all) {
            let Some(owner) = pod.metadata.labels.as_ref().and_then(Owner::read) else {
                continue;
            };
            if is_live(&pod) {
                let id = (owner.key.id.to_string(), owner.generation);
                let namespace = pod.metadata.namespace.clone().unwrap_or_default();
                let is_settled = since(&pod).is_some_and(|at| now.duration_since(at) > SETTLE);
                all.entry(id).or_default().push(Member {
                    owner,
                    namespace,
                    is_settled,
                });
            }
        }
        all.into_values()
            .filter(|pods| pods.len() > 1 && pods.iter().all(|pod| pod.is_settled))
            .filter_map(|pods| {
                let owner = pods.first()?.owner.clone();
                Some((owner, pods.into_iter().map(|pod| pod.namespace).collect()))
            })
            .collect()
    }

    /// Returns how many pods it deleted.
    async fn delete_all_but_one(
        &self,
        owner: &Owner,
        namespaces: &BTreeSet<String>,
    ) -> Result<usize, kube::Error> {
        let mut live = Vec::new();
        for namespace in namespaces {
            let pods = self.api.pods_of(namespace, &owner.key, owner.generation).await?;
            let own = pods.into_iter().filter(|pod| {
                let labels = pod.metadata.labels.as_ref();
                let install_id = labels.and_then(Owner::read).map(|own| own.install_id);
                is_live(pod) && install_id.as_ref() == Some(&owner.install_id)
            });
            live.extend(own.map(|pod| (namespace, pod)));
        }
        live.sort_by_cached_key(|(_, pod)| Rank::of(pod));
        let mut deleted = 0;
        for (namespace, pod) in live.iter().skip(1) {
            let (name, uid) = (pod.metadata.name.as_deref(), pod.metadata.uid.as_deref());
            let (Some(name), Some(uid)) = (name, uid) else {
                continue;
            };
            self.api.delete_pod(namespace, name, Some(uid)).await?;
            tracing::warn!(session = %owner.key.id, generation = owner.generation, pod = name, "second pod of a session deleted");
            deleted += 1;
        }
        Ok(deleted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(uid: &str, created: &str, claimed: Option<&str>) -> Pod {
        let annotations = claimed.map(|at| json!({"berth/claimed-at": at}));
        let metadata = json!({"uid": uid, "creationTimestamp": created, "annotations": annotations});
        serde_json::from_value(json!({"metadata": metadata})).unwrap()
    }

    #[test]
    fn the_pod_that_the_session_has_had_for_longest_stays() {
        let first = "2026-01-01T00:00:10Z";
        for (one, other) in [
            (pod("b", first, None), pod("a", "2026-01-01T00:00:11Z", None)),
            (pod("a", first, None), pod("b", first, None)),
            // A warm pod is old before its claim.
            (
                pod("b", "2026-01-01T00:00:20Z", None),
                pod("a", first, Some("2026-01-01T00:00:30.5Z")),
            ),
            (
                pod("b", first, Some("2026-01-01T00:00:30.5Z")),
                pod("a", first, Some("2026-01-01T00:00:30.6Z")),
            ),
            // Made in the second of the claim: perhaps after it.
            (
                pod("b", first, Some("2026-01-01T00:00:30.5Z")),
                pod("a", "2026-01-01T00:00:30Z", None),
            ),
        ] {
            assert!(Rank::of(&one) < Rank::of(&other), "{one:?} {other:?}");
        }
    }
}
