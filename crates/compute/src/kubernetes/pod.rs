//! The pod and the Secret of a session generation, as data.
//!
//! The engine gets its arguments and plain settings from the pod. Everything
//! that contains a secret is in one Secret of the pod's own name: files are
//! mounted, environment variables refer to its keys. The mount also makes the
//! kubelet wait for the Secret, which can only be made after the pod, because
//! the pod owns it.

use super::distributed::Distributed;
use super::distributed::peers::policy_of;
pub(super) use super::layout::{CONTAINER, PORT};
use super::layout::{HOME, SECRET_DIR, SECRET_VOLUME, SESSION_VOLUME};
use super::names::{Owner, ROLE_LABEL, pod_name};
use super::size;
use super::template;
use crate::ComputeSpec;
use crate::engine::{EngineStart, Place};
use crate::user_message;
use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, EnvVarSource, LocalObjectReference,
    Pod, PodSecurityContext, PodSpec, ResourceRequirements, SeccompProfile, Secret as KubeSecret,
    SecretKeySelector, SecretVolumeSource, SecurityContext, Toleration, Volume, VolumeMount,
};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use session_core::machine::Cause;
use session_core::route::Secret;
use session_core::{KubernetesPods, Provider};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// Key of the Secret with the engine's own token.
pub(super) const TOKEN_KEY: &str = "token";
/// Key of the Secret with everything that must not appear in a log tail, as a JSON
/// list: what the pod was started with, also after a catalog's secret has changed.
pub(super) const MASKS_KEY: &str = "log-masks";
const CONF_FILE: &str = "spark.properties";
const SPARK_HOME: &str = "/opt/spark";
/// Time from SIGTERM to SIGKILL.
const GRACE_SECONDS: i64 = 5;

/// What is created for a session generation.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) pod: Pod,
    /// Contents of the Secret; empty if the pod needs none.
    pub(super) secret: BTreeMap<String, String>,
    /// Everything that must not appear in a log tail.
    pub(super) secrets: Vec<Secret>,
}

/// The definition of the pods of a cluster.
///
/// # Errors
/// If the cluster has another provider.
pub(super) fn pods_of(spec: &ComputeSpec) -> Result<&KubernetesPods, crate::Error> {
    match &spec.cluster.provider {
        Provider::Kubernetes(pods) => Ok(pods),
        Provider::Static { .. } | Provider::Process { .. } => {
            Err(crate::Error::WrongProvider(spec.cluster.name.to_string()))
        }
    }
}

impl Plan {
    /// Plans the pod of `spec`, owned by `anchor` if there is one.
    ///
    /// # Errors
    /// The reason why it can never run.
    pub(super) fn new(
        spec: &ComputeSpec,
        pods: &KubernetesPods,
        install_id: &str,
        anchor: Option<OwnerReference>,
    ) -> Result<Self, Cause> {
        let owner = Owner {
            key: spec.key.clone(),
            generation: spec.generation,
            cluster: spec.cluster.name.clone(),
            install_id: install_id.to_owned(),
        };
        let name = pod_name(&spec.key.id, spec.generation);
        Self::named(spec, pods, name, owner.labels(), anchor)
    }

    /// The same pod with a name and labels of the caller.
    ///
    /// # Errors
    /// The reason why it can never run.
    pub(super) fn named(
        spec: &ComputeSpec,
        pods: &KubernetesPods,
        name: String,
        labels: BTreeMap<String, String>,
        anchor: Option<OwnerReference>,
    ) -> Result<Self, Cause> {
        let distributed = Distributed::of(spec.cluster.engine, pods, &name);
        let place = Place {
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)),
            work: Path::new(HOME).join("work"),
            tmp: Path::new(HOME).join("tmp"),
            conf_file: Path::new(SECRET_DIR).join(CONF_FILE),
            spark_home: pods.spark_home.clone().unwrap_or_else(|| SPARK_HOME.to_owned()),
            properties: &pods.properties,
            python: pods.python.as_deref(),
            driver_memory: pods.driver_memory.as_deref(),
            overrides: distributed
                .as_ref()
                .map(Distributed::settings)
                .unwrap_or_default(),
        };
        let start = EngineStart::new(spec, &place)?;
        let (env, mut secret) = split(&start, &name);
        let has_secret = !secret.is_empty();
        let mut pod = Pod {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(pods.namespace.clone()),
                labels: Some(labels.clone()),
                owner_references: anchor.map(|anchor| vec![anchor]),
                ..ObjectMeta::default()
            },
            spec: Some(pod_spec(
                pods,
                container(pods, &place, start.args, env, has_secret),
                &name,
                has_secret,
            )),
            status: None,
        };
        if let Some(over) = &pods.pod_template {
            let unusable =
                |error| user_message::cause("the pod template of its cluster cannot be used", error);
            pod = template::apply(pod, over).map_err(unusable)?;
        }
        // The template of the workers is made from the pod.
        if let Some(distributed) = &distributed {
            distributed.complete(&mut pod, labels, &mut secret);
        }
        Ok(Self {
            pod,
            secret,
            secrets: start.secrets,
        })
    }

    /// The Secret of the pod with this uid.
    pub(super) fn secret_of(&self, uid: &str) -> KubeSecret {
        let metadata = &self.pod.metadata;
        KubeSecret {
            metadata: ObjectMeta {
                name: metadata.name.clone(),
                namespace: metadata.namespace.clone(),
                labels: metadata.labels.clone(),
                owner_references: Some(vec![self.owner(uid)]),
                ..ObjectMeta::default()
            },
            immutable: Some(true),
            string_data: Some(self.secret.clone()),
            ..KubeSecret::default()
        }
    }

    /// The network policy of the driver with this uid and its workers; `None` if
    /// the pod is a single one.
    pub(super) fn peers_of(&self, uid: &str) -> Option<NetworkPolicy> {
        let labels = self.pod.metadata.labels.as_ref()?;
        labels.get(ROLE_LABEL)?;
        Some(policy_of(&self.pod, self.owner(uid)))
    }

    /// The pod, once it exists, as the owner of another object.
    fn owner(&self, uid: &str) -> OwnerReference {
        OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Pod".to_owned(),
            name: self.pod.metadata.name.clone().unwrap_or_default(),
            uid: uid.to_owned(),
            ..OwnerReference::default()
        }
    }
}

/// Environment of the container, and the contents of the Secret.
fn split(start: &EngineStart, name: &str) -> (Vec<EnvVar>, BTreeMap<String, String>) {
    let mut secret = BTreeMap::new();
    let is_secret = |value: &str| {
        start
            .secrets
            .iter()
            .any(|secret| !secret.expose().is_empty() && value.contains(secret.expose()))
    };
    let variable = |(key, value): (&String, &String)| {
        if !is_secret(value) {
            return EnvVar {
                name: key.clone(),
                value: Some(literal(value)),
                value_from: None,
            };
        }
        secret.insert(key.clone(), value.clone());
        EnvVar {
            name: key.clone(),
            value: None,
            value_from: Some(EnvVarSource {
                secret_key_ref: Some(SecretKeySelector {
                    name: name.to_owned(),
                    key: key.clone(),
                    optional: Some(false),
                }),
                ..EnvVarSource::default()
            }),
        }
    };
    let env = start.env.iter().map(variable).collect();
    if let Some(token) = &start.credential {
        secret.insert(TOKEN_KEY.to_owned(), token.expose().to_owned());
    }
    let file_name = |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned());
    for (path, text) in &start.files {
        secret.extend(file_name(path).map(|name| (name, text.clone())));
    }
    let masks: Vec<&str> = start.secrets.iter().map(Secret::expose).collect();
    if !secret.is_empty() {
        secret.insert(MASKS_KEY.to_owned(), serde_json::json!(masks).to_string());
    }
    (env, secret)
}

fn mounts(place: &Place<'_>, has_secret: bool) -> Vec<VolumeMount> {
    let folder = |path: &Path, sub_path: &str| VolumeMount {
        name: SESSION_VOLUME.to_owned(),
        mount_path: path.to_string_lossy().into_owned(),
        sub_path: Some(sub_path.to_owned()),
        ..VolumeMount::default()
    };
    let mut mounts = vec![
        folder(&place.work, "work"),
        folder(&place.tmp, "tmp"),
        folder(Path::new("/tmp"), "tmp"),
    ];
    mounts.extend(has_secret.then(|| VolumeMount {
        name: SECRET_VOLUME.to_owned(),
        mount_path: SECRET_DIR.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    }));
    mounts
}

fn container(
    pods: &KubernetesPods,
    place: &Place<'_>,
    args: Vec<String>,
    env: Vec<EnvVar>,
    has_secret: bool,
) -> Container {
    let disk = size::disk(pods);
    let sizes = |disk: String| {
        BTreeMap::from([
            ("cpu".to_owned(), Quantity(pods.cpu.clone())),
            ("memory".to_owned(), Quantity(pods.memory.clone())),
            ("ephemeral-storage".to_owned(), Quantity(disk)),
        ])
    };
    Container {
        name: CONTAINER.to_owned(),
        image: Some(pods.image.clone()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        command: (!pods.command.is_empty()).then(|| pods.command.iter().map(|word| literal(word)).collect()),
        args: Some(args.iter().map(|word| literal(word)).collect()),
        env: Some(env),
        working_dir: Some(place.work.to_string_lossy().into_owned()),
        ports: Some(vec![ContainerPort {
            name: Some("connect".to_owned()),
            container_port: i32::from(PORT),
            ..ContainerPort::default()
        }]),
        resources: Some(ResourceRequirements {
            requests: Some(sizes(disk.request)),
            limits: Some(sizes(disk.limit)),
            ..ResourceRequirements::default()
        }),
        volume_mounts: Some(mounts(place, has_secret)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities {
                add: None,
                drop: Some(vec!["ALL".to_owned()]),
            }),
            read_only_root_filesystem: Some(true),
            ..SecurityContext::default()
        }),
        ..Container::default()
    }
}

/// A command word or value that the container gets unchanged: Kubernetes expands
/// `$(NAME)`, and reads `$$` as `$`.
pub(super) fn literal(text: &str) -> String {
    text.replace('$', "$$")
}

fn toleration(toleration: &session_core::cluster::Toleration) -> Toleration {
    let operator = if toleration.value.is_some() {
        "Equal"
    } else {
        "Exists"
    };
    Toleration {
        key: Some(toleration.key.clone()),
        operator: Some(operator.to_owned()),
        value: toleration.value.clone(),
        effect: toleration.effect.map(|effect| effect.as_str().to_owned()),
        toleration_seconds: None,
    }
}

fn pod_spec(pods: &KubernetesPods, container: Container, name: &str, has_secret: bool) -> PodSpec {
    let mut volumes = vec![Volume {
        name: SESSION_VOLUME.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource::default()),
        ..Volume::default()
    }];
    volumes.extend(has_secret.then(|| Volume {
        name: SECRET_VOLUME.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(name.to_owned()),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    }));
    let pull_secret = |name: &String| LocalObjectReference { name: name.clone() };
    PodSpec {
        containers: vec![container],
        volumes: Some(volumes),
        // A second run in the same pod would be new compute under an old generation.
        restart_policy: Some("Never".to_owned()),
        termination_grace_period_seconds: Some(GRACE_SECONDS),
        // The first process of a PID namespace ignores SIGTERM unless it handles
        // it, which Sail does not: it would run until SIGKILL.
        share_process_namespace: Some(true),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        image_pull_secrets: (!pods.image_pull_secrets.is_empty())
            .then(|| pods.image_pull_secrets.iter().map(pull_secret).collect()),
        node_selector: (!pods.node_selector.is_empty()).then(|| pods.node_selector.clone()),
        tolerations: (!pods.tolerations.is_empty())
            .then(|| pods.tolerations.iter().map(toleration).collect()),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                localhost_profile: None,
            }),
            ..PodSecurityContext::default()
        }),
        ..PodSpec::default()
    }
}

#[cfg(test)]
mod tests;
