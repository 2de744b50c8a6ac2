//! Every cause, from objects as API servers and kubelets write them.

use super::*;
use serde_json::{Value, json};

fn pod(status: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "engine", "resources": {"limits": {"memory": "2Gi"}}}]},
        "status": status,
    }))
    .unwrap()
}

fn event(reason: &str, message: &str) -> PodEvent {
    PodEvent {
        reason: reason.into(),
        message: message.into(),
    }
}

fn waiting(reason: &str, message: &str) -> Value {
    json!({"phase": "Pending", "containerStatuses": [container(json!({
        "waiting": {"reason": reason, "message": message}
    }))]})
}

fn terminated(phase: &str, end: Value) -> Value {
    json!({"phase": phase, "containerStatuses": [container(json!({"terminated": end}))]})
}

fn container(state: Value) -> Value {
    json!({"name": "engine", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": state})
}

fn unscheduled(message: &str) -> Value {
    json!({"phase": "Pending", "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    ]})
}

fn placed() -> Value {
    json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}]})
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Kind {
    Waiting,
    Terminal,
    Lost,
}

fn check(status: Value, events: &[PodEvent], kind: Kind, text: &str) -> Cause {
    let verdict = judge(Engine::Sail, &pod(status.clone()), events);
    let (found, why) = match verdict {
        Verdict::Waiting(why) => (Kind::Waiting, why),
        Verdict::Terminal(why) => (Kind::Terminal, why),
        Verdict::Lost(why) => (Kind::Lost, why),
        Verdict::Running(_) | Verdict::Leaving(_) => panic!("{verdict:?} for {status}"),
    };
    assert_eq!((found, why.text.as_str()), (kind, text), "{status}");
    why
}

#[test]
fn images() {
    let check = |reason, message, kind, text| {
        let why = check(waiting(reason, message), &[], kind, text);
        assert_eq!(why.detail, message);
    };
    check(
        "InvalidImageName",
        "couldn't parse image",
        Kind::Terminal,
        "the name of its image is not valid",
    );
    check(
        "ErrImageNeverPull",
        "not present",
        Kind::Terminal,
        "its image is not on its node",
    );
    let pull = "its image cannot be pulled";
    check(
        "ErrImagePull",
        "failed to resolve reference \"r/x:1\": r/x:1: not found",
        Kind::Terminal,
        pull,
    );
    check(
        "ErrImagePull",
        "failed to authorize: 401 unauthorized",
        Kind::Terminal,
        pull,
    );
    check(
        "ErrImagePull",
        "dial tcp: lookup r.invalid: no such host",
        Kind::Waiting,
        pull,
    );
    check(
        "ImagePullBackOff",
        "Back-off pulling image \"r/x:1\"",
        Kind::Waiting,
        pull,
    );
}

#[test]
fn the_answer_of_a_registry_is_in_an_event_during_back_off() {
    let answer = "Failed to pull image \"r/x:1\": r/x:1: not found";
    let events = [
        event("Pulling", "Pulling image"),
        event("Failed", answer),
        event("Failed", "Error: ErrImagePull"),
    ];
    // The last event only names the reason; the one before has the words.
    let why = check(
        waiting("ImagePullBackOff", "Back-off pulling image"),
        &events[..2],
        Kind::Terminal,
        "its image cannot be pulled",
    );
    assert_eq!(why.detail, answer);
    check(
        waiting("ImagePullBackOff", "Back-off pulling image"),
        &events,
        Kind::Terminal,
        "its image cannot be pulled",
    );
}

#[test]
fn containers_that_cannot_be_created() {
    check(
        waiting("CreateContainerConfigError", "secret \"s-g1\" not found"),
        &[],
        Kind::Waiting,
        "a Secret or ConfigMap of its pod does not exist",
    );
    check(
        waiting(
            "CreateContainerConfigError",
            "container has runAsNonRoot and image will run as root",
        ),
        &[],
        Kind::Terminal,
        "its image runs as root: give the image a numeric user other than 0",
    );
    check(
        waiting("CreateContainerError", "context deadline exceeded"),
        &[],
        Kind::Waiting,
        "its container cannot be created",
    );
}

#[test]
fn nodes_without_room() {
    let events = [event("FailedScheduling", "0/1 nodes")];
    for (message, text) in [
        (
            "0/3 nodes are available: 1 Insufficient memory, 3 Insufficient cpu. preemption: 0/3 nodes",
            "no node has room: insufficient memory, cpu",
        ),
        (
            "0/1 nodes are available: 1 node(s) had untolerated taint {spot: }.",
            "no node accepts its pod: its cluster does not tolerate their taints",
        ),
        (
            "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.",
            "no node has the labels of its cluster's node_selector",
        ),
        ("no nodes available to schedule pods", "there is no node"),
        (
            "0/1 nodes are available: 1 node(s) had volume trouble.",
            "no node accepts its pod",
        ),
    ] {
        let why = check(unscheduled(message), &events, Kind::Waiting, text);
        assert_eq!(why.detail, message);
    }
    check(
        unscheduled("0/1 nodes are available: 1 Insufficient cpu."),
        &[event("TriggeredScaleUp", "pod triggered scale-up")],
        Kind::Waiting,
        "no node has room: a node is being added",
    );
}

#[test]
fn what_events_show_before_the_start() {
    for (reason, text, has_detail) in [
        ("FailedMount", "a volume of its pod cannot be mounted", true),
        (
            "FailedCreatePodSandBox",
            "the network of its pod cannot be set up",
            true,
        ),
        ("Pulling", "its image is being pulled", false),
        ("Pulled", "its container is being created", false),
        ("Unknown", "its container is being created", false),
    ] {
        for status in [placed(), waiting("ContainerCreating", "")] {
            let events = [event("Scheduled", "assigned"), event(reason, "words")];
            let why = check(status, &events, Kind::Waiting, text);
            assert_eq!(why.detail.is_empty(), !has_detail, "{reason}");
        }
    }
    check(
        json!({"phase": "Pending"}),
        &[],
        Kind::Waiting,
        "it waits for a node",
    );
    check(
        json!({"phase": "Running", "containerStatuses": [container(json!({"running": {}}))]}),
        &[],
        Kind::Waiting,
        "its pod has no address yet",
    );
}

#[test]
fn engines_that_ended() {
    for phase in ["Failed", "Running"] {
        check(
            terminated(phase, json!({"reason": "OOMKilled", "exitCode": 137})),
            &[],
            Kind::Terminal,
            "sail ran out of memory: the limit of its pod is 2Gi",
        );
        check(
            terminated(phase, json!({"reason": "Error", "exitCode": 3})),
            &[],
            Kind::Terminal,
            "sail exited with code 3",
        );
    }
    let why = check(
        terminated(
            "Failed",
            json!({"reason": "StartError", "exitCode": 128, "message": "exec: no such file"}),
        ),
        &[],
        Kind::Terminal,
        "sail could not be started in its image",
    );
    assert_eq!(why.detail, "exec: no such file");
    check(
        terminated("Succeeded", json!({"reason": "Completed", "exitCode": 0})),
        &[],
        Kind::Terminal,
        "sail exited with code 0",
    );
}

#[test]
fn pods_that_kubernetes_took_away() {
    let gone = |reason: &str| {
        json!({"phase": "Failed", "conditions": [
            {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "words"}
        ], "containerStatuses": [container(json!({"terminated": {"reason": "Error", "exitCode": 137}}))]})
    };
    for (reason, text) in [
        (
            "PreemptionByScheduler",
            "its pod was preempted by one of higher priority",
        ),
        (
            "EvictionByEvictionAPI",
            "its pod was evicted: its node is being drained",
        ),
        (
            "TerminationByKubelet",
            "its pod was evicted: its node is short of resources",
        ),
        ("DeletionByTaintManager", "its node was lost"),
        ("DeletionByPodGC", "its node no longer exists"),
    ] {
        assert_eq!(check(gone(reason), &[], Kind::Lost, text).detail, "words");
    }
    let reason = |reason: &str| json!({"phase": "Failed", "reason": reason, "message": "words"});
    check(
        reason("Evicted"),
        &[],
        Kind::Lost,
        "its pod was evicted: its node is short of resources",
    );
    check(reason("NodeShutdown"), &[], Kind::Lost, "its node was shut down");
    let why = check(
        reason("OutOfcpu"),
        &[],
        Kind::Lost,
        "its node did not accept its pod",
    );
    assert_eq!(why.detail, "OutOfcpu: words");
    check(reason("Strange"), &[], Kind::Lost, "its pod failed");
}

#[test]
fn a_running_pod_has_its_address() {
    let status = json!({"phase": "Running", "podIP": "10.244.0.9",
        "containerStatuses": [container(json!({"running": {}}))]});
    let verdict = judge(Engine::Sail, &pod(status.clone()), &[]);
    assert_eq!(verdict, Verdict::Running("10.244.0.9".parse().unwrap()));
    let mut leaving = pod(status);
    leaving.metadata.deletion_timestamp =
        Some(serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap());
    assert_eq!(
        judge(Engine::Sail, &leaving, &[]),
        Verdict::Leaving(cause("its pod is being deleted", ""))
    );
}

#[test]
fn what_the_api_server_refuses() {
    let refused = |code: u16, message: &str| {
        let status = Status {
            code,
            message: message.to_owned(),
            ..Status::default()
        };
        refusal(&kube::Error::Api(Box::new(status)))
    };
    for (code, message, permanent, text) in [
        (
            403,
            "pods \"s-g1\" is forbidden: exceeded quota: compute, requested: limits.cpu=4,pods=1, used: limits.cpu=5,pods=3, limited: limits.cpu=8,pods=3",
            false,
            "quota compute of its namespace is used up: needs 4 CPU, 3 of 8 left; needs 1 pods, 0 of 3 left",
        ),
        (
            403,
            "pods \"s-g1\" is forbidden: violates PodSecurity \"restricted:latest\": runAsNonRoot != true",
            true,
            "the pod security level of its namespace rejects its pod",
        ),
        (
            403,
            "pods \"s-g1\" is forbidden: maximum memory usage per Container is 1Gi, but limit is 2Gi",
            true,
            "a LimitRange of its namespace rejects the size of its pod",
        ),
        (
            403,
            "pods \"s-g1\" is forbidden: unable to create new content in namespace x because it is being terminated",
            true,
            "its namespace is being deleted",
        ),
        (
            403,
            "pods is forbidden: User \"system:serviceaccount:berth:m\" cannot create resource \"pods\"",
            false,
            "Berth may not create pods in its namespace",
        ),
        (
            403,
            "pods \"s-g1\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no",
            true,
            ADMISSION,
        ),
        (
            400,
            "admission webhook \"w\" denied the request: no",
            true,
            ADMISSION,
        ),
        (
            500,
            "Internal error occurred: failed calling webhook \"w\"",
            false,
            "an admission webhook does not answer",
        ),
        (
            404,
            "namespaces \"x\" not found",
            true,
            "its namespace does not exist",
        ),
        (
            422,
            "Pod \"s\" is invalid: spec",
            true,
            "the Kubernetes API server rejects its pod",
        ),
        (
            429,
            "slow down",
            false,
            "the Kubernetes API server cannot create its pod now",
        ),
    ] {
        let found = refused(code, message);
        assert_eq!(
            (found.permanent, found.cause.text.as_str()),
            (permanent, text),
            "{message}"
        );
        assert_eq!(found.cause.detail, message);
    }
}
