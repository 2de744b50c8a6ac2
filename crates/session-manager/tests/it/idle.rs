//! Sessions become idle without calls, never with open calls, and wake when they are
//! called. The tests set the store's clock, so that nothing waits for minutes.

use crate::support::{Manager, on, route, until};
use session_core::time::ManualClock;
use session_core::{Clock, SessionKey, SystemClock, TokenId};
use session_proto::convert::timestamp;
use session_proto::internal as wire;
use session_proto::v1::{self, SessionStatus};
use session_store::TokenRecord;
use session_store::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tonic::{Code, Status};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
/// Clusters whose sessions idle after a minute.
const CLUSTERS: &str = r#"
[[clusters]]
name = "release"
engine = "sail"
provisioning_deadline = "10s"
idle_timeout = "60s"
process = { program = "/opt/sail" }
[[clusters]]
name = "keep"
engine = "sail"
idle_policy = "keep"
idle_timeout = "60s"
process = { program = "/opt/sail" }
"#;

/// A manager, its clock, and proxies that report.
struct World {
    clock: Arc<ManualClock>,
    manager: Manager,
    sequence: AtomicU64,
}

impl World {
    /// A manager that started long enough ago for idle timeouts.
    async fn new() -> Self {
        let world = Self::just_begun().await;
        world.pass(61).await;
        world
    }

    async fn just_begun() -> Self {
        let clock = Arc::new(ManualClock::at(SystemClock.now()));
        let manager = Manager::start_at(Arc::clone(&clock) as _, CLUSTERS).await;
        Self {
            clock,
            manager,
            sequence: AtomicU64::new(0),
        }
    }

    fn now(&self) -> session_core::Timestamp {
        self.clock.now()
    }

    /// Advances the clock while one proxy sends empty reports every 5 s.
    async fn pass(&self, seconds: u64) {
        for second in 0..seconds {
            if second % 5 == 0 {
                self.report(Vec::new()).await.unwrap();
            }
            self.clock.advance(SECOND);
        }
        self.report(Vec::new()).await.unwrap();
    }

    /// Advances the clock while a proxy reports a session every 5 s.
    async fn pass_reporting(&self, seconds: u64, report: impl Fn() -> wire::SessionActivity) {
        for second in 0..seconds {
            if second % 5 == 0 {
                self.report(vec![report()]).await.unwrap();
            }
            self.clock.advance(SECOND);
        }
    }

    async fn report(&self, sessions: Vec<wire::SessionActivity>) -> Result<(), Status> {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed) + 1;
        self.report_as("proxy-1", sequence, sessions).await
    }

    async fn report_as(
        &self,
        proxy: &str,
        sequence: u64,
        sessions: Vec<wire::SessionActivity>,
    ) -> Result<(), Status> {
        Self::report_to(&self.manager, proxy, sequence, sessions).await
    }

    async fn report_to(
        manager: &Manager,
        proxy: &str,
        sequence: u64,
        sessions: Vec<wire::SessionActivity>,
    ) -> Result<(), Status> {
        let request = wire::ReportActivityRequest {
            proxy_id: proxy.to_owned(),
            sessions,
            sequence,
        };
        manager.routes().report_activity(request).await.map(drop)
    }

    fn calls(&self, key: &SessionKey, open_calls: u32) -> wire::SessionActivity {
        wire::SessionActivity {
            session_id: key.id.to_string(),
            org: key.org.to_string(),
            generation: 1,
            open_calls,
            last_activity_at: Some(timestamp(self.now())),
            ..Default::default()
        }
    }

    async fn active(&self, cluster: &str) -> SessionKey {
        let request = on(cluster);
        let key = self.manager.create_as("ada", request).await;
        self.ready(&key, 1).await;
        key
    }

    async fn ready(&self, key: &SessionKey, generation: u64) {
        until("the compute to be requested", async || {
            self.manager.sim.made(key, generation) == 1
        })
        .await;
        self.manager
            .sim
            .ready(key, generation, route(&format!("127.0.0.1:{generation}")));
        self.manager.until_status(key, SessionStatus::Active).await;
    }

    async fn until_phase(&self, key: &SessionKey, phase: &str) -> v1::Session {
        until(phase, async || self.manager.show(key).await.phase == phase).await;
        self.manager.show(key).await
    }

    /// Waits for reconciliations, which must not change the phase.
    async fn stays(&self, key: &SessionKey, phase: &str) {
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert_eq!(self.manager.show(key).await.phase, phase);
    }

    async fn released(&self) -> SessionKey {
        let key = self.active("release").await;
        self.pass(61).await;
        self.until_phase(&key, "releasing").await;
        self.pass(11).await;
        self.until_phase(&key, "released").await;
        until("the compute to be released", async || {
            self.manager.sim.live().is_empty()
        })
        .await;
        key
    }

    async fn end(self) {
        assert_eq!(self.manager.sim.violations(), Vec::<String>::new());
        self.manager.stop().await;
    }
}

#[tokio::test]
async fn kept_compute_idles_and_wakes_at_once() {
    let world = World::new().await;
    let key = world.active("keep").await;
    let shown = world.manager.show(&key).await;
    let idle_at = shown.idle_at.unwrap().seconds;
    assert_eq!(idle_at - shown.active_at.unwrap().seconds, 60);
    world.pass(59).await;
    world.stays(&key, "ready").await;
    world.pass(2).await;
    let idle = world.until_phase(&key, "kept").await;
    assert_eq!(idle.reason, "IDLE_TIMEOUT");

    // A wake does not wait for readiness.
    let woken = world.manager.resolve(&key, 0).await.unwrap();
    assert_eq!(
        (woken.status(), woken.generation, woken.version),
        (wire::RouteStatus::Active, 1, idle.version + 1)
    );
    assert_eq!(world.manager.sim.made(&key, 1), 1);
    world.end().await;
}

#[tokio::test]
async fn a_session_with_a_call_in_flight_never_idles() {
    let world = World::new().await;
    let key = world.active("release").await;
    world.pass_reporting(300, || world.calls(&key, 1)).await;
    world.stays(&key, "ready").await;
    let busy = world.manager.show(&key).await;
    assert_eq!((busy.active_operations, busy.idle_at), (1, None));
    assert_eq!(busy.version, 2, "activity is outside the version");

    world.report(vec![world.calls(&key, 0)]).await.unwrap();
    let ended = world.manager.show(&key).await;
    assert_eq!(ended.active_operations, 0);
    let idle_at = ended.idle_at.unwrap();
    assert_eq!(idle_at, timestamp(world.now().after(MINUTE)));
    assert_eq!(ended.last_activity_at, Some(timestamp(world.now())));
    world.pass(59).await;
    world.stays(&key, "ready").await;
    world.pass(2).await;
    world.until_phase(&key, "releasing").await;
    world.end().await;
}

#[tokio::test]
async fn release_has_two_phases_and_a_report_in_between_reactivates() {
    let world = World::new().await;
    let key = world.active("release").await;
    world.pass(61).await;
    let releasing = world.until_phase(&key, "releasing").await;
    assert_eq!(world.manager.sim.live().len(), 1, "compute stays for now");

    let mut of_old = world.calls(&key, 1);
    of_old.generation = 0;
    world.report(vec![of_old]).await.unwrap();
    world.stays(&key, "releasing").await;
    world.report(vec![world.calls(&key, 1)]).await.unwrap();
    let back = world.until_phase(&key, "ready").await;
    assert_eq!(
        (back.version, back.generation, back.reason.as_str()),
        (releasing.version + 1, 1, "ACTIVITY")
    );
    world.report(vec![world.calls(&key, 0)]).await.unwrap();

    world.pass(61).await;
    world.until_phase(&key, "releasing").await;
    world.pass(5).await;
    world.stays(&key, "releasing").await;
    world.pass(6).await;
    world.until_phase(&key, "released").await;
    until("the compute to be released", async || {
        world.manager.sim.live().is_empty()
    })
    .await;
    world.end().await;
}

#[tokio::test]
async fn a_call_during_releasing_resolves_at_once() {
    let world = World::new().await;
    let key = world.active("release").await;
    world.pass(61).await;
    world.until_phase(&key, "releasing").await;
    let route = world.manager.resolve(&key, 5).await.unwrap();
    assert_eq!((route.status(), route.generation), (wire::RouteStatus::Active, 1));
    world.end().await;
}

#[tokio::test]
async fn a_hundred_calls_wake_a_released_session_once() {
    let world = World::new().await;
    let key = world.released().await;
    let calls = (0..100).map(|_| world.manager.resolve(&key, 15));
    let ready = async {
        until("the compute to be requested", async || {
            world.manager.sim.made(&key, 2) == 1
        })
        .await;
        world.manager.sim.ready(&key, 2, route("127.0.0.1:2"));
    };
    let (routes, ()) = tokio::join!(futures::future::join_all(calls), ready);
    for route in routes {
        let route = route.unwrap();
        assert_eq!((route.status(), route.generation), (wire::RouteStatus::Active, 2));
    }
    let wakes = world.manager.store.events(&key).await.unwrap();
    let wakes = wakes
        .iter()
        .filter(|event| event.reason.as_str() == "WOKEN")
        .count();
    assert_eq!((wakes, world.manager.sim.made(&key, 2)), (1, 1));
    world.end().await;
}

#[tokio::test]
async fn a_failed_wake_returns_to_idle_and_is_retried_later() {
    let world = World::new().await;
    let key = world.released().await;
    let warm = async || {
        let request = v1::WarmSessionRequest {
            session_id: key.id.to_string(),
        };
        world.manager.sessions("ada").warm_session(request).await
    };
    assert_eq!(
        warm().await.unwrap().into_inner().session.unwrap().phase,
        "warming"
    );
    world.pass(12).await;
    let idle = world.until_phase(&key, "released").await;
    assert_eq!(idle.reason, "WARM_FAILED");
    assert_eq!(warm().await.unwrap_err().code(), Code::Unavailable);
    let waiting = world.manager.resolve(&key, 1).await.unwrap();
    assert_eq!(waiting.status(), wire::RouteStatus::Idle);
    world.pass(6).await;
    assert_eq!(warm().await.unwrap().into_inner().session.unwrap().generation, 3);
    world.ready(&key, 3).await;
    world.end().await;
}

#[tokio::test]
async fn idle_timeouts_are_deferred_until_every_proxy_has_reported() {
    let world = World::just_begun().await;
    world.report_as("proxy-2", 1, Vec::new()).await.unwrap();
    let key = world.active("keep").await;
    // The timeout expires, but proxy-2 has not reported for a minute.
    world.pass(70).await;
    world.stays(&key, "ready").await;
    // It reports again. The session is reconciled within a minute.
    for _ in 0..13 {
        world.report_as("proxy-2", 2, Vec::new()).await.unwrap();
        world.pass(5).await;
    }
    world.until_phase(&key, "kept").await;
    world.end().await;
}

#[tokio::test]
async fn nothing_idles_where_no_proxy_reports() {
    let world = World::just_begun().await;
    let key = world.active("keep").await;
    for _ in 0..20 {
        world.clock.advance(MINUTE);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    world.stays(&key, "ready").await;
    world.end().await;
}

#[tokio::test]
async fn activity_is_written_every_ten_seconds_and_usage_counts_once() {
    let world = World::new().await;
    let key = world.active("release").await;
    let with_usage = |open| wire::SessionActivity {
        usage: Some(wire::Usage {
            rpcs: 1,
            bytes_in: 10,
            bytes_out: 100,
            open_stream_millis: 1000,
        }),
        ..world.calls(&key, open)
    };
    let usage = async || world.manager.show(&key).await.usage.unwrap();
    world.report(vec![with_usage(1)]).await.unwrap();
    assert_eq!(usage().await.rpcs, 1, "the first is written at once");
    world.pass_reporting(5, || with_usage(1)).await;
    assert_eq!(usage().await.rpcs, 1, "mere activity waits");
    world.clock.advance(5 * SECOND);
    world.report(vec![with_usage(1)]).await.unwrap();
    assert_eq!(usage().await.rpcs, 3, "and is written together");

    // A report whose response was lost is repeated.
    let again = world.sequence.fetch_add(1, Ordering::Relaxed) + 1;
    for _ in 0..3 {
        world
            .report_as("proxy-1", again, vec![with_usage(0)])
            .await
            .unwrap();
    }
    let total = usage().await;
    assert_eq!(
        (
            total.rpcs,
            total.bytes_in,
            total.bytes_out,
            total.open_stream_seconds
        ),
        (4, 40, 400, 4),
        "the end is written at once, and once"
    );
    // Pending usage is written without a further report.
    world.report(vec![with_usage(0)]).await.unwrap();
    assert_eq!(usage().await.rpcs, 4);
    world.pass(16).await;
    until("what waits to be written", async || usage().await.rpcs == 5).await;
    world.end().await;
}

#[tokio::test]
async fn invalid_reports_are_rejected_and_unknown_sessions_skipped() {
    let world = World::new().await;
    let key = world.active("keep").await;
    let refused = async |session: wire::SessionActivity, field: &str| {
        let status = world.report(vec![session]).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().starts_with(field), "{}", status.message());
    };
    let good = || world.calls(&key, 1);
    refused(
        wire::SessionActivity {
            session_id: "s-1".to_owned(),
            ..good()
        },
        "sessions.session_id",
    )
    .await;
    refused(
        wire::SessionActivity {
            operations: vec![wire::OpenOperation::default(); 65],
            ..good()
        },
        "sessions.operations",
    )
    .await;
    refused(
        wire::SessionActivity {
            token_uses: vec![wire::TokenUse::default()],
            ..good()
        },
        "sessions.token_uses.token_id",
    )
    .await;
    let many = vec![good(); 10_001];
    let status = world.report(many).await.unwrap_err();
    assert!(status.message().starts_with("sessions"), "{}", status.message());
    let nameless = world.report_as("", 0, Vec::new()).await.unwrap_err();
    assert!(
        nameless.message().starts_with("proxy_id"),
        "{}",
        nameless.message()
    );
    assert_eq!(world.manager.show(&key).await.active_operations, 0);

    let stranger = wire::SessionActivity {
        session_id: "s-00000000000000000000".to_owned(),
        ..good()
    };
    let closed = world.active("keep").await;
    world.manager.close("ada", &closed).await;
    let batch = vec![stranger, world.calls(&closed, 1), good()];
    world.report(batch).await.unwrap();
    assert_eq!(world.manager.show(&key).await.active_operations, 1);
    assert_eq!(world.manager.show(&closed).await.active_operations, 0);
    world.end().await;
}

#[tokio::test]
async fn operations_and_token_uses_are_returned() {
    let world = World::new().await;
    let key = world.active("keep").await;
    let at = |seconds| Some(timestamp(world.now().before(Duration::from_secs(seconds))));
    let token = TokenRecord {
        id: TokenId::generate(world.now(), 1),
        key_id: "k".to_owned(),
        subject: "sa|ada".parse().unwrap(),
        epoch: 1,
        issued_at: world.now(),
        expires_at: world.now().after(60 * MINUTE),
        address: String::new(),
    };
    let store = &world.manager.store;
    store.record_token(&key, token.clone(), 5).await.unwrap();
    let report = |first, last| wire::SessionActivity {
        operations: vec![wire::OpenOperation {
            spark_session_id: "x".repeat(500),
            operation_id: "op".to_owned(),
            method: "ExecutePlan".to_owned(),
            started_at: at(9),
            user_id: String::new(),
        }],
        token_uses: vec![wire::TokenUse {
            token_id: token.id.to_string(),
            first_used_at: at(first),
            last_used_at: at(last),
        }],
        ..world.calls(&key, 1)
    };
    world.report(vec![report(8, 7)]).await.unwrap();
    let list = v1::ListOperationsRequest {
        session_id: key.id.to_string(),
    };
    let listed = world
        .manager
        .sessions("ada")
        .list_operations(list.clone())
        .await
        .unwrap()
        .into_inner();
    let [operation] = listed.operations.as_slice() else {
        panic!("one operation: {listed:?}");
    };
    assert_eq!(
        (operation.operation_id.as_str(), operation.spark_session_id.len()),
        ("op", 128)
    );
    let foreign = world.manager.sessions("bob").list_operations(list).await;
    assert_eq!(foreign.unwrap_err().code(), Code::PermissionDenied);

    let listed = wire::ListTokensRequest {
        session_id: key.id.to_string(),
    };
    let tokens = world.manager.ledger("ada").list_tokens(listed).await.unwrap();
    let shown = &tokens.into_inner().tokens[0];
    assert_eq!((shown.first_used_at, shown.last_used_at), (at(8), at(7)));
    world.end().await;
}

#[tokio::test]
async fn keep_alive_defers_the_idle_timeout() {
    let world = World::new().await;
    let key = world.active("release").await;
    let until_then = timestamp(world.now().after(5 * MINUTE));
    let request = v1::KeepSessionAliveRequest {
        session_id: key.id.to_string(),
        until: Some(until_then),
    };
    let kept = world.manager.sessions("ada").keep_session_alive(request).await;
    let kept = kept.unwrap().into_inner().session.unwrap();
    assert_eq!(kept.idle_at, Some(until_then));
    world.pass(295).await;
    world.stays(&key, "ready").await;
    world.pass(6).await;
    world.until_phase(&key, "releasing").await;
    world.end().await;
}

#[tokio::test]
async fn two_managers_count_once_and_idle_once() {
    let world = World::new().await;
    let key = world.active("release").await;
    let second = world.manager.another().await;
    let with_usage = |open| wire::SessionActivity {
        usage: Some(wire::Usage {
            rpcs: 1,
            ..Default::default()
        }),
        ..world.calls(&key, open)
    };
    // The response of the first was lost; the proxy reports to the second.
    let number = world.sequence.fetch_add(1, Ordering::Relaxed) + 1;
    world
        .report_as("proxy-1", number, vec![with_usage(1)])
        .await
        .unwrap();
    World::report_to(&second, "proxy-1", number, vec![with_usage(1)])
        .await
        .unwrap();
    let shown = second.show(&key).await;
    assert_eq!((shown.active_operations, shown.usage.unwrap().rpcs), (1, 1));
    // The report to the second overrides that to the first.
    let number = world.sequence.fetch_add(1, Ordering::Relaxed) + 1;
    World::report_to(&second, "proxy-1", number, vec![with_usage(0)])
        .await
        .unwrap();
    let shown = world.manager.show(&key).await;
    assert_eq!((shown.active_operations, shown.usage.unwrap().rpcs), (0, 2));

    world.pass(61).await;
    world.until_phase(&key, "releasing").await;
    // Both have reconciled it by then.
    for _ in 0..13 {
        world.pass(5).await;
    }
    world.until_phase(&key, "released").await;
    let events = world.manager.store.events(&key).await.unwrap();
    let reasons: Vec<_> = events.iter().map(|event| event.reason.as_str()).collect();
    let once = ["CREATED", "COMPUTE_READY", "IDLE_TIMEOUT", "IDLE_RELEASED"];
    assert_eq!(reasons, once);
    second.stop().await;
    world.end().await;
}

#[tokio::test]
async fn pending_usage_is_written_when_the_manager_stops() {
    let world = World::new().await;
    let key = world.active("keep").await;
    for _ in 0..3 {
        let report = wire::SessionActivity {
            usage: Some(wire::Usage {
                rpcs: 1,
                ..Default::default()
            }),
            ..world.calls(&key, 1)
        };
        world.report(vec![report]).await.unwrap();
    }
    let store = Arc::clone(&world.manager.store);
    let session = store.get(&key).await.unwrap().unwrap();
    let rpcs = async || {
        store.usage(std::slice::from_ref(&session)).await.unwrap()[0]
            .totals
            .rpcs
    };
    assert_eq!(rpcs().await, 1);
    world.end().await;
    assert_eq!(rpcs().await, 3);
}

/// A draining cluster rejects new sessions; released ones wake as before.
#[tokio::test]
async fn an_idle_session_wakes_on_a_draining_cluster() {
    let world = World::new().await;
    let cluster = v1::Cluster {
        name: "lab".to_owned(),
        engine: v1::Engine::Sail.into(),
        provider: Some(v1::cluster::Provider::Process(v1::ProcessProvider {
            program: "/opt/sail".to_owned(),
            ..Default::default()
        })),
        idle_timeout: Some(prost_types::Duration {
            seconds: 60,
            nanos: 0,
        }),
        ..Default::default()
    };
    let mut clusters = world.manager.clusters("pat");
    let request = v1::CreateClusterRequest {
        cluster: Some(cluster),
    };
    clusters.create_cluster(request).await.unwrap();
    let key = world.active("lab").await;
    world.pass(61).await;
    world.until_phase(&key, "releasing").await;
    world.pass(11).await;
    world.until_phase(&key, "released").await;
    // An interrupt does not wake an idle session.
    let request = v1::InterruptOperationsRequest {
        session_id: key.id.to_string(),
        operation_ids: Vec::new(),
    };
    let refused = world
        .manager
        .sessions("ada")
        .interrupt_operations(request)
        .await
        .unwrap_err();
    assert_eq!(
        session_proto::error::reason_of(&refused),
        Some(session_core::Reason::ComputeReleased)
    );
    let request = v1::DrainClusterRequest {
        name: "lab".to_owned(),
    };
    clusters.drain_cluster(request).await.unwrap();
    let request = v1::WarmSessionRequest {
        session_id: key.id.to_string(),
    };
    world.manager.sessions("ada").warm_session(request).await.unwrap();
    world.ready(&key, 2).await;
    let request = on("lab");
    let refused = world.manager.sessions("ada").create_session(request).await;
    assert_eq!(refused.unwrap_err().code(), Code::FailedPrecondition);
    world.end().await;
}
