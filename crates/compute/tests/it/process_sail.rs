//! The process provider with real Sail servers.

use crate::support::*;
use compute::{ComputeProvider, ComputeSpec, ProcessProvider};
use futures::StreamExt;
use session_core::machine::Observation;
use session_core::{Engine, Provider};
use std::path::Path;
use std::time::{Duration, Instant};

#[tokio::test]
async fn a_session_starts_answers_and_leaves_nothing_behind() {
    let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let provider = provider(dir.path());
    let spec = spec(Engine::Sail, 1);
    assert_eq!(provider.observe(&spec).await.unwrap(), Observation::Missing);
    let mut changes = provider.watch();
    let begun = Instant::now();
    provider.ensure(&spec).await.unwrap();
    let route = until_ready(&provider, &spec).await;
    println!("measured: Sail ready in {:?}", begun.elapsed());
    assert_eq!(changes.next().await.unwrap().key, spec.key);
    assert!(
        route.dedicated && route.engine_version.starts_with('4'),
        "{route:?}"
    );
    assert_eq!(route.credential, None);
    assert!(has(
        &RawClient::connect(&route)
            .await
            .sql("SELECT 'he' || 'llo'")
            .await
            .unwrap(),
        "hello"
    ));
    python_udf_runs(&sail_python(), &route, outside.path());

    provider.release(&spec).await.unwrap();
    until_missing(&provider, &spec).await;
    assert!(Running::below(dir.path()).is_none());
    let left: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .flatten()
        .map(|e| e.file_name())
        .collect();
    assert_eq!(left, ["lock"]);
    // A late ensure of a released generation must not start it again.
    provider.ensure(&spec).await.unwrap();
    assert_eq!(provider.observe(&spec).await.unwrap(), Observation::Missing);
}

#[tokio::test]
async fn many_ensures_make_one_child() {
    let dir = tempfile::tempdir().unwrap();
    let provider = provider(dir.path());
    let spec = spec(Engine::Sail, 1);
    let at_once = (0..20).map(|_| provider.ensure(&spec));
    futures::future::join_all(at_once)
        .await
        .into_iter()
        .for_each(|done| done.unwrap());
    until_ready(&provider, &spec).await;
    provider.ensure(&spec).await.unwrap();
    let running = Running::below(dir.path());
    assert_eq!(
        (running.helpers.len(), running.engines.len()),
        (2, 1),
        "{running:?}"
    );
    provider.shutdown().await;
    assert!(Running::below(dir.path()).is_none());
}

#[tokio::test]
async fn a_killed_child_is_reported_and_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let provider = provider(dir.path());
    let spec = spec(Engine::Sail, 1);
    provider.ensure(&spec).await.unwrap();
    until_ready(&provider, &spec).await;
    let mut changes = provider.watch();
    kill(Running::below(dir.path()).engines[0]);
    let change = tokio::time::timeout(LONG, changes.next()).await.unwrap().unwrap();
    assert_eq!((change.key, change.generation), (spec.key.clone(), 1));
    let (cause, permanent) = until_failed(&provider, &spec).await;
    assert!(
        !permanent && cause.starts_with("sail was killed by signal 9"),
        "{cause}"
    );
    assert!(
        provider
            .log_tail(&spec.key, 1)
            .is_some_and(|tail| tail.len() <= 4096)
    );

    let next = ComputeSpec {
        generation: 2,
        ..spec.clone()
    };
    let dead = provider.inventory().await.unwrap();
    assert!(dead.is_empty(), "what has ended is not there: {dead:?}");
    provider.ensure(&next).await.unwrap();
    provider.release(&spec).await.unwrap();
    until_ready(&provider, &next).await;
    until_missing(&provider, &spec).await;
    let found = provider.inventory().await.unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(
        (&found[0].key, found[0].generation, &found[0].cluster),
        (&spec.key, 2, &spec.cluster.name)
    );
    provider.shutdown().await;
}

#[tokio::test]
async fn a_killed_helper_takes_the_engine_with_it() {
    for process in 0..2 {
        let dir = tempfile::tempdir().unwrap();
        let provider = provider(dir.path());
        let spec = spec(Engine::Sail, 1);
        provider.ensure(&spec).await.unwrap();
        until_ready(&provider, &spec).await;
        kill(Running::below(dir.path()).helpers[process]);
        let (cause, _) = until_failed(&provider, &spec).await;
        assert!(cause.contains("berth-supervise was killed"), "{cause}");
        assert!(Running::below(dir.path()).is_none());
    }
}

/// Run by the next test as a separate process, to be killed.
#[tokio::test]
async fn stand_in_for_a_manager() {
    let Some(dir) = std::env::var_os("BERTH_TEST_STAND_IN") else {
        return;
    };
    let provider = provider(Path::new(&dir));
    let spec = spec(Engine::Sail, 1);
    provider.ensure(&spec).await.unwrap();
    until_ready(&provider, &spec).await;
    std::fs::write(Path::new(&dir).join("ready"), "").unwrap();
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_killed_manager_leaves_no_engine() {
    let dir = tempfile::tempdir().unwrap();
    let mut manager = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "process_sail::stand_in_for_a_manager"])
        .env("BERTH_TEST_STAND_IN", dir.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    wait_for("the stand-in is ready", LONG, || {
        dir.path().join("ready").exists()
    })
    .await;
    assert_eq!(Running::below(dir.path()).engines.len(), 1);
    let folder = ProcessProvider::new(config(dir.path())).unwrap_err();
    assert!(folder.to_string().contains("another session-manager"), "{folder}");
    manager.kill().unwrap();
    manager.wait().unwrap();
    wait_for("engine and helper are gone", Duration::from_secs(5), || {
        Running::below(dir.path()).is_none()
    })
    .await;
    // The next manager removes the remains.
    let _next = provider(dir.path());
    assert!(
        std::fs::read_dir(dir.path())
            .unwrap()
            .flatten()
            .all(|e| e.file_type().unwrap().is_file())
    );
}

#[tokio::test]
async fn the_default_catalog_needs_no_qualified_names() {
    let dir = tempfile::tempdir().unwrap();
    let provider = provider(dir.path());
    let mut spec = spec(Engine::Sail, 1);
    let mut memory = catalog(Engine::Sail, "demo", &[("type", "memory")]);
    memory.default_database = Some("sales".into());
    spec.catalog = Some(memory);
    provider.ensure(&spec).await.unwrap();
    let route = until_ready(&provider, &spec).await;
    let mut client = RawClient::connect(&route).await;
    let current = client
        .sql("SELECT current_catalog(), current_database()")
        .await
        .unwrap();
    assert!(has(&current, "demo") && has(&current, "sales"));
    client
        .sql("CREATE TABLE orders USING parquet AS SELECT 1 AS id")
        .await
        .unwrap();
    assert!(has(&client.sql("SHOW TABLES").await.unwrap(), "orders"));
    // Files of an engine stay in the session's folder.
    assert!(
        !Path::new("spark-warehouse").exists(),
        "written to the manager's folder"
    );
    provider.shutdown().await;
}

#[tokio::test]
async fn a_wrong_catalog_fails_with_its_cause() {
    let dir = tempfile::tempdir().unwrap();
    let provider = provider(dir.path());
    let mut unknown_kind = spec(Engine::Sail, 1);
    unknown_kind.catalog = Some(catalog(Engine::Sail, "demo", &[("type", "nonsense")]));
    let mut lost_database = spec(Engine::Sail, 2);
    let mut memory = catalog(Engine::Sail, "demo", &[("type", "memory")]);
    memory.properties.insert(
        "initial_database".into(),
        session_core::catalog::PropertyValue::List(vec!["here".into()]),
    );
    memory.default_database = Some("elsewhere".into());
    lost_database.catalog = Some(memory);
    let mut unreachable = spec(Engine::Sail, 3);
    unreachable.catalog = Some(catalog(
        Engine::Sail,
        "lake",
        &[("type", "iceberg-rest"), ("uri", "http://127.0.0.1:9")],
    ));
    for spec in [&unknown_kind, &lost_database, &unreachable] {
        provider.ensure(spec).await.unwrap();
    }

    for _ in 0..2 {
        let (cause, permanent) = until_failed_with(&provider, &unknown_kind).await;
        assert!(!permanent && cause.detail.contains("nonsense"), "{cause:?}");
        assert!(cause.text.starts_with("sail exited with code "), "{cause:?}");
        assert!(cause.text.ends_with(" before it was ready"), "{cause:?}");
        provider.ensure(&unknown_kind).await.unwrap();
    }
    let (cause, permanent) = until_failed_with(&provider, &unknown_kind).await;
    assert!(
        permanent && cause.detail.contains("nonsense"),
        "three crashes in a row: {cause:?}"
    );

    let (cause, permanent) = until_failed(&provider, &lost_database).await;
    assert!(
        permanent && cause.contains("catalog demo cannot be used"),
        "{cause}"
    );

    // It can recover, so the session waits; the detail has the cause.
    let told = |o: &Observation| matches!(o, Observation::Starting { cause } if cause.text.contains("catalog lake cannot be used"));
    let seen = until(&provider, &unreachable, told).await;
    assert!(
        !matches!(&seen, Observation::Starting { cause } if cause.text.contains("127.0.0.1")),
        "{seen:?}"
    );
    provider.shutdown().await;
}

#[tokio::test]
async fn a_wrong_program_fails_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let provider = provider(dir.path());
    let mut spec = spec(Engine::Sail, 1);
    if let Provider::Process { program, .. } = &mut spec.cluster.provider {
        *program = "/nowhere/sail".into();
    }
    provider.ensure(&spec).await.unwrap();
    let (cause, permanent) = until_failed_with(&provider, &spec).await;
    assert!(permanent, "{cause:?}");
    assert_eq!(cause.text, "the cluster's program for Sail cannot be used");
    assert!(
        cause.detail.starts_with("/nowhere/sail: No such file"),
        "{cause:?}"
    );
}

#[tokio::test]
async fn a_missing_helper_fails_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.supervise = dir.path().join("no-helper");
    let provider = ProcessProvider::new(config).unwrap();
    let spec = spec(Engine::Sail, 1);
    provider.ensure(&spec).await.unwrap();
    let (cause, permanent) = until_failed_with(&provider, &spec).await;
    assert!(permanent && cause.detail.ends_with("/no-helper"), "{cause:?}");
    assert_eq!(
        cause.text,
        "Berth is not installed whole: berth-supervise is missing"
    );
}

#[tokio::test]
async fn sessions_have_folders_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let provider = provider(dir.path());
    let specs = [spec(Engine::Sail, 1), spec(Engine::Sail, 2)];
    for spec in &specs {
        provider.ensure(spec).await.unwrap();
    }
    for spec in &specs {
        let route = until_ready(&provider, spec).await;
        let mut client = RawClient::connect(&route).await;
        client
            .sql(&format!(
                "CREATE TABLE t{} AS SELECT 1 AS id",
                spec.key.id.as_str().len()
            ))
            .await
            .unwrap();
    }
    let cwds: Vec<_> = Running::below(dir.path())
        .engines
        .iter()
        .map(|pid| std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap())
        .collect();
    assert_eq!(cwds.len(), 2);
    assert_ne!(cwds[0], cwds[1]);
    for cwd in &cwds {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(cwd.parent().unwrap())
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o700);
        assert!(cwd.join("spark-warehouse").exists(), "{}", cwd.display());
    }
    provider.shutdown().await;
}

#[tokio::test]
async fn release_wins_over_start_whenever_it_comes() {
    let dir = tempfile::tempdir().unwrap();
    let provider = provider(dir.path());
    let before = spec(Engine::Sail, 1);
    provider.release(&before).await.unwrap();
    provider.ensure(&before).await.unwrap();
    assert_eq!(provider.observe(&before).await.unwrap(), Observation::Missing);

    let during = spec(Engine::Sail, 2);
    provider.ensure(&during).await.unwrap();
    provider.release(&during).await.unwrap();
    provider.ensure(&during).await.unwrap();
    until_missing(&provider, &during).await;

    let newer = ComputeSpec {
        generation: 3,
        ..spec(Engine::Sail, 3)
    };
    let older = ComputeSpec {
        generation: 2,
        ..newer.clone()
    };
    provider.release(&older).await.unwrap();
    provider.ensure(&newer).await.unwrap();
    provider.ensure(&older).await.unwrap();
    until_ready(&provider, &newer).await;
    assert_eq!(provider.observe(&older).await.unwrap(), Observation::Missing);
    assert_eq!(Running::below(dir.path()).engines.len(), 1);
    provider.shutdown().await;
}

#[tokio::test]
async fn the_machine_is_not_overrun() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.max_children = 2;
    config.max_starting = 1;
    let provider = ProcessProvider::new(config).unwrap();
    let specs = [
        spec(Engine::Sail, 1),
        spec(Engine::Sail, 2),
        spec(Engine::Sail, 3),
    ];
    for spec in &specs {
        provider.ensure(spec).await.unwrap();
    }
    let (cause, permanent) = until_failed(&provider, &specs[2]).await;
    assert!(!permanent && cause.contains("all 2 places"), "{cause}");
    let mut foreign = specs[2].clone();
    foreign.key.org = "other".parse().unwrap();
    provider.ensure(&foreign).await.unwrap();
    let (cause, permanent) = until_failed(&provider, &foreign).await;
    assert!(permanent && cause.contains("another organization"), "{cause}");
    until_ready(&provider, &specs[0]).await;
    until_ready(&provider, &specs[1]).await;
    // Room again: a repeated ensure succeeds.
    provider.release(&specs[0]).await.unwrap();
    until_missing(&provider, &specs[0]).await;
    provider.ensure(&specs[2]).await.unwrap();
    until_ready(&provider, &specs[2]).await;
    provider.shutdown().await;
}
