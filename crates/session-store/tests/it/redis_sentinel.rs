//! Fail-over by sentinels: the store follows the new primary, no write that a replica
//! had is lost, and readers are reset.

use crate::common::{Draft, FAR, LIMIT, Store, close, commit, eventually, revoke, touch};
use futures::StreamExt;
use session_core::{Session, Status, Timestamp};
use session_store::redis::{Options, RedisStore};
use session_store::{Error, Feed};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use test_support::redis::{PrivateRedis, RedisOptions, Watched};
use tokio::time::timeout;

/// Results of a writer.
struct Written {
    /// Acknowledged.
    closed: Vec<Session>,
    failed: usize,
}

/// Creates and closes sessions until stopped.
async fn write(store: Store, stop: Arc<AtomicBool>) -> Written {
    let mut written = Written {
        closed: Vec::new(),
        failed: 0,
    };
    while !stop.load(Ordering::Relaxed) {
        let outcome = async {
            let session = store.create(Draft::default().create()).await?.session;
            let change = close(&session);
            let closed = change.session.clone();
            store.commit(change).await?;
            Ok::<_, Error>(closed)
        };
        match outcome.await {
            Ok(closed) => written.closed.push(closed),
            Err(Error::Unavailable(_)) => {
                written.failed += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            // It was written, and the reply was lost.
            Err(Error::Conflict | Error::NotFound) => written.failed += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    written
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fail_over_under_load_loses_nothing_that_was_acknowledged() {
    let mut watched = Watched::start(2, &RedisOptions::default()).await.unwrap();
    let store: Store = Arc::new(
        RedisStore::connect(&watched.url(), &Options::default())
            .await
            .unwrap(),
    );
    let epoch = store.epoch().await.unwrap();
    let mut feed = store.changes();
    let next = timeout(LIMIT, feed.next()).await.unwrap();
    assert!(matches!(next, Some(Feed::Reset)));
    let due = Draft::of("other", "sa|eve").store(&store).await;
    store
        .set_due(&due.key(), due.version, Some(Timestamp::from_millis(1)))
        .await
        .unwrap();
    // Acknowledged by a replica, which also has all earlier writes.
    commit(&store, close(&Draft::default().store(&store).await)).await;

    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|_| tokio::spawn(write(Arc::clone(&store), Arc::clone(&stop))))
        .collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let old = watched.primary().await.unwrap();
    watched.servers[old].kill9().unwrap();
    eventually("another server takes over", async || {
        store.create(Draft::default().create()).await.map(drop)
    })
    .await;
    let rose = eventually("the epoch rises", async || {
        let now = store.epoch().await;
        if matches!(now, Ok(now) if now > epoch) {
            now.map_err(|e| e.to_string())
        } else {
            Err(format!("{now:?}"))
        }
    })
    .await;
    assert!(rose > epoch);
    // Let the writers use the new primary for a time.
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.store(true, Ordering::Relaxed);

    let (mut acknowledged, mut gone, writers_count) = (0, 0, writers.len());
    for writer in writers {
        let written = writer.await.unwrap();
        assert!(written.failed > 0 || !written.closed.is_empty());
        for closed in written.closed {
            acknowledged += 1;
            let there = eventually("an acknowledged end is there", async || {
                match store.get(&closed.key()).await {
                    Ok(Some(stored)) if stored.status() == Status::Closed => Ok(true),
                    Ok(None) => Ok(false),
                    other => Err(other),
                }
            });
            gone += usize::from(!there.await);
        }
    }
    assert!(acknowledged > writers_count);
    // A lost session counts as closed. Each writer may have had one change in progress
    // that no replica had: an unreplicated one.
    assert!(gone <= writers_count, "{gone} of {acknowledged} are gone");
    let mut resets = 0;
    while resets == 0 {
        match timeout(LIMIT, feed.next())
            .await
            .expect("the feed is silent")
            .unwrap()
        {
            Feed::Reset => resets += 1,
            Feed::Change(_) => {}
        }
    }
    assert_eq!(store.claim_due(1, FAR).await.unwrap(), [due.key()]);
    let fresh = Draft::of("third", "sa|eve").store(&store).await;
    loop {
        match timeout(LIMIT, feed.next())
            .await
            .expect("the feed is silent")
            .unwrap()
        {
            Feed::Change(change) if change.key == fresh.key() => break,
            Feed::Change(_) | Feed::Reset => {}
        }
    }
}

/// A primary without persistence restarts immediately after its replacement, as a
/// supervisor would do: it is empty and reports itself as a primary. The sentinel that
/// leads the fail-over still shows its address in some replies, until the other replica
/// follows the new primary.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_former_primary_that_comes_back_empty_is_not_believed() {
    const LOOK: Duration = Duration::from_secs(4);
    let mut watched = Watched::start(2, &RedisOptions::default()).await.unwrap();
    let store: Store = Arc::new(
        RedisStore::connect(&watched.url(), &Options::default())
            .await
            .unwrap(),
    );
    let session = Draft::default().store(&store).await;
    // The end is replicated, so a replica has the other write too.
    commit(&store, close(&Draft::default().store(&store).await)).await;
    let old = watched.primary().await.unwrap();
    watched.servers[old].kill9().unwrap();
    let named = async || match watched.primary().await {
        Ok(now) if now != old => Ok(()),
        other => Err(format!("{other:?}")),
    };
    eventually("another one is named", named).await;
    watched.servers[old].restart().await.unwrap();
    let begun = std::time::Instant::now();
    let mut found = 0;
    while begun.elapsed() < LOOK {
        match store.get(&session.key()).await {
            Ok(stored) => {
                assert_eq!(stored.as_ref(), Some(&session), "{:?} later", begun.elapsed());
                found += 1;
            }
            Err(Error::Unavailable(_)) => {}
            Err(other) => panic!("{other:?}"),
        }
        // Each check reads the topology again.
        let _ = store.epoch().await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(found > 0);
}

/// The replica is connected but receives nothing: ends are unreplicated. Then the
/// primary dies, and the replica takes over without the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_that_a_fail_over_lost_is_written_again() {
    let mut watched = Watched::start(1, &RedisOptions::default()).await.unwrap();
    let store: Store = Arc::new(
        RedisStore::connect(&watched.url(), &Options::default())
            .await
            .unwrap(),
    );
    let mut sessions = Vec::new();
    for _ in 0..3 {
        sessions.push(Draft::default().store(&store).await);
    }
    // Now a replica has all changes.
    let closed = commit(&store, close(&sessions[0])).await;
    let (ends, revoked) = (&sessions[1], &sessions[2]);
    let old = watched.primary().await.unwrap();
    let replica = 1 - old;
    watched.servers[replica].stand_still(true).await.unwrap();
    let ended = commit(&store, close(ends)).await;
    let taken_back = commit(&store, revoke(revoked)).await;
    let taken_back = commit(&store, touch(&taken_back)).await;
    watched.servers[old].kill9().unwrap();
    watched.servers[replica].stand_still(false).await.unwrap();
    written_again(&store, &ended, &taken_back).await;
    assert_eq!(store.get(&closed.key()).await.unwrap(), Some(closed));
}

/// Waits until the store has the end of one session and the revocation of another again.
async fn written_again(store: &Store, ended: &Session, revoked: &Session) {
    eventually("the end is there again", async || {
        match store.get(&ended.key()).await {
            Ok(Some(stored)) if stored.status() == Status::Closed && stored.version >= ended.version => {
                Ok(())
            }
            other => Err(other),
        }
    })
    .await;
    eventually("the tokens are revoked again", async || {
        match store.get(&revoked.key()).await {
            Ok(Some(stored)) if stored.token_epoch == revoked.token_epoch => Ok(()),
            other => Err(other),
        }
    })
    .await;
}

/// A replica acknowledged the end, but another one takes over, which does not have it: the
/// sentinels choose among those that they reach.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_that_only_another_replica_had_is_written_again() {
    let mut watched = Watched::start(2, &RedisOptions::default()).await.unwrap();
    let store: Store = Arc::new(
        RedisStore::connect(&watched.url(), &Options::default())
            .await
            .unwrap(),
    );
    let sessions = [
        Draft::default().store(&store).await,
        Draft::default().store(&store).await,
    ];
    let replicated = watched.servers[0].command("WAIT 2 5000").await.unwrap();
    assert_eq!(replicated, ":2\r\n");
    // The first replica receives nothing from now on; the sentinels put that right after 8 s.
    let first = &watched.servers[1];
    first.command("REPLICAOF 127.0.0.1 1").await.unwrap();
    let ended = commit(&store, close(&sessions[0])).await;
    let revoked = commit(&store, revoke(&sessions[1])).await;
    watched.servers[0].kill9().unwrap();
    watched.servers[2].kill9().unwrap();
    eventually("the first replica takes over", async || {
        match watched.primary().await {
            Ok(1) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    written_again(&store, &ended, &revoked).await;
}

/// Without replicas no write waits.
#[tokio::test]
async fn a_server_without_replicas_is_not_waited_for() {
    let redis = PrivateRedis::start().await.unwrap();
    let store: Store = Arc::new(
        RedisStore::connect(&redis.url(), &Options::default())
            .await
            .unwrap(),
    );
    commit(&store, close(&Draft::default().store(&store).await)).await;
    let asked = redis.command("INFO commandstats").await.unwrap();
    assert!(!asked.contains("cmdstat_wait:"), "{asked}");
}
