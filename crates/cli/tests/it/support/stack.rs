//! session-manager, token-issuer and spark-proxy in this process, with stepped
//! compute and a fake Spark.

use super::within;
use compute::SimCompute;
use service_kit::caller::NewKey;
use service_kit::config::{Sources, load};
use service_kit::shutdown::Shutdown;
use session_core::{Clock as _, Engine, Route, SessionKey, SystemClock, TokenId};
use session_proto::v1;
use session_proto::v1::session_service_client::SessionServiceClient;
use session_proto::v1::token_service_client::TokenServiceClient;
use session_store::SessionStore;
use session_store::memory::MemoryStore;
use session_token::{Claims, Signer, generate_key_pem};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use test_support::fake_spark::FakeSpark;
use tokio::net::TcpListener;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

/// `ada` and `bob` are members of one organization, `eve` of one whose sessions
/// have one token, `kim` of one that is disabled later; `pat` administers the
/// platform.
const ACCOUNTS: [(&str, &str, &str); 5] = [
    ("ada", "acme", "[\"member\"]"),
    ("bob", "acme", "[\"member\"]"),
    ("eve", "umbrella", "[\"member\"]"),
    ("kim", "closed", "[\"member\"]"),
    ("pat", "acme", "[\"platform-admin\"]"),
];

const PLAINTEXT: &str = "listen.tls.mode = \"off\"\n";

/// All parts of Berth.
pub(crate) struct Stack {
    pub(crate) manager: SocketAddr,
    pub(crate) issuer: SocketAddr,
    pub(crate) proxy: SocketAddr,
    /// A token-issuer and a proxy whose session-manager is away.
    pub(crate) lonely_issuer: SocketAddr,
    pub(crate) lonely_proxy: SocketAddr,
    pub(crate) dir: TempDir,
    pub(crate) spark: FakeSpark,
    sim: SimCompute,
    signer: Signer,
    keys: Vec<(&'static str, NewKey)>,
    internal: SocketAddr,
    jwks: SocketAddr,
    all: Vec<Shutdown>,
}

impl Stack {
    /// Everything on a memory store.
    pub(crate) async fn start() -> Self {
        Self::start_on(Arc::new(MemoryStore::new(Arc::new(SystemClock)))).await
    }

    /// Everything on any store.
    pub(crate) async fn start_on(store: Arc<dyn SessionStore>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pem = generate_key_pem().unwrap();
        std::fs::write(dir.path().join("signing.pem"), &pem).unwrap();
        let keys: Vec<_> = ACCOUNTS
            .iter()
            .map(|(name, ..)| (*name, service_kit::caller::generate_key()))
            .collect();
        let jwks = free_address();
        let sim = SimCompute::new();
        let mut all = Vec::new();
        let (manager, internal) = start_manager(dir.path(), &keys, jwks, &sim, store, &mut all).await;
        let proxy_listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = proxy_listener.local_addr().unwrap();
        let issuer = start_issuer(dir.path(), internal, jwks, proxy, &mut all).await;
        let away = free_address();
        let lonely_issuer = start_issuer(dir.path(), away, free_address(), proxy, &mut all).await;
        let lonely = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let lonely_proxy = lonely.local_addr().unwrap();
        let mut stack = Self {
            manager,
            issuer,
            proxy,
            lonely_issuer,
            lonely_proxy,
            spark: FakeSpark::start().await.unwrap(),
            sim,
            signer: Signer::from_pkcs8_pem(&pem).unwrap(),
            keys,
            internal,
            jwks,
            all,
            dir,
        };
        stack.start_proxy(proxy_listener, internal, PLAINTEXT);
        stack.start_proxy(lonely, away, PLAINTEXT);
        stack.settle().await;
        stack
    }

    /// Another proxy of the same stack with TLS.
    pub(crate) async fn tls_proxy(&mut self, cert: &Path, key: &Path) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tls = format!(
            "listen.tls.mode = \"required\"\nlisten.tls.cert = \"{}\"\nlisten.tls.key = \"{}\"\n",
            cert.display(),
            key.display()
        );
        self.start_proxy(listener, self.internal, &tls);
        address
    }

    /// Another token-issuer of the same stack, whose connection strings name `proxy`.
    pub(crate) async fn issuer_for(&mut self, proxy: SocketAddr) -> SocketAddr {
        // Its key set is not read.
        let jwks = ([127, 0, 0, 1], 0).into();
        start_issuer(self.dir.path(), self.internal, jwks, proxy, &mut self.all).await
    }

    fn start_proxy(&mut self, data: TcpListener, manager: SocketAddr, more: &str) {
        let text = format!(
            "listen.address = \"127.0.0.1:0\"\n{more}admin.address = \"127.0.0.1:0\"\n\
             tokens.keys.location = \"http://{}/.well-known/jwks.json\"\ntokens.keys.refresh = \"150ms\"\n\
             tokens.keys.again_after = \"150ms\"\nmanager.uri = \"http://{manager}\"\n",
            self.jwks
        );
        let shutdown = Shutdown::new();
        let listeners = spark_proxy::Listeners {
            data: Some(data),
            admin: None,
        };
        let config = config_of(self.dir.path(), "proxy.toml", &text);
        tokio::spawn(spark_proxy::run(config, listeners, shutdown.clone()));
        self.all.push(shutdown);
    }

    /// Returns when all parts work together.
    async fn settle(&self) {
        within("a first session has a token", async {
            loop {
                let session = self.pending("ada").await;
                if self.try_issue("ada", &session).await.is_some() {
                    return self.close("ada", &session).await;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
    }

    /// The service-account key of `who`.
    pub(crate) fn key(&self, who: &str) -> &str {
        &self.keys.iter().find(|(name, _)| *name == who).unwrap().1.key
    }

    /// Variables with which the command is `who` at this stack.
    pub(crate) fn env<'a>(&'a self, who: &str, addresses: &'a [String; 2]) -> Vec<(&'a str, &'a str)> {
        vec![
            ("BERTH_MANAGER", addresses[0].as_str()),
            ("BERTH_ISSUER", addresses[1].as_str()),
            ("BERTH_KEY", self.key(who)),
        ]
    }

    /// Addresses of session-manager and token-issuer.
    pub(crate) fn addresses(&self) -> [String; 2] {
        [
            format!("http://{}", self.manager),
            format!("http://{}", self.issuer),
        ]
    }

    pub(crate) fn sessions(&self) -> SessionServiceClient<Channel> {
        SessionServiceClient::new(channel(self.manager))
    }

    pub(crate) fn tokens(&self) -> TokenServiceClient<Channel> {
        TokenServiceClient::new(channel(self.issuer))
    }

    pub(crate) fn asks<T>(&self, who: &str, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let bearer = format!("Bearer {}", self.key(who)).parse().unwrap();
        request.metadata_mut().insert("authorization", bearer);
        request
    }

    /// A session whose compute is not ready.
    pub(crate) async fn pending(&self, who: &str) -> String {
        let request = v1::CreateSessionRequest {
            cluster: "c".to_owned(),
            ..Default::default()
        };
        let created = self
            .sessions()
            .create_session(self.asks(who, request))
            .await
            .unwrap();
        created.into_inner().session.unwrap().id
    }

    /// Where a session's compute is in the simulation.
    pub(crate) fn session_key(&self, who: &str, id: &str) -> SessionKey {
        let (_, org, _) = ACCOUNTS.iter().find(|(name, ..)| *name == who).unwrap();
        SessionKey {
            org: org.parse().unwrap(),
            id: id.parse().unwrap(),
        }
    }

    /// An active session whose compute is at `backend`.
    pub(crate) async fn active_at(&self, who: &str, backend: SocketAddr) -> String {
        let id = self.pending(who).await;
        self.make_ready(who, &id, backend).await;
        id
    }

    /// An active session on the fake Spark.
    pub(crate) async fn active(&self, who: &str) -> String {
        self.active_at(who, self.spark.address()).await
    }

    /// Makes the compute of a session ready.
    pub(crate) async fn make_ready(&self, who: &str, id: &str, backend: SocketAddr) {
        let key = self.session_key(who, id);
        self.until_requested(&key).await;
        let route = Route {
            endpoint: backend.to_string(),
            tls_server_name: None,
            credential: None,
            engine: Engine::Sail,
            engine_version: "4.1".to_owned(),
            dedicated: true,
            host: None,
        };
        self.sim.ready(&key, 1, route);
        self.until(who, id, v1::SessionStatus::Active).await;
    }

    async fn until_requested(&self, key: &SessionKey) {
        within("compute is requested", async {
            while self.sim.made(key, 1) == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    /// A session that failed, with this cause.
    pub(crate) async fn failed(&self, who: &str, cause: &str) -> String {
        let id = self.pending(who).await;
        let key = self.session_key(who, &id);
        self.until_requested(&key).await;
        self.sim.fail(&key, 1, cause, true);
        self.until(who, &id, v1::SessionStatus::Failed).await;
        id
    }

    /// What a starting session waits for.
    pub(crate) async fn waits(&self, who: &str, id: &str, detail: &str) {
        let key = self.session_key(who, id);
        self.until_requested(&key).await;
        self.sim.waits(&key, 1, detail);
    }

    async fn until(&self, who: &str, id: &str, status: v1::SessionStatus) {
        within("the session has its status", async {
            loop {
                let request = v1::DescribeSessionRequest {
                    session_id: id.to_owned(),
                    wait_ready: None,
                };
                let shown = self
                    .sessions()
                    .describe_session(self.asks(who, request))
                    .await
                    .unwrap();
                if shown.into_inner().session.unwrap().status() == status {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    pub(crate) async fn close(&self, who: &str, id: &str) {
        let request = v1::CloseSessionRequest {
            session_id: id.to_owned(),
        };
        self.sessions()
            .close_session(self.asks(who, request))
            .await
            .unwrap();
    }

    async fn try_issue(&self, who: &str, session: &str) -> Option<v1::IssueSessionTokenResponse> {
        let request = v1::IssueSessionTokenRequest {
            session_id: session.to_owned(),
            ttl: None,
        };
        let issued = self.tokens().issue_session_token(self.asks(who, request)).await;
        issued.ok().map(tonic::Response::into_inner)
    }

    /// A new token.
    pub(crate) async fn issue(&self, who: &str, session: &str) -> v1::IssueSessionTokenResponse {
        self.try_issue(who, session).await.unwrap()
    }

    /// A connection string to this stack's proxy.
    pub(crate) fn string(&self, token: &str, session: &str) -> String {
        format!(
            "sc://localhost:{}/;token={token};x-session-id={session}",
            self.proxy.port()
        )
    }

    /// A token of this session that expired a while ago.
    pub(crate) fn expired_token(&self, session: &str) -> String {
        self.signer.sign(&claims(session, 7200)).unwrap()
    }

    /// A token of this session with a key that is not published.
    pub(crate) fn foreign_token(&self, session: &str) -> String {
        let signer = Signer::from_pkcs8_pem(&generate_key_pem().unwrap()).unwrap();
        signer.sign(&claims(session, 0)).unwrap()
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        self.all.iter().for_each(Shutdown::force);
    }
}

fn claims(session: &str, age: u64) -> Claims {
    let at = SystemClock.now().as_secs() - age;
    Claims {
        iss: "berth".to_owned(),
        aud: "berth-spark-connect".to_owned(),
        sub: "sa|ada".parse().unwrap(),
        org: "acme".parse().unwrap(),
        sid: session.parse().unwrap(),
        epoch: 1,
        iat: at,
        nbf: at,
        exp: at + 3600,
        jti: TokenId::generate(SystemClock.now(), 7),
    }
}

fn channel(address: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{address}"))
        .unwrap()
        .connect_lazy()
}

/// An address at which nothing listens.
pub(crate) fn free_address() -> SocketAddr {
    test_support::ports::free_port().unwrap()
}

fn config_of<T>(dir: &Path, name: &str, text: &str) -> T
where
    T: serde::de::DeserializeOwned + serde::Serialize + service_kit::config::Validate + Default,
{
    let file: PathBuf = dir.join(name);
    std::fs::write(&file, text).unwrap();
    load(&Sources {
        file: Some(file),
        ..Default::default()
    })
    .unwrap()
}

async fn start_manager(
    dir: &Path,
    keys: &[(&str, NewKey)],
    jwks: SocketAddr,
    sim: &SimCompute,
    store: Arc<dyn SessionStore>,
    all: &mut Vec<Shutdown>,
) -> (SocketAddr, SocketAddr) {
    let mut text = format!(
        "listen.public.address = \"127.0.0.1:0\"\nlisten.internal.address = \"127.0.0.1:0\"\n\
         admin.address = \"127.0.0.1:0\"\nstore.url = \"memory://\"\n\
         limits.calls_per_second_per_principal = 0\n\
         tokens.keys.location = \"http://{jwks}/.well-known/jwks.json\"\ntokens.keys.refresh = \"150ms\"\n\
         tokens.keys.again_after = \"150ms\"\ncompute.process.state_dir = \"{}\"\ncompute.process.trust_all_users = true\n\
         [[clusters]]\nname = \"c\"\nengine = \"sail\"\nclient_versions = [\"4.1\"]\nprocess = {{ program = \"/opt/sail\" }}\n\
         [[orgs]]\nname = \"acme\"\n[orgs.limits]\nlive_sessions_per_owner = 1000\nlive_sessions = 1000\n\
         creates_per_minute = 1000\n[[orgs]]\nname = \"umbrella\"\n[orgs.limits]\ntokens_per_session = 1\n\
         [[orgs]]\nname = \"closed\"\n",
        dir.display()
    );
    for ((name, key), (_, org, roles)) in keys.iter().zip(ACCOUNTS) {
        text += &format!(
            "[[service_accounts]]\nname = \"{name}\"\norg = \"{org}\"\nroles = {roles}\nkey_sha256 = \"{}\"\n",
            key.sha256
        );
    }
    let config: session_manager::Config = config_of(dir, "manager.toml", &text);
    let listeners = session_manager::Listeners::bind(&config).await.unwrap();
    let addresses = (listeners.public.local_addr(), listeners.internal.local_addr());
    let shutdown = Shutdown::new();
    let providers = session_manager::Providers::new(sim.registry());
    tokio::spawn(session_manager::run_with(
        config,
        listeners,
        shutdown.clone(),
        store,
        providers,
    ));
    all.push(shutdown);
    addresses
}

async fn start_issuer(
    dir: &Path,
    manager: SocketAddr,
    jwks: SocketAddr,
    proxy: SocketAddr,
    all: &mut Vec<Shutdown>,
) -> SocketAddr {
    let mut config = token_issuer::Config::default();
    config.keys.signing = dir.join("signing.pem");
    config.manager.uri = format!("http://{manager}");
    config.public.endpoint = format!("localhost:{}", proxy.port());
    config.public.tls = false;
    config.listen.grpc.address = ([127, 0, 0, 1], 0).into();
    config.listen.jwks.address = jwks;
    config.admin.address = ([127, 0, 0, 1], 0).into();
    let listeners = token_issuer::Listeners::bind(&config).await.unwrap();
    let address = listeners.grpc.local_addr();
    let shutdown = Shutdown::new();
    tokio::spawn(token_issuer::run(config, listeners, shutdown.clone()));
    all.push(shutdown);
    address
}
