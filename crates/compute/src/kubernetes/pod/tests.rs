//! The whole pod and Secret, as the API server gets them.

use super::*;
use crate::testing::{catalog, key, kubernetes_cluster, spec};
use serde_json::json;
use session_core::Engine;
use session_core::catalog::PropertyValue;
use session_core::cluster::TaintEffect;

fn plan(spec: &ComputeSpec) -> Plan {
    Plan::new(spec, pods_of(spec).unwrap(), "install", None).unwrap()
}

fn sail() -> ComputeSpec {
    spec(kubernetes_cluster(Engine::Sail), 1)
}

/// Whoever changes the pod of a session sees it here.
#[test]
fn the_pod_of_a_sail_session_is_this() {
    let id = key(1).id;
    let pod = serde_json::to_value(plan(&sail()).pod).unwrap();
    assert_eq!(
        pod,
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": format!("{id}-g1"), "namespace": "sessions",
                "labels": {
                    "app.kubernetes.io/name": "berth-session", "app.kubernetes.io/managed-by": "berth",
                    "sidecar.istio.io/inject": "false", "berth/install-id": "install", "berth/org": "acme",
                    "berth/session": id, "berth/generation": "1", "berth/cluster": "main",
                },
            },
            "spec": {
                "restartPolicy": "Never", "terminationGracePeriodSeconds": 5, "shareProcessNamespace": true,
                "automountServiceAccountToken": false, "enableServiceLinks": false,
                "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
                "volumes": [{"name": "session", "emptyDir": {}}],
                "containers": [{
                    "name": "engine", "image": "registry.example/engine:1", "imagePullPolicy": "IfNotPresent",
                    "args": ["spark", "server", "--ip", "0.0.0.0", "--port", "15002"],
                    "workingDir": "/berth/work",
                    "ports": [{"name": "connect", "containerPort": 15002}],
                    "env": [
                        {"name": "HOME", "value": "/berth/work"}, {"name": "LANG", "value": "C.UTF-8"},
                        {"name": "PYTHONNOUSERSITE", "value": "1"}, {"name": "PYTHONUNBUFFERED", "value": "1"},
                        {"name": "SAIL_SPARK__SESSION_TIMEOUT_SECS", "value": "608400"},
                        {"name": "TMPDIR", "value": "/berth/tmp"},
                    ],
                    "resources": {
                        "requests": {"cpu": "1", "memory": "2Gi", "ephemeral-storage": "512Mi"},
                        "limits": {"cpu": "1", "memory": "2Gi", "ephemeral-storage": "10Gi"},
                    },
                    "securityContext": {
                        "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [
                        {"name": "session", "mountPath": "/berth/work", "subPath": "work"},
                        {"name": "session", "mountPath": "/berth/tmp", "subPath": "tmp"},
                        {"name": "session", "mountPath": "/tmp", "subPath": "tmp"},
                    ],
                }],
            },
        })
    );
    assert_eq!(plan(&sail()).secret, BTreeMap::new());
}

#[test]
fn what_a_definition_adds_is_in_the_pod() {
    let mut spec = sail();
    if let Provider::Kubernetes(pods) = &mut spec.cluster.provider {
        pods.command = vec!["/usr/bin/sail".into()];
        pods.image_pull_secrets = vec!["registry".into()];
        pods.node_selector = [("disk".to_owned(), "ssd".to_owned())].into();
        pods.tolerations = vec![
            session_core::cluster::Toleration {
                key: "spot".into(),
                value: Some("yes".into()),
                effect: Some(TaintEffect::NoSchedule),
            },
            session_core::cluster::Toleration {
                key: "gpu".into(),
                ..Default::default()
            },
        ];
        pods.properties = [("SAIL_EXECUTION__X".to_owned(), "a $(HOME) $$(HOME)".to_owned())].into();
    }
    let anchor = OwnerReference {
        api_version: "v1".into(),
        kind: "ConfigMap".into(),
        name: "berth".into(),
        uid: "u".into(),
        ..Default::default()
    };
    let planned = Plan::new(&spec, pods_of(&spec).unwrap(), "install", Some(anchor)).unwrap();
    let pod = serde_json::to_value(planned.pod).unwrap();
    assert_eq!(
        pod["metadata"]["ownerReferences"],
        json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "berth", "uid": "u"}])
    );
    let made = &pod["spec"];
    assert_eq!(made["containers"][0]["command"], json!(["/usr/bin/sail"]));
    assert_eq!(made["imagePullSecrets"], json!([{"name": "registry"}]));
    assert_eq!(made["nodeSelector"], json!({"disk": "ssd"}));
    assert_eq!(
        made["tolerations"],
        json!([
            {"key": "spot", "operator": "Equal", "value": "yes", "effect": "NoSchedule"},
            {"key": "gpu", "operator": "Exists"},
        ])
    );
    let env = made["containers"][0]["env"].as_array().unwrap();
    assert!(
        env.contains(&json!({"name": "SAIL_EXECUTION__X", "value": "a $$(HOME) $$$$(HOME)"})),
        "{env:?}"
    );
}

#[test]
fn secrets_of_spark_are_in_a_secret_only() {
    let spec = spec(kubernetes_cluster(Engine::Spark), 1);
    let planned = plan(&spec);
    let token = planned.secret[TOKEN_KEY].clone();
    assert_eq!(token.len(), 64);
    let conf = &planned.secret[CONF_FILE];
    assert!(
        conf.contains(&format!("spark.connect.authenticate.token={token}\n")),
        "{conf}"
    );
    assert!(
        conf.contains("spark.connect.grpc.binding.address=0.0.0.0\n"),
        "{conf}"
    );
    let pod = serde_json::to_value(&planned.pod).unwrap();
    assert!(
        !pod.to_string().contains(&token),
        "the pod can be read by more people"
    );
    let made = &pod["spec"];
    let name = pod["metadata"]["name"].clone();
    assert_eq!(
        made["volumes"][1],
        json!({"name": "secret", "secret": {"secretName": name}})
    );
    assert_eq!(
        made["containers"][0]["volumeMounts"][3],
        json!({"name": "secret", "mountPath": "/etc/berth-session", "readOnly": true})
    );
    let args = made["containers"][0]["args"].as_array().unwrap();
    for arg in [
        "/opt/spark/jars/*",
        "-Xmx1g",
        "/etc/berth-session/spark.properties",
    ] {
        assert!(args.contains(&json!(arg)), "{arg} is missing in {args:?}");
    }
    let secret = serde_json::to_value(planned.secret_of("u-1")).unwrap();
    assert_eq!(secret["metadata"]["name"], name);
    assert_eq!(
        secret["metadata"]["ownerReferences"],
        json!([{"apiVersion": "v1", "kind": "Pod", "name": name, "uid": "u-1"}])
    );
    assert_eq!(secret["stringData"]["token"], json!(token));
}

#[test]
fn a_secret_of_a_catalog_reaches_sail_by_reference() {
    let start = EngineStart {
        args: Vec::new(),
        env: [
            ("A".to_owned(), "key=s3cret,".to_owned()),
            ("B".to_owned(), "plain".to_owned()),
        ]
        .into(),
        files: Vec::new(),
        credential: None,
        secrets: vec![Secret::new("s3cret"), Secret::new("")],
    };
    let (env, secret) = split(&start, "pod");
    let masks = r#"["s3cret",""]"#.to_owned();
    assert_eq!(
        secret,
        [
            ("A".to_owned(), "key=s3cret,".to_owned()),
            ("log-masks".to_owned(), masks)
        ]
        .into()
    );
    assert_eq!(
        serde_json::to_value(env).unwrap(),
        json!([
            {"name": "A", "valueFrom": {"secretKeyRef": {"name": "pod", "key": "A", "optional": false}}},
            {"name": "B", "value": "plain"},
        ])
    );
}

#[test]
fn a_secret_that_is_not_set_is_named() {
    let mut spec = sail();
    let uri = PropertyValue::Text("${BERTH_SECRET_ACME__UNSET}".into());
    spec.catalog = Some(catalog(Engine::Sail, "c", &[("token", uri)]));
    let cause = Plan::new(&spec, pods_of(&spec).unwrap(), "install", None).unwrap_err();
    assert_eq!(
        cause.text,
        "the secret BERTH_SECRET_ACME__UNSET is not set in the manager's environment"
    );
}
