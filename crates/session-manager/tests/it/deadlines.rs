//! The visible deadlines are exact: `idle_at` to 15 s while a session is used, to
//! 2 s without calls, also if a proxy reports to two managers in turn. The
//! simulation checks the same under faults.

use crate::support::{Manager, on, route, until};
use session_core::time::ManualClock;
use session_core::{Clock, SessionKey, SystemClock, Timestamp};
use session_proto::convert::timestamp;
use session_proto::internal as wire;
use session_proto::v1::SessionStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const IDLE: Duration = Duration::from_secs(60);
const CLUSTER: &str = r#"
[[clusters]]
name = "release"
engine = "sail"
idle_timeout = "60s"
process = { program = "/opt/sail" }
"#;

/// An active session, and a proxy whose reports the test determines.
struct World {
    clock: Arc<ManualClock>,
    manager: Manager,
    key: SessionKey,
    sequence: AtomicU64,
}

impl World {
    async fn new() -> Self {
        let clock = Arc::new(ManualClock::at(SystemClock.now()));
        let manager = Manager::start_at(Arc::clone(&clock) as _, CLUSTER).await;
        let request = on("release");
        let key = manager.create_as("ada", request).await;
        until("the compute to be requested", async || {
            manager.sim.made(&key, 1) == 1
        })
        .await;
        manager.sim.ready(&key, 1, route("127.0.0.1:1"));
        manager.until_status(&key, SessionStatus::Active).await;
        Self {
            clock,
            manager,
            key,
            sequence: AtomicU64::new(0),
        }
    }

    /// Sends the proxy's next report to this manager.
    async fn report_to(&self, manager: &Manager, open_calls: u32) {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed) + 1;
        let request = wire::ReportActivityRequest {
            proxy_id: "proxy-1".to_owned(),
            sessions: vec![wire::SessionActivity {
                session_id: self.key.id.to_string(),
                org: self.key.org.to_string(),
                generation: 1,
                open_calls,
                last_activity_at: Some(timestamp(self.clock.now())),
                ..Default::default()
            }],
            sequence,
        };
        manager.routes().report_activity(request).await.unwrap();
    }

    /// The visible `idle_at`, in milliseconds.
    async fn idle_at(&self) -> Option<u64> {
        let shown = self.manager.show(&self.key).await.idle_at?;
        let millis = shown.seconds * 1000 + i64::from(shown.nanos) / 1_000_000;
        Some(u64::try_from(millis).unwrap())
    }
}

fn idles_after(silence_since: Timestamp) -> Option<u64> {
    Some(silence_since.after(IDLE).as_millis())
}

#[tokio::test]
async fn activity_is_visible_within_15_s_and_exact() {
    let world = World::new().await;
    world.report_to(&world.manager, 0).await;
    let first = world.clock.now();
    assert_eq!(world.idle_at().await, idles_after(first));
    // The last short call, after which no report follows.
    world.clock.advance(SECOND);
    world.report_to(&world.manager, 0).await;
    let last = world.clock.now();
    assert_eq!(world.idle_at().await, idles_after(first), "it waits");
    world.clock.advance(14 * SECOND);
    until("the last call to show", async || {
        world.idle_at().await == idles_after(last)
    })
    .await;
    world.manager.stop().await;
}

#[tokio::test]
async fn a_call_and_its_end_are_visible_at_once_whichever_manager_gets_the_report() {
    let world = World::new().await;
    let second = world.manager.another().await;
    let managers = [&world.manager, &second];
    // Each manager has state of its last write, and the other one wrote since.
    let turns = [
        (1, 0),
        (0, 1),
        (1, 0),
        (0, 0),
        (1, 1),
        (0, 0),
        (1, 0),
        (0, 1),
        (0, 0),
    ];
    for (turn, (open_calls, receiver)) in turns.into_iter().enumerate() {
        world.clock.advance(SECOND);
        world.report_to(managers[receiver], open_calls).await;
        let now = idles_after(world.clock.now());
        let shown = world.manager.show(&world.key).await;
        assert_eq!(shown.active_operations, open_calls, "turn {turn}");
        let expected = now.filter(|_| open_calls == 0);
        assert_eq!(world.idle_at().await, expected, "turn {turn}");
    }
    second.stop().await;
    world.manager.stop().await;
}
