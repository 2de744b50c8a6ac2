//! Key set of the proxy: it is used for a day without the issuer, and concurrent tokens with unknown
//! keys cause one read.

use crate::common::{Rig, Rpc, new_signer, within};
use service_kit::polled_document::DocumentConfig;
use session_core::Reason;
use session_token::{Claims, Jwks};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tonic::Code;

const HOUR: Duration = Duration::from_secs(3600);

/// A key set over HTTP that counts its readers, and delays or fails on demand.
#[derive(Clone, Default)]
struct Issuer {
    set: Arc<Mutex<String>>,
    asked: Arc<AtomicUsize>,
    unchanged: Arc<AtomicUsize>,
    away: Arc<AtomicBool>,
}

impl Issuer {
    async fn start(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let issuer = self.clone();
        tokio::spawn(async move {
            while let Ok((mut tcp, _)) = listener.accept().await {
                let issuer = issuer.clone();
                tokio::spawn(async move {
                    let mut request = Vec::new();
                    let mut buffer = [0; 1024];
                    while !request.ends_with(b"\r\n\r\n") {
                        match tcp.read(&mut buffer).await {
                            Ok(0) | Err(_) => return,
                            Ok(read) => request.extend(&buffer[..read]),
                        }
                    }
                    issuer.asked.fetch_add(1, Ordering::SeqCst);
                    if issuer.away.load(Ordering::SeqCst) {
                        return;
                    }
                    // Long enough for concurrent calls to wait for one read.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    let set = issuer.set.lock().unwrap().clone();
                    let etag = format!("\"{}\"", set.len());
                    let known = String::from_utf8_lossy(&request).contains(&etag);
                    let answer = if known {
                        issuer.unchanged.fetch_add(1, Ordering::SeqCst);
                        format!("HTTP/1.1 304 Not Modified\r\netag: {etag}\r\ncontent-length: 0\r\n\r\n")
                    } else {
                        format!(
                            "HTTP/1.1 200 OK\r\netag: {etag}\r\ncontent-length: {}\r\n\r\n{set}",
                            set.len()
                        )
                    };
                    let _ = tcp.write_all(answer.as_bytes()).await;
                });
            }
        });
        address
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

async fn rig(issuer: &Issuer, refresh: Duration, again_after: Duration) -> Rig {
    let address = issuer.start().await;
    let set = Arc::clone(&issuer.set);
    Rig::with(|config| {
        // The signing key of the rig.
        *set.lock().unwrap() = std::fs::read_to_string(&config.tokens.keys.location).unwrap();
        config.tokens.keys = DocumentConfig {
            refresh: Some(refresh),
            again_after,
            ..DocumentConfig::new(format!("http://{address}/jwks.json"))
        };
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_used_for_a_day_without_the_issuer() {
    let issuer = Issuer::default();
    let rig = rig(&issuer, Duration::from_millis(30), Duration::from_millis(30)).await;
    assert_eq!(rig.call(rig.rpc()).await.code(), Code::Ok);
    within("an unchanged set is not sent again", async {
        while issuer.unchanged.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    issuer.away.store(true, Ordering::SeqCst);
    let failures = async || {
        let before = rig.metric("spark_proxy_key_fetches_failed_total").await;
        rig.until_metric("spark_proxy_key_fetches_failed_total", |n| n >= before + 2.0)
            .await;
    };
    within("the set cannot be read", failures()).await;
    // One new token per hour: the issuer works, but the proxy cannot reach it.
    for _ in 0..23 {
        rig.clock.advance(HOUR);
        assert_eq!(rig.call(rig.rpc()).await.code(), Code::Ok);
    }
    rig.clock.advance(Duration::from_secs(59 * 60));
    within("it is still tried", failures()).await;
    assert_eq!(rig.call(rig.rpc()).await.code(), Code::Ok, "24 h less a minute");

    rig.clock.advance(Duration::from_secs(120));
    within("no token is accepted", async {
        while rig.call(rig.rpc()).await.code() == Code::Ok {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    rig.call(rig.rpc()).await.refused(Reason::ControlPlaneUnavailable);
    issuer.away.store(false, Ordering::SeqCst);
    within("it is there again", async {
        while rig.call(rig.rpc()).await.code() != Code::Ok {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_calls_with_unknown_keys_share_one_read() {
    let issuer = Issuer::default();
    let long = Duration::from_secs(3600);
    let rig = Arc::new(rig(&issuer, long, Duration::from_secs(1)).await);
    let first = issuer.asked();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let crowd = async |expected: Code| {
        let calls = (0..40).map(|_| {
            let rig = Arc::clone(&rig);
            tokio::spawn(async move {
                let token = new_signer().sign(&rig.claims()).unwrap();
                rig.call(Rpc::execute(&token)).await.code()
            })
        });
        for call in calls.collect::<Vec<_>>() {
            assert_eq!(call.await.unwrap(), expected);
        }
    };
    crowd(Code::Unauthenticated).await;
    assert_eq!(issuer.asked(), first + 1, "one read for forty unknown keys");
    // Within the interval there is no other read, and valid tokens do not wait.
    for _ in 0..20 {
        let token = new_signer().sign(&rig.claims()).unwrap();
        rig.call(Rpc::execute(&token)).await.refused(Reason::TokenInvalid);
    }
    assert!(issuer.asked() <= first + 2, "{} reads", issuer.asked());
    assert_eq!(rig.call(rig.rpc()).await.code(), Code::Ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn withdrawn_keys_are_rejected_within_a_minute_by_default() {
    let defaults = DocumentConfig::new("x");
    assert_eq!(defaults.again_after, Duration::from_secs(30));
    // With 15 s in caches and 2 s in the issuer a withdrawn key is rejected within 60 s.
    assert!(defaults.refresh() + Duration::from_secs(15 + 2 + 5) <= Duration::from_secs(60));
    let issuer = Issuer::default();
    let rig = rig(&issuer, defaults.refresh(), defaults.again_after).await;
    let next = new_signer();
    *issuer.set.lock().unwrap() = Jwks::new([rig.signer.public_jwk(), next.public_jwk()]).to_json();
    // The set was read at the start: unknown keys cause no other read.
    let token = next.sign(&Claims { ..rig.claims() }).unwrap();
    for _ in 0..10 {
        rig.call(Rpc::execute(&token)).await.refused(Reason::TokenInvalid);
    }
    assert_eq!(issuer.asked(), 1);
}
