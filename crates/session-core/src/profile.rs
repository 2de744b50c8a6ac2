//! Profiles: named sizes of the pods of a cluster. A session has one for its life.

use crate::cluster::{Cluster, KubernetesPods, KubernetesWorkers, Profile, ProfileWorkers, Provider};
use crate::id::ProfileName;
use std::collections::BTreeMap;

/// A profile that a cluster does not offer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownProfile {
    /// The cluster offers no profiles.
    #[error("the cluster has no profiles: do not set it")]
    None,
    /// It offers others.
    #[error("must be one of the cluster's profiles: {}", .0.join(", "))]
    Other(Vec<String>),
}

static NO_PROFILES: BTreeMap<String, Profile> = BTreeMap::new();

impl Cluster {
    /// The profiles by name; none if all sessions have the same size.
    pub const fn profiles(&self) -> &BTreeMap<String, Profile> {
        match &self.provider {
            Provider::Kubernetes(pods) => &pods.profiles,
            Provider::Static { .. } | Provider::Process { .. } => &NO_PROFILES,
        }
    }

    /// The profile of a new session: the named one, or the default.
    ///
    /// # Errors
    /// If the cluster does not offer it.
    pub fn choose_profile(&self, name: Option<&str>) -> Result<Option<ProfileName>, UnknownProfile> {
        let profiles = self.profiles();
        let unknown = || match profiles.is_empty() {
            true => UnknownProfile::None,
            false => UnknownProfile::Other(profiles.keys().cloned().collect()),
        };
        match name {
            Some(name) if profiles.contains_key(name) => name.parse().map(Some).map_err(|_| unknown()),
            Some(_) => Err(unknown()),
            None => {
                let default = profiles.iter().find(|(_, profile)| profile.default);
                Ok(default.and_then(|(name, _)| name.parse().ok()))
            }
        }
    }

    /// The cluster as it is for a session with this profile: its pods have one size.
    /// Sessions without a profile, created before the cluster had any, have the default.
    ///
    /// # Errors
    /// If the cluster does not offer it.
    pub fn with_profile(&self, name: Option<&ProfileName>) -> Result<Self, UnknownProfile> {
        let chosen = self.choose_profile(name.map(ProfileName::as_str))?;
        let mut cluster = self.clone();
        if let (Provider::Kubernetes(pods), Some(name)) = (&mut cluster.provider, chosen) {
            **pods = pods.sized(&name);
        }
        Ok(cluster)
    }
}

impl KubernetesPods {
    /// These pods in the size of one profile, without the others.
    fn sized(&self, name: &ProfileName) -> Self {
        let mut pods = self.clone();
        if let Some(profile) = pods.profiles.remove(name.as_str()) {
            pods.cpu = profile.cpu;
            pods.memory = profile.memory;
            pods.ephemeral_storage = profile.ephemeral_storage.or(pods.ephemeral_storage);
            pods.driver_memory = profile.driver_memory.or(pods.driver_memory);
            pods.node_selector.extend(profile.node_selector);
            pods.tolerations.extend(profile.tolerations);
            if let (Some(all), Some(own)) = (&pods.workers, &profile.workers) {
                pods.workers = Some(all.sized(own));
            }
            pods.warm_pods = match profile.warm_pods {
                0 if profile.default => pods.warm_pods,
                own => own,
            };
            if pods.warm_pods == 0 {
                pods.warm_catalogs.clear();
            }
        }
        pods.profile = Some(name.clone());
        pods.profiles.clear();
        pods
    }
}

impl KubernetesWorkers {
    /// These workers with what a profile changes.
    pub fn sized(&self, profile: &ProfileWorkers) -> Self {
        let own = profile.clone();
        Self {
            min: own.min.unwrap_or(self.min),
            max: own.max.unwrap_or(self.max),
            cpu: own.cpu.unwrap_or_else(|| self.cpu.clone()),
            memory: own.memory.unwrap_or_else(|| self.memory.clone()),
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{ClusterStatus, Engine};

    fn cluster(profiles: &[(&str, &str, bool)]) -> Cluster {
        let profile = |(name, cpu, default): &(&str, &str, bool)| {
            let profile = Profile {
                cpu: (*cpu).to_owned(),
                memory: "1Gi".to_owned(),
                node_selector: [("size".to_owned(), (*name).to_owned())].into(),
                default: *default,
                ..Profile::default()
            };
            ((*name).to_owned(), profile)
        };
        Cluster {
            name: "c".parse().unwrap(),
            status: ClusterStatus::Active,
            engine: Engine::Sail,
            engine_version: None,
            client_versions: Vec::new(),
            granted_orgs: Default::default(),
            provider: Provider::Kubernetes(Box::new(KubernetesPods {
                namespace: "n".to_owned(),
                image: "i:1".to_owned(),
                ephemeral_storage: Some("5Gi".to_owned()),
                node_selector: [("disk".to_owned(), "ssd".to_owned())].into(),
                profiles: profiles.iter().map(profile).collect(),
                ..KubernetesPods::default()
            })),
            idle_policy: None,
            wake: Default::default(),
            policy: Default::default(),
            managed_by_config: false,
            version: 0,
        }
    }

    fn pods(cluster: &Cluster) -> &KubernetesPods {
        match &cluster.provider {
            Provider::Kubernetes(pods) => pods,
            Provider::Static { .. } | Provider::Process { .. } => panic!("not kubernetes"),
        }
    }

    #[test]
    fn a_session_has_the_named_profile_or_the_default() {
        let cluster = cluster(&[("large", "8", false), ("small", "1", true)]);
        let large = cluster.choose_profile(Some("large")).unwrap();
        assert_eq!(large.as_ref().map(ProfileName::as_str), Some("large"));
        let sized = cluster.with_profile(large.as_ref()).unwrap();
        assert_eq!((pods(&sized).cpu.as_str(), pods(&sized).profiles.len()), ("8", 0));
        assert_eq!(
            pods(&sized).node_selector,
            [("disk", "ssd"), ("size", "large")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into()
        );
        assert_eq!(pods(&sized).ephemeral_storage.as_deref(), Some("5Gi"));
        let default = cluster.choose_profile(None).unwrap();
        assert_eq!(default.as_ref().map(ProfileName::as_str), Some("small"));
        assert_eq!(pods(&cluster.with_profile(None).unwrap()).cpu, "1");
    }

    #[test]
    fn workers_have_what_the_profile_changes() {
        let mut cluster = cluster(&[("large", "8", false), ("small", "1", true)]);
        let Provider::Kubernetes(all) = &mut cluster.provider else {
            panic!("not kubernetes");
        };
        let common = KubernetesWorkers {
            min: 1,
            max: 4,
            cpu: "2".to_owned(),
            memory: "8Gi".to_owned(),
            idle_seconds: Some(30),
            service_account: Some("workers".to_owned()),
        };
        all.workers = Some(common.clone());
        all.profiles.get_mut("large").unwrap().workers = Some(ProfileWorkers {
            max: Some(16),
            memory: Some("32Gi".to_owned()),
            ..ProfileWorkers::default()
        });
        let workers = |name: &str| {
            let sized = cluster.with_profile(Some(&name.parse().unwrap())).unwrap();
            pods(&sized).workers.clone().unwrap()
        };
        assert_eq!(workers("small"), common);
        let large = KubernetesWorkers {
            max: 16,
            memory: "32Gi".to_owned(),
            ..common
        };
        assert_eq!(workers("large"), large);
    }

    #[test]
    fn warm_pods_of_the_cluster_are_those_of_the_default_profile() {
        let mut cluster = cluster(&[("large", "8", false), ("small", "1", true)]);
        let set = |cluster: &mut Cluster, of_cluster: u32, of_small: u32, of_large: u32| {
            let Provider::Kubernetes(pods) = &mut cluster.provider else {
                panic!("not kubernetes");
            };
            pods.warm_pods = of_cluster;
            pods.profiles.get_mut("small").unwrap().warm_pods = of_small;
            pods.profiles.get_mut("large").unwrap().warm_pods = of_large;
        };
        for (of_cluster, of_small, of_large, small, large) in
            [(3, 0, 0, 3, 0), (3, 0, 1, 3, 1), (0, 2, 1, 2, 1), (0, 0, 1, 0, 1)]
        {
            set(&mut cluster, of_cluster, of_small, of_large);
            let warm = |name: &str| {
                let sized = cluster.with_profile(Some(&name.parse().unwrap())).unwrap();
                let profile = pods(&sized).profile.clone();
                assert_eq!(profile.as_ref().map(ProfileName::as_str), Some(name));
                pods(&sized).warm_pods
            };
            assert_eq!((warm("small"), warm("large")), (small, large));
        }
    }

    #[test]
    fn a_profile_that_is_not_offered_names_those_that_are() {
        let some = cluster(&[("large", "8", false), ("small", "1", true)]);
        let unknown = some.choose_profile(Some("huge")).unwrap_err();
        assert_eq!(
            unknown.to_string(),
            "must be one of the cluster's profiles: large, small"
        );
        let none = cluster(&[]);
        assert_eq!(none.choose_profile(Some("large")), Err(UnknownProfile::None));
        assert_eq!(none.choose_profile(None), Ok(None));
        assert_eq!(none.with_profile(None), Ok(none.clone()));
    }
}
