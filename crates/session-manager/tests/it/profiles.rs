//! Sizes of sessions on kubernetes clusters, and definitions that are tried before
//! they are stored.

use crate::support::{Manager, key, on, route, until};
use compute::DefinitionError;
use session_core::{KubernetesPods, Provider, Reason, SessionKey};
use session_proto::error::reason_of;
use session_proto::v1::{self, SessionStatus};
use std::collections::HashMap;
use tonic::Code;

const SETTINGS: &str = "compute.kubernetes.namespaces = [\"sessions\"]\n";

fn profile(cpu: &str, default: bool) -> v1::KubernetesProfile {
    v1::KubernetesProfile {
        cpu: cpu.to_owned(),
        memory: "2Gi".to_owned(),
        default,
        ..Default::default()
    }
}

fn pods(profiles: &[(&str, v1::KubernetesProfile)]) -> v1::Cluster {
    let profiles: HashMap<_, _> = profiles
        .iter()
        .map(|(name, profile)| ((*name).to_owned(), profile.clone()))
        .collect();
    let size = |text: &str| {
        if profiles.is_empty() {
            text.to_owned()
        } else {
            String::new()
        }
    };
    v1::Cluster {
        name: "pods".to_owned(),
        engine: v1::Engine::Sail.into(),
        provider: Some(v1::cluster::Provider::Kubernetes(v1::KubernetesProvider {
            namespace: "sessions".to_owned(),
            image: "sail:1".to_owned(),
            cpu: size("1"),
            memory: size("2Gi"),
            profiles,
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn sizes() -> v1::Cluster {
    pods(&[("small", profile("1", true)), ("large", profile("8", false))])
}

async fn define(manager: &Manager, cluster: v1::Cluster) -> Result<v1::Cluster, tonic::Status> {
    let request = v1::CreateClusterRequest {
        cluster: Some(cluster),
    };
    let created = manager.clusters("pat").create_cluster(request).await?;
    Ok(created.into_inner().cluster.unwrap())
}

async fn update(manager: &Manager, cluster: v1::Cluster) -> Result<v1::Cluster, tonic::Status> {
    let request = v1::UpdateClusterRequest {
        cluster: Some(cluster),
    };
    let updated = manager.clusters("pat").update_cluster(request).await?;
    Ok(updated.into_inner().cluster.unwrap())
}

fn sized(cluster: &str, profile: &str) -> v1::CreateSessionRequest {
    v1::CreateSessionRequest {
        profile: profile.to_owned(),
        ..on(cluster)
    }
}

async fn create(manager: &Manager, request: v1::CreateSessionRequest) -> (SessionKey, v1::Session) {
    let created = manager.sessions("ada").create_session(request).await.unwrap();
    let session = created.into_inner().session.unwrap();
    (key(&session.id), session)
}

/// The size of the pod that was last requested for a generation.
async fn requested(manager: &Manager, key: &SessionKey, generation: u64) -> KubernetesPods {
    until("the compute to be requested", async || {
        manager.sim.ensures(key, generation) > 0
    })
    .await;
    match manager.sim.cluster_of(key, generation).unwrap().provider {
        Provider::Kubernetes(pods) => *pods,
        Provider::Static { .. } | Provider::Process { .. } => panic!("not kubernetes"),
    }
}

#[tokio::test]
async fn a_session_has_the_size_that_it_names_for_its_life() {
    let manager = Manager::start_with(SETTINGS).await;
    let stored = define(&manager, sizes()).await.unwrap();
    let (large, session) = create(&manager, sized("pods", "large")).await;
    assert_eq!(session.profile, "large");
    assert_eq!(requested(&manager, &large, 1).await.cpu, "8");
    let (default, session) = create(&manager, on("pods")).await;
    assert_eq!(session.profile, "small");
    assert_eq!(requested(&manager, &default, 1).await.cpu, "1");

    // Another default is for new sessions; a size applies to the next compute.
    let changed = pods(&[("small", profile("2", false)), ("large", profile("9", true))]);
    let changed = v1::Cluster {
        version: stored.version,
        ..changed
    };
    let changed = update(&manager, changed).await.unwrap();
    assert_eq!(create(&manager, on("pods")).await.1.profile, "large");
    manager.sim.ready(&default, 1, route("127.0.0.1:1"));
    manager.until_status(&default, SessionStatus::Active).await;
    manager.sim.vanish(&default, 1);
    assert_eq!(requested(&manager, &default, 2).await.cpu, "2");
    assert_eq!(manager.show(&default).await.profile, "small");

    // Without its profile a session keeps its compute, and gets no other.
    manager.sim.ready(&default, 2, route("127.0.0.1:1"));
    manager.until_status(&default, SessionStatus::Active).await;
    let without = v1::Cluster {
        version: changed.version,
        ..pods(&[("large", profile("9", true))])
    };
    update(&manager, without).await.unwrap();
    assert_eq!(manager.show(&default).await.status(), SessionStatus::Active);
    manager.sim.vanish(&default, 2);
    let failed = manager.until_status(&default, SessionStatus::Failed).await;
    assert!(
        failed
            .status_message
            .contains("the profile small no longer exists"),
        "{}",
        failed.status_message
    );
}

#[tokio::test]
async fn an_unknown_profile_names_those_that_exist() {
    let manager = Manager::start_with(SETTINGS).await;
    define(&manager, sizes()).await.unwrap();
    for (cluster, profile, words) in [
        (
            "pods",
            "huge",
            "profile: must be one of the cluster's profiles: large, small",
        ),
        ("c", "large", "profile: the cluster has no profiles"),
    ] {
        let refused = manager
            .sessions("ada")
            .create_session(sized(cluster, profile))
            .await;
        let refused = refused.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains(words), "{refused}");
    }
}

#[tokio::test]
async fn users_see_the_profiles_and_nothing_else_of_the_provider() {
    let manager = Manager::start_with(SETTINGS).await;
    define(&manager, sizes()).await.unwrap();
    let listed = manager
        .clusters("ada")
        .list_clusters(v1::ListClustersRequest {})
        .await;
    let listed = listed.unwrap().into_inner().clusters;
    let pods = listed.iter().find(|cluster| cluster.name == "pods").unwrap();
    assert!(pods.provider.is_none());
    let shown: Vec<_> = pods
        .profiles
        .iter()
        .map(|profile| (profile.name.as_str(), profile.cpu.as_str(), profile.default))
        .collect();
    assert_eq!(shown, [("large", "8", false), ("small", "1", true)]);
}

#[tokio::test]
async fn a_repeated_create_with_another_profile_is_refused() {
    let manager = Manager::start_with(SETTINGS).await;
    define(&manager, sizes()).await.unwrap();
    let request = |profile: &str| v1::CreateSessionRequest {
        request_id: "r-1".to_owned(),
        ..sized("pods", profile)
    };
    let (first, _) = create(&manager, request("large")).await;
    assert_eq!(create(&manager, request("large")).await.0, first);
    let refused = manager.sessions("ada").create_session(request("small")).await;
    assert_eq!(reason_of(&refused.unwrap_err()), Some(Reason::RequestIdReused));
}

#[tokio::test]
async fn a_definition_that_the_platform_rejects_is_not_stored() {
    let manager = Manager::start_with(SETTINGS).await;
    let words = "profile large: pods \"x\" is forbidden: maximum cpu usage per Pod is 4";
    let describe = async || {
        let request = v1::DescribeClusterRequest {
            name: "pods".to_owned(),
        };
        manager.clusters("pat").describe_cluster(request).await
    };
    let rejected = DefinitionError::Rejected(words.to_owned());
    let away = DefinitionError::Unavailable("the Kubernetes API server does not answer".to_owned());
    for (answer, code) in [(&rejected, Code::InvalidArgument), (&away, Code::Unavailable)] {
        manager.sim.answer_definitions(Some(answer.clone()));
        let refused = define(&manager, sizes()).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().contains(&answer.to_string()), "{refused}");
        assert!(describe().await.is_err(), "stored");
    }
    manager.sim.answer_definitions(None);
    let stored = define(&manager, sizes()).await.unwrap();

    manager.sim.answer_definitions(Some(rejected));
    let changed = v1::Cluster {
        version: stored.version,
        ..pods(&[("small", profile("64", true))])
    };
    let refused = update(&manager, changed).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    let after = describe().await.unwrap().into_inner().cluster.unwrap();
    assert_eq!((after.version, after.profiles.len()), (stored.version, 2));
    // What does not concern the pods is not tried.
    let granted = v1::Cluster {
        granted_orgs: vec!["acme".to_owned()],
        ..after
    };
    update(&manager, granted).await.unwrap();
}
