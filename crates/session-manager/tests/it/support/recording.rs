//! The memory store with a record of every call by method.

use async_trait::async_trait;
use futures::stream::BoxStream;
use session_core::{
    AuditRecord, ClusterName, EventRecord, Operation, OrgId, PrincipalId, ProxyId, Session, SessionKey,
    SparkSessionId, Status, Timestamp, TokenId, TokenUse, Use,
};
use session_store::audit_trail::{AuditEntry, AuditPlace, AuditSource};
use session_store::memory::MemoryStore;
use session_store::signing_keys::KnownKeys;
use session_store::spark_bindings::{Bind, Binding, Bound, SparkSession};
use session_store::spark_sessions::{SettingsChange, SparkSessionUse, StoredSparkSession};
use session_store::{
    ActivityReports, AuditTrail, ChangeFeed, Commit, Create, Created, Definition, DefinitionQuota,
    Definitions, DueQueue, Error, Feed, FeedProgress, Kind, Leases, ListQuery, Loaded, Page, Placements,
    Proxies, Report, ReportOutcome, ReportStart, RequestId, Retention, SessionIndex, Sessions, SigningKeys,
    SparkBindings, SparkSessions, StoreHealth, TokenRecord, Tokens, Tombstones,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How often each method was called.
pub(crate) type Calls = BTreeMap<&'static str, u64>;

/// A store that records its calls.
#[derive(Debug, Clone)]
pub(crate) struct RecordingStore {
    inner: Arc<MemoryStore>,
    calls: Arc<Mutex<Calls>>,
    /// Delay of the write of an audit record, and of each read by AuditService.
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

    /// The calls so far.
    pub(crate) fn calls(&self) -> Calls {
        self.calls.lock().unwrap().clone()
    }

    fn note(&self, method: &'static str) {
        *self.calls.lock().unwrap().entry(method).or_default() += 1;
    }
}

macro_rules! recorded {
    ($contract:ident { $($method:ident($($name:ident: $kind:ty),*) -> $answer:ty;)+ }) => {
        #[async_trait]
        impl $contract for RecordingStore {
            $(async fn $method(&self, $($name: $kind),*) -> Result<$answer, Error> {
                self.note(stringify!($method));
                if matches!(stringify!($method), "append_audit" | "read_audit_before" | "list") {
                    let delay = *self.audit_delay.lock().unwrap();
                    if !delay.is_zero() {
                        tokio::time::sleep(delay).await;
                    }
                }
                self.inner.$method($($name),*).await
            })+
        }
    };
}

recorded! {
    Sessions {
        create(create: Create) -> Created;
        get(key: &SessionKey) -> Option<Session>;
        find_by_request(org: &OrgId, owner: &PrincipalId, request: &RequestId) -> Option<Session>;
        commit(commit: Commit) -> ();
        commit_if_idle(commit: Commit, last_activity_at: Timestamp) -> ();
        events(key: &SessionKey) -> Vec<EventRecord>;
    }
}

recorded! {
    SessionIndex {
        list(query: &ListQuery) -> Page;
        list_live_on_cluster(cluster: &ClusterName, after: Option<&SessionKey>, limit: usize) -> Vec<SessionKey>;
        list_orgs_on_cluster(cluster: &ClusterName) -> BTreeSet<OrgId>;
        count_by_status(org: &OrgId) -> BTreeMap<Status, u64>;
    }
}

recorded! {
    DueQueue {
        set_due(key: &SessionKey, version: u64, due: Option<Timestamp>) -> ();
        claim_due(limit: usize, lease: Duration) -> Vec<SessionKey>;
        oldest_due() -> Option<Timestamp>;
    }
}

recorded! {
    ActivityReports {
        apply_report(key: &SessionKey, report: &Report) -> ReportOutcome;
        get_with_activity(key: &SessionKey) -> Option<Loaded>;
        usage(sessions: &[Session]) -> Vec<Use>;
        operations(key: &SessionKey) -> Vec<Operation>;
        begin_proxy_report(proxy: &ProxyId, sequence: u64) -> ReportStart;
        mark_proxy_alive(proxy: &ProxyId, at: Timestamp) -> ();
        count_proxies(silent_after: Duration, gone_after: Option<Duration>) -> Proxies;
    }
}

recorded! {
    Tokens {
        record_token(key: &SessionKey, token: TokenRecord, limit: u32) -> ();
        live_tokens(key: &SessionKey) -> Vec<TokenRecord>;
        recent_tokens(key: &SessionKey) -> Vec<TokenRecord>;
        token_uses(key: &SessionKey) -> BTreeMap<TokenId, TokenUse>;
    }
}

recorded! {
    Definitions {
        put_definition(kind: Kind, name: &str, expected: u64, json: &str) -> u64;
        put_definition_within_quota(kind: Kind, name: &str, expected: u64, json: &str, quota: &DefinitionQuota) -> u64;
        get_definition(kind: Kind, name: &str) -> Option<Definition>;
        get_definitions(wanted: &[(Kind, String)]) -> Vec<Option<Definition>>;
        list_definitions(kind: Kind, org: Option<&OrgId>) -> BTreeMap<String, Definition>;
        definition_names(kind: Kind, org: Option<&OrgId>) -> BTreeSet<String>;
        list_orgs_with_definitions(kind: Kind) -> BTreeSet<OrgId>;
        delete_definition(kind: Kind, name: &str, expected: u64) -> ();
    }
}

recorded! {
    Leases {
        acquire_lease(name: &str, owner: &str, ttl: Duration) -> Option<u64>;
        release_lease(name: &str, owner: &str) -> ();
    }
}

#[async_trait]
impl ChangeFeed for RecordingStore {
    fn changes_with_progress(&self, progress: &FeedProgress) -> BoxStream<'static, Feed> {
        self.inner.changes_with_progress(progress)
    }
}

recorded! {
    Retention {
        trim_ended(keep: &Tombstones, limit: usize) -> usize;
    }
}

recorded! {
    StoreHealth {
        now() -> Timestamp;
        epoch() -> u64;
        ping() -> ();
        memory() -> Option<session_store::Memory>;
    }
}

recorded! {
    Placements {
        place_session(servers: &[String], holder: &SessionKey, org_alone: bool) -> Option<String>;
        remove_placement(server: &str, holder: &SessionKey) -> ();
        list_placements(holder: &SessionKey) -> Vec<String>;
    }
}

recorded! {
    SparkBindings {
        bind(bind: &Bind) -> Bound;
        finish_preparation(holder: &SessionKey, spark: &SparkSession, ticket: &str, ready: bool) -> bool;
        list_bindings(holder: &SessionKey) -> Vec<Binding>;
        seal_bindings(holder: &SessionKey, generation: u64) -> ();
        unbind(holder: &SessionKey, binding: &Binding, keep: Duration) -> ();
    }
}

recorded! {
    SparkSessions {
        store_settings(key: &SessionKey, change: &SettingsChange) -> bool;
        use_spark_session(key: &SessionKey, spark_session: &SparkSessionId, generation: u64) -> SparkSessionUse;
        spark_sessions(key: &SessionKey) -> BTreeMap<SparkSessionId, StoredSparkSession>;
        forget_spark_sessions(key: &SessionKey) -> ();
    }
}

recorded! {
    AuditTrail {
        append_audit(record: &AuditRecord) -> ();
        read_audit(partition: u8, after: &str, limit: usize) -> Vec<AuditEntry>;
        read_audit_before(source: AuditSource, before: Option<AuditPlace>, limit: usize) -> Vec<(AuditPlace, AuditRecord)>;
        audit_export_position(partition: u8) -> String;
        set_audit_export_position(partition: u8, position: &str) -> ();
    }
}

recorded! {
    SigningKeys {
        report_signing_keys(published: &[String], signing: Option<&str>) -> KnownKeys;
    }
}
