//! Redis Cluster with three masters: every partition is found, also after it moved or
//! its master died.

use crate::common::{Draft, FAR, LIMIT, Store, close, commit, eventually, token, touch};
use futures::StreamExt;
use futures::stream::BoxStream;
use session_core::{OrgId, Session, SessionKey, Timestamp};
use session_store::Feed;
use session_store::redis::{Options, RedisStore};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use test_support::redis::PrivateCluster;
use tokio::time::timeout;

async fn connect(cluster: &PrivateCluster) -> Store {
    Arc::new(
        RedisStore::connect(&cluster.url(), &Options::default())
            .await
            .unwrap(),
    )
}

/// An organization in each partition.
fn orgs() -> Vec<&'static str> {
    let mut by_partition = BTreeMap::new();
    for n in 0.. {
        let name = format!("org-{n}");
        let org: OrgId = name.parse().unwrap();
        by_partition.entry(org.partition()).or_insert(name);
        if by_partition.len() == usize::from(OrgId::PARTITIONS) {
            break;
        }
    }
    by_partition
        .into_values()
        .map(|name| &*Box::leak(name.into_boxed_str()))
        .collect()
}

async fn slot_of(cluster: &PrivateCluster, org: &OrgId) -> usize {
    let tag = format!("{{p{:02}}}", org.partition());
    cluster.slot_of(&tag).await.unwrap()
}

async fn change_of(feed: &mut BoxStream<'static, Feed>, key: &SessionKey) -> u64 {
    loop {
        let next = timeout(LIMIT, feed.next()).await.expect("the feed is silent");
        if let Some(Feed::Change(change)) = next
            && change.key == *key
        {
            return change.record.version;
        }
    }
}

async fn make_due(store: &Store, session: &Session) {
    store
        .set_due(&session.key(), session.version, Some(Timestamp::from_millis(1)))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_on_three_masters_are_one_store() {
    let cluster = PrivateCluster::start(3, false).await.unwrap();
    let store = connect(&cluster).await;
    let mut feed = store.changes();
    assert!(matches!(
        timeout(LIMIT, feed.next()).await.unwrap(),
        Some(Feed::Reset)
    ));
    let mut sessions = Vec::new();
    let mut masters = BTreeSet::new();
    for org in orgs() {
        let session = Draft::of(org, "sa|bob").store(&store).await;
        masters.insert(cluster.master_of(slot_of(&cluster, &session.org).await));
        let session = commit(&store, touch(&session)).await;
        let token = token(&store, &session, FAR).await;
        store.record_token(&session.key(), token, 5).await.unwrap();
        assert_eq!(store.live_tokens(&session.key()).await.unwrap().len(), 1);
        make_due(&store, &session).await;
        sessions.push(session);
    }
    assert_eq!(masters.len(), 3, "partitions are on every master");
    // One stream after the other: they are read concurrently.
    let mut seen: BTreeMap<SessionKey, Vec<u64>> = BTreeMap::new();
    while seen.values().map(Vec::len).sum::<usize>() < sessions.len() * 2 {
        match timeout(LIMIT, feed.next())
            .await
            .expect("the feed is silent")
            .unwrap()
        {
            Feed::Change(change) => seen.entry(change.key).or_default().push(change.record.version),
            Feed::Reset => panic!("nothing was lost"),
        }
    }
    assert!(seen.values().all(|versions| *versions == [1, 2]), "{seen:?}");

    let all: BTreeSet<_> = sessions.iter().map(Session::key).collect();
    let mut claimed = BTreeSet::new();
    while claimed.len() < all.len() {
        let taken = store.claim_due(5, FAR).await.unwrap();
        assert!(!taken.is_empty(), "{claimed:?}");
        claimed.extend(taken);
    }
    assert_eq!(claimed, all);
    let live = store
        .list_live_on_cluster(&sessions[0].cluster, None, 100)
        .await
        .unwrap();
    assert_eq!(live.into_iter().collect::<BTreeSet<_>>(), all);
    assert_eq!(
        store.epoch().await.unwrap(),
        connect(&cluster).await.epoch().await.unwrap()
    );
    for session in &sessions {
        commit(&store, close(session)).await;
    }
}

/// Moves a slot key by key while it is in use, as an administrator does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_moves_is_followed() {
    let cluster = PrivateCluster::start(3, false).await.unwrap();
    let store = connect(&cluster).await;
    let session = Draft::default().store(&store).await;
    let other = Draft::default().store(&store).await;
    let mut feed = store.changes();
    assert!(matches!(
        timeout(LIMIT, feed.next()).await.unwrap(),
        Some(Feed::Reset)
    ));
    let slot = slot_of(&cluster, &session.org).await;
    let from = cluster.master_of(slot);
    let to = (from + 1) % 3;
    let moving = cluster.begin_move(slot, from, to).await.unwrap();
    while moving.move_keys(100).await.unwrap() > 0 {}
    // All keys have moved, but the slot map of the cluster is not updated yet.
    assert_eq!(store.get(&session.key()).await.unwrap(), Some(session.clone()));
    assert_eq!(store.events(&session.key()).await.unwrap().len(), 1);
    // A write uses keys that do not exist yet, and Redis cannot distinguish them from
    // keys that have not moved yet: the write waits until the slot has moved.
    let end = async { moving.end().await.unwrap() };
    let (session, ()) = tokio::join!(commit(&store, touch(&session)), end);
    let session = commit(&store, touch(&session)).await;
    assert_eq!(store.get(&session.key()).await.unwrap(), Some(session.clone()));
    let changing = async {
        loop {
            let before = store.get(&other.key()).await.unwrap().unwrap();
            commit(&store, touch(&before)).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let key = other.key();
    tokio::select! {
        version = change_of(&mut feed, &key) => assert!(version > 1),
        () = changing => {}
    }
    make_due(&store, &session).await;
    assert_eq!(store.claim_due(1, FAR).await.unwrap(), [session.key()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_master_is_replaced_and_the_others_continue() {
    let mut cluster = PrivateCluster::start(3, true).await.unwrap();
    let store = connect(&cluster).await;
    let epoch = store.epoch().await.unwrap();
    let mut feed = store.changes();
    assert!(matches!(
        timeout(LIMIT, feed.next()).await.unwrap(),
        Some(Feed::Reset)
    ));
    let mut by_master: BTreeMap<usize, Session> = BTreeMap::new();
    for org in orgs() {
        let session = Draft::of(org, "sa|bob").store(&store).await;
        let master = cluster.master_of(slot_of(&cluster, &session.org).await);
        by_master.entry(master).or_insert(session);
    }
    let global = cluster.master_of(cluster.slot_of("{g}").await.unwrap());
    let dies = (0..3).find(|n| *n != global).unwrap();
    let (lost, kept) = (by_master[&dies].clone(), by_master[&global].clone());
    // A replica has the end and all earlier writes.
    let of_lost = orgs().into_iter().find(|org| *org == lost.org.as_str()).unwrap();
    let ended = Draft::of(of_lost, "sa|bob").store(&store).await;
    let ended = commit(&store, close(&ended)).await;
    cluster.servers[dies].kill9().unwrap();
    // Before the cluster rejects all calls because a master is missing.
    let kept = match store.get(&kept.key()).await {
        Ok(found) => found.unwrap(),
        Err(error) => panic!("the others go on: {error}"),
    };
    let found = eventually("a replica takes over", async || store.get(&lost.key()).await).await;
    assert_eq!(found.as_ref(), Some(&lost));
    assert_eq!(store.get(&ended.key()).await.unwrap(), Some(ended));
    eventually("it takes writes", async || {
        match store.commit(touch(&lost)).await {
            Ok(()) | Err(session_store::Error::Conflict) => Ok(()),
            Err(error) => Err(error),
        }
    })
    .await;
    eventually("the epoch rises", async || {
        let now = store.epoch().await;
        if matches!(now, Ok(now) if now > epoch) {
            Ok(())
        } else {
            Err(now)
        }
    })
    .await;
    let mut told = false;
    while !told {
        let next = timeout(LIMIT, feed.next()).await.expect("the feed is silent");
        told = matches!(next, Some(Feed::Reset));
    }
    eventually("the others are written", async || {
        match store.commit(touch(&kept)).await {
            Ok(()) | Err(session_store::Error::Conflict) => Ok(()),
            Err(error) => Err(error),
        }
    })
    .await;
}
