//! Why a pod does not run its engine, in one sentence each. Pure functions of
//! what the API server shows: the pod, its events, the answer to a create.
//!
//! The text is for everybody who may see the session and names no address or
//! path; the detail has the words of Kubernetes.

use super::layout::CONTAINER;
use super::quota::quota;
use crate::user_message::cause;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateTerminated, ContainerStateWaiting, Event, Pod, PodCondition, PodStatus,
};
use kube::core::Status;
use session_core::Engine;
use session_core::machine::Cause;
use std::net::IpAddr;

/// What a pod shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It does not run yet, and may without any change.
    Waiting(Cause),
    /// Its engine runs, at this address.
    Running(IpAddr),
    /// It will not run, and neither would another pod like it.
    Terminal(Cause),
    /// It will not run any more; another pod might.
    Lost(Cause),
    /// It is being deleted.
    Leaving(Cause),
}

/// What is kept of an event of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodEvent {
    pub(super) reason: String,
    pub(super) message: String,
}

impl PodEvent {
    pub(super) fn read(event: &Event) -> Self {
        Self {
            reason: event.reason.clone().unwrap_or_default(),
            message: event.message.clone().unwrap_or_default(),
        }
    }
}

/// Why the API server did not create a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) cause: Cause,
    /// Whether asking again is useless.
    pub(super) permanent: bool,
}

/// Judges a pod and its events, the oldest first.
pub(super) fn judge(engine: Engine, pod: &Pod, events: &[PodEvent]) -> Verdict {
    let nothing = PodStatus::default();
    let status = pod.status.as_ref().unwrap_or(&nothing);
    if pod.metadata.deletion_timestamp.is_some() {
        let why = disruption(status).unwrap_or_else(|| cause("its pod is being deleted", ""));
        return Verdict::Leaving(why);
    }
    let state = engine_state(status);
    let has_failed = status.phase.as_deref() == Some("Failed");
    if has_failed && let Some(why) = disruption(status).or_else(|| node_refusal(status)) {
        return Verdict::Lost(why);
    }
    let has_begun = state.is_some_and(|state| state.running.is_some() || state.terminated.is_some());
    // A sidecar of a template may fail beside an engine that runs.
    if !has_begun && let Some(verdict) = init_failure(status, has_failed, events) {
        return verdict;
    }
    match state {
        Some(ContainerState {
            terminated: Some(end),
            ..
        }) => ended(engine, pod, end),
        _ if has_failed => Verdict::Lost(cause("its pod failed", said(status.message.as_ref()))),
        Some(ContainerState { running: Some(_), .. }) => {
            match status.pod_ip.as_ref().and_then(|ip| ip.parse().ok()) {
                Some(ip) => Verdict::Running(ip),
                None => Verdict::Waiting(cause("its pod has no address yet", "")),
            }
        }
        Some(ContainerState {
            waiting: Some(waiting),
            ..
        }) => not_started(waiting, events),
        Some(_) | None => not_placed(status, events),
    }
}

/// The state of the engine's container; a template may add others.
fn engine_state(status: &PodStatus) -> Option<&ContainerState> {
    let all = status.container_statuses.iter().flatten();
    all.filter(|container| container.name == CONTAINER)
        .find_map(|container| container.state.as_ref())
}

/// Why an init container of a template keeps the engine from starting.
fn init_failure(status: &PodStatus, has_failed: bool, events: &[PodEvent]) -> Option<Verdict> {
    let all = status.init_container_statuses.iter().flatten();
    let mut states = all.filter_map(|container| Some((&container.name, container.state.as_ref()?)));
    states.find_map(|(name, state)| match state {
        ContainerState {
            terminated: Some(end),
            ..
        } if has_failed && end.exit_code != 0 => {
            let text = format!("the init container {name} exited with code {}", end.exit_code);
            Some(Verdict::Terminal(cause(text, said(end.message.as_ref()))))
        }
        ContainerState {
            waiting: Some(waiting),
            ..
        } if !has_failed && waiting.reason.as_deref() != Some("PodInitializing") => {
            Some(not_started(waiting, events))
        }
        _ => None,
    })
}

fn said(message: Option<&String>) -> &str {
    message.map_or("", String::as_str)
}

fn condition<'a>(status: &'a PodStatus, kind: &str) -> Option<&'a PodCondition> {
    status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == kind)
}

/// Who took the pod away, if Kubernetes did.
fn disruption(status: &PodStatus) -> Option<Cause> {
    let target = condition(status, "DisruptionTarget").filter(|condition| condition.status == "True");
    let (reason, message) = match target {
        Some(condition) => (condition.reason.as_deref(), condition.message.as_ref()),
        None => (status.reason.as_deref(), status.message.as_ref()),
    };
    let text = match reason? {
        "PreemptionByScheduler" | "Preempted" | "Preempting" => {
            "its pod was preempted by one of higher priority"
        }
        "EvictionByEvictionAPI" => "its pod was evicted: its node is being drained",
        "TerminationByKubelet" | "Evicted" if is_over_disk_limit(said(message)) => {
            "its pod was evicted: it wrote more to disk than its ephemeral_storage"
        }
        "TerminationByKubelet" | "Evicted" => "its pod was evicted: its node is short of resources",
        "DeletionByTaintManager" | "NodeLost" => "its node was lost",
        "DeletionByPodGC" => "its node no longer exists",
        "Terminated" | "NodeShutdown" | "Shutdown" => "its node was shut down",
        _ => return None,
    };
    Some(cause(text, said(message)))
}

/// `Pod ephemeral local storage usage exceeds the total limit of containers 10Gi.` and
/// the same of a container.
fn is_over_disk_limit(message: &str) -> bool {
    message.contains("ephemeral local storage") && message.contains("limit")
        || message.contains("exceeded its local ephemeral storage limit")
}

/// Why a node did not take a pod that was placed on it.
fn node_refusal(status: &PodStatus) -> Option<Cause> {
    let reason = status.reason.as_deref()?;
    let refused = reason.starts_with("OutOf")
        || matches!(
            reason,
            "UnexpectedAdmissionError" | "NodeAffinity" | "NodePorts" | "NodeUnschedulable"
        );
    refused.then(|| {
        let detail = format!("{reason}: {}", said(status.message.as_ref()));
        cause("its node did not accept its pod", detail)
    })
}

fn ended(engine: Engine, pod: &Pod, end: &ContainerStateTerminated) -> Verdict {
    let message = said(end.message.as_ref());
    let why = match end.reason.as_deref() {
        Some("OOMKilled") => {
            let limit = memory_limit(pod);
            cause(
                format!("{engine} ran out of memory: the limit of its pod is {limit}"),
                message,
            )
        }
        Some("StartError" | "ContainerCannotRun") => {
            cause(format!("{engine} could not be started in its image"), message)
        }
        Some(_) | None => match end.signal.filter(|signal| *signal != 0) {
            Some(signal) => cause(format!("{engine} was killed by signal {signal}"), message),
            None => cause(format!("{engine} exited with code {}", end.exit_code), message),
        },
    };
    Verdict::Terminal(why)
}

fn memory_limit(pod: &Pod) -> String {
    let mut all = pod.spec.iter().flat_map(|spec| &spec.containers);
    all.find(|container| container.name == CONTAINER)
        .and_then(|container| container.resources.as_ref()?.limits.as_ref()?.get("memory"))
        .map_or_else(|| "not set".to_owned(), |limit| limit.0.clone())
}

/// The container is on a node and waits.
fn not_started(waiting: &ContainerStateWaiting, events: &[PodEvent]) -> Verdict {
    let message = said(waiting.message.as_ref());
    match waiting.reason.as_deref().unwrap_or_default() {
        "InvalidImageName" => Verdict::Terminal(cause("the name of its image is not valid", message)),
        "ErrImageNeverPull" => Verdict::Terminal(cause("its image is not on its node", message)),
        "ErrImagePull" | "ImagePullBackOff" => not_pulled(message, events),
        "CreateContainerConfigError" if message.contains("runAsNonRoot") || message.contains("non-root") => {
            Verdict::Terminal(cause(
                "its image runs as root: give the image a numeric user other than 0",
                message,
            ))
        }
        "CreateContainerConfigError" if message.contains("not found") => {
            Verdict::Waiting(cause("a Secret or ConfigMap of its pod does not exist", message))
        }
        "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
            Verdict::Waiting(cause("its container cannot be created", message))
        }
        _ => Verdict::Waiting(in_preparation(events)),
    }
}

/// Back-off hides the registry's answer, which is in an event.
fn not_pulled(message: &str, events: &[PodEvent]) -> Verdict {
    // What no registry will take back by itself.
    const FINAL: [&str; 9] = [
        "not found",
        "manifest unknown",
        "unauthorized",
        "authorization failed",
        "authentication required",
        "access denied",
        "insufficient_scope",
        "403 Forbidden",
        "no match for platform",
    ];
    let answer = events
        .iter()
        .rfind(|event| event.reason == "Failed" && event.message.contains("pull"))
        .map_or(message, |event| event.message.as_str());
    let why = cause("its image cannot be pulled", answer);
    if FINAL.iter().any(|said| answer.contains(said)) {
        Verdict::Terminal(why)
    } else {
        Verdict::Waiting(why)
    }
}

/// The pod has a node or waits for one.
fn not_placed(status: &PodStatus, events: &[PodEvent]) -> Verdict {
    let scheduled = condition(status, "PodScheduled");
    let why = match scheduled.map(|condition| (condition.status.as_str(), condition)) {
        Some(("True", _)) => in_preparation(events),
        Some((_, condition)) if condition.reason.as_deref() == Some("Unschedulable") => {
            unschedulable(said(condition.message.as_ref()), events)
        }
        Some(_) | None => cause("it waits for a node", ""),
    };
    Verdict::Waiting(why)
}

fn unschedulable(message: &str, events: &[PodEvent]) -> Cause {
    if events.iter().any(|event| event.reason == "TriggeredScaleUp") {
        return cause("no node has room: a node is being added", message);
    }
    let short_of = resources_after(message, "Insufficient ");
    let text = if !short_of.is_empty() {
        format!("no node has room: insufficient {}", short_of.join(", "))
    } else if message.contains("untolerated taint") {
        "no node accepts its pod: its cluster does not tolerate their taints".to_owned()
    } else if message.contains("affinity/selector") {
        "no node has the labels of its cluster's node_selector".to_owned()
    } else if message.contains("no nodes available") {
        "there is no node".to_owned()
    } else {
        "no node accepts its pod".to_owned()
    };
    cause(text, message)
}

/// The words that follow each `before`, once each.
fn resources_after(message: &str, before: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for rest in message.split(before).skip(1) {
        let end = rest
            .find(|c: char| !c.is_ascii_alphanumeric() && !"-_".contains(c))
            .unwrap_or(rest.len());
        let word = rest[..end].to_owned();
        if !word.is_empty() && !found.contains(&word) {
            found.push(word);
        }
    }
    found
}

/// Between placement and start only events show what happens.
fn in_preparation(events: &[PodEvent]) -> Cause {
    let known = |event: &PodEvent| {
        let text = match event.reason.as_str() {
            "FailedMount" | "FailedAttachVolume" | "FailedMapVolume" => {
                "a volume of its pod cannot be mounted"
            }
            "FailedCreatePodSandBox" | "NetworkNotReady" => "the network of its pod cannot be set up",
            "Pulling" => "its image is being pulled",
            "Pulled" | "Created" | "Scheduled" => "its container is being created",
            _ => return None,
        };
        let is_trouble = event.reason.starts_with("Failed") || event.reason == "NetworkNotReady";
        Some(cause(text, if is_trouble { event.message.as_str() } else { "" }))
    };
    events
        .iter()
        .rev()
        .find_map(known)
        .unwrap_or_else(|| cause("its container is being created", ""))
}

/// Explains the answer of the API server to the creation of a pod.
pub(super) fn refusal(error: &kube::Error) -> Refusal {
    let kube::Error::Api(status) = error else {
        return Refusal {
            cause: cause("the Kubernetes API server does not answer", error),
            permanent: false,
        };
    };
    let (text, permanent) = match status.code {
        403 => forbidden(&status.message),
        404 => ("its namespace does not exist".to_owned(), true),
        _ if status.message.contains("denied the request") => (ADMISSION.to_owned(), true),
        _ if status.message.contains("failed calling webhook") => {
            ("an admission webhook does not answer".to_owned(), false)
        }
        409 => (
            "another pod in its namespace has the name of its pod".to_owned(),
            false,
        ),
        400 | 422 => ("the Kubernetes API server rejects its pod".to_owned(), true),
        _ => (
            "the Kubernetes API server cannot create its pod now".to_owned(),
            false,
        ),
    };
    Refusal {
        cause: cause(text, words_of(status)),
        permanent,
    }
}

const ADMISSION: &str = "an admission policy of the Kubernetes cluster rejects its pod";

pub(super) fn words_of(status: &Status) -> &str {
    if status.message.is_empty() {
        &status.reason
    } else {
        &status.message
    }
}

fn forbidden(message: &str) -> (String, bool) {
    if let Some(text) = quota(message) {
        return (text, false);
    }
    let text = if message.contains("violates PodSecurity") {
        "the pod security level of its namespace rejects its pod"
    } else if message.contains("usage per Container") || message.contains("usage per Pod") {
        "a LimitRange of its namespace rejects the size of its pod"
    } else if message.contains("because it is being terminated") {
        "its namespace is being deleted"
    } else if message.contains("denied") {
        ADMISSION
    } else {
        return ("Berth may not create pods in its namespace".to_owned(), false);
    };
    (text.to_owned(), true)
}

#[cfg(test)]
mod tests;
