//! What the pods of a pool are started with.

use crate::ComputeSpec;
use crate::kubernetes::KubernetesConfig;
use crate::kubernetes::names::pool_labels;
use crate::kubernetes::pod::{Plan, TOKEN_KEY, pods_of};
use crate::warm_pools::WarmPool;
use aws_lc_rs::hmac;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use session_core::machine::Cause;
use session_core::{Catalog, Cluster, SessionId, SessionKey, Timestamp};
use std::fmt::Write as _;

/// Bytes of the hash in the label.
const HASH_BYTES: usize = 10;
/// The organization of no session.
const NOBODY: &str = "warm";

/// The start configuration of a pool: a keyed hash of the profile, of the pod and of
/// the contents of its Secret, without what differs between pods. It changes with the
/// definition of the cluster or catalog, with a secret, and with a release of Berth
/// that makes other pods. Who reads the label cannot test guesses of a secret, because
/// the hash has the key [`KubernetesConfig::pool_secret`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::kubernetes) struct PoolKey(pub(in crate::kubernetes) String);

impl PoolKey {
    /// The key of a pool.
    ///
    /// # Errors
    /// The reason why its pods can never run.
    pub(in crate::kubernetes) fn of_pool(pool: &WarmPool, config: &KubernetesConfig) -> Result<Self, Cause> {
        Self::new(&pool.cluster, pool.catalog.as_ref(), config)
    }

    /// The key of the pool whose pods a session can use.
    ///
    /// # Errors
    /// The reason why its pods can never run.
    pub(in crate::kubernetes) fn of_session(
        spec: &ComputeSpec,
        config: &KubernetesConfig,
    ) -> Result<Self, Cause> {
        Self::new(&spec.cluster, spec.catalog.as_ref(), config)
    }

    fn new(cluster: &Cluster, catalog: Option<&Catalog>, config: &KubernetesConfig) -> Result<Self, Cause> {
        let spec = without_session(cluster, catalog);
        let plan = planned(&spec, "warm", &config.install_id, "", None)?;
        let token = plan.secret.get(TOKEN_KEY).cloned().unwrap_or_default();
        let key = hmac::Key::new(hmac::HMAC_SHA256, config.pool_secret.expose().as_bytes());
        let mut hash = hmac::Context::with_key(&key);
        let profile = pods_of(&spec).ok().and_then(|pods| pods.profile.as_ref());
        hash.update(format!("{:?}{profile:?}{:?}", cluster.engine, plan.pod).as_bytes());
        for (key, value) in &plan.secret {
            // Every pod has a token of its own.
            let value = if token.is_empty() {
                value.clone()
            } else {
                value.replace(&token, "")
            };
            hash.update(format!("{key:?}={value:?}").as_bytes());
        }
        let tag = hash.sign();
        let text = tag
            .as_ref()
            .iter()
            .take(HASH_BYTES)
            .fold(String::new(), |mut text, byte| {
                // Writing to a string cannot fail.
                let _ = write!(text, "{byte:02x}");
                text
            });
        Ok(Self(text))
    }
}

/// Plans a pod of a pool.
///
/// # Errors
/// The reason why it can never run.
pub(super) fn pool_plan(
    pool: &WarmPool,
    key: &PoolKey,
    name: &str,
    install_id: &str,
    anchor: Option<OwnerReference>,
) -> Result<Plan, Cause> {
    let spec = without_session(&pool.cluster, pool.catalog.as_ref());
    planned(&spec, name, install_id, &key.0, anchor)
}

fn planned(
    spec: &ComputeSpec,
    name: &str,
    install_id: &str,
    hash: &str,
    anchor: Option<OwnerReference>,
) -> Result<Plan, Cause> {
    if let Some(cause) = crate::properties::unfit(spec, crate::kubernetes::check_definition) {
        return Err(cause);
    }
    let pods = pods_of(spec).map_err(|error| Cause::from(error.to_string()))?;
    let labels = pool_labels(install_id, &spec.cluster.name, hash);
    Plan::named(spec, pods, name.to_owned(), labels, anchor)
}

/// A specification of the same session for all pods.
fn without_session(cluster: &Cluster, catalog: Option<&Catalog>) -> ComputeSpec {
    let org = catalog.map(|catalog| catalog.org.clone());
    ComputeSpec {
        key: SessionKey {
            org: org.unwrap_or_else(nobody),
            id: SessionId::generate(Timestamp::from_millis(0), 0),
        },
        generation: 0,
        cluster: cluster.clone(),
        catalog: catalog.cloned(),
    }
}

fn nobody() -> session_core::OrgId {
    NOBODY.parse().expect("the constant is an organization")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{catalog, kubernetes_cluster, kubernetes_config, spec};
    use session_core::catalog::PropertyValue;
    use session_core::route::Secret;
    use session_core::{Engine, KubernetesPods, Provider};

    fn pods(cluster: &mut Cluster) -> &mut KubernetesPods {
        match &mut cluster.provider {
            Provider::Kubernetes(pods) => pods,
            other => panic!("{other:?}"),
        }
    }

    fn config(secret: &str) -> KubernetesConfig {
        KubernetesConfig {
            pool_secret: Secret::new(secret.to_owned()),
            ..kubernetes_config()
        }
    }

    fn key(spec: &ComputeSpec) -> PoolKey {
        PoolKey::of_session(spec, &config("a")).unwrap()
    }

    #[test]
    fn the_label_depends_on_the_secret_of_the_installation() {
        let spec = spec(kubernetes_cluster(Engine::Sail), 1);
        let label = |secret| PoolKey::of_session(&spec, &config(secret)).unwrap();
        assert_eq!(label("a"), label("a"), "over restarts");
        assert_ne!(label("a"), label("b"));
        assert_eq!(label("a").0.len(), 2 * HASH_BYTES);
    }

    #[test]
    fn sessions_of_one_start_configuration_share_a_pool() {
        for engine in [Engine::Sail, Engine::Spark] {
            let base = spec(kubernetes_cluster(engine), 1);
            let other = ComputeSpec {
                generation: 7,
                ..spec(kubernetes_cluster(engine), 2)
            };
            assert_eq!(key(&base), key(&other), "{engine}");
            let mut more = base.clone();
            pods(&mut more.cluster).warm_pods = 9;
            more.cluster.granted_orgs = ["acme".parse().unwrap()].into();
            more.cluster.version = 3;
            assert_eq!(key(&base), key(&more), "not started with these");
            let pool = WarmPool {
                cluster: base.cluster.clone(),
                catalog: None,
                size: 1,
            };
            assert_eq!(PoolKey::of_pool(&pool, &config("a")).unwrap(), key(&base));
        }
    }

    #[test]
    fn every_start_setting_makes_another_pool() {
        let base = spec(kubernetes_cluster(Engine::Sail), 1);
        let edits: [fn(&mut ComputeSpec); 8] = [
            // Two profiles of one size have pools of their own.
            |spec| pods(&mut spec.cluster).profile = Some("large".parse().unwrap()),
            |spec| spec.cluster.name = "other".parse().unwrap(),
            |spec| pods(&mut spec.cluster).image = "other:1".into(),
            |spec| pods(&mut spec.cluster).memory = "3Gi".into(),
            |spec| pods(&mut spec.cluster).namespace = "other".into(),
            |spec| {
                let properties = &mut pods(&mut spec.cluster).properties;
                properties.insert("SAIL_EXECUTION__BATCH_SIZE".into(), "1".into());
            },
            |spec| {
                let memory = PropertyValue::Text("memory".into());
                spec.catalog = Some(catalog(Engine::Sail, "lake", &[("type", memory)]));
            },
            |spec| spec.cluster.engine = Engine::Spark,
        ];
        let mut keys = vec![key(&base)];
        for edit in edits {
            let mut spec = base.clone();
            edit(&mut spec);
            keys.push(key(&spec));
        }
        let count = keys.len();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), count);
    }

    #[test]
    fn a_pod_of_a_pool_names_no_session() {
        let pool = WarmPool {
            cluster: kubernetes_cluster(Engine::Spark),
            catalog: None,
            size: 1,
        };
        let key = PoolKey::of_pool(&pool, &config("a")).unwrap();
        let plan = pool_plan(&pool, &key, "warm-1", "install", None).unwrap();
        let metadata = &plan.pod.metadata;
        assert_eq!(metadata.name.as_deref(), Some("warm-1"));
        let labels = metadata.labels.as_ref().unwrap();
        assert_eq!(labels["berth/pool"], key.0);
        assert_eq!(labels["berth/install-id"], "install");
        assert!(!labels.contains_key("berth/session") && !labels.contains_key("berth/org"));
        assert_eq!(plan.secret_of("u").metadata.name.as_deref(), Some("warm-1"));
    }
}
