//! The change feed.

use crate::common::{Draft, LIMIT, Store, close, commit, revoke, touch};
use futures::StreamExt;
use futures::future::join_all;
use futures::stream::BoxStream;
use session_core::{Session, SessionKey};
use session_store::{Change, Feed};
use std::collections::HashMap;
use tokio::time::timeout;

async fn next(feed: &mut BoxStream<'static, Feed>) -> Feed {
    timeout(LIMIT, feed.next())
        .await
        .expect("the feed is silent")
        .expect("the feed ended")
}

async fn next_change(feed: &mut BoxStream<'static, Feed>) -> Change {
    match next(feed).await {
        Feed::Change(change) => *change,
        Feed::Reset => panic!("an unexpected reset"),
    }
}

async fn begin(store: &Store) -> BoxStream<'static, Feed> {
    let mut feed = store.changes();
    assert!(matches!(next(&mut feed).await, Feed::Reset));
    feed
}

pub(crate) async fn the_feed_begins_with_reset(store: Store) {
    let old = Draft::default().store(&store).await;
    let mut feed = begin(&store).await;
    // No earlier change, and all changes after the reset.
    let revoked = revoke(&old);
    let session = commit(&store, revoked.clone()).await;
    let change = next_change(&mut feed).await;
    assert_eq!(
        (change.key, change.record, change.token_epoch),
        (session.key(), revoked.record, 2)
    );
    let created = Draft::of("local", "sa|bob").store(&store).await;
    let change = next_change(&mut feed).await;
    assert_eq!(
        (change.key, change.record.version, change.token_epoch),
        (created.key(), 1, 1)
    );
}

pub(crate) async fn every_change_is_seen_once_in_version_order(store: Store) {
    const SESSIONS: usize = 40;
    const VERSIONS: u64 = 12;
    let orgs = ["acme", "local", "a", "b", "c", "d"];
    let mut feeds = [begin(&store).await, begin(&store).await];
    let lives = (0..SESSIONS).map(|i| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut session: Session = Draft::of(orgs[i % orgs.len()], "sa|bob").store(&store).await;
            while session.version < VERSIONS - 1 {
                session = commit(&store, touch(&session)).await;
            }
            commit(&store, close(&session)).await;
        })
    });
    let lives = join_all(lives);
    let readers = join_all(feeds.iter_mut().map(async |feed| {
        let mut versions: HashMap<SessionKey, u64> = HashMap::new();
        for _ in 0..SESSIONS as u64 * VERSIONS {
            let change = next_change(feed).await;
            let last = versions.entry(change.key).or_default();
            assert_eq!(change.record.version, *last + 1);
            *last = change.record.version;
        }
        assert_eq!(versions.len(), SESSIONS);
        assert!(versions.values().all(|last| *last == VERSIONS));
    }));
    let (lives, _) = tokio::join!(lives, readers);
    for life in lives {
        life.unwrap();
    }
}

pub(crate) async fn a_reader_that_falls_behind_is_reset(store: Store) {
    let mut feed = begin(&store).await;
    let session = Draft::default().store(&store).await;
    assert_eq!(next_change(&mut feed).await.key, session.key());
    // More than any store keeps, without a reader.
    join_all((0..100).map(|_| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut session = Draft::default().store(&store).await;
            for _ in 0..119 {
                session = commit(&store, touch(&session)).await;
            }
        })
    }))
    .await;
    // The reset comes at once or after buffered changes.
    let mut seen = 0;
    while !matches!(next(&mut feed).await, Feed::Reset) {
        seen += 1;
        assert!(seen < 12_000, "everything came, and yet the backlog is shorter");
    }
    let last = Draft::default().store(&store).await;
    loop {
        if let Feed::Change(change) = next(&mut feed).await
            && change.key == last.key()
        {
            break;
        }
    }
}
