//! The proxy as a process of its own, so that only its memory counts.

use super::{AUDIENCE, ISSUER, ORG, Rpc, config, http_get, new_signer, within, write_jwks};
use session_core::{SessionId, Timestamp, TokenId};
use session_proto::internal::Route;
use session_token::{Claims, Signer};
use spark_proxy::Config;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use test_support::fake_routes::{FakeRoutes, active};
use test_support::fake_spark::FakeSpark;

/// The proxy and its fake peers; ended on drop.
pub(crate) struct OwnProcess {
    pub(crate) spark: FakeSpark,
    pub(crate) routes: FakeRoutes,
    pub(crate) address: SocketAddr,
    #[allow(
        dead_code,
        clippy::allow_attributes,
        reason = "read by the other test program"
    )]
    pub(crate) admin: SocketAddr,
    signer: Signer,
    session: SessionId,
    _dir: TempDir,
    child: Child,
}

impl Drop for OwnProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl OwnProcess {
    pub(crate) async fn start(change: impl FnOnce(&mut Config)) -> Self {
        Self::start_logging(Stdio::null(), change).await
    }

    /// The same, with its log in a file.
    pub(crate) async fn start_logging(log: Stdio, change: impl FnOnce(&mut Config)) -> Self {
        let (spark, routes) = (
            FakeSpark::start().await.unwrap(),
            FakeRoutes::start().await.unwrap(),
        );
        let (signer, dir) = (new_signer(), tempfile::tempdir().unwrap());
        write_jwks(&dir.path().join("jwks.json"), &[&signer]);
        let (address, admin) = (free(), free());
        let mut config = config(&routes, dir.path().join("jwks.json"));
        config.listen.address = address;
        config.admin.address = admin;
        change(&mut config);
        let file = dir.path().join("proxy.toml");
        std::fs::write(&file, toml::to_string(&config).unwrap()).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_spark-proxy"))
            .arg("--config")
            .arg(&file)
            .stderr(log)
            .spawn()
            .unwrap();
        let session = SessionId::generate(Timestamp::from_millis(now() * 1000), 7);
        routes.set(active(session.as_str(), ORG, spark.address()));
        let started = Self {
            spark,
            routes,
            address,
            admin,
            signer,
            session,
            _dir: dir,
            child,
        };
        within("it gets ready", async {
            while http_get(admin, "/readyz").await.0 != 200 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        started
    }

    /// The route of its session.
    pub(crate) fn route(&self) -> Route {
        active(self.session.as_str(), ORG, self.spark.address())
    }

    /// A new token of its session.
    pub(crate) fn token(&self) -> String {
        let claims = Claims {
            iss: ISSUER.into(),
            aud: AUDIENCE.into(),
            sub: "sa|tester".parse().unwrap(),
            org: ORG.parse().unwrap(),
            sid: self.session.clone(),
            epoch: 1,
            iat: now(),
            nbf: now(),
            exp: now() + 3600,
            jti: TokenId::generate(Timestamp::from_millis(now() * 1000), rand::random()),
        };
        self.signer.sign(&claims).unwrap()
    }

    /// A valid ExecutePlan.
    pub(crate) fn rpc(&self) -> Rpc {
        Rpc::execute(&self.token())
    }

    /// Peak memory, in MiB. The kernel counts per CPU, so it can fall by a little.
    pub(crate) fn peak_mib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
    }
}

fn free() -> SocketAddr {
    test_support::ports::free_port().unwrap()
}

#[expect(
    clippy::disallowed_methods,
    reason = "the child process reads the machine's clock"
)]
fn now() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs()
}
