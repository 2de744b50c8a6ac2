//! Tests with a manual clock: windows, retention times and leases end to the
//! millisecond.

use crate::common::{Draft, plenty, report, request};
use session_core::machine::BUSY_LEASE;
use session_core::time::ManualClock;
use session_core::{Activity, Limits, Timestamp};
use session_store::memory::MemoryStore;
use session_store::prelude::*;
use session_store::{Create, Error, REQUEST_ID_RETENTION};
use std::sync::Arc;
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(1);

fn at_the_full_minute() -> (Arc<ManualClock>, MemoryStore) {
    let clock = Arc::new(ManualClock::at(Timestamp::from_millis(1_800_000_000_000)));
    (Arc::clone(&clock), MemoryStore::new(clock))
}

#[tokio::test]
async fn a_request_is_remembered_for_a_day() {
    let (clock, store) = at_the_full_minute();
    let create = || Create {
        request: request("r", "f"),
        ..Draft::default().create()
    };
    let first = store.create(create()).await.unwrap().session;
    clock.advance(REQUEST_ID_RETENTION - TICK);
    assert_eq!(store.create(create()).await.unwrap().session, first);
    clock.advance(TICK);
    assert!(store.create(create()).await.unwrap().new);
    assert!(!store.create(create()).await.unwrap().new);
}

#[tokio::test]
async fn creates_are_counted_by_the_minute() {
    let (clock, store) = at_the_full_minute();
    let limits = Limits {
        creates_per_minute: 2,
        ..plenty()
    };
    let create = || Create {
        limits: limits.clone(),
        ..Draft::default().create()
    };
    for _ in 0..3 {
        store.create(create()).await.unwrap();
        clock.advance(MINUTE - TICK);
        store.create(create()).await.unwrap();
        let refused = store.create(create()).await;
        assert!(
            matches!(
                refused,
                Err(Error::Quota {
                    retry_after: Some(TICK),
                    ..
                })
            ),
            "{refused:?}"
        );
        clock.advance(TICK);
    }
}

#[tokio::test]
async fn a_session_is_due_at_its_moment_and_after_its_lease() {
    let (clock, store) = at_the_full_minute();
    let due = clock_now(&store).await.after(MINUTE);
    let key = store
        .create(Create {
            due,
            ..Draft::default().create()
        })
        .await
        .unwrap()
        .session
        .key();
    for _ in 0..3 {
        clock.advance(MINUTE - TICK);
        assert!(store.claim_due(1, MINUTE).await.unwrap().is_empty());
        clock.advance(TICK);
        assert_eq!(
            store.claim_due(1, MINUTE).await.unwrap(),
            std::slice::from_ref(&key)
        );
    }
}

#[tokio::test]
async fn a_test_can_set_the_activity() {
    let (_, store) = at_the_full_minute();
    let key = store
        .create(Draft::default().create())
        .await
        .unwrap()
        .session
        .key();
    store.set_activity(&key, Activity::Busy);
    assert_eq!(
        store.get_with_activity(&key).await.unwrap().unwrap().activity,
        Activity::Busy
    );
}

#[tokio::test]
async fn a_silent_proxy_keeps_a_session_busy_for_thirty_seconds() {
    let (clock, store) = at_the_full_minute();
    let session = store.create(Draft::default().create()).await.unwrap().session;
    let key = session.key();
    let activity = async || store.get_with_activity(&key).await.unwrap().unwrap().activity;
    for _ in 0..3 {
        store.apply_report(&key, &report("p", 1)).await.unwrap();
        clock.advance(BUSY_LEASE - TICK);
        assert_eq!(activity().await, Activity::Busy);
    }
    clock.advance(TICK);
    let said = clock_now(&store).await.before(BUSY_LEASE);
    assert_eq!(
        activity().await,
        Activity::Quiet {
            last_activity_at: said
        }
    );
}

#[tokio::test]
async fn proxies_are_silent_and_gone_to_the_millisecond() {
    let (clock, store) = at_the_full_minute();
    let ask = async || store.count_proxies(MINUTE, Some(2 * MINUTE)).await.unwrap();
    store.begin_proxy_report(&"p".parse().unwrap(), 1).await.unwrap();
    clock.advance(MINUTE - TICK);
    assert_eq!((ask().await.known, ask().await.silent), (1, 0));
    clock.advance(TICK);
    assert_eq!((ask().await.known, ask().await.silent), (1, 1));
    clock.advance(MINUTE - TICK);
    assert_eq!((ask().await.known, ask().await.silent), (1, 1));
    clock.advance(TICK);
    assert_eq!((ask().await.known, ask().await.silent), (0, 0));
    // After that time it is a new proxy.
    assert!(
        store
            .begin_proxy_report(&"p".parse().unwrap(), 1)
            .await
            .unwrap()
            .fresh
    );
}

async fn clock_now(store: &MemoryStore) -> Timestamp {
    store.now().await.unwrap()
}
