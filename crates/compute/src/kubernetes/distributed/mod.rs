//! Engines whose driver creates worker pods: Sail in its mode
//! `kubernetes-cluster`, and Spark with the master `k8s://`.
//!
//! ```text
//! definition ─ what `workers` must contain    settings ─ of both engines
//! template ─ the pod of a worker, as data     peers ─ network policy of one session
//! sweep ─ deletes workers without a driver
//! ```
//!
//! Workers are the driver's: it owns them, so they go with it, and Berth neither
//! watches nor counts them. What a driver may create is limited by the admission
//! policy of the chart, because users' code can read its token.

mod definition;
pub(super) mod peers;
mod settings;
pub(super) mod sweep;
mod template;

use super::names::{ROLE_LABEL, Role};
use super::pod::{CONTAINER, literal};
pub(super) use definition::check_workers;
use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use session_core::{Engine, KubernetesPods, KubernetesWorkers};
use std::collections::BTreeMap;

/// Name of the container of a worker.
const WORKER_CONTAINER: &str = "worker";
/// Account of the workers unless the definition names one.
const WORKER_ACCOUNT: &str = "berth-workers";
/// Key of the Secret with the template of Spark's executors.
const TEMPLATE_FILE: &str = "executor.json";
/// Variable of a driver with the address of its pod.
const POD_IP: &str = "BERTH_POD_IP";
/// Time without work after which a worker ends, in seconds.
const IDLE_SECONDS: u32 = 60;

/// The workers of one session generation.
#[derive(Debug)]
pub(super) struct Distributed<'a> {
    engine: Engine,
    pods: &'a KubernetesPods,
    workers: &'a KubernetesWorkers,
    /// The account of the driver.
    account: &'a str,
    /// Name of the driver's pod.
    driver: String,
}

impl<'a> Distributed<'a> {
    /// `None` if each session of the cluster is a single pod.
    pub(super) fn of(engine: Engine, pods: &'a KubernetesPods, driver: &str) -> Option<Self> {
        Some(Self {
            engine,
            pods,
            workers: pods.workers.as_ref()?,
            account: pods.service_account.as_deref()?,
            driver: driver.to_owned(),
        })
    }

    fn worker_account(&self) -> &str {
        self.workers.service_account.as_deref().unwrap_or(WORKER_ACCOUNT)
    }

    fn idle_seconds(&self) -> u32 {
        self.workers.idle_seconds.unwrap_or(IDLE_SECONDS)
    }

    /// Turns the single pod of a session into a driver: its account, its role and
    /// what its engine needs to know about its workers. `secret` are the contents
    /// of its Secret.
    pub(super) fn complete(
        &self,
        pod: &mut Pod,
        labels: BTreeMap<String, String>,
        secret: &mut BTreeMap<String, String>,
    ) {
        let template = template::worker(self, pod, labels);
        let labels = pod.metadata.labels.get_or_insert_default();
        labels.insert(ROLE_LABEL.to_owned(), Role::Driver.as_str().to_owned());
        let Some(spec) = &mut pod.spec else {
            return;
        };
        spec.service_account_name = Some(self.account.to_owned());
        spec.automount_service_account_token = Some(true);
        let Some(container) = spec.containers.iter_mut().find(|own| own.name == CONTAINER) else {
            return;
        };
        match self.engine {
            Engine::Sail => self.complete_sail(container, &template),
            Engine::Spark => {
                complete_spark(container);
                secret.insert(TEMPLATE_FILE.to_owned(), template);
            }
        }
    }

    fn complete_sail(&self, container: &mut Container, template: &str) {
        set_env(container, pod_ip("SAIL_CLUSTER__DRIVER_EXTERNAL_HOST"));
        set_env(
            container,
            EnvVar {
                name: "SAIL_KUBERNETES__WORKER_POD_TEMPLATE".to_owned(),
                // The template's own escapes must stay.
                value: Some(literal(&settings::quoted(template))),
                value_from: None,
            },
        );
    }
}

/// The driver's address is only known in its pod, and Kubernetes writes it into
/// the arguments, which win over the file of properties.
fn complete_spark(container: &mut Container) {
    for variable in [POD_IP, "SPARK_LOCAL_IP"] {
        set_env(container, pod_ip(variable));
    }
    let args = container.args.get_or_insert_default();
    let after = args.iter().position(|arg| arg.ends_with(".SparkSubmit"));
    let own = ["spark.driver.host", "spark.driver.bindAddress"]
        .into_iter()
        .flat_map(|key| ["--conf".to_owned(), format!("{key}=$({POD_IP})")]);
    let at = after.map_or(0, |index| index + 1);
    args.splice(at..at, own);
}

fn pod_ip(name: &str) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                api_version: Some("v1".to_owned()),
                field_path: "status.podIP".to_owned(),
            }),
            ..EnvVarSource::default()
        }),
    }
}

/// Sets a variable, instead of one of the same name.
fn set_env(container: &mut Container, variable: EnvVar) {
    let env = container.env.get_or_insert_default();
    env.retain(|own| own.name != variable.name);
    env.push(variable);
}

#[cfg(test)]
mod tests;
