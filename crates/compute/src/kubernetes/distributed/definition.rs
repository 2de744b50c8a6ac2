//! What the section `workers` of a definition must contain.

use super::super::definition::is_object_name;
use super::super::size::{bytes, milli_cpus};
use crate::properties::Problems;
use session_core::cluster::ProfileWorkers;
use session_core::{Engine, KubernetesPods, KubernetesWorkers};

/// Most workers of one session.
const MAX_WORKERS: u32 = 1000;
/// Bounds of the time without work, in seconds: an engine looks every few
/// seconds, and a worker that outlives a day is not released at all.
const IDLE_SECONDS: std::ops::RangeInclusive<u32> = 10..=86_400;
/// Spark refuses executors whose heap is below 450 MiB; the rest is for what is
/// outside the heap.
const MIN_SPARK_MEMORY: u64 = 1 << 30;

/// Adds every field that is wrong.
pub(in super::super) fn check_workers(engine: Engine, pods: &KubernetesPods, problems: &mut Problems) {
    let Some(workers) = &pods.workers else {
        if pods.service_account.is_some() {
            problems.add(
                "service_account",
                "is only for drivers of workers: remove it, or set workers",
            );
        }
        for (name, _) in sized(pods) {
            let field = format!("profiles.{}.workers", printable::escape(name));
            problems.add(field, "needs workers of the cluster");
        }
        return;
    };
    check_accounts(pods, workers, problems);
    check_counts("", workers, problems);
    check_size(engine, "", workers, problems);
    for (name, own) in sized(pods) {
        let within = format!("profiles.{}.", printable::escape(name));
        let all = workers.sized(own);
        // What is the cluster's is reported there.
        if own.min.is_some() || own.max.is_some() {
            check_counts(&within, &all, problems);
        }
        if own.cpu.is_some() || own.memory.is_some() {
            check_size(engine, &within, &all, problems);
        }
    }
    if engine == Engine::Spark && pods.properties.contains_key("spark.master") {
        problems.add(
            "spark.master",
            "is set by Berth on a cluster with workers: remove it",
        );
    }
}

/// The profiles that change the workers.
fn sized(pods: &KubernetesPods) -> impl Iterator<Item = (&String, &ProfileWorkers)> {
    let all = pods.profiles.iter();
    all.filter_map(|(name, profile)| Some((name, profile.workers.as_ref()?)))
}

fn check_accounts(pods: &KubernetesPods, workers: &KubernetesWorkers, problems: &mut Problems) {
    match &pods.service_account {
        None => problems.add(
            "service_account",
            "is required with workers: the account whose rights create them, \
             sessionManager.kubernetes.distributedDrivers of the chart",
        ),
        Some(name) if !is_object_name(name) => {
            problems.add("service_account", "must be the name of a ServiceAccount");
        }
        Some(name) if workers.service_account.as_ref() == Some(name) => problems.add(
            "workers.service_account",
            "must not be the account of the drivers: workers need no rights",
        ),
        Some(_) => {}
    }
    if workers
        .service_account
        .as_ref()
        .is_some_and(|name| !is_object_name(name))
    {
        problems.add("workers.service_account", "must be the name of a ServiceAccount");
    }
}

/// Checks how many workers there are; `within` is the beginning of the fields' names.
fn check_counts(within: &str, workers: &KubernetesWorkers, problems: &mut Problems) {
    if !(1..=MAX_WORKERS).contains(&workers.max) {
        problems.add(
            format!("{within}workers.max"),
            format!("must be 1 to {MAX_WORKERS}"),
        );
    } else if workers.min > workers.max {
        problems.add(format!("{within}workers.min"), "must not exceed workers.max");
    }
    if workers
        .idle_seconds
        .is_some_and(|seconds| within.is_empty() && !IDLE_SECONDS.contains(&seconds))
    {
        let (least, most) = (IDLE_SECONDS.start(), IDLE_SECONDS.end());
        problems.add("workers.idle_seconds", format!("must be {least} to {most}"));
    }
}

/// Checks the size of a worker; `within` is the beginning of the fields' names.
fn check_size(engine: Engine, within: &str, workers: &KubernetesWorkers, problems: &mut Problems) {
    if milli_cpus(&workers.cpu).is_none_or(|cpus| cpus == 0) {
        problems.add(
            format!("{within}workers.cpu"),
            "must be a number of CPUs above 0, e.g. 2 or 500m",
        );
    }
    match bytes(&workers.memory) {
        None | Some(0) => problems.add(
            format!("{within}workers.memory"),
            "must be a number of bytes above 0, e.g. 2Gi or 512Mi",
        ),
        Some(memory) if engine == Engine::Spark && memory < MIN_SPARK_MEMORY => problems.add(
            format!("{within}workers.memory"),
            "must be at least 1Gi: an executor of Spark needs 450 MiB of heap, and as much beside it",
        ),
        Some(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::distributed_cluster;
    use crate::validate_cluster;
    use session_core::cluster::ProfileWorkers;
    use session_core::{Engine, KubernetesPods, KubernetesWorkers, Profile, Provider};

    fn wrong(engine: Engine, edit: impl FnOnce(&mut KubernetesPods)) -> Vec<String> {
        let mut cluster = distributed_cluster(engine);
        if let Provider::Kubernetes(pods) = &mut cluster.provider {
            edit(pods);
        }
        match validate_cluster(&cluster) {
            Ok(()) => Vec::new(),
            Err(invalid) => invalid.problems.into_iter().map(|problem| problem.key).collect(),
        }
    }

    fn wrong_workers(engine: Engine, edit: impl FnOnce(&mut KubernetesWorkers)) -> Vec<String> {
        wrong(engine, |pods| {
            edit(pods.workers.as_mut().expect("the cluster has workers"));
        })
    }

    #[test]
    fn complete_definitions_are_accepted() {
        for engine in [Engine::Sail, Engine::Spark] {
            assert_eq!(wrong(engine, |_| {}), Vec::<String>::new());
        }
        let smallest = wrong_workers(Engine::Sail, |workers| {
            *workers = KubernetesWorkers {
                max: 1,
                cpu: "100m".into(),
                memory: "256Mi".into(),
                ..KubernetesWorkers::default()
            };
        });
        assert_eq!(smallest, Vec::<String>::new());
    }

    #[test]
    fn an_account_and_workers_belong_together() {
        assert_eq!(
            wrong(Engine::Sail, |pods| pods.workers = None),
            ["service_account"]
        );
        assert_eq!(
            wrong(Engine::Sail, |pods| pods.service_account = None),
            ["service_account"]
        );
        assert_eq!(
            wrong(Engine::Sail, |pods| pods.service_account = Some("A".into())),
            ["service_account"]
        );
        let same = wrong_workers(Engine::Sail, |workers| {
            workers.service_account = Some("driver".into());
        });
        assert_eq!(same, ["workers.service_account"]);
        let no_name = wrong_workers(Engine::Sail, |workers| {
            workers.service_account = Some("a b".into());
        });
        assert_eq!(no_name, ["workers.service_account"]);
    }

    #[test]
    fn numbers_have_bounds() {
        for (max, field) in [(0, "workers.max"), (1001, "workers.max"), (1, "workers.min")] {
            let named = wrong_workers(Engine::Sail, |workers| (workers.min, workers.max) = (2, max));
            assert_eq!(named, [field], "{max}");
        }
        for seconds in [0, 9, 86_401] {
            let named = wrong_workers(Engine::Sail, |workers| workers.idle_seconds = Some(seconds));
            assert_eq!(named, ["workers.idle_seconds"], "{seconds}");
        }
        let sizes = wrong_workers(Engine::Sail, |workers| {
            (workers.cpu, workers.memory) = ("0".into(), "much".into());
        });
        assert_eq!(sizes, ["workers.cpu", "workers.memory"]);
        let small = wrong_workers(Engine::Spark, |workers| workers.memory = "1023Mi".into());
        assert_eq!(small, ["workers.memory"]);
    }

    #[test]
    fn profiles_change_workers_within_the_same_bounds() {
        let profiles = |pods: &mut KubernetesPods, large: ProfileWorkers| {
            (pods.cpu, pods.memory) = (String::new(), String::new());
            let profile = |default, workers| Profile {
                cpu: "1".into(),
                memory: "4Gi".into(),
                default,
                workers,
                ..Profile::default()
            };
            pods.profiles = [
                ("small".to_owned(), profile(true, None)),
                ("large".to_owned(), profile(false, Some(large))),
            ]
            .into();
        };
        let more = ProfileWorkers {
            max: Some(8),
            cpu: Some("4".into()),
            memory: Some("16Gi".into()),
            min: None,
        };
        let wrongs = ProfileWorkers {
            min: Some(5),
            max: None,
            cpu: Some("none".into()),
            memory: Some("1023Mi".into()),
        };
        for engine in [Engine::Sail, Engine::Spark] {
            assert_eq!(
                wrong(engine, |pods| profiles(pods, more.clone())),
                Vec::<String>::new()
            );
            let named = wrong(engine, |pods| profiles(pods, wrongs.clone()));
            let mut wanted = vec!["profiles.large.workers.min", "profiles.large.workers.cpu"];
            // Only Spark needs that much memory.
            wanted.extend((engine == Engine::Spark).then_some("profiles.large.workers.memory"));
            assert_eq!(named, wanted, "{engine}");
            let without = wrong(engine, |pods| {
                profiles(pods, more.clone());
                (pods.workers, pods.service_account) = (None, None);
            });
            assert_eq!(without, ["profiles.large.workers"]);
        }
    }

    #[test]
    fn the_master_is_berths() {
        let named = wrong(Engine::Spark, |pods| {
            pods.properties = [("spark.master".to_owned(), "local[2]".to_owned())].into();
        });
        assert_eq!(named, ["spark.master"]);
    }
}
