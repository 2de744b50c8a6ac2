//! The reconciler moves sessions from pending to active to closed despite failures.

use crate::support;
use crate::support::{Manager, on, route, until};
use compute::simulation::{Call, Fault};
use session_proto::v1::{self, SessionStatus};
use std::time::Duration;

fn fails(times: usize) -> impl Iterator<Item = Fault> {
    std::iter::repeat_with(|| Fault::Fails("the provider is away".to_owned())).take(times)
}

#[tokio::test]
async fn compute_is_started_and_released() {
    let manager = Manager::start().await;
    let key = manager.active("ada").await;
    let shown = manager.show(&key).await;
    assert_eq!(
        (shown.reason.as_str(), shown.generation, shown.version),
        ("COMPUTE_READY", 1, 2)
    );
    assert_eq!(shown.engine_version, "4.1");

    let closed = manager.close("ada", &key).await;
    assert_eq!(closed.status(), SessionStatus::Closed);
    until("the compute to be gone", async || manager.sim.live().is_empty()).await;
    assert_eq!(
        manager.close("ada", &key).await.version,
        closed.version,
        "closing again changes nothing"
    );
    assert_eq!(manager.sim.violations(), Vec::<String>::new());
    manager.stop().await;
}

#[tokio::test]
async fn failed_effects_are_repeated() {
    let manager = Manager::start().await;
    for fault in fails(2) {
        manager.sim.inject(Call::Ensure, fault);
    }
    manager.sim.inject(
        Call::Ensure,
        Fault::FailsAfterwards("the answer was lost".to_owned()),
    );
    let key = manager.active("ada").await;
    for fault in fails(2) {
        manager.sim.inject(Call::Release, fault);
    }
    manager.close("ada", &key).await;
    until("the compute to be gone", async || manager.sim.live().is_empty()).await;
    assert_eq!(
        manager.sim.made(&key, 1),
        1,
        "made once, however often it was requested"
    );
    assert_eq!(manager.sim.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn lost_compute_is_replaced_and_a_permanent_failure_ends_the_session() {
    let manager = Manager::start().await;
    let key = manager.active("ada").await;
    manager.sim.vanish(&key, 1);
    until("new compute", async || manager.sim.made(&key, 2) == 1).await;
    manager.sim.ready(&key, 2, route("127.0.0.1:2"));
    let shown = manager.until_status(&key, SessionStatus::Active).await;
    assert_eq!(shown.generation, 2);

    let doomed = manager.create("ada").await;
    until("the compute to be requested", async || {
        manager.sim.made(&doomed, 1) == 1
    })
    .await;
    manager.sim.fail(&doomed, 1, "no such program", true);
    let failed = manager.until_status(&doomed, SessionStatus::Failed).await;
    assert_eq!(
        (failed.reason.as_str(), failed.status_message.as_str()),
        ("PROVISIONING_FAILED", "no such program")
    );
    assert_eq!(manager.sim.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn provisioning_that_never_ends_fails_at_its_deadline() {
    let manager = Manager::start().await;
    let begun = std::time::Instant::now();
    let key = manager.create("ada").await;
    until("the compute to be requested", async || {
        manager.sim.made(&key, 1) == 1
    })
    .await;
    manager.sim.waits(&key, 1, "waiting for a node");
    let failed = manager.until_status(&key, SessionStatus::Failed).await;
    assert!(
        begun.elapsed() < Duration::from_secs(12),
        "10 s and 2 s: {:?}",
        begun.elapsed()
    );
    assert!(
        failed.status_message.contains("waiting for a node"),
        "{}",
        failed.status_message
    );
}

#[tokio::test]
async fn a_crash_between_commit_and_effect_is_repaired_by_another_manager() {
    let first = Manager::start().await;
    // The first one commits the create and crashes before its effect.
    first
        .sim
        .inject(Call::Ensure, Fault::Takes(Duration::from_secs(3600)));
    let mut sessions = first.sessions("ada");
    let request = on("c");
    let create = tokio::spawn(async move { sessions.create_session(request).await });
    until("the create to be committed", async || {
        let listed = first
            .sessions("olga")
            .list_sessions(v1::ListSessionsRequest::default())
            .await;
        listed.is_ok_and(|listed| !listed.into_inner().sessions.is_empty())
    })
    .await;
    let second = first.another().await;
    first.crash();
    create.abort();
    let listed = second
        .sessions("olga")
        .list_sessions(v1::ListSessionsRequest::default())
        .await
        .unwrap();
    let key = support::key(&listed.into_inner().sessions[0].id);
    until("the compute to be made", async || second.sim.made(&key, 1) == 1).await;
    second.sim.ready(&key, 1, route("127.0.0.1:1"));
    second.until_status(&key, SessionStatus::Active).await;
}

#[tokio::test]
async fn two_managers_start_one_compute() {
    let first = Manager::start().await;
    let second = first.another().await;
    let mut keys = Vec::new();
    for _ in 0..5 {
        keys.push(first.create("ada").await);
        keys.push(second.create("bob").await);
    }
    for key in &keys {
        until("the compute to be requested", async || {
            first.sim.made(key, 1) == 1
        })
        .await;
        first.sim.ready(key, 1, route("127.0.0.1:1"));
    }
    for key in &keys {
        second.until_status(key, SessionStatus::Active).await;
        first.close("olga", key).await;
    }
    until("all compute to be gone", async || first.sim.live().is_empty()).await;
    for key in &keys {
        assert_eq!(first.sim.made(key, 1), 1);
        let request = v1::ListSessionEventsRequest {
            session_id: key.id.to_string(),
        };
        let events = second
            .sessions("olga")
            .list_session_events(request)
            .await
            .unwrap()
            .into_inner()
            .events;
        let versions: Vec<u64> = events.iter().map(|event| event.version).collect();
        assert_eq!(versions, [1, 2, 3], "one event per change, in order");
    }
    assert_eq!(first.sim.violations(), Vec::<String>::new());
}

/// A manager without the provider must not treat the compute as missing.
#[tokio::test]
async fn a_manager_without_processes_does_not_affect_those_of_another() {
    let manager = Manager::start().await;
    let key = manager.active("ada").await;
    let other = manager.another_without_process().await;
    let session = async || {
        let request = v1::WarmSessionRequest {
            session_id: key.id.to_string(),
        };
        // Makes the other manager reconcile the session.
        let warmed = other.sessions("ada").warm_session(request).await;
        warmed.unwrap().into_inner().session.unwrap()
    };
    for _ in 0..20 {
        assert_eq!(session().await.status(), SessionStatus::Active);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(
        (manager.sim.live(), manager.sim.ensures(&key, 2)),
        (vec![(key, 1)], 0)
    );
    other.stop().await;
    manager.stop().await;
}
