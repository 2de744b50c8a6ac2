//! What the definition of a kubernetes cluster must contain.

use super::distributed::check_workers;
use super::size::{Size, bytes, milli_cpus};
use super::template;
use crate::properties::{
    Problems, check_engine_properties, is_jvm_size, jvm_bytes, must_be_absolute, must_be_for_spark,
};
use session_core::cluster::Toleration;
use session_core::{CatalogName, Cluster, Engine, KubernetesPods, OrgId, Profile, ProfileName, Provider};
use std::collections::BTreeMap;

/// One definition has no more pull secrets, node labels, tolerations or words
/// of a command.
const MAX_ENTRIES: usize = 32;
/// The longest name of a namespaced object.
const MAX_NAME: usize = 253;
/// The longest label value and DNS label.
const MAX_LABEL: usize = 63;
const MAX_IMAGE: usize = 512;
/// Each is tried at the API server when the cluster is defined.
const MAX_PROFILES: usize = 16;
/// One pool has no more pods.
const MAX_WARM_PODS: u32 = 1000;

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
    check_sizes(cluster.engine, pods, problems);
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
    if let Some(over) = &pods.pod_template {
        template::check(cluster.engine, pods, over, problems);
    }
    if pods.pod_template.is_some() && pods.workers.is_some() {
        problems.add(
            "pod_template",
            "must not be set with workers: the admission policy of drivers refuses what it adds to them",
        );
    }
    check_warm(pods, problems);
}

/// The numbers of warm pods, of the cluster and of each profile.
fn check_warm_pods(pods: &KubernetesPods, problems: &mut Problems) {
    let of_profiles = pods.profiles.iter().map(|(name, profile)| {
        let field = format!("profiles.{}.warm_pods", printable::escape(name));
        (field, profile.warm_pods)
    });
    for (field, count) in std::iter::once(("warm_pods".to_owned(), pods.warm_pods)).chain(of_profiles) {
        if count > MAX_WARM_PODS {
            problems.add(field, format!("must not be more than {MAX_WARM_PODS}"));
        } else if count > 0 && pods.workers.is_some() {
            problems.add(
                field,
                "must be 0 with workers: a driver has the name of its session",
            );
        }
    }
    let is_set_twice = |profile: &Profile| profile.default && profile.warm_pods > 0 && pods.warm_pods > 0;
    if pods.profiles.values().any(is_set_twice) {
        problems.add(
            "warm_pods",
            "must not be set beside warm_pods of the default profile: both are for its pods",
        );
    }
}

fn check_warm(pods: &KubernetesPods, problems: &mut Problems) {
    check_warm_pods(pods, problems);
    if pods.warm_catalogs.len() > MAX_ENTRIES {
        problems.add(
            "warm_catalogs",
            format!("must not have more than {MAX_ENTRIES} entries"),
        );
    }
    let has_pools = pods.warm_pods > 0 || pods.profiles.values().any(|profile| profile.warm_pods > 0);
    let is_catalog = |text: &String| {
        text.split_once('/')
            .is_some_and(|(org, name)| org.parse::<OrgId>().is_ok() && name.parse::<CatalogName>().is_ok())
    };
    if !pods.warm_catalogs.iter().all(is_catalog) {
        problems.add("warm_catalogs", "must be catalogs, as org/catalog");
    } else if !has_pools && !pods.warm_catalogs.is_empty() {
        problems.add("warm_catalogs", "needs warm_pods, of the cluster or a profile");
    }
}

fn check_lists(pods: &KubernetesPods, problems: &mut Problems) {
    for (field, count) in [
        ("command", pods.command.len()),
        ("image_pull_secrets", pods.image_pull_secrets.len()),
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
    check_nodes("", &pods.node_selector, &pods.tolerations, problems);
}

/// Checks on which nodes pods may run; `within` is the beginning of the fields' names.
fn check_nodes(
    within: &str,
    selector: &BTreeMap<String, String>,
    tolerations: &[Toleration],
    problems: &mut Problems,
) {
    let lists = [
        ("node_selector", selector.len()),
        ("tolerations", tolerations.len()),
    ];
    for (field, count) in lists {
        if count > MAX_ENTRIES {
            let problem = format!("must not have more than {MAX_ENTRIES} entries");
            problems.add(format!("{within}{field}"), problem);
        }
    }
    let is_label = |(key, value): (&String, &String)| is_label_key(key) && is_label_value(value);
    if !selector.iter().all(is_label) {
        problems.add(format!("{within}node_selector"), "must be labels of nodes");
    }
    let is_toleration = |toleration: &Toleration| {
        is_label_key(&toleration.key) && toleration.value.as_deref().is_none_or(is_label_value)
    };
    if !tolerations.iter().all(is_toleration) {
        problems.add(
            format!("{within}tolerations"),
            "must have the key of a taint and, if any, its value",
        );
    }
}

/// The size of all pods, or the profiles.
fn check_sizes(engine: Engine, pods: &KubernetesPods, problems: &mut Problems) {
    if pods.profiles.is_empty() {
        check_size(engine, "", &Size::of(pods), problems);
        return;
    }
    for (field, value) in [("cpu", &pods.cpu), ("memory", &pods.memory)] {
        if !value.is_empty() {
            problems.add(
                field,
                "must not be set beside profiles, which have sizes of their own",
            );
        }
    }
    if pods.profiles.len() > MAX_PROFILES {
        problems.add("profiles", format!("must not be more than {MAX_PROFILES}"));
    }
    if pods.profiles.values().filter(|profile| profile.default).count() != 1 {
        problems.add("profiles", "exactly one must be the default: default = true");
    }
    for (name, profile) in &pods.profiles {
        let within = format!("profiles.{}.", printable::escape(name));
        if let Err(invalid) = name.parse::<ProfileName>() {
            problems.add(
                format!("profiles.{}", printable::escape(name)),
                invalid.to_string(),
            );
        }
        check_size(engine, &within, &Size::of_profile(pods, profile), problems);
        check_nodes(&within, &profile.node_selector, &profile.tolerations, problems);
    }
}

/// Checks one size; `within` is the beginning of the names of its fields.
fn check_size(engine: Engine, within: &str, size: &Size<'_>, problems: &mut Problems) {
    let field = |name: &str| format!("{within}{name}");
    if milli_cpus(size.cpu).is_none_or(|cpus| cpus == 0) {
        problems.add(field("cpu"), "must be a number of CPUs above 0, e.g. 2 or 500m");
    }
    let memory = bytes(size.memory).filter(|bytes| *bytes > 0);
    if memory.is_none() {
        problems.add(
            field("memory"),
            "must be a number of bytes above 0, e.g. 2Gi or 512Mi",
        );
    }
    if size
        .disk
        .is_some_and(|disk| bytes(disk).is_none_or(|disk| disk == 0))
    {
        problems.add(
            field("ephemeral_storage"),
            "must be a number of bytes above 0, e.g. 10Gi",
        );
    }
    let Some(heap) = size.heap else {
        return;
    };
    if !must_be_for_spark(problems, engine, &field("driver_memory")) {
        return;
    }
    if !is_jvm_size(heap) {
        problems.add(field("driver_memory"), "must be a number and m or g, e.g. 2g");
    } else if memory.is_some_and(|memory| jvm_bytes(heap).is_some_and(|heap| heap >= memory)) {
        problems.add(
            field("driver_memory"),
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

#[cfg(test)]
mod tests;
