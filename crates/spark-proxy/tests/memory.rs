//! A message of 128 MiB passes both ways through a proxy that stays small. The
//! proxy is a process of its own here, so that only its own memory counts.

#![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "helpers of tests")]

mod common;

use common::{Ask, Client, new_signer, send, within, write_jwks};
use session_core::{SessionId, Timestamp, TokenId};
use session_token::Claims;
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use test_support::fake_routes::{FakeRoutes, active};
use test_support::fake_spark::{FakeSpark, Shape, request};
use tonic::Code;

const MESSAGE: usize = 128 << 20;
const MOST_MIB: u64 = 40;

struct Proxy(Child);

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Proxy {
    /// The most memory it ever had, in MiB.
    fn peak(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
    }
}

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_128_mib_pass_through_a_small_proxy() {
    let (spark, routes) = (
        FakeSpark::start().await.unwrap(),
        FakeRoutes::start().await.unwrap(),
    );
    let (signer, dir) = (new_signer(), tempfile::tempdir().unwrap());
    write_jwks(&dir.path().join("jwks.json"), &[&signer]);
    let (address, admin) = (free(), free());
    let mut config = common::config(&routes, dir.path().join("jwks.json"));
    config.listen.address = address;
    config.admin.address = admin;
    let file = dir.path().join("proxy.toml");
    std::fs::write(&file, toml::to_string(&config).unwrap()).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_spark-proxy"))
        .arg("--config")
        .arg(&file)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let proxy = Proxy(child);
    within("it gets ready", async {
        while common::http_get(admin, "/readyz").await.0 != 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let session = SessionId::generate(Timestamp::from_millis(now() * 1000), 7);
    routes.set(active(session.as_str(), common::ORG, spark.address()));
    let claims = Claims {
        iss: common::ISSUER.into(),
        aud: common::AUDIENCE.into(),
        sub: "sa|tester".parse().unwrap(),
        org: common::ORG.parse().unwrap(),
        sid: session,
        epoch: 1,
        iat: now(),
        nbf: now(),
        exp: now() + 3600,
        jti: TokenId::generate(Timestamp::from_millis(now() * 1000), 1),
    };
    let ask = |shape| Ask::execute(&signer.sign(&claims).unwrap()).shape(shape);
    let client = Client::plain(address).await.unwrap();

    // Up: one message.
    let mut running = client.begin(&ask(Shape::Count)).await.unwrap();
    within(
        "the upload",
        send(&mut running.upload, request(&vec![7; MESSAGE])),
    )
    .await
    .unwrap();
    running.finish(bytes::Bytes::new());
    let reply = within("the count", common::Reply::read(running.response))
        .await
        .unwrap();
    let count: usize = std::str::from_utf8(&reply.body[5..]).unwrap().parse().unwrap();
    assert!((MESSAGE..MESSAGE + 200).contains(&count), "{count}");
    // Down: one message.
    let reply = client.call(ask(Shape::Stream(1, MESSAGE))).await;
    assert_eq!((reply.code(), reply.body.len()), (Code::Ok, MESSAGE));
    // Down, a whole stream of large ones, read in pieces.
    let mut running = client.begin(&ask(Shape::Stream(512, 1 << 20))).await.unwrap();
    running.finish(request(b"go"));
    let (_upload, response) = within("headers", running.head()).await.unwrap();
    let mut body = response.into_body();
    let mut count = 0;
    while let Some(data) = within("data", body.data()).await {
        let data = data.unwrap();
        count += data.len();
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    assert_eq!(count, 512 << 20);
    let peak = proxy.peak();
    println!("peak memory of the proxy: {peak} MiB");
    assert!(peak <= MOST_MIB, "the proxy took {peak} MiB");
}
