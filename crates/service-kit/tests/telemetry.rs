//! Traces leave the process when it ends. Alone in its file, because a
//! process has one subscriber.

use service_kit::telemetry::{self, LogFormat, TelemetryConfig};
use std::time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_is_sent_when_the_guard_drops() {
    let collector = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = TelemetryConfig {
        format: LogFormat::Json,
        otlp_endpoint: Some(format!("http://{}", collector.local_addr().unwrap())),
        sample_ratio: 1.0,
        ..TelemetryConfig::default()
    };
    let guard = telemetry::init(&config, "test").unwrap();
    assert!(telemetry::init(&config, "test").is_err(), "only once");
    service_kit::root_span!("work").in_scope(|| tracing::info!("done"));
    let received = tokio::spawn(async move {
        let (mut tcp, _) = collector.accept().await.unwrap();
        let mut preface = [0; 14];
        tcp.read_exact(&mut preface).await.unwrap();
        preface
    });
    tokio::task::spawn_blocking(move || drop(guard)).await.unwrap();
    let preface = tokio::time::timeout(Duration::from_secs(30), received)
        .await
        .expect("nothing sent")
        .unwrap();
    assert_eq!(&preface, b"PRI * HTTP/2.0");
}
