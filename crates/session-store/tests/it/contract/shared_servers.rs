//! Placements on static servers, and bindings of Spark sessions.

use crate::common::{Draft, LIMIT, Store, eventually, unique};
use futures::future::join_all;
use session_core::SessionKey;
use session_store::spark_bindings::{Bind, Binding, BindingState, Bound, SparkSession};
use std::collections::BTreeMap;
use std::time::Duration;

const MANY: usize = 256;

pub(crate) fn spark(server: &str) -> SparkSession {
    SparkSession {
        server: server.to_owned(),
        id: format!("0b5c2e9e-1f3a-4c6d-8e7f-{:012x}", unique())
            .parse()
            .unwrap(),
    }
}

fn holder() -> SessionKey {
    Draft::default().transition().session.key()
}

pub(crate) fn plain(holder: &SessionKey, spark: &SparkSession) -> Bind {
    Bind {
        spark: spark.clone(),
        holder: holder.clone(),
        generation: 1,
        ticket: format!("t{}", unique()),
        prepare: None,
        limit: MANY,
    }
}

async fn bound(store: &Store, bind: &Bind) -> Bound {
    store.bind(bind).await.unwrap()
}

async fn names(store: &Store, holder: &SessionKey) -> Vec<SparkSession> {
    let bindings = store.list_bindings(holder).await.unwrap();
    bindings.into_iter().map(|binding| binding.spark).collect()
}

fn to_release(bound: Bound) -> Binding {
    match bound {
        Bound::Release(binding) => {
            assert_eq!(binding.state, BindingState::Releasing);
            *binding
        }
        other => panic!("nothing to release but {other:?}"),
    }
}

pub(crate) async fn the_first_binder_of_an_id_wins_over_all_organizations(store: Store) {
    let spark_session = spark("10.0.0.1:15002");
    let racers: Vec<_> = (0..60)
        .map(|n| {
            Draft::of(["acme", "b", "c"][n % 3], "sa|bob")
                .transition()
                .session
                .key()
        })
        .collect();
    let binds: Vec<_> = racers.iter().map(|racer| plain(racer, &spark_session)).collect();
    let outcomes = join_all(binds.iter().map(|bind| store.bind(bind))).await;
    let outcomes: Vec<_> = outcomes.into_iter().map(Result::unwrap).collect();
    let won = outcomes.iter().filter(|outcome| **outcome == Bound::Ready);
    assert_eq!(won.count(), 1, "{outcomes:?}");
    let lost = outcomes.iter().filter(|outcome| **outcome == Bound::Taken);
    assert_eq!(lost.count(), racers.len() - 1, "{outcomes:?}");

    let winner = outcomes
        .iter()
        .position(|outcome| *outcome == Bound::Ready)
        .unwrap();
    assert_eq!(
        bound(&store, &binds[winner]).await,
        Bound::Ready,
        "safe to call again"
    );
    for (n, racer) in racers.iter().enumerate() {
        assert_eq!(names(&store, racer).await.len(), usize::from(n == winner));
    }
    // The same id on another server, and another spelling, are different ids.
    let elsewhere = SparkSession {
        server: "10.0.0.2:15002".to_owned(),
        ..spark_session.clone()
    };
    let loser = &racers[(winner + 1) % racers.len()];
    assert_eq!(bound(&store, &plain(loser, &elsewhere)).await, Bound::Ready);
    let shouted = SparkSession {
        id: spark_session.id.as_str().to_uppercase().parse().unwrap(),
        ..spark_session
    };
    assert_eq!(bound(&store, &plain(loser, &shouted)).await, Bound::Ready);
}

pub(crate) async fn one_preparer_at_a_time_makes_a_binding_ready(store: Store) {
    let (holder, spark_session) = (holder(), spark("a:1"));
    let with = |time| Bind {
        prepare: Some(time),
        ..plain(&holder, &spark_session)
    };
    let (first, second) = (with(LIMIT), with(LIMIT));
    assert_eq!(bound(&store, &first).await, Bound::Prepare);
    assert_eq!(bound(&store, &second).await, Bound::Wait);
    assert_eq!(bound(&store, &first).await, Bound::Prepare, "safe to call again");
    let prepared = async |bind: &Bind, ready| {
        store
            .finish_preparation(&holder, &spark_session, &bind.ticket, ready)
            .await
            .unwrap()
    };
    assert!(!prepared(&second, true).await, "it is not its to make ready");
    assert_eq!(bound(&store, &second).await, Bound::Wait);
    // The preparation failed, so the next one starts at once.
    assert!(prepared(&first, false).await);
    assert_eq!(bound(&store, &second).await, Bound::Prepare);
    assert!(!prepared(&first, true).await);
    assert!(prepared(&second, true).await);
    assert_eq!(bound(&store, &first).await, Bound::Ready);
    assert!(!prepared(&second, false).await, "what is ready stays ready");
    assert_eq!(bound(&store, &with(LIMIT)).await, Bound::Ready);
    let bindings = store.list_bindings(&holder).await.unwrap();
    assert_eq!(bindings[0].state, BindingState::Ready);
    assert_eq!(bindings[0].serial, first.ticket, "whoever made it");
}

pub(crate) async fn a_preparer_that_is_gone_is_followed_by_the_next(store: Store) {
    let (holder, spark_session) = (holder(), spark("a:1"));
    let gone = Bind {
        prepare: Some(Duration::from_millis(100)),
        ..plain(&holder, &spark_session)
    };
    assert_eq!(bound(&store, &gone).await, Bound::Prepare);
    assert_eq!(
        store.list_bindings(&holder).await.unwrap()[0].state,
        BindingState::Unready
    );
    let next = Bind {
        prepare: Some(LIMIT),
        ..plain(&holder, &spark_session)
    };
    eventually("the next one to prepare", async || {
        match bound(&store, &next).await {
            Bound::Prepare => Ok(()),
            other => Err(other),
        }
    })
    .await;
    let late = store
        .finish_preparation(&holder, &spark_session, &gone.ticket, true)
        .await;
    assert!(!late.unwrap(), "its time is over");
    assert_eq!(
        bound(&store, &plain(&holder, &spark_session)).await,
        Bound::Wait,
        "also for one who has nothing to prepare"
    );
}

pub(crate) async fn the_least_recently_bound_makes_room(store: Store) {
    let holder = holder();
    let all: Vec<_> = (0..5).map(|_| spark("a:1")).collect();
    let bind = |n: usize| Bind {
        limit: 4,
        ..plain(&holder, &all[n])
    };
    for n in 0..4 {
        assert_eq!(bound(&store, &bind(n)).await, Bound::Ready);
    }
    assert_eq!(bound(&store, &bind(0)).await, Bound::Ready, "bound last now");
    let oldest = to_release(bound(&store, &bind(4)).await);
    assert_eq!(oldest.spark, all[1]);
    // Until its release no binding succeeds, and it cannot be bound again.
    assert_eq!(to_release(bound(&store, &bind(4)).await), oldest);
    assert_eq!(to_release(bound(&store, &bind(1)).await), oldest);
    store.unbind(&holder, &oldest, Duration::ZERO).await.unwrap();
    store.unbind(&holder, &oldest, Duration::ZERO).await.unwrap();
    assert_eq!(bound(&store, &bind(4)).await, Bound::Ready);
    assert_eq!(
        names(&store, &holder).await,
        [&all[2], &all[3], &all[0], &all[4]].map(Clone::clone)
    );
    // Another session can bind it.
    let other = Draft::of("x", "sa|eve").transition().session.key();
    assert_eq!(bound(&store, &plain(&other, &all[1])).await, Bound::Ready);
}

pub(crate) async fn never_more_than_the_limit_however_many_bind_at_once(store: Store) {
    const LIMIT: usize = 10;
    let holder = holder();
    let binders = (0..60).map(|_| {
        let (store, holder) = (store.clone(), holder.clone());
        async move {
            let bind = Bind {
                limit: LIMIT,
                ..plain(&holder, &spark("a:1"))
            };
            loop {
                match bound(&store, &bind).await {
                    Bound::Ready => break,
                    Bound::Release(oldest) => {
                        store.unbind(&holder, &oldest, Duration::ZERO).await.unwrap();
                    }
                    other => panic!("{other:?}"),
                }
                assert!(names(&store, &holder).await.len() <= LIMIT);
            }
        }
    });
    join_all(binders).await;
    assert_eq!(names(&store, &holder).await.len(), LIMIT);
}

pub(crate) async fn a_sealed_generation_gets_nothing_more(store: Store) {
    let (holder, spark_session) = (holder(), spark("a:1"));
    let bind = |generation, spark_session: &SparkSession| Bind {
        generation,
        ..plain(&holder, spark_session)
    };
    assert_eq!(bound(&store, &bind(2, &spark_session)).await, Bound::Ready);
    store.seal_bindings(&holder, 2).await.unwrap();
    store.seal_bindings(&holder, 1).await.unwrap();
    for generation in [1, 2] {
        assert_eq!(
            bound(&store, &bind(generation, &spark("a:1"))).await,
            Bound::Sealed
        );
        assert_eq!(
            bound(&store, &bind(generation, &spark_session)).await,
            Bound::Sealed
        );
    }
    // A new generation binds an id only after the older one released it.
    let old = to_release(bound(&store, &bind(3, &spark_session)).await);
    assert_eq!((old.spark.clone(), old.generation), (spark_session.clone(), 2));
    store.unbind(&holder, &old, Duration::ZERO).await.unwrap();
    assert_eq!(bound(&store, &bind(3, &spark_session)).await, Bound::Ready);
    assert_eq!(store.list_bindings(&holder).await.unwrap()[0].generation, 3);
    let other = Draft::default().transition().session.key();
    assert_eq!(bound(&store, &plain(&other, &spark("a:1"))).await, Bound::Ready);
}

pub(crate) async fn only_the_very_binding_is_given_back(store: Store) {
    let (first, second) = (holder(), holder());
    let spark_session = spark("a:1");
    let give_back = async |binding: &Binding, keep| {
        store.unbind(&first, binding, keep).await.unwrap();
    };
    let only = async || store.list_bindings(&first).await.unwrap().remove(0);
    assert_eq!(bound(&store, &plain(&first, &spark_session)).await, Bound::Ready);
    let before = only().await;
    store.unbind(&second, &before, Duration::ZERO).await.unwrap();
    assert_eq!(bound(&store, &plain(&second, &spark_session)).await, Bound::Taken);
    give_back(&before, Duration::ZERO).await;
    assert!(names(&store, &first).await.is_empty());

    assert_eq!(bound(&store, &plain(&first, &spark_session)).await, Bound::Ready);
    give_back(&before, Duration::ZERO).await;
    assert_eq!(
        names(&store, &first).await,
        std::slice::from_ref(&spark_session),
        "this one is another"
    );

    // Released, and reserved for a time.
    give_back(&only().await, Duration::from_millis(500)).await;
    assert!(names(&store, &first).await.is_empty());
    for holder in [&first, &second] {
        assert_eq!(bound(&store, &plain(holder, &spark_session)).await, Bound::Taken);
    }
    eventually("the id to be free", async || {
        match bound(&store, &plain(&second, &spark_session)).await {
            Bound::Ready => Ok(()),
            other => Err(other),
        }
    })
    .await;
}

pub(crate) async fn sessions_are_placed_on_the_server_with_the_fewest(store: Store) {
    let servers = ["a:1", "b:1", "c:1"].map(str::to_owned);
    let sessions: Vec<_> = (0..60).map(|_| holder()).collect();
    let taken = join_all(
        sessions
            .iter()
            .map(|session| store.place_session(&servers, session, true)),
    )
    .await;
    let mut count = BTreeMap::<String, usize>::new();
    for place in taken {
        *count.entry(place.unwrap().unwrap()).or_default() += 1;
    }
    assert_eq!(count.into_values().collect::<Vec<_>>(), [20, 20, 20]);

    let (one, other) = (&sessions[0], &sessions[1]);
    let place = store.list_placements(one).await.unwrap().remove(0);
    assert_eq!(
        store.place_session(&servers, one, true).await.unwrap().as_ref(),
        Some(&place),
        "it keeps the one it has"
    );
    store.remove_placement(&place, one).await.unwrap();
    store.remove_placement(&place, one).await.unwrap();
    assert!(store.list_placements(one).await.unwrap().is_empty());
    assert_eq!(
        store.place_session(&servers, one, true).await.unwrap(),
        Some(place),
        "the fewest are there now"
    );
    assert_eq!(store.list_placements(other).await.unwrap().len(), 1);
    assert_eq!(store.place_session(&[], one, false).await.unwrap(), None);
}

pub(crate) async fn a_server_can_be_kept_to_one_organization(store: Store) {
    let servers = ["a:1", "b:1"].map(str::to_owned);
    let session = |org| Draft::of(org, "sa|bob").transition().session.key();
    let take = async |key: &SessionKey, alone| store.place_session(&servers, key, alone).await.unwrap();
    // One name is a prefix of the other.
    let (acme, longer, third) = (session("acme"), session("acme-2"), session("third"));
    assert_eq!(take(&acme, true).await.as_deref(), Some("a:1"));
    assert_eq!(take(&session("acme"), true).await.as_deref(), Some("b:1"));
    assert_eq!(take(&longer, true).await, None);
    assert_eq!(
        take(&longer, false).await.as_deref(),
        Some("a:1"),
        "if it is allowed"
    );
    store.remove_placement("a:1", &longer).await.unwrap();
    store.remove_placement("a:1", &acme).await.unwrap();
    assert_eq!(take(&longer, true).await.as_deref(), Some("a:1"));

    let racers: Vec<_> = (0..20).map(|n| session(["x", "y"][n % 2])).collect();
    let one = ["z:1".to_owned()];
    let taken = join_all(racers.iter().map(|racer| store.place_session(&one, racer, true))).await;
    let orgs: Vec<_> = racers
        .iter()
        .zip(taken)
        .filter(|(_, place)| place.as_ref().unwrap().is_some())
        .map(|(racer, _)| racer.org.as_str())
        .collect();
    assert_eq!(orgs.len(), 10);
    assert!(orgs.iter().all(|org| *org == orgs[0]), "{orgs:?}");
    assert_eq!(store.place_session(&one, &third, true).await.unwrap(), None);
}
