//! The settings by which an engine creates its workers.

use super::{Distributed, TEMPLATE_FILE, WORKER_CONTAINER};
use crate::kubernetes::layout::SECRET_DIR;
use crate::kubernetes::size::{bytes, milli_cpus};
use session_core::Engine;
use std::collections::BTreeMap;

/// The API server as pods reach it.
const API_SERVER: &str = "k8s://https://kubernetes.default.svc";
/// Tasks that a worker of Sail runs at a time, for each CPU: all stages of a
/// query run at once.
const SLOTS_PER_CPU: u32 = 8;
/// Divisor of an executor's memory: the quotient is the part outside the heap.
const OVERHEAD_PART: u64 = 4;
const MIN_OVERHEAD_MIB: u64 = 384;

impl Distributed<'_> {
    /// Environment variables of Sail, properties of Spark.
    pub(in super::super) fn settings(&self) -> BTreeMap<String, String> {
        match self.engine {
            Engine::Sail => self.sail(),
            Engine::Spark => self.spark(),
        }
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
    }

    fn sail(&self) -> Vec<(&'static str, String)> {
        let (workers, cpus) = (self.workers, self.whole_cpus());
        let mut env = vec![
            ("SAIL_MODE", quoted("kubernetes-cluster")),
            // Each Spark session has a driver of its own, on a port of its own.
            ("SAIL_CLUSTER__DRIVER_LISTEN_HOST", quoted("0.0.0.0")),
            ("SAIL_CLUSTER__WORKER_INITIAL_COUNT", workers.min.to_string()),
            ("SAIL_CLUSTER__WORKER_MAX_COUNT", workers.max.to_string()),
            (
                "SAIL_CLUSTER__WORKER_MAX_IDLE_TIME_SECS",
                self.idle_seconds().to_string(),
            ),
            (
                "SAIL_CLUSTER__WORKER_TASK_SLOTS",
                cpus.saturating_mul(SLOTS_PER_CPU).to_string(),
            ),
            ("SAIL_KUBERNETES__IMAGE", quoted(&self.pods.image)),
            ("SAIL_KUBERNETES__IMAGE_PULL_POLICY", quoted("IfNotPresent")),
            ("SAIL_KUBERNETES__NAMESPACE", quoted(&self.pods.namespace)),
            ("SAIL_KUBERNETES__DRIVER_POD_NAME", quoted(&self.driver)),
            (
                "SAIL_KUBERNETES__WORKER_POD_NAME_PREFIX",
                quoted(&format!("{}-w-", self.driver)),
            ),
            (
                "SAIL_KUBERNETES__WORKER_SERVICE_ACCOUNT_NAME",
                quoted(self.worker_account()),
            ),
        ];
        // The default is the number of the driver's CPUs.
        let parallelism = "SAIL_EXECUTION__DEFAULT_PARALLELISM";
        if !self.pods.properties.contains_key(parallelism) {
            env.push((parallelism, workers.max.saturating_mul(cpus).to_string()));
        }
        env
    }

    fn spark(&self) -> Vec<(&'static str, String)> {
        let text = str::to_owned;
        let mut conf = vec![
            ("spark.master", text(API_SERVER)),
            ("spark.submit.deployMode", text("client")),
            ("spark.kubernetes.namespace", self.pods.namespace.clone()),
            ("spark.kubernetes.container.image", self.pods.image.clone()),
            (
                "spark.kubernetes.container.image.pullPolicy",
                text("IfNotPresent"),
            ),
            ("spark.kubernetes.driver.pod.name", self.driver.clone()),
            ("spark.kubernetes.executor.podNamePrefix", self.driver.clone()),
            (
                "spark.kubernetes.executor.podTemplateFile",
                format!("{SECRET_DIR}/{TEMPLATE_FILE}"),
            ),
            (
                "spark.kubernetes.executor.podTemplateContainerName",
                text(WORKER_CONTAINER),
            ),
            (
                "spark.kubernetes.authenticate.executor.serviceAccountName",
                text(self.worker_account()),
            ),
        ];
        // The driver needs rights on pods only.
        for (key, value) in [
            ("spark.kubernetes.executor.disableConfigMap", "true"),
            ("spark.kubernetes.driver.reusePersistentVolumeClaim", "false"),
            ("spark.kubernetes.driver.ownPersistentVolumeClaim", "false"),
            ("spark.kubernetes.driver.service.deleteOnTermination", "false"),
        ] {
            conf.push((key, text(value)));
        }
        conf.extend(self.executors());
        conf
    }

    /// How many executors Spark creates, and their size.
    fn executors(&self) -> [(&'static str, String); 12] {
        let workers = self.workers;
        let memory = bytes(&workers.memory).unwrap_or_default() >> 20;
        let overhead = (memory / OVERHEAD_PART).max(MIN_OVERHEAD_MIB);
        let heap = memory.saturating_sub(overhead);
        let is_dynamic = workers.min != workers.max;
        [
            ("spark.kubernetes.executor.request.cores", workers.cpu.clone()),
            ("spark.kubernetes.executor.limit.cores", workers.cpu.clone()),
            ("spark.executor.cores", self.whole_cpus().to_string()),
            ("spark.executor.memory", format!("{heap}m")),
            ("spark.executor.memoryOverhead", format!("{overhead}m")),
            ("spark.executor.instances", workers.min.to_string()),
            ("spark.dynamicAllocation.enabled", is_dynamic.to_string()),
            (
                "spark.dynamicAllocation.shuffleTracking.enabled",
                "true".to_owned(),
            ),
            ("spark.dynamicAllocation.minExecutors", workers.min.to_string()),
            (
                "spark.dynamicAllocation.initialExecutors",
                workers.min.to_string(),
            ),
            ("spark.dynamicAllocation.maxExecutors", workers.max.to_string()),
            (
                "spark.dynamicAllocation.executorIdleTimeout",
                format!("{}s", self.idle_seconds()),
            ),
        ]
    }

    /// The CPUs of a worker, rounded up.
    fn whole_cpus(&self) -> u32 {
        let milli = milli_cpus(&self.workers.cpu).unwrap_or(1000);
        u32::try_from(milli.div_ceil(1000).max(1)).unwrap_or(u32::MAX)
    }
}

/// A text for Sail, which would take bare words as numbers, flags and lists.
pub(super) fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
