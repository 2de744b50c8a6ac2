//! A generation from its creation to its end, with any number of managers.

use super::*;

#[tokio::test]
async fn a_generation_is_made_asked_and_given_back_with_two_writes() {
    let (fake, ip) = (FakeKube::new(), pod_ip());
    let provider = provider(&fake);
    let spec = spec(Engine::Sail, 1, 1);
    until(provider_ready(&provider, &spec).await, &spec, |seen| {
        *seen == Observation::Missing
    })
    .await;
    let mut changes = provider.watch();
    ensure(&provider, &spec).await;
    until_pod(&fake, &spec).await;
    ensure(&provider, &spec).await;
    fake.edit_pod(&name(&spec), |pod| pod["status"] = unschedulable());
    until_starting(&provider, &spec, "no node has room: insufficient cpu").await;
    let _engine = FakeEngine::start(ip).await;
    run(&fake, &spec, ip);
    let route = until_ready(&provider, &spec).await;
    assert_eq!(
        (
            route.endpoint,
            route.engine_version.as_str(),
            route.dedicated,
            route.host
        ),
        (format!("{ip}:15002"), "9.9.9", true, None)
    );
    let change = changes.next().await.unwrap();
    assert_eq!((change.key, change.generation), (spec.key.clone(), 1));
    ensure(&provider, &spec).await;
    provider.release(&spec).await.unwrap();
    until_missing(&provider, &spec).await;
    assert_eq!(fake.writes(), ["POST pods", "DELETE pods"]);
    // A late request does not bring it back.
    ensure(&provider, &spec).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(fake.writes(), ["POST pods", "DELETE pods"]);
}

#[tokio::test]
async fn two_managers_make_one_pod_and_find_the_same_route() {
    let (fake, ip) = (FakeKube::new(), pod_ip());
    let managers = [provider(&fake), provider(&fake)];
    let spec = spec(Engine::Spark, 1, 1);
    for manager in &managers {
        ensure(manager, &spec).await;
    }
    until_pod(&fake, &spec).await;
    let engine = FakeEngine::start(ip).await;
    run(&fake, &spec, ip);
    let routes = [
        until_ready(&managers[0], &spec).await,
        until_ready(&managers[1], &spec).await,
    ];
    assert_eq!(routes[0], routes[1]);
    let token = routes[0].credential.clone().unwrap();
    let bearer = format!("Bearer {}", token.expose());
    assert!(engine.tokens.lock().unwrap().iter().all(|sent| *sent == bearer));
    let secret = fake.object("secrets", &name(&spec)).unwrap();
    let pod = fake.object("pods", &name(&spec)).unwrap();
    assert_eq!(
        secret["metadata"]["ownerReferences"][0]["uid"],
        pod["metadata"]["uid"]
    );
    assert!(!pod.to_string().contains(token.expose()));
    managers[1].release(&spec).await.unwrap();
    for manager in &managers {
        until_missing(manager, &spec).await;
    }
    assert_eq!(
        fake.names("secrets"),
        Vec::<String>::new(),
        "the Secret goes with its pod"
    );
}

#[tokio::test]
async fn a_generation_with_a_secret_needs_three_writes() {
    let (fake, ip) = (FakeKube::new(), pod_ip());
    let provider = provider(&fake);
    let spec = spec(Engine::Spark, 1, 1);
    ensure(&provider, &spec).await;
    until_pod(&fake, &spec).await;
    let _engine = FakeEngine::start(ip).await;
    run(&fake, &spec, ip);
    until_ready(&provider, &spec).await;
    provider.release(&spec).await.unwrap();
    until_missing(&provider, &spec).await;
    assert_eq!(fake.writes(), ["POST pods", "POST secrets", "DELETE pods"]);
}

#[tokio::test]
async fn the_next_manager_finishes_what_a_dead_one_began() {
    let (fake, ip) = (FakeKube::new(), pod_ip());
    let spec = spec(Engine::Spark, 1, 1);
    {
        let dead = provider(&fake);
        // It dies between the pod and the Secret.
        fake.fail_next("POST secrets", 500, "gone");
        ensure(&dead, &spec).await;
        until_failed_with(&dead, &spec).await;
    }
    assert_eq!(fake.names("secrets"), Vec::<String>::new());
    let next = provider(&fake);
    provider_ready(&next, &spec).await;
    let _engine = FakeEngine::start(ip).await;
    let begun = std::time::Instant::now();
    while fake.names("secrets").is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(20), "no Secret");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    run(&fake, &spec, ip);
    let route = until_ready(&next, &spec).await;
    assert!(route.credential.is_some());

    // One that starts later finds it running.
    let third = provider(&fake);
    provider_ready(&third, &spec).await;
    assert_eq!(until_ready(&third, &spec).await, route);
}

#[tokio::test]
async fn a_release_takes_all_generations_before() {
    let fake = FakeKube::new();
    let provider = provider(&fake);
    let specs = [1, 2, 3].map(|generation| spec(Engine::Sail, 1, generation));
    let other = spec(Engine::Sail, 2, 1);
    for spec in specs.iter().chain([&other]) {
        ensure(&provider, spec).await;
        until_pod(&fake, spec).await;
        // As the watch must have shown it.
        fake.edit_pod(&name(spec), |pod| pod["status"] = unschedulable());
        until_starting(&provider, spec, "no node has room: insufficient cpu").await;
    }
    provider.release(&specs[1]).await.unwrap();
    let mut left = [name(&specs[2]), name(&other)];
    left.sort();
    assert_eq!(fake.names("pods"), left);
}

#[tokio::test]
async fn the_inventory_has_pods_of_all_installations() {
    let fake = FakeKube::new();
    let other = provider_with(&fake, |config| config.install_id = "other".to_owned());
    let own = provider(&fake);
    let specs = [1, 2, 3].map(|n| spec(Engine::Sail, n, 7));
    for (provider, spec) in [&own, &other, &own].into_iter().zip(&specs) {
        ensure(provider, spec).await;
        until_pod(&fake, spec).await;
    }
    fake.edit_pod(&name(&specs[0]), |pod| {
        pod["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
    });
    fake.edit_pod(&name(&specs[2]), |pod| {
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    });
    fake.put("pods", NAMESPACE, json!({"metadata": {"name": "stranger"}}));
    let mut found: Vec<Found> = own.inventory().await.unwrap();
    found.sort_by(|a, b| a.key.id.cmp(&b.key.id));
    let short: Vec<_> = found
        .iter()
        .map(|found| (found.key.clone(), found.generation, found.install_id.as_str()))
        .collect();
    assert_eq!(short, [(key(1), 7, "install"), (key(2), 7, "other")]);
    assert!(found[0].age > Duration::from_secs(3600), "{:?}", found[0].age);
}

#[tokio::test]
async fn limits_hold_and_the_queue_moves_on() {
    let (fake, ip) = (FakeKube::new(), pod_ip());
    let provider = provider_with(&fake, |config| {
        config.max_starting = 1;
        config.max_pods = 2;
    });
    let specs = [1, 2, 3].map(|n| spec(Engine::Sail, n, 1));
    ensure(&provider, &specs[0]).await;
    ensure(&provider, &specs[1]).await;
    let (cause, permanent) = until_failed_with(&provider, &specs[1]).await;
    assert_eq!(
        (cause.text.as_str(), permanent),
        ("it waits for its turn: other pods are starting", false)
    );
    until_pod(&fake, &specs[0]).await;
    let _engine = FakeEngine::start(ip).await;
    run(&fake, &specs[0], ip);
    until_ready(&provider, &specs[0]).await;
    ensure(&provider, &specs[1]).await;
    until_pod(&fake, &specs[1]).await;
    fake.edit_pod(&name(&specs[1]), |pod| pod["status"] = unschedulable());
    until_starting(&provider, &specs[1], "no node has room: insufficient cpu").await;
    ensure(&provider, &specs[2]).await;
    let (cause, permanent) = until_failed_with(&provider, &specs[2]).await;
    assert_eq!(
        (cause.text.as_str(), permanent),
        ("all 2 pods of this installation are in use", false)
    );
}

#[tokio::test]
async fn an_anchor_owns_the_pods() {
    let fake = FakeKube::new();
    let provider = provider_with(&fake, |config| config.anchor = Some("berth".to_owned()));
    let spec = spec(Engine::Sail, 1, 1);
    ensure(&provider, &spec).await;
    let (cause, permanent) = until_failed_with(&provider, &spec).await;
    assert!(cause.text.contains("ConfigMap berth") && !permanent, "{cause:?}");
    fake.put("configmaps", NAMESPACE, json!({"metadata": {"name": "berth"}}));
    ensure_until_pod(&provider, &fake, &spec).await;
    let anchor = fake.object("configmaps", "berth").unwrap();
    let pod = fake.object("pods", &name(&spec)).unwrap();
    let owner = &pod["metadata"]["ownerReferences"][0];
    assert_eq!(owner["uid"], anchor["metadata"]["uid"]);
}

#[tokio::test]
async fn a_release_during_the_creation_leaves_no_pod() {
    let fake = FakeKube::new();
    let provider = provider(&fake);
    for n in 1..=20 {
        let spec = spec(Engine::Sail, n, 1);
        ensure(&provider, &spec).await;
        if n % 2 == 0 {
            tokio::task::yield_now().await;
        }
        provider.release(&spec).await.unwrap();
        until_missing(&provider, &spec).await;
    }
    let begun = std::time::Instant::now();
    while !fake.names("pods").is_empty() {
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "{:?}",
            fake.names("pods")
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
