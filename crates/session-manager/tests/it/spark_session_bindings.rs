//! Spark sessions on shared servers: bound to one session, prepared, released.

use crate::support;
use crate::support::{Manager, on, until};
use compute::simulation::{Call, Fault};
use futures::future::join_all;
use session_core::{Reason, Route, SessionKey};
use session_proto::error::reason_of;
use session_proto::internal as wire;
use session_proto::v1::{self, SessionStatus};
use session_store::prelude::*;
use session_store::spark_bindings::{Bind, BindingState, Bound, SparkSession};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use tonic::Code;

const SERVER: &str = "spark.internal:15002";

const SHARED: &str = r#"
[[clusters]]
name = "shared"
engine = "sail"
granted_orgs = ["acme"]
static.endpoints = [{ address = "Spark.Internal:15002" }]
[[catalogs]]
name = "lake"
org = "acme"
engine = "sail"
default_database = "dev"
properties = { type = "memory" }
"#;

async fn start() -> Manager {
    Manager::start_with(SHARED).await
}

fn id(n: usize) -> String {
    format!("0b5c2e9e-1f3a-4c6d-8e7f-{n:012x}")
}

fn shared_route() -> Route {
    Route {
        dedicated: false,
        // In the spelling of the definition.
        ..support::route("Spark.Internal:15002")
    }
}

async fn active(manager: &Manager, who: &str, catalog: &str) -> SessionKey {
    let request = v1::CreateSessionRequest {
        catalog: catalog.to_owned(),
        ..on("shared")
    };
    let key = manager.create_as(who, request).await;
    manager.sim.ready(&key, 1, shared_route());
    manager.until_status(&key, SessionStatus::Active).await;
    key
}

async fn bindings(manager: &Manager, key: &SessionKey) -> BTreeSet<String> {
    let route = manager.route_of(key).await;
    route.bindings.into_iter().map(|of| of.spark_session_id).collect()
}

fn ids(all: impl IntoIterator<Item = usize>) -> BTreeSet<String> {
    all.into_iter().map(id).collect()
}

#[tokio::test]
async fn an_id_belongs_to_the_first_session_until_it_closes() {
    let manager = start().await;
    let other = manager.another_with(SHARED).await;
    let (first, second) = (
        active(&manager, "ada", "").await,
        active(&manager, "bob", "").await,
    );
    assert!(manager.bind(&first, &id(1)).await.unwrap());
    assert!(other.bind(&first, &id(1)).await.unwrap(), "the same again");
    assert!(!other.bind(&second, &id(1)).await.unwrap(), "another's");
    assert!(manager.bind(&second, &id(2)).await.unwrap());
    assert_eq!(bindings(&other, &first).await, ids([1]));
    assert_eq!(bindings(&manager, &second).await, ids([2]));
    assert!(manager.sim.selected_catalogs().is_empty(), "no catalog, no call");

    manager.close("ada", &first).await;
    until("the id to be released", async || {
        manager.store.list_bindings(&first).await.unwrap().is_empty()
    })
    .await;
    let spark: session_core::SparkSessionId = id(1).parse().unwrap();
    assert_eq!(manager.sim.ended(), [(first.clone(), SERVER.to_owned(), spark)]);
    let refused = manager.bind(&first, &id(3)).await.unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::SessionClosed), "{refused}");
    assert!(manager.bind(&second, &id(1)).await.unwrap(), "free again");
    until("the compute to be gone", async || {
        manager.sim.live().iter().all(|(key, _)| *key != first)
    })
    .await;
}

#[tokio::test]
async fn one_of_many_sessions_that_race_over_two_managers_wins() {
    let manager = start().await;
    let other = manager.another_with(SHARED).await;
    let mut keys = Vec::new();
    for n in 0..8 {
        keys.push(active(&manager, ["ada", "bob"][n % 2], "").await);
    }
    for round in 0..5 {
        let text = id(round);
        let binds = keys.iter().enumerate().map(|(n, key)| {
            let at = if n % 3 == 0 { &manager } else { &other };
            at.bind(key, &text)
        });
        let bound = join_all(binds).await;
        let won = bound.into_iter().filter(|bound| *bound.as_ref().unwrap());
        assert_eq!(won.count(), 1);
    }
}

#[tokio::test]
async fn invalid_binds_are_rejected_each_with_its_reason() {
    let manager = start().await;
    let key = active(&manager, "ada", "").await;
    for text in ["", "1-1-1-1-1", &id(1)[1..], &format!("{}0", id(1))] {
        let refused = manager.bind(&key, text).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{text}: {refused}");
    }
    for generation in [0, 2] {
        let refused = manager.bind_on(&key, &id(1), generation).await.unwrap_err();
        assert_eq!(
            (refused.code(), reason_of(&refused)),
            (Code::Unavailable, Some(Reason::SessionWarming)),
            "{refused}"
        );
    }
    let forged = wire::BindSparkSessionRequest {
        session_token: "x.y.z".to_owned(),
        spark_session_id: id(1),
        generation: 1,
        cloned: false,
        ..Default::default()
    };
    let refused = manager.routes().bind_spark_session(forged).await.unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::TokenMalformed));
    let unknown = support::key("s-00000000000000000000");
    let refused = manager.bind(&unknown, &id(1)).await.unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::SessionClosed));

    let request = on("shared");
    let pending = manager.create_as("ada", request).await;
    let refused = manager.bind(&pending, &id(1)).await.unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::SessionWarming));
    manager.sim.fail(&pending, 1, "no such server", true);
    manager.until_status(&pending, SessionStatus::Failed).await;
    let refused = manager.bind(&pending, &id(1)).await.unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::SessionFailed));

    let session_id = key.id.to_string();
    manager
        .ledger("ada")
        .revoke_all(wire::RevokeAllRequest { session_id })
        .await
        .unwrap();
    let refused = manager.bind(&key, &id(1)).await.unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::TokenRevoked));
    assert!(manager.store.list_bindings(&key).await.unwrap().is_empty());
}

#[tokio::test]
async fn dedicated_compute_needs_no_binding() {
    let manager = start().await;
    let key = manager.active("ada").await;
    assert!(manager.bind(&key, &id(1)).await.unwrap());
    assert!(manager.store.list_bindings(&key).await.unwrap().is_empty());
    assert!(bindings(&manager, &key).await.is_empty());
    let refused = manager.bind_on(&key, &id(1), 2).await.unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::SessionWarming));
    manager.close("ada", &key).await;
    until("the compute to be gone", async || manager.sim.live().is_empty()).await;
    assert!(manager.sim.selected_catalogs().is_empty() && manager.sim.ended().is_empty());
}

#[tokio::test]
async fn binds_return_after_the_catalog_was_chosen_once() {
    let manager = start().await;
    let other = manager.another_with(SHARED).await;
    let key = active(&manager, "ada", "lake").await;
    let slow = Duration::from_secs(1);
    manager.sim.inject(Call::SelectCatalog, Fault::Takes(slow));
    let begun = Instant::now();
    let text = id(1);
    let binds = (0..6).map(|n| {
        let at = if n % 2 == 0 { &manager } else { &other };
        at.bind(&key, &text)
    });
    let look = async {
        until("the choice to begin", async || {
            !manager.store.list_bindings(&key).await.unwrap().is_empty()
        })
        .await;
        assert!(
            bindings(&manager, &key).await.is_empty(),
            "not ready, not returned"
        );
    };
    let (bound, ()) = tokio::join!(join_all(binds), look);
    assert!(bound.into_iter().all(|bound| bound.unwrap()));
    assert!(begun.elapsed() >= slow, "{:?}", begun.elapsed());
    assert_eq!(
        manager.sim.selected_catalogs().len(),
        1,
        "a choice of the user's own is not undone"
    );
    assert_eq!(bindings(&manager, &key).await, ids([1]));
}

#[tokio::test]
async fn a_catalog_that_cannot_be_chosen_is_reported_and_retried() {
    let manager = start().await;
    let key = active(&manager, "ada", "lake").await;
    manager.sim.inject(
        Call::SelectCatalog,
        Fault::Fails("the server has no such catalog".to_owned()),
    );
    let refused = manager.bind(&key, &id(1)).await.unwrap_err();
    assert_eq!(
        (refused.code(), reason_of(&refused)),
        (Code::FailedPrecondition, Some(Reason::CatalogUnavailable))
    );
    assert!(
        refused.message().contains("catalog lake cannot be used") && refused.message().contains("Try again"),
        "{refused}"
    );
    assert!(bindings(&manager, &key).await.is_empty(), "it is not good");
    let begun = Instant::now();
    assert!(manager.bind(&key, &id(1)).await.unwrap());
    assert!(begun.elapsed() < Duration::from_secs(5), "nothing is waited for");
    assert_eq!(bindings(&manager, &key).await, ids([1]));
}

#[tokio::test]
async fn a_preparation_after_a_crash_is_repeated_by_the_next_bind() {
    let manager = start().await;
    let key = active(&manager, "ada", "lake").await;
    // A manager that claimed the preparation and crashed.
    let crashed = Bind {
        spark: SparkSession {
            server: SERVER.to_owned(),
            id: id(1).parse().unwrap(),
        },
        holder: key.clone(),
        generation: 1,
        ticket: "crashed".to_owned(),
        prepare: Some(Duration::from_secs(2)),
        limit: 256,
    };
    assert_eq!(manager.store.bind(&crashed).await.unwrap(), Bound::Prepare);
    assert!(bindings(&manager, &key).await.is_empty());
    assert!(manager.bind(&key, &id(1)).await.unwrap());
    assert_eq!(manager.sim.selected_catalogs().len(), 1);
    assert_eq!(bindings(&manager, &key).await, ids([1]));
}

#[tokio::test]
async fn the_257th_binding_ends_the_oldest() {
    let manager = start().await;
    let key = active(&manager, "ada", "").await;
    for n in 0..256 {
        assert!(manager.bind(&key, &id(n)).await.unwrap());
    }
    let before = manager.route_of(&key).await;
    assert_eq!(before.bindings.len(), 256);
    // The server is unreachable: no binding is removed or added.
    manager
        .sim
        .inject(Call::EndSparkSessions, Fault::Fails("away".to_owned()));
    let refused = manager.bind(&key, &id(256)).await.unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::BackendUnavailable), "{refused}");
    assert!(!bindings(&manager, &key).await.contains(&id(0)), "on its way");

    assert!(manager.bind(&key, &id(256)).await.unwrap());
    let after = manager.route_of(&key).await;
    assert!(
        after.version > before.version,
        "proxies that cached the old ones are notified"
    );
    assert_eq!(bindings(&manager, &key).await, ids(1..=256));
    let ended: Vec<_> = manager
        .sim
        .ended()
        .into_iter()
        .map(|(_, _, id)| id.to_string())
        .collect();
    assert_eq!(ended, [id(0)]);
    let other = active(&manager, "bob", "").await;
    assert!(manager.bind(&other, &id(0)).await.unwrap());
}

#[tokio::test]
async fn a_failed_release_is_repeated_and_permits_no_new_binding() {
    let manager = start().await;
    let key = active(&manager, "ada", "").await;
    for n in 0..20 {
        assert!(manager.bind(&key, &id(n)).await.unwrap());
    }
    manager
        .sim
        .inject(Call::EndSparkSessions, Fault::Fails("away".to_owned()));
    manager
        .sim
        .inject(Call::EndSparkSessions, Fault::FailsAfterwards("lost".to_owned()));
    let late = (100..140).map(|n| {
        let (manager, key) = (&manager, &key);
        async move { manager.bind(key, &id(n)).await }
    });
    let (_, late) = tokio::join!(manager.close("ada", &key), join_all(late));
    for outcome in late {
        if let Err(refused) = outcome {
            assert_eq!(reason_of(&refused), Some(Reason::SessionClosed), "{refused}");
        }
    }
    until("everything to be released", async || {
        manager.store.list_bindings(&key).await.unwrap().is_empty() && manager.sim.live().is_empty()
    })
    .await;
    let ended: BTreeSet<_> = manager
        .sim
        .ended()
        .into_iter()
        .map(|(_, _, id)| id.to_string())
        .collect();
    assert!(ids(0..20).is_subset(&ended));
    assert!(manager.bind(&key, &id(1)).await.is_err());
    assert!(manager.store.list_bindings(&key).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_release_after_a_crash_is_continued_by_another_manager() {
    let first = start().await;
    let key = active(&first, "ada", "").await;
    assert!(first.bind(&key, &id(1)).await.unwrap());
    first
        .sim
        .inject(Call::EndSparkSessions, Fault::Takes(Duration::from_secs(3600)));
    first.close("ada", &key).await;
    until("the release to be under way", async || {
        let bind = Bind {
            spark: SparkSession {
                server: SERVER.to_owned(),
                id: id(2).parse().unwrap(),
            },
            holder: key.clone(),
            generation: 1,
            ticket: "t".to_owned(),
            prepare: None,
            limit: 256,
        };
        first.store.bind(&bind).await.unwrap() == Bound::Sealed
    })
    .await;
    let second = first.another_with(SHARED).await;
    first.crash();
    until("the id to be released", async || {
        second.store.list_bindings(&key).await.unwrap().is_empty() && second.sim.live().is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_close_while_the_catalog_is_being_chosen_leaves_no_binding() {
    let manager = start().await;
    let key = active(&manager, "ada", "lake").await;
    manager
        .sim
        .inject(Call::SelectCatalog, Fault::Takes(Duration::from_secs(1)));
    let text = id(1);
    let close = async {
        until("the choice to begin", async || {
            !manager.store.list_bindings(&key).await.unwrap().is_empty()
        })
        .await;
        let states = manager.store.list_bindings(&key).await.unwrap();
        assert_eq!(states[0].state, BindingState::Unready);
        manager.close("ada", &key).await;
    };
    let (bound, ()) = tokio::join!(manager.bind(&key, &text), close);
    let refused = bound.unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::SessionClosed), "{refused}");
    until("everything to be released", async || {
        manager.store.list_bindings(&key).await.unwrap().is_empty() && manager.sim.live().is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_cluster_of_static_servers_requires_one_organization() {
    let manager = start().await;
    let define = async |engine: v1::Engine, orgs: &[&str], allow: bool| {
        let cluster = v1::Cluster {
            name: format!("x{}{}{allow}", orgs.len(), engine as i32),
            engine: engine.into(),
            granted_orgs: orgs.iter().map(|org| (*org).to_owned()).collect(),
            provider: Some(v1::cluster::Provider::Static(v1::StaticProvider {
                endpoints: vec![v1::StaticEndpoint {
                    address: "10.0.0.1:1".to_owned(),
                    ..Default::default()
                }],
                allow_shared_untrusted: allow,
            })),
            ..Default::default()
        };
        let request = v1::CreateClusterRequest {
            cluster: Some(cluster),
        };
        manager.clusters("pat").create_cluster(request).await
    };
    for engine in [v1::Engine::Sail, v1::Engine::Spark] {
        for orgs in [[].as_slice(), &["acme", "other"]] {
            let refused = define(engine, orgs, false).await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument);
            assert!(
                refused.message().contains("granted_orgs")
                    && refused.message().contains("allow_shared_untrusted"),
                "{refused}"
            );
            let allowed = define(engine, orgs, true).await.unwrap().into_inner();
            let Some(v1::cluster::Provider::Static(shown)) = allowed.cluster.unwrap().provider else {
                panic!("not shown as it was defined");
            };
            assert!(shown.allow_shared_untrusted);
        }
        define(engine, &["acme"], false).await.unwrap();
    }
}
