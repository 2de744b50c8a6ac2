//! Tests of Redis only: restarts, outages, lost scripts, expiring keys, and rejected
//! servers.

use crate::common;
use crate::common::{
    Draft, FAR, LIMIT, close, commit, connect, eventually, options, request, tag, token, touch, unprefixed,
};
use futures::StreamExt;
use session_core::{Quota, Session, SessionKey, Status, Timestamp};
use session_store::redis::{ConnectError, Options, RedisStore};
use session_store::spark_bindings::{Bind, Bound, SparkSession};
use session_store::spark_sessions::SettingsChange;
use session_store::{Create, DefinitionQuota, Error, Feed, Kind, ListQuery, Scope};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use test_support::redis::{PrivateRedis, RedisOptions};
use tokio::time::{Instant, timeout};

async fn next(feed: &mut futures::stream::BoxStream<'static, Feed>) -> Feed {
    timeout(LIMIT, feed.next())
        .await
        .expect("the feed is silent")
        .expect("the feed ended")
}

#[tokio::test]
async fn state_survives_a_crash_and_the_feed_resets() {
    let mut redis = PrivateRedis::start_with(RedisOptions {
        appendonly: true,
        ..RedisOptions::default()
    })
    .await
    .unwrap();
    let store = connect(&redis, &Options::default()).await;
    let mut feed = store.changes();
    assert!(matches!(next(&mut feed).await, Feed::Reset));
    let create = Create {
        request: request("r", "f"),
        ..Draft::default().create()
    };
    let session = store.create(create.clone()).await.unwrap().session;
    let session = commit(&store, touch(&session)).await;
    let live = token(&store, &session, FAR).await;
    store.record_token(&session.key(), live.clone(), 5).await.unwrap();
    store
        .set_due(&session.key(), 2, Some(Timestamp::from_millis(1)))
        .await
        .unwrap();
    for version in [1, 2] {
        assert!(matches!(next(&mut feed).await, Feed::Change(change) if change.record.version == version));
    }

    redis.kill9().unwrap();
    let asked = Instant::now();
    let absent = store.get(&session.key()).await;
    assert!(matches!(absent, Err(Error::Unavailable(_))), "{absent:?}");
    assert!(matches!(
        store.commit(touch(&session)).await,
        Err(Error::Unavailable(_))
    ));
    assert!(matches!(store.ping().await, Err(Error::Unavailable(_))));
    assert!(
        asked.elapsed() < Duration::from_secs(3),
        "refused connections are known at once"
    );

    redis.restart().await.unwrap();
    eventually("the store recovers", async || store.ping().await).await;
    assert_eq!(store.get(&session.key()).await.unwrap(), Some(session.clone()));
    assert_eq!(store.events(&session.key()).await.unwrap().len(), 2);
    assert_eq!(store.live_tokens(&session.key()).await.unwrap(), [live]);
    assert_eq!(store.claim_due(5, FAR).await.unwrap(), [session.key()]);
    assert!(!store.create(create).await.unwrap().new);

    assert!(
        matches!(next(&mut feed).await, Feed::Reset),
        "what came last may have been lost"
    );
    let third = commit(&store, touch(&session)).await;
    assert!(matches!(next(&mut feed).await, Feed::Change(change) if change.record.version == third.version));
}

#[tokio::test]
async fn a_redis_that_forgot_everything_resets_the_feed() {
    let mut redis = PrivateRedis::start().await.unwrap();
    let store = connect(&redis, &Options::default()).await;
    let mut feed = store.changes();
    assert!(matches!(next(&mut feed).await, Feed::Reset));
    let session = Draft::default().store(&store).await;
    assert!(matches!(next(&mut feed).await, Feed::Change(_)));
    redis.restart().await.unwrap();
    assert!(matches!(next(&mut feed).await, Feed::Reset));
    eventually("the store recovers", async || store.ping().await).await;
    assert!(store.get(&session.key()).await.unwrap().is_none());
    let fresh = Draft::default().store(&store).await;
    assert!(matches!(next(&mut feed).await, Feed::Change(change) if change.key == fresh.key()));
    // The same without a restart, on the same connection.
    assert_eq!(redis.command("FLUSHALL").await.unwrap(), "+OK\r\n");
    assert!(matches!(next(&mut feed).await, Feed::Reset));
}

#[tokio::test]
async fn a_lost_connection_alone_misses_and_repeats_nothing() {
    let redis = PrivateRedis::start().await.unwrap();
    let store = connect(&redis, &Options::default()).await;
    let mut feed = store.changes();
    assert!(matches!(next(&mut feed).await, Feed::Reset));
    let mut session = Draft::default().store(&store).await;
    assert!(matches!(next(&mut feed).await, Feed::Change(_)));
    for _ in 0..10 {
        redis.command("CLIENT KILL TYPE normal SKIPME yes").await.unwrap();
        eventually("the store recovers", async || store.ping().await).await;
        session = commit(&store, touch(&session)).await;
        match next(&mut feed).await {
            Feed::Change(change) => assert_eq!(change.record.version, session.version),
            Feed::Reset => panic!("nothing was lost"),
        }
    }
}

#[tokio::test]
async fn a_redis_that_hangs_is_unavailable_in_time() {
    // A listener that accepts and never answers.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}/", silent.local_addr().unwrap());
    let begun = Instant::now();
    let refused = RedisStore::connect(&url, &Options::default()).await.unwrap_err();
    assert!(
        matches!(refused, ConnectError::Unavailable(Error::Unavailable(_))),
        "{refused:?}"
    );
    assert!(begun.elapsed() < Duration::from_secs(3));

    let redis = PrivateRedis::start().await.unwrap();
    let store = connect(&redis, &Options::default()).await;
    let session = Draft::default().store(&store).await;
    redis.command("CLIENT PAUSE 60000 ALL").await.unwrap();
    let key = session.key();
    let begun = Instant::now();
    let (read, written, claimed) = tokio::join!(
        store.get(&key),
        store.commit(touch(&session)),
        store.claim_due(1, FAR)
    );
    assert!(matches!(read, Err(Error::Unavailable(_))), "{read:?}");
    assert!(matches!(written, Err(Error::Unavailable(_))), "{written:?}");
    assert!(matches!(claimed, Err(Error::Unavailable(_))), "{claimed:?}");
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn scripts_that_redis_forgot_are_loaded_again() {
    let redis = PrivateRedis::start().await.unwrap();
    let store = connect(&redis, &Options::default()).await;
    let mut session = Draft::default().store(&store).await;
    for _ in 0..3 {
        assert_eq!(redis.command("SCRIPT FLUSH").await.unwrap(), "+OK\r\n");
        session = commit(&store, touch(&session)).await;
        assert!(store.claim_due(1, FAR).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_redis_that_evicts_is_refused_unless_allowed() {
    let redis = PrivateRedis::start().await.unwrap();
    redis
        .command("CONFIG SET maxmemory-policy allkeys-lru")
        .await
        .unwrap();
    let refused = RedisStore::connect(&redis.url(), &Options::default())
        .await
        .unwrap_err();
    assert!(
        matches!(&refused, ConnectError::Evicts { policy } if policy == "allkeys-lru"),
        "{refused:?}"
    );
    assert!(refused.to_string().contains("noeviction"), "{refused}");
    let allowed = Options {
        allow_eviction: true,
        ..Options::default()
    };
    RedisStore::connect(&redis.url(), &allowed).await.unwrap();
}

#[tokio::test]
async fn urls_and_prefixes_are_checked() {
    for url in ["", "nonsense", "http://localhost", "redis://a,b", "unix:///tmp/x"] {
        let refused = RedisStore::connect(url, &Options::default()).await;
        assert!(matches!(refused, Err(ConnectError::Url(_))), "{url}: {refused:?}");
        let refused = session_store::redis::check(url, &Options::default());
        assert!(matches!(refused, Err(ConnectError::Url(_))), "{url}: {refused:?}");
    }
    let options = Options {
        prefix: "{x}".to_owned(),
        ..Options::default()
    };
    let refused = RedisStore::connect("redis://127.0.0.1:1/", &options).await;
    assert!(matches!(refused, Err(ConnectError::Prefix)), "{refused:?}");
    let refused = session_store::redis::check("redis://127.0.0.1:1/", &options);
    assert!(matches!(refused, Err(ConnectError::Prefix)), "{refused:?}");
    for url in ["memory://", "redis://127.0.0.1:1/"] {
        session_store::redis::check(url, &Options::default()).unwrap();
    }
    let refused = session_store::open("redis://:hunter2@127.0.0.1:1/", &Options::default())
        .await
        .unwrap_err();
    assert!(matches!(refused, ConnectError::Unavailable(_)));
    assert!(!format!("{refused} {refused:?}").contains("hunter2"));
    session_store::open("memory://", &Options::default())
        .await
        .unwrap()
        .ping()
        .await
        .unwrap();
}

#[tokio::test]
async fn prefixes_keep_installs_apart() {
    let redis = PrivateRedis::start().await.unwrap();
    let (a, b) = (
        connect(&redis, &options()).await,
        connect(&redis, &options()).await,
    );
    let session = Draft::default().store(&a).await;
    assert!(b.get(&session.key()).await.unwrap().is_none());
    let keys = redis.command("KEYS *").await.unwrap();
    let foreign: Vec<_> = keys
        .lines()
        .filter(|l| l.contains(':') && !l.starts_with("test"))
        .collect();
    assert!(foreign.is_empty(), "{foreign:?}");
    assert!(keys.contains(&format!(":{}:session:acme:s-", tag())), "{keys}");
}

#[tokio::test]
async fn corrupt_records_and_an_unavailable_redis_are_different_errors() {
    let redis = PrivateRedis::start().await.unwrap();
    let store = connect(&redis, &unprefixed()).await;
    let session: Session = Draft::default().store(&store).await;
    let record = format!("{}:session:acme:{}", tag(), session.id);
    let set = async |text: String| {
        let answer = redis.command(&format!("SET {record} \"{text}\"")).await;
        assert_eq!(answer.unwrap(), "+OK\r\n", "{text}");
    };
    set("1 1 1 pending 1 1 0 8 0 0\\nnonsense".to_owned()).await;
    let broken = store.get(&session.key()).await;
    assert!(matches!(broken, Err(Error::Corrupt(_))), "{broken:?}");
    let json = serde_json::to_string(&session).unwrap();
    let (length, json) = (json.len(), json.replace('"', "\\\""));
    set(format!("1 1 1 pending 1 1 0 {length} 0 0\\n{json}")).await;
    let by_hand = store.get(&session.key()).await.unwrap();
    assert_eq!(by_hand.as_ref(), Some(&session), "a person may write it as JSON");
    set("2 1 1 pending 1 1 0 0 0 0\\n".to_owned()).await;
    let later = store.commit(touch(&session)).await;
    assert!(matches!(later, Err(Error::Corrupt(_))), "{later:?}");
    redis.command(&format!("DEL {record}")).await.unwrap();
    redis.command(&format!("RPUSH {record} text")).await.unwrap();
    let broken = store.commit(touch(&session)).await;
    assert!(matches!(broken, Err(Error::Corrupt(_))), "{broken:?}");

    // A due entry without a record is deleted by the next caller that sets it.
    redis.command(&format!("DEL {record}")).await.unwrap();
    let key: SessionKey = session.key();
    assert!(matches!(store.set_due(&key, 1, None).await, Err(Error::NotFound)));
    assert_eq!(
        redis.command(&format!("ZCARD {}:due", tag())).await.unwrap(),
        ":0\r\n"
    );
}

#[tokio::test]
async fn the_epoch_can_be_read_from_a_full_redis() {
    let redis = PrivateRedis::start().await.unwrap();
    let store = connect(&redis, &Options::default()).await;
    let epoch = store.epoch().await.unwrap();
    redis.command("CONFIG SET maxmemory 1").await.unwrap();
    let refused = store.create(Draft::default().create()).await;
    assert!(matches!(refused, Err(Error::Full)), "{refused:?}");
    assert_eq!(store.epoch().await.unwrap(), epoch);
    let other = connect(&redis, &Options::default()).await;
    assert_eq!(other.epoch().await.unwrap(), epoch);
}

/// Writes that end something succeed until Redis itself is out of memory.
#[tokio::test]
async fn short_of_memory_creates_are_refused_and_ends_are_not() {
    let redis = PrivateRedis::start().await.unwrap();
    let store = connect(&redis, &Options::default()).await;
    let create = Create {
        request: request("r", "f"),
        ..Draft::default().create()
    };
    let session = store.create(create.clone()).await.unwrap().session;
    let declared = store.put_definition(Kind::Catalog, "acme/c", 0, "{1234}").await;
    assert_eq!(declared.unwrap(), 1);
    // Large compared to connection buffers.
    redis.command("SETRANGE filler 30000000 x").await.unwrap();
    let used = redis.command("INFO memory").await.unwrap();
    let used = used.lines().find_map(|line| line.strip_prefix("used_memory:"));
    let used: u64 = used.unwrap().trim().parse().unwrap();
    redis
        .command(&format!("CONFIG SET maxmemory {}", used * 10 / 9))
        .await
        .unwrap();
    eventually("the guard closes", async || {
        match store.create(Draft::default().create()).await {
            Err(Error::Full) => Ok(()),
            other => Err(other.map(|created| created.session.id)),
        }
    })
    .await;
    let repeated = store.create(create).await.unwrap();
    assert!(!repeated.new, "what was made before is still told");
    // The same for all writes that add data, but not for those that free memory.
    let quota = DefinitionQuota {
        entries: (Quota::Catalogs, 10),
        bytes: (Quota::CatalogBytes, 10_000),
    };
    let define = async |expected, json| {
        let put = store.put_definition_within_quota(Kind::Catalog, "acme/c", expected, json, &quota);
        put.await
    };
    assert!(matches!(define(1, "{12345}").await, Err(Error::Full)));
    assert_eq!(define(1, "{123}").await.unwrap(), 2);
    let token = token(&store, &session, FAR).await;
    let recorded = store.record_token(&session.key(), token, 10).await;
    assert!(matches!(recorded, Err(Error::Full)), "{recorded:?}");
    let change = SettingsChange {
        spark_session: "00000000-0000-0000-0000-000000000001".parse().unwrap(),
        generation: 1,
        set: [("a".to_owned(), "b".to_owned())].into(),
        unset: Vec::new(),
    };
    assert!(!store.store_settings(&session.key(), &change).await.unwrap());
    let session = commit(&store, touch(&session)).await;
    redis.command("CONFIG SET maxmemory 1").await.unwrap();
    let session = commit(&store, touch(&session)).await;
    store
        .set_due(&session.key(), session.version, Some(Timestamp::from_millis(1)))
        .await
        .unwrap();
    assert_eq!(store.claim_due(1, FAR).await.unwrap(), [session.key()]);
    let closed = commit(&store, close(&session)).await;
    assert_eq!(store.get(&closed.key()).await.unwrap(), Some(closed));
    redis.command("CONFIG SET maxmemory 0").await.unwrap();
    eventually("the guard opens", async || {
        store.create(Draft::default().create()).await.map(drop)
    })
    .await;
}

#[tokio::test]
async fn the_epoch_rises_when_redis_was_started_again_or_went_back() {
    let mut redis = PrivateRedis::start_with(RedisOptions {
        appendonly: true,
        ..RedisOptions::default()
    })
    .await
    .unwrap();
    let (one, two) = (
        connect(&redis, &Options::default()).await,
        connect(&redis, &Options::default()).await,
    );
    let first = one.epoch().await.unwrap();
    assert_eq!(two.epoch().await.unwrap(), first, "managers agree");
    redis.command("CLIENT KILL TYPE normal SKIPME yes").await.unwrap();
    eventually("the store recovers", async || one.ping().await).await;
    assert_eq!(one.epoch().await.unwrap(), first, "a lost connection is no loss");

    redis.restart().await.unwrap();
    eventually("the store recovers", async || one.ping().await).await;
    let second = one.epoch().await.unwrap();
    assert!(second > first, "its last moment may be lost");
    eventually("the other one hears of it", async || {
        let epoch = two.epoch().await;
        if matches!(epoch, Ok(epoch) if epoch == second) {
            Ok(())
        } else {
            Err(epoch)
        }
    })
    .await;

    // Simulates a restore of an empty database on a running server.
    let mut feed = two.changes();
    assert!(matches!(next(&mut feed).await, Feed::Reset));
    redis.command("FLUSHALL").await.unwrap();
    let third = eventually("the loss is noticed", async || {
        let epoch = one.epoch().await.unwrap();
        if epoch > second { Ok(epoch) } else { Err(epoch) }
    })
    .await;
    eventually("the other one hears of it", async || {
        let epoch = two.epoch().await.unwrap();
        if epoch >= third { Ok(()) } else { Err(epoch) }
    })
    .await;
    assert!(matches!(next(&mut feed).await, Feed::Reset));
    let late = connect(&redis, &Options::default()).await;
    assert!(late.epoch().await.unwrap() >= third);
}

#[tokio::test]
async fn quotas_are_exact_over_two_managers() {
    const LIMIT: u32 = 37;
    let redis = PrivateRedis::start().await.unwrap();
    let managers = [
        connect(&redis, &Options::default()).await,
        connect(&redis, &Options::default()).await,
    ];
    for (of_owner, of_org) in [(LIMIT, 10_000), (10_000, LIMIT * 2)] {
        let limits = session_core::Limits {
            live_sessions_per_owner: of_owner,
            live_sessions: of_org,
            ..common::plenty()
        };
        let racing = (0..1000).map(|n| {
            let store = Arc::clone(&managers[n % 2]);
            let create = Create {
                limits: limits.clone(),
                ..Draft::default().create()
            };
            tokio::spawn(async move { store.create(create).await })
        });
        let mut made = 0;
        for result in futures::future::join_all(racing).await {
            match result.unwrap() {
                Ok(_) => made += 1,
                Err(Error::Quota { .. }) => {}
                Err(other) => panic!("{other:?}"),
            }
        }
        // The sessions of the first round count in the second one.
        assert_eq!(made, LIMIT);
    }
}

/// Redis Cluster rejects scripts with keys of two slots. The feed, which reads all
/// partitions at once, is left out.
#[tokio::test]
async fn every_step_stays_within_one_hash_slot() {
    let options = RedisOptions {
        cluster: true,
        ..RedisOptions::default()
    };
    let redis = PrivateRedis::start_with(options).await.unwrap();
    let store = connect(&redis, &Options::default()).await;
    for org in ["acme", "local", "a", "b"] {
        let draft = Draft {
            team: Some("data"),
            ..Draft::of(org, "sa|bob")
        };
        let create = Create {
            request: request("r", "f"),
            ..draft.create()
        };
        let session = store.create(create.clone()).await.unwrap().session;
        assert!(!store.create(create).await.unwrap().new);
        let key = session.key();
        let session = commit(&store, touch(&session)).await;
        store
            .record_token(&key, token(&store, &session, FAR).await, 5)
            .await
            .unwrap();
        assert_eq!(store.live_tokens(&key).await.unwrap().len(), 1);
        store.apply_report(&key, &common::report("p", 1)).await.unwrap();
        store.apply_report(&key, &common::report("p", 0)).await.unwrap();
        let last = store.usage(std::slice::from_ref(&session)).await.unwrap()[0].last_activity_at;
        assert!(store.operations(&key).await.unwrap().is_empty());
        assert!(store.token_uses(&key).await.unwrap().is_empty());
        let proxy = "p".parse().unwrap();
        assert!(store.begin_proxy_report(&proxy, 0).await.unwrap().fresh);
        assert_eq!(store.count_proxies(FAR, Some(FAR)).await.unwrap().known, 1);
        let session = {
            let change = touch(&session);
            let next = change.session.clone();
            store.commit_if_idle(change, last.unwrap()).await.unwrap();
            next
        };
        store
            .set_due(&key, 3, Some(Timestamp::from_millis(1)))
            .await
            .unwrap();
        assert_eq!(store.claim_due(5, FAR).await.unwrap(), std::slice::from_ref(&key));
        for scope in [
            Scope::Org,
            Scope::OwnAndTeams {
                owner: session.owner.clone(),
                teams: BTreeSet::from(["data".to_owned()]),
            },
        ] {
            let query = ListQuery {
                scope,
                statuses: BTreeSet::from([Status::Pending, Status::Closed]),
                team: Some("data".to_owned()),
                ..ListQuery::of_org(session.org.clone(), 10)
            };
            assert_eq!(
                store.list(&query).await.unwrap().sessions,
                std::slice::from_ref(&session)
            );
        }
        let servers = [format!("{org}:1"), format!("{org}:2")];
        assert!(store.place_session(&servers, &key, true).await.unwrap().is_some());
        for server in store.list_placements(&key).await.unwrap() {
            store.remove_placement(&server, &key).await.unwrap();
        }
        let bind = Bind {
            spark: SparkSession {
                server: servers[0].clone(),
                id: "0b5c2e9e-1f3a-4c6d-8e7f-0123456789ab".parse().unwrap(),
            },
            holder: key.clone(),
            generation: 1,
            ticket: "t".to_owned(),
            prepare: Some(FAR),
            limit: 1,
        };
        assert_eq!(store.bind(&bind).await.unwrap(), Bound::Prepare);
        assert!(
            store
                .finish_preparation(&key, &bind.spark, "t", true)
                .await
                .unwrap()
        );
        for binding in store.list_bindings(&key).await.unwrap() {
            store.unbind(&key, &binding, Duration::ZERO).await.unwrap();
        }
        store.seal_bindings(&key, 1).await.unwrap();
        assert_eq!(store.put_definition(Kind::Org, org, 0, "{}").await.unwrap(), 1);
        let live = store
            .list_live_on_cluster(&session.cluster, None, 10)
            .await
            .unwrap();
        assert!(live.contains(&key));
        let orgs = store.list_orgs_on_cluster(&session.cluster).await.unwrap();
        assert!(orgs.contains(&session.org));
        commit(&store, close(&session)).await;
    }
    assert_eq!(store.list_all_definitions(Kind::Org).await.unwrap().len(), 4);
    assert!(store.epoch().await.unwrap() > 0);
}
