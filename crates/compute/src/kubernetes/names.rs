//! Names and labels by which pods are found again.

use session_core::{ClusterName, SessionId, SessionKey};
use std::collections::BTreeMap;

/// Beginning of all labels and annotations of Berth.
pub(super) const RESERVED_PREFIX: &str = "berth/";
/// Label with the installation that made a pod.
pub const INSTALL_LABEL: &str = "berth/install-id";
/// Label with the organization of the session.
pub const ORG_LABEL: &str = "berth/org";
/// Label with the id of the session.
pub const SESSION_LABEL: &str = "berth/session";
/// Label with the generation of the compute.
pub const GENERATION_LABEL: &str = "berth/generation";
/// Label with the cluster.
pub const CLUSTER_LABEL: &str = "berth/cluster";

/// Label of a pod without a session: what it was started with, as a keyed hash.
/// Removed when a session claims the pod.
pub(super) const POOL_LABEL: &str = "berth/pool";
/// Annotation with the time at which a session claimed the pod.
pub(super) const CLAIMED_ANNOTATION: &str = "berth/claimed-at";

/// Label that distinguishes the pods of a distributed engine; a single pod has none.
pub const ROLE_LABEL: &str = "berth/role";

/// Part of a pod in a distributed engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Serves the session and creates workers.
    Driver,
    /// Belongs to a driver.
    Worker,
}

impl Role {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Driver => "driver",
            Self::Worker => "worker",
        }
    }
}

/// What the labels of a pod state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) key: SessionKey,
    pub(super) generation: u64,
    pub(super) cluster: ClusterName,
    pub(super) install_id: String,
}

impl Owner {
    pub(super) fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = common_labels(&self.install_id, &self.cluster);
        labels.extend(self.session_labels());
        labels
    }

    /// The labels that only the pod of a session has.
    pub(super) fn session_labels(&self) -> [(String, String); 3] {
        [
            (ORG_LABEL, self.key.org.to_string()),
            (SESSION_LABEL, self.key.id.to_string()),
            (GENERATION_LABEL, self.generation.to_string()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
    }

    /// `None` if these are not labels of the pod that serves a session.
    pub(super) fn read(labels: &BTreeMap<String, String>) -> Option<Self> {
        let is_worker = labels
            .get(ROLE_LABEL)
            .is_some_and(|role| role == Role::Worker.as_str());
        (!is_worker).then(|| Self::parse(labels)).flatten()
    }

    /// The session of a worker; `None` if these are not labels of one.
    pub(super) fn of_worker(labels: &BTreeMap<String, String>) -> Option<Self> {
        let is_worker = labels
            .get(ROLE_LABEL)
            .is_some_and(|role| role == Role::Worker.as_str());
        is_worker.then(|| Self::parse(labels)).flatten()
    }

    fn parse(labels: &BTreeMap<String, String>) -> Option<Self> {
        Some(Self {
            key: SessionKey {
                org: labels.get(ORG_LABEL)?.parse().ok()?,
                id: labels.get(SESSION_LABEL)?.parse().ok()?,
            },
            generation: labels.get(GENERATION_LABEL)?.parse().ok()?,
            cluster: labels.get(CLUSTER_LABEL)?.parse().ok()?,
            install_id: labels.get(INSTALL_LABEL)?.clone(),
        })
    }
}

/// The labels of every pod, with and without a session.
fn common_labels(install_id: &str, cluster: &ClusterName) -> BTreeMap<String, String> {
    [
        ("app.kubernetes.io/name", "berth-session".to_owned()),
        ("app.kubernetes.io/managed-by", "berth".to_owned()),
        // A service mesh must not stand between the proxy and the engine.
        ("sidecar.istio.io/inject", "false".to_owned()),
        (INSTALL_LABEL, install_id.to_owned()),
        (CLUSTER_LABEL, cluster.to_string()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

/// The labels of a pod without a session.
pub(super) fn pool_labels(install_id: &str, cluster: &ClusterName, hash: &str) -> BTreeMap<String, String> {
    let mut labels = common_labels(install_id, cluster);
    labels.insert(POOL_LABEL.to_owned(), hash.to_owned());
    labels
}

/// Name of the pod and of the Secret of a session generation. Session ids are
/// unique among installations.
pub(super) fn pod_name(id: &SessionId, generation: u64) -> String {
    format!("{id}-g{generation}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::key;

    #[test]
    fn labels_are_read_back() {
        let owner = Owner {
            key: key(1),
            generation: 7,
            cluster: "main".parse().unwrap(),
            install_id: "0123".into(),
        };
        let labels = owner.labels();
        assert_eq!(Owner::read(&labels), Some(owner.clone()));
        for missing in [
            INSTALL_LABEL,
            ORG_LABEL,
            SESSION_LABEL,
            GENERATION_LABEL,
            CLUSTER_LABEL,
        ] {
            let mut labels = labels.clone();
            labels.remove(missing);
            assert_eq!(Owner::read(&labels), None, "{missing}");
        }
        let with_role = |role: Role| {
            let mut labels = labels.clone();
            labels.insert(ROLE_LABEL.to_owned(), role.as_str().to_owned());
            labels
        };
        assert_eq!(Owner::read(&with_role(Role::Driver)), Some(owner.clone()));
        assert_eq!(Owner::read(&with_role(Role::Worker)), None);
        assert_eq!(Owner::of_worker(&with_role(Role::Worker)), Some(owner.clone()));
        assert_eq!(Owner::of_worker(&labels), None);
        assert_eq!(pod_name(&owner.key.id, 7), format!("{}-g7", owner.key.id));
    }
}
