//! Key rotation while tokens are issued and used: no valid token is rejected, and a withdrawn key is
//! rejected everywhere. `ROTATIONS=100` runs more rotations.

use crate::common::{Reply, Rpc, within};
use crate::control_plane;
use crate::control_plane::Stack;
use session_core::Reason;
use session_token::{Signer, generate_key_pem};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use test_support::fake_spark::{Shape, request};
use tonic::Code;

fn new_key(stack: &Stack, number: usize) -> String {
    let pem = generate_key_pem().unwrap();
    let kid = Signer::from_pkcs8_pem(&pem).unwrap().kid().to_owned();
    // Like an operator: written beside, then moved.
    let dir = stack.dir.path().join("keys");
    let name = format!("{number:03}.pem");
    std::fs::write(dir.join(format!(".{name}")), pem).unwrap();
    std::fs::rename(dir.join(format!(".{name}")), dir.join(name)).unwrap();
    kid
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_rotations_under_load_reject_no_valid_token() {
    let rotations: usize = std::env::var("ROTATIONS").map_or(20, |n| n.parse().unwrap());
    let stack = Arc::new(Stack::start().await);
    let session = stack.session().await;
    let first = stack.first_token(&session).await;

    let (stop, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let load = tokio::spawn({
        let (stack, mut session) = (Arc::clone(&stack), session.clone());
        let (stop, calls) = (Arc::clone(&stop), Arc::clone(&calls));
        async move {
            let clients = [stack.client(0).await, stack.client(1).await];
            let mut kept = std::collections::VecDeque::new();
            for number in 1.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                // A session has at most 1000 live tokens.
                if number % 500 == 0 {
                    session = stack.session().await;
                    kept.clear();
                }
                let issued = stack.issue(&session).await.unwrap();
                kept.push_back(issued.token);
                // The newest token and an older one, at both proxies.
                if kept.len() > 4 {
                    kept.pop_front();
                }
                for client in &clients {
                    for token in [kept.front(), kept.back()].into_iter().flatten() {
                        let reply = client.call(Rpc::execute(token)).await;
                        assert_eq!(reply.code(), Code::Ok, "{:?}", reply.status());
                        calls.fetch_add(1, Ordering::Relaxed);
                    }
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });

    let mut made = Vec::new();
    for number in 1..=rotations {
        let kid = new_key(&stack, number);
        within("it is published at once", async {
            while !stack.published(false).await.contains(&kid) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        let session = stack.session().await;
        within("it signs after its window", async {
            loop {
                let issued = stack.issue(&session).await.unwrap();
                let listed = stack.listed(&session).await;
                let mine = listed
                    .iter()
                    .find(|token| token.token_id == issued.token_id)
                    .unwrap();
                if mine.key_id == kid {
                    return;
                }
                assert!(!load.is_finished(), "a valid token was rejected");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        made.push(kid);
        // Like an operator who removes a retired key.
        if let Some(old) = number.checked_sub(20) {
            std::fs::remove_file(stack.dir.path().join(format!("keys/{old:03}.pem"))).unwrap();
        }
    }
    stop.store(true, Ordering::Relaxed);
    load.await.unwrap();
    println!(
        "{rotations} rotations, {} calls, none refused",
        calls.load(Ordering::Relaxed)
    );
    assert!(calls.load(Ordering::Relaxed) >= 10 * rotations as u64);

    // Old keys retire by schedule, although their files still exist; their tokens are rejected then,
    // because they have expired.
    within("the first keys retire", async {
        loop {
            let published = stack.published(true).await;
            if published.len() <= 3 && published.contains(made.last().unwrap()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    within("and are forgotten", async {
        while stack.call(0, &first.token).await.code() == Code::Ok {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    stack.call(0, &first.token).await.refused(Reason::TokenInvalid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_withdrawn_key_is_rejected_at_every_proxy_and_the_next_one_signs() {
    let stack = Stack::start().await;
    let session = stack.session().await;
    let issued = stack.first_token(&session).await;
    for proxy in 0..2 {
        assert_eq!(stack.call(proxy, &issued.token).await.code(), Code::Ok);
    }
    let client = stack.client(0).await;
    let rpc = Rpc::execute(&issued.token).shape(Shape::HangAfterOne);
    let mut running = client.begin(&rpc).await.unwrap();
    running.finish(request(b"go"));
    let (_upload, running) = within("headers", running.head()).await.unwrap();
    // An empty folder is taken for a mistake: the key stays.
    let (key, aside) = (
        stack.dir.path().join("keys/000.pem"),
        stack.dir.path().join("aside.pem"),
    );
    std::fs::rename(&key, &aside).unwrap();
    tokio::time::sleep(control_plane::BEFORE_SIGNING).await;
    assert_eq!(stack.call(0, &issued.token).await.code(), Code::Ok);
    assert_eq!(stack.published(false).await.len(), 1);

    // With another key there, it is withdrawn.
    let next = new_key(&stack, 1);
    within("the withdrawn key is refused at both", async {
        for proxy in 0..2 {
            while stack.call(proxy, &issued.token).await.code() == Code::Ok {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            stack
                .call(proxy, &issued.token)
                .await
                .refused(Reason::TokenInvalid);
        }
    })
    .await;
    let ended = within("a running call ends too", Reply::rest(running))
        .await
        .unwrap();
    ended.refused(Reason::TokenInvalid);
    within("both issuers withdrew it", async {
        while stack.published(true).await.into_iter().ne([next.clone()]) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let issued = stack.first_token(&session).await;
    within("tokens of the next key are valid", async {
        while stack.call(1, &issued.token).await.code() != Code::Ok {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}
