//! What is refused, by its path; what is merged; and that nothing of Berth's changes.

use super::*;
use crate::kubernetes::pod::{Plan, pods_of};
use crate::testing::{kubernetes_cluster, spec};
use crate::validate_cluster;
use serde_json::json;
use session_core::{Cluster, Provider};

fn cluster(template: &Value) -> Cluster {
    let mut cluster = kubernetes_cluster(Engine::Sail);
    if let Provider::Kubernetes(pods) = &mut cluster.provider {
        pods.properties = [("AWS_REGION".to_owned(), "eu".to_owned())].into();
        pods.pod_template = Some(PodTemplate::parse(&template.to_string()).unwrap());
    }
    cluster
}

fn refused(template: &Value) -> Vec<String> {
    match validate_cluster(&cluster(template)) {
        Ok(()) => Vec::new(),
        Err(invalid) => {
            let paths = invalid.problems.into_iter().map(|problem| problem.key);
            paths
                .map(|path| path.trim_start_matches("pod_template.").to_owned())
                .collect()
        }
    }
}

fn pod(cluster: Cluster) -> Value {
    let spec = spec(cluster, 1);
    let plan = Plan::new(&spec, pods_of(&spec).unwrap(), "install", None).unwrap();
    serde_json::to_value(plan.pod).unwrap()
}

fn sidecar(more: &Value) -> Value {
    let mut container = json!({
        "name": "agent", "image": "agent:1", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}},
    });
    container
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    container
}

fn full() -> Value {
    json!({
        "metadata": {
            "labels": {"team": "data", "example.org/cost": "a"},
            "annotations": {"example.org/note": "x"},
        },
        "spec": {
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}],
            }}},
            "nodeSelector": {"disk": "ssd"},
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "topologySpreadConstraints": [{
                "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
            }],
            "priorityClassName": "low",
            "runtimeClassName": "gvisor",
            "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["lake"]}],
            "dnsConfig": {"options": [{"name": "ndots", "value": "1"}]},
            "securityContext": {"fsGroup": 1000, "runAsUser": 1000},
            "volumes": [
                {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
                {"name": "certs", "configMap": {"name": "ca"}},
            ],
            "initContainers": [sidecar(&json!({"name": "init", "restartPolicy": "Always"}))],
            "containers": [
                {
                    "name": "engine",
                    "env": [{"name": "HTTPS_PROXY", "value": "http://proxy:1"}],
                    "volumeMounts": [{"name": "data", "mountPath": "/data", "readOnly": true}],
                    "resources": {"limits": {"nvidia.com/gpu": "1"}},
                },
                sidecar(&json!({"ports": [{"containerPort": 9000}]})),
            ],
        },
    })
}

#[test]
fn a_template_is_merged() {
    assert_eq!(refused(&full()), Vec::<String>::new());
    let merged = pod(cluster(&full()));
    let plain = pod(kubernetes_cluster(Engine::Sail));
    let spec = &merged["spec"];
    assert_eq!(merged["metadata"]["labels"]["team"], "data");
    assert_eq!(merged["metadata"]["labels"]["berth/install-id"], "install");
    assert_eq!(spec["securityContext"]["runAsUser"], 1000);
    assert_eq!(spec["securityContext"]["runAsNonRoot"], true);
    let names = |list: &Value| -> Vec<String> {
        let items = list.as_array().unwrap();
        items
            .iter()
            .map(|item| item["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names(&spec["containers"]), ["engine", "agent"]);
    assert_eq!(names(&spec["volumes"]), ["session", "data", "certs"]);
    let engine = &spec["containers"][0];
    assert_eq!(engine["args"], plain["spec"]["containers"][0]["args"]);
    assert!(names(&engine["env"]).contains(&"HTTPS_PROXY".to_owned()));
    assert_eq!(
        engine["resources"]["limits"],
        json!({"cpu": "1", "memory": "2Gi", "ephemeral-storage": "10Gi", "nvidia.com/gpu": "1"})
    );
    assert_eq!(engine["volumeMounts"].as_array().unwrap().len(), 4);
    for added in [&spec["containers"][1], &spec["initContainers"][0]] {
        assert_eq!(
            added["securityContext"],
            json!({
                "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"]},
            })
        );
    }
}

/// Rejected paths.
#[test]
fn what_is_reserved_is_refused_by_its_path() {
    let engine = |more: Value| {
        let mut container = json!({"name": "engine"});
        container
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        json!({"spec": {"containers": [container]}})
    };
    let other = |more: Value| json!({"spec": {"containers": [sidecar(&more)]}});
    let cases = [
        (json!({"kind": "Pod"}), "kind"),
        (json!({"metadata": {"name": "x"}}), "metadata.name"),
        (
            json!({"metadata": {"ownerReferences": []}}),
            "metadata.ownerReferences",
        ),
        (
            json!({"metadata": {"labels": {"berth/session": "x"}}}),
            "metadata.labels[\"berth/session\"]",
        ),
        (
            json!({"metadata": {"annotations": {"sidecar.istio.io/inject": "true"}}}),
            "metadata.annotations[\"sidecar.istio.io/inject\"]",
        ),
        (json!({"spec": {"restartPolicy": "Always"}}), "spec.restartPolicy"),
        (
            json!({"spec": {"serviceAccountName": "x"}}),
            "spec.serviceAccountName",
        ),
        (
            json!({"spec": {"automountServiceAccountToken": true}}),
            "spec.automountServiceAccountToken",
        ),
        (json!({"spec": {"hostNetwork": true}}), "spec.hostNetwork"),
        (json!({"spec": {"hostPID": true}}), "spec.hostPID"),
        (json!({"spec": {"hostIPC": true}}), "spec.hostIPC"),
        (json!({"spec": {"nodeName": "n"}}), "spec.nodeName"),
        (
            json!({"spec": {"ephemeralContainers": []}}),
            "spec.ephemeralContainers",
        ),
        (
            json!({"spec": {"securityContext": {"runAsNonRoot": false}}}),
            "spec.securityContext.runAsNonRoot",
        ),
        (
            json!({"spec": {"securityContext": {"runAsUser": 0}}}),
            "spec.securityContext.runAsUser",
        ),
        (
            json!({"spec": {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}}),
            "spec.volumes[0].hostPath",
        ),
        (
            json!({"spec": {"volumes": [{"name": "session", "emptyDir": {}}]}}),
            "spec.volumes[0].name",
        ),
        (
            json!({"spec": {"volumes": [{"name": "v", "projected": {"sources": [
                {"serviceAccountToken": {"path": "t"}}
            ]}}]}}),
            "spec.volumes[0].projected.sources[0].serviceAccountToken",
        ),
        (engine(json!({"image": "x"})), "spec.containers[0].image"),
        (engine(json!({"command": ["x"]})), "spec.containers[0].command"),
        (engine(json!({"args": ["x"]})), "spec.containers[0].args"),
        (engine(json!({"ports": []})), "spec.containers[0].ports"),
        (engine(json!({"envFrom": []})), "spec.containers[0].envFrom"),
        (engine(json!({"lifecycle": {}})), "spec.containers[0].lifecycle"),
        (
            engine(json!({"env": [{"name": "SAIL_MODE", "value": "x"}]})),
            "spec.containers[0].env[0].name",
        ),
        (
            engine(json!({"env": [{"name": "ld_preload", "value": "x"}]})),
            "spec.containers[0].env[0].name",
        ),
        (
            engine(json!({"env": [{"name": "AWS_REGION", "value": "x"}]})),
            "spec.containers[0].env[0].name",
        ),
        (
            engine(json!({"securityContext": {"privileged": true}})),
            "spec.containers[0].securityContext.privileged",
        ),
        (
            engine(json!({"resources": {"limits": {"memory": "1Ti"}}})),
            "spec.containers[0].resources.limits.memory",
        ),
        (
            engine(json!({"volumeMounts": [{"name": "v", "mountPath": "/berth/work/x"}]})),
            "spec.containers[0].volumeMounts[0].mountPath",
        ),
        (
            engine(json!({"volumeMounts": [{"name": "v", "mountPath": "/"}]})),
            "spec.containers[0].volumeMounts[0].mountPath",
        ),
        (
            engine(
                json!({"volumeMounts": [{"name": "v", "mountPath": "/x", "mountPropagation": "Bidirectional"}]}),
            ),
            "spec.containers[0].volumeMounts[0].mountPropagation",
        ),
        (
            other(json!({"volumeMounts": [{"name": "secret", "mountPath": "/x"}]})),
            "spec.containers[0].volumeMounts[0].name",
        ),
        (
            other(json!({"ports": [{"containerPort": 1, "hostPort": 1}]})),
            "spec.containers[0].ports[0].hostPort",
        ),
        (
            other(json!({"ports": [{"containerPort": 15002}]})),
            "spec.containers[0].ports[0].containerPort",
        ),
        (
            other(json!({"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}})),
            "spec.containers[0].securityContext.capabilities",
        ),
        (
            other(json!({"resources": {"limits": {"cpu": "1"}}})),
            "spec.containers[0].resources.limits.memory",
        ),
        (
            json!({"spec": {"initContainers": [sidecar(&json!({"name": "engine"}))]}}),
            "spec.initContainers[0].name",
        ),
        (
            json!({"spec": {"priorityClassName": null}}),
            "spec.priorityClassName",
        ),
        (
            json!({"spec": {"nodeSelector": {"$patch": "replace"}}}),
            "spec.nodeSelector[\"$patch\"]",
        ),
        (
            json!({"spec": {"affinity": {"nodeAfinity": {}}}}),
            "spec.affinity.nodeAfinity",
        ),
    ];
    for (template, path) in cases {
        assert_eq!(refused(&template), [path], "{template}");
    }
}

#[test]
fn a_template_of_another_type_or_too_large_is_refused_as_a_whole() {
    assert_eq!(
        refused(&json!({"spec": {"tolerations": "gpu"}})),
        ["pod_template"]
    );
    let large = json!({"metadata": {"annotations": {"a": "x".repeat(MAX_BYTES)}}});
    assert_eq!(refused(&large), ["pod_template"]);
    let many: Vec<Value> = (0..100)
        .map(|n| json!({"name": n.to_string(), "hostPath": {}}))
        .collect();
    assert_eq!(refused(&json!({"spec": {"volumes": many}})).len(), MAX_PROBLEMS);
}

/// Random templates of names that matter: what is accepted leaves alone what Berth sets.
#[test]
fn an_accepted_template_never_changes_what_is_reserved() {
    let plain = pod({
        let mut cluster = cluster(&json!({}));
        if let Provider::Kubernetes(pods) = &mut cluster.provider {
            pods.pod_template = None;
        }
        cluster
    });
    let mut random = Random(7);
    let mut accepted = 0;
    for round in 0..4000 {
        let template = random.template();
        if !refused(&template).is_empty() {
            continue;
        }
        accepted += 1;
        let merged = pod(cluster(&template));
        for path in [
            "/metadata/name",
            "/metadata/ownerReferences",
            "/metadata/labels/berth~1session",
            "/metadata/labels/berth~1install-id",
            "/spec/restartPolicy",
            "/spec/serviceAccountName",
            "/spec/automountServiceAccountToken",
            "/spec/hostNetwork",
            "/spec/hostPID",
            "/spec/hostIPC",
            "/spec/shareProcessNamespace",
            "/spec/securityContext/runAsNonRoot",
            "/spec/securityContext/seccompProfile",
            "/spec/containers/0/name",
            "/spec/containers/0/image",
            "/spec/containers/0/command",
            "/spec/containers/0/args",
            "/spec/containers/0/ports",
            "/spec/containers/0/securityContext/capabilities",
            "/spec/containers/0/securityContext/allowPrivilegeEscalation",
            "/spec/containers/0/securityContext/privileged",
            "/spec/containers/0/resources/limits/memory",
            "/spec/containers/0/env/0",
            "/spec/volumes/0",
            "/spec/containers/0/volumeMounts/0",
        ] {
            assert_eq!(
                merged.pointer(path),
                plain.pointer(path),
                "round {round}: {path}: {template}"
            );
        }
        let text = merged.to_string();
        for word in [
            "hostPath",
            "hostPort",
            "serviceAccountToken",
            "SYS_ADMIN",
            "\"privileged\":true",
        ] {
            assert!(!text.contains(word), "{word}: {template}");
        }
    }
    assert!(accepted > 200, "{accepted}");
}

/// A small generator, so that a failure is the same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % limit
    }

    fn some(&mut self, pieces: &[(&str, Value)], count: usize) -> Value {
        let mut fields = serde_json::Map::new();
        for _ in 0..self.below(count + 1) {
            let (name, value) = &pieces[self.below(pieces.len())];
            fields.insert((*name).to_owned(), value.clone());
        }
        Value::Object(fields)
    }

    fn container(&mut self) -> Value {
        let mut container = self.some(
            &[
                ("image", json!("x:1")),
                ("args", json!(["x"])),
                ("env", json!([{"name": "HOME", "value": "/x"}])),
                ("env", json!([{"name": "OTHER", "value": "/x"}])),
                ("ports", json!([{"containerPort": 15002, "hostPort": 1}])),
                ("securityContext", json!({"privileged": true})),
                ("securityContext", json!({"capabilities": {"add": ["SYS_ADMIN"]}})),
                ("securityContext", json!({"runAsUser": 5})),
                ("volumeMounts", json!([{"name": "v", "mountPath": "/berth/work"}])),
                ("volumeMounts", json!([{"name": "v", "mountPath": "/x"}])),
                ("resources", json!({"limits": {"cpu": "1", "memory": "9Gi"}})),
            ],
            3,
        );
        let name = ["engine", "agent"][self.below(2)];
        container["name"] = json!(name);
        container
    }

    fn template(&mut self) -> Value {
        let mut spec = self.some(
            &[
                ("hostNetwork", json!(true)),
                ("hostPID", json!(true)),
                ("restartPolicy", json!("Always")),
                ("serviceAccountName", json!("admin")),
                ("shareProcessNamespace", json!(false)),
                ("securityContext", json!({"runAsNonRoot": false})),
                ("securityContext", json!({"fsGroup": 5})),
                ("priorityClassName", json!("low")),
                ("nodeSelector", json!({"a": "b"})),
                ("volumes", json!([{"name": "v", "hostPath": {"path": "/"}}])),
                (
                    "volumes",
                    json!([{"name": "session", "emptyDir": {"medium": "Memory"}}]),
                ),
                ("volumes", json!([{"name": "v", "emptyDir": {}}])),
            ],
            3,
        );
        for list in ["containers", "initContainers"] {
            if self.below(3) == 0 {
                spec[list] = json!([self.container()]);
            }
        }
        let labels = [json!({"team": "x"}), json!({"berth/session": "x"}), json!({})];
        json!({"metadata": {"labels": labels[self.below(3)]}, "spec": spec})
    }
}
