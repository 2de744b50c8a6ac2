//! Common parts of the store tests: sessions, stores, and waits for conditions.

use session_core::machine::{self, Event, NewSession, Observation, Transition};
use session_core::{
    Activity, Actor, ChangeReason, Limits, OrgId, PrincipalId, Session, SessionKey, Timestamp, TokenId,
};
use session_store::memory::MemoryStore;
use session_store::redis::{Credentials, Options, RedisStore};
use session_store::{Commit, Create, Report, RequestId, SessionStore, TokenRecord};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use test_support::fixtures;
use test_support::redis::{PrivateRedis, documented_rules};
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep};

pub(crate) type Store = Arc<dyn SessionStore>;

pub(crate) async fn connect(redis: &PrivateRedis, options: &Options) -> Store {
    Arc::new(RedisStore::connect(&redis.url(), options).await.unwrap())
}

/// Keys without a prefix, for tests that use key names.
pub(crate) fn unprefixed() -> Options {
    Options {
        prefix: String::new(),
        ..Options::default()
    }
}

/// Hash tag of the organization of all drafts.
pub(crate) fn tag() -> String {
    format!("{{p{:02}}}", org("acme").partition())
}

/// Long, because the machine is shared with other tests.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);
/// Password of the user of the contract.
const PASSWORD: &str = "contract";
pub(crate) const FAR: Duration = Duration::from_secs(100 * 24 * 3600);

static UNIQUE: AtomicU64 = AtomicU64::new(1);
static SERVER: OnceCell<PrivateRedis> = OnceCell::const_new();

pub(crate) fn unique() -> u64 {
    UNIQUE.fetch_add(1, Ordering::Relaxed)
}

pub(crate) fn memory() -> Store {
    Arc::new(MemoryStore::new(Arc::new(session_core::SystemClock)))
}

/// The server of all tests of the program; ends with the program.
pub(crate) async fn server() -> &'static PrivateRedis {
    SERVER
        .get_or_init(async || {
            let redis = PrivateRedis::start().await.unwrap();
            // The rights of the documents, for the prefixes of tests.
            let [rules, _] = documented_rules().unwrap();
            let rules = rules.replace("~berth:*", "~test*");
            let made = redis
                .command(&format!("ACL SETUSER berth on >{PASSWORD} {rules}"))
                .await;
            assert_eq!(made.unwrap(), "+OK\r\n");
            redis
        })
        .await
}

/// Options with a unique prefix.
pub(crate) fn options() -> Options {
    Options {
        prefix: format!("test{}:", unique()),
        call_timeout: LIMIT,
        ..Options::default()
    }
}

/// A store on the server of all tests, as a user with the documented rights and no others.
pub(crate) async fn redis() -> Store {
    let options = Options {
        credentials: Credentials {
            username: Some("berth".to_owned()),
            password: Some(PASSWORD.to_owned()),
        },
        ..options()
    };
    connect(server().await, &options).await
}

/// Repeats `probe` until it returns a value; fails with the last observation.
pub(crate) async fn eventually<T, E: Debug>(what: &str, probe: impl AsyncFn() -> Result<T, E>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        match probe().await {
            Ok(value) => return value,
            Err(last) if Instant::now() > deadline => panic!("{what}: {last:?} after {LIMIT:?}"),
            Err(_) => sleep(Duration::from_millis(5)).await,
        }
    }
}

/// A session to create; by default of one owner on one cluster.
#[derive(Clone)]
pub(crate) struct Draft {
    pub(crate) org: &'static str,
    pub(crate) owner: String,
    pub(crate) cluster: &'static str,
    pub(crate) team: Option<&'static str>,
    pub(crate) labels: BTreeMap<String, String>,
}

impl Default for Draft {
    fn default() -> Self {
        Self {
            org: "acme",
            owner: "sa|bob".to_owned(),
            cluster: "c1",
            team: None,
            labels: BTreeMap::new(),
        }
    }
}

impl Draft {
    pub(crate) fn of(org: &'static str, owner: &str) -> Self {
        Self {
            org,
            owner: owner.to_owned(),
            ..Self::default()
        }
    }

    /// A new session; each is newer than the one before.
    pub(crate) fn transition(&self) -> Transition {
        let n = unique();
        let at = Timestamp::from_millis(1_800_000_000_000 + n);
        let new = NewSession {
            org: self.org.parse().unwrap(),
            owner: principal(&self.owner),
            team: self.team.map(str::to_owned),
            labels: self.labels.clone(),
            ..fixtures::new_session(n, self.cluster, fixtures::policy(), at)
        };
        machine::create(new, at)
    }

    pub(crate) fn create(&self) -> Create {
        let Transition { session, record, .. } = self.transition();
        let due = session.created_at.after(FAR);
        Create {
            session,
            record,
            due,
            request: None,
            limits: plenty(),
        }
    }

    pub(crate) async fn store(&self, store: &Store) -> Session {
        let created = store.create(self.create()).await.unwrap();
        assert!(created.new);
        created.session
    }
}

pub(crate) fn plenty() -> Limits {
    Limits {
        live_sessions_per_owner: 100_000,
        live_sessions: 100_000,
        creates_per_minute: 100_000,
        ..Limits::default()
    }
}

pub(crate) fn request(id: &str, fingerprint: &str) -> Option<RequestId> {
    Some(RequestId {
        id: id.to_owned(),
        fingerprint: fingerprint.to_owned(),
    })
}

pub(crate) fn principal(text: &str) -> PrincipalId {
    text.parse().unwrap()
}

pub(crate) fn org(name: &str) -> OrgId {
    name.parse().unwrap()
}

pub(crate) fn nobody() -> SessionKey {
    Draft::default().transition().session.key()
}

/// A change of a session that leaves it live, as its next version.
pub(crate) fn touch(session: &Session) -> Commit {
    let name = Some(Some(format!("v{}", session.version + 1)));
    commit_of(
        machine::apply(
            session,
            &Event::Update { name, labels: None },
            &Actor::System,
            moment(),
        )
        .unwrap(),
    )
}

pub(crate) fn close(session: &Session) -> Commit {
    let event = Event::Close {
        reason: ChangeReason::CloseRequested,
    };
    let mut commit = commit_of(machine::apply(session, &event, &Actor::System, moment()).unwrap());
    commit.due = None;
    commit
}

pub(crate) fn revoke(session: &Session) -> Commit {
    commit_of(machine::apply(session, &Event::RevokeTokens, &Actor::System, moment()).unwrap())
}

pub(crate) fn revoke_one(session: &Session, id: &TokenId) -> Commit {
    let event = Event::RevokeToken {
        id: id.clone(),
        until: moment().after(FAR),
    };
    commit_of(machine::apply(session, &event, &Actor::System, moment()).unwrap())
}

pub(crate) fn activate(session: &Session) -> Commit {
    let ready = Observation::Ready {
        route: fixtures::route(),
    };
    commit_of(machine::step(session, Some(&ready), Activity::Unknown, moment()).transition)
}

/// Decision of the status machine for a session.
pub(crate) fn commit_of_step(
    session: &Session,
    observation: &Observation,
    activity: Activity,
    now: Timestamp,
) -> Commit {
    commit_of(machine::step(session, Some(observation), activity, now).transition)
}

/// A report of calls in flight on the first generation.
pub(crate) fn report(proxy: &str, open_calls: u32) -> Report {
    Report {
        proxy: proxy.parse().unwrap(),
        generation: 1,
        open_calls: Some(open_calls),
        last_activity_at: None,
        operations: Vec::new(),
        usage_delta: None,
        token_uses: Vec::new(),
    }
}

fn moment() -> Timestamp {
    Timestamp::from_millis(1_800_000_000_000)
}

fn commit_of(transition: Option<Transition>) -> Commit {
    let Transition { session, record, .. } = transition.unwrap();
    let due = Some(session.created_at.after(FAR));
    Commit { session, record, due }
}

pub(crate) async fn commit(store: &Store, commit: Commit) -> Session {
    let session = commit.session.clone();
    store.commit(commit).await.unwrap();
    session
}

/// A token of `session` that expires `lifetime` after the store's time.
pub(crate) async fn token(store: &Store, session: &Session, lifetime: Duration) -> TokenRecord {
    let n = unique();
    let now = store.now().await.unwrap();
    TokenRecord {
        id: TokenId::generate(now, n),
        key_id: "k".to_owned(),
        subject: session.owner.clone(),
        epoch: session.token_epoch,
        issued_at: Timestamp::from_millis(n),
        expires_at: now.after(lifetime),
        address: String::new(),
    }
}
