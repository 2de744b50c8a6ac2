//! session-manager, two token-issuers and two proxies in one process, with a memory store, stepped
//! compute and a fake Spark.

use super::common::{self, Client, Reply, Rpc, within};
use compute::SimCompute;
use service_kit::shutdown::Shutdown;
use session_core::{Engine, Route, SessionKey, SystemClock};
use session_proto::v1;
use session_proto::v1::session_service_client::SessionServiceClient;
use session_proto::v1::token_service_client::TokenServiceClient;
use session_store::SessionStore;
use session_store::memory::MemoryStore;
use session_token::generate_key_pem;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use test_support::fake_spark::FakeSpark;
use tokio::net::TcpListener;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

/// Interval between two reads of the key set by verifiers.
pub(crate) const REFRESH: Duration = Duration::from_millis(150);
/// The schedule, shortened.
pub(crate) const BEFORE_SIGNING: Duration = Duration::from_millis(600);
pub(crate) const AFTER_SIGNING: Duration = Duration::from_secs(5);

/// All parts of Berth.
pub(crate) struct Stack {
    pub(crate) store: Arc<dyn SessionStore>,
    pub(crate) internal: SocketAddr,
    pub(crate) sim: SimCompute,
    pub(crate) spark: FakeSpark,
    pub(crate) dir: TempDir,
    pub(crate) proxies: Vec<SocketAddr>,
    /// The proxies' admin ports.
    pub(crate) admins: Vec<SocketAddr>,
    pub(crate) jwks: [SocketAddr; 2],
    pub(crate) key: String,
    sessions: SessionServiceClient<Channel>,
    tokens: Vec<TokenServiceClient<Channel>>,
    turn: AtomicUsize,
    all: Vec<Shutdown>,
}

impl Stack {
    /// Everything, with one key and two proxies.
    pub(crate) async fn start() -> Self {
        Self::start_on(Arc::new(MemoryStore::new(Arc::new(SystemClock))), |_| {}).await
    }

    /// The same on any store, with a changed configuration of the proxies.
    pub(crate) async fn start_on(
        store: Arc<dyn SessionStore>,
        change: impl Fn(&mut spark_proxy::Config),
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let keys = dir.path().join("keys");
        std::fs::create_dir(&keys).unwrap();
        std::fs::write(keys.join("000.pem"), generate_key_pem().unwrap()).unwrap();
        let sim = SimCompute::new();
        let spark = FakeSpark::start().await.unwrap();
        let account = service_kit::caller::generate_key();

        // Ports that must be chosen before their services start.
        let jwks = [0, 1].map(|_| test_support::ports::free_port().unwrap());
        let sets = jwks.map(|jwks| format!("http://{jwks}/.well-known/jwks.json"));
        let text = format!(
            "listen.public.address = \"127.0.0.1:0\"\nlisten.internal.address = \"127.0.0.1:0\"\n\
             admin.address = \"127.0.0.1:0\"\nstore.url = \"memory://\"\n\
             limits.calls_per_second_per_principal = 0\n\
             tokens.keys.location = \"{}\"\ntokens.keys.refresh = \"150ms\"\n\
             tokens.keys.again_after = \"150ms\"\ncompute.process.state_dir = \"{}\"\n\
             [[clusters]]\nname = \"c\"\nengine = \"sail\"\nprocess = {{ program = \"/opt/sail\" }}\n\
             [[orgs]]\nname = \"acme\"\n[orgs.limits]\ntokens_per_session = 1000\n\
             live_sessions_per_owner = 1000\nlive_sessions = 1000\ncreates_per_minute = 1000\n\
             [[service_accounts]]\nname = \"ada\"\norg = \"acme\"\nroles = [\"member\"]\nkey_sha256 = \"{}\"\n",
            sets[0],
            dir.path().display(),
            account.sha256
        );
        let file = dir.path().join("manager.toml");
        std::fs::write(&file, text).unwrap();
        let sources = service_kit::config::Sources {
            file: Some(file),
            ..Default::default()
        };
        let config: session_manager::Config = service_kit::config::load(&sources).unwrap();
        let listeners = session_manager::Listeners::bind(&config).await.unwrap();
        let (public, internal) = (listeners.public.local_addr(), listeners.internal.local_addr());
        let manager = Shutdown::new();
        let computes = session_manager::Providers::new(sim.registry());
        tokio::spawn(session_manager::run_with(
            config,
            listeners,
            manager.clone(),
            Arc::clone(&store),
            computes,
        ));

        // Two issuers with one key folder, each with its own key set.
        let mut all = vec![manager];
        let mut issuers = Vec::new();
        for jwks in jwks {
            let mut config = token_issuer::Config::default();
            config.keys.dir = Some(keys.clone());
            config.keys.publish_before_signing = BEFORE_SIGNING;
            config.keys.publish_after_signing = AFTER_SIGNING;
            config.manager.uri = format!("http://{internal}");
            config.listen.grpc.address = ([127, 0, 0, 1], 0).into();
            config.listen.jwks.address = jwks;
            config.admin.address = ([127, 0, 0, 1], 0).into();
            let listeners = token_issuer::Listeners::bind(&config).await.unwrap();
            issuers.push(listeners.grpc.local_addr());
            let issuer = Shutdown::new();
            tokio::spawn(token_issuer::run(config, listeners, issuer.clone()));
            all.push(issuer);
        }
        let (mut proxies, mut admins) = (Vec::new(), Vec::new());
        // Each proxy reads the key set of a different issuer.
        for set in &sets {
            let mut config = common::config_of(&format!("http://{internal}"), PathBuf::from(set));
            "berth".clone_into(&mut config.tokens.issuer);
            "berth-spark-connect".clone_into(&mut config.tokens.audience);
            config.tokens.keys.refresh = Some(REFRESH);
            config.tokens.keys.again_after = REFRESH;
            change(&mut config);
            let data = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let admin = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let admin_address = admin.local_addr().unwrap();
            proxies.push(data.local_addr().unwrap());
            admins.push(admin_address);
            let shutdown = Shutdown::new();
            let listeners = spark_proxy::Listeners {
                data: Some(data),
                admin: Some(admin),
            };
            tokio::spawn(spark_proxy::run(config, listeners, shutdown.clone()));
            all.push(shutdown);
            within("the proxy watches routes", async {
                loop {
                    let (_, text) = common::http_get(admin_address, "/metrics").await;
                    if common::read_metric(&text, "spark_proxy_route_watch_connected") > 0.0 {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            })
            .await;
        }
        let channel = |address: SocketAddr| {
            Endpoint::from_shared(format!("http://{address}"))
                .unwrap()
                .connect_lazy()
        };
        let stack = Self {
            store,
            internal,
            sim,
            spark,
            dir,
            proxies,
            admins,
            jwks,
            key: account.key,
            sessions: SessionServiceClient::new(channel(public)),
            tokens: issuers
                .into_iter()
                .map(|address| TokenServiceClient::new(channel(address)))
                .collect(),
            turn: AtomicUsize::new(0),
            all,
        };
        stack.settle().await;
        stack
    }

    /// A channel to session-manager's internal port.
    pub(crate) fn internal_channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.internal))
            .unwrap()
            .connect_lazy()
    }

    /// Returns when all parts are connected.
    async fn settle(&self) {
        let session = self.session().await;
        let issued = self.first_token(&session).await;
        for proxy in 0..self.proxies.len() {
            within("a first call", async {
                while self.call(proxy, &issued.token).await.code() != tonic::Code::Ok {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            })
            .await;
        }
        self.close(&session).await;
    }

    fn asks<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let bearer = format!("Bearer {}", self.key).parse().unwrap();
        request.metadata_mut().insert("authorization", bearer);
        request
    }

    /// A session whose compute never becomes ready.
    pub(crate) async fn pending_session(&self) -> String {
        let request = self.asks(v1::CreateSessionRequest {
            cluster: "c".to_owned(),
            ..Default::default()
        });
        let created = self.sessions.clone().create_session(request).await.unwrap();
        created.into_inner().session.unwrap().id
    }

    /// A session whose compute is the fake Spark.
    pub(crate) async fn session(&self) -> String {
        let id = self.pending_session().await;
        let key = SessionKey {
            org: "acme".parse().unwrap(),
            id: id.parse().unwrap(),
        };
        within("compute is requested", async {
            while self.sim.made(&key, 1) == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        let route = Route {
            endpoint: self.spark.address().to_string(),
            tls_server_name: None,
            credential: None,
            engine: Engine::Sail,
            engine_version: "4.1".to_owned(),
            dedicated: true,
            host: None,
        };
        self.sim.ready(&key, 1, route);
        within("the session is active", async {
            loop {
                let request = self.asks(v1::DescribeSessionRequest {
                    session_id: id.clone(),
                    wait_ready: None,
                });
                let shown = self.sessions.clone().describe_session(request).await.unwrap();
                if shown.into_inner().session.unwrap().status() == v1::SessionStatus::Active {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        id
    }

    /// The issuers in turn.
    fn issuer(&self) -> TokenServiceClient<Channel> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        self.tokens[turn % self.tokens.len()].clone()
    }

    /// A new token.
    pub(crate) async fn issue(&self, session: &str) -> Result<v1::IssueSessionTokenResponse, tonic::Status> {
        let request = self.asks(v1::IssueSessionTokenRequest {
            session_id: session.to_owned(),
            ttl: None,
        });
        let issued = self.issuer().issue_session_token(request).await?;
        Ok(issued.into_inner())
    }

    /// A new token, as soon as one can be issued.
    pub(crate) async fn first_token(&self, session: &str) -> v1::IssueSessionTokenResponse {
        within("a token is issued", async {
            loop {
                if let Ok(issued) = self.issue(session).await {
                    return issued;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
    }

    pub(crate) async fn revoke(&self, session: &str, token: &str) {
        let request = self.asks(v1::RevokeSessionTokenRequest {
            session_id: session.to_owned(),
            token_id: token.to_owned(),
        });
        self.issuer().revoke_session_token(request).await.unwrap();
    }

    pub(crate) async fn revoke_all(&self, session: &str) {
        let request = self.asks(v1::RevokeAllSessionTokensRequest {
            session_id: session.to_owned(),
        });
        self.issuer().revoke_all_session_tokens(request).await.unwrap();
    }

    pub(crate) async fn listed(&self, session: &str) -> Vec<v1::SessionToken> {
        let request = self.asks(v1::ListSessionTokensRequest {
            session_id: session.to_owned(),
        });
        let listed = self.issuer().list_session_tokens(request).await.unwrap();
        listed.into_inner().tokens
    }

    pub(crate) async fn close(&self, session: &str) {
        let request = self.asks(v1::CloseSessionRequest {
            session_id: session.to_owned(),
        });
        self.sessions.clone().close_session(request).await.unwrap();
    }

    /// Lists sessions with any credential.
    pub(crate) async fn list_with(&self, bearer: &str) -> Result<(), tonic::Status> {
        let mut request = Request::new(v1::ListSessionsRequest::default());
        let bearer = format!("Bearer {bearer}").parse().unwrap();
        request.metadata_mut().insert("authorization", bearer);
        self.sessions.clone().list_sessions(request).await.map(drop)
    }

    pub(crate) async fn client(&self, proxy: usize) -> Client {
        Client::plain(self.proxies[proxy]).await.unwrap()
    }

    /// One call through a proxy.
    pub(crate) async fn call(&self, proxy: usize, token: &str) -> Reply {
        self.client(proxy).await.call(Rpc::execute(token)).await
    }

    /// Ids of the keys that both issuers publish, or at least one of them.
    pub(crate) async fn published(&self, any: bool) -> BTreeSet<String> {
        let mut sets = Vec::new();
        for jwks in self.jwks {
            let (_, text) = common::http_get(jwks, "/jwks.json").await;
            let set: serde_json::Value = serde_json::from_str(&text).unwrap();
            let keys = set["keys"].as_array().unwrap();
            let kids = keys.iter().map(|key| key["kid"].as_str().unwrap().to_owned());
            sets.push(kids.collect::<BTreeSet<_>>());
        }
        if any {
            &sets[0] | &sets[1]
        } else {
            &sets[0] & &sets[1]
        }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        self.all.iter().for_each(Shutdown::force);
    }
}
