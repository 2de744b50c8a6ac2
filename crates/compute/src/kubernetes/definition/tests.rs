//! Definitions: what is accepted, and the field that a problem names.

use super::*;
use crate::testing::kubernetes_cluster;
use crate::validate_cluster;
use session_core::KubernetesWorkers;
use session_core::cluster::TaintEffect;

fn wrong(engine: Engine, edit: impl FnOnce(&mut KubernetesPods)) -> Vec<String> {
    let mut cluster = kubernetes_cluster(engine);
    if let Provider::Kubernetes(pods) = &mut cluster.provider {
        edit(pods);
    }
    match validate_cluster(&cluster) {
        Ok(()) => Vec::new(),
        Err(invalid) => invalid.problems.into_iter().map(|problem| problem.key).collect(),
    }
}

#[test]
fn a_complete_definition_is_accepted() {
    let named = wrong(Engine::Spark, |pods| {
        pods.command = vec!["/usr/bin/java".into()];
        pods.image_pull_secrets = vec!["registry.example".into()];
        pods.node_selector = [("example.org/disk".to_owned(), "ssd".to_owned())].into();
        pods.tolerations = vec![Toleration {
            key: "spot".into(),
            value: Some(String::new()),
            effect: Some(TaintEffect::NoSchedule),
        }];
        pods.properties = [("spark.sql.x".to_owned(), "1".to_owned())].into();
        pods.spark_home = Some("/opt/spark".into());
        pods.python = Some("/usr/bin/python3".into());
        pods.driver_memory = Some("1g".into());
        pods.ephemeral_storage = Some("20Gi".into());
        pods.warm_pods = 2;
        pods.warm_catalogs = vec!["acme/lake".into()];
    });
    assert_eq!(named, Vec::<String>::new());
}

#[test]
fn every_wrong_field_is_named() {
    let named = wrong(Engine::Sail, |pods| {
        pods.namespace = "Sessions".into();
        pods.image = "sail 1".into();
        pods.command = vec!["sail\n".into()];
        pods.image_pull_secrets = vec!["a/b".into()];
        pods.node_selector = [("a b".to_owned(), "x".to_owned())].into();
        pods.tolerations = vec![Toleration::default()];
        pods.cpu = "0".into();
        pods.memory = "2Gb".into();
        pods.driver_memory = Some("1g".into());
        pods.spark_home = Some("/opt/spark".into());
        pods.python = Some("/usr/bin/python3".into());
        pods.properties = [("LD_PRELOAD".to_owned(), "/x.so".to_owned())].into();
    });
    assert_eq!(
        named,
        [
            "namespace",
            "image",
            "command",
            "image_pull_secrets",
            "node_selector",
            "tolerations",
            "cpu",
            "memory",
            "driver_memory",
            "spark_home",
            "python",
            "LD_PRELOAD"
        ]
    );
}

#[test]
fn a_heap_must_fit_and_a_master_must_be_local() {
    let named = wrong(Engine::Spark, |pods| {
        pods.memory = "2Gi".into();
        pods.driver_memory = Some("2g".into());
        pods.python = Some("python3".into());
        pods.properties = [("spark.master".to_owned(), "k8s://https://a".to_owned())].into();
    });
    assert_eq!(named, ["driver_memory", "python", "spark.master"]);
    assert_eq!(
        wrong(Engine::Spark, |pods| pods.driver_memory = Some("2gb".into())),
        ["driver_memory"]
    );
}

fn profile(cpu: &str, default: bool) -> Profile {
    Profile {
        cpu: cpu.to_owned(),
        memory: "2Gi".to_owned(),
        default,
        ..Profile::default()
    }
}

#[test]
fn pools_have_a_limit_and_name_catalogs() {
    let named = wrong(Engine::Sail, |pods| {
        pods.warm_pods = MAX_WARM_PODS + 1;
        pods.warm_catalogs = vec!["lake".into()];
    });
    assert_eq!(named, ["warm_pods", "warm_catalogs"]);
    let named = wrong(Engine::Sail, |pods| pods.warm_catalogs = vec!["acme/lake".into()]);
    assert_eq!(named, ["warm_catalogs"]);
    let named = wrong(Engine::Sail, |pods| {
        pods.warm_pods = 1;
        with_workers(pods);
    });
    assert_eq!(named, ["warm_pods"]);
}

#[test]
fn profiles_have_pools_of_their_own() {
    let profiles = |pods: &mut KubernetesPods| {
        pods.cpu = String::new();
        pods.memory = String::new();
        pods.profiles = [("large", "8", false), ("small", "1", true)]
            .map(|(name, cpu, default)| (name.to_owned(), profile(cpu, default)))
            .into();
        pods.profiles.get_mut("large").unwrap().warm_pods = 1;
        pods.warm_catalogs = vec!["acme/lake".into()];
    };
    assert_eq!(wrong(Engine::Sail, profiles), Vec::<String>::new());
    // What is accepted is accepted in each size, also without warm pods.
    let mut cluster = kubernetes_cluster(Engine::Sail);
    if let Provider::Kubernetes(pods) = &mut cluster.provider {
        profiles(pods);
    }
    for name in ["large", "small"] {
        let sized = cluster.with_profile(Some(&name.parse().unwrap())).unwrap();
        assert!(validate_cluster(&sized).is_ok(), "{name}");
    }
    let both = wrong(Engine::Sail, |pods| {
        profiles(pods);
        pods.warm_pods = 2;
    });
    assert_eq!(both, Vec::<String>::new(), "of two profiles");
    let named = wrong(Engine::Sail, |pods| {
        profiles(pods);
        pods.warm_pods = 2;
        pods.profiles.get_mut("small").unwrap().warm_pods = 1;
        pods.profiles.get_mut("large").unwrap().warm_pods = MAX_WARM_PODS + 1;
    });
    assert_eq!(named, ["profiles.large.warm_pods", "warm_pods"]);
    let named = wrong(Engine::Sail, |pods| {
        profiles(pods);
        with_workers(pods);
    });
    assert_eq!(named, ["profiles.large.warm_pods"]);
}

fn with_workers(pods: &mut KubernetesPods) {
    pods.service_account = Some("driver".into());
    pods.workers = Some(KubernetesWorkers {
        max: 1,
        cpu: "1".into(),
        memory: "1Gi".into(),
        ..KubernetesWorkers::default()
    });
}

#[test]
fn a_template_is_rejected_with_workers() {
    let named = wrong(Engine::Sail, |pods| {
        pods.pod_template =
            Some(session_core::PodTemplate::parse(r#"{"spec": {"priorityClassName": "low"}}"#).unwrap());
        with_workers(pods);
    });
    assert_eq!(named, ["pod_template"]);
}

#[test]
fn profiles_replace_the_size() {
    let profiles = |pods: &mut KubernetesPods| {
        pods.cpu = String::new();
        pods.memory = String::new();
        pods.profiles = [("large", "8", false), ("small", "1", true)]
            .map(|(name, cpu, default)| (name.to_owned(), profile(cpu, default)))
            .into();
    };
    assert_eq!(wrong(Engine::Sail, profiles), Vec::<String>::new());
    let named = wrong(Engine::Sail, |pods| {
        profiles(pods);
        pods.cpu = "1".into();
        pods.profiles.insert("Big one".into(), profile("many", true));
        let small = pods.profiles.get_mut("small").unwrap();
        small.memory = "0".into();
        small.ephemeral_storage = Some("x".into());
        small.driver_memory = Some("1g".into());
        small.node_selector = [("a b".to_owned(), "x".to_owned())].into();
        small.tolerations = vec![Toleration::default()];
    });
    assert_eq!(
        named,
        [
            "cpu",
            "profiles",
            "profiles.Big one",
            "profiles.Big one.cpu",
            "profiles.small.memory",
            "profiles.small.ephemeral_storage",
            "profiles.small.driver_memory",
            "profiles.small.node_selector",
            "profiles.small.tolerations",
        ]
    );
    // A heap of the cluster must fit each profile.
    let named = wrong(Engine::Spark, |pods| {
        profiles(pods);
        pods.driver_memory = Some("3g".into());
        pods.profiles.get_mut("large").unwrap().driver_memory = Some("1g".into());
    });
    assert_eq!(named, ["profiles.small.driver_memory"]);
    let none = wrong(Engine::Sail, |pods| {
        profiles(pods);
        pods.profiles.get_mut("small").unwrap().default = false;
    });
    assert_eq!(none, ["profiles"]);
}

#[test]
fn lists_have_a_limit() {
    let named = wrong(Engine::Sail, |pods| {
        pods.command = vec!["x".into(); MAX_ENTRIES + 1];
    });
    assert_eq!(named, ["command"]);
}
