//! Definitions and store health.

use crate::common::Store;
use futures::future::join_all;
use session_core::Quota;
use session_store::{Definition, DefinitionQuota, Error, Kind};
use std::collections::BTreeSet;

pub(crate) async fn definitions_are_compared_and_set(store: Store) {
    let name = "c one: {x}";
    let put = async |expected, json| store.put_definition(Kind::Cluster, name, expected, json).await;
    assert!(store.get_definition(Kind::Cluster, name).await.unwrap().is_none());
    assert!(matches!(put(1, "{}").await, Err(Error::NotFound)));
    assert_eq!(put(0, "{\"a\": 1}").await.unwrap(), 1);
    assert!(matches!(put(0, "{}").await, Err(Error::Exists)));
    assert!(matches!(put(7, "{}").await, Err(Error::Conflict)));
    assert_eq!(put(1, "{\"a\": 2}").await.unwrap(), 2);
    let stored = Definition {
        version: 2,
        json: "{\"a\": 2}".to_owned(),
    };
    assert_eq!(
        store.get_definition(Kind::Cluster, name).await.unwrap(),
        Some(stored)
    );

    let delete = async |expected| store.delete_definition(Kind::Cluster, name, expected).await;
    assert!(matches!(delete(1).await, Err(Error::Conflict)));
    delete(2).await.unwrap();
    assert!(matches!(delete(2).await, Err(Error::NotFound)));
    assert!(store.get_definition(Kind::Cluster, name).await.unwrap().is_none());

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
    assert_eq!(store.get_definitions(&wanted).await.unwrap(), expected);
    assert_eq!(store.get_definitions(&[]).await.unwrap(), []);

    let before = store.now().await.unwrap();
    let (found, now) = store.get_definitions_and_time(&wanted).await.unwrap();
    assert_eq!(found, expected);
    assert!((before..=store.now().await.unwrap()).contains(&now));
    assert_eq!(store.get_definitions_and_time(&[]).await.unwrap().0, []);
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
    let clusters = store.list_all_definitions(Kind::Cluster).await.unwrap();
    assert_eq!(clusters.keys().collect::<Vec<_>>(), ["x", "y"]);
    assert_eq!(
        clusters["y"],
        Definition {
            version: 1,
            json: "y".to_owned()
        }
    );
    let catalogs = store.list_all_definitions(Kind::Catalog).await.unwrap();
    assert_eq!(catalogs.keys().collect::<Vec<_>>(), ["acme/x"]);
    let names = async |kind, org: Option<&str>| {
        let org = org.map(|org| org.parse().unwrap());
        let names = store.definition_names(kind, org.as_ref()).await.unwrap();
        names.into_iter().collect::<Vec<_>>()
    };
    assert_eq!(names(Kind::Cluster, None).await, ["x", "y"]);
    assert_eq!(names(Kind::Catalog, Some("acme")).await, ["acme/x"]);
    assert_eq!(names(Kind::Disabled, Some("x")).await, ["x/sa|ada"]);
    assert!(names(Kind::Catalog, Some("x")).await.is_empty());
    store.delete_definition(Kind::Org, "x", 1).await.unwrap();
    assert!(store.list_all_definitions(Kind::Org).await.unwrap().is_empty());
    let disabled = store.list_all_definitions(Kind::Disabled).await.unwrap();
    assert_eq!(disabled.keys().collect::<Vec<_>>(), ["x", "x/sa|ada"]);
    assert_eq!(store.list_all_definitions(Kind::Cluster).await.unwrap().len(), 2);
}

pub(crate) async fn an_organization_defines_within_its_share(store: Store) {
    let quota = DefinitionQuota {
        entries: (Quota::Catalogs, 3),
        bytes: (Quota::CatalogBytes, 60),
    };
    let put = async |kind, name: &str, expected, json: &str| {
        store
            .put_definition_within_quota(kind, name, expected, json, &quota)
            .await
    };
    let over = |outcome: Result<u64, Error>| match outcome {
        Err(Error::Quota { quota, limit, .. }) => (quota, limit),
        other => panic!("{other:?}"),
    };
    for name in ["acme/a", "acme/b", "acme/c"] {
        assert_eq!(put(Kind::Catalog, name, 0, "{1}").await.unwrap(), 1);
    }
    assert_eq!(
        over(put(Kind::Catalog, "acme/d", 0, "{}").await),
        (Quota::Catalogs, 3)
    );
    assert!(matches!(
        put(Kind::Catalog, "acme/a", 0, "{}").await,
        Err(Error::Exists)
    ));
    // 27 of 60 bytes are used.
    let text = "x".repeat(36);
    assert_eq!(put(Kind::Catalog, "acme/a", 1, &text).await.unwrap(), 2);
    assert_eq!(
        over(put(Kind::Catalog, "acme/b", 1, "{22}").await),
        (Quota::CatalogBytes, 60)
    );
    assert_eq!(put(Kind::Catalog, "acme/b", 1, "{}").await.unwrap(), 2);
    // Definitions of others and of other kinds do not count; those of the configuration
    // have no quota.
    assert_eq!(put(Kind::Catalog, "beta/a", 0, &text).await.unwrap(), 1);
    assert_eq!(put(Kind::Disabled, "acme/sa|x", 0, "{}").await.unwrap(), 1);
    assert_eq!(put(Kind::Disabled, "acme", 0, &text).await.unwrap(), 1);
    assert_eq!(
        store
            .put_definition(Kind::Catalog, "acme/d", 0, &text)
            .await
            .unwrap(),
        1
    );
    // A deletion frees exactly its bytes.
    store.delete_definition(Kind::Catalog, "acme/d", 1).await.unwrap();
    store.delete_definition(Kind::Catalog, "acme/a", 2).await.unwrap();
    let text = "x".repeat(60 - 6 - (6 + 2) - (6 + 3));
    assert_eq!(
        over(put(Kind::Catalog, "acme/e", 0, &format!("{text}x")).await),
        (Quota::CatalogBytes, 60)
    );
    assert_eq!(put(Kind::Catalog, "acme/e", 0, &text).await.unwrap(), 1);

    let acme = "acme".parse().unwrap();
    let names = async |kind, org| {
        let found = store.list_definitions(kind, org).await.unwrap();
        found.into_keys().collect::<Vec<_>>()
    };
    assert_eq!(
        names(Kind::Catalog, Some(&acme)).await,
        ["acme/b", "acme/c", "acme/e"]
    );
    assert_eq!(names(Kind::Catalog, None).await, [""; 0]);
    assert_eq!(names(Kind::Disabled, None).await, ["acme"]);
    assert_eq!(names(Kind::Disabled, Some(&acme)).await, ["acme/sa|x"]);
    let orgs = async || store.list_orgs_with_definitions(Kind::Catalog).await.unwrap();
    assert_eq!(
        orgs().await,
        BTreeSet::from([acme.clone(), "beta".parse().unwrap()])
    );
    store.delete_definition(Kind::Catalog, "beta/a", 1).await.unwrap();
    assert_eq!(orgs().await, BTreeSet::from([acme]));
}

/// More than one page, some of them large.
pub(crate) async fn all_of_an_organizations_definitions_are_read(store: Store) {
    let large = "x".repeat(1000);
    let names: BTreeSet<String> = (0..700).map(|n| format!("acme/c{n}")).collect();
    for name in &names {
        store
            .put_definition(Kind::Catalog, name, 0, &large)
            .await
            .unwrap();
    }
    let acme = "acme".parse().unwrap();
    let found = store.list_definitions(Kind::Catalog, Some(&acme)).await.unwrap();
    assert_eq!(found.into_keys().collect::<BTreeSet<_>>(), names);
    assert_eq!(
        store.list_all_definitions(Kind::Catalog).await.unwrap().len(),
        700
    );
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
