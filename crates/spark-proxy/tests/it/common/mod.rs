//! Shared by the tests: a proxy between a fake session-manager and a fake Spark, tokens, and a raw
//! HTTP/2 client.

mod client;
mod own_process;
pub(crate) mod raw;
mod relay;

pub(crate) use client::{Client, Reply, Rpc, Running, send};
pub(crate) use own_process::OwnProcess;
pub(crate) use raw::{Raw, flags, kinds};
pub(crate) use relay::Relay;

use service_kit::admin::AdminConfig;
use service_kit::grpc::ClientConfig;
use service_kit::polled_document::DocumentConfig;
use service_kit::shutdown::Shutdown;
use session_core::time::ManualClock;
use session_core::{Clock, SessionId, Timestamp, TokenId};
use session_proto::internal::Route;
use session_token::{Claims, Jwks, Signer, generate_key_pem};
use spark_proxy::config::{
    BackendConfig, Config, DrainConfig, LimitConfig, ListenConfig, RouteConfig, TlsConfig, TlsMode,
    TokenConfig,
};
use spark_proxy::{Listeners, run_with_clock};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use test_support::fake_routes::{FakeRoutes, active};
use test_support::fake_spark::{FakeSpark, request};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

pub(crate) const ISSUER: &str = "https://tokens.berth.example.com";
pub(crate) const AUDIENCE: &str = "berth-spark";
pub(crate) const NOW: u64 = 1_790_000_000;
pub(crate) const ORG: &str = "acme";
const LONG: Duration = Duration::from_secs(20);

/// Waits for a condition with a time limit; panics at the limit.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future)
        .await
        .unwrap_or_else(|_| panic!("not within {LONG:?}: {what}"))
}

/// The proxy and all it talks to.
pub(crate) struct Rig {
    pub(crate) spark: FakeSpark,
    pub(crate) routes: FakeRoutes,
    pub(crate) signer: Signer,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) session: SessionId,
    pub(crate) shutdown: Shutdown,
    pub(crate) dir: TempDir,
    running: Option<JoinHandle<anyhow::Result<()>>>,
    serial: AtomicU64,
}

/// A configuration for these parts, which tests change.
pub(crate) fn config(routes: &FakeRoutes, jwks: PathBuf) -> Config {
    config_of(&routes.uri(), jwks)
}

/// The same with session-manager at any address.
pub(crate) fn config_of(manager: &str, jwks: PathBuf) -> Config {
    let loopback: SocketAddr = ([127, 0, 0, 1], 0).into();
    let mut manager = ClientConfig::new(manager);
    manager.connect_timeout = Duration::from_millis(500);
    Config {
        listen: ListenConfig {
            address: loopback,
            workers: 2,
            insecure: false,
            tls: TlsConfig {
                mode: TlsMode::Off,
                cert: None,
                key: None,
            },
            trusted_proxies: Vec::new(),
        },
        admin: AdminConfig { address: loopback },
        tokens: TokenConfig {
            keys: DocumentConfig::new(jwks.display().to_string()),
            ..TokenConfig::new(ISSUER, AUDIENCE)
        },
        manager,
        routes: RouteConfig::default(),
        backend: BackendConfig::default(),
        limits: LimitConfig::default(),
        drain: DrainConfig::default(),
        telemetry: service_kit::telemetry::TelemetryConfig::default(),
    }
}

pub(crate) fn write_jwks(path: &std::path::Path, signers: &[&Signer]) {
    std::fs::write(
        path,
        Jwks::new(signers.iter().map(|signer| signer.public_jwk())).to_json(),
    )
    .unwrap();
}

pub(crate) fn new_signer() -> Signer {
    Signer::from_pkcs8_pem(&generate_key_pem().unwrap()).unwrap()
}

impl Rig {
    /// One active session on the fake Spark.
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let spark = FakeSpark::start().await.unwrap();
        let routes = FakeRoutes::start().await.unwrap();
        let signer = new_signer();
        let dir = tempfile::tempdir().unwrap();
        let jwks = dir.path().join("jwks.json");
        write_jwks(&jwks, &[&signer]);
        let mut config = config(&routes, jwks);
        change(&mut config);
        let clock = Arc::new(ManualClock::at(Timestamp::from_millis(NOW * 1000)));
        let session = SessionId::generate(clock.now(), 7);
        routes.set(active(session.as_str(), ORG, spark.address()));

        let data = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let admin = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, admin_address) = (data.local_addr().unwrap(), admin.local_addr().unwrap());
        let shutdown = Shutdown::new();
        let listeners = Listeners {
            data: Some(data),
            admin: Some(admin),
        };
        let running = tokio::spawn(run_with_clock(
            config,
            listeners,
            shutdown.clone(),
            Arc::clone(&clock) as _,
        ));
        let rig = Self {
            spark,
            routes,
            signer,
            clock,
            address,
            admin: admin_address,
            session,
            shutdown,
            dir,
            running: Some(running),
            serial: AtomicU64::new(1),
        };
        within(
            "the proxy watches routes",
            rig.until_metric("spark_proxy_route_watch_connected", |n| n == 1.0),
        )
        .await;
        rig
    }

    pub(crate) fn now(&self) -> u64 {
        self.clock.now().as_secs()
    }

    /// Valid claims for the rig's session.
    pub(crate) fn claims(&self) -> Claims {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        Claims {
            iss: ISSUER.into(),
            aud: AUDIENCE.into(),
            sub: "sa|tester".parse().unwrap(),
            org: ORG.parse().unwrap(),
            sid: self.session.clone(),
            epoch: 1,
            iat: self.now(),
            nbf: self.now(),
            exp: self.now() + 3600,
            jti: TokenId::generate(self.clock.now(), serial),
        }
    }

    pub(crate) fn sign(&self, claims: &Claims) -> String {
        self.signer.sign(claims).unwrap()
    }

    pub(crate) fn token(&self) -> String {
        self.sign(&self.claims())
    }

    /// The first route of the rig's session.
    pub(crate) fn route(&self) -> Route {
        active(self.session.as_str(), ORG, self.spark.address())
    }

    /// Bytes by which the user identity lengthens a message.
    pub(crate) async fn growth(&self) -> usize {
        self.call(self.rpc().body(request(b""))).await.body.len() - request(b"").len()
    }

    pub(crate) async fn client(&self) -> Client {
        Client::plain(self.address).await.unwrap()
    }

    /// Makes one call with a new token, on a new connection.
    pub(crate) async fn call(&self, rpc: Rpc) -> Reply {
        self.client().await.call(rpc).await
    }

    /// A valid ExecutePlan of the rig's session.
    pub(crate) fn rpc(&self) -> Rpc {
        Rpc::execute(&self.token()).header("x-session-id", self.session.as_str())
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        http_get(self.admin, path).await
    }

    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.get("/metrics").await;
        read_metric(&text, name)
    }

    pub(crate) async fn until_metric(&self, name: &str, good: impl Fn(f64) -> bool) {
        while !good(self.metric(name).await) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Stops the proxy and waits for its end.
    pub(crate) async fn stopped(mut self) -> anyhow::Result<()> {
        self.shutdown.stop();
        within("the proxy ends", self.running.take().unwrap())
            .await
            .unwrap()
    }

    pub(crate) fn running(&mut self) -> JoinHandle<anyhow::Result<()>> {
        self.running.take().unwrap()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.shutdown.force();
    }
}

/// The sum of all series of a metric.
pub(crate) fn read_metric(text: &str, name: &str) -> f64 {
    text.lines()
        .filter(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with([' ', '{']))
        })
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
        .sum()
}

/// Status and body of a GET at the admin port; status 0 without a listener.
pub(crate) async fn http_get(address: SocketAddr, path: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let Ok(mut tcp) = tokio::net::TcpStream::connect(address).await else {
        return (0, String::new());
    };
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    tcp.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    let _ = tcp.read_to_string(&mut text).await;
    let status = text
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .unwrap_or(0);
    (
        status,
        text.split_once("\r\n\r\n")
            .map(|(_, body)| body.to_owned())
            .unwrap_or_default(),
    )
}
