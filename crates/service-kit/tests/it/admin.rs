//! The admin port over a real socket.

use service_kit::admin::{Admin, AdminConfig};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut tcp = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    tcp.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    tcp.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn health_metrics_and_build() {
    let admin = Admin::new(service_kit::build_info!());
    let store = admin.readiness.condition("store");
    let keys = admin.readiness.condition("keys");
    let calls = admin.registry.counter::<()>("calls_total", "Calls.");
    let listener = AdminConfig {
        address: "127.0.0.1:0".parse().unwrap(),
    }
    .bind()
    .await
    .unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let server = tokio::spawn(admin.clone().serve(listener, stop.clone()));

    assert_eq!(get(address, "/livez").await, (200, "alive\n".into()));
    assert_eq!(
        get(address, "/readyz").await,
        (503, "not ready, missing: keys, store\n".into())
    );
    store.set(true);
    assert_eq!(
        get(address, "/readyz").await,
        (503, "not ready, missing: keys\n".into())
    );
    keys.set(true);
    admin.readiness.ready().await;
    assert_eq!(get(address, "/readyz").await, (200, "ready\n".into()));
    store.set(false);
    assert_eq!(get(address, "/readyz").await.0, 503);

    calls.inc();
    let (status, metrics) = get(address, "/metrics").await;
    assert!(status == 200 && metrics.ends_with("calls_total 1\n"), "{metrics}");
    let (status, build) = get(address, "/buildz").await;
    assert!(
        status == 200 && build.contains("\"service\":\"service-kit\""),
        "{build}"
    );
    assert_eq!(get(address, "/").await.0, 404);

    stop.cancel();
    server.await.unwrap().unwrap();
}
