//! Drivers and their workers: what Berth writes for them and deletes.

use super::*;
use crate::support::fake_engine::FakeEngine;
use session_core::KubernetesWorkers;

fn distributed(n: u64) -> ComputeSpec {
    let mut spec = spec(Engine::Sail, n, 1);
    if let Provider::Kubernetes(pods) = &mut spec.cluster.provider {
        pods.service_account = Some("driver".to_owned());
        pods.workers = Some(KubernetesWorkers {
            min: 1,
            max: 2,
            cpu: "1".to_owned(),
            memory: "1Gi".to_owned(),
            ..KubernetesWorkers::default()
        });
    }
    spec
}

/// A worker of the pod `driver` with the uid `uid`.
fn worker(spec: &ComputeSpec, n: u64, uid: &Value) -> Value {
    json!({
        "metadata": {
            "name": format!("{}-w-{n}", name(spec)),
            "labels": {
                "berth/install-id": "install", "berth/org": spec.key.org, "berth/session": spec.key.id,
                "berth/generation": spec.generation.to_string(), "berth/cluster": spec.cluster.name,
                "berth/role": "worker",
            },
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": name(spec), "uid": uid}],
        },
        "status": {"phase": "Running"},
    })
}

async fn until_pods(fake: &FakeKube, wanted: &[String]) {
    let begun = std::time::Instant::now();
    loop {
        let names = fake.names("pods");
        if names == wanted {
            return;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(45),
            "{names:?} instead of {wanted:?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_driver_gets_one_network_policy_where_everything_is_denied() {
    for is_isolated in [true, false] {
        let fake = FakeKube::new();
        let provider = provider_with(&fake, |config| config.is_isolated = is_isolated);
        let (spec, ip) = (distributed(1), pod_ip());
        let engine = FakeEngine::start(ip).await;
        ensure(&provider, &spec).await;
        until_pod(&fake, &spec).await;
        run(&fake, &spec, ip);
        until_ready(&provider, &spec).await;
        let mut writes = vec!["POST pods".to_owned()];
        writes.extend(is_isolated.then(|| "POST networkpolicies".to_owned()));
        assert_eq!(fake.writes(), writes);
        provider.release(&spec).await.unwrap();
        until_missing(&provider, &spec).await;
        assert_eq!(fake.names("networkpolicies"), Vec::<String>::new());
        drop(engine);
    }
}

#[tokio::test]
async fn a_manager_that_takes_over_creates_the_missing_policy() {
    let fake = FakeKube::new();
    let (spec, ip) = (distributed(1), pod_ip());
    let _engine = FakeEngine::start(ip).await;
    let first = provider_with(&fake, |config| config.is_isolated = true);
    ensure(&first, &spec).await;
    until_pod(&fake, &spec).await;
    drop(first);
    for policy in fake.names("networkpolicies") {
        fake.remove("networkpolicies", &policy);
    }
    run(&fake, &spec, ip);
    let second = provider_with(&fake, |config| config.is_isolated = true);
    provider_ready(&second, &spec).await;
    until_ready(&second, &spec).await;
    assert_eq!(fake.names("networkpolicies"), [name(&spec)]);
}

#[tokio::test]
async fn workers_are_neither_counted_nor_taken_for_sessions() {
    let fake = FakeKube::new();
    let (spec, ip) = (distributed(1), pod_ip());
    let _engine = FakeEngine::start(ip).await;
    let provider = provider_with(&fake, |config| config.max_pods = 2);
    ensure(&provider, &spec).await;
    until_pod(&fake, &spec).await;
    run(&fake, &spec, ip);
    until_ready(&provider, &spec).await;
    let uid = fake.object("pods", &name(&spec)).unwrap()["metadata"]["uid"].clone();
    for n in [1, 2, 3] {
        fake.put("pods", NAMESPACE, worker(&spec, n, &uid));
    }
    let found = provider.inventory().await.unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    let second = distributed(2);
    ensure(&provider, &second).await;
    until_pod(&fake, &second).await;
    provider.release(&spec).await.unwrap();
    until_pods(&fake, &[name(&second)]).await;
}

#[tokio::test]
async fn workers_without_their_driver_are_deleted() {
    let fake = FakeKube::new();
    let (mine, gone, again) = (distributed(1), distributed(2), distributed(3));
    let ip = pod_ip();
    let _engine = FakeEngine::start(ip).await;
    let begun = provider(&fake);
    for spec in [&mine, &again] {
        ensure(&begun, spec).await;
        until_pod(&fake, spec).await;
    }
    drop(begun);
    let uid = fake.object("pods", &name(&mine)).unwrap()["metadata"]["uid"].clone();
    fake.put("pods", NAMESPACE, worker(&mine, 1, &uid));
    fake.put(
        "pods",
        NAMESPACE,
        worker(&gone, 1, &json!("uid-of-a-deleted-pod")),
    );
    // Its driver was replaced by another pod of the same name.
    fake.put(
        "pods",
        NAMESPACE,
        worker(&again, 1, &json!("uid-of-the-first-pod")),
    );
    let mut foreign = worker(&gone, 2, &json!("x"));
    foreign["metadata"]["labels"]["berth/install-id"] = json!("other");
    fake.put("pods", NAMESPACE, foreign);
    let _provider = provider(&fake);
    let mut left = vec![
        name(&mine),
        format!("{}-w-1", name(&mine)),
        format!("{}-w-2", name(&gone)),
        name(&again),
    ];
    left.sort();
    until_pods(&fake, &left).await;
}
