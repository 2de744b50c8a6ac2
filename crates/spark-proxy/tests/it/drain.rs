//! Shutdown with a drain, and failed starts.

use crate::common;
use crate::common::{Reply, Rig, within};
use session_core::Reason;
use session_proto::internal::{Route, RouteStatus};
use std::process::Command;
use std::time::Duration;
use test_support::fake_spark::{Shape, request};
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
    let held = client
        .begin(&common::Rpc::execute(&rig.sign(&claims)))
        .await
        .unwrap();
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
    let reattach = common::Rpc::spark("ReattachExecute")
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
