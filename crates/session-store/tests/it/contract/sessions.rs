//! Create, read and change a session; quotas; repeated requests.

use crate::common::{
    Draft, Store, activate, close, commit, commit_of_step, nobody, org, plenty, principal, request, revoke,
    touch,
};
use futures::future::join_all;
use session_core::machine::{Cause, Observation};
use session_core::{Activity, ChangeReason, Limits, Quota, Session};
use session_store::{Create, Created, Error, MAX_HISTORY};
use std::time::Duration;

pub(crate) async fn created_sessions_are_read_back(store: Store) {
    let create = Draft::default().create();
    let (session, record) = (create.session.clone(), create.record.clone());
    let key = session.key();
    assert!(store.get(&key).await.unwrap().is_none());
    let created = store.create(create.clone()).await.unwrap();
    assert!(created.new);
    assert_eq!(created.session, session);
    assert_eq!(store.get(&key).await.unwrap(), Some(session.clone()));
    let loaded = store.get_with_activity(&key).await.unwrap().unwrap();
    let unused = Activity::Quiet {
        last_activity_at: session_core::Timestamp::ZERO,
    };
    assert_eq!((loaded.session, loaded.activity), (session, unused));
    assert_eq!(store.events(&key).await.unwrap(), [record]);
    assert!(matches!(store.create(create).await, Err(Error::Exists)));

    let stranger = session_core::SessionKey {
        org: org("other"),
        id: key.id,
    };
    assert!(store.get(&stranger).await.unwrap().is_none());
    assert!(store.get_with_activity(&nobody()).await.unwrap().is_none());
    assert!(store.events(&nobody()).await.unwrap().is_empty());
}

pub(crate) async fn a_commit_needs_the_version_before(store: Store) {
    let first = Draft::default().store(&store).await;
    let second = commit(&store, touch(&first)).await;
    assert!(matches!(store.commit(touch(&first)).await, Err(Error::Conflict)));
    let mut ahead = second.clone();
    ahead.version += 1;
    assert!(matches!(store.commit(touch(&ahead)).await, Err(Error::Conflict)));
    assert_eq!(store.get(&first.key()).await.unwrap(), Some(second));

    let unknown = Draft::default().transition().session;
    assert!(matches!(
        store.commit(touch(&unknown)).await,
        Err(Error::NotFound)
    ));
}

pub(crate) async fn one_of_two_concurrent_commits_wins(store: Store) {
    let mut session = Draft::default().store(&store).await;
    for _ in 0..20 {
        let (a, b) = tokio::join!(store.commit(touch(&session)), store.commit(revoke(&session)));
        session = match (a, b) {
            (Ok(()), Err(Error::Conflict)) => touch(&session).session,
            (Err(Error::Conflict), Ok(())) => revoke(&session).session,
            other => panic!("{other:?}"),
        };
        assert_eq!(store.get(&session.key()).await.unwrap(), Some(session.clone()));
    }
}

pub(crate) async fn profile_and_waiting_cause_are_kept(store: Store) {
    let mut create = Draft::default().create();
    create.session.profile = Some("large".parse().unwrap());
    let session = store.create(create).await.unwrap().session;
    let waits = Observation::Starting {
        cause: Cause {
            text: "no node has room: insufficient cpu".to_owned(),
            detail: "0/1 nodes are available: 1 Insufficient cpu.".to_owned(),
        },
    };
    let later = session.created_at.after(Duration::from_secs(2));
    let recorded = commit_of_step(&session, &waits, Activity::Unknown, later);
    let waiting = commit(&store, recorded).await;
    assert_eq!(store.get(&session.key()).await.unwrap(), Some(waiting.clone()));
    assert_eq!(
        waiting.waiting.map(|last| (last.at, last.count)),
        Some((later, 1))
    );
    let reasons: Vec<_> = store.events(&session.key()).await.unwrap();
    let reasons: Vec<_> = reasons.iter().map(|event| event.reason).collect();
    assert_eq!(reasons, [ChangeReason::Created, ChangeReason::ComputeWaiting]);
    let active = commit(&store, activate(&waiting)).await;
    assert_eq!((active.status_message.as_str(), active.waiting), ("", None));
    assert_eq!(active.profile, session.profile);
}

pub(crate) async fn history_keeps_the_last_fifty_in_order(store: Store) {
    let mut session = Draft::default().store(&store).await;
    while session.version < MAX_HISTORY as u64 + 10 {
        session = commit(&store, touch(&session)).await;
    }
    let versions: Vec<_> = store
        .events(&session.key())
        .await
        .unwrap()
        .iter()
        .map(|e| e.version)
        .collect();
    assert_eq!(versions, (11..=MAX_HISTORY as u64 + 10).collect::<Vec<_>>());
}

/// Starts 1 000 concurrent creates and returns their results.
async fn race(store: &Store, create: impl Fn(usize) -> Create) -> Vec<Result<Created, Error>> {
    join_all((0..1000).map(|i| {
        let (store, create) = (store.clone(), create(i));
        async move {
            tokio::spawn(async move { store.create(create).await })
                .await
                .unwrap()
        }
    }))
    .await
}

fn assert_exactly(limit: u32, name: Quota, results: &[Result<Created, Error>]) {
    let made = results.iter().filter(|result| result.is_ok()).count();
    assert_eq!(made, limit as usize);
    for error in results.iter().filter_map(|result| result.as_ref().err()) {
        assert!(
            matches!(error, Error::Quota { quota, limit: l, retry_after: None }
            if *quota == name && *l == limit),
            "{error:?}"
        );
    }
}

pub(crate) async fn live_quota_of_an_owner_is_exact(store: Store) {
    let limits = Limits {
        live_sessions_per_owner: 37,
        ..plenty()
    };
    let results = race(&store, |_| Create {
        limits: limits.clone(),
        ..Draft::default().create()
    })
    .await;
    assert_exactly(37, Quota::LiveSessionsPerOwner, &results);
    let other = Create {
        limits,
        ..Draft::of("acme", "sa|eve").create()
    };
    assert!(store.create(other).await.unwrap().new);
}

pub(crate) async fn live_quota_of_an_organization_is_exact(store: Store) {
    let limits = Limits {
        live_sessions: 53,
        ..plenty()
    };
    let results = race(&store, |i| {
        let draft = Draft::of("acme", &format!("sa|user-{}", i % 20));
        Create {
            limits: limits.clone(),
            ..draft.create()
        }
    })
    .await;
    assert_exactly(53, Quota::LiveSessions, &results);
    let other = Create {
        limits,
        ..Draft::of("other", "sa|user-1").create()
    };
    assert!(store.create(other).await.unwrap().new);
}

pub(crate) async fn creates_per_minute_are_limited_with_a_retry_time(store: Store) {
    let limits = Limits {
        creates_per_minute: 3,
        ..plenty()
    };
    let mut made = 0;
    for _ in 0..7 {
        match store
            .create(Create {
                limits: limits.clone(),
                ..Draft::default().create()
            })
            .await
        {
            Ok(_) => made += 1,
            Err(Error::Quota {
                quota: Quota::CreatesPerMinute,
                limit: 3,
                retry_after: Some(wait),
            }) => {
                assert!(
                    wait > Duration::ZERO && wait <= Duration::from_secs(60),
                    "{wait:?}"
                );
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    // Six if the minute of the clock changed meanwhile.
    assert!(made == 3 || (4..=6).contains(&made), "{made}");
    let other = Create {
        limits,
        ..Draft::of("acme", "sa|eve").create()
    };
    assert!(store.create(other).await.unwrap().new);
}

pub(crate) async fn ended_sessions_leave_the_quota_at_once(store: Store) {
    let limits = Limits {
        live_sessions_per_owner: 1,
        live_sessions: 1,
        ..plenty()
    };
    let again = || Create {
        limits: limits.clone(),
        ..Draft::default().create()
    };
    let session = store.create(again()).await.unwrap().session;
    assert!(matches!(store.create(again()).await, Err(Error::Quota { .. })));
    let closed = commit(&store, close(&session)).await;
    assert!(store.create(again()).await.unwrap().new);
    assert_eq!(store.get(&closed.key()).await.unwrap(), Some(closed));
}

pub(crate) async fn a_repeated_create_returns_the_first_session(store: Store) {
    let with = |draft: &Draft, id: &str, fingerprint: &str| Create {
        request: request(id, fingerprint),
        limits: Limits {
            live_sessions_per_owner: 2,
            creates_per_minute: 2,
            ..plenty()
        },
        ..draft.create()
    };
    let bob = Draft::default();
    let first = store.create(with(&bob, "r1", "f")).await.unwrap();
    assert!(first.new);
    let changed = commit(&store, touch(&first.session)).await;

    for _ in 0..5 {
        let repeat = store.create(with(&bob, "r1", "f")).await.unwrap();
        assert!(!repeat.new);
        assert_eq!(repeat.session, changed, "as stored now");
    }
    assert!(matches!(
        store.create(with(&bob, "r1", "g")).await,
        Err(Error::RequestIdReused)
    ));

    let bob_is = (&first.session.org, &first.session.owner);
    let asked = |id, fingerprint| request(id, fingerprint).unwrap();
    let found = store
        .find_by_request(bob_is.0, bob_is.1, &asked("r1", "f"))
        .await
        .unwrap();
    assert_eq!(found, Some(changed.clone()), "without a record of its own");
    assert_eq!(
        store
            .find_by_request(bob_is.0, bob_is.1, &asked("r9", "f"))
            .await
            .unwrap(),
        None
    );
    let reused = store.find_by_request(bob_is.0, bob_is.1, &asked("r1", "g")).await;
    assert!(matches!(reused, Err(Error::RequestIdReused)));

    // Repeats count for no quota: one more create succeeds.
    assert!(store.create(with(&bob, "r2", "f")).await.unwrap().new);
    assert!(matches!(
        store.create(with(&bob, "r3", "f")).await,
        Err(Error::Quota { .. })
    ));
    assert!(
        !store.create(with(&bob, "r1", "f")).await.unwrap().new,
        "also when the quota is used up"
    );

    // Another owner's or organization's request is another request.
    let eve = Draft::of("acme", "sa|eve");
    assert!(store.create(with(&eve, "r1", "g")).await.unwrap().new);
    assert!(
        store
            .create(with(&Draft::of("other", "sa|bob"), "r1", "g"))
            .await
            .unwrap()
            .new
    );

    // The result is the same after the end of the session.
    let closed = commit(&store, close(&changed)).await;
    assert_eq!(store.create(with(&bob, "r1", "f")).await.unwrap().session, closed);
    assert_eq!(closed.owner, principal("sa|bob"));
}

pub(crate) async fn a_hundred_repeats_at_once_make_one_session(store: Store) {
    let results = join_all((0..100).map(|_| {
        let (store, request) = (store.clone(), request("r", "f"));
        let create = Create {
            request,
            ..Draft::default().create()
        };
        async move {
            tokio::spawn(async move { store.create(create).await })
                .await
                .unwrap()
                .unwrap()
        }
    }))
    .await;
    assert_eq!(results.iter().filter(|created| created.new).count(), 1);
    let ids: std::collections::BTreeSet<_> = results.iter().map(|c| Session::key(&c.session)).collect();
    assert_eq!(ids.len(), 1);
}
