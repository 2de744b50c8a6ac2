//! Two pods of one session generation, as managers leave them that claim or create at
//! once and get no answer: one is deleted, and the session keeps the other.

use super::pools::{eventually, kubelet, pool, sessions, set, status, warm_names, warm_spec};
use super::*;
use crate::support::fake_engine::FakeEngine;

/// A second pod must be gone within this time.
const LIMIT: Duration = Duration::from_secs(60);

/// A claim of another manager that got no answer.
fn claim(fake: &FakeKube, pod: &str, spec: &ComputeSpec) {
    fake.edit_pod(pod, |pod| {
        let labels = pod["metadata"]["labels"].as_object_mut().unwrap();
        labels.remove("berth/pool");
        labels.extend([
            ("berth/org".to_owned(), json!(spec.key.org)),
            ("berth/session".to_owned(), json!(spec.key.id)),
            ("berth/generation".to_owned(), json!(spec.generation.to_string())),
        ]);
        let now = k8s_openapi::jiff::Timestamp::now().to_string();
        pod["metadata"]["annotations"] = json!({"berth/claimed-at": now});
    });
}

/// Waits until the session has this pod only, which stays observed as ready if it
/// was ready before.
async fn until_only(fake: &FakeKube, provider: &KubernetesProvider, spec: &ComputeSpec, pod: &str) {
    let begun = std::time::Instant::now();
    loop {
        let left: Vec<String> = sessions(fake).into_keys().collect();
        assert!(left.iter().any(|name| name == pod), "{pod} is not in {left:?}");
        let seen = provider.observe(spec).await;
        assert!(matches!(seen, Ok(Observation::Ready { .. })), "{seen:?}");
        if left.len() == 1 {
            return;
        }
        assert!(begun.elapsed() < LIMIT, "{left:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_later_claim_does_not_replace_a_pod_that_serves() {
    let (fake, ip) = (FakeKube::new(), pod_ip());
    let _engine = FakeEngine::start(ip).await;
    let (provider, _kubelet) = (provider(&fake), kubelet(&fake, ip));
    let spec = warm_spec(Engine::Sail, 1, 1);
    ensure(&provider, &spec).await;
    until_pod(&fake, &spec).await;
    run(&fake, &spec, ip);
    until_ready(&provider, &spec).await;
    set(&provider, vec![pool(Engine::Sail, 1)]);
    eventually("a pod answered", || status(&provider).available == 1).await;
    // Times of creation have whole seconds.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    claim(&fake, &warm_names(&fake)[0], &spec);
    until_only(&fake, &provider, &spec, &name(&spec)).await;
}

#[tokio::test]
async fn a_later_pod_does_not_replace_a_claimed_one() {
    let (fake, ip) = (FakeKube::new(), pod_ip());
    let _engine = FakeEngine::start(ip).await;
    let (provider, _kubelet) = (provider(&fake), kubelet(&fake, ip));
    set(&provider, vec![pool(Engine::Sail, 1)]);
    eventually("a pod answered", || status(&provider).available == 1).await;
    let spec = warm_spec(Engine::Sail, 1, 1);
    ensure(&provider, &spec).await;
    until_ready(&provider, &spec).await;
    let (claimed, _) = sessions(&fake).pop_first().unwrap();
    // Another manager created a pod and did not learn of it.
    let mut second = fake.object("pods", &claimed).unwrap();
    let labels = second["metadata"]["labels"].clone();
    second["metadata"] = json!({"name": name(&spec), "labels": labels});
    fake.put("pods", NAMESPACE, second);
    until_only(&fake, &provider, &spec, &claimed).await;
}

#[tokio::test]
async fn of_two_claims_without_a_manager_one_serves() {
    let (fake, ip) = (FakeKube::new(), pod_ip());
    let _engine = FakeEngine::start(ip).await;
    let _kubelet = kubelet(&fake, ip);
    let spec = warm_spec(Engine::Spark, 1, 1);
    {
        let dead = provider(&fake);
        set(&dead, vec![pool(Engine::Spark, 2)]);
        eventually("two pods answered", || status(&dead).available == 2).await;
    }
    let names = warm_names(&fake);
    // The first claim is that of the pod with the greater name.
    for name in names.iter().rev() {
        claim(&fake, name, &spec);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let next = provider(&fake);
    provider_ready(&next, &spec).await;
    until_ready(&next, &spec).await;
    until_only(&fake, &next, &spec, names.last().unwrap()).await;
}
