//! Pools of pods without a session: filled, claimed, stopped, drained.

use super::*;
use compute::WarmPools;
use compute::warm_pools::{PoolUse, WarmPool, WarmPoolStatus};
use session_core::Profile;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const LEASE: Duration = Duration::from_secs(60);

/// A spec whose cluster has a pool.
pub(super) fn warm_spec(engine: Engine, n: u64, generation: u64) -> ComputeSpec {
    let mut spec = spec(engine, n, generation);
    if let Provider::Kubernetes(pods) = &mut spec.cluster.provider {
        pods.warm_pods = 2;
    }
    spec
}

pub(super) fn pool(engine: Engine, size: usize) -> WarmPool {
    WarmPool {
        cluster: warm_spec(engine, 1, 1).cluster,
        catalog: None,
        size,
    }
}

pub(super) fn set(provider: &KubernetesProvider, pools: Vec<WarmPool>) {
    provider.warm_pools().unwrap().set(pools, LEASE);
}

pub(super) fn status(provider: &KubernetesProvider) -> WarmPoolStatus {
    provider.status().first().cloned().expect("a pool")
}

/// Waits until the condition holds, at most 20 s.
pub(super) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !condition() {
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "not within 20 s: {what}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Plays scheduler and kubelet: every new pod of a pool runs at `ip`.
pub(super) fn kubelet(fake: &FakeKube, ip: IpAddr) -> tokio::task::JoinHandle<()> {
    let fake = fake.clone();
    tokio::spawn(async move {
        loop {
            for name in warm_names(&fake) {
                fake.place(&name, &running(ip));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
}

/// The pods that a pool made, claimed or not.
pub(super) fn warm_names(fake: &FakeKube) -> Vec<String> {
    let names = fake.names("pods").into_iter();
    names.filter(|name| name.starts_with("warm-")).collect()
}

/// The sessions by pod.
pub(super) fn sessions(fake: &FakeKube) -> BTreeMap<String, Value> {
    let pods = fake.names("pods").into_iter();
    pods.filter_map(|name| {
        let pod = fake.object("pods", &name)?;
        let session = pod["metadata"]["labels"]["berth/session"].clone();
        (!session.is_null()).then_some((name, session))
    })
    .collect()
}

fn writes_of(fake: &FakeKube, what: &str) -> usize {
    fake.writes().iter().filter(|write| *write == what).count()
}

#[tokio::test]
async fn a_session_claims_a_pod_with_one_write_and_the_pool_is_refilled() {
    let (fake, ip) = (FakeKube::new(), pod_ip());
    let _engine = FakeEngine::start(ip).await;
    let (provider, _kubelet) = (provider(&fake), kubelet(&fake, ip));
    set(&provider, vec![pool(Engine::Sail, 2)]);
    eventually("two pods answered", || status(&provider).available == 2).await;
    assert!(sessions(&fake).is_empty());
    assert_eq!(provider.inventory().await.unwrap(), [], "no compute of a session");
    let first = warm_names(&fake);

    let spec = warm_spec(Engine::Sail, 1, 1);
    ensure(&provider, &spec).await;
    let route = until_ready(&provider, &spec).await;
    assert_eq!(route.endpoint, format!("{ip}:15002"));
    let claimed = sessions(&fake);
    assert_eq!(claimed.values().collect::<Vec<_>>(), [&json!(spec.key.id)]);
    let (name, _) = claimed.first_key_value().unwrap();
    assert!(first.contains(name), "not a new pod");
    let labels = fake.object("pods", name).unwrap()["metadata"]["labels"].clone();
    assert_eq!(labels["berth/generation"], "1");
    assert_eq!(labels["berth/org"], json!(spec.key.org));
    assert!(labels["berth/pool"].is_null());
    assert_eq!(writes_of(&fake, "PATCH pods"), 1);
    assert!(matches!(provider.take_uses()[..], [PoolUse::Hit(_)]));
    let found = provider.inventory().await.unwrap();
    assert_eq!((&found[0].key, found[0].generation), (&spec.key, 1));
    assert!(found[0].age < Duration::from_secs(60), "counted from the claim");

    eventually("the pool is full again", || status(&provider).available == 2).await;
    provider.release(&spec).await.unwrap();
    until_missing(&provider, &spec).await;
    assert!(
        !fake.names("pods").contains(name),
        "a pod serves one session ever"
    );
    // Two pods of the pool and one more for the claimed one. A delete may be repeated.
    assert_eq!(writes_of(&fake, "POST pods"), 3, "{:?}", fake.writes());
    assert!(
        (1..=4).contains(&writes_of(&fake, "DELETE pods")),
        "{:?}",
        fake.writes()
    );
}

#[tokio::test]
async fn a_pod_counts_only_once_its_engine_answered() {
    let (fake, ip) = (FakeKube::new(), pod_ip());
    let (provider, _kubelet) = (provider(&fake), kubelet(&fake, ip));
    set(&provider, vec![pool(Engine::Sail, 1)]);
    eventually("a pod runs", || {
        status(&provider).starting == 1 && !warm_names(&fake).is_empty()
    })
    .await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!((status(&provider).available, status(&provider).starting), (0, 1));
    // A dry pool: the session starts cold.
    let spec = warm_spec(Engine::Sail, 1, 1);
    ensure(&provider, &spec).await;
    until_pod(&fake, &spec).await;
    assert_eq!(provider.take_uses(), [PoolUse::Empty]);
    let _engine = FakeEngine::start(ip).await;
    run(&fake, &spec, ip);
    until_ready(&provider, &spec).await;
    eventually("the pod answered", || status(&provider).available == 1).await;
    assert_eq!(writes_of(&fake, "PATCH pods"), 0);
}

#[tokio::test]
async fn other_start_settings_start_cold() {
    let (fake, ip) = (FakeKube::new(), pod_ip());
    let _engine = FakeEngine::start(ip).await;
    let (provider, _kubelet) = (provider(&fake), kubelet(&fake, ip));
    set(&provider, vec![pool(Engine::Sail, 1)]);
    eventually("a pod answered", || status(&provider).available == 1).await;
    let mut spec = warm_spec(Engine::Sail, 1, 1);
    spec.catalog = Some(crate::support::catalog(
        Engine::Sail,
        "lake",
        &[("type", "memory")],
    ));
    ensure(&provider, &spec).await;
    until_pod(&fake, &spec).await;
    assert_eq!(provider.take_uses(), [PoolUse::Different]);
    assert_eq!(status(&provider).available, 1);
    // A pool for this catalog is started with it.
    let lake = WarmPool {
        catalog: spec.catalog.clone(),
        ..pool(Engine::Sail, 1)
    };
    set(&provider, vec![pool(Engine::Sail, 1), lake]);
    let has_catalog = |name: &String| {
        let pod = fake.object("pods", name);
        pod.is_some_and(|pod| pod["spec"].to_string().contains("SAIL_CATALOG__LIST"))
    };
    eventually("a pod with the catalog", || {
        warm_names(&fake).iter().filter(|name| has_catalog(name)).count() == 1
    })
    .await;
    let names = ["acme/lake", ""].map(str::to_owned);
    assert!(provider.status().iter().all(|pool| names.contains(&pool.catalog)));
}

#[tokio::test]
async fn each_profile_has_a_pool_of_its_own() {
    let (fake, ip) = (FakeKube::new(), pod_ip());
    let _engine = FakeEngine::start(ip).await;
    let (provider, _kubelet) = (provider(&fake), kubelet(&fake, ip));
    let mut cluster = warm_spec(Engine::Sail, 1, 1).cluster;
    if let Provider::Kubernetes(pods) = &mut cluster.provider {
        let profile = |cpu: &str, warm_pods, default| Profile {
            cpu: cpu.to_owned(),
            memory: "1Gi".to_owned(),
            warm_pods,
            default,
            ..Profile::default()
        };
        let sizes = [
            ("large", profile("3", 1, false)),
            ("none", profile("1", 0, false)),
            ("small", profile("1", 0, true)),
        ];
        pods.profiles = sizes.map(|(name, profile)| (name.to_owned(), profile)).into();
    }
    let sized = |name: &str| cluster.with_profile(Some(&name.parse().unwrap())).unwrap();
    let of_profile = |name: &str, size| WarmPool {
        cluster: sized(name),
        catalog: None,
        size,
    };
    set(&provider, vec![of_profile("large", 1), of_profile("small", 2)]);
    let available = || {
        let all = provider.status().into_iter();
        all.map(|pool| (pool.profile, pool.available))
            .collect::<BTreeMap<_, _>>()
    };
    let full = BTreeMap::from([("large".to_owned(), 1), ("small".to_owned(), 2)]);
    eventually("both pools are full", || available() == full).await;
    for (n, name, is_warm) in [(1, "large", true), (2, "small", true), (3, "none", false)] {
        let spec = ComputeSpec {
            cluster: sized(name),
            ..warm_spec(Engine::Sail, n, 1)
        };
        ensure(&provider, &spec).await;
        if !is_warm {
            until_pod(&fake, &spec).await;
            run(&fake, &spec, ip);
        }
        until_ready(&provider, &spec).await;
        let own = sessions(&fake).into_iter();
        let own: Vec<_> = own.filter(|(_, id)| *id == json!(spec.key.id)).collect();
        assert_eq!(own[0].0.starts_with("warm-"), is_warm, "{name}: {own:?}");
        let pod = fake.object("pods", &own[0].0).unwrap();
        let cpu = &pod["spec"]["containers"][0]["resources"]["limits"]["cpu"];
        assert_eq!(*cpu, if name == "large" { "3" } else { "1" }, "{name}");
    }
    eventually("both pools are full again", || available() == full).await;
}

#[tokio::test]
async fn two_managers_share_a_pool_and_no_pod_serves_two_sessions() {
    let (fake, ip) = (FakeKube::new(), pod_ip());
    let _engine = FakeEngine::start(ip).await;
    let managers = [provider(&fake), provider(&fake)].map(Arc::new);
    let _kubelet = kubelet(&fake, ip);
    let leader = &managers[0];
    set(leader, vec![pool(Engine::Sail, 10)]);
    managers[1].set(vec![pool(Engine::Sail, 10)], Duration::ZERO);
    eventually("both see a full pool", || {
        managers.iter().all(|one| status(one).available == 10)
    })
    .await;
    // No more pods: every pod beyond the tenth is a cold one.
    managers[0].set(vec![pool(Engine::Sail, 10)], Duration::ZERO);
    let specs: Vec<_> = (1..=16).map(|n| warm_spec(Engine::Sail, n, 1)).collect();
    let mut tasks = tokio::task::JoinSet::new();
    for (n, spec) in specs.iter().cloned().enumerate() {
        // Half of the sessions are started by both managers at once.
        for manager in managers.iter().skip(n % 2) {
            let (manager, spec, fake) = (Arc::clone(manager), spec.clone(), fake.clone());
            tasks.spawn(async move {
                let begun = std::time::Instant::now();
                loop {
                    ensure(&manager, &spec).await;
                    if let Ok(Observation::Ready { .. }) = manager.observe(&spec).await {
                        return;
                    }
                    fake.place(&name(&spec), &running(ip));
                    assert!(
                        begun.elapsed() < Duration::from_secs(30),
                        "{:?}",
                        manager.observe(&spec).await
                    );
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            });
        }
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let served = sessions(&fake);
    let distinct: BTreeSet<String> = served.values().map(Value::to_string).collect();
    assert_eq!(distinct.len(), specs.len(), "every session has a pod");
    assert_eq!(served.len(), specs.len(), "and one only: {served:?}");
    // Managers that start one session at once may waste pods, but not all.
    assert!(served.keys().any(|name| name.starts_with("warm-")), "{served:?}");
    for spec in &specs {
        managers[1].release(spec).await.unwrap();
    }
    for spec in &specs {
        until_missing(&*managers[0], spec).await;
    }
    assert!(sessions(&fake).is_empty(), "{:?}", sessions(&fake));
}

#[tokio::test]
async fn the_next_manager_finds_a_claimed_pod_and_the_pool() {
    let (fake, ip) = (FakeKube::new(), pod_ip());
    let engine = FakeEngine::start(ip).await;
    let _kubelet = kubelet(&fake, ip);
    let spec = warm_spec(Engine::Spark, 1, 1);
    let route = {
        let dead = provider(&fake);
        set(&dead, vec![pool(Engine::Spark, 2)]);
        eventually("two pods answered", || status(&dead).available == 2).await;
        ensure(&dead, &spec).await;
        let route = until_ready(&dead, &spec).await;
        eventually("the pool is full again", || status(&dead).available == 2).await;
        route
    };
    let next = provider(&fake);
    provider_ready(&next, &spec).await;
    assert_eq!(until_ready(&next, &spec).await, route);
    let token = format!("Bearer {}", route.credential.unwrap().expose());
    assert!(engine.tokens.lock().unwrap().contains(&token));
    let before = fake.writes().len();
    set(&next, vec![pool(Engine::Spark, 2)]);
    eventually("the pool is found", || status(&next).available == 2).await;
    let posts = |writes: &[String]| writes.iter().filter(|write| *write == "POST pods").count();
    assert_eq!(posts(&fake.writes()[before..]), 0);
    next.release(&spec).await.unwrap();
    until_missing(&next, &spec).await;
    assert_eq!(fake.names("secrets").len(), 2, "the Secrets of the pool");
}

#[tokio::test]
async fn a_changed_or_unwanted_pool_is_drained_and_claimed_pods_stay() {
    let (fake, ip) = (FakeKube::new(), pod_ip());
    let _engine = FakeEngine::start(ip).await;
    let (provider, _kubelet) = (provider(&fake), kubelet(&fake, ip));
    set(&provider, vec![pool(Engine::Sail, 2)]);
    eventually("two pods answered", || status(&provider).available == 2).await;
    let spec = warm_spec(Engine::Sail, 1, 1);
    ensure(&provider, &spec).await;
    until_ready(&provider, &spec).await;
    let claimed: Vec<String> = sessions(&fake).into_keys().collect();
    let old: BTreeSet<String> = warm_names(&fake).into_iter().collect();
    let mut changed = pool(Engine::Sail, 2);
    if let Provider::Kubernetes(pods) = &mut changed.cluster.provider {
        pods.memory = "3Gi".to_owned();
    }
    set(&provider, vec![changed]);
    eventually("only new pods", || {
        let now = warm_names(&fake);
        let left = now.iter().filter(|name| old.contains(*name)).count();
        left == 1 && status(&provider).available == 2
    })
    .await;
    set(&provider, Vec::new());
    eventually("no pool", || warm_names(&fake) == claimed).await;
    assert!(matches!(
        provider.observe(&spec).await,
        Ok(Observation::Ready { .. })
    ));
}

#[tokio::test]
async fn who_does_not_hold_the_lease_creates_and_deletes_nothing() {
    let (fake, ip) = (FakeKube::new(), pod_ip());
    let _engine = FakeEngine::start(ip).await;
    let _kubelet = kubelet(&fake, ip);
    let (leader, other) = (provider(&fake), provider(&fake));
    set(&leader, vec![pool(Engine::Sail, 2)]);
    eventually("two pods answered", || status(&leader).available == 2).await;
    other.set(Vec::new(), Duration::ZERO);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(warm_names(&fake).len(), 2);
    other.set(vec![pool(Engine::Sail, 5)], Duration::ZERO);
    eventually("seen by the other", || status(&other).available == 2).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(warm_names(&fake).len(), 2);
    // Its claims are refilled by the leader.
    let spec = warm_spec(Engine::Sail, 1, 1);
    ensure(&other, &spec).await;
    until_ready(&other, &spec).await;
    eventually("refilled", || {
        status(&leader).available == 2 && warm_names(&fake).len() == 3
    })
    .await;
}

#[tokio::test]
async fn three_failures_stop_a_pool_with_the_reason() {
    let fake = FakeKube::new();
    let provider = provider(&fake);
    let words = "pods \"x\" is forbidden: exceeded quota: compute, requested: limits.cpu=4, used: limits.cpu=5, limited: limits.cpu=8";
    for _ in 0..3 {
        fake.fail_next("POST pods", 403, words);
    }
    set(&provider, vec![pool(Engine::Sail, 2)]);
    eventually("stopped", || status(&provider).stopped.is_some()).await;
    let why = status(&provider).stopped.unwrap();
    assert!(
        why.starts_with("quota compute of its namespace is used up: needs 4 CPU, 3 of 8 left"),
        "{why}"
    );
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(warm_names(&fake), Vec::<String>::new(), "not tried again at once");
    // A changed definition is tried at once.
    let mut changed = pool(Engine::Sail, 2);
    changed.cluster.version += 1;
    set(&provider, vec![changed]);
    eventually("tried again", || warm_names(&fake).len() == 2).await;
    assert_eq!(status(&provider).stopped, None);
}

#[tokio::test]
async fn pods_of_pools_count_against_the_limit() {
    let (fake, ip) = (FakeKube::new(), pod_ip());
    let _engine = FakeEngine::start(ip).await;
    let provider = provider_with(&fake, |config| config.max_pods = 3);
    let _kubelet = kubelet(&fake, ip);
    set(&provider, vec![pool(Engine::Sail, 5)]);
    eventually("three pods answered", || status(&provider).available == 3).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(warm_names(&fake).len(), 3);
    // A claim needs no further pod.
    let spec = warm_spec(Engine::Sail, 1, 1);
    ensure(&provider, &spec).await;
    until_ready(&provider, &spec).await;
    assert_eq!(fake.names("pods").len(), 3);
}

#[tokio::test]
async fn a_release_during_a_claim_leaves_no_pod_of_the_session() {
    let (fake, ip) = (FakeKube::new(), pod_ip());
    let _engine = FakeEngine::start(ip).await;
    let (provider, _kubelet) = (provider(&fake), kubelet(&fake, ip));
    set(&provider, vec![pool(Engine::Sail, 4)]);
    for n in 1..=12 {
        eventually("a pod is available", || status(&provider).available > 0).await;
        let spec = warm_spec(Engine::Sail, n, 1);
        ensure(&provider, &spec).await;
        for _ in 0..n {
            tokio::task::yield_now().await;
        }
        provider.release(&spec).await.unwrap();
        until_missing(&provider, &spec).await;
    }
    eventually("no pod of a session", || sessions(&fake).is_empty()).await;
}

#[tokio::test]
async fn a_claimed_pod_that_ends_is_deleted_once() {
    let (fake, ip) = (FakeKube::new(), pod_ip());
    let _engine = FakeEngine::start(ip).await;
    let (provider, _kubelet) = (provider(&fake), kubelet(&fake, ip));
    set(&provider, vec![pool(Engine::Sail, 1)]);
    eventually("a pod answered", || status(&provider).available == 1).await;
    let spec = warm_spec(Engine::Sail, 1, 1);
    ensure(&provider, &spec).await;
    until_ready(&provider, &spec).await;
    let (claimed, _) = sessions(&fake).pop_first().unwrap();
    fake.edit_pod(&claimed, |pod| {
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    });
    until(&provider, &spec, |seen| {
        matches!(seen, Observation::Failed { .. })
    })
    .await;
    let mut changes = provider.watch();
    for _ in 0..20 {
        provider.release(&spec).await.unwrap();
    }
    assert_eq!(writes_of(&fake, "DELETE pods"), 0, "it is being deleted");
    let change = tokio::time::timeout(Duration::from_millis(100), changes.next()).await;
    assert!(
        change.is_err(),
        "a change would make the reconciler release again at once"
    );
    fake.remove("pods", &claimed);
    until_missing(&provider, &spec).await;
}
