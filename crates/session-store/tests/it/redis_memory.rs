//! Memory of a session in a Redis with default configuration. A million sessions must
//! fit into 1.5 GiB in all: 1610 bytes each, of which 60 are for the change feed and
//! the audit trail.

use crate::common::{Draft, FAR, Store, activate, commit, options, report, touch};
use futures::StreamExt as _;
use session_core::{Session, TokenId, TokenUse, Totals};
use session_store::redis::RedisStore;
use session_store::spark_bindings::{Bind, Bound, SparkSession};
use session_store::{Report, TokenRecord, UsageDelta};
use std::collections::BTreeMap;
use std::sync::Arc;
use test_support::redis::PrivateRedis;

const SESSIONS: usize = 2000;
const AT_ONCE: usize = 32;
/// Limit per session. With few sessions each needs a hash for the holders of Spark
/// sessions alone, which 60 share with a million: about 100 bytes.
const MOST: usize = 1700;
/// Limit for the usage of one: totals, and first and last use of its token.
const MOST_USED: usize = 200;
/// Enough for indexes beyond the compact encoding of Redis.
const ORGS: [&str; 4] = ["acme-finance", "acme-science", "acme-europe", "acme-asia"];

/// A typical session: five changes, a token and a Spark session.
async fn make(store: &Store, n: usize) -> Session {
    let draft = Draft {
        team: n.is_multiple_of(4).then_some("data"),
        labels: BTreeMap::from([("purpose".to_owned(), format!("report-{}", n % 50))]),
        ..Draft::of(ORGS[n % ORGS.len()], "corp|jane.doe@example.com")
    };
    let mut session = draft.store(store).await;
    session = commit(store, activate(&session)).await;
    for _ in 0..3 {
        session = commit(store, touch(&session)).await;
    }
    let random = || format!("{:032x}", rand::random::<u128>());
    let now = store.now().await.unwrap();
    let token = TokenRecord {
        id: TokenId::generate(now, rand::random()),
        key_id: random()[..].repeat(2)[..43].to_owned(),
        subject: session.owner.clone(),
        epoch: 1,
        issued_at: now,
        expires_at: now.after(FAR),
        address: String::new(),
    };
    store.record_token(&session.key(), token, 100).await.unwrap();
    let id = random();
    let id = format!(
        "{}-{}-{}-{}-{}",
        &id[..8],
        &id[8..12],
        &id[12..16],
        &id[16..20],
        &id[20..]
    );
    let bind = Bind {
        spark: SparkSession {
            server: "10.20.30.40:15002".to_owned(),
            id: id.parse().unwrap(),
        },
        holder: session.key(),
        generation: 1,
        ticket: random()[..16].to_owned(),
        prepare: None,
        limit: 256,
    };
    assert_eq!(store.bind(&bind).await.unwrap(), Bound::Ready);
    session
}

/// Memory of all keys except streams and their lists, whose length is independent of
/// the number of sessions.
async fn used(redis: &PrivateRedis) -> usize {
    for partition in 0..16 {
        let lists = ORGS.map(|org| format!("audit:{org}"));
        for key in ["changes", "audit"]
            .into_iter()
            .chain(lists.iter().map(String::as_str))
        {
            redis
                .command(&format!("DEL weight:{{p{partition:02}}}:{key}"))
                .await
                .unwrap();
        }
    }
    let info = redis.command("INFO memory").await.unwrap();
    let line = info.lines().find_map(|line| line.strip_prefix("used_memory:"));
    line.unwrap().trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_million_sessions_fit_into_their_memory() {
    let redis = PrivateRedis::start().await.unwrap();
    let options = session_store::redis::Options {
        prefix: "weight:".to_owned(),
        ..options()
    };
    let store: Store = Arc::new(RedisStore::connect(&redis.url(), &options).await.unwrap());
    // Fixed memory, independent of the number of sessions: scripts, connections.
    let first = make(&store, 0).await;
    store.apply_report(&first.key(), &report("p", 0)).await.unwrap();
    let before = used(&redis).await;
    let number = std::env::var("BERTH_WEIGHED").map_or(SESSIONS, |number| number.parse().unwrap());
    let sessions: Vec<Session> = futures::stream::iter(0..number)
        .map(|n| make(&store, n))
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let made = used(&redis).await;
    let each = (made - before) / number;

    let mut tokens = Vec::new();
    for session in &sessions {
        tokens.push(store.live_tokens(&session.key()).await.unwrap().remove(0));
    }
    let now = store.now().await.unwrap();
    for (name, (session, token)) in (1..).zip(sessions.iter().zip(&tokens)) {
        let report = Report {
            last_activity_at: Some(now),
            usage_delta: Some(UsageDelta {
                name,
                totals: Totals {
                    rpcs: 120,
                    bytes_in: 34_567,
                    bytes_out: 2_345_678,
                    open_stream_millis: 456_789,
                },
            }),
            token_uses: vec![TokenUse {
                id: token.id.clone(),
                first: now,
                last: now,
            }],
            ..report("p", 0)
        };
        store.apply_report(&session.key(), &report).await.unwrap();
    }
    let use_of_each = (used(&redis).await - made) / number;
    println!("{each} bytes each, {use_of_each} more when used");
    assert!(each <= MOST, "a session takes {each} bytes");
    assert!(
        use_of_each <= MOST_USED,
        "the use of a session takes {use_of_each} bytes"
    );
}
