//! The pod of a worker: what the driver has, without what only drivers have.

use super::{Distributed, WORKER_CONTAINER};
use crate::kubernetes::layout::{CONTAINER, HOME, SECRET_VOLUME};
use crate::kubernetes::names::{ROLE_LABEL, Role};
use crate::kubernetes::size::disk;
use k8s_openapi::api::core::v1::{Container, Pod, PodTemplateSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use session_core::Engine;
use std::collections::BTreeMap;

/// Variables of a driver that are not for its workers.
const DRIVER_ENV: [&str; 4] = [
    "SAIL_CATALOG__",
    "SAIL_CLUSTER__",
    "SAIL_KUBERNETES__",
    "SPARK_LOCAL_IP",
];
const DRIVER_ONLY: [&str; 2] = ["SAIL_MODE", "SAIL_SPARK__SESSION_TIMEOUT_SECS"];

/// Kubernetes' name of the disk that containers fill.
const DISK: &str = "ephemeral-storage";

/// The template as JSON, made from the pod of a session before it becomes a
/// driver. Both engines add the name, the owner, the image and what connects a
/// worker to its driver.
pub(super) fn worker(
    distributed: &Distributed<'_>,
    pod: &Pod,
    mut labels: BTreeMap<String, String>,
) -> String {
    labels.insert(ROLE_LABEL.to_owned(), Role::Worker.as_str().to_owned());
    let mut spec = pod.spec.clone().unwrap_or_default();
    spec.containers.retain(|container| container.name == CONTAINER);
    spec.init_containers = None;
    for container in &mut spec.containers {
        complete(distributed, container);
    }
    if let Some(volumes) = &mut spec.volumes {
        volumes.retain(|volume| volume.name != SECRET_VOLUME);
    }
    spec.service_account_name = Some(distributed.worker_account().to_owned());
    let template = PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels),
            ..ObjectMeta::default()
        }),
        spec: Some(spec),
    };
    let mut json = serde_json::to_value(template).unwrap_or_default();
    if distributed.engine == Engine::Spark {
        // Spark reads its template as a whole pod.
        json["apiVersion"] = "v1".into();
        json["kind"] = "Pod".into();
    }
    json.to_string()
}

fn complete(distributed: &Distributed<'_>, container: &mut Container) {
    let workers = distributed.workers;
    let disk = disk(distributed.pods);
    let with_disk = |amount: String| {
        BTreeMap::from([
            ("cpu".to_owned(), Quantity(workers.cpu.clone())),
            ("memory".to_owned(), Quantity(workers.memory.clone())),
            (DISK.to_owned(), Quantity(amount)),
        ])
    };
    WORKER_CONTAINER.clone_into(&mut container.name);
    container.args = None;
    container.ports = None;
    if let Some(env) = &mut container.env {
        let is_of_driver = |name: &str| {
            DRIVER_ENV.iter().any(|prefix| name.starts_with(prefix)) || DRIVER_ONLY.contains(&name)
        };
        env.retain(|variable| !is_of_driver(&variable.name));
    }
    if let Some(mounts) = &mut container.volume_mounts {
        mounts.retain(|mount| mount.name != SECRET_VOLUME);
    }
    match distributed.engine {
        Engine::Sail => {
            container.resources = Some(ResourceRequirements {
                requests: Some(with_disk(disk.request)),
                limits: Some(with_disk(disk.limit)),
                ..ResourceRequirements::default()
            });
        }
        Engine::Spark => {
            // Spark adds CPU and memory, and mounts a volume of its own on spark.local.dir.
            let only = |amount: String| Some(BTreeMap::from([(DISK.to_owned(), Quantity(amount))]));
            container.resources = Some(ResourceRequirements {
                requests: only(disk.request),
                limits: only(disk.limit),
                ..ResourceRequirements::default()
            });
            if let Some(mounts) = &mut container.volume_mounts {
                let local = format!("{HOME}/tmp");
                mounts.retain(|mount| mount.mount_path != local);
            }
            container.command = Some(executor(distributed, container.command.take()));
        }
    }
}

/// The command of an executor. Kubernetes replaces the variables, which Spark
/// sets. Spark's own image has a shell script for this that gets the argument
/// `executor`; here that argument is the value of the last option, which Spark
/// reads only if the executor has no id.
fn executor(distributed: &Distributed<'_>, java: Option<Vec<String>>) -> Vec<String> {
    let home = distributed.pods.spark_home.as_deref().unwrap_or("/opt/spark");
    let mut command = java.unwrap_or_else(|| vec!["java".to_owned()]);
    command.extend(crate::engine::jvm_args(home));
    command.extend(
        [
            &format!("-Djava.io.tmpdir={HOME}/tmp"),
            "-Xms$(SPARK_EXECUTOR_MEMORY)",
            "-Xmx$(SPARK_EXECUTOR_MEMORY)",
            "org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend",
            "--driver-url",
            "$(SPARK_DRIVER_URL)",
            "--executor-id",
            "$(SPARK_EXECUTOR_ID)",
            "--cores",
            "$(SPARK_EXECUTOR_CORES)",
            "--app-id",
            "$(SPARK_APPLICATION_ID)",
            "--hostname",
            "$(SPARK_EXECUTOR_POD_IP)",
            "--resourceProfileId",
            "$(SPARK_RESOURCE_PROFILE_ID)",
            "--podName",
        ]
        .map(str::to_owned),
    );
    command
}
