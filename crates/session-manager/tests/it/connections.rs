//! The public port: unused connections are closed, and no others.
use crate::support::{Manager, until};
use session_proto::v1;
use session_proto::v1::session_service_client::SessionServiceClient;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tonic::Request;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

const LIMITS: &str = "[limits]\ncalls_per_second_per_principal = 0\n\
    connection_caller_timeout = \"2s\"\nconnection_idle_timeout = \"3s\"\n";
const LIMIT: Duration = Duration::from_secs(20);

/// A channel with the number of its connections.
async fn counted(uri: &str) -> (Channel, Arc<AtomicUsize>) {
    let connections = Arc::new(AtomicUsize::new(0));
    let relay = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let there = Endpoint::from_shared(format!("http://{}", relay.local_addr().unwrap())).unwrap();
    let (counter, address) = (Arc::clone(&connections), uri.replace("http://", ""));
    tokio::spawn(async move {
        loop {
            let (mut near, _) = relay.accept().await.unwrap();
            let mut far = TcpStream::connect(&address).await.unwrap();
            counter.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut far).await });
        }
    });
    (there.connect_lazy(), connections)
}

async fn list(manager: &Manager, channel: &Channel) {
    let mut request = Request::new(v1::ListSessionsRequest::default());
    let key = format!("Bearer {}", manager.key("ada"));
    request
        .metadata_mut()
        .insert("authorization", key.parse().unwrap());
    let mut sessions = SessionServiceClient::new(channel.clone());
    sessions.list_sessions(request).await.unwrap();
}

#[tokio::test]
async fn a_busy_connection_without_a_caller_is_closed() {
    let manager = Manager::start_with(LIMITS).await;
    let begun = Instant::now();

    // One without traffic, and one that sends PINGs.
    let silent = TcpStream::connect(manager.public_uri.replace("http://", "")).await;
    let (mut silent, mut ping) = (silent.unwrap(), 0_u8);
    silent
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    silent.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
    let mut got = [0_u8; 1024];
    let ended = tokio::time::timeout(LIMIT, async {
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let frame = [0, 0, 8, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, ping];
            ping = ping.wrapping_add(1);
            if silent.write_all(&frame).await.is_err()
                || matches!(silent.read(&mut got).await, Ok(0) | Err(_))
            {
                break;
            }
        }
    });
    ended.await.unwrap();
    assert!(begun.elapsed() > Duration::from_secs(1), "{:?}", begun.elapsed());

    // One with an open health watch.
    let (channel, _) = counted(&manager.public_uri).await;
    let request = HealthCheckRequest::default();
    let watch = HealthClient::new(channel).watch(request).await;
    let mut watch = watch.unwrap().into_inner();
    let ended = tokio::time::timeout(LIMIT, async { while let Ok(Some(_)) = watch.message().await {} });
    ended.await.unwrap();
}

#[tokio::test]
async fn a_caller_s_connection_is_closed_when_idle_and_never_with_a_stream() {
    let manager = Manager::start_with(LIMITS).await;
    let (channel, connections) = counted(&manager.public_uri).await;
    list(&manager, &channel).await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    list(&manager, &channel).await;
    assert_eq!(
        connections.load(Ordering::Relaxed),
        1,
        "it was not idle for so long"
    );
    tokio::time::sleep(Duration::from_secs(5)).await;
    list(&manager, &channel).await;
    assert_eq!(connections.load(Ordering::Relaxed), 2);

    let request = v1::WatchSessionsRequest::default();
    let stream = manager.sessions("ada").watch_sessions(request).await;
    let mut stream = stream.unwrap().into_inner();
    tokio::time::sleep(Duration::from_secs(7)).await;
    let session = manager.create("ada").await;
    until("the change on the old stream", async || {
        let next = stream.message().await.unwrap().unwrap();
        matches!(next.update, Some(v1::watch_sessions_response::Update::Session(shown)) if shown.id == session.id.as_str())
    })
    .await;
}
