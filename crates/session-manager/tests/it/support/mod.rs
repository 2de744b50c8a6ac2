//! session-manager on a memory store and simulated compute: the whole service over
//! real sockets, in which compute changes only on request.

pub(crate) mod idp;
pub(crate) mod recording;

use compute::SimCompute;
use recording::RecordingStore;
use service_kit::shutdown::Shutdown;
use session_core::{
    Clock, OrgId, ProviderKind, Route, SessionId, SessionKey, SystemClock, Timestamp, TokenId,
};
use session_manager::{Config, Listeners, Providers};
use session_proto::convert::timestamp;
use session_proto::internal::route_service_client::RouteServiceClient;
use session_proto::internal::token_ledger_client::TokenLedgerClient;
use session_proto::internal::{self as wire, RecordTokenRequest};
use session_proto::v1::audit_service_client::AuditServiceClient;
use session_proto::v1::catalog_service_client::CatalogServiceClient;
use session_proto::v1::cluster_service_client::ClusterServiceClient;
use session_proto::v1::org_service_client::OrgServiceClient;
use session_proto::v1::session_service_client::SessionServiceClient;
use session_proto::v1::{self, SessionStatus};
use session_store::SessionStore;
use session_store::memory::MemoryStore;
use session_token::{Claims, Jwks, Signer, generate_key_pem};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

const LIMIT: Duration = Duration::from_secs(20);

/// A running manager. Several may share one store and one compute.
pub(crate) struct Manager {
    pub(crate) shutdown: Shutdown,
    pub(crate) store: Arc<MemoryStore>,
    /// The same store with a record of this manager's calls.
    pub(crate) recording: RecordingStore,
    pub(crate) sim: SimCompute,
    pub(crate) signer: Arc<Signer>,
    pub(crate) keys: Keys,
    pub(crate) public: Channel,
    pub(crate) internal: Channel,
    pub(crate) public_uri: String,
    pub(crate) internal_uri: String,
    /// Health and metrics.
    pub(crate) admin: SocketAddr,
    pub(crate) dir: TempDir,
    ended: tokio::task::JoinHandle<anyhow::Result<()>>,
}

/// The accounts' keys by name.
#[derive(Clone)]
pub(crate) struct Keys(Vec<(&'static str, service_kit::caller::NewKey)>);

#[derive(Clone)]
pub(crate) struct WithKey(String);

impl Interceptor for WithKey {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request
            .metadata_mut()
            .insert("authorization", format!("Bearer {}", self.0).parse().unwrap());
        Ok(request)
    }
}

pub(crate) type Sessions = SessionServiceClient<InterceptedService<Channel, WithKey>>;
pub(crate) type Ledger = TokenLedgerClient<InterceptedService<Channel, WithKey>>;

/// All of `acme` but `eve`, who is a member of `umbrella`.
const ACCOUNTS: [&str; 6] = ["ada", "bob", "olga", "tom", "pat", "eve"];

/// One cluster `c`, accounts `ada` and `bob` (members) and `olga` (org admin) of `acme`.
const DEFINITIONS: &str = r#"
[[clusters]]
name = "c"
engine = "sail"
provisioning_deadline = "10s"
process = { program = "/opt/sail" }
[[clusters]]
name = "gone"
engine = "sail"
draining = true
process = { program = "/opt/sail" }
"#;

impl Manager {
    pub(crate) async fn start() -> Self {
        Self::start_with("").await
    }

    pub(crate) async fn start_with(more: &str) -> Self {
        Self::start_at(Arc::new(SystemClock), more).await
    }

    /// A manager whose store uses `clock`, and so all deadlines of sessions.
    pub(crate) async fn start_at(clock: Arc<dyn Clock>, more: &str) -> Self {
        let keys = Keys(
            ACCOUNTS
                .map(|name| (name, service_kit::caller::generate_key()))
                .into(),
        );
        let store = Arc::new(MemoryStore::new(clock));
        let signer = Arc::new(Signer::from_pkcs8_pem(&generate_key_pem().unwrap()).unwrap());
        Self::join(store, SimCompute::new(), signer, keys, more).await
    }

    /// A manager with the real provider of static servers.
    pub(crate) async fn start_on_servers(more: &str) -> Self {
        let keys = Keys(
            ACCOUNTS
                .map(|name| (name, service_kit::caller::generate_key()))
                .into(),
        );
        let store = Arc::new(MemoryStore::new(Arc::new(SystemClock)));
        let signer = Arc::new(Signer::from_pkcs8_pem(&generate_key_pem().unwrap()).unwrap());
        let places = session_manager::StorePlacements {
            store: Arc::clone(&store) as _,
        };
        let config = compute::StaticConfig {
            allow: Arc::new(compute::AllowList::new([], [], true).unwrap()),
            tls: None,
        };
        let servers = compute::StaticProvider::new(config, Arc::new(places));
        let (sim, more) = (SimCompute::new(), format!("{more}\n{DEFINITIONS}"));
        let computes = Providers::new(sim.registry().with(ProviderKind::Static, Arc::new(servers)));
        Self::join_on(store, sim, signer, keys, &more, computes).await
    }

    /// Another manager on the same state, whose configuration declares no clusters.
    pub(crate) async fn another_without_clusters(&self) -> Self {
        let (store, sim) = (Arc::clone(&self.store), self.sim.clone());
        Self::join_declaring(store, sim, Arc::clone(&self.signer), self.keys.clone(), "").await
    }

    /// Another manager on the same state, whose configuration has no
    /// `compute.process`.
    pub(crate) async fn another_without_process(&self) -> Self {
        let (store, sim) = (Arc::clone(&self.store), self.sim.clone());
        let computes = Providers::new(sim.servers_only());
        let (signer, keys) = (Arc::clone(&self.signer), self.keys.clone());
        Self::join_on(store, sim, signer, keys, DEFINITIONS, computes).await
    }

    /// A manager with providers of the test.
    pub(crate) async fn start_on(computes: Providers, sim: SimCompute, more: &str) -> Self {
        let keys = Keys(
            ACCOUNTS
                .map(|name| (name, service_kit::caller::generate_key()))
                .into(),
        );
        let store = Arc::new(MemoryStore::new(Arc::new(SystemClock)));
        let signer = Arc::new(Signer::from_pkcs8_pem(&generate_key_pem().unwrap()).unwrap());
        let more = format!("{more}\n{DEFINITIONS}");
        Self::join_on(store, sim, signer, keys, &more, computes).await
    }

    /// Another manager on the same state and compute.
    pub(crate) async fn another(&self) -> Self {
        self.another_with("").await
    }

    /// The same, started with more configuration.
    pub(crate) async fn another_with(&self, more: &str) -> Self {
        let (store, sim) = (Arc::clone(&self.store), self.sim.clone());
        Self::join(store, sim, Arc::clone(&self.signer), self.keys.clone(), more).await
    }

    async fn join(
        store: Arc<MemoryStore>,
        sim: SimCompute,
        signer: Arc<Signer>,
        keys: Keys,
        more: &str,
    ) -> Self {
        Self::join_declaring(store, sim, signer, keys, &format!("{more}\n{DEFINITIONS}")).await
    }

    async fn join_declaring(
        store: Arc<MemoryStore>,
        sim: SimCompute,
        signer: Arc<Signer>,
        keys: Keys,
        more: &str,
    ) -> Self {
        let computes = Providers::new(sim.registry());
        Self::join_on(store, sim, signer, keys, more, computes).await
    }

    async fn join_on(
        store: Arc<MemoryStore>,
        sim: SimCompute,
        signer: Arc<Signer>,
        keys: Keys,
        more: &str,
        computes: Providers,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let jwks = dir.path().join("jwks.json");
        std::fs::write(&jwks, Jwks::new([signer.public_jwk()]).to_json()).unwrap();
        // Tests call often; a test of the limits configures them.
        let limits = match more.contains("limits.") || more.contains("[limits]") {
            true => "",
            false => "limits.calls_per_second_per_principal = 0\n",
        };
        let mut text = format!(
            "listen.public.address = \"127.0.0.1:0\"\nlisten.internal.address = \"127.0.0.1:0\"\n\
             admin.address = \"127.0.0.1:0\"\nstore.url = \"memory://\"\n\
             tokens.keys.location = \"{}\"\ncompute.process.state_dir = \"{}\"\n\
             compute.process.trust_all_users = true\n{limits}{more}",
            jwks.display(),
            dir.path().display()
        );
        for (name, key) in &keys.0 {
            let roles = match *name {
                "olga" => r#"roles = ["member", "org-admin"]"#,
                "pat" => r#"roles = ["platform-admin"]"#,
                "ada" => "roles = [\"member\"]\nteams = [\"data\"]",
                "tom" => "roles = [\"member\"]\nteam_admin_of = [\"data\"]",
                _ => r#"roles = ["member"]"#,
            };
            let org = if *name == "eve" { "umbrella" } else { "acme" };
            text += &format!(
                "\n[[service_accounts]]\nname = \"{name}\"\norg = \"{org}\"\n{roles}\nkey_sha256 = \"{}\"\n",
                key.sha256
            );
        }
        let file = dir.path().join("config.toml");
        std::fs::write(&file, text).unwrap();
        let sources = service_kit::config::Sources {
            file: Some(file),
            ..Default::default()
        };
        let config: Config = service_kit::config::load(&sources).unwrap();

        let listeners = Listeners::bind(&config).await.unwrap();
        let channel = |address| {
            Endpoint::from_shared(format!("http://{address}"))
                .unwrap()
                .connect_lazy()
        };
        let (public, internal) = (
            channel(listeners.public.local_addr()),
            channel(listeners.internal.local_addr()),
        );
        let public_uri = format!("http://{}", listeners.public.local_addr());
        let internal_uri = format!("http://{}", listeners.internal.local_addr());
        let admin = listeners.admin.local_addr().unwrap();
        let shutdown = Shutdown::new();
        let recording = RecordingStore::new(Arc::clone(&store));
        let stored: Arc<dyn SessionStore> = Arc::new(recording.clone());
        let ended = tokio::spawn(session_manager::run_with(
            config,
            listeners,
            shutdown.clone(),
            stored,
            computes,
        ));
        Self {
            shutdown,
            store,
            recording,
            sim,
            signer,
            keys,
            public,
            internal,
            public_uri,
            internal_uri,
            admin,
            dir,
            ended,
        }
    }

    pub(crate) fn sessions(&self, who: &str) -> Sessions {
        SessionServiceClient::with_interceptor(self.public.clone(), self.with_key(who))
    }

    /// A client with any credential.
    pub(crate) fn sessions_with(&self, key: &str) -> Sessions {
        SessionServiceClient::with_interceptor(self.public.clone(), WithKey(key.to_owned()))
    }

    pub(crate) fn ledger(&self, who: &str) -> Ledger {
        TokenLedgerClient::with_interceptor(self.internal.clone(), self.with_key(who))
    }

    pub(crate) fn clusters(&self, who: &str) -> ClusterServiceClient<InterceptedService<Channel, WithKey>> {
        ClusterServiceClient::with_interceptor(self.public.clone(), self.with_key(who))
    }

    pub(crate) fn catalogs(&self, who: &str) -> CatalogServiceClient<InterceptedService<Channel, WithKey>> {
        CatalogServiceClient::with_interceptor(self.public.clone(), self.with_key(who))
    }

    pub(crate) fn orgs(&self, who: &str) -> OrgServiceClient<InterceptedService<Channel, WithKey>> {
        OrgServiceClient::with_interceptor(self.public.clone(), self.with_key(who))
    }

    pub(crate) fn audit(&self, who: &str) -> AuditServiceClient<InterceptedService<Channel, WithKey>> {
        AuditServiceClient::with_interceptor(self.public.clone(), self.with_key(who))
    }

    pub(crate) fn routes(&self) -> RouteServiceClient<Channel> {
        RouteServiceClient::new(self.internal.clone())
    }

    /// The account's credential.
    pub(crate) fn key(&self, who: &str) -> String {
        let mut keys = self.keys.0.iter();
        keys.find(|(name, _)| *name == who).unwrap().1.key.clone()
    }

    fn with_key(&self, who: &str) -> WithKey {
        WithKey(self.key(who))
    }

    /// Creates a session on `c` and returns its key.
    pub(crate) async fn create(&self, who: &str) -> SessionKey {
        self.create_as(who, on("c")).await
    }

    /// Creates a session on `c` in another organization than `acme`.
    pub(crate) async fn create_in(&self, org: &str, who: &str) -> SessionKey {
        let request = on("c");
        let created = self.sessions(who).create_session(request).await.unwrap();
        let id = created.into_inner().session.unwrap().id;
        SessionKey {
            org: org.parse().unwrap(),
            id: id.parse().unwrap(),
        }
    }

    /// Creates a session, waits until its compute is requested, and returns its key.
    pub(crate) async fn create_as(&self, who: &str, request: v1::CreateSessionRequest) -> SessionKey {
        let created = self
            .sessions(who)
            .create_session(request)
            .await
            .unwrap()
            .into_inner();
        let key = key(&created.session.unwrap().id);
        until("the compute to be requested", async || {
            self.sim.ensures(&key, 1) > 0
        })
        .await;
        key
    }

    /// Creates a session and makes its compute ready.
    pub(crate) async fn active(&self, who: &str) -> SessionKey {
        let key = self.create(who).await;
        until("the compute to be requested", async || {
            self.sim.made(&key, 1) == 1
        })
        .await;
        self.sim.ready(&key, 1, route("127.0.0.1:1"));
        self.until_status(&key, SessionStatus::Active).await;
        key
    }

    /// Resolves the route of a session by a token of ada's, without waking it.
    pub(crate) async fn route_of(&self, key: &SessionKey) -> wire::Route {
        let request = wire::ResolveRouteRequest {
            session_token: self.token(key),
            ..Default::default()
        };
        let response = self.routes().resolve_route(request).await.unwrap();
        response.into_inner().route.unwrap()
    }

    /// Wakes a session and waits up to `wait` seconds for its route.
    pub(crate) async fn resolve(&self, key: &SessionKey, wait: i64) -> Result<wire::Route, Status> {
        let request = wire::ResolveRouteRequest {
            session_token: self.token(key),
            wait: Some(prost_types::Duration {
                seconds: wait,
                nanos: 0,
            }),
            wake: true,
        };
        let response = self.routes().resolve_route(request).await?;
        Ok(response.into_inner().route.unwrap_or_default())
    }

    /// Binds a Spark session on the first generation.
    pub(crate) async fn bind(&self, key: &SessionKey, id: &str) -> Result<bool, Status> {
        self.bind_on(key, id, 1).await
    }

    /// Binds a Spark session on this generation.
    pub(crate) async fn bind_on(&self, key: &SessionKey, id: &str, generation: u64) -> Result<bool, Status> {
        let request = wire::BindSparkSessionRequest {
            session_token: self.token(key),
            spark_session_id: id.to_owned(),
            generation,
            ..Default::default()
        };
        let response = self.routes().bind_spark_session(request).await?;
        Ok(response.into_inner().bound)
    }

    pub(crate) async fn show(&self, key: &SessionKey) -> v1::Session {
        let request = v1::DescribeSessionRequest {
            session_id: key.id.to_string(),
            wait_ready: None,
        };
        self.sessions("olga")
            .describe_session(request)
            .await
            .unwrap()
            .into_inner()
            .session
            .unwrap()
    }

    pub(crate) async fn until_status(&self, key: &SessionKey, status: SessionStatus) -> v1::Session {
        until(&format!("{status:?}"), async || {
            self.show(key).await.status() == status
        })
        .await;
        self.show(key).await
    }

    pub(crate) async fn close(&self, who: &str, key: &SessionKey) -> v1::Session {
        let request = v1::CloseSessionRequest {
            session_id: key.id.to_string(),
        };
        self.sessions(who)
            .close_session(request)
            .await
            .unwrap()
            .into_inner()
            .session
            .unwrap()
    }

    /// A token of ada's for `key`, signed as the issuer would.
    pub(crate) fn token(&self, key: &SessionKey) -> String {
        let now = SystemClock.now();
        let claims = Claims {
            iss: "berth".to_owned(),
            aud: "berth-spark-connect".to_owned(),
            sub: "sa|ada".parse().unwrap(),
            org: key.org.clone(),
            sid: key.id.clone(),
            epoch: 1,
            iat: now.as_secs(),
            nbf: now.as_secs(),
            exp: now.as_secs() + 600,
            jti: TokenId::generate(now, 9),
        };
        self.signer.sign(&claims).unwrap()
    }

    pub(crate) async fn stop(self) {
        self.shutdown.stop();
        let ended = tokio::time::timeout(LIMIT, self.ended)
            .await
            .expect("it stops in time");
        ended.unwrap().unwrap();
    }

    /// Ends like a crash: nothing is completed.
    pub(crate) fn crash(self) {
        self.ended.abort();
        self.shutdown.force();
    }
}

/// A request for a session on this cluster.
pub(crate) fn on(cluster: &str) -> v1::CreateSessionRequest {
    v1::CreateSessionRequest {
        cluster: cluster.to_owned(),
        ..Default::default()
    }
}

/// A request of token-issuer for the `n`th token, of ten minutes.
pub(crate) fn a_token(session_id: &str, n: u64) -> RecordTokenRequest {
    let now = SystemClock.now();
    RecordTokenRequest {
        session_id: session_id.to_owned(),
        token_id: TokenId::generate(Timestamp::from_millis(1), n).to_string(),
        key_id: "k".repeat(43),
        issued_at: Some(timestamp(now)),
        expires_at: Some(timestamp(now.after(Duration::from_secs(600)))),
    }
}

pub(crate) fn key(id: &str) -> SessionKey {
    SessionKey {
        org: "acme".parse::<OrgId>().unwrap(),
        id: id.parse::<SessionId>().unwrap(),
    }
}

pub(crate) fn route(endpoint: &str) -> Route {
    Route {
        endpoint: endpoint.to_owned(),
        engine_version: "4.1".to_owned(),
        ..test_support::fixtures::route()
    }
}

pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
