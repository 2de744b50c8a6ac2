//! The memory store behind faulty requests of one manager: requests are lost before
//! or after they take effect, arrive late, or are slow. At each of these points the
//! manager may crash, after which its calls never return.

use super::check::Requested;
use super::coverage::{self, Fault};
use super::world::{World, short};
use async_trait::async_trait;
use futures::stream::BoxStream;
use session_core::{
    AuditRecord, ClusterName, EventRecord, Operation, OrgId, PrincipalId, ProxyId, Session, SessionKey,
    SparkSessionId, Status, Timestamp, TokenId, TokenUse, Use,
};
use session_store::audit_trail::{AuditEntry, AuditPlace, AuditSource};
use session_store::signing_keys::KnownKeys;
use session_store::spark_bindings::{Bind, Binding, Bound, SparkSession};
use session_store::spark_sessions::{SettingsChange, SparkSessionUse, StoredSparkSession};
use session_store::{
    ActivityReports, AuditTrail, ChangeFeed, Commit, Create, Created, Definition, DefinitionQuota,
    Definitions, DueQueue, Error, Feed, FeedProgress, Kind, Leases, ListQuery, Loaded, Page, Placements,
    Proxies, Report, ReportOutcome, ReportStart, RequestId, Retention, SessionIndex, SessionStore, Sessions,
    SigningKeys, SparkBindings, SparkSessions, StoreHealth, TokenRecord, Tokens, Tombstones,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

/// Time limit of a call to the store.
const TIMEOUT: Duration = Duration::from_secs(2);

/// One process of a manager.
#[derive(Debug, Clone)]
pub(super) struct Run {
    pub(super) name: String,
    pub(super) world: Arc<World>,
    pub(super) began: Duration,
    dead: Arc<AtomicBool>,
}

impl Run {
    pub(super) fn new(world: &Arc<World>, name: String) -> Self {
        Self {
            name,
            began: world.elapsed(),
            world: Arc::clone(world),
            dead: Arc::default(),
        }
    }

    pub(super) fn crash(&self, why: &str) {
        if !self.dead.swap(true, Relaxed) {
            self.world.all_meet(Fault::ManagerCrash);
            self.world.fault(&self.name, format_args!("crashes {why}"));
            self.world.count("crashes");
        }
    }

    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Relaxed)
    }

    /// Never returns after a crash.
    pub(super) async fn alive(&self) {
        if self.is_dead() {
            std::future::pending::<()>().await;
        }
    }

    pub(super) async fn pause(&self) {
        self.world.dawdle().await;
        self.alive().await;
    }
}

/// A store with faults.
#[derive(Debug)]
pub(super) struct FaultyStore {
    pub(super) run: Run,
}

impl FaultyStore {
    async fn call<T>(
        &self,
        what: &'static str,
        effect: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        self.call_for(None, what, effect).await
    }

    /// A call that concerns one session.
    async fn call_for<T>(
        &self,
        key: Option<&SessionKey>,
        what: &'static str,
        effect: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let (run, world) = (&self.run, &self.run.world);
        let strikes = |fault| match key {
            Some(key) => world.strikes_session(key, fault, 5_000),
            None => world.strikes(5_000),
        };
        run.pause().await;
        let unavailable = world.elapsed() < world.state().outage_until;
        if unavailable || strikes(Fault::StoreRequestLost) {
            if unavailable {
                let now = world.elapsed();
                world.state().last_fault = now;
            } else {
                world.fault(&run.name, format_args!("{what} is lost"));
            }
            return Err(self.lost("lost").await);
        }
        let answer = effect.await;
        if world.strikes(300) {
            run.crash(&format!("after {what}"));
        }
        run.pause().await;
        if strikes(Fault::StoreAnswerLost) {
            world.fault(&run.name, format_args!("the answer to {what} is lost"));
            return Err(self.lost("the answer was lost").await);
        }
        answer
    }

    /// The error of a lost call, at once or after its timeout.
    async fn lost(&self, what: &str) -> Error {
        let late = self.run.world.one_in(4);
        tokio::time::sleep(if late { TIMEOUT } else { Duration::from_millis(1) }).await;
        self.run.alive().await;
        Error::unreachable(what)
    }

    /// The delay of a write that takes effect after its caller's timeout, if so.
    fn comes_late(&self, key: &SessionKey, what: &'static str) -> Option<Duration> {
        let world = &self.run.world;
        world.strikes_session(key, Fault::StoreWriteLate, 3_000).then(|| {
            let delay = world.between(10, 6000);
            world.fault(&self.run.name, format_args!("{what} comes {delay:?} late"));
            delay
        })
    }

    async fn commit_as(&self, commit: Commit, quiet: Option<Timestamp>) -> Result<(), Error> {
        let requested = Requested {
            run: self.run.clone(),
            at: self.run.world.elapsed(),
        };
        let write = move |commit: Commit| async move {
            let world = &requested.run.world;
            let key = commit.session.key();
            let before = world.recorded(&key);
            let outcome = match quiet {
                Some(last) => world.store.commit_if_idle(commit.clone(), last).await,
                None => world.store.commit(commit.clone()).await,
            };
            if outcome.is_ok() {
                let session = &commit.session;
                world.note(
                    &requested.run.name,
                    format_args!(
                        "{} v{} g{} {} -> {} by {}",
                        short(&key),
                        session.version,
                        session.generation,
                        before.map_or("nothing", |before| before.state.phase().as_str()),
                        session.state.phase().as_str(),
                        session.reason
                    ),
                );
                world.count(session.reason.as_str());
                world.check_commit(&commit, &requested);
                coverage::entered(&requested.run, &key);
            }
            outcome
        };
        if let Some(delay) = self.comes_late(&commit.session.key(), "a commit") {
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                drop(write(commit).await);
            });
            tokio::time::sleep(TIMEOUT.min(delay)).await;
            self.run.alive().await;
            return Err(Error::unreachable("no answer in time"));
        }
        let key = commit.session.key();
        self.call_for(Some(&key), "a commit", write(commit)).await
    }

    fn inner(&self) -> &dyn SessionStore {
        &*self.run.world.store
    }
}

#[async_trait]
impl Sessions for FaultyStore {
    async fn create(&self, create: Create) -> Result<Created, Error> {
        let world = &self.run.world;
        let effect = async {
            let created = world.store.create(create.clone()).await?;
            if created.new {
                world.created(&create);
                coverage::entered(&self.run, &create.session.key());
            }
            Ok(created)
        };
        self.call("create", effect).await
    }
    async fn get(&self, key: &SessionKey) -> Result<Option<Session>, Error> {
        let effect = async {
            let session = self.inner().get(key).await?;
            self.run.world.check_read(key, session.as_ref());
            Ok(session)
        };
        self.call_for(Some(key), "get", effect).await
    }
    async fn find_by_request(
        &self,
        org: &OrgId,
        owner: &PrincipalId,
        request: &RequestId,
    ) -> Result<Option<Session>, Error> {
        self.call(
            "find_by_request",
            self.inner().find_by_request(org, owner, request),
        )
        .await
    }
    async fn commit(&self, commit: Commit) -> Result<(), Error> {
        self.commit_as(commit, None).await
    }
    async fn commit_if_idle(&self, commit: Commit, last_activity_at: Timestamp) -> Result<(), Error> {
        self.commit_as(commit, Some(last_activity_at)).await
    }
    async fn events(&self, key: &SessionKey) -> Result<Vec<EventRecord>, Error> {
        self.call("events", self.inner().events(key)).await
    }
}

#[async_trait]
impl SessionIndex for FaultyStore {
    async fn list(&self, query: &ListQuery) -> Result<Page, Error> {
        self.call("list", self.inner().list(query)).await
    }
    async fn list_live_on_cluster(
        &self,
        cluster: &ClusterName,
        after: Option<&SessionKey>,
        limit: usize,
    ) -> Result<Vec<SessionKey>, Error> {
        self.call(
            "list_live_on_cluster",
            self.inner().list_live_on_cluster(cluster, after, limit),
        )
        .await
    }
    async fn list_orgs_on_cluster(&self, cluster: &ClusterName) -> Result<BTreeSet<OrgId>, Error> {
        self.call("list_orgs_on_cluster", self.inner().list_orgs_on_cluster(cluster))
            .await
    }
    async fn count_by_status(&self, org: &OrgId) -> Result<BTreeMap<Status, u64>, Error> {
        self.call("count_by_status", self.inner().count_by_status(org))
            .await
    }
}

#[async_trait]
impl DueQueue for FaultyStore {
    async fn set_due(&self, key: &SessionKey, version: u64, due: Option<Timestamp>) -> Result<(), Error> {
        let (run, of) = (self.run.clone(), key.clone());
        let write = async move {
            let outcome = run.world.store.set_due(&of, version, due).await;
            if outcome.is_ok() {
                run.world.check_set_due(&of, version, due, &run);
            }
            outcome
        };
        if let Some(delay) = self.comes_late(key, "set_due") {
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                drop(write.await);
            });
            return Err(Error::unreachable("no answer in time"));
        }
        self.call_for(Some(key), "set_due", write).await
    }
    async fn claim_due(&self, limit: usize, lease: Duration) -> Result<Vec<SessionKey>, Error> {
        self.call("claim_due", self.inner().claim_due(limit, lease)).await
    }
    async fn oldest_due(&self) -> Result<Option<Timestamp>, Error> {
        self.call("oldest_due", self.inner().oldest_due()).await
    }
}

#[async_trait]
impl ActivityReports for FaultyStore {
    async fn apply_report(&self, key: &SessionKey, report: &Report) -> Result<ReportOutcome, Error> {
        let effect = self.inner().apply_report(key, report);
        self.call_for(Some(key), "apply_report", effect).await
    }
    async fn get_with_activity(&self, key: &SessionKey) -> Result<Option<Loaded>, Error> {
        let effect = async {
            let loaded = self.inner().get_with_activity(key).await?;
            let session = loaded.as_ref().map(|loaded| &loaded.session);
            self.run.world.check_read(key, session);
            Ok(loaded)
        };
        self.call_for(Some(key), "get_with_activity", effect).await
    }
    async fn usage(&self, sessions: &[Session]) -> Result<Vec<Use>, Error> {
        self.call("usage", self.inner().usage(sessions)).await
    }
    async fn operations(&self, key: &SessionKey) -> Result<Vec<Operation>, Error> {
        self.call("operations", self.inner().operations(key)).await
    }
    async fn begin_proxy_report(&self, proxy: &ProxyId, sequence: u64) -> Result<ReportStart, Error> {
        self.call(
            "begin_proxy_report",
            self.inner().begin_proxy_report(proxy, sequence),
        )
        .await
    }
    async fn mark_proxy_alive(&self, proxy: &ProxyId, at: Timestamp) -> Result<(), Error> {
        self.call("mark_proxy_alive", self.inner().mark_proxy_alive(proxy, at))
            .await
    }
    async fn count_proxies(
        &self,
        silent_after: Duration,
        gone_after: Option<Duration>,
    ) -> Result<Proxies, Error> {
        self.call(
            "count_proxies",
            self.inner().count_proxies(silent_after, gone_after),
        )
        .await
    }
}

#[async_trait]
impl Tokens for FaultyStore {
    async fn record_token(&self, key: &SessionKey, token: TokenRecord, limit: u32) -> Result<(), Error> {
        self.call("record_token", self.inner().record_token(key, token, limit))
            .await
    }
    async fn live_tokens(&self, key: &SessionKey) -> Result<Vec<TokenRecord>, Error> {
        self.call("live_tokens", self.inner().live_tokens(key)).await
    }
    async fn recent_tokens(&self, key: &SessionKey) -> Result<Vec<TokenRecord>, Error> {
        self.call("recent_tokens", self.inner().recent_tokens(key)).await
    }
    async fn token_uses(&self, key: &SessionKey) -> Result<BTreeMap<TokenId, TokenUse>, Error> {
        self.call("token_uses", self.inner().token_uses(key)).await
    }
}

#[async_trait]
impl Definitions for FaultyStore {
    async fn put_definition(&self, kind: Kind, name: &str, expected: u64, json: &str) -> Result<u64, Error> {
        self.call(
            "put_definition",
            self.inner().put_definition(kind, name, expected, json),
        )
        .await
    }
    async fn put_definition_within_quota(
        &self,
        kind: Kind,
        name: &str,
        expected: u64,
        json: &str,
        quota: &DefinitionQuota,
    ) -> Result<u64, Error> {
        let put = self
            .inner()
            .put_definition_within_quota(kind, name, expected, json, quota);
        self.call("put_definition_within_quota", put).await
    }
    async fn get_definition(&self, kind: Kind, name: &str) -> Result<Option<Definition>, Error> {
        self.call("get_definition", self.inner().get_definition(kind, name))
            .await
    }
    async fn get_definitions(&self, wanted: &[(Kind, String)]) -> Result<Vec<Option<Definition>>, Error> {
        self.call("get_definitions", self.inner().get_definitions(wanted))
            .await
    }
    async fn list_definitions(
        &self,
        kind: Kind,
        org: Option<&OrgId>,
    ) -> Result<BTreeMap<String, Definition>, Error> {
        self.call("list_definitions", self.inner().list_definitions(kind, org))
            .await
    }
    async fn definition_names(&self, kind: Kind, org: Option<&OrgId>) -> Result<BTreeSet<String>, Error> {
        self.call("definition_names", self.inner().definition_names(kind, org))
            .await
    }
    async fn list_orgs_with_definitions(&self, kind: Kind) -> Result<BTreeSet<OrgId>, Error> {
        self.call(
            "list_orgs_with_definitions",
            self.inner().list_orgs_with_definitions(kind),
        )
        .await
    }
    async fn delete_definition(&self, kind: Kind, name: &str, expected: u64) -> Result<(), Error> {
        self.call(
            "delete_definition",
            self.inner().delete_definition(kind, name, expected),
        )
        .await
    }
}

#[async_trait]
impl Leases for FaultyStore {
    async fn acquire_lease(&self, name: &str, owner: &str, ttl: Duration) -> Result<Option<u64>, Error> {
        self.call("acquire_lease", self.inner().acquire_lease(name, owner, ttl))
            .await
    }
    async fn release_lease(&self, name: &str, owner: &str) -> Result<(), Error> {
        self.call("release_lease", self.inner().release_lease(name, owner))
            .await
    }
}

#[async_trait]
impl ChangeFeed for FaultyStore {
    fn changes_with_progress(&self, progress: &FeedProgress) -> BoxStream<'static, Feed> {
        self.inner().changes_with_progress(progress)
    }
}

#[async_trait]
impl Retention for FaultyStore {
    async fn trim_ended(&self, keep: &Tombstones, limit: usize) -> Result<usize, Error> {
        self.call("trim_ended", self.inner().trim_ended(keep, limit))
            .await
    }
}

#[async_trait]
impl StoreHealth for FaultyStore {
    async fn now(&self) -> Result<Timestamp, Error> {
        self.call("now", self.inner().now()).await
    }
    async fn epoch(&self) -> Result<u64, Error> {
        self.call("epoch", self.inner().epoch()).await
    }
    async fn ping(&self) -> Result<(), Error> {
        self.call("ping", self.inner().ping()).await
    }
    async fn memory(&self) -> Result<Option<session_store::Memory>, Error> {
        self.call("memory", self.inner().memory()).await
    }
}

#[async_trait]
impl Placements for FaultyStore {
    async fn place_session(
        &self,
        servers: &[String],
        holder: &SessionKey,
        org_alone: bool,
    ) -> Result<Option<String>, Error> {
        self.call(
            "place_session",
            self.inner().place_session(servers, holder, org_alone),
        )
        .await
    }
    async fn remove_placement(&self, server: &str, holder: &SessionKey) -> Result<(), Error> {
        self.call("remove_placement", self.inner().remove_placement(server, holder))
            .await
    }
    async fn list_placements(&self, holder: &SessionKey) -> Result<Vec<String>, Error> {
        self.call("list_placements", self.inner().list_placements(holder))
            .await
    }
}

#[async_trait]
impl SparkBindings for FaultyStore {
    async fn bind(&self, bind: &Bind) -> Result<Bound, Error> {
        self.call("bind", self.inner().bind(bind)).await
    }
    async fn finish_preparation(
        &self,
        holder: &SessionKey,
        spark: &SparkSession,
        ticket: &str,
        ready: bool,
    ) -> Result<bool, Error> {
        self.call(
            "finish_preparation",
            self.inner().finish_preparation(holder, spark, ticket, ready),
        )
        .await
    }
    async fn list_bindings(&self, holder: &SessionKey) -> Result<Vec<Binding>, Error> {
        self.call("list_bindings", self.inner().list_bindings(holder))
            .await
    }
    async fn seal_bindings(&self, holder: &SessionKey, generation: u64) -> Result<(), Error> {
        self.call("seal_bindings", self.inner().seal_bindings(holder, generation))
            .await
    }
    async fn unbind(&self, holder: &SessionKey, binding: &Binding, keep: Duration) -> Result<(), Error> {
        self.call("unbind", self.inner().unbind(holder, binding, keep))
            .await
    }
}

#[async_trait]
impl SparkSessions for FaultyStore {
    async fn store_settings(&self, key: &SessionKey, change: &SettingsChange) -> Result<bool, Error> {
        self.call("store_settings", self.inner().store_settings(key, change))
            .await
    }
    async fn use_spark_session(
        &self,
        key: &SessionKey,
        spark_session: &SparkSessionId,
        generation: u64,
    ) -> Result<SparkSessionUse, Error> {
        let used = self.inner().use_spark_session(key, spark_session, generation);
        self.call("use_spark_session", used).await
    }
    async fn spark_sessions(
        &self,
        key: &SessionKey,
    ) -> Result<BTreeMap<SparkSessionId, StoredSparkSession>, Error> {
        self.call("spark_sessions", self.inner().spark_sessions(key))
            .await
    }
    async fn forget_spark_sessions(&self, key: &SessionKey) -> Result<(), Error> {
        self.call("forget_spark_sessions", self.inner().forget_spark_sessions(key))
            .await
    }
}

#[async_trait]
impl AuditTrail for FaultyStore {
    async fn append_audit(&self, record: &AuditRecord) -> Result<(), Error> {
        self.call("append_audit", self.inner().append_audit(record)).await
    }
    async fn read_audit(&self, partition: u8, after: &str, limit: usize) -> Result<Vec<AuditEntry>, Error> {
        self.call("read_audit", self.inner().read_audit(partition, after, limit))
            .await
    }
    async fn read_audit_before(
        &self,
        source: AuditSource,
        before: Option<AuditPlace>,
        limit: usize,
    ) -> Result<Vec<(AuditPlace, AuditRecord)>, Error> {
        self.call(
            "read_audit_before",
            self.inner().read_audit_before(source, before, limit),
        )
        .await
    }
    async fn audit_export_position(&self, partition: u8) -> Result<String, Error> {
        self.call(
            "audit_export_position",
            self.inner().audit_export_position(partition),
        )
        .await
    }
    async fn set_audit_export_position(&self, partition: u8, position: &str) -> Result<(), Error> {
        self.call(
            "set_audit_export_position",
            self.inner().set_audit_export_position(partition, position),
        )
        .await
    }
}

#[async_trait]
impl SigningKeys for FaultyStore {
    async fn report_signing_keys(
        &self,
        published: &[String],
        signing: Option<&str>,
    ) -> Result<KnownKeys, Error> {
        self.call(
            "report_signing_keys",
            self.inner().report_signing_keys(published, signing),
        )
        .await
    }
}
