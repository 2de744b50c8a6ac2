//! Definitions of clusters are tried at the API server.

use super::*;
use compute::DefinitionError;
use session_core::{Cluster, PodTemplate, Profile};

fn sized(profiles: &[(&str, &str)]) -> Cluster {
    let mut cluster = spec(Engine::Sail, 1, 1).cluster;
    if let Provider::Kubernetes(pods) = &mut cluster.provider {
        (pods.cpu, pods.memory) = (String::new(), String::new());
        let profile = |cpu: &str, default: bool| Profile {
            cpu: cpu.to_owned(),
            memory: "1Gi".to_owned(),
            default,
            ..Profile::default()
        };
        let named = profiles.iter().enumerate();
        pods.profiles = named
            .map(|(index, (name, cpu))| ((*name).to_owned(), profile(cpu, index == 0)))
            .collect();
        pods.pod_template = Some(PodTemplate::parse(r#"{"spec": {"priorityClassName": "low"}}"#).unwrap());
    }
    cluster
}

#[tokio::test]
async fn each_profile_is_tried_and_nothing_is_created() {
    let fake = FakeKube::new();
    let provider = provider(&fake);
    provider
        .try_cluster(&sized(&[("a", "1"), ("b", "4")]))
        .await
        .unwrap();
    let tried = fake.dry_runs();
    let cpu = |pod: &Value| pod["spec"]["containers"][0]["resources"]["limits"]["cpu"].clone();
    assert_eq!(tried.iter().map(cpu).collect::<Vec<_>>(), ["1", "4"]);
    assert_eq!(tried[0]["spec"]["priorityClassName"], "low");
    assert_eq!((fake.names("pods").len(), fake.writes().len()), (0, 0));
    let plain = spec(Engine::Spark, 1, 1).cluster;
    provider.try_cluster(&plain).await.unwrap();
    assert_eq!(fake.dry_runs().len(), 3);
}

#[tokio::test]
async fn the_answer_of_the_api_server_decides() {
    let fake = FakeKube::new();
    let provider = provider(&fake);
    let rejected = |words: &str| Err(DefinitionError::Rejected(format!("profile a: {words}")));
    let unavailable = |words: &str| {
        let text = format!("the Kubernetes API server cannot try the pod now: {words}");
        Err(DefinitionError::Unavailable(text))
    };
    let psa = "pods \"x\" is forbidden: violates PodSecurity \"restricted:latest\"";
    let webhook = "Internal error occurred: failed calling webhook \"w\": no endpoints";
    for (code, words, expected) in [
        (403, psa, rejected(psa)),
        (
            422,
            "Pod \"x\" is invalid: spec",
            rejected("Pod \"x\" is invalid: spec"),
        ),
        (
            404,
            "namespaces \"n\" not found",
            rejected("namespaces \"n\" not found"),
        ),
        (500, webhook, unavailable(webhook)),
        (429, "too many requests", unavailable("too many requests")),
        // A quota may have room later.
        (
            403,
            "pods \"x\" is forbidden: exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1",
            Ok(()),
        ),
        (400, "admission webhook \"w\" does not support dry run", Ok(())),
    ] {
        fake.fail_next("POST pods", code, words);
        assert_eq!(
            provider.try_cluster(&sized(&[("a", "1")])).await,
            expected,
            "{words}"
        );
    }
    fake.set_away(true);
    let away = provider.try_cluster(&sized(&[("a", "1")])).await;
    assert!(matches!(away, Err(DefinitionError::Unavailable(_))), "{away:?}");
}
