//! What all parts of the provider share: its works, and what the watches saw.

use super::Shared;
use super::names::{Owner, POOL_LABEL, pod_name};
use super::reasons::PodEvent;
use super::watcher::Pods;
use super::works::{Stage, WorkId};
use crate::{ComputeSpec, Error};
use k8s_openapi::api::core::v1::Pod;
use std::sync::Arc;

impl Shared {
    /// Nothing can be said about a namespace that is not watched, or not listed yet.
    pub(super) fn must_watch(&self, namespace: &str) -> Result<(), Error> {
        match self.namespaces.get(namespace) {
            None => Err(Error::Unavailable(format!(
                "namespace {namespace} is not in compute.kubernetes.namespaces"
            ))),
            Some(pods) if !pods.are_listed() => Err(Error::Unavailable(format!(
                "the pods of namespace {namespace} could not be listed yet"
            ))),
            Some(_) => Ok(()),
        }
    }

    /// A pod as the watches show it, in whatever namespace: the definition of a
    /// cluster may have changed since.
    pub(super) fn seen_pod(&self, name: &str) -> Option<Arc<Pod>> {
        self.namespaces
            .iter()
            .find_map(|(namespace, pods)| pods.get(namespace, name))
    }

    /// The pods of this installation, those included that are about to be created.
    pub(super) fn count(&self) -> usize {
        let unseen = self.pools.lock().unseen();
        let starting: Vec<WorkId> = self.works.lock().creating().cloned().collect();
        let unseen = unseen
            + starting
                .iter()
                .filter(|(id, generation)| self.seen_pod(&pod_name(id, *generation)).is_none())
                .count();
        unseen + self.namespaces.values().map(Pods::count).sum::<usize>()
    }

    /// The pods of a session up to a generation that are not being deleted yet:
    /// namespace, name, uid.
    pub(super) fn pods_up_to(&self, spec: &ComputeSpec) -> Vec<(String, String, Option<String>)> {
        let all = self.namespaces.iter().flat_map(|(namespace, pods)| {
            let goes = |pod: &Arc<Pod>| {
                let owner = pod.metadata.labels.as_ref().and_then(Owner::read);
                pod.metadata.deletion_timestamp.is_none()
                    && owner.is_some_and(|owner| owner.key == spec.key && owner.generation <= spec.generation)
            };
            pods.all()
                .into_iter()
                .filter(goes)
                .map(move |pod| (namespace, pod))
        });
        let mut all: Vec<_> = all
            .map(|(namespace, pod)| {
                let name = pod.metadata.name.clone().unwrap_or_default();
                (namespace.clone(), name, pod.metadata.uid.clone())
            })
            .collect();
        self.add_claimed(spec, &mut all);
        all
    }

    pub(super) fn work(&self, id: &WorkId) -> Option<(Stage, Vec<PodEvent>)> {
        let works = self.works.lock();
        works
            .map
            .get(id)
            .map(|work| (work.stage.clone(), work.events.clone()))
    }

    pub(super) fn events_of(&self, id: &WorkId) -> Vec<PodEvent> {
        let works = self.works.lock();
        works
            .map
            .get(id)
            .map_or_else(Vec::new, |work| work.events.clone())
    }

    pub(super) fn pod_changed(&self, pod: &Pod) {
        let labels = pod.metadata.labels.as_ref();
        if labels.is_some_and(|labels| labels.contains_key(POOL_LABEL)) {
            self.pools_changed.notify_one();
            return;
        }
        let Some(owner) = labels.and_then(Owner::read) else {
            return;
        };
        self.saw_owner(&owner, pod);
        let id = (owner.key.id.clone(), owner.generation);
        if let Some(work) = self.works.lock().map.get(&id) {
            work.changed.notify_one();
        }
        self.changes.publish(&owner.key, owner.generation);
    }

    pub(super) fn pod_deleted(&self, pod: &Pod) {
        if let Some(owner) = pod.metadata.labels.as_ref().and_then(Owner::read) {
            let id = (owner.key.id, owner.generation);
            let gone = pod.metadata.uid.as_deref();
            self.works.lock().forget_pod(&id, gone);
        }
        self.pod_changed(pod);
        self.forget_owner(pod);
    }

    /// A namespace was listed: everything may have changed since it was seen last.
    pub(super) fn listed(&self, namespace: &str) {
        self.list_owners(namespace);
        let works: Vec<_> = {
            let works = self.works.lock();
            let all = works.map.iter();
            all.map(|((_, generation), work)| {
                work.changed.notify_one();
                (work.key.clone(), *generation)
            })
            .collect()
        };
        tracing::debug!(namespace, works = works.len(), "pods listed");
        for (key, generation) in works {
            self.changes.publish(&key, generation);
        }
    }

    pub(super) fn event_arrived(&self, id: &WorkId, event: PodEvent) {
        let key = self.works.lock().add_event(id, event);
        if let Some(key) = key {
            self.changes.publish(&key, id.1);
        }
    }
}
