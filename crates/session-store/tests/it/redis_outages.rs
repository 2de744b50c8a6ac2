//! A slow, unavailable or empty Redis: every wait is bounded, callers are rejected
//! instead of queued, and the store recovers.

use crate::common::{Draft, FAR, LIMIT, commit, connect, eventually, touch};
use futures::future::join_all;
use session_store::Error;
use session_store::redis::Options;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use test_support::redis::PrivateRedis;
use tokio::time::Instant;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_beyond_the_limit_are_turned_away_at_once() {
    let redis = PrivateRedis::start().await.unwrap();
    let options = Options {
        max_in_flight: 20,
        call_timeout: Duration::from_secs(1),
        ..Options::default()
    };
    let store = connect(&redis, &options).await;
    let session = Draft::default().store(&store).await;
    redis.command("CLIENT PAUSE 3000 ALL").await.unwrap();
    let begun = Instant::now();
    let calls = join_all((0..200).map(|_| {
        let (store, key) = (Arc::clone(&store), session.key());
        tokio::spawn(async move {
            let answer = store.get(&key).await;
            (answer, Instant::now())
        })
    }));
    let (mut at_once, mut late) = (0, 0);
    for answer in calls.await {
        match answer.unwrap() {
            (Err(Error::Unavailable(why)), _) if why.detail.contains("in flight") => at_once += 1,
            (Err(Error::Unavailable(_)), at) => {
                assert!(at - begun >= Duration::from_millis(900));
                late += 1;
            }
            (other, _) => panic!("{other:?}"),
        }
    }
    // Background queries of the store count too.
    assert!(late <= 20 && late > 0, "{late} were let in");
    assert!(at_once >= 180, "{at_once} were turned away");
    assert!(begun.elapsed() < LIMIT);
    eventually("all is well again", async || store.get(&session.key()).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_may_be_forgotten_at_any_time() {
    let redis = PrivateRedis::start().await.unwrap();
    let store = connect(&redis, &Options::default()).await;
    let done = Arc::new(AtomicBool::new(false));
    let writers = join_all((0..8).map(|_| {
        let store = Arc::clone(&store);
        let done = Arc::clone(&done);
        tokio::spawn(async move {
            let mut session = Draft::default().store(&store).await;
            while !done.load(Ordering::Relaxed) {
                session = commit(&store, touch(&session)).await;
                store.claim_due(1, FAR).await.unwrap();
            }
            session.version
        })
    }));
    let flush = async {
        for _ in 0..100 {
            assert_eq!(redis.command("SCRIPT FLUSH").await.unwrap(), "+OK\r\n");
        }
        done.store(true, Ordering::Relaxed);
    };
    let (written, ()) = tokio::join!(writers, flush);
    for versions in written {
        assert!(versions.unwrap() > 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_comes_back_must_still_keep_what_it_is_given() {
    let mut redis = PrivateRedis::start().await.unwrap();
    let store = connect(&redis, &Options::default()).await;
    let key = Draft::default().store(&store).await.key();
    redis.restart().await.unwrap();
    redis
        .command("CONFIG SET maxmemory-policy allkeys-lru")
        .await
        .unwrap();
    let refused = eventually("it is noticed", async || match store.get(&key).await {
        Err(Error::Unavailable(why)) if why.detail.contains("allkeys-lru") => Ok(why),
        other => Err(other),
    });
    refused.await;
    redis
        .command("CONFIG SET maxmemory-policy noeviction")
        .await
        .unwrap();
    eventually("it is used again", async || store.get(&key).await).await;
}
