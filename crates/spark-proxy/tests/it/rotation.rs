//! Keys come, sign and go while tokens are issued and used without a pause:
//! no good token is refused, and a withdrawn key is refused everywhere.
//! `ROTATIONS=100` makes it longer.

use crate::common::{Ask, within};
use crate::control_plane;
use crate::control_plane::Whole;
use session_core::Reason;
use session_token::{Signer, generate_key_pem};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tonic::Code;

fn new_key(whole: &Whole, number: usize) -> String {
    let pem = generate_key_pem().unwrap();
    let kid = Signer::from_pkcs8_pem(&pem).unwrap().kid().to_owned();
    // As an operator drops it: written beside, then moved.
    let dir = whole.dir.path().join("keys");
    let name = format!("{number:03}.pem");
    std::fs::write(dir.join(format!(".{name}")), pem).unwrap();
    std::fs::rename(dir.join(format!(".{name}")), dir.join(name)).unwrap();
    kid
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_rotations_under_load_refuse_no_good_token() {
    let rotations: usize = std::env::var("ROTATIONS").map_or(20, |n| n.parse().unwrap());
    let whole = Arc::new(Whole::start().await);
    let session = whole.session().await;
    let first = whole.first_token(&session).await;

    let (stop, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let load = tokio::spawn({
        let (whole, mut session) = (Arc::clone(&whole), session.clone());
        let (stop, calls) = (Arc::clone(&stop), Arc::clone(&calls));
        async move {
            let clients = [whole.client(0).await, whole.client(1).await];
            let mut kept = std::collections::VecDeque::new();
            for number in 1.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                // A session has at most 1000 live tokens.
                if number % 500 == 0 {
                    session = whole.session().await;
                    kept.clear();
                }
                let issued = whole.issue(&session).await.unwrap();
                kept.push_back(issued.token);
                // The newest, and one that is a little older, at both proxies.
                if kept.len() > 4 {
                    kept.pop_front();
                }
                for client in &clients {
                    for token in [kept.front(), kept.back()].into_iter().flatten() {
                        let reply = client.call(Ask::execute(token)).await;
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
        let kid = new_key(&whole, number);
        within("it is published at once", async {
            while !whole.published(false).await.contains(&kid) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        let session = whole.session().await;
        within("it signs after its window", async {
            loop {
                let issued = whole.issue(&session).await.unwrap();
                let listed = whole.listed(&session).await;
                let mine = listed
                    .iter()
                    .find(|token| token.token_id == issued.token_id)
                    .unwrap();
                if mine.key_id == kid {
                    return;
                }
                assert!(!load.is_finished(), "a good token was refused");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        made.push(kid);
        // As an operator tidies up: this one retired long ago.
        if let Some(old) = number.checked_sub(20) {
            std::fs::remove_file(whole.dir.path().join(format!("keys/{old:03}.pem"))).unwrap();
        }
    }
    stop.store(true, Ordering::Relaxed);
    load.await.unwrap();
    println!(
        "{rotations} rotations, {} calls, none refused",
        calls.load(Ordering::Relaxed)
    );
    assert!(calls.load(Ordering::Relaxed) >= 10 * rotations as u64);

    // Old ones retire by themselves, though their files are still there, and
    // what they signed is refused then: its time is over by the schedule's word.
    within("the first keys retire", async {
        loop {
            let published = whole.published(true).await;
            if published.len() <= 3 && published.contains(made.last().unwrap()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    within("and are forgotten", async {
        while whole.call(0, &first.token).await.code() == Code::Ok {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    whole.call(0, &first.token).await.refused(Reason::TokenInvalid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_withdrawn_is_refused_at_every_proxy_and_the_next_one_signs() {
    let whole = Whole::start().await;
    let session = whole.session().await;
    let issued = whole.first_token(&session).await;
    for proxy in 0..2 {
        assert_eq!(whole.call(proxy, &issued.token).await.code(), Code::Ok);
    }
    // An empty folder is a mistake: the key stays.
    let (key, aside) = (
        whole.dir.path().join("keys/000.pem"),
        whole.dir.path().join("aside.pem"),
    );
    std::fs::rename(&key, &aside).unwrap();
    tokio::time::sleep(control_plane::BEFORE_SIGNING).await;
    assert_eq!(whole.call(0, &issued.token).await.code(), Code::Ok);
    assert_eq!(whole.published(false).await.len(), 1);

    // With another one there, it is gone.
    let next = new_key(&whole, 1);
    within("the withdrawn key is refused at both", async {
        for proxy in 0..2 {
            while whole.call(proxy, &issued.token).await.code() == Code::Ok {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            whole
                .call(proxy, &issued.token)
                .await
                .refused(Reason::TokenInvalid);
        }
    })
    .await;
    within("both issuers withdrew it", async {
        while whole.published(true).await.into_iter().ne([next.clone()]) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let issued = whole.first_token(&session).await;
    within("the next one's tokens are good", async {
        while whole.call(1, &issued.token).await.code() != Code::Ok {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}
