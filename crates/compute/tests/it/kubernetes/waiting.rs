//! What a pod waits for is reported as soon as the API server shows it.

use super::*;
use std::time::Instant;

/// From the API server to the observation; the rest of the 2 s is for the manager.
const REPORTED_WITHIN: Duration = Duration::from_millis(500);

/// Waits for the next report of a change, then observes until the text is there: no
/// polling without a report.
async fn reported(provider: &KubernetesProvider, spec: &ComputeSpec, text: &str, change: impl FnOnce()) {
    let mut changes = provider.watch();
    let begun = Instant::now();
    change();
    loop {
        let seen = provider.observe(spec).await.unwrap();
        if matches!(&seen, Observation::Starting { cause } if cause.text == text) {
            break;
        }
        let left = REPORTED_WITHIN.saturating_sub(begun.elapsed());
        let change = tokio::time::timeout(left, changes.next()).await;
        assert!(change.is_ok(), "{text} was not reported; last seen: {seen:?}");
    }
}

#[tokio::test]
async fn each_cause_is_reported_with_the_words_of_kubernetes() {
    let fake = FakeKube::new();
    let provider = provider(&fake);
    let spec = spec(Engine::Sail, 1, 1);
    ensure(&provider, &spec).await;
    until_pod(&fake, &spec).await;
    let event = |reason: &str, message: &str| {
        let event = json!({"metadata": {"name": reason}, "reason": reason, "message": message,
            "involvedObject": {"kind": "Pod", "name": name(&spec)}});
        fake.put("events", NAMESPACE, event);
    };
    reported(&provider, &spec, "no node has room: insufficient cpu", || {
        fake.edit_pod(&name(&spec), |pod| pod["status"] = unschedulable());
    })
    .await;
    let Observation::Starting { cause } = provider.observe(&spec).await.unwrap() else {
        panic!("not starting");
    };
    assert_eq!(cause.detail, "0/1 nodes are available: 1 Insufficient cpu.");
    reported(
        &provider,
        &spec,
        "no node has room: a node is being added",
        || {
            event("TriggeredScaleUp", "pod triggered scale-up");
        },
    )
    .await;
    reported(&provider, &spec, "its image is being pulled", || {
        fake.edit_pod(&name(&spec), |pod| {
            pod["status"] =
                json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}]});
        });
        event("Pulling", "Pulling image \"x\"");
    })
    .await;
    reported(&provider, &spec, "its image cannot be pulled", || {
        event("Failed", "Failed to pull image \"x\": 503 Service Unavailable");
        let state = json!({"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}});
        fake.edit_pod(&name(&spec), |pod| {
            pod["status"] = status("Pending", &state, pod_ip())
        });
    })
    .await;
}
