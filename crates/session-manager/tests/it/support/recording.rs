//! The memory store as a manager reaches it, with a note of every call: what
//! was asked of it, of which kind, and for which organization.

use async_trait::async_trait;
use futures::stream::BoxStream;
use session_core::{
    AuditRecord, ClusterName, EventRecord, Operation, OrgId, PrincipalId, ProxyId, Session, SessionKey,
    SparkSessionId, Status, Timestamp, TokenId, TokenUse, Use,
};
use session_store::audit_trail::{AuditTrail, Audited};
use session_store::memory::MemoryStore;
use session_store::signing_keys::{KnownKeys, SigningKeys};
use session_store::spark_bindings::{Bind, Binding, Bound, SparkSession};
use session_store::spark_sessions::{KeptSparkSession, SettingsChange, SparkSessions, Used};
use session_store::{
    Commit, Create, Created, Definition, DefinitionQuota, Error, Feed, FeedProgress, Heard, Kind, ListQuery,
    Loaded, Page, Proxies, Report, Reported, RequestId, SessionStore, SharedServers, TokenRecord, Tombstones,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How often each method was called.
pub(crate) type Calls = BTreeMap<&'static str, u64>;

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct RecordingStore {
    inner: Arc<MemoryStore>,
    calls: Arc<Mutex<Calls>>,
    /// Writing an audit record takes so long.
    pub(crate) audit_delay: Arc<Mutex<Duration>>,
}

impl RecordingStore {
    pub(crate) fn new(inner: Arc<MemoryStore>) -> Self {
        Self {
            inner,
            calls: Arc::default(),
            audit_delay: Arc::default(),
        }
    }

    /// What was called so far.
    pub(crate) fn calls(&self) -> Calls {
        self.calls.lock().unwrap().clone()
    }

    fn note(&self, method: &'static str) {
        *self.calls.lock().unwrap().entry(method).or_default() += 1;
    }
}

macro_rules! recorded {
    ($contract:ident { $($method:ident($($name:ident: $kind:ty),*) -> $answer:ty;)+ } $($more:tt)*) => {
        #[async_trait]
        impl $contract for RecordingStore {
            $(async fn $method(&self, $($name: $kind),*) -> Result<$answer, Error> {
                self.note(stringify!($method));
                if stringify!($method) == "audit" {
                    let delay = *self.audit_delay.lock().unwrap();
                    if !delay.is_zero() {
                        tokio::time::sleep(delay).await;
                    }
                }
                self.inner.$method($($name),*).await
            })+
            $($more)*
        }
    };
}

recorded! {
    SessionStore {
        now() -> Timestamp;
        create(create: Create) -> Created;
        repeated(org: &OrgId, owner: &PrincipalId, request: &RequestId) -> Option<Session>;
        get(key: &SessionKey) -> Option<Session>;
        load(key: &SessionKey) -> Option<Loaded>;
        commit(commit: Commit) -> ();
        commit_quiet(commit: Commit, last_activity_at: Timestamp) -> ();
        report(key: &SessionKey, report: &Report) -> Reported;
        uses(sessions: &[Session]) -> Vec<Use>;
        operations(key: &SessionKey) -> Vec<Operation>;
        token_uses(key: &SessionKey) -> BTreeMap<TokenId, TokenUse>;
        proxy_reported(proxy: &ProxyId, sequence: u64) -> Heard;
        proxy_spoke(proxy: &ProxyId, at: Timestamp) -> ();
        proxies(silent_after: Duration, gone_after: Option<Duration>) -> Proxies;
        set_due(key: &SessionKey, version: u64, due: Option<Timestamp>) -> ();
        claim_due(limit: usize, lease: Duration) -> Vec<SessionKey>;
        list(query: &ListQuery) -> Page;
        live_on_cluster(cluster: &ClusterName, after: Option<&SessionKey>, limit: usize) -> Vec<SessionKey>;
        orgs_on_cluster(cluster: &ClusterName) -> BTreeSet<OrgId>;
        counts(org: &OrgId) -> BTreeMap<Status, u64>;
        oldest_due() -> Option<Timestamp>;
        events(key: &SessionKey) -> Vec<EventRecord>;
        record_token(key: &SessionKey, token: TokenRecord, limit: u32) -> ();
        tokens(key: &SessionKey) -> Vec<TokenRecord>;
        recent_tokens(key: &SessionKey) -> Vec<TokenRecord>;
        lease(name: &str, owner: &str, ttl: Duration) -> Option<u64>;
        put_definition(kind: Kind, name: &str, expected: u64, json: &str) -> u64;
        definition(kind: Kind, name: &str) -> Option<Definition>;
        some_definitions(wanted: &[(Kind, String)]) -> Vec<Option<Definition>>;
        put_definition_within(kind: Kind, name: &str, expected: u64, json: &str, quota: &DefinitionQuota) -> u64;
        definitions_of(kind: Kind, org: Option<&OrgId>) -> BTreeMap<String, Definition>;
        definition_names(kind: Kind, org: Option<&OrgId>) -> BTreeSet<String>;
        orgs_with_definitions(kind: Kind) -> BTreeSet<OrgId>;
        delete_definition(kind: Kind, name: &str, expected: u64) -> ();
        trim_ended(keep: &Tombstones, limit: usize) -> usize;
        epoch() -> u64;
        ping() -> ();
    }

    fn changes_with_progress(&self, progress: &FeedProgress) -> BoxStream<'static, Feed> {
        self.inner.changes_with_progress(progress)
    }
}

recorded! {
    AuditTrail {
        audit(record: &AuditRecord) -> ();
        audited(partition: u8, after: &str, limit: usize) -> Vec<Audited>;
        exported(partition: u8) -> String;
        set_exported(partition: u8, place: &str) -> ();
    }
}

recorded! {
    SigningKeys {
        report_keys(published: &[String], signing: Option<&str>) -> KnownKeys;
    }
}

recorded! {
    SparkSessions {
        keep_settings(key: &SessionKey, change: &SettingsChange) -> bool;
        use_spark_session(key: &SessionKey, spark_session: &SparkSessionId, generation: u64) -> Used;
        spark_sessions(key: &SessionKey) -> BTreeMap<SparkSessionId, KeptSparkSession>;
        forget_spark_sessions(key: &SessionKey) -> ();
    }
}

recorded! {
    SharedServers {
        take_place(servers: &[String], holder: &SessionKey, org_alone: bool) -> Option<String>;
        leave_place(server: &str, holder: &SessionKey) -> ();
        places_of(holder: &SessionKey) -> Vec<String>;
        bind(bind: &Bind) -> Bound;
        prepared(holder: &SessionKey, spark: &SparkSession, ticket: &str, ready: bool) -> bool;
        bindings(holder: &SessionKey) -> Vec<Binding>;
        seal_bindings(holder: &SessionKey, generation: u64) -> ();
        unbind(holder: &SessionKey, binding: &Binding, keep: Duration) -> ();
    }
}
