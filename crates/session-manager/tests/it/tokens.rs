//! The token ledger.

use crate::support::{Manager, a_token, on, until};
use session_core::{Clock as _, Reason, SessionKey, SystemClock, Timestamp};
use session_proto::convert::{from_timestamp, timestamp};
use session_proto::error::reason_of;
use session_proto::internal as wire;
use session_proto::v1;
use session_store::prelude::*;
use std::time::Duration;

fn token(key: &SessionKey, n: u64, life: Duration) -> wire::RecordTokenRequest {
    wire::RecordTokenRequest {
        expires_at: Some(timestamp(SystemClock.now().after(life))),
        ..a_token(key.id.as_str(), n)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ledger_rejects_invalid_tokens() {
    let manager = Manager::start().await;
    let key = manager.create("ada").await;
    let hour = Duration::from_secs(3600);
    let cases = [
        (
            "longer than twelve hours",
            "expires_at",
            token(&key, 2, 12 * hour + Duration::from_secs(1)),
        ),
        (
            "over before it began",
            "expires_at",
            wire::RecordTokenRequest {
                expires_at: Some(timestamp(Timestamp::from_millis(1))),
                ..token(&key, 3, hour)
            },
        ),
        (
            "signed with no key",
            "key_id",
            wire::RecordTokenRequest {
                key_id: "../etc/passwd".to_owned(),
                ..token(&key, 4, hour)
            },
        ),
        (
            "without an expiry",
            "expires_at",
            wire::RecordTokenRequest {
                expires_at: None,
                ..token(&key, 5, hour)
            },
        ),
        (
            "without an id",
            "token_id",
            wire::RecordTokenRequest {
                token_id: String::new(),
                ..token(&key, 5, hour)
            },
        ),
    ];
    for (what, field, token) in cases {
        let refused = manager.ledger("ada").record_token(token).await.expect_err(what);
        assert_eq!(reason_of(&refused), Some(Reason::InvalidArgument), "{what}");
        assert!(refused.message().contains(field), "{what}: {}", refused.message());
    }
    let others = manager.ledger("bob").record_token(token(&key, 6, hour)).await;
    assert_eq!(reason_of(&others.unwrap_err()), Some(Reason::NotAuthorized));
    assert!(manager.store.live_tokens(&key).await.unwrap().is_empty());
    let granted = manager.ledger("ada").record_token(token(&key, 7, hour)).await;
    let granted = granted.unwrap().into_inner();
    assert_eq!(
        (
            granted.org.as_str(),
            granted.subject.as_str(),
            granted.token_epoch
        ),
        ("acme", "sa|ada", 1)
    );
    let recorded = manager.store.live_tokens(&key).await.unwrap();
    assert_eq!(recorded.len(), 1);
    assert_eq!(granted.expires_at, Some(timestamp(recorded[0].expires_at)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_token_outlives_its_session() {
    let manager = Manager::start().await;
    let request = v1::CreateSessionRequest {
        max_lifetime: Some(prost_types::Duration {
            seconds: 600,
            nanos: 0,
        }),
        ..on("c")
    };
    let key = manager.create_as("ada", request).await;
    let end = manager.store.get(&key).await.unwrap().unwrap().expires_at;
    let asked = token(&key, 1, Duration::from_secs(3600));
    let granted = manager.ledger("ada").record_token(asked).await.unwrap();
    let expires_at = from_timestamp(&granted.into_inner().expires_at.unwrap());
    assert_eq!(expires_at, Timestamp::from_secs(end.as_secs()));
    assert_eq!(
        manager.store.live_tokens(&key).await.unwrap()[0].expires_at,
        expires_at
    );
    // From an issuer whose clock is ahead.
    let late = wire::RecordTokenRequest {
        issued_at: Some(timestamp(end)),
        expires_at: Some(timestamp(end.after(Duration::from_secs(60)))),
        ..token(&key, 2, Duration::ZERO)
    };
    let refused = manager.ledger("ada").record_token(late).await.unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::SessionClosed));
    assert!(
        refused.message().contains("end of its life"),
        "{}",
        refused.message()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_token_can_be_revoked_during_its_grace() {
    let manager = Manager::start().await;
    let key = manager.create("ada").await;
    let short = wire::RecordTokenRequest {
        issued_at: Some(timestamp(SystemClock.now().before(Duration::from_secs(5)))),
        ..token(&key, 1, Duration::from_secs(1))
    };
    manager.ledger("ada").record_token(short.clone()).await.unwrap();
    until("it expires", async || {
        manager.store.live_tokens(&key).await.unwrap().is_empty()
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
async fn key_reports_are_validated() {
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
