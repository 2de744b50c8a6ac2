//! Clusters by API and by configuration: defined, changed, drained, deleted.

use crate::support::{Manager, key, on, route, until};
use session_core::Reason;
use session_proto::error::reason_of;
use session_proto::v1::{self, ClusterStatus, SessionStatus};
use tonic::Code;

fn lab(version: u64) -> v1::Cluster {
    v1::Cluster {
        name: "lab".to_owned(),
        engine: v1::Engine::Sail.into(),
        provider: Some(v1::cluster::Provider::Process(v1::ProcessProvider {
            program: "/opt/sail".to_owned(),
            ..Default::default()
        })),
        version,
        ..Default::default()
    }
}

pub(crate) async fn define(manager: &Manager) -> v1::Cluster {
    let request = v1::CreateClusterRequest {
        cluster: Some(lab(0)),
    };
    manager
        .clusters("pat")
        .create_cluster(request)
        .await
        .unwrap()
        .into_inner()
        .cluster
        .unwrap()
}

pub(crate) async fn delete(manager: &Manager, force: bool) -> Result<(), tonic::Status> {
    let request = v1::DeleteClusterRequest {
        name: "lab".to_owned(),
        force,
    };
    manager.clusters("pat").delete_cluster(request).await.map(|_| ())
}

#[tokio::test]
async fn deleting_waits_for_sessions_unless_forced() {
    let manager = Manager::start().await;
    define(&manager).await;
    let session = manager.create_as("ada", on("lab")).await;
    manager.sim.ready(&session, 1, route("127.0.0.1:1"));
    manager.until_status(&session, SessionStatus::Active).await;

    let refused = delete(&manager, false).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert_eq!(
        manager.show(&session).await.status(),
        SessionStatus::Active,
        "draining does not affect sessions"
    );
    let refused = manager
        .sessions("ada")
        .create_session(on("lab"))
        .await
        .unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::ClusterNotActive));

    delete(&manager, true).await.unwrap();
    let closed = manager.until_status(&session, SessionStatus::Closed).await;
    assert_eq!(closed.reason, "CLUSTER_DESTROYED");
    until("the compute to be gone", async || manager.sim.live().is_empty()).await;
    let gone = manager
        .sessions("ada")
        .create_session(on("lab"))
        .await
        .unwrap_err();
    assert_eq!(
        reason_of(&gone),
        Some(Reason::NotAuthorized),
        "a destroyed cluster is no more"
    );
    define(&manager).await;
    manager.sessions("ada").create_session(on("lab")).await.unwrap();
}

/// The cluster may be destroyed between its read and the commit of a create.
#[tokio::test]
async fn no_session_outlives_its_cluster() {
    let manager = Manager::start().await;
    for _ in 0..10 {
        define(&manager).await;
        let mut sessions = manager.sessions("olga");
        let creating = tokio::spawn(async move { sessions.create_session(on("lab")).await });
        delete(&manager, true).await.unwrap();
        if let Ok(created) = creating.await.unwrap() {
            let id = created.into_inner().session.unwrap().id;
            manager.until_status(&key(&id), SessionStatus::Closed).await;
        }
    }
    until("all compute to be gone", async || manager.sim.live().is_empty()).await;
}

#[tokio::test]
async fn changes_need_the_version_that_was_read() {
    let manager = Manager::start().await;
    let defined = define(&manager).await;
    let update = |cluster| {
        let mut clusters = manager.clusters("pat");
        async move {
            clusters
                .update_cluster(v1::UpdateClusterRequest {
                    cluster: Some(cluster),
                })
                .await
        }
    };
    let missing = update(lab(0)).await.unwrap_err();
    assert_eq!(missing.code(), Code::InvalidArgument, "{missing}");
    assert!(missing.message().starts_with("version"), "{}", missing.message());
    let changed = v1::Cluster {
        engine_version: "0.7.2".to_owned(),
        ..lab(defined.version)
    };
    let changed = update(changed).await.unwrap().into_inner().cluster.unwrap();
    assert_eq!(changed.version, defined.version + 1);
    let stale = update(lab(defined.version)).await.unwrap_err();
    assert_eq!(reason_of(&stale), Some(Reason::Conflict));
    let other = v1::Cluster {
        engine: v1::Engine::Spark.into(),
        ..lab(changed.version)
    };
    assert_eq!(update(other).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn configuration_owns_what_it_declares_and_frees_what_it_drops() {
    let manager = Manager::start().await;
    let drain = |manager: &Manager, name: &str| {
        let (mut clusters, name) = (manager.clusters("pat"), name.to_owned());
        async move { clusters.drain_cluster(v1::DrainClusterRequest { name }).await }
    };
    let refused = drain(&manager, "c").await.unwrap_err();
    assert_eq!(
        (refused.code(), reason_of(&refused)),
        (Code::FailedPrecondition, Some(Reason::ManagedByConfig))
    );

    let session = manager.active("ada").await;
    let next = manager.another_without_clusters().await;
    let mut status = None;
    until("it to be drained", async || {
        let request = v1::DescribeClusterRequest { name: "c".to_owned() };
        let described = next.clusters("pat").describe_cluster(request).await;
        status = described
            .ok()
            .and_then(|answer| answer.into_inner().cluster)
            .map(|cluster| cluster.status());
        status == Some(ClusterStatus::Draining)
    })
    .await;
    assert_eq!(
        next.show(&session).await.status(),
        SessionStatus::Active,
        "its sessions live on"
    );
    drain(&next, "c").await.unwrap();
}

#[tokio::test]
async fn team_admins_see_and_manage_but_do_not_connect() {
    let manager = Manager::start().await;
    let request = v1::CreateSessionRequest {
        team: "data".to_owned(),
        ..on("c")
    };
    let session = manager.create_as("ada", request).await;
    manager
        .sim
        .fail_with(&session, 1, "the engine stopped", "row of alice");
    manager.until_status(&session, SessionStatus::Failed).await;

    let describe = |who: &str| {
        let mut sessions = manager.sessions(who);
        let request = v1::DescribeSessionRequest {
            session_id: session.id.to_string(),
            wait_ready: None,
        };
        async move {
            sessions
                .describe_session(request)
                .await
                .map(|answer| answer.into_inner().session.unwrap())
        }
    };
    let seen = describe("tom").await.unwrap();
    assert_eq!(
        (seen.status_message.as_str(), seen.status_detail.as_str()),
        ("the engine stopped", "")
    );
    assert_eq!(describe("ada").await.unwrap().status_detail, "row of alice");
    assert_eq!(describe("bob").await.unwrap_err().code(), Code::PermissionDenied);
    let request = session_proto::internal::RecordTokenRequest {
        session_id: session.id.to_string(),
        ..Default::default()
    };
    assert_eq!(
        manager
            .ledger("tom")
            .record_token(request)
            .await
            .unwrap_err()
            .code(),
        Code::PermissionDenied
    );
    let listed = manager
        .sessions("tom")
        .list_sessions(v1::ListSessionsRequest::default())
        .await
        .unwrap();
    assert_eq!(listed.into_inner().sessions.len(), 1);
}

/// The response to a create may be lost, and the cluster drained before its repeat.
#[tokio::test]
async fn a_repeated_create_succeeds_whatever_the_status_of_its_cluster() {
    let manager = Manager::start().await;
    define(&manager).await;
    let create = || {
        let mut sessions = manager.sessions("ada");
        let request = v1::CreateSessionRequest {
            request_id: "r-1".to_owned(),
            ..on("lab")
        };
        async move { sessions.create_session(request).await }
    };
    let first = create().await.unwrap().into_inner().session.unwrap();
    let request = v1::DrainClusterRequest {
        name: "lab".to_owned(),
    };
    manager.clusters("pat").drain_cluster(request).await.unwrap();
    assert_eq!(create().await.unwrap().into_inner().session.unwrap().id, first.id);
}

#[tokio::test]
async fn only_active_clusters_accept_sessions() {
    let manager = Manager::start().await;
    let create = async || manager.sessions("ada").create_session(on("lab")).await;
    let pending = v1::Cluster {
        status: ClusterStatus::Pending.into(),
        ..lab(0)
    };
    let request = v1::CreateClusterRequest {
        cluster: Some(pending),
    };
    let mut clusters = manager.clusters("pat");
    let defined = clusters.create_cluster(request).await.unwrap().into_inner();
    let defined = defined.cluster.unwrap();
    assert_eq!(defined.status(), ClusterStatus::Pending);
    assert_eq!(
        reason_of(&create().await.unwrap_err()),
        Some(Reason::ClusterNotActive)
    );

    let update = async |version, status: ClusterStatus| {
        let cluster = v1::Cluster {
            status: status.into(),
            ..lab(version)
        };
        let request = v1::UpdateClusterRequest {
            cluster: Some(cluster),
        };
        let updated = manager.clusters("pat").update_cluster(request).await.unwrap();
        updated.into_inner().cluster.unwrap()
    };
    let same = update(defined.version, ClusterStatus::Unspecified).await;
    assert_eq!(same.status(), ClusterStatus::Pending, "nothing was wished for");
    let active = update(same.version, ClusterStatus::Active).await;
    assert_eq!(active.status(), ClusterStatus::Active);
    create().await.unwrap();

    let name = || "lab".to_owned();
    let drain = v1::DrainClusterRequest { name: name() };
    let drained = clusters.drain_cluster(drain.clone()).await.unwrap().into_inner();
    assert_eq!(
        reason_of(&create().await.unwrap_err()),
        Some(Reason::ClusterNotActive)
    );
    let again = update(drained.cluster.unwrap().version, ClusterStatus::Active).await;
    assert_eq!(again.status(), ClusterStatus::Active, "a drain can be taken back");
    create().await.unwrap();

    delete(&manager, true).await.unwrap();
    delete(&manager, false).await.unwrap();
    let refused = clusters.drain_cluster(drain).await.unwrap_err();
    assert_eq!(
        reason_of(&refused),
        Some(Reason::NotAuthorized),
        "a destroyed cluster stays so"
    );
    for who in ["ada", "olga"] {
        let refused = manager
            .clusters(who)
            .delete_cluster(v1::DeleteClusterRequest {
                name: "c".to_owned(),
                force: true,
            })
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
    }
}
