//! The token ledger.

use crate::common::{Draft, FAR, Store, close, commit, eventually, nobody, revoke, revoke_one, token};
use session_core::{Quota, TokenId};
use session_store::Error;
use std::time::Duration;

async fn ids(store: &Store, key: &session_core::SessionKey) -> Vec<TokenId> {
    store
        .live_tokens(key)
        .await
        .unwrap()
        .into_iter()
        .map(|token| token.id)
        .collect()
}

pub(crate) async fn tokens_are_recorded_and_listed_oldest_first(store: Store) {
    let session = Draft::default().store(&store).await;
    let key = session.key();
    let (mut first, second) = (
        token(&store, &session, FAR).await,
        token(&store, &session, FAR).await,
    );
    // Order is independent of expiry and id.
    first.expires_at = first.expires_at.after(FAR);
    store.record_token(&key, second.clone(), 2).await.unwrap();
    store.record_token(&key, first.clone(), 2).await.unwrap();
    store.record_token(&key, first.clone(), 2).await.unwrap();
    assert_eq!(store.live_tokens(&key).await.unwrap(), [first, second]);
    let third = token(&store, &session, FAR).await;
    let refused = store.record_token(&key, third, 2).await;
    assert!(
        matches!(
            refused,
            Err(Error::Quota {
                quota: Quota::TokensPerSession,
                limit: 2,
                retry_after: None
            })
        ),
        "{refused:?}"
    );
    assert!(store.live_tokens(&nobody()).await.unwrap().is_empty());
    let other = token(&store, &session, FAR).await;
    assert!(matches!(
        store.record_token(&nobody(), other, 2).await,
        Err(Error::NotFound)
    ));
}

pub(crate) async fn expired_tokens_make_room(store: Store) {
    let session = Draft::default().store(&store).await;
    let key = session.key();
    let short = token(&store, &session, Duration::from_millis(300)).await;
    store.record_token(&key, short.clone(), 1).await.unwrap();
    let next = token(&store, &session, FAR).await;
    eventually("an expired token makes room", async || {
        store.record_token(&key, next.clone(), 1).await
    })
    .await;
    assert!(store.now().await.unwrap() >= short.expires_at);
    assert_eq!(ids(&store, &key).await, [next.id]);

    let expired = token(&store, &session, Duration::ZERO).await;
    store.record_token(&key, expired, 2).await.unwrap();
    assert_eq!(store.live_tokens(&key).await.unwrap().len(), 1);
    // Also a token that is not the oldest.
    let third = token(&store, &session, FAR).await;
    store.record_token(&key, third, 2).await.unwrap();
    assert_eq!(store.live_tokens(&key).await.unwrap().len(), 2);
    let fourth = token(&store, &session, FAR).await;
    assert!(matches!(
        store.record_token(&key, fourth, 2).await,
        Err(Error::Quota { .. })
    ));
}

/// Streams and reattaches outlive a token.
pub(crate) async fn expired_tokens_stay_on_record_while_there_is_room(store: Store) {
    let session = Draft::default().store(&store).await;
    let key = session.key();
    let recent = async || {
        let tokens = store.recent_tokens(&key).await.unwrap();
        tokens.into_iter().map(|token| token.id).collect::<Vec<_>>()
    };
    let mut expired = Vec::new();
    for _ in 0..2 {
        let token = token(&store, &session, Duration::ZERO).await;
        store.record_token(&key, token.clone(), 3).await.unwrap();
        expired.push(token.id);
    }
    let mut live = Vec::new();
    for left in [2, 1, 0] {
        let token = token(&store, &session, FAR).await;
        store.record_token(&key, token.clone(), 3).await.unwrap();
        live.push(token.id);
        assert_eq!(ids(&store, &key).await, live);
        let stay = expired[2 - left..].iter().chain(&live).cloned();
        assert_eq!(recent().await, stay.collect::<Vec<_>>());
    }
    let one_more = token(&store, &session, FAR).await;
    assert!(matches!(
        store.record_token(&key, one_more, 3).await,
        Err(Error::Quota { .. })
    ));
    commit(&store, revoke(&session)).await;
    assert!(recent().await.is_empty(), "those of an older epoch are dead");
}

pub(crate) async fn revoked_tokens_make_room(store: Store) {
    let mut session = Draft::default().store(&store).await;
    let key = session.key();
    let first = token(&store, &session, FAR).await;
    store.record_token(&key, first.clone(), 1).await.unwrap();
    session = commit(&store, revoke_one(&session, &first.id)).await;
    let second = token(&store, &session, FAR).await;
    store.record_token(&key, second.clone(), 1).await.unwrap();
    session = commit(&store, revoke(&session)).await;
    let third = token(&store, &session, FAR).await;
    store.record_token(&key, third.clone(), 1).await.unwrap();
    let fourth = token(&store, &session, FAR).await;
    assert!(matches!(
        store.record_token(&key, fourth, 1).await,
        Err(Error::Quota { .. })
    ));
    assert_eq!(ids(&store, &key).await, [third.id]);
}

pub(crate) async fn a_revoked_token_is_listed_until_its_room_is_needed(store: Store) {
    let session = Draft::default().store(&store).await;
    let key = session.key();
    let (first, second) = (
        token(&store, &session, FAR).await,
        token(&store, &session, FAR).await,
    );
    store.record_token(&key, first.clone(), 2).await.unwrap();
    let session = commit(&store, revoke_one(&session, &first.id)).await;
    store.record_token(&key, second.clone(), 2).await.unwrap();
    assert_eq!(ids(&store, &key).await, [first.id, second.id.clone()]);
    let third = token(&store, &session, FAR).await;
    store.record_token(&key, third.clone(), 2).await.unwrap();
    assert_eq!(ids(&store, &key).await, [second.id, third.id]);
    commit(&store, revoke(&session)).await;
    assert!(
        ids(&store, &key).await.is_empty(),
        "those of an older epoch are not"
    );
}

pub(crate) async fn tokens_are_refused_after_close_and_revocation(store: Store) {
    let session = Draft::default().store(&store).await;
    let key = session.key();
    let old = token(&store, &session, FAR).await;
    let session = commit(&store, revoke(&session)).await;
    let refused = store.record_token(&key, old, 10).await;
    assert!(
        matches!(refused, Err(Error::TokenRejected("epoch"))),
        "{refused:?}"
    );
    let current = token(&store, &session, FAR).await;
    commit(&store, close(&session)).await;
    let refused = store.record_token(&key, current, 10).await;
    assert!(
        matches!(refused, Err(Error::TokenRejected("closed"))),
        "{refused:?}"
    );
}
