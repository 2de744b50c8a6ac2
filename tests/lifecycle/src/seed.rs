//! Fills the store with sessions, by the status machine and the store's own
//! writes, as a manager would.

use crate::instant::route;
use crate::stage::{CLUSTER, Stage, org};
use anyhow::{Context as _, Result};
use futures::{StreamExt as _, TryStreamExt as _};
use session_core::machine::{self, Event, NewSession, Observation};
use session_core::{
    Activity, Actor, IdlePolicy, Limits, Session, SessionId, SessionPolicy, Timestamp, TokenId,
};
use session_store::spark_bindings::{Bind, SparkSession};
use session_store::{Commit, Create, SessionStore, TokenRecord};
use std::collections::BTreeMap;
use std::time::Duration;

const AT_ONCE: usize = 128;
const QUIET: Activity = Activity::Quiet {
    last_activity_at: Timestamp::ZERO,
};

/// How much each session has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Two events.
    Plain,
    /// Five events, a token and a Spark session.
    Full,
}

/// Makes `count` active sessions, over all organizations; each organization
/// has ten owners.
pub(crate) async fn sessions(stage: &Stage, count: usize, depth: Depth) -> Result<Vec<Session>> {
    let store = &*stage.store;
    futures::stream::iter(0..count)
        .map(|n| one(store, n, depth))
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}

async fn one(store: &dyn SessionStore, n: usize, depth: Depth) -> Result<Session> {
    let now = store.now().await?;
    let policy = SessionPolicy {
        idle_timeout: Duration::from_secs(8 * 3600),
        close_after_idle: Duration::from_secs(3600),
        max_lifetime: Duration::from_secs(24 * 3600),
        provisioning_deadline: Duration::from_secs(120),
        on_idle: IdlePolicy::Release,
        wake: Default::default(),
        dedicated: true,
    };
    let created = machine::create(
        NewSession {
            id: SessionId::generate(now, rand::random()),
            org: org(n)?,
            owner: format!(
                "sa|owner-{:03}-{}",
                n % crate::stage::ORGS,
                n / crate::stage::ORGS % 10
            )
            .parse()?,
            name: Some(format!("notebook {n}")),
            team: n.is_multiple_of(4).then(|| "data".to_owned()),
            labels: BTreeMap::from([("purpose".to_owned(), "benchmark".to_owned())]),
            cluster: CLUSTER.parse()?,
            catalog: None,
            profile: None,
            policy,
        },
        now,
    );
    store
        .create(Create {
            session: created.session.clone(),
            record: created.record,
            due: now.after(Duration::from_secs(3600)),
            request: None,
            limits: Limits {
                live_sessions_per_owner: u32::MAX,
                live_sessions: u32::MAX,
                creates_per_minute: u32::MAX,
                ..Limits::default()
            },
        })
        .await?;
    let ready = Observation::Ready { route: route() };
    let step = machine::step(&created.session, Some(&ready), QUIET, now);
    let change = step.transition.context("a session that does not become active")?;
    let mut session = change.session.clone();
    commit(store, change, now).await?;
    if depth == Depth::Full {
        for name in ["first", "second", "third"] {
            let rename = Event::Update {
                name: Some(Some(name.to_owned())),
                labels: None,
            };
            session = ask(store, &session, &rename).await?;
        }
        let token = TokenRecord {
            id: TokenId::generate(now, rand::random()),
            key_id: "x".repeat(43),
            subject: session.owner.clone(),
            epoch: 1,
            issued_at: now,
            expires_at: now.after(Duration::from_secs(3600)),
            address: String::new(),
        };
        store.record_token(&session.key(), token, 100).await?;
        let bind = Bind {
            spark: SparkSession {
                server: "spark.example:15002".to_owned(),
                id: uuid::Uuid::new_v4().to_string().parse()?,
            },
            holder: session.key(),
            generation: 1,
            ticket: format!("{:016x}", rand::random::<u64>()),
            prepare: None,
            limit: 256,
        };
        store.bind(&bind).await?;
    }
    Ok(session)
}

/// Asks something of a session that nobody else changes.
pub(crate) async fn ask(store: &dyn SessionStore, session: &Session, event: &Event) -> Result<Session> {
    let now = store.now().await?;
    let change =
        machine::apply(session, event, &Actor::System, now)?.context("an event that changes nothing")?;
    let after = change.session.clone();
    commit(store, change, now).await?;
    Ok(after)
}

async fn commit(store: &dyn SessionStore, change: machine::Transition, now: Timestamp) -> Result<()> {
    let due = machine::next_due(&change.session, QUIET, now);
    let commit = Commit {
        session: change.session,
        record: change.record,
        due,
    };
    store.commit(commit).await?;
    Ok(())
}
