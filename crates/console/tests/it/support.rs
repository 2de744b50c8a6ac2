//! session-manager, token-issuer and console in one process, with a memory
//! store and stepped compute, and an HTTP client.

use bytes::Bytes;
use compute::SimCompute;
use console::{Config, Listeners};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use service_kit::caller::{NewKey, generate_key};
use service_kit::config::{Sources, load};
use service_kit::shutdown::Shutdown;
use session_core::{Engine, Route, SessionKey, SystemClock};
use session_proto::v1::audit_service_client::AuditServiceClient;
use session_proto::v1::catalog_service_client::CatalogServiceClient;
use session_proto::v1::cluster_service_client::ClusterServiceClient;
use session_proto::v1::org_service_client::OrgServiceClient;
use session_proto::v1::session_service_client::SessionServiceClient;
use session_proto::v1::token_service_client::TokenServiceClient;
use session_store::memory::MemoryStore;
use session_token::generate_key_pem;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};

/// Longest wait for anything.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// Name, organization and roles of the accounts.
pub(crate) const ACCOUNTS: [(&str, &str, &str); 5] = [
    ("ada", "acme", r#"["member"]"#),
    ("bob", "acme", r#"["member"]"#),
    ("olga", "acme", r#"["member", "org-admin"]"#),
    ("pat", "acme", r#"["member", "platform-admin"]"#),
    ("eve", "umbrella", r#"["member"]"#),
];

/// A running Berth without proxies.
pub(crate) struct Stack {
    pub(crate) sim: SimCompute,
    pub(crate) console: SocketAddr,
    pub(crate) admin: SocketAddr,
    manager: Channel,
    issuer: Channel,
    keys: BTreeMap<String, NewKey>,
    http: Client<HttpConnector, Full<Bytes>>,
    running: Vec<Shutdown>,
    /// Ends of console and of session-manager.
    ends: [Mutex<Option<JoinHandle<anyhow::Result<()>>>>; 2],
    _dir: TempDir,
}

impl Drop for Stack {
    fn drop(&mut self) {
        self.running.iter().for_each(Shutdown::force);
    }
}

#[derive(Clone)]
pub(crate) struct WithKey(String);

impl Interceptor for WithKey {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        let bearer = format!("Bearer {}", self.0).parse().unwrap();
        request.metadata_mut().insert("authorization", bearer);
        Ok(request)
    }
}

pub(crate) type Service = InterceptedService<Channel, WithKey>;

/// A response.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) json: Value,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn reason(&self) -> &str {
        self.json["reason"].as_str().unwrap_or_default()
    }

    /// The field that a problem names.
    pub(crate) fn field(&self) -> &str {
        self.json["metadata"]["field"].as_str().unwrap_or_default()
    }

    pub(crate) fn text(&self, field: &str) -> String {
        let text = self.json[field].as_str();
        text.unwrap_or_else(|| panic!("no {field} in {:?}", self.json))
            .to_owned()
    }
}

fn read<T>(dir: &Path, name: &str, text: &str) -> T
where
    T: serde::de::DeserializeOwned + serde::Serialize + service_kit::config::Validate + Default,
{
    let file = dir.join(name);
    std::fs::write(&file, text).unwrap();
    let sources = Sources {
        file: Some(file),
        ..Sources::default()
    };
    load(&sources).unwrap()
}

impl Stack {
    pub(crate) async fn start() -> Self {
        Self::start_with("").await
    }

    /// With more configuration of the console.
    pub(crate) async fn start_with(more: &str) -> Self {
        Self::start_with_crowd(0, more).await
    }

    /// The same with `crowd` more accounts: `w0`, `w1` … are members of the
    /// organizations `crowd0` to `crowd2`.
    pub(crate) async fn start_with_crowd(crowd: usize, more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let signing = dir.path().join("signing.pem");
        std::fs::write(&signing, generate_key_pem().unwrap()).unwrap();
        let known = ACCOUNTS
            .iter()
            .map(|(name, org, roles)| ((*name).to_owned(), (*org).to_owned(), *roles));
        let more_accounts = (0..crowd).map(|number| {
            (
                format!("w{number}"),
                format!("crowd{}", number % 3),
                r#"["member"]"#,
            )
        });
        let accounts: Vec<Account> = known
            .chain(more_accounts)
            .map(|(name, org, roles)| Account {
                name,
                org,
                roles,
                key: generate_key(),
            })
            .collect();
        let sim = SimCompute::new();
        let (manager, manager_end, public, internal) = start_manager(dir.path(), &accounts, &sim).await;
        let text = format!(
            "listen.grpc.address = \"127.0.0.1:0\"\nlisten.jwks.address = \"127.0.0.1:0\"\n\
             admin.address = \"127.0.0.1:0\"\nkeys.signing = \"{}\"\n\
             manager.uri = \"http://{internal}\"\npublic.endpoint = \"localhost:8085\"\n",
            signing.display()
        );
        let config = read::<token_issuer::Config>(dir.path(), "issuer.toml", &text);
        let listeners = token_issuer::Listeners::bind(&config).await.unwrap();
        let grpc = listeners.grpc.local_addr();
        let issuer = Shutdown::new();
        tokio::spawn(token_issuer::run(config, listeners, issuer.clone()));

        let text = format!(
            "listen.address = \"127.0.0.1:0\"\nadmin.address = \"127.0.0.1:0\"\n\
             manager.uri = \"http://{public}\"\nissuer.uri = \"http://{grpc}\"\n{more}"
        );
        let config = read::<Config>(dir.path(), "console.toml", &text);
        let listeners = Listeners::bind(&config).await.unwrap();
        let (console, admin) = (listeners.web.local_addr(), listeners.admin.local_addr().unwrap());
        let shutdown = Shutdown::new();
        let console_end = tokio::spawn(console::run(config, listeners, shutdown.clone()));
        let channel = |address: SocketAddr| {
            let endpoint = Endpoint::from_shared(format!("http://{address}"));
            endpoint.unwrap().connect_lazy()
        };
        Self {
            sim,
            console,
            admin,
            manager: channel(public),
            issuer: channel(grpc),
            keys: accounts
                .into_iter()
                .map(|account| (account.name, account.key))
                .collect(),
            http: Client::builder(TokioExecutor::new()).build_http(),
            running: vec![shutdown, manager, issuer],
            ends: [console_end, manager_end].map(|end| Mutex::new(Some(end))),
            _dir: dir,
        }
    }

    pub(crate) fn key<'a>(&'a self, who: &'a str) -> &'a str {
        self.keys.get(who).map_or(who, |key| &key.key)
    }

    /// A request with JSON headers and body; `who` is an account, another text
    /// is a credential, and an empty one is none.
    pub(crate) async fn send(
        &self,
        who: &str,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Value>,
    ) -> Answer {
        match body {
            Some(body) => {
                let mut headers = headers.to_vec();
                headers.push(("content-type", "application/json"));
                self.send_raw(who, method, path, &headers, &body.to_string())
                    .await
            }
            None => self.send_raw(who, method, path, headers, "").await,
        }
    }

    /// A request with any body.
    pub(crate) async fn send_raw(
        &self,
        who: &str,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        let uri = format!("http://{}{path}", self.console);
        let mut request = Request::builder().method(method).uri(uri);
        if !who.is_empty() {
            request = request.header("authorization", format!("Bearer {}", self.key(who)));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::from(body.to_owned()))).unwrap();
        let response = tokio::time::timeout(LIMIT, self.http.request(request))
            .await
            .unwrap()
            .unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let json = match bytes.is_empty() {
            true => Value::Null,
            false => serde_json::from_slice(&bytes)
                .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned())),
        };
        Answer {
            status: parts.status,
            headers: parts.headers,
            json,
        }
    }

    /// A request of the API without more headers.
    pub(crate) async fn ask(&self, who: &str, method: Method, path: &str, body: Option<Value>) -> Answer {
        self.send(who, method.as_str(), &format!("/api/v1{path}"), &[], body)
            .await
    }

    pub(crate) async fn get(&self, who: &str, path: &str) -> Answer {
        self.ask(who, Method::GET, path, None).await
    }

    pub(crate) async fn post(&self, who: &str, path: &str, body: Value) -> Answer {
        self.ask(who, Method::POST, path, Some(body)).await
    }

    /// A new session on cluster `c`.
    pub(crate) async fn session(&self, who: &str) -> String {
        let created = self
            .post(who, "/sessions", serde_json::json!({"cluster": "c"}))
            .await;
        assert_eq!(created.status, StatusCode::CREATED, "{created:?}");
        created.text("id")
    }

    /// Makes the compute of a session ready.
    pub(crate) async fn ready(&self, org: &str, id: &str) {
        let key = SessionKey {
            org: org.parse().unwrap(),
            id: id.parse().unwrap(),
        };
        eventually("compute is requested", async || self.sim.made(&key, 1) > 0).await;
        let route = Route {
            endpoint: "127.0.0.1:1".to_owned(),
            tls_server_name: None,
            credential: None,
            engine: Engine::Sail,
            engine_version: "4.1".to_owned(),
            dedicated: true,
            host: None,
        };
        self.sim.ready(&key, 1, route);
    }

    /// Stops console gracefully and waits for its end.
    pub(crate) async fn stop_console(&self) {
        self.running[0].stop();
        self.end(0).await;
    }

    /// Ends session-manager immediately.
    pub(crate) async fn stop_manager(&self) {
        self.running[1].force();
        self.end(1).await;
    }

    async fn end(&self, place: usize) {
        let end = self.ends[place].lock().unwrap().take().unwrap();
        tokio::time::timeout(LIMIT, end).await.unwrap().unwrap().unwrap();
    }

    /// Returns when token-issuer can issue tokens: its first report of signing
    /// keys has arrived.
    pub(crate) async fn issuer_ready(&self, who: &str) {
        let session = self.session(who).await;
        let path = format!("/sessions/{session}/tokens");
        eventually("a token is issued", async || {
            let issued = self.post(who, &path, serde_json::json!({})).await;
            issued.status == StatusCode::CREATED
        })
        .await;
    }

    fn with(&self, channel: &Channel, who: &str) -> Service {
        InterceptedService::new(channel.clone(), WithKey(self.key(who).to_owned()))
    }

    pub(crate) fn sessions(&self, who: &str) -> SessionServiceClient<Service> {
        SessionServiceClient::new(self.with(&self.manager, who))
    }

    pub(crate) fn clusters(&self, who: &str) -> ClusterServiceClient<Service> {
        ClusterServiceClient::new(self.with(&self.manager, who))
    }

    pub(crate) fn catalogs(&self, who: &str) -> CatalogServiceClient<Service> {
        CatalogServiceClient::new(self.with(&self.manager, who))
    }

    pub(crate) fn orgs(&self, who: &str) -> OrgServiceClient<Service> {
        OrgServiceClient::new(self.with(&self.manager, who))
    }

    pub(crate) fn audit(&self, who: &str) -> AuditServiceClient<Service> {
        AuditServiceClient::new(self.with(&self.manager, who))
    }

    pub(crate) fn tokens(&self, who: &str) -> TokenServiceClient<Service> {
        TokenServiceClient::new(self.with(&self.issuer, who))
    }
}

/// A service account.
struct Account {
    name: String,
    org: String,
    roles: &'static str,
    key: NewKey,
}

async fn start_manager(
    dir: &Path,
    accounts: &[Account],
    sim: &SimCompute,
) -> (Shutdown, JoinHandle<anyhow::Result<()>>, SocketAddr, SocketAddr) {
    let jwks = dir.join("jwks.json");
    std::fs::write(&jwks, "{\"keys\": []}").unwrap();
    let mut text = format!(
        "listen.public.address = \"127.0.0.1:0\"\nlisten.internal.address = \"127.0.0.1:0\"\n\
         admin.address = \"127.0.0.1:0\"\nstore.url = \"memory://\"\n\
         limits.calls_per_second_per_principal = 0\nlimits.calls_per_second_per_address = 0\n\
         limits.failures_per_minute_per_address = 0\n\
         limits.trusted_proxies = [\"127.0.0.0/8\"]\n\
         tokens.keys.location = \"{}\"\ncompute.process.state_dir = \"{}\"\n\
         compute.process.trust_all_users = true\n\
         [[clusters]]\nname = \"c\"\nengine = \"sail\"\nprocess = {{ program = \"/opt/sail\" }}\n\
         [[orgs]]\nname = \"acme\"\n[orgs.limits]\nlive_sessions_per_owner = 1000\n\
         live_sessions = 10000\ncreates_per_minute = 10000\ntokens_per_session = 1000\n",
        jwks.display(),
        dir.display()
    );
    for Account {
        name,
        org,
        roles,
        key,
    } in accounts
    {
        text += &format!(
            "[[service_accounts]]\nname = \"{name}\"\norg = \"{org}\"\nroles = {roles}\nkey_sha256 = \"{}\"\n",
            key.sha256
        );
    }
    let config = read::<session_manager::Config>(dir, "manager.toml", &text);
    let listeners = session_manager::Listeners::bind(&config).await.unwrap();
    let (public, internal) = (listeners.public.local_addr(), listeners.internal.local_addr());
    let shutdown = Shutdown::new();
    let store = Arc::new(MemoryStore::new(Arc::new(SystemClock)));
    let providers = session_manager::Providers::new(sim.registry());
    let end = tokio::spawn(session_manager::run_with(
        config,
        listeners,
        shutdown.clone(),
        store,
        providers,
    ));
    (shutdown, end, public, internal)
}

/// Waits for a condition.
pub(crate) async fn eventually(what: &str, condition: impl AsyncFn() -> bool) {
    let met = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = tokio::time::timeout(LIMIT, met).await;
    waited.unwrap_or_else(|_| panic!("not within {LIMIT:?}: {what}"));
}
