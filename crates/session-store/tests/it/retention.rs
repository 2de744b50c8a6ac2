//! Data that Redis must not keep: expiring keys, leases, revoked tokens, dangling
//! entries, deleted sessions.

use crate::common;
use crate::common::{
    Draft, FAR, LIMIT, activate, close, commit, connect, request, revoke, revoke_one, tag, token, touch,
    unprefixed,
};
use session_core::{Activity, Session, Timestamp};
use session_store::redis::Options;
use session_store::spark_bindings::{Bind, Bound, SparkSession};
use session_store::{Create, Tombstones};
use std::collections::BTreeSet;
use std::time::Duration;
use test_support::redis::PrivateRedis;

#[tokio::test]
async fn what_is_only_needed_for_a_while_expires_by_itself() {
    let redis = PrivateRedis::start().await.unwrap();
    let store = connect(&redis, &unprefixed()).await;
    let create = Create {
        request: request("r", "f"),
        ..Draft::default().create()
    };
    let session = store.create(create).await.unwrap().session;
    let hour = Duration::from_secs(3600);
    for lifetime in [hour, hour * 2, hour] {
        let token = token(&store, &session, lifetime).await;
        store.record_token(&session.key(), token, 5).await.unwrap();
    }
    let ttl = async |key: String| {
        let answer = redis.command(&format!("PTTL {}:{key}", tag())).await.unwrap();
        Duration::from_millis(answer.trim().trim_start_matches(':').parse().unwrap())
    };
    let near = |ttl: Duration, expected: Duration| ttl <= expected && ttl + LIMIT > expected;
    assert!(near(
        ttl("org:acme:request:6:sa|bob:r".to_owned()).await,
        hour * 24
    ));
    assert!(ttl("org:acme:creates:sa|bob".to_owned()).await <= Duration::from_secs(60));
    let tokens = store.live_tokens(&session.key()).await.unwrap();
    let closed = commit(&store, close(&session)).await;
    assert!(near(ttl(format!("tokens:acme:{}", session.id)).await, hour * 2));
    assert_eq!(store.live_tokens(&session.key()).await.unwrap(), tokens);
    assert_eq!(
        store.get(&closed.key()).await.unwrap(),
        Some(closed),
        "tombstones stay"
    );
}

#[tokio::test]
async fn leases_run_out_and_leave_nothing() {
    let redis = PrivateRedis::start().await.unwrap();
    let store = connect(&redis, &unprefixed()).await;
    let session: Session = Draft::default().store(&store).await;
    let (key, leases) = (session.key(), format!("{}:leases:acme:{}", tag(), session.id));
    store.apply_report(&key, &common::report("p", 1)).await.unwrap();
    let ttl = redis.command(&format!("PTTL {leases}")).await.unwrap();
    let ttl: u64 = ttl.trim().trim_start_matches(':').parse().unwrap();
    assert!((20_000..=30_000).contains(&ttl), "{ttl}");
    // As after 30 s without a report.
    let raw = format!("HSET {leases} p \"1000 1 1 []\"\r\n");
    redis.command(raw.trim()).await.unwrap();
    let loaded = store.get_with_activity(&key).await.unwrap().unwrap();
    assert_ne!(loaded.activity, Activity::Busy);
    assert!(store.operations(&key).await.unwrap().is_empty());
    let last = store.usage(std::slice::from_ref(&session)).await.unwrap()[0].last_activity_at;
    store
        .commit_if_idle(touch(&session), last.unwrap())
        .await
        .unwrap();
    // The next report of another proxy deletes it.
    store.apply_report(&key, &common::report("q", 1)).await.unwrap();
    let left = redis.command(&format!("HLEN {leases}")).await.unwrap();
    assert_eq!(left.trim(), ":1");
    store.apply_report(&key, &common::report("q", 0)).await.unwrap();
    let left = redis.command(&format!("EXISTS {leases}")).await.unwrap();
    assert_eq!(left.trim(), ":0");
}

#[tokio::test]
async fn revoked_tokens_do_not_pile_up() {
    const LIMIT: u32 = 3;
    let redis = PrivateRedis::start().await.unwrap();
    let store = connect(&redis, &unprefixed()).await;
    let mut session = Draft::default().store(&store).await;
    let key = session.key();
    for round in 0..50 {
        for n in 0..=LIMIT {
            let token = token(&store, &session, FAR).await;
            store.record_token(&key, token.clone(), LIMIT).await.unwrap();
            if n == 0 {
                session = commit(&store, revoke_one(&session, &token.id)).await;
            }
        }
        let text = redis
            .command(&format!("GET {}:session:acme:{}", tag(), session.id))
            .await
            .unwrap();
        let kept = text.matches("\nsa|bob").count();
        assert_eq!(kept, LIMIT as usize, "round {round}: {text:?}");
        session = commit(&store, revoke(&session)).await;
    }
}

#[tokio::test]
async fn dangling_entries_do_not_block_others() {
    let redis = PrivateRedis::start().await.unwrap();
    let store = connect(&redis, &unprefixed()).await;
    let session = Draft::default().store(&store).await;
    let key = session.key();
    store
        .set_due(&key, session.version, Some(Timestamp::from_millis(1)))
        .await
        .unwrap();
    let (due, live) = (
        format!("{}:due", tag()),
        format!("{}:org:acme:cluster:{}", tag(), session.cluster),
    );
    let orgs = format!("{}:cluster:{}", tag(), session.cluster);
    for stray in ["!", "0,nonsense", "acme!"] {
        for index in [&due, &orgs, &live] {
            redis.command(&format!("ZADD {index} 0 {stray}")).await.unwrap();
        }
    }
    // The dangling entries are due longest and fill a whole page.
    assert!(store.claim_due(3, FAR).await.unwrap().is_empty());
    assert_eq!(store.claim_due(3, FAR).await.unwrap(), std::slice::from_ref(&key));
    let found = store
        .list_live_on_cluster(&session.cluster, None, 2)
        .await
        .unwrap();
    assert_eq!(found, [key]);
    redis.command(&format!("ZADD {orgs} 0 !")).await.unwrap();
    let named = store.list_orgs_on_cluster(&session.cluster).await.unwrap();
    assert_eq!(named, BTreeSet::from([session.org]));
    for index in [due, orgs, live] {
        assert_eq!(redis.command(&format!("ZCARD {index}")).await.unwrap(), ":1\r\n");
    }
}

#[tokio::test]
async fn nothing_is_left_of_a_forgotten_session() {
    let redis = PrivateRedis::start().await.unwrap();
    let store = connect(&redis, &Options::default()).await;
    let keys = async || {
        let answer = redis.command("KEYS *").await.unwrap();
        let keys = answer.lines().filter(|line| line.starts_with("berth:"));
        let keys = keys.filter(|key| !key.ends_with(":pulse") && !key.ends_with(":creates:sa|bob"));
        keys.map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let before = keys().await;
    let session = Draft {
        team: Some("data"),
        ..Draft::default()
    }
    .store(&store)
    .await;
    store
        .record_token(&session.key(), token(&store, &session, FAR).await, 5)
        .await
        .unwrap();
    store
        .apply_report(&session.key(), &common::report("p", 1))
        .await
        .unwrap();
    let session = commit(&store, activate(&session)).await;
    let spark = |server: &str| Bind {
        spark: SparkSession {
            server: server.to_owned(),
            id: "0b5c2e9e-1f3a-4c6d-8e7f-0123456789ab".parse().unwrap(),
        },
        holder: session.key(),
        generation: 1,
        ticket: "t".to_owned(),
        prepare: None,
        limit: 2,
    };
    for server in ["a:1", "b:1"] {
        assert_eq!(store.bind(&spark(server)).await.unwrap(), Bound::Ready);
    }
    for binding in store.list_bindings(&session.key()).await.unwrap() {
        store
            .unbind(&session.key(), &binding, Duration::ZERO)
            .await
            .unwrap();
    }
    commit(&store, close(&session)).await;
    assert!(keys().await.len() > before.len() + 10);
    let nothing = Tombstones {
        age: Duration::ZERO,
        per_owner: 0,
        per_org: 0,
    };
    assert_eq!(store.trim_ended(&nothing, 10).await.unwrap(), 1);
    let left: BTreeSet<_> = keys().await.difference(&before).cloned().collect();
    let streams = ["audit", "audit:acme", "changes"].map(|stream| format!("berth:{}:{stream}", tag()));
    assert_eq!(left, BTreeSet::from(streams));
}
