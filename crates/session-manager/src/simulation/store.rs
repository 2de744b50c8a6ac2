//! The memory store as one manager reaches it: requests are lost before or
//! after they took effect, come late, take their time; and at each of these
//! points the manager may have crashed, which is to never hear of it again.

use super::check::Asked;
use super::world::{World, short};
use async_trait::async_trait;
use futures::stream::BoxStream;
use session_core::{
    AuditRecord, ClusterName, EventRecord, Operation, OrgId, PrincipalId, ProxyId, Session, SessionKey,
    SparkSessionId, Status, Timestamp, TokenId, TokenUse, Use,
};
use session_store::audit_trail::{AuditTrail, Audited};
use session_store::signing_keys::{KnownKeys, SigningKeys};
use session_store::spark_bindings::{Bind, Binding, Bound, SparkSession};
use session_store::spark_sessions::{KeptSparkSession, SettingsChange, SparkSessions, Used};
use session_store::{
    Commit, Create, Created, Definition, DefinitionQuota, Error, Feed, FeedProgress, Heard, Kind, ListQuery,
    Loaded, Page, Proxies, Report, Reported, RequestId, SessionStore, SharedServers, TokenRecord, Tombstones,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

/// The longest that a call to the store takes.
const TIMEOUT: Duration = Duration::from_secs(2);

/// One run of one manager.
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
            self.world.fault(&self.name, format_args!("crashes {why}"));
            self.world.count("crashes");
        }
    }

    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Relaxed)
    }

    /// Where a run that has crashed stays for ever.
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

/// See the module.
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
        let (run, world) = (&self.run, &self.run.world);
        run.pause().await;
        let away = world.elapsed() < world.state().outage_until;
        if away || world.strikes(5_000) {
            if away {
                let now = world.elapsed();
                world.state().last_fault = now;
            } else {
                world.fault(&run.name, format_args!("{what} is lost"));
            }
            tokio::time::sleep(if world.one_in(4) {
                TIMEOUT
            } else {
                Duration::from_millis(1)
            })
            .await;
            run.alive().await;
            return Err(Error::Unavailable("lost".to_owned()));
        }
        let answer = effect.await;
        if world.strikes(300) {
            run.crash(&format!("after {what}"));
        }
        run.pause().await;
        if world.strikes(5_000) {
            world.fault(&run.name, format_args!("the answer to {what} is lost"));
            tokio::time::sleep(if world.one_in(4) {
                TIMEOUT
            } else {
                Duration::from_millis(1)
            })
            .await;
            run.alive().await;
            return Err(Error::Unavailable("the answer was lost".to_owned()));
        }
        answer
    }

    /// A write that the caller has given up, and that takes effect later.
    fn comes_late(&self, what: &'static str) -> Option<Duration> {
        let world = &self.run.world;
        world.strikes(3_000).then(|| {
            let delay = world.between(10, 6000);
            world.fault(&self.run.name, format_args!("{what} comes {delay:?} late"));
            delay
        })
    }

    async fn commit_as(&self, commit: Commit, quiet: Option<Timestamp>) -> Result<(), Error> {
        let asked = Asked {
            run: self.run.clone(),
            at: self.run.world.elapsed(),
        };
        let write = move |commit: Commit| async move {
            let world = &asked.run.world;
            let key = commit.session.key();
            let before = world.recorded(&key);
            let outcome = match quiet {
                Some(last) => world.store.commit_quiet(commit.clone(), last).await,
                None => world.store.commit(commit.clone()).await,
            };
            if outcome.is_ok() {
                let session = &commit.session;
                world.note(
                    &asked.run.name,
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
                world.check_commit(&commit, &asked);
            }
            outcome
        };
        if let Some(delay) = self.comes_late("a commit") {
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                drop(write(commit).await);
            });
            tokio::time::sleep(TIMEOUT.min(delay)).await;
            self.run.alive().await;
            return Err(Error::Unavailable("no answer in time".to_owned()));
        }
        self.call("a commit", write(commit)).await
    }

    fn inner(&self) -> &dyn SessionStore {
        &*self.run.world.store
    }
}

#[async_trait]
impl AuditTrail for FaultyStore {
    async fn audit(&self, record: &AuditRecord) -> Result<(), Error> {
        self.call("audit", self.inner().audit(record)).await
    }
    async fn audited(&self, partition: u8, after: &str, limit: usize) -> Result<Vec<Audited>, Error> {
        self.call("audited", self.inner().audited(partition, after, limit))
            .await
    }
    async fn exported(&self, partition: u8) -> Result<String, Error> {
        self.call("exported", self.inner().exported(partition)).await
    }
    async fn set_exported(&self, partition: u8, place: &str) -> Result<(), Error> {
        self.call("set_exported", self.inner().set_exported(partition, place))
            .await
    }
}

#[async_trait]
impl SigningKeys for FaultyStore {
    async fn report_keys(&self, published: &[String], signing: Option<&str>) -> Result<KnownKeys, Error> {
        self.call("report_keys", self.inner().report_keys(published, signing))
            .await
    }
}

#[async_trait]
impl SessionStore for FaultyStore {
    async fn trim_ended(&self, keep: &Tombstones, limit: usize) -> Result<usize, Error> {
        self.call("trim_ended", self.inner().trim_ended(keep, limit))
            .await
    }
    async fn now(&self) -> Result<Timestamp, Error> {
        self.call("now", self.inner().now()).await
    }
    async fn create(&self, create: Create) -> Result<Created, Error> {
        let world = &self.run.world;
        let effect = async {
            let created = world.store.create(create.clone()).await?;
            if created.new {
                world.created(&create);
            }
            Ok(created)
        };
        self.call("create", effect).await
    }
    async fn repeated(
        &self,
        org: &OrgId,
        owner: &PrincipalId,
        request: &RequestId,
    ) -> Result<Option<Session>, Error> {
        self.call("repeated", self.inner().repeated(org, owner, request))
            .await
    }
    async fn get(&self, key: &SessionKey) -> Result<Option<Session>, Error> {
        let effect = async {
            let session = self.inner().get(key).await?;
            self.run.world.check_read(key, session.as_ref());
            Ok(session)
        };
        self.call("get", effect).await
    }
    async fn load(&self, key: &SessionKey) -> Result<Option<Loaded>, Error> {
        let effect = async {
            let loaded = self.inner().load(key).await?;
            let session = loaded.as_ref().map(|loaded| &loaded.session);
            self.run.world.check_read(key, session);
            Ok(loaded)
        };
        self.call("load", effect).await
    }
    async fn commit(&self, commit: Commit) -> Result<(), Error> {
        self.commit_as(commit, None).await
    }
    async fn commit_quiet(&self, commit: Commit, last_activity_at: Timestamp) -> Result<(), Error> {
        self.commit_as(commit, Some(last_activity_at)).await
    }
    async fn report(&self, key: &SessionKey, report: &Report) -> Result<Reported, Error> {
        self.call("report", self.inner().report(key, report)).await
    }
    async fn uses(&self, sessions: &[Session]) -> Result<Vec<Use>, Error> {
        self.call("uses", self.inner().uses(sessions)).await
    }
    async fn operations(&self, key: &SessionKey) -> Result<Vec<Operation>, Error> {
        self.call("operations", self.inner().operations(key)).await
    }
    async fn token_uses(&self, key: &SessionKey) -> Result<BTreeMap<TokenId, TokenUse>, Error> {
        self.call("token_uses", self.inner().token_uses(key)).await
    }
    async fn proxy_reported(&self, proxy: &ProxyId, sequence: u64) -> Result<Heard, Error> {
        self.call("proxy_reported", self.inner().proxy_reported(proxy, sequence))
            .await
    }
    async fn proxy_spoke(&self, proxy: &ProxyId, at: Timestamp) -> Result<(), Error> {
        self.call("proxy_spoke", self.inner().proxy_spoke(proxy, at))
            .await
    }
    async fn proxies(&self, silent_after: Duration, gone_after: Option<Duration>) -> Result<Proxies, Error> {
        self.call("proxies", self.inner().proxies(silent_after, gone_after))
            .await
    }
    async fn set_due(&self, key: &SessionKey, version: u64, due: Option<Timestamp>) -> Result<(), Error> {
        let (run, key) = (self.run.clone(), key.clone());
        let write = async move {
            let outcome = run.world.store.set_due(&key, version, due).await;
            if outcome.is_ok() {
                run.world.check_set_due(&key, version, due, &run);
            }
            outcome
        };
        if let Some(delay) = self.comes_late("set_due") {
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                drop(write.await);
            });
            return Err(Error::Unavailable("no answer in time".to_owned()));
        }
        self.call("set_due", write).await
    }
    async fn claim_due(&self, limit: usize, lease: Duration) -> Result<Vec<SessionKey>, Error> {
        self.call("claim_due", self.inner().claim_due(limit, lease)).await
    }
    async fn list(&self, query: &ListQuery) -> Result<Page, Error> {
        self.call("list", self.inner().list(query)).await
    }
    async fn live_on_cluster(
        &self,
        cluster: &ClusterName,
        after: Option<&SessionKey>,
        limit: usize,
    ) -> Result<Vec<SessionKey>, Error> {
        self.call(
            "live_on_cluster",
            self.inner().live_on_cluster(cluster, after, limit),
        )
        .await
    }
    async fn orgs_on_cluster(&self, cluster: &ClusterName) -> Result<BTreeSet<OrgId>, Error> {
        self.call("orgs_on_cluster", self.inner().orgs_on_cluster(cluster))
            .await
    }
    async fn counts(&self, org: &OrgId) -> Result<BTreeMap<Status, u64>, Error> {
        self.call("counts", self.inner().counts(org)).await
    }
    async fn oldest_due(&self) -> Result<Option<Timestamp>, Error> {
        self.call("oldest_due", self.inner().oldest_due()).await
    }
    async fn events(&self, key: &SessionKey) -> Result<Vec<EventRecord>, Error> {
        self.call("events", self.inner().events(key)).await
    }
    fn changes_with_progress(&self, progress: &FeedProgress) -> BoxStream<'static, Feed> {
        self.inner().changes_with_progress(progress)
    }
    async fn record_token(&self, key: &SessionKey, token: TokenRecord, limit: u32) -> Result<(), Error> {
        self.call("record_token", self.inner().record_token(key, token, limit))
            .await
    }
    async fn tokens(&self, key: &SessionKey) -> Result<Vec<TokenRecord>, Error> {
        self.call("tokens", self.inner().tokens(key)).await
    }
    async fn recent_tokens(&self, key: &SessionKey) -> Result<Vec<TokenRecord>, Error> {
        self.call("recent_tokens", self.inner().recent_tokens(key)).await
    }
    async fn lease(&self, name: &str, owner: &str, ttl: Duration) -> Result<Option<u64>, Error> {
        self.call("lease", self.inner().lease(name, owner, ttl)).await
    }
    async fn put_definition(&self, kind: Kind, name: &str, expected: u64, json: &str) -> Result<u64, Error> {
        self.call(
            "put_definition",
            self.inner().put_definition(kind, name, expected, json),
        )
        .await
    }
    async fn put_definition_within(
        &self,
        kind: Kind,
        name: &str,
        expected: u64,
        json: &str,
        quota: &DefinitionQuota,
    ) -> Result<u64, Error> {
        let put = self
            .inner()
            .put_definition_within(kind, name, expected, json, quota);
        self.call("put_definition_within", put).await
    }
    async fn definition(&self, kind: Kind, name: &str) -> Result<Option<Definition>, Error> {
        self.call("definition", self.inner().definition(kind, name)).await
    }
    async fn some_definitions(&self, wanted: &[(Kind, String)]) -> Result<Vec<Option<Definition>>, Error> {
        self.call("some_definitions", self.inner().some_definitions(wanted))
            .await
    }
    async fn definitions_of(
        &self,
        kind: Kind,
        org: Option<&OrgId>,
    ) -> Result<BTreeMap<String, Definition>, Error> {
        self.call("definitions_of", self.inner().definitions_of(kind, org))
            .await
    }
    async fn definition_names(&self, kind: Kind, org: Option<&OrgId>) -> Result<BTreeSet<String>, Error> {
        self.call("definition_names", self.inner().definition_names(kind, org))
            .await
    }
    async fn orgs_with_definitions(&self, kind: Kind) -> Result<BTreeSet<OrgId>, Error> {
        self.call("orgs_with_definitions", self.inner().orgs_with_definitions(kind))
            .await
    }
    async fn delete_definition(&self, kind: Kind, name: &str, expected: u64) -> Result<(), Error> {
        self.call(
            "delete_definition",
            self.inner().delete_definition(kind, name, expected),
        )
        .await
    }
    async fn epoch(&self) -> Result<u64, Error> {
        self.call("epoch", self.inner().epoch()).await
    }
    async fn ping(&self) -> Result<(), Error> {
        self.call("ping", self.inner().ping()).await
    }
}

#[async_trait]
impl SparkSessions for FaultyStore {
    async fn keep_settings(&self, key: &SessionKey, change: &SettingsChange) -> Result<bool, Error> {
        self.call("keep_settings", self.inner().keep_settings(key, change))
            .await
    }
    async fn use_spark_session(
        &self,
        key: &SessionKey,
        spark_session: &SparkSessionId,
        generation: u64,
    ) -> Result<Used, Error> {
        let used = self.inner().use_spark_session(key, spark_session, generation);
        self.call("use_spark_session", used).await
    }
    async fn spark_sessions(
        &self,
        key: &SessionKey,
    ) -> Result<BTreeMap<SparkSessionId, KeptSparkSession>, Error> {
        self.call("spark_sessions", self.inner().spark_sessions(key))
            .await
    }
    async fn forget_spark_sessions(&self, key: &SessionKey) -> Result<(), Error> {
        self.call("forget_spark_sessions", self.inner().forget_spark_sessions(key))
            .await
    }
}

#[async_trait]
impl SharedServers for FaultyStore {
    async fn take_place(
        &self,
        servers: &[String],
        holder: &SessionKey,
        org_alone: bool,
    ) -> Result<Option<String>, Error> {
        self.call("take_place", self.inner().take_place(servers, holder, org_alone))
            .await
    }
    async fn leave_place(&self, server: &str, holder: &SessionKey) -> Result<(), Error> {
        self.call("leave_place", self.inner().leave_place(server, holder))
            .await
    }
    async fn places_of(&self, holder: &SessionKey) -> Result<Vec<String>, Error> {
        self.call("places_of", self.inner().places_of(holder)).await
    }
    async fn bind(&self, bind: &Bind) -> Result<Bound, Error> {
        self.call("bind", self.inner().bind(bind)).await
    }
    async fn prepared(
        &self,
        holder: &SessionKey,
        spark: &SparkSession,
        ticket: &str,
        ready: bool,
    ) -> Result<bool, Error> {
        self.call("prepared", self.inner().prepared(holder, spark, ticket, ready))
            .await
    }
    async fn bindings(&self, holder: &SessionKey) -> Result<Vec<Binding>, Error> {
        self.call("bindings", self.inner().bindings(holder)).await
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
