//! The driver, the template of its workers and their network policy, as the API
//! server and the engines get them.

use crate::ComputeSpec;
use crate::kubernetes::pod::{Plan, pods_of};
use crate::testing::{distributed_cluster, key, kubernetes_cluster, spec};
use serde_json::{Value, json};
use session_core::cluster::ProfileWorkers;
use session_core::{Engine, Profile, Provider};

fn plan(spec: &ComputeSpec) -> Plan {
    Plan::new(spec, pods_of(spec).unwrap(), "install", None).unwrap()
}

fn distributed(engine: Engine) -> ComputeSpec {
    spec(distributed_cluster(engine), 1)
}

fn driver(plan: &Plan) -> Value {
    serde_json::to_value(&plan.pod).unwrap()
}

fn variable<'a>(pod: &'a Value, name: &str) -> &'a Value {
    let env = pod["spec"]["containers"][0]["env"].as_array().unwrap();
    let found: Vec<_> = env.iter().filter(|own| own["name"] == name).collect();
    assert_eq!(found.len(), 1, "{name}: {env:?}");
    found[0]
}

/// What Kubernetes and then Sail make of the variable.
fn sail_template(pod: &Value) -> Value {
    let value = variable(pod, "SAIL_KUBERNETES__WORKER_POD_TEMPLATE");
    let text = value["value"].as_str().unwrap().replace("$$", "$");
    let text: String = serde_json::from_str(&text).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn pod_ip() -> Value {
    json!({"fieldRef": {"apiVersion": "v1", "fieldPath": "status.podIP"}})
}

fn worker_labels() -> Value {
    json!({
        "app.kubernetes.io/name": "berth-session", "app.kubernetes.io/managed-by": "berth",
        "sidecar.istio.io/inject": "false", "berth/install-id": "install", "berth/org": "acme",
        "berth/session": key(1).id, "berth/generation": "1", "berth/cluster": "main", "berth/role": "worker",
    })
}

#[test]
fn a_single_pod_has_no_token_and_no_role() {
    for engine in [Engine::Sail, Engine::Spark] {
        let planned = plan(&spec(kubernetes_cluster(engine), 1));
        let pod = driver(&planned);
        assert_eq!(pod["spec"]["automountServiceAccountToken"], false);
        assert_eq!(pod["spec"]["serviceAccountName"], Value::Null);
        assert_eq!(pod["metadata"]["labels"]["berth/role"], Value::Null);
        assert_eq!(planned.peers_of("u"), None);
    }
}

#[test]
fn a_driver_has_its_account_and_its_role() {
    for engine in [Engine::Sail, Engine::Spark] {
        let pod = driver(&plan(&distributed(engine)));
        assert_eq!(pod["spec"]["automountServiceAccountToken"], true);
        assert_eq!(pod["spec"]["serviceAccountName"], "driver");
        assert_eq!(pod["metadata"]["labels"]["berth/role"], "driver");
        assert_eq!(pod["spec"]["containers"].as_array().unwrap().len(), 1);
    }
}

#[test]
fn sail_gets_the_settings_of_its_workers() {
    let pod = driver(&plan(&distributed(Engine::Sail)));
    let name = format!("{}-g1", key(1).id);
    for (setting, value) in [
        ("SAIL_MODE", "\"kubernetes-cluster\""),
        ("SAIL_CLUSTER__DRIVER_LISTEN_HOST", "\"0.0.0.0\""),
        ("SAIL_CLUSTER__WORKER_INITIAL_COUNT", "1"),
        ("SAIL_CLUSTER__WORKER_MAX_COUNT", "4"),
        ("SAIL_CLUSTER__WORKER_MAX_IDLE_TIME_SECS", "30"),
        ("SAIL_CLUSTER__WORKER_TASK_SLOTS", "16"),
        ("SAIL_EXECUTION__DEFAULT_PARALLELISM", "8"),
        ("SAIL_KUBERNETES__IMAGE", "\"registry.example/engine:1\""),
        ("SAIL_KUBERNETES__NAMESPACE", "\"sessions\""),
        ("SAIL_KUBERNETES__DRIVER_POD_NAME", &format!("\"{name}\"")),
        (
            "SAIL_KUBERNETES__WORKER_POD_NAME_PREFIX",
            &format!("\"{name}-w-\""),
        ),
        (
            "SAIL_KUBERNETES__WORKER_SERVICE_ACCOUNT_NAME",
            "\"berth-workers\"",
        ),
    ] {
        assert_eq!(variable(&pod, setting)["value"], value, "{setting}");
    }
    assert_eq!(
        variable(&pod, "SAIL_CLUSTER__DRIVER_EXTERNAL_HOST")["valueFrom"],
        pod_ip()
    );
}

#[test]
fn a_parallelism_of_the_definition_wins() {
    let mut spec = distributed(Engine::Sail);
    if let Provider::Kubernetes(pods) = &mut spec.cluster.provider {
        pods.properties = [("SAIL_EXECUTION__DEFAULT_PARALLELISM".to_owned(), "3".to_owned())].into();
    }
    let pod = driver(&plan(&spec));
    assert_eq!(
        variable(&pod, "SAIL_EXECUTION__DEFAULT_PARALLELISM")["value"],
        "3"
    );
}

/// Whoever changes the pod of a worker sees it here, and must see whether the
/// admission policy of the chart still accepts it.
#[test]
fn the_template_of_a_sail_worker_is_this() {
    let mut spec = distributed(Engine::Sail);
    if let Provider::Kubernetes(pods) = &mut spec.cluster.provider {
        pods.properties = [("AWS_REGION".to_owned(), "a \"b\" $(HOME)".to_owned())].into();
        pods.node_selector = [("disk".to_owned(), "ssd".to_owned())].into();
    }
    let sizes = |disk: &str| json!({"cpu": "1500m", "memory": "2Gi", "ephemeral-storage": disk});
    assert_eq!(
        sail_template(&driver(&plan(&spec))),
        json!({
            "metadata": {"labels": worker_labels()},
            "spec": {
                "restartPolicy": "Never", "terminationGracePeriodSeconds": 5, "shareProcessNamespace": true,
                "serviceAccountName": "berth-workers", "automountServiceAccountToken": false,
                "enableServiceLinks": false, "nodeSelector": {"disk": "ssd"},
                "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
                "volumes": [{"name": "session", "emptyDir": {}}],
                "containers": [{
                    "name": "worker", "image": "registry.example/engine:1", "imagePullPolicy": "IfNotPresent",
                    "workingDir": "/berth/work",
                    "env": [
                        {"name": "AWS_REGION", "value": "a \"b\" $$(HOME)"},
                        {"name": "HOME", "value": "/berth/work"}, {"name": "LANG", "value": "C.UTF-8"},
                        {"name": "PYTHONNOUSERSITE", "value": "1"}, {"name": "PYTHONUNBUFFERED", "value": "1"},
                        {"name": "SAIL_EXECUTION__DEFAULT_PARALLELISM", "value": "8"},
                        {"name": "TMPDIR", "value": "/berth/tmp"},
                    ],
                    "resources": {"requests": sizes("512Mi"), "limits": sizes("10Gi")},
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
}

#[test]
fn spark_gets_the_settings_of_its_executors() {
    let planned = plan(&distributed(Engine::Spark));
    let name = format!("{}-g1", key(1).id);
    let conf: Vec<&str> = planned.secret["spark.properties"].lines().collect();
    for line in [
        "spark.master=k8s://https://kubernetes.default.svc",
        "spark.kubernetes.namespace=sessions",
        "spark.kubernetes.container.image=registry.example/engine:1",
        &format!("spark.kubernetes.driver.pod.name={name}"),
        &format!("spark.kubernetes.executor.podNamePrefix={name}"),
        "spark.kubernetes.executor.podTemplateFile=/etc/berth-session/executor.json",
        "spark.kubernetes.executor.disableConfigMap=true",
        "spark.kubernetes.executor.limit.cores=1500m",
        "spark.executor.cores=2",
        "spark.executor.memory=1536m",
        "spark.executor.memoryOverhead=512m",
        "spark.dynamicAllocation.enabled=true",
        "spark.dynamicAllocation.minExecutors=1",
        "spark.dynamicAllocation.maxExecutors=4",
        "spark.dynamicAllocation.executorIdleTimeout=30s",
    ] {
        assert!(conf.contains(&line), "{line} is missing in {conf:?}");
    }
    let pod = driver(&planned);
    for name in ["BERTH_POD_IP", "SPARK_LOCAL_IP"] {
        assert_eq!(variable(&pod, name)["valueFrom"], pod_ip());
    }
    let args: Vec<&str> = pod["spec"]["containers"][0]["args"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let after = args.iter().position(|arg| arg.ends_with(".SparkSubmit")).unwrap();
    assert_eq!(
        args[after + 1..=after + 4],
        [
            "--conf",
            "spark.driver.host=$(BERTH_POD_IP)",
            "--conf",
            "spark.driver.bindAddress=$(BERTH_POD_IP)"
        ]
    );
}

#[test]
fn as_many_executors_as_ever_need_no_dynamic_allocation() {
    let mut spec = distributed(Engine::Spark);
    if let Provider::Kubernetes(pods) = &mut spec.cluster.provider {
        pods.workers.as_mut().unwrap().min = 4;
    }
    let planned = plan(&spec);
    let conf: Vec<&str> = planned.secret["spark.properties"].lines().collect();
    for line in [
        "spark.dynamicAllocation.enabled=false",
        "spark.executor.instances=4",
    ] {
        assert!(conf.contains(&line), "{line} is missing in {conf:?}");
    }
}

#[test]
fn the_template_of_an_executor_has_no_secret_and_a_command_without_a_shell() {
    let planned = plan(&distributed(Engine::Spark));
    let template: Value = serde_json::from_str(&planned.secret["executor.json"]).unwrap();
    assert_eq!(template["metadata"]["labels"], worker_labels());
    let spec = &template["spec"];
    assert_eq!(spec["serviceAccountName"], "berth-workers");
    assert_eq!(spec["automountServiceAccountToken"], false);
    assert_eq!(spec["volumes"], json!([{"name": "session", "emptyDir": {}}]));
    let worker = &spec["containers"][0];
    assert_eq!(worker["name"], "worker");
    assert_eq!(
        worker["volumeMounts"],
        json!([
            {"name": "session", "mountPath": "/berth/work", "subPath": "work"},
            {"name": "session", "mountPath": "/tmp", "subPath": "tmp"},
        ])
    );
    let command: Vec<&str> = worker["command"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    assert_eq!(command[..3], ["java", "-cp", "/opt/spark/jars/*"]);
    assert_eq!(
        command.last(),
        Some(&"--podName"),
        "Spark adds the argument `executor`"
    );
    assert!(command.contains(&"-Xmx$(SPARK_EXECUTOR_MEMORY)"), "{command:?}");
    let token = &planned.secret["token"];
    assert!(!planned.secret["executor.json"].contains(token.as_str()));
}

#[test]
fn the_pods_of_one_session_reach_each_other_and_no_others() {
    let planned = plan(&distributed(Engine::Sail));
    let policy = serde_json::to_value(planned.peers_of("u-1").unwrap()).unwrap();
    let name = format!("{}-g1", key(1).id);
    assert_eq!(policy["metadata"]["name"], json!(name));
    assert_eq!(
        policy["metadata"]["ownerReferences"],
        json!([{"apiVersion": "v1", "kind": "Pod", "name": name, "uid": "u-1"}])
    );
    let same = json!({"matchLabels": {"berth/session": key(1).id, "berth/generation": "1"}});
    assert_eq!(
        policy["spec"],
        json!({
            "podSelector": same, "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [{"podSelector": same}]}],
            "egress": [{"to": [{"podSelector": same}]}],
        })
    );
}

#[test]
fn workers_have_the_size_of_the_sessions_profile() {
    for (engine, of_default, of_large) in [
        (
            Engine::Sail,
            [("SAIL_CLUSTER__WORKER_MAX_COUNT", "4")].as_slice(),
            [("SAIL_CLUSTER__WORKER_MAX_COUNT", "9")].as_slice(),
        ),
        (
            Engine::Spark,
            [
                ("spark.kubernetes.executor.request.cores", "1500m"),
                ("spark.executor.memory", "1536m"),
            ]
            .as_slice(),
            [
                ("spark.kubernetes.executor.request.cores", "3"),
                ("spark.executor.memory", "6144m"),
            ]
            .as_slice(),
        ),
    ] {
        let mut cluster = distributed_cluster(engine);
        if let Provider::Kubernetes(pods) = &mut cluster.provider {
            let (cpu, memory) = (std::mem::take(&mut pods.cpu), std::mem::take(&mut pods.memory));
            let profile = |default, workers| Profile {
                cpu: cpu.clone(),
                memory: memory.clone(),
                default,
                workers,
                ..Profile::default()
            };
            let large = ProfileWorkers {
                max: Some(9),
                cpu: Some("3".to_owned()),
                memory: Some("8Gi".to_owned()),
                min: None,
            };
            pods.profiles = [
                ("default".to_owned(), profile(true, None)),
                ("large".to_owned(), profile(false, Some(large))),
            ]
            .into();
        }
        for (name, settings, limits) in [
            ("default", of_default, json!({"cpu": "1500m", "memory": "2Gi"})),
            ("large", of_large, json!({"cpu": "3", "memory": "8Gi"})),
        ] {
            let sized = cluster.with_profile(Some(&name.parse().unwrap())).unwrap();
            let plan = plan(&spec(sized, 1));
            let pod = driver(&plan);
            for (setting, value) in settings {
                match engine {
                    Engine::Sail => {
                        assert_eq!(variable(&pod, setting)["value"], *value, "{name} {setting}");
                    }
                    Engine::Spark => assert!(
                        plan.secret["spark.properties"].contains(value),
                        "{name} {setting}: {}",
                        plan.secret["spark.properties"]
                    ),
                }
            }
            if engine == Engine::Sail {
                let worker = sail_template(&pod)["spec"]["containers"][0]["resources"]["limits"].clone();
                for (resource, amount) in limits.as_object().unwrap() {
                    assert_eq!(worker[resource], *amount, "{name} {resource}");
                }
            }
        }
    }
}
