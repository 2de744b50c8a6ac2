//! Conversions of the provider `kubernetes`.

use super::non_empty;
use crate::error::Refused;
use crate::v1;
use session_core::cluster::{ProfileWorkers, TaintEffect, Toleration};
use session_core::{Cluster, KubernetesPods, KubernetesWorkers, PodTemplate, Profile};

/// The profiles that every user of the cluster may see.
pub(super) fn offered(cluster: &Cluster) -> Vec<v1::ClusterProfile> {
    let profile = |(name, profile): (&String, &Profile)| v1::ClusterProfile {
        name: name.clone(),
        cpu: profile.cpu.clone(),
        memory: profile.memory.clone(),
        default: profile.default,
    };
    cluster.profiles().iter().map(profile).collect()
}

fn toleration(toleration: &Toleration) -> v1::KubernetesToleration {
    v1::KubernetesToleration {
        key: toleration.key.clone(),
        value: toleration.value.clone().unwrap_or_default(),
        effect: toleration
            .effect
            .map(|effect| effect.as_str().to_owned())
            .unwrap_or_default(),
    }
}

fn from_toleration(wire: v1::KubernetesToleration) -> Result<Toleration, Refused> {
    let effect = match wire.effect.as_str() {
        "" => None,
        text => Some(
            TaintEffect::ALL
                .into_iter()
                .find(|effect| effect.as_str() == text)
                .ok_or_else(|| {
                    Refused::field(
                        "tolerations",
                        "effect must be \"NoSchedule\", \"PreferNoSchedule\", \"NoExecute\" or empty",
                    )
                })?,
        ),
    };
    Ok(Toleration {
        key: wire.key,
        value: non_empty(wire.value),
        effect,
    })
}

fn from_tolerations(wire: Vec<v1::KubernetesToleration>) -> Result<Vec<Toleration>, Refused> {
    wire.into_iter().map(from_toleration).collect()
}

fn profile(profile: &Profile) -> v1::KubernetesProfile {
    v1::KubernetesProfile {
        cpu: profile.cpu.clone(),
        memory: profile.memory.clone(),
        ephemeral_storage: profile.ephemeral_storage.clone().unwrap_or_default(),
        driver_memory: profile.driver_memory.clone().unwrap_or_default(),
        node_selector: profile.node_selector.clone().into_iter().collect(),
        tolerations: profile.tolerations.iter().map(toleration).collect(),
        default: profile.default,
        warm_pods: profile.warm_pods,
        workers: profile.workers.as_ref().map(profile_workers),
    }
}

fn profile_workers(workers: &ProfileWorkers) -> v1::KubernetesProfileWorkers {
    v1::KubernetesProfileWorkers {
        min: workers.min,
        max: workers.max,
        cpu: workers.cpu.clone().unwrap_or_default(),
        memory: workers.memory.clone().unwrap_or_default(),
    }
}

fn from_profile_workers(wire: v1::KubernetesProfileWorkers) -> ProfileWorkers {
    ProfileWorkers {
        min: wire.min,
        max: wire.max,
        cpu: non_empty(wire.cpu),
        memory: non_empty(wire.memory),
    }
}

fn from_profile(wire: v1::KubernetesProfile) -> Result<Profile, Refused> {
    Ok(Profile {
        cpu: wire.cpu,
        memory: wire.memory,
        ephemeral_storage: non_empty(wire.ephemeral_storage),
        driver_memory: non_empty(wire.driver_memory),
        node_selector: wire.node_selector.into_iter().collect(),
        tolerations: from_tolerations(wire.tolerations)?,
        default: wire.default,
        warm_pods: wire.warm_pods,
        workers: wire.workers.map(from_profile_workers),
    })
}

fn workers(workers: &KubernetesWorkers) -> v1::KubernetesWorkers {
    v1::KubernetesWorkers {
        min: workers.min,
        max: workers.max,
        cpu: workers.cpu.clone(),
        memory: workers.memory.clone(),
        idle_seconds: workers.idle_seconds.unwrap_or_default(),
        service_account: workers.service_account.clone().unwrap_or_default(),
    }
}

fn from_workers(wire: v1::KubernetesWorkers) -> KubernetesWorkers {
    KubernetesWorkers {
        min: wire.min,
        max: wire.max,
        cpu: wire.cpu,
        memory: wire.memory,
        idle_seconds: (wire.idle_seconds > 0).then_some(wire.idle_seconds),
        service_account: non_empty(wire.service_account),
    }
}

pub(super) fn encode(pods: &KubernetesPods) -> v1::KubernetesProvider {
    v1::KubernetesProvider {
        namespace: pods.namespace.clone(),
        image: pods.image.clone(),
        command: pods.command.clone(),
        image_pull_secrets: pods.image_pull_secrets.clone(),
        cpu: pods.cpu.clone(),
        memory: pods.memory.clone(),
        node_selector: pods.node_selector.clone().into_iter().collect(),
        tolerations: pods.tolerations.iter().map(toleration).collect(),
        properties: pods.properties.clone().into_iter().collect(),
        spark_home: pods.spark_home.clone().unwrap_or_default(),
        python: pods.python.clone().unwrap_or_default(),
        driver_memory: pods.driver_memory.clone().unwrap_or_default(),
        ephemeral_storage: pods.ephemeral_storage.clone().unwrap_or_default(),
        profiles: pods
            .profiles
            .iter()
            .map(|(name, size)| (name.clone(), profile(size)))
            .collect(),
        pod_template: pods
            .pod_template
            .as_ref()
            .map(PodTemplate::to_json)
            .unwrap_or_default(),
        warm_pods: pods.warm_pods,
        warm_catalogs: pods.warm_catalogs.clone(),
        warm_pools: Vec::new(),
        service_account: pods.service_account.clone().unwrap_or_default(),
        workers: pods.workers.as_ref().map(workers),
    }
}

pub(super) fn decode(wire: v1::KubernetesProvider) -> Result<KubernetesPods, Refused> {
    let template = non_empty(wire.pod_template).map(|json| PodTemplate::parse(&json));
    Ok(KubernetesPods {
        namespace: wire.namespace,
        image: wire.image,
        command: wire.command,
        image_pull_secrets: wire.image_pull_secrets,
        cpu: wire.cpu,
        memory: wire.memory,
        node_selector: wire.node_selector.into_iter().collect(),
        tolerations: from_tolerations(wire.tolerations)?,
        properties: wire.properties.into_iter().collect(),
        spark_home: non_empty(wire.spark_home),
        python: non_empty(wire.python),
        driver_memory: non_empty(wire.driver_memory),
        ephemeral_storage: non_empty(wire.ephemeral_storage),
        profiles: wire
            .profiles
            .into_iter()
            .map(|(name, size)| Ok((name, from_profile(size)?)))
            .collect::<Result<_, Refused>>()?,
        pod_template: template
            .transpose()
            .map_err(|problem| Refused::field("pod_template", problem))?,
        warm_pods: wire.warm_pods,
        warm_catalogs: wire.warm_catalogs,
        service_account: non_empty(wire.service_account),
        workers: wire.workers.map(from_workers),
        profile: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods() -> KubernetesPods {
        KubernetesPods {
            namespace: "sessions".into(),
            image: "registry/sail:1".into(),
            command: vec!["sail".into()],
            image_pull_secrets: vec!["registry".into()],
            cpu: "2".into(),
            memory: "4Gi".into(),
            node_selector: [("disk".to_owned(), "ssd".to_owned())].into(),
            tolerations: vec![
                Toleration {
                    key: "spot".into(),
                    value: Some("yes".into()),
                    effect: Some(TaintEffect::NoExecute),
                },
                Toleration {
                    key: "gpu".into(),
                    ..Toleration::default()
                },
            ],
            properties: [("SAIL_EXECUTION__BATCH_SIZE".to_owned(), "1".to_owned())].into(),
            spark_home: Some("/opt/spark".into()),
            python: Some("/usr/bin/python3".into()),
            driver_memory: Some("1g".into()),
            ephemeral_storage: Some("20Gi".into()),
            profiles: [(
                "large".to_owned(),
                Profile {
                    cpu: "8".into(),
                    memory: "32Gi".into(),
                    ephemeral_storage: Some("50Gi".into()),
                    driver_memory: Some("16g".into()),
                    node_selector: [("size".to_owned(), "large".to_owned())].into(),
                    tolerations: vec![Toleration {
                        key: "gpu".into(),
                        ..Toleration::default()
                    }],
                    default: true,
                    warm_pods: 2,
                    workers: Some(ProfileWorkers {
                        min: Some(0),
                        cpu: Some("4".into()),
                        ..ProfileWorkers::default()
                    }),
                },
            )]
            .into(),
            pod_template: Some(PodTemplate::parse(r#"{"spec": {"priorityClassName": "low"}}"#).unwrap()),
            warm_pods: 3,
            warm_catalogs: vec!["acme/lake".into()],
            service_account: Some("driver".into()),
            workers: Some(KubernetesWorkers {
                min: 1,
                max: 4,
                cpu: "1".into(),
                memory: "2Gi".into(),
                idle_seconds: Some(120),
                service_account: Some("workers".into()),
            }),
            profile: None,
        }
    }

    #[test]
    fn pods_pass_the_api_unchanged() {
        assert_eq!(decode(encode(&pods())).unwrap(), pods());
    }

    #[test]
    fn a_template_must_be_json() {
        let wire = v1::KubernetesProvider {
            pod_template: "spec: {}".into(),
            ..encode(&pods())
        };
        let refused = decode(wire).unwrap_err();
        assert!(format!("{refused:?}").contains("pod_template"), "{refused:?}");
    }

    #[test]
    fn an_unknown_effect_of_a_taint_is_rejected() {
        let mut wire = encode(&pods());
        wire.tolerations[0].effect = "Maybe".into();
        let refused = decode(wire).unwrap_err();
        assert!(format!("{refused:?}").contains("tolerations"), "{refused:?}");
    }
}
