//! What pending compute waits for reaches the user before the deadline.

use crate::support::{Manager, route, until};
use session_core::SessionKey;
use session_proto::v1::{self, SessionStatus, watch_sessions_response::Update};
use std::time::{Duration, Instant};

const NO_ROOM: &str = "no node has room: insufficient cpu";
/// From the provider's report to the user.
const VISIBLE_WITHIN: Duration = Duration::from_secs(2);

async fn events(manager: &Manager, key: &SessionKey) -> Vec<(String, String)> {
    let request = v1::ListSessionEventsRequest {
        session_id: key.id.to_string(),
    };
    let events = manager
        .sessions("ada")
        .list_session_events(request)
        .await
        .unwrap();
    let events = events.into_inner().events;
    events
        .into_iter()
        .map(|event| (event.reason, event.message))
        .collect()
}

#[tokio::test]
async fn a_cause_is_visible_at_once_and_recorded_once() {
    let manager = Manager::start().await;
    let key = manager.create("ada").await;
    let begun = Instant::now();
    manager.sim.waits(&key, 1, NO_ROOM);
    until("the cause to be shown", async || {
        manager.show(&key).await.status_message == NO_ROOM
    })
    .await;
    assert!(begun.elapsed() < VISIBLE_WITHIN, "{:?}", begun.elapsed());
    let shown = manager.show(&key).await;
    assert_eq!(
        (shown.status(), shown.reason.as_str()),
        (SessionStatus::Pending, "COMPUTE_WAITING")
    );
    // The provider repeats it; nothing is written.
    for _ in 0..20 {
        manager.sim.waits(&key, 1, NO_ROOM);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(manager.show(&key).await.version, shown.version);
    let waiting = ("COMPUTE_WAITING".to_owned(), NO_ROOM.to_owned());
    let all = events(&manager, &key).await;
    assert_eq!(
        all.iter().filter(|event| **event == waiting).count(),
        1,
        "{all:?}"
    );

    manager.sim.ready(&key, 1, route("127.0.0.1:1"));
    let active = manager.until_status(&key, SessionStatus::Active).await;
    assert_eq!(
        (active.status_message.as_str(), active.status_detail.as_str()),
        ("", "")
    );
}

#[tokio::test]
async fn a_watch_reports_each_new_cause() {
    let manager = Manager::start().await;
    let key = manager.create("ada").await;
    let request = v1::WatchSessionsRequest {
        session_id: key.id.to_string(),
    };
    let mut watch = manager
        .sessions("ada")
        .watch_sessions(request)
        .await
        .unwrap()
        .into_inner();
    let mut next = async |text: &str| {
        let begun = Instant::now();
        manager.sim.waits(&key, 1, text);
        loop {
            let message = tokio::time::timeout(VISIBLE_WITHIN, watch.message()).await;
            let message = message.expect("a change in time").unwrap().unwrap();
            let Some(Update::Session(session)) = message.update else {
                continue;
            };
            if session.status_message == text {
                assert_eq!(message.event.unwrap().reason, "COMPUTE_WAITING");
                return begun.elapsed();
            }
        }
    };
    for text in [NO_ROOM, "its image is being pulled", "sail is starting"] {
        let elapsed = next(text).await;
        assert!(elapsed < VISIBLE_WITHIN, "{text}: {elapsed:?}");
    }
}

#[tokio::test]
async fn causes_that_alternate_are_written_once_a_second() {
    let manager = Manager::start().await;
    let key = manager.create("ada").await;
    let begun = Instant::now();
    for n in 0..300 {
        manager.sim.waits(&key, 1, &format!("cause {}", n % 7));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let all = events(&manager, &key).await;
    let written = all.iter().filter(|event| event.0 == "COMPUTE_WAITING").count();
    let limit = begun.elapsed().as_secs() + 1;
    assert!(
        (1..=limit).contains(&(written as u64)),
        "{written} writes in {:?}",
        begun.elapsed()
    );
}
