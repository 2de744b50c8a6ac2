//! A whole small service: started on port 0, watched, drained.

use service_kit::admin::{Admin, AdminConfig, Readiness};
use service_kit::grpc::{self, ClientConfig, ServerConfig};
use service_kit::listen::{AcceptLimits, Incoming, Listener, ListenerConfig};
use service_kit::shutdown::{Crashed, Shutdown};
use service_kit::tls::H2;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

async fn run(
    grpc: Listener,
    admin_port: TcpListener,
    readiness: Readiness,
    shutdown: Shutdown,
) -> Result<(), Crashed> {
    let admin = Admin {
        readiness,
        ..Admin::new(service_kit::build_info!())
    };
    admin.spawn(admin_port, &shutdown);
    let incoming = Incoming::new(grpc, AcceptLimits::default(), shutdown.stopping());
    let health = grpc::health(&admin.readiness, shutdown.stopping());
    let server = grpc::server(&ServerConfig::default()).add_service(health);
    shutdown.spawn_critical(
        "grpc",
        server.serve_with_incoming_shutdown(incoming, shutdown.stopping().cancelled_owned()),
    );
    shutdown.finish(Duration::from_secs(60)).await
}

#[tokio::test]
async fn a_service_drains_at_once_when_only_watchers_are_left() {
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let grpc = Listener::bind(&ListenerConfig::plaintext(any), H2).await.unwrap();
    let admin = AdminConfig { address: any }.bind().await.unwrap();
    let uri = format!("http://{}", grpc.local_addr());
    let (readiness, shutdown) = (Readiness::new(), Shutdown::new());
    let store = readiness.condition("store");
    let service = tokio::spawn(run(grpc, admin, readiness.clone(), shutdown.clone()));

    let mut client = HealthClient::new(grpc::channel(&ClientConfig::new(uri)).unwrap());
    let mut watch = client
        .watch(HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    let mut next = async || watch.message().await.map(|m| m.map(|m| m.status()));
    assert_eq!(next().await.unwrap(), Some(ServingStatus::NotServing));
    store.set(true);
    assert_eq!(next().await.unwrap(), Some(ServingStatus::Serving));

    let begin = Instant::now();
    shutdown.stop();
    assert_eq!(next().await.unwrap(), Some(ServingStatus::NotServing));
    while let Ok(Some(status)) = next().await {
        assert_ne!(status, ServingStatus::Serving);
    }
    service.await.unwrap().unwrap();
    assert!(
        begin.elapsed() < Duration::from_secs(30),
        "waited for the whole drain time"
    );
    assert_eq!(readiness.missing(), ["running"]);
}

#[tokio::test]
async fn a_service_that_crashes_says_why() {
    let shutdown = Shutdown::new();
    shutdown.spawn_background("admin port", async {
        Err::<(), _>(std::io::Error::other("no such port"))
    });
    let crashed = shutdown.finish(Duration::from_secs(60)).await.unwrap_err();
    assert_eq!(crashed.to_string(), "admin port failed: no such port");
}
