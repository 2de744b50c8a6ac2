//! What goes wrong: in the engine, in its pod, at the API server.

use super::*;
use base64::Engine as _;

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

/// The values with which a pod was started are in its Secret; what another manager
/// made, and what came from a pool, is masked by them.
#[tokio::test]
async fn a_log_tail_has_no_secret_after_a_claim_and_a_restart() {
    let (fake, ip) = (FakeKube::new(), pod_ip());
    let _engine = FakeEngine::start(ip).await;
    for (n, is_claimed, is_restarted) in [(1, false, true), (2, true, false), (3, true, true)] {
        let mut spec = spec(Engine::Spark, n, 1);
        if is_claimed {
            spec = pools::warm_spec(Engine::Spark, n, 1);
        }
        let mut manager = provider(&fake);
        if is_claimed {
            pools::set(&manager, vec![pools::pool(Engine::Spark, 1)]);
            let _kubelet = pools::kubelet(&fake, ip);
            pools::eventually("a pod answered", || pools::status(&manager).available == 1).await;
        }
        ensure(&manager, &spec).await;
        if !is_claimed {
            until_pod(&fake, &spec).await;
            run(&fake, &spec, ip);
        }
        let route = until_ready(&manager, &spec).await;
        let token = route.credential.unwrap().expose().to_owned();
        let pod = pools::sessions(&fake)
            .into_iter()
            .find(|(_, id)| *id == json!(spec.key.id))
            .map(|(name, _)| name)
            .unwrap();
        assert_eq!(pod.starts_with("warm-"), is_claimed);
        // The pod was started with a secret of a catalog that has changed since.
        let mut secret = fake.object("secrets", &pod).unwrap();
        let masks = base64::engine::general_purpose::STANDARD.encode(json!([token, "old-key"]).to_string());
        assert!(secret["data"]["log-masks"].is_string(), "{secret}");
        secret["data"]["log-masks"] = json!(masks);
        fake.put("secrets", NAMESPACE, secret);
        fake.set_log(&format!("ERROR server refused {token} and old-key\n"));
        if is_restarted {
            drop(manager);
            manager = provider(&fake);
        }
        let exited = json!({"terminated": {"reason": "Error", "exitCode": 3}});
        fake.edit_pod(&pod, |pod| pod["status"] = status("Failed", &exited, ip));
        let (cause, _) = until_failed_with(provider_ready(&manager, &spec).await, &spec).await;
        assert_eq!(cause.text, "spark exited with code 3");
        assert_eq!(
            cause.detail, "ERROR server refused [secret] and [secret]",
            "claimed {is_claimed}, restarted {is_restarted}"
        );
        fake.remove("pods", &pod);
    }
}

#[tokio::test]
async fn without_the_secret_of_its_pod_no_log_is_shown() {
    let (fake, ip) = (FakeKube::new(), pod_ip());
    let _engine = FakeEngine::start(ip).await;
    let provider = provider(&fake);
    let spec = spec(Engine::Spark, 1, 1);
    ensure(&provider, &spec).await;
    until_pod(&fake, &spec).await;
    run(&fake, &spec, ip);
    until_ready(&provider, &spec).await;
    fake.set_log("ERROR refused\n");
    fake.fail_next("GET secrets", 500, "the API server has a problem");
    let exited = json!({"terminated": {"reason": "Error", "exitCode": 3}});
    fake.edit_pod(&name(&spec), |pod| pod["status"] = status("Failed", &exited, ip));
    let (cause, _) = until_failed_with(&provider, &spec).await;
    assert_eq!(
        (cause.text.as_str(), cause.detail.as_str()),
        ("spark exited with code 3", "")
    );
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
