//! The pods that sessions claimed: their names do not tell their sessions.

use super::Shared;
use super::duplicates::{Rank, is_live};
use super::names::{Owner, pod_name};
use super::watcher::Pods;
use super::works::WorkId;
use crate::ComputeSpec;
use k8s_openapi::api::core::v1::Pod;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// A pod by its place and uid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodId {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    /// Order among the pods of its generation.
    pub(super) rank: Rank,
}

impl PodId {
    pub(super) fn of(pod: &Pod) -> Self {
        let metadata = &pod.metadata;
        Self {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
            rank: Rank::of(pod),
        }
    }
}

/// The claimed pod of each session generation.
#[derive(Debug, Default)]
pub(super) struct Owners(HashMap<WorkId, PodId>);

impl Owners {
    /// Records the pod of a generation, if its name is not that of a pod which was
    /// made for it. Of several that `is_live` affirms, the first one by rank is kept,
    /// which is the one that stays.
    pub(super) fn saw(&mut self, owner: &Owner, pod: PodId, is_live: impl Fn(&PodId) -> bool) {
        if pod.name == pod_name(&owner.key.id, owner.generation) {
            return;
        }
        match self.0.entry((owner.key.id.clone(), owner.generation)) {
            Entry::Vacant(vacant) => {
                vacant.insert(pod);
            }
            Entry::Occupied(mut known) => {
                let is_first = || !is_live(known.get()) || pod.rank < known.get().rank;
                if known.get().uid == pod.uid || (is_live(&pod) && is_first()) {
                    known.insert(pod);
                }
            }
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
    /// namespace: made for it, or claimed from a pool. If there are both, the one
    /// that stays.
    /// One that is being deleted is given only if there is no other: it may be one
    /// that a manager withdrew because of the other.
    pub(super) fn pod_of(&self, spec: &ComputeSpec) -> Option<Arc<Pod>> {
        let made = self.seen_pod(&pod_name(&spec.key.id, spec.generation));
        let id = (spec.key.id.clone(), spec.generation);
        let claimed = self.owners.lock().get(&id);
        let claimed = claimed.and_then(|claimed| self.seen(&claimed));
        let both = [&made, &claimed].into_iter().flatten();
        let first = both.filter(|pod| is_live(pod)).min_by_key(|pod| Rank::of(pod));
        first.cloned().or(made).or(claimed)
    }

    /// The pod with exactly this place and uid, as the watch shows it.
    fn seen(&self, id: &PodId) -> Option<Arc<Pod>> {
        let pods = self.namespaces.get(&id.namespace)?;
        let pod = pods.get(&id.namespace, &id.name)?;
        (pod.metadata.uid.as_ref() == Some(&id.uid)).then_some(pod)
    }

    /// The same by the API server's own answer.
    pub(super) async fn read_pod(
        &self,
        namespace: &str,
        spec: &ComputeSpec,
    ) -> Result<Option<Pod>, kube::Error> {
        let name = pod_name(&spec.key.id, spec.generation);
        let made = self.api.pod(namespace, &name).await?;
        let all = self.api.pods_of(namespace, &spec.key, spec.generation).await?;
        for pod in &all {
            self.saw_owner_of(pod);
        }
        let live = all.iter().filter(|pod| is_live(pod));
        let first = live.min_by_key(|pod| Rank::of(pod)).cloned();
        Ok(first.or(made).or_else(|| all.into_iter().next()))
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
        let new = PodId::of(pod);
        let is_live = |id: &PodId| {
            if *id == new {
                return is_live(pod);
            }
            // One that no watch shows yet was claimed just now.
            self.seen(id).is_none_or(|pod| is_live(&pod))
        };
        self.owners.lock().saw(owner, new.clone(), is_live);
    }

    fn saw_owner_of(&self, pod: &Pod) {
        if let Some(owner) = pod.metadata.labels.as_ref().and_then(Owner::read) {
            self.saw_owner(&owner, pod);
        }
    }

    pub(super) fn forget_owner(&self, pod: &Pod) {
        if let Some(owner) = pod.metadata.labels.as_ref().and_then(Owner::read) {
            let uid = pod.metadata.uid.as_deref().unwrap_or_default();
            let id = (owner.key.id.clone(), owner.generation);
            self.owners.lock().remove(&id, uid);
            if self.owners.lock().get(&id).is_none() {
                self.find_owned(&owner);
            }
        }
    }

    /// Records another claimed pod of the generation, if the watches show one.
    fn find_owned(&self, owner: &Owner) {
        for pod in self.namespaces.values().flat_map(Pods::all) {
            if pod.metadata.labels.as_ref().and_then(Owner::read).as_ref() == Some(owner) {
                self.saw_owner(owner, &pod);
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::key;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    fn pod(name: &str) -> PodId {
        PodId {
            namespace: "sessions".to_owned(),
            name: name.to_owned(),
            uid: format!("uid of {name}"),
            rank: Rank::of(&Pod {
                metadata: ObjectMeta {
                    uid: Some(name.to_owned()),
                    ..ObjectMeta::default()
                },
                ..Pod::default()
            }),
        }
    }

    fn owner() -> Owner {
        Owner {
            key: key(1),
            generation: 1,
            cluster: "main".parse().unwrap(),
            install_id: "install".to_owned(),
        }
    }

    #[test]
    fn a_generation_keeps_its_claimed_pod_until_that_leaves() {
        let id = (owner().key.id, 1);
        let mut owners = Owners::default();
        owners.saw(&owner(), pod(&pod_name(&id.0, 1)), |_| true);
        assert_eq!(owners.get(&id), None, "a pod that was made for it has its name");
        owners.saw(&owner(), pod("second"), |_| true);
        owners.saw(&owner(), pod("first"), |_| true);
        assert_eq!(owners.get(&id), Some(pod("first")), "by rank");
        owners.saw(&owner(), pod("second"), |_| true);
        assert_eq!(owners.get(&id), Some(pod("first")));
        owners.saw(&owner(), pod("second"), |_| false);
        assert_eq!(owners.get(&id), Some(pod("first")), "both leave");
        owners.saw(&owner(), pod("second"), |seen| seen.name == "second");
        assert_eq!(owners.get(&id), Some(pod("second")));
        owners.remove(&id, "uid of first");
        assert_eq!(owners.get(&id), Some(pod("second")));
    }
}
