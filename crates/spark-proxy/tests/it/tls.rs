//! TLS and plaintext, and the error of a mismatch.

use crate::common::{Client, Rig, within};
use session_core::Reason;
use spark_proxy::config::{Config, TlsMode};
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::Code;

/// A self-signed certificate of `localhost`.
struct Certificate {
    _dir: TempDir,
    cert: PathBuf,
    key: PathBuf,
}

fn certificate() -> Certificate {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    Certificate { _dir: dir, cert, key }
}

fn speak(mode: TlsMode, certificate: &Certificate) -> impl FnOnce(&mut Config) {
    let (cert, key) = (certificate.cert.clone(), certificate.key.clone());
    move |config| {
        config.listen.tls.mode = mode;
        config.listen.tls.cert = Some(cert);
        config.listen.tls.key = Some(key);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn required_serves_tls_and_rejects_plaintext_calls() {
    let certificate = certificate();
    let speak = speak(TlsMode::Required, &certificate);
    let rig = Rig::with(|config| {
        speak(config);
        config.limits.first_token = Duration::from_secs(1);
    })
    .await;
    let secure = Client::tls(rig.address, &certificate.cert).await.unwrap();
    assert_eq!(secure.call(rig.rpc()).await.code(), Code::Ok);

    let plain = rig.client().await;
    for _ in 0..2 {
        let reply = plain.call(rig.rpc()).await;
        reply.refused(Reason::TlsRequired);
        assert!(reply.status().message().contains("use_ssl=true"));
    }
    assert_eq!(rig.spark.seen().requests.len(), 1);
    // A plaintext connection never carries a valid token.
    within("it is closed", async {
        while plain.begin(&rig.rpc()).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(secure.call(rig.rpc()).await.code(), Code::Ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn auto_serves_both() {
    let certificate = certificate();
    let rig = Rig::with(speak(TlsMode::Auto, &certificate)).await;
    let secure = Client::tls(rig.address, &certificate.cert).await.unwrap();
    assert_eq!(secure.call(rig.rpc()).await.code(), Code::Ok);
    assert_eq!(rig.client().await.call(rig.rpc()).await.code(), Code::Ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn off_serves_plaintext_only() {
    let certificate = certificate();
    let rig = Rig::start().await;
    assert_eq!(rig.client().await.call(rig.rpc()).await.code(), Code::Ok);
    assert!(Client::tls(rig.address, &certificate.cert).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_and_unknown_connections_are_closed() {
    let certificate = certificate();
    let speak = speak(TlsMode::Required, &certificate);
    let rig = Rig::with(|config| {
        speak(config);
        config.limits.handshake = Duration::from_millis(300);
    })
    .await;
    let mut silent = TcpStream::connect(rig.address).await.unwrap();
    let mut half = TcpStream::connect(rig.address).await.unwrap();
    half.write_all(b"PRI * HTTP").await.unwrap();
    let mut foreign = TcpStream::connect(rig.address).await.unwrap();
    foreign.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let secure = Client::tls(rig.address, &certificate.cert).await.unwrap();
    assert_eq!(secure.call(rig.rpc()).await.code(), Code::Ok);
    for tcp in [&mut silent, &mut half, &mut foreign] {
        // End or error; the HTTP/2 preface may be received first.
        let _ = within("it is closed", tcp.read_to_end(&mut Vec::new())).await;
    }
    within(
        "it is counted",
        rig.until_metric("spark_proxy_handshakes_failed_total", |n| n == 3.0),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replaced_certificate_is_served_without_a_restart() {
    let (old, new) = (certificate(), certificate());
    let rig = Rig::with(speak(TlsMode::Required, &old)).await;
    assert!(Client::tls(rig.address, &new.cert).await.is_err());
    std::fs::copy(&new.cert, &old.cert).unwrap();
    std::fs::copy(&new.key, &old.key).unwrap();
    within("the new one is served", async {
        while Client::tls(rig.address, &new.cert).await.is_err() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    })
    .await;
}
