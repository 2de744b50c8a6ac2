//! The kubernetes provider with an API server and an engine in memory.

mod definitions;
mod distributed;
mod duplicates;
mod failures;
mod kills;
mod life;
mod pools;
mod waiting;

use crate::support::fake_engine::FakeEngine;
use crate::support::fake_kube::FakeKube;
use crate::support::{cluster, key, spec_on, until, until_failed_with, until_missing, until_ready};
use compute::{ComputeProvider, ComputeSpec, Found, KubernetesConfig, KubernetesProvider};
use futures::StreamExt;
use serde_json::{Value, json};
use session_core::machine::Observation;
use session_core::route::Secret;
use session_core::{Engine, Provider};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;
use test_support::fixtures;

pub(crate) const NAMESPACE: &str = "sessions";

pub(crate) fn provider_config() -> KubernetesConfig {
    KubernetesConfig {
        namespaces: vec![NAMESPACE.to_owned()],
        anchor: None,
        max_pods: 100,
        max_starting: 10,
        warm_max_age: None,
        install_id: "install".to_owned(),
        pool_secret: Secret::new("secret of this installation".to_owned()),
        is_isolated: false,
    }
}

pub(crate) fn provider_with(fake: &FakeKube, edit: impl FnOnce(&mut KubernetesConfig)) -> KubernetesProvider {
    let mut config = provider_config();
    edit(&mut config);
    KubernetesProvider::new(config, fake.client())
}

pub(crate) fn provider(fake: &FakeKube) -> KubernetesProvider {
    provider_with(fake, |_| {})
}

pub(crate) fn spec(engine: Engine, n: u64, generation: u64) -> ComputeSpec {
    ComputeSpec {
        generation,
        ..spec_on(cluster(engine, fixtures::pods(NAMESPACE)), n)
    }
}

pub(crate) fn name(spec: &ComputeSpec) -> String {
    format!("{}-g{}", spec.key.id, spec.generation)
}

/// An address for a pod, on this machine and of no other test.
pub(crate) fn pod_ip() -> IpAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    IpAddr::from([127, 77, 0, NEXT.fetch_add(1, Ordering::Relaxed)])
}

/// Asks until the namespace is listed, which is what a reconciler does.
pub(crate) async fn ensure(provider: &KubernetesProvider, spec: &ComputeSpec) {
    let begun = std::time::Instant::now();
    while let Err(error) = provider.ensure(spec).await {
        assert!(begun.elapsed() < Duration::from_secs(20), "{error}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Asks without a pause, as a reconciler does that every failure calls, until
/// there is a pod.
pub(crate) async fn ensure_until_pod(provider: &KubernetesProvider, fake: &FakeKube, spec: &ComputeSpec) {
    let begun = std::time::Instant::now();
    while fake.object("pods", &name(spec)).is_none() {
        assert!(begun.elapsed() < Duration::from_secs(20), "not tried again");
        ensure(provider, spec).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) async fn until_pod(fake: &FakeKube, spec: &ComputeSpec) {
    let begun = std::time::Instant::now();
    while fake.object("pods", &name(spec)).is_none() {
        assert!(begun.elapsed() < Duration::from_secs(20), "no pod");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) fn running(ip: IpAddr) -> Value {
    status("Running", &json!({"running": {}}), ip)
}

pub(crate) fn status(phase: &str, state: &Value, ip: IpAddr) -> Value {
    json!({"phase": phase, "podIP": ip, "containerStatuses": [{
        "name": "engine", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": state
    }]})
}

pub(crate) fn unschedulable() -> Value {
    json!({"phase": "Pending", "conditions": [{
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
        "message": "0/1 nodes are available: 1 Insufficient cpu."
    }]})
}

pub(crate) fn run(fake: &FakeKube, spec: &ComputeSpec, ip: IpAddr) {
    fake.edit_pod(&name(spec), |pod| pod["status"] = running(ip));
}

pub(crate) async fn until_starting(provider: &KubernetesProvider, spec: &ComputeSpec, text: &str) {
    until(
        provider,
        spec,
        |seen| matches!(seen, Observation::Starting { cause } if cause.text == text),
    )
    .await;
}

/// The provider itself, once it can answer.
pub(crate) async fn provider_ready<'a>(
    provider: &'a KubernetesProvider,
    spec: &ComputeSpec,
) -> &'a KubernetesProvider {
    let begun = std::time::Instant::now();
    while let Err(error) = provider.observe(spec).await {
        assert!(begun.elapsed() < Duration::from_secs(20), "{error}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    provider
}
