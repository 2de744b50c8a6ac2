//! What goes wrong: in the engine, in its pod, at the API server.

use super::*;

#[tokio::test]
async fn a_quota_is_explained_and_tried_again() {
    let fake = FakeKube::new();
    let provider = provider(&fake);
    let spec = spec(Engine::Sail, 1, 1);
    let words = "pods \"x\" is forbidden: exceeded quota: compute, requested: limits.cpu=4, used: limits.cpu=5, limited: limits.cpu=8";
    for _ in 0..2 {
        fake.fail_next("POST pods", 403, words);
    }
    ensure(&provider, &spec).await;
    let (cause, permanent) = until_failed_with(&provider, &spec).await;
    assert_eq!(
        cause.text,
        "quota compute of its namespace is used up: needs 4 CPU, 3 of 8 left"
    );
    assert_eq!((cause.detail.as_str(), permanent), (words, false));
    let begun = std::time::Instant::now();
    ensure_until_pod(&provider, &fake, &spec).await;
    assert!(
        begun.elapsed() > Duration::from_millis(2500),
        "tried again without a pause: {:?}",
        begun.elapsed()
    );
}

/// Somebody who may create pods in the namespace takes the name of a session's pod.
#[tokio::test]
async fn a_pod_of_another_owner_never_serves_a_session() {
    let (fake, ip) = (FakeKube::new(), pod_ip());
    let provider = provider(&fake);
    let spec = spec(Engine::Sail, 1, 1);
    let pod = json!({"metadata": {"name": name(&spec), "uid": "other", "labels": {"app": "other"}}});
    fake.put("pods", NAMESPACE, pod);
    let _engine = FakeEngine::start(ip).await;
    run(&fake, &spec, ip);
    ensure(&provider, &spec).await;
    let (cause, permanent) = until_failed_with(&provider, &spec).await;
    assert_eq!(
        (cause.text.as_str(), permanent),
        ("another pod in its namespace has the name of its pod", false)
    );
    fake.remove("pods", &name(&spec));
    ensure_until_pod(&provider, &fake, &spec).await;
    run(&fake, &spec, ip);
    until_ready(&provider, &spec).await;
}

#[tokio::test]
async fn what_cannot_be_made_fails_for_good() {
    let fake = FakeKube::new();
    let provider = provider(&fake);
    let mut spec = spec(Engine::Sail, 1, 1);
    fake.fail_next(
        "POST pods",
        403,
        "pods \"x\" is forbidden: violates PodSecurity \"restricted:latest\"",
    );
    ensure(&provider, &spec).await;
    assert!(until_failed_with(&provider, &spec).await.1);
    ensure(&provider, &spec).await;
    assert_eq!(fake.names("pods"), Vec::<String>::new(), "not tried again");

    spec.generation = 2;
    if let Provider::Kubernetes(pods) = &mut spec.cluster.provider {
        pods.cpu = "many".to_owned();
    }
    ensure(&provider, &spec).await;
    let (cause, permanent) = until_failed_with(&provider, &spec).await;
    assert_eq!(
        (cause.text.as_str(), permanent),
        ("cluster local cannot be used", true)
    );
    assert!(cause.detail.starts_with("cpu: must be"), "{cause:?}");
}

#[tokio::test]
async fn a_crash_is_reported_with_the_end_of_the_log() {
    let (fake, ip) = (FakeKube::new(), pod_ip());
    let provider = provider(&fake);
    let crashed = status(
        "Failed",
        &json!({"terminated": {"reason": "Error", "exitCode": 3}}),
        ip,
    );
    fake.set_log("INFO begins\nERROR token=abc no such catalog\n\tat x.Y(Z.java)\n");
    // While it starts, and after it was ready.
    for (n, is_ready) in [(1, false), (2, true)] {
        let spec = spec(Engine::Sail, n, 1);
        ensure(&provider, &spec).await;
        until_pod(&fake, &spec).await;
        let mut _engine = None;
        if is_ready {
            _engine = Some(FakeEngine::start(ip).await);
            run(&fake, &spec, ip);
            until_ready(&provider, &spec).await;
        }
        fake.edit_pod(&name(&spec), |pod| pod["status"] = crashed.clone());
        let (cause, permanent) = until_failed_with(&provider, &spec).await;
        assert_eq!(
            (cause.text.as_str(), permanent),
            ("sail exited with code 3", true)
        );
        assert_eq!(cause.detail, "INFO begins\nERROR token=[secret] no such catalog");
    }
}

#[tokio::test]
async fn a_pod_that_its_node_lost_is_replaced() {
    let (fake, ip) = (FakeKube::new(), pod_ip());
    let provider = provider(&fake);
    let spec = spec(Engine::Sail, 1, 1);
    ensure(&provider, &spec).await;
    until_pod(&fake, &spec).await;
    let first = fake.object("pods", &name(&spec)).unwrap()["metadata"]["uid"].clone();
    fake.edit_pod(&name(&spec), |pod| {
        pod["status"] = json!({"phase": "Failed", "reason": "Evicted"})
    });
    let (cause, permanent) = until_failed_with(&provider, &spec).await;
    assert_eq!(
        (cause.text.as_str(), permanent),
        ("its pod was evicted: its node is short of resources", false)
    );
    let begun = std::time::Instant::now();
    while fake
        .object("pods", &name(&spec))
        .is_none_or(|pod| pod["metadata"]["uid"] == first)
    {
        assert!(begun.elapsed() < Duration::from_secs(20), "no other pod");
        ensure(&provider, &spec).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let _engine = FakeEngine::start(ip).await;
    run(&fake, &spec, ip);
    until_ready(&provider, &spec).await;
}

#[tokio::test]
async fn a_pod_that_somebody_deletes_is_lost() {
    let (fake, ip) = (FakeKube::new(), pod_ip());
    let provider = provider(&fake);
    let spec = spec(Engine::Sail, 1, 1);
    ensure(&provider, &spec).await;
    until_pod(&fake, &spec).await;
    let _engine = FakeEngine::start(ip).await;
    run(&fake, &spec, ip);
    until_ready(&provider, &spec).await;
    fake.edit_pod(&name(&spec), |pod| {
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    });
    let (cause, permanent) = until_failed_with(&provider, &spec).await;
    assert_eq!(
        (cause.text.as_str(), permanent),
        ("its pod is being deleted", false)
    );
    fake.remove("pods", &name(&spec));
    until_missing(&provider, &spec).await;
}

#[tokio::test]
async fn watches_that_end_or_expire_are_begun_again() {
    let (fake, ip) = (FakeKube::new(), pod_ip());
    let provider = provider(&fake);
    let spec = spec(Engine::Sail, 1, 1);
    ensure(&provider, &spec).await;
    until_pod(&fake, &spec).await;
    let _engine = FakeEngine::start(ip).await;
    fake.cut_watches();
    run(&fake, &spec, ip);
    until_ready(&provider, &spec).await;
    // What happens before the next list is never seen by a watch.
    fake.compact();
    fake.cut_watches();
    fake.remove("pods", &name(&spec));
    fake.compact();
    until_missing(&provider, &spec).await;
}

#[tokio::test]
async fn an_api_server_that_is_away_proves_nothing() {
    let fake = FakeKube::new();
    fake.set_away(true);
    let provider = provider(&fake);
    let spec = spec(Engine::Sail, 1, 1);
    for _ in 0..20 {
        assert!(provider.observe(&spec).await.is_err());
        assert!(provider.ensure(&spec).await.is_err());
        assert!(provider.inventory().await.is_err());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    fake.set_away(false);
    until(provider_ready(&provider, &spec).await, &spec, |seen| {
        *seen == Observation::Missing
    })
    .await;
    fake.set_away(true);
    assert!(
        provider.observe(&spec).await.is_err(),
        "the watch alone proves nothing"
    );
}

#[tokio::test]
async fn events_explain_what_the_status_does_not() {
    let fake = FakeKube::new();
    let provider = provider(&fake);
    let spec = spec(Engine::Sail, 1, 1);
    ensure(&provider, &spec).await;
    until_pod(&fake, &spec).await;
    fake.edit_pod(&name(&spec), |pod| {
        pod["status"] =
            json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}]});
    });
    fake.put(
        "events",
        NAMESPACE,
        json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": name(&spec)},
            "reason": "FailedMount", "message": "MountVolume.SetUp failed"}),
    );
    until_starting(&provider, &spec, "a volume of its pod cannot be mounted").await;
}
