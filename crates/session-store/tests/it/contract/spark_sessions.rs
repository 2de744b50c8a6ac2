//! Spark sessions on dedicated compute, and their settings.

use crate::common::{Draft, Store, unique};
use futures::future::join_all;
use session_core::{SessionKey, SparkSessionId};
use session_store::spark_sessions::{
    MAX_SETTINGS_BYTES, MAX_SPARK_SESSIONS, SettingsChange, SparkSessionUse,
};
use std::collections::BTreeMap;

fn session() -> SessionKey {
    Draft::default().transition().session.key()
}

fn spark() -> SparkSessionId {
    format!("0b5c2e9e-1f3a-4c6d-8e7f-{:012x}", unique())
        .parse()
        .unwrap()
}

fn change(id: &SparkSessionId, generation: u64, set: &[(&str, &str)], unset: &[&str]) -> SettingsChange {
    SettingsChange {
        spark_session: id.clone(),
        generation,
        set: set
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        unset: unset.iter().map(|&name| name.to_owned()).collect(),
    }
}

async fn settings(store: &Store, key: &SessionKey, id: &SparkSessionId) -> (u64, BTreeMap<String, String>) {
    let all = store.spark_sessions(key).await.unwrap();
    let kept = all.get(id).cloned().unwrap();
    (kept.generation, kept.settings)
}

pub(crate) async fn settings_are_kept_as_they_were_last(store: Store) {
    let (key, id) = (session(), spark());
    assert!(store.spark_sessions(&key).await.unwrap().is_empty());
    let odd = "ä \" \\ {} \n 1";
    for (set, unset) in [
        (&[("spark.a", "1"), ("1", odd)][..], &[][..]),
        (&[("spark.b", "")][..], &["spark.none"][..]),
        (&[("spark.a", "2")][..], &["spark.b"][..]),
    ] {
        let change = change(&id, 1, set, unset);
        // A repeat changes nothing.
        for _ in 0..2 {
            assert!(store.store_settings(&key, &change).await.unwrap());
        }
    }
    let expected = [("spark.a", "2"), ("1", odd)].map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(settings(&store, &key, &id).await, (1, expected.into()));
    assert!(
        store
            .store_settings(&key, &change(&id, 1, &[], &["spark.a", "1"]))
            .await
            .unwrap()
    );
    assert_eq!(settings(&store, &key, &id).await, (1, BTreeMap::new()));
    assert!(
        store.spark_sessions(&session()).await.unwrap().is_empty(),
        "another session's"
    );
    store.forget_spark_sessions(&key).await.unwrap();
    assert!(store.spark_sessions(&key).await.unwrap().is_empty());
}

pub(crate) async fn settings_beyond_the_bounds_change_nothing(store: Store) {
    let (key, id) = (session(), spark());
    let long = "x".repeat(MAX_SETTINGS_BYTES - 7);
    assert!(
        store
            .store_settings(&key, &change(&id, 2, &[("spark.a", &long)], &[]))
            .await
            .unwrap()
    );
    assert!(
        !store
            .store_settings(&key, &change(&id, 2, &[("b", "")], &[]))
            .await
            .unwrap()
    );
    // A late report of replaced compute.
    assert!(
        !store
            .store_settings(&key, &change(&id, 1, &[("spark.a", "late")], &[]))
            .await
            .unwrap()
    );
    assert_eq!(
        settings(&store, &key, &id).await,
        (2, [("spark.a".to_owned(), long)].into())
    );

    let ids: Vec<_> = (0..MAX_SPARK_SESSIONS + 3).map(|_| spark()).collect();
    for id in &ids {
        assert!(
            store
                .store_settings(&key, &change(id, 2, &[("spark.a", "1")], &[]))
                .await
                .unwrap()
        );
    }
    let kept = store.spark_sessions(&key).await.unwrap();
    assert_eq!(kept.len(), MAX_SPARK_SESSIONS);
    assert!(
        ids[3..].iter().all(|id| kept.contains_key(id)),
        "the longest unchanged went"
    );
}

pub(crate) async fn one_caller_moves_a_spark_session_to_a_generation(store: Store) {
    let (key, id) = (session(), spark());
    let use_on = async |generation| store.use_spark_session(&key, &id, generation).await.unwrap();
    assert_eq!(use_on(1).await, SparkSessionUse::New);
    assert_eq!(use_on(1).await, SparkSessionUse::Again);
    assert!(
        store
            .store_settings(&key, &change(&id, 1, &[("spark.a", "1")], &[]))
            .await
            .unwrap()
    );
    let outcomes = join_all((0..20).map(|_| store.use_spark_session(&key, &id, 3))).await;
    let moved = outcomes
        .into_iter()
        .filter(|outcome| *outcome.as_ref().unwrap() == SparkSessionUse::Moved)
        .count();
    assert_eq!(moved, 1);
    assert_eq!(use_on(2).await, SparkSessionUse::Again, "a late caller");
    let expected = [("spark.a".to_owned(), "1".to_owned())].into();
    assert_eq!(settings(&store, &key, &id).await, (3, expected));
}
