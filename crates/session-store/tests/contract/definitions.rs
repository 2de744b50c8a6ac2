//! Definitions, and what a store says of itself.

use crate::common::Store;
use futures::future::join_all;
use session_store::{Definition, Error, Kind};

pub(crate) async fn definitions_are_compared_and_set(store: Store) {
    let name = "c one: {x}";
    let put = async |expected, json| store.put_definition(Kind::Cluster, name, expected, json).await;
    assert!(store.definition(Kind::Cluster, name).await.unwrap().is_none());
    assert!(matches!(put(1, "{}").await, Err(Error::NotFound)));
    assert_eq!(put(0, "{\"a\": 1}").await.unwrap(), 1);
    assert!(matches!(put(0, "{}").await, Err(Error::Exists)));
    assert!(matches!(put(7, "{}").await, Err(Error::Conflict)));
    assert_eq!(put(1, "{\"a\": 2}").await.unwrap(), 2);
    let stored = Definition {
        version: 2,
        json: "{\"a\": 2}".to_owned(),
    };
    assert_eq!(store.definition(Kind::Cluster, name).await.unwrap(), Some(stored));

    let delete = async |expected| store.delete_definition(Kind::Cluster, name, expected).await;
    assert!(matches!(delete(1).await, Err(Error::Conflict)));
    delete(2).await.unwrap();
    assert!(matches!(delete(2).await, Err(Error::NotFound)));
    assert!(store.definition(Kind::Cluster, name).await.unwrap().is_none());

    let racers = (0..50).map(|_| store.put_definition(Kind::Cluster, "race", 0, "{}"));
    assert_eq!(
        join_all(racers)
            .await
            .iter()
            .filter(|result| result.is_ok())
            .count(),
        1
    );
}

pub(crate) async fn several_are_read_in_their_order(store: Store) {
    let of = |version: u64, json: &str| {
        Some(Definition {
            version,
            json: json.to_owned(),
        })
    };
    store.put_definition(Kind::Org, "acme", 0, "{}").await.unwrap();
    store.put_definition(Kind::Cluster, "c", 0, "1").await.unwrap();
    store.put_definition(Kind::Cluster, "c", 1, "[2]").await.unwrap();
    let wanted = [
        (Kind::Cluster, "c".to_owned()),
        (Kind::Disabled, "acme".to_owned()),
        (Kind::Org, "acme".to_owned()),
    ];
    let expected = [of(2, "[2]"), None, of(1, "{}")];
    assert_eq!(store.some_definitions(&wanted).await.unwrap(), expected);
    assert_eq!(store.some_definitions(&[]).await.unwrap(), []);

    let before = store.now().await.unwrap();
    let (found, now) = store.some_definitions_now(&wanted).await.unwrap();
    assert_eq!(found, expected);
    assert!((before..=store.now().await.unwrap()).contains(&now));
    assert_eq!(store.some_definitions_now(&[]).await.unwrap().0, []);
}

pub(crate) async fn kinds_are_apart(store: Store) {
    for (kind, name) in [
        (Kind::Cluster, "x"),
        (Kind::Cluster, "y"),
        (Kind::Catalog, "acme/x"),
        (Kind::Org, "x"),
        (Kind::Disabled, "x"),
        (Kind::Disabled, "x/sa|ada"),
    ] {
        store.put_definition(kind, name, 0, name).await.unwrap();
    }
    let clusters = store.definitions(Kind::Cluster).await.unwrap();
    assert_eq!(clusters.keys().collect::<Vec<_>>(), ["x", "y"]);
    assert_eq!(
        clusters["y"],
        Definition {
            version: 1,
            json: "y".to_owned()
        }
    );
    let catalogs = store.definitions(Kind::Catalog).await.unwrap();
    assert_eq!(catalogs.keys().collect::<Vec<_>>(), ["acme/x"]);
    store.delete_definition(Kind::Org, "x", 1).await.unwrap();
    assert!(store.definitions(Kind::Org).await.unwrap().is_empty());
    let disabled = store.definitions(Kind::Disabled).await.unwrap();
    assert_eq!(disabled.keys().collect::<Vec<_>>(), ["x", "x/sa|ada"]);
    assert_eq!(store.definitions(Kind::Cluster).await.unwrap().len(), 2);
}

pub(crate) async fn the_store_has_a_clock_an_epoch_and_a_pulse(store: Store) {
    let before = store.now().await.unwrap();
    assert!(store.now().await.unwrap() >= before);
    assert!(before.as_secs() > 1_700_000_000);
    let epoch = store.epoch().await.unwrap();
    assert!(epoch > 0);
    assert_eq!(store.epoch().await.unwrap(), epoch);
    store.ping().await.unwrap();
}
