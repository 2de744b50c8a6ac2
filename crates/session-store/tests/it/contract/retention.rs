//! Ended sessions stay listed for a time, up to a number.

use crate::common::{Draft, FAR, Store, close, commit, request, token, touch};
use session_core::{Session, SessionId, Timestamp};
use session_store::{Create, ListQuery, Tombstones};
use std::collections::BTreeSet;
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);
/// No limit by number.
const MANY: usize = 1000;

fn keep(age: Duration, per_owner: usize, per_org: usize) -> Tombstones {
    Tombstones {
        age,
        per_owner,
        per_org,
    }
}

/// Closes a session at a time in the past.
async fn end(store: &Store, session: &Session, ago: Duration) -> Session {
    let mut change = close(session);
    change.session.closed_at = Some(store.now().await.unwrap().before(ago));
    commit(store, change).await
}

async fn listed(store: &Store, org: &str, owner: Option<&str>) -> BTreeSet<SessionId> {
    let query = ListQuery {
        owner: owner.map(|owner| owner.parse().unwrap()),
        ..ListQuery::of_org(org.parse().unwrap(), 1000)
    };
    let page = store.list(&query).await.unwrap();
    page.sessions.into_iter().map(|session| session.id).collect()
}

fn ids(sessions: &[Session]) -> BTreeSet<SessionId> {
    sessions.iter().map(|session| session.id.clone()).collect()
}

pub(crate) async fn the_default_limits_are_those_of_the_documentation(store: Store) {
    let limits = Tombstones::default();
    assert_eq!(limits, keep(MINUTE * 60 * 24 * 7, 5_000, 20_000));
    assert_eq!(store.trim_ended(&limits, 100).await.unwrap(), 0);
}

pub(crate) async fn what_ended_long_ago_is_forgotten_with_all_of_it(store: Store) {
    let create = Create {
        request: request("r", "f"),
        ..Draft {
            team: Some("data"),
            ..Draft::default()
        }
        .create()
    };
    let old = store.create(create.clone()).await.unwrap().session;
    let key = old.key();
    store
        .record_token(&key, token(&store, &old, FAR).await, 5)
        .await
        .unwrap();
    store
        .apply_report(&key, &crate::common::report("p", 1))
        .await
        .unwrap();
    let old = commit(&store, touch(&old)).await;
    end(&store, &old, MINUTE * 3).await;
    let recent = end(&store, &Draft::default().store(&store).await, MINUTE).await;
    let live = Draft::default().store(&store).await;

    let limits = keep(MINUTE * 2, MANY, MANY);
    assert_eq!(store.trim_ended(&limits, 10).await.unwrap(), 1);
    assert_eq!(store.trim_ended(&limits, 10).await.unwrap(), 0, "twice is once");
    assert!(store.get(&key).await.unwrap().is_none());
    assert!(store.events(&key).await.unwrap().is_empty());
    assert!(store.live_tokens(&key).await.unwrap().is_empty());
    assert!(store.operations(&key).await.unwrap().is_empty());
    let used = store.usage(std::slice::from_ref(&old)).await.unwrap()[0];
    assert_eq!((used.last_activity_at, used.open_calls), (None, 0));
    assert_eq!(
        listed(&store, "acme", None).await,
        ids(&[recent.clone(), live.clone()])
    );
    assert_eq!(store.get(&recent.key()).await.unwrap(), Some(recent));
    let again = store.create(Create {
        request: request("r", "f"),
        ..Draft::default().create()
    });
    assert!(again.await.unwrap().new, "the request's session is forgotten");
}

pub(crate) async fn one_that_lives_or_is_still_due_is_never_forgotten(store: Store) {
    let live = Draft::default().store(&store).await;
    let mut change = close(&Draft::default().store(&store).await);
    change.session.closed_at = Some(Timestamp::from_millis(1));
    change.due = Some(store.now().await.unwrap().after(FAR));
    let due = commit(&store, change).await;
    let nothing = keep(Duration::ZERO, 0, 0);
    assert_eq!(store.trim_ended(&nothing, 10).await.unwrap(), 0);
    assert_eq!(
        listed(&store, "acme", None).await,
        ids(&[live.clone(), due.clone()])
    );
    store.set_due(&due.key(), due.version, None).await.unwrap();
    assert_eq!(store.trim_ended(&nothing, 10).await.unwrap(), 1);
    assert_eq!(listed(&store, "acme", None).await, ids(&[live]));
}

pub(crate) async fn beyond_the_number_the_longest_ended_go_first(store: Store) {
    let mut of_bob = Vec::new();
    let mut of_eve = Vec::new();
    let mut elsewhere = Vec::new();
    for n in 1..=6 {
        for (sessions, org, owner) in [
            (&mut of_bob, "acme", "sa|bob"),
            (&mut of_eve, "acme", "sa|eve"),
            (&mut elsewhere, "other", "sa|bob"),
        ] {
            let session = Draft::of(org, owner).store(&store).await;
            // The newest sessions were closed first.
            sessions.push(end(&store, &session, MINUTE * n).await);
        }
    }
    let per_owner = keep(MINUTE * 60, 4, MANY);
    assert_eq!(store.trim_ended(&per_owner, 100).await.unwrap(), 6);
    assert_eq!(listed(&store, "acme", Some("sa|bob")).await, ids(&of_bob[..4]));
    assert_eq!(listed(&store, "acme", Some("sa|eve")).await, ids(&of_eve[..4]));
    assert_eq!(listed(&store, "other", None).await, ids(&elsewhere[..4]));

    let per_org = keep(MINUTE * 60, MANY, 4);
    assert_eq!(store.trim_ended(&per_org, 100).await.unwrap(), 4);
    let kept: Vec<_> = of_bob[..2].iter().chain(&of_eve[..2]).cloned().collect();
    assert_eq!(listed(&store, "acme", None).await, ids(&kept));
    assert_eq!(listed(&store, "other", None).await, ids(&elsewhere[..4]));
}

pub(crate) async fn many_are_forgotten_in_batches_by_whoever_comes(store: Store) {
    const ENDED: usize = 40;
    for n in 0..ENDED {
        let org = ["acme", "other", "third"][n % 3];
        let session = Draft::of(org, "sa|bob").store(&store).await;
        end(&store, &session, MINUTE).await;
    }
    let nothing = keep(Duration::ZERO, 0, 0);
    assert!(store.trim_ended(&nothing, 7).await.unwrap() <= 7);
    let trim = async || {
        let mut trimmed = 0;
        loop {
            match store.trim_ended(&nothing, 5).await.unwrap() {
                0 => return trimmed,
                some => trimmed += some,
            }
        }
    };
    let (a, b) = tokio::join!(trim(), trim());
    assert!(a + b <= ENDED, "{a} and {b}: each is forgotten once");
    for org in ["acme", "other", "third"] {
        assert!(listed(&store, org, None).await.is_empty());
    }
}
