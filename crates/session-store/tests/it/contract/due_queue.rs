//! The due-queue.

use crate::common::{Draft, FAR, LIMIT, Store, close, commit, eventually, nobody, touch};
use session_core::{SessionKey, Timestamp};
use session_store::{Commit, Create, Error};
use std::collections::BTreeSet;
use std::time::Duration;

const ORGS: [&str; 6] = ["acme", "local", "a", "b", "c", "d"];

async fn due_at(store: &Store, org: &'static str, at: u64) -> SessionKey {
    let create = Create {
        due: Timestamp::from_millis(at),
        ..Draft::of(org, "sa|bob").create()
    };
    store.create(create).await.unwrap().session.key()
}

pub(crate) async fn the_longest_due_come_first_over_all_organizations(store: Store) {
    let mut expected = Vec::new();
    for i in 0..30_u64 {
        expected.push(due_at(&store, ORGS[i as usize % ORGS.len()], 1000 + i).await);
    }
    Draft::default().store(&store).await; // not due
    let mut claimed = Vec::new();
    for take in [1, 4, 10, 0, 5] {
        let keys = store.claim_due(take, FAR).await.unwrap();
        assert_eq!(keys.len(), take);
        claimed.extend(keys);
    }
    claimed.extend(store.claim_due(100, FAR).await.unwrap());
    assert_eq!(claimed, expected);
    assert!(store.claim_due(100, FAR).await.unwrap().is_empty());
}

pub(crate) async fn a_lease_that_runs_out_makes_due_again(store: Store) {
    let key = due_at(&store, "acme", 1).await;
    let leased = store.claim_due(10, Duration::from_millis(300)).await.unwrap();
    assert_eq!(leased, std::slice::from_ref(&key));
    assert!(store.claim_due(10, FAR).await.unwrap().is_empty(), "leased");
    let again = eventually("the lease ends", async || {
        let keys = store.claim_due(10, FAR).await.unwrap();
        if keys.is_empty() { Err(keys) } else { Ok(keys) }
    })
    .await;
    assert_eq!(again, [key]);
}

pub(crate) async fn claimers_never_share_a_session(store: Store) {
    for i in 0..200_u64 {
        due_at(&store, ORGS[i as usize % ORGS.len()], 1 + i % 7).await;
    }
    let claimer = |store: Store| async move {
        let mut mine = Vec::new();
        loop {
            let keys = store.claim_due(7, FAR).await.unwrap();
            if keys.is_empty() {
                return mine;
            }
            mine.extend(keys);
        }
    };
    let claimers: Vec<_> = (0..4).map(|_| tokio::spawn(claimer(store.clone()))).collect();
    let mut all = Vec::new();
    for claimer in claimers {
        all.extend(tokio::time::timeout(LIMIT, claimer).await.unwrap().unwrap());
    }
    // A claimer may stop early when another one is faster: claim the rest.
    all.extend(claimer(store).await);
    assert_eq!(all.len(), 200);
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 200);
}

pub(crate) async fn setting_due_needs_the_version(store: Store) {
    let past = Some(Timestamp::from_millis(1));
    let session = Draft::default().store(&store).await;
    let key = session.key();
    assert!(matches!(store.set_due(&key, 2, past).await, Err(Error::Conflict)));
    assert!(matches!(
        store.set_due(&nobody(), 1, past).await,
        Err(Error::NotFound)
    ));
    assert!(store.claim_due(10, FAR).await.unwrap().is_empty());

    store.set_due(&key, 1, past).await.unwrap();
    assert_eq!(store.events(&key).await.unwrap().len(), 1, "makes no event");
    assert_eq!(
        store.claim_due(10, FAR).await.unwrap(),
        std::slice::from_ref(&key)
    );
    store.set_due(&key, 1, None).await.unwrap();

    // A commit sets the due time, or none.
    let second = commit(
        &store,
        Commit {
            due: past,
            ..touch(&session)
        },
    )
    .await;
    assert_eq!(
        store.claim_due(10, Duration::ZERO).await.unwrap(),
        std::slice::from_ref(&key)
    );
    let third = commit(
        &store,
        Commit {
            due: None,
            ..touch(&second)
        },
    )
    .await;
    assert!(store.claim_due(10, FAR).await.unwrap().is_empty());

    // An ended session stays due until its compute is released.
    let closed = commit(
        &store,
        Commit {
            due: past,
            ..close(&third)
        },
    )
    .await;
    assert_eq!(
        store.claim_due(10, FAR).await.unwrap(),
        std::slice::from_ref(&key)
    );
    store.set_due(&key, closed.version, None).await.unwrap();
}

pub(crate) async fn one_owner_has_a_lease_until_it_ends(store: Store) {
    let long = Duration::from_secs(60);
    let lease = async |name: &str, owner: &str, ttl| store.acquire_lease(name, owner, ttl).await.unwrap();
    let first = lease("engines", "a", long).await.unwrap();
    assert_eq!(
        lease("engines", "a", long).await,
        Some(first),
        "kept by its owner"
    );
    assert_eq!(lease("engines", "b", long).await, None);
    let other = lease("others", "b", long).await;
    assert!(other.is_some(), "another name is another lease");
    store.release_lease("engines", "b").await.unwrap();
    let taken = lease("engines", "b", long).await;
    assert_eq!(taken, None, "not b's to give back");

    store.release_lease("engines", "a").await.unwrap();
    let second = lease("engines", "b", Duration::from_millis(1)).await;
    let second = second.expect("it was given back");
    assert!(second > first, "{second} fences off {first}");
    let begun = std::time::Instant::now();
    let third = loop {
        if let Some(fence) = lease("engines", "a", long).await {
            break fence;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "it never ran out");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert!(third > second, "{third} fences off {second}");
}

pub(crate) async fn the_oldest_due_time_is_read_without_a_claim(store: Store) {
    assert_eq!(store.oldest_due().await.unwrap(), None);
    let mut keys = Vec::new();
    for (org, at) in [("acme", 3000), ("local", 2000), ("a", 4000)] {
        keys.push(due_at(&store, org, at).await);
    }
    for _ in 0..2 {
        let oldest = store.oldest_due().await.unwrap();
        assert_eq!(oldest, Some(Timestamp::from_millis(2000)));
    }
    store.set_due(&keys[1], 1, None).await.unwrap();
    let oldest = store.oldest_due().await.unwrap();
    assert_eq!(oldest, Some(Timestamp::from_millis(3000)));
}
