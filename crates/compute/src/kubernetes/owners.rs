//! The pods that sessions claimed: their names do not tell their sessions.

use super::Shared;
use super::names::{Owner, pod_name};
use super::works::WorkId;
use crate::ComputeSpec;
use k8s_openapi::api::core::v1::Pod;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// A pod by its place and uid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodId {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
}

impl PodId {
    pub(super) fn of(pod: &Pod) -> Self {
        let metadata = &pod.metadata;
        Self {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
        }
    }
}

/// The claimed pod of each session generation.
#[derive(Debug, Default)]
pub(super) struct Owners(HashMap<WorkId, PodId>);

impl Owners {
    /// Records the pod of a generation, if its name is not that of a pod which was
    /// made for it.
    pub(super) fn saw(&mut self, owner: &Owner, pod: PodId) {
        if pod.name != pod_name(&owner.key.id, owner.generation) {
            self.0.insert((owner.key.id.clone(), owner.generation), pod);
        }
    }

    /// Removes a generation if its pod is the one with this uid.
    pub(super) fn remove(&mut self, id: &WorkId, uid: &str) {
        if self.0.get(id).is_some_and(|pod| pod.uid == uid) {
            self.0.remove(id);
        }
    }

    pub(super) fn get(&self, id: &WorkId) -> Option<PodId> {
        self.0.get(id).cloned()
    }

    /// The claimed pods of a session up to a generation.
    pub(super) fn up_to(&self, id: &WorkId) -> Vec<PodId> {
        let all = self.0.iter();
        all.filter(|((session, generation), _)| *session == id.0 && *generation <= id.1)
            .map(|(_, pod)| pod.clone())
            .collect()
    }

    /// Keeps those that still exist after a namespace was listed.
    pub(super) fn retain(&mut self, exists: impl Fn(&PodId) -> bool) {
        self.0.retain(|_, pod| exists(pod));
    }
}

impl Shared {
    /// The pod of a session generation as the watches show it, in whatever
    /// namespace: made for it, or claimed from a pool.
    pub(super) fn pod_of(&self, spec: &ComputeSpec) -> Option<Arc<Pod>> {
        let made = self.seen_pod(&pod_name(&spec.key.id, spec.generation));
        made.or_else(|| {
            let id = (spec.key.id.clone(), spec.generation);
            let claimed = self.owners.lock().get(&id)?;
            let pod = self.namespaces.get(&claimed.namespace)?;
            let pod = pod.get(&claimed.namespace, &claimed.name)?;
            (pod.metadata.uid.as_ref() == Some(&claimed.uid)).then_some(pod)
        })
    }

    /// The same by the API server's own answer.
    pub(super) async fn read_pod(
        &self,
        namespace: &str,
        spec: &ComputeSpec,
    ) -> Result<Option<Pod>, kube::Error> {
        let name = pod_name(&spec.key.id, spec.generation);
        if let Some(pod) = self.api.pod(namespace, &name).await? {
            return Ok(Some(pod));
        }
        let claimed = self.api.pods_of(namespace, &spec.key, spec.generation).await?;
        for pod in &claimed {
            self.saw_owner_of(pod);
        }
        Ok(claimed.into_iter().next())
    }

    /// Adds the pods that a session claimed up to a generation, although the watch
    /// may not show the claim yet; without those that are being deleted.
    pub(super) fn add_claimed(&self, spec: &ComputeSpec, all: &mut Vec<(String, String, Option<String>)>) {
        let id = (spec.key.id.clone(), spec.generation);
        for pod in self.owners.lock().up_to(&id) {
            let seen = self
                .namespaces
                .get(&pod.namespace)
                .and_then(|pods| pods.get(&pod.namespace, &pod.name));
            let is_leaving = seen.is_some_and(|seen| seen.metadata.deletion_timestamp.is_some());
            let uid = Some(pod.uid);
            if !is_leaving && all.iter().all(|(.., known)| *known != uid) {
                all.push((pod.namespace, pod.name, uid));
            }
        }
    }

    /// The pods that a session claimed up to a generation and that no watch shows
    /// yet: namespace, name, uid.
    pub(super) async fn unseen_claims(
        &self,
        namespace: &str,
        spec: &ComputeSpec,
    ) -> Vec<(String, String, Option<String>)> {
        if self.pool_of(spec).is_none() {
            return Vec::new();
        }
        // After an error the release is repeated until the compute is missing.
        let found = self.api.pods_of(namespace, &spec.key, spec.generation).await;
        let found = found.unwrap_or_default();
        let claims = found
            .iter()
            .filter(|pod| pod.metadata.deletion_timestamp.is_none());
        claims
            .map(|pod| {
                let id = PodId::of(pod);
                (id.namespace, id.name, Some(id.uid))
            })
            .collect()
    }

    pub(super) fn saw_owner(&self, owner: &Owner, pod: &Pod) {
        self.owners.lock().saw(owner, PodId::of(pod));
    }

    fn saw_owner_of(&self, pod: &Pod) {
        if let Some(owner) = pod.metadata.labels.as_ref().and_then(Owner::read) {
            self.saw_owner(&owner, pod);
        }
    }

    pub(super) fn forget_owner(&self, pod: &Pod) {
        if let Some(owner) = pod.metadata.labels.as_ref().and_then(Owner::read) {
            let uid = pod.metadata.uid.as_deref().unwrap_or_default();
            self.owners.lock().remove(&(owner.key.id, owner.generation), uid);
        }
    }

    /// A namespace was listed: its claimed pods are those of the list.
    pub(super) fn list_owners(&self, namespace: &str) {
        let Some(pods) = self.namespaces.get(namespace) else {
            return;
        };
        let all = pods.all();
        let uids: HashSet<&str> = all.iter().filter_map(|pod| pod.metadata.uid.as_deref()).collect();
        self.owners
            .lock()
            .retain(|pod| pod.namespace != namespace || uids.contains(pod.uid.as_str()));
        for pod in &all {
            self.saw_owner_of(pod);
        }
        self.pools_changed.notify_one();
    }
}
