//! The ledger of tokens, as token-issuer meets it.

mod support;

use session_core::{Clock as _, Reason, SessionKey, SystemClock, Timestamp, TokenId};
use session_proto::convert::timestamp;
use session_proto::error::reason_of;
use session_proto::internal as wire;
use session_store::SessionStore as _;
use std::time::Duration;
use support::{Manager, until};

fn token(id: u64, life: Duration) -> wire::LedgerToken {
    let now = SystemClock.now();
    wire::LedgerToken {
        token_id: TokenId::generate(Timestamp::from_millis(1), id).to_string(),
        key_id: "k".repeat(43),
        token_epoch: 1,
        issued_at: Some(timestamp(now)),
        expires_at: Some(timestamp(now.after(life))),
        ..Default::default()
    }
}

fn record(key: &SessionKey, token: &wire::LedgerToken) -> wire::RecordTokenRequest {
    wire::RecordTokenRequest {
        session_id: key.id.to_string(),
        token: Some(token.clone()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ledger_takes_no_token_that_could_not_be() {
    let manager = Manager::start().await;
    let key = manager.create("ada").await;
    let hour = Duration::from_secs(3600);
    let cases = [
        ("past the session's end", token(1, 25 * hour)),
        (
            "longer than twelve hours",
            token(2, 12 * hour + Duration::from_secs(1)),
        ),
        (
            "over before it began",
            wire::LedgerToken {
                expires_at: Some(timestamp(Timestamp::from_millis(1))),
                ..token(3, hour)
            },
        ),
        (
            "signed with no key",
            wire::LedgerToken {
                key_id: "../etc/passwd".to_owned(),
                ..token(4, hour)
            },
        ),
        (
            "without an expiry",
            wire::LedgerToken {
                expires_at: None,
                ..token(5, hour)
            },
        ),
    ];
    for (what, token) in cases {
        let refused = manager.ledger("ada").record_token(record(&key, &token)).await;
        let reason = reason_of(&refused.expect_err(what));
        assert_eq!(reason, Some(Reason::InvalidArgument), "{what}");
    }
    let others = manager
        .ledger("bob")
        .record_token(record(&key, &token(6, hour)))
        .await;
    assert_eq!(reason_of(&others.unwrap_err()), Some(Reason::NotAuthorized));
    assert!(manager.store.tokens(&key).await.unwrap().is_empty());
    manager
        .ledger("ada")
        .record_token(record(&key, &token(7, hour)))
        .await
        .unwrap();
    assert_eq!(manager.store.tokens(&key).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_token_can_be_taken_back_while_it_has_its_grace() {
    let manager = Manager::start().await;
    let key = manager.create("ada").await;
    let short = token(1, Duration::from_millis(300));
    manager
        .ledger("ada")
        .record_token(record(&key, &short))
        .await
        .unwrap();
    until("it expires", async || {
        manager.store.tokens(&key).await.unwrap().is_empty()
    })
    .await;
    for _ in 0..2 {
        let revoke = wire::RevokeRequest {
            session_id: key.id.to_string(),
            token_id: short.token_id.clone(),
        };
        manager.ledger("ada").revoke(revoke).await.unwrap();
    }
    let session = manager.store.get(&key).await.unwrap().unwrap();
    let until = session.revoked_tokens[&short.token_id.parse().unwrap()];
    let grace = Duration::from_secs(12 * 3600);
    assert!(
        until >= SystemClock.now().after(grace),
        "denied for as long as it could reattach"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_issuers_say_of_keys_is_checked() {
    let manager = Manager::start().await;
    let good = "k".repeat(43);
    let report = |published: Vec<String>, signing: &str| wire::ReportKeysRequest {
        published,
        signing: signing.to_owned(),
    };
    for bad in [
        report(vec!["short".to_owned()], ""),
        report(vec!["/".repeat(43)], ""),
        report(vec![good.clone(); 65], ""),
        report(vec![good.clone()], &"x".repeat(43)),
    ] {
        let refused = manager.ledger("ada").report_keys(bad).await.unwrap_err();
        assert_eq!(reason_of(&refused), Some(Reason::InvalidArgument));
    }
    let known = manager
        .ledger("ada")
        .report_keys(report(vec![good.clone()], &good))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(known.keys[0].key_id, good);
    assert_eq!(known.keys[0].signed_at, known.now);
}
