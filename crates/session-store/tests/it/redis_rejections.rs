//! A server that answers and rejects changes: reads continue, changes name the cause, and
//! everything continues once the server accepts changes again.

use crate::common::{Draft, FAR, Store, close, commit, connect, eventually, token, touch};
use session_core::{Session, Timestamp};
use session_store::redis::Options;
use session_store::{AuditSource, Error, ListQuery, OutageCause};
use std::time::Duration;
use test_support::redis::PrivateRedis;

/// Everything that is read of a session and its organization.
async fn reads_continue(store: &Store, session: &Session) {
    let (org, key) = (&session.org, session.key());
    assert_eq!(store.get(&key).await.unwrap().as_ref(), Some(session));
    let listed = store.list(&ListQuery::of_org(org.clone(), 10)).await.unwrap();
    assert_eq!(listed.sessions, std::slice::from_ref(session));
    assert_eq!(store.live_tokens(&key).await.unwrap().len(), 1);
    assert_eq!(store.token_uses(&key).await.unwrap().len(), 0);
    assert!(!store.events(&key).await.unwrap().is_empty());
    assert!(store.get_with_activity(&key).await.unwrap().is_some());
    assert_eq!(store.usage(std::slice::from_ref(session)).await.unwrap().len(), 1);
    assert!(store.operations(&key).await.unwrap().is_empty());
    assert!(!store.count_by_status(org).await.unwrap().is_empty());
    for source in [
        AuditSource::Partition(org.partition()),
        AuditSource::Org(org.clone()),
    ] {
        assert!(
            !store
                .read_audit_before(source, None, 10)
                .await
                .unwrap()
                .is_empty()
        );
    }
    store.epoch().await.unwrap();
    store.now().await.unwrap();
    store.oldest_due().await.unwrap();
}

async fn with_a_token(store: &Store) -> Session {
    let session = Draft::default().store(store).await;
    let session = commit(store, touch(&session)).await;
    let recorded = token(store, &session, FAR).await;
    store.record_token(&session.key(), recorded, 5).await.unwrap();
    session
}

#[tokio::test]
async fn without_replicas_reads_continue_and_changes_name_the_cause() {
    let redis = PrivateRedis::start().await.unwrap();
    let store = connect(&redis, &Options::default()).await;
    let session = with_a_token(&store).await;
    redis.command("CONFIG SET min-replicas-to-write 1").await.unwrap();
    reads_continue(&store, &session).await;
    for refused in [
        store.create(Draft::default().create()).await.map(drop),
        store.commit(close(&session)).await,
        store
            .set_due(&session.key(), session.version, Some(Timestamp::from_millis(1)))
            .await,
    ] {
        assert!(
            matches!(&refused, Err(Error::Unavailable(outage)) if outage.cause == OutageCause::Replicas),
            "{refused:?}"
        );
    }
    // It answers pings, so only a change shows it.
    eventually("the store is not healthy", async || match store.ping().await {
        Err(Error::Unavailable(outage)) if outage.cause == OutageCause::Replicas => Ok(()),
        other => Err(other),
    })
    .await;
    redis.command("CONFIG SET min-replicas-to-write 0").await.unwrap();
    commit(&store, close(&session)).await;
    eventually("the store is healthy", async || store.ping().await).await;
}

#[tokio::test]
async fn without_memory_reads_leases_and_ends_continue() {
    let redis = PrivateRedis::start().await.unwrap();
    let store = connect(&redis, &Options::default()).await;
    let session = with_a_token(&store).await;
    let lease = async || store.acquire_lease("leader", "me", Duration::from_secs(60)).await;
    let fence = lease().await.unwrap();
    let keys = ["key".to_owned()];
    let reported = store.report_signing_keys(&keys, Some("key")).await.unwrap();
    assert!(store.memory().await.unwrap().is_none(), "no limit");
    redis.command("CONFIG SET maxmemory 1").await.unwrap();
    eventually("the limit is read", async || match store.memory().await {
        Ok(Some(memory)) if memory.limit == 1 && memory.used > 1 => Ok(()),
        other => Err(other),
    })
    .await;
    reads_continue(&store, &session).await;
    assert_eq!(lease().await.unwrap(), fence, "renewed");
    let again = store.report_signing_keys(&keys, Some("key")).await.unwrap();
    assert_eq!(again.keys.len(), reported.keys.len());
    store.ping().await.unwrap();
    commit(&store, close(&session)).await;
}

/// The text of Redis 7.0 for a script is that of a failed script.
#[tokio::test]
async fn a_missing_right_of_a_script_is_no_corrupt_record() {
    let redis = PrivateRedis::start().await.unwrap();
    let store = connect(&redis, &Options::default()).await;
    let session = with_a_token(&store).await;
    for (without, with) in [
        ("-zadd", "+zadd"),
        ("-evalsha -eval", "+@all"),
        ("resetkeys", "~*"),
    ] {
        redis
            .command(&format!("ACL SETUSER default {without}"))
            .await
            .unwrap();
        let refused = store.create(Draft::default().create()).await;
        assert!(
            matches!(&refused, Err(Error::Unavailable(outage)) if outage.cause == OutageCause::Access),
            "{without}: {refused:?}"
        );
        redis
            .command(&format!("ACL SETUSER default {with}"))
            .await
            .unwrap();
        store.create(Draft::default().create()).await.unwrap();
    }
    commit(&store, close(&session)).await;
}
