//! The network policy by which the driver and the workers of one session reach
//! each other. It adds to the policy of their namespace, which denies that.

use crate::kubernetes::names::{GENERATION_LABEL, SESSION_LABEL};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};

/// The policy of the session of a driver, which owns it.
pub(in super::super) fn policy_of(driver: &Pod, owner: OwnerReference) -> NetworkPolicy {
    let metadata = &driver.metadata;
    let labels = metadata.labels.clone().unwrap_or_default();
    let session = labels
        .iter()
        .filter(|(key, _)| [SESSION_LABEL, GENERATION_LABEL].contains(&key.as_str()))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let same = LabelSelector {
        match_labels: Some(session),
        ..LabelSelector::default()
    };
    let peer = || {
        Some(vec![NetworkPolicyPeer {
            pod_selector: Some(same.clone()),
            ..NetworkPolicyPeer::default()
        }])
    };
    NetworkPolicy {
        metadata: ObjectMeta {
            name: metadata.name.clone(),
            namespace: metadata.namespace.clone(),
            labels: Some(labels),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(same.clone()),
            policy_types: Some(vec!["Ingress".to_owned(), "Egress".to_owned()]),
            ingress: Some(vec![NetworkPolicyIngressRule {
                from: peer(),
                ..NetworkPolicyIngressRule::default()
            }]),
            egress: Some(vec![NetworkPolicyEgressRule {
                to: peer(),
                ..NetworkPolicyEgressRule::default()
            }]),
        }),
    }
}
