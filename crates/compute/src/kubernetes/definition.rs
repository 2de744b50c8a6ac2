//! What the definition of a kubernetes cluster must contain.

use super::distributed::check_workers;
use crate::properties::{
    Problems, check_engine_properties, is_jvm_size, jvm_bytes, must_be_absolute, must_be_for_spark,
};
use session_core::cluster::Toleration;
use session_core::{Cluster, Engine, KubernetesPods, Provider};

/// One definition has no more pull secrets, node labels, tolerations or words
/// of a command.
const MAX_ENTRIES: usize = 32;
/// The longest name of a namespaced object.
const MAX_NAME: usize = 253;
/// The longest label value and DNS label.
const MAX_LABEL: usize = 63;
const MAX_IMAGE: usize = 512;

/// Adds every field and property that is wrong.
pub(crate) fn check_definition(cluster: &Cluster, problems: &mut Problems) {
    let Provider::Kubernetes(pods) = &cluster.provider else {
        return;
    };
    if !is_namespace(&pods.namespace) {
        problems.add("namespace", "must be the name of a namespace: a DNS label");
    }
    let is_image =
        |text: &str| (1..=MAX_IMAGE).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    if !is_image(&pods.image) {
        problems.add("image", "must be a container image, e.g. registry/sail:0.7.2");
    }
    check_lists(pods, problems);
    check_size(cluster.engine, pods, problems);
    check_workers(cluster.engine, pods, problems);
    let absolute = [("spark_home", &pods.spark_home), ("python", &pods.python)];
    for (field, value) in absolute {
        if let Some(path) = value
            && must_be_for_spark(problems, cluster.engine, field)
        {
            must_be_absolute(problems, field, path);
        }
    }
    check_engine_properties(cluster.engine, &pods.properties, problems);
}

fn check_lists(pods: &KubernetesPods, problems: &mut Problems) {
    for (field, count) in [
        ("command", pods.command.len()),
        ("image_pull_secrets", pods.image_pull_secrets.len()),
        ("node_selector", pods.node_selector.len()),
        ("tolerations", pods.tolerations.len()),
    ] {
        if count > MAX_ENTRIES {
            problems.add(field, format!("must not have more than {MAX_ENTRIES} entries"));
        }
    }
    if pods
        .command
        .iter()
        .any(|word| word.is_empty() || !printable::all_printable(word))
    {
        problems.add("command", "must be words without control or invisible characters");
    }
    if !pods.image_pull_secrets.iter().all(|name| is_object_name(name)) {
        problems.add("image_pull_secrets", "must be names of Secrets");
    }
    if !pods
        .node_selector
        .iter()
        .all(|(key, value)| is_label_key(key) && is_label_value(value))
    {
        problems.add("node_selector", "must be labels of nodes");
    }
    let is_toleration = |toleration: &Toleration| {
        is_label_key(&toleration.key) && toleration.value.as_deref().is_none_or(is_label_value)
    };
    if !pods.tolerations.iter().all(is_toleration) {
        problems.add(
            "tolerations",
            "must have the key of a taint and, if any, its value",
        );
    }
}

fn check_size(engine: Engine, pods: &KubernetesPods, problems: &mut Problems) {
    if milli_cpus(&pods.cpu).is_none_or(|cpus| cpus == 0) {
        problems.add("cpu", "must be a number of CPUs above 0, e.g. 2 or 500m");
    }
    let memory = bytes(&pods.memory).filter(|bytes| *bytes > 0);
    if memory.is_none() {
        problems.add("memory", "must be a number of bytes above 0, e.g. 2Gi or 512Mi");
    }
    let Some(heap) = &pods.driver_memory else {
        return;
    };
    if !must_be_for_spark(problems, engine, "driver_memory") {
        return;
    }
    if !is_jvm_size(heap) {
        problems.add("driver_memory", "must be a number and m or g, e.g. 2g");
    } else if memory.is_some_and(|memory| jvm_bytes(heap).is_some_and(|heap| heap >= memory)) {
        problems.add(
            "driver_memory",
            "must be less than memory: the JVM needs more than its heap",
        );
    }
}

/// Whether `name` is a name of a namespace.
pub fn is_namespace(name: &str) -> bool {
    name.len() <= MAX_LABEL && is_dns_label(name)
}

/// Whether `name` is a name of a Secret or ConfigMap.
pub fn is_object_name(name: &str) -> bool {
    name.len() <= MAX_NAME && name.split('.').all(is_dns_label)
}

fn is_dns_label(text: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    edge(text.as_bytes().first())
        && edge(text.as_bytes().last())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn is_label_key(key: &str) -> bool {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    prefix.is_none_or(is_object_name) && !name.is_empty() && is_label_value(name)
}

fn is_label_value(value: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_alphanumeric);
    value.len() <= MAX_LABEL
        && edge(value.as_bytes().first())
        && edge(value.as_bytes().last())
        && value
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// `2`, `0.5` and `500m` in thousandths of a CPU.
pub(super) fn milli_cpus(text: &str) -> Option<u64> {
    match text.strip_suffix('m') {
        Some(milli) => whole(milli),
        None => scaled(text, 1000),
    }
}

/// `2Gi`, `1.5G` and `1000000` in bytes.
pub(super) fn bytes(text: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 8] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
    ];
    match UNITS
        .iter()
        .find_map(|(unit, size)| Some((text.strip_suffix(unit)?, *size)))
    {
        Some((number, size)) => scaled(number, size),
        None => whole(text),
    }
}

fn whole(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| text.parse().ok())?
}

/// A number with at most three decimal places, times `size`.
fn scaled(text: &str, size: u64) -> Option<u64> {
    let (whole_part, decimals) = text.split_once('.').unwrap_or((text, "000"));
    if decimals.len() > 3 {
        return None;
    }
    let thousandths = whole(&format!("{decimals:0<3}"))?;
    whole(whole_part)?
        .checked_mul(size)?
        .checked_add(thousandths.checked_mul(size)? / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::kubernetes_cluster;
    use crate::validate_cluster;
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

    #[test]
    fn lists_have_a_limit() {
        let named = wrong(Engine::Sail, |pods| {
            pods.command = vec!["x".into(); MAX_ENTRIES + 1];
        });
        assert_eq!(named, ["command"]);
    }

    #[test]
    fn quantities_are_read_as_kubernetes_does() {
        for (text, milli) in [
            ("2", Some(2000)),
            ("500m", Some(500)),
            ("0.5", Some(500)),
            ("1.25", Some(1250)),
            ("", None),
            (".5", None),
            ("-1", None),
            ("1.0001", None),
            ("1e3", None),
        ] {
            assert_eq!(milli_cpus(text), milli, "{text}");
        }
        for (text, size) in [
            ("512Mi", Some(512 << 20)),
            ("1.5Gi", Some(3 << 29)),
            ("2G", Some(2_000_000_000)),
            ("1000", Some(1000)),
            ("2GB", None),
            ("Gi", None),
            ("99999999999Ti", None),
        ] {
            assert_eq!(bytes(text), size, "{text}");
        }
    }
}
