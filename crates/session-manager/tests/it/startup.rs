//! A manager that starts while its state store is unavailable waits for it.
use service_kit::config::{Sources, load};
use service_kit::shutdown::Shutdown;
use session_manager::{Config, Listeners};
use session_token::{Jwks, Signer, generate_key_pem};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use test_support::redis::PrivateRedis;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const LIMIT: Duration = Duration::from_secs(20);

/// The status code and the body of an admin page.
async fn get(admin: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(admin).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn a_manager_waits_for_its_state_store() {
    let mut redis = PrivateRedis::start().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let jwks = dir.path().join("jwks.json");
    let signer = Signer::from_pkcs8_pem(&generate_key_pem().unwrap()).unwrap();
    std::fs::write(&jwks, Jwks::new([signer.public_jwk()]).to_json()).unwrap();
    let file = dir.path().join("config.toml");
    let text = format!(
        "listen.public.address = \"127.0.0.1:0\"\nlisten.internal.address = \"127.0.0.1:0\"\n\
         admin.address = \"127.0.0.1:0\"\nstore.url = \"{}\"\ntokens.keys.location = \"{}\"\n",
        redis.url(),
        jwks.display()
    );
    std::fs::write(&file, text).unwrap();
    let sources = Sources {
        file: Some(file),
        ..Default::default()
    };
    let config: Config = load(&sources).unwrap();
    let listeners = Listeners::bind(&config).await.unwrap();
    let admin = listeners.admin.local_addr().unwrap();

    redis.kill9().unwrap();
    let shutdown = Shutdown::new();
    let running = tokio::spawn(session_manager::run(config, listeners, shutdown.clone()));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!running.is_finished(), "it gave up");
    let live = get(admin, "/livez").await;
    assert!(live.starts_with("HTTP/1.1 200"), "{live}");
    let ready = get(admin, "/readyz").await;
    assert!(
        ready.starts_with("HTTP/1.1 503") && ready.contains("started"),
        "{ready}"
    );

    redis.restart().await.unwrap();
    let begun = Instant::now();
    while !get(admin, "/readyz").await.starts_with("HTTP/1.1 200") {
        assert!(begun.elapsed() < LIMIT, "{}", get(admin, "/readyz").await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    shutdown.stop();
    running.await.unwrap().unwrap();
}
