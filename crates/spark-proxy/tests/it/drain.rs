//! Shutdown with a drain, and failed starts.

use crate::common::{Raw, Reply, Rig, Rpc, flags, kinds, raw, within};
use session_core::Reason;
use session_proto::internal::{Route, RouteStatus};
use std::process::Command;
use std::time::{Duration, Instant};
use test_support::fake_spark::{Shape, request};
use tokio::io::AsyncWriteExt as _;
use tonic::Code;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_finishes_running_calls_and_ends_held_ones() {
    let mut rig = Rig::start().await;
    let client = rig.client().await;
    let mut upload = client.begin(&rig.rpc().shape(Shape::Count)).await.unwrap();
    upload.upload.send_data(request(b"begun"), false).unwrap();
    within("it runs", rig.spark.until(|seen| seen.requests.len() == 1)).await;

    // A held call of another session.
    let mut claims = rig.claims();
    claims.sid = session_core::SessionId::generate(session_core::Timestamp::from_millis(5), 5);
    rig.routes.set(Route {
        session_id: claims.sid.to_string(),
        status: RouteStatus::Pending.into(),
        backend: None,
        ..rig.route()
    });
    let held = client.begin(&Rpc::execute(&rig.sign(&claims))).await.unwrap();
    rig.routes.until_asked(2).await;

    rig.shutdown.stop();
    let reply = within("the held call is answered", Reply::read(held.response))
        .await
        .unwrap();
    reply.refused(Reason::ProxyDraining);
    within("the port is closed", async {
        while tokio::net::TcpStream::connect(rig.address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert_eq!(rig.get("/readyz").await.0, 503);
    assert_eq!(rig.get("/livez").await.0, 200);
    within("no new calls on old connections", async {
        while client.begin(&rig.rpc()).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;

    let running = rig.running();
    assert!(!running.is_finished());
    upload.upload.send_data(request(b"finished"), true).unwrap();
    let reply = within("the running call", Reply::read(upload.response))
        .await
        .unwrap();
    assert_eq!((reply.code(), reply.body.len()), (Code::Ok, 5 + 3));
    within("the proxy ends", running).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_outlast_the_drain_end_with_a_reason() {
    let mut rig = Rig::with(|config| config.drain.timeout = Duration::from_millis(300)).await;
    let client = rig.client().await;
    let mut execute = client.begin(&rig.rpc().shape(Shape::HangAfterOne)).await.unwrap();
    execute.finish(request(b"go"));
    let (_u1, execute) = within("headers", execute.head()).await.unwrap();
    let reattach = Rpc::spark("ReattachExecute")
        .bearer(&rig.token())
        .shape(Shape::HangAfterOne);
    let mut reattach = client.begin(&reattach).await.unwrap();
    reattach.finish(request(b"go"));
    let (_u2, reattach) = within("headers", reattach.head()).await.unwrap();
    rig.shutdown.stop();
    // Spark keeps reattachable operations; others are lost with the call.
    within("it ends", Reply::rest(reattach))
        .await
        .unwrap()
        .refused(Reason::ProxyDraining);
    within("it ends", Reply::rest(execute))
        .await
        .unwrap()
        .refused(Reason::BackendLost);
    within("the proxy ends", rig.running()).await.unwrap().unwrap();
}

/// Idle connections of the next test.
const IDLE: usize = 200;
/// The longest time from the start of a drain to the GOAWAY on an idle connection.
const MAX_UNTIL_GOAWAY: Duration = Duration::from_millis(100);

/// A connection that has made one call with a token, or none.
async fn idle(rig: &Rig, token: Option<&str>) -> Raw {
    let mut raw = Raw::connect(rig.address, &[]).await.unwrap();
    // The acknowledgement of the proxy's settings.
    raw.send(kinds::SETTINGS, 1, 0, &[]).await.unwrap();
    if let Some(token) = token {
        let block = Raw::headers("/spark.connect.SparkConnectService/ExecutePlan", token, &[]);
        let headers = raw::frame(kinds::HEADERS, flags::END_HEADERS, 1, &block);
        let data = raw::frame(kinds::DATA, flags::END_STREAM, 1, &request(b"go"));
        raw.tcp.write_all(&[headers, data].concat()).await.unwrap();
        within("its answer", async {
            let mut trailers = 0;
            while trailers < 2 {
                let frame = raw.next().await.unwrap();
                trailers += usize::from(frame.kind == kinds::HEADERS);
            }
        })
        .await;
    }
    raw
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_get_a_goaway_at_the_start_of_a_drain() {
    let mut rig = Rig::start().await;
    let token = rig.token();
    let busy = rig.client().await;
    let mut running = busy
        .begin(&Rpc::execute(&token).shape(Shape::HangAfterOne))
        .await
        .unwrap();
    running.finish(request(b"go"));
    let _running = within("headers", running.head()).await.unwrap();
    let mut waiting = tokio::task::JoinSet::new();
    let (began, begins) = tokio::sync::watch::channel(None);
    for number in 0..IDLE {
        let mut raw = idle(&rig, (number % 4 != 0).then_some(&token)).await;
        let mut begins = begins.clone();
        waiting.spawn(async move {
            let mut goaway = async || {
                while let Some(frame) = raw.next().await {
                    if frame.kind == kinds::GOAWAY {
                        return Instant::now();
                    }
                }
                panic!("the connection ended without a GOAWAY");
            };
            let at = within("a GOAWAY", goaway()).await;
            let began: Instant = begins.wait_for(Option::is_some).await.unwrap().unwrap();
            at.duration_since(began)
        });
    }
    let all = (IDLE + 1) as f64;
    within(
        "all are open",
        rig.until_metric("spark_proxy_connections", |n| n == all),
    )
    .await;
    let at = Instant::now();
    rig.shutdown.stop();
    began.send_replace(Some(at));
    let mut times = within("all got it", waiting.join_all()).await;
    times.sort();
    let (p50, slowest) = (times[IDLE / 2], times[IDLE - 1]);
    println!("GOAWAY on {IDLE} idle connections: p50 {p50:.1?}, slowest {slowest:.1?}");
    assert!(slowest <= MAX_UNTIL_GOAWAY, "{slowest:?}");
    assert!(!rig.running().is_finished(), "a call runs");
}

#[test]
fn every_invalid_key_is_reported_and_no_port_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("proxy.toml");
    std::fs::write(
        &file,
        r#"
            surprise = 1
            [listen]
            address = "0.0.0.0:0"
            tls = { mode = "off" }
            trusted_proxies = ["balancer.example.com"]
            [backend]
            connection_window_bytes = 5000000
            silence = "0s"
            [tokens]
            issuer = ""
            keep_keys = 5
            [manager]
            uri = "http://manager.example.com:8082"
            [limits]
            frame_bytes = 1
            idle_ping_interval = "1s"
        "#,
    )
    .unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_spark-proxy"))
        .arg("--config")
        .arg(&file)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    for key in [
        "surprise",
        "listen.tls.mode",
        "tokens.issuer",
        "tokens.keep_keys",
        "manager.uri",
        "limits.frame_bytes",
        "limits.idle_ping_interval",
        "listen.trusted_proxies",
        "backend.connection_window_bytes",
        "backend.silence",
    ] {
        assert!(text.contains(key), "{key} is not named in:\n{text}");
    }
    assert!(!text.contains("serving"));
}
