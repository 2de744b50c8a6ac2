//! Asks the API server whether it would create the pods of a cluster, by a create that
//! it does not carry out. Admission, pod security and webhooks take part in it.

use super::Shared;
use super::pod::{Plan, pods_of};
use super::reasons::words_of;
use crate::{ComputeSpec, DefinitionError};
use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use session_core::{Cluster, OrgId, ProfileName, SessionId, SessionKey, Timestamp};

/// Longest answer that is passed on, in bytes.
const MAX_WORDS: usize = 1024;

impl Shared {
    /// Tries a pod of each profile, all at once.
    ///
    /// # Errors
    /// The answer to the first one that was not accepted.
    pub(super) async fn try_cluster(&self, cluster: &Cluster) -> Result<(), DefinitionError> {
        let mut profiles: Vec<Option<ProfileName>> = Vec::new();
        for name in cluster.profiles().keys() {
            let name = name.parse::<ProfileName>().map_err(rejected)?;
            profiles.push(Some(name));
        }
        if profiles.is_empty() {
            profiles.push(None);
        }
        let tries = profiles
            .iter()
            .map(|profile| self.try_profile(cluster, profile.as_ref()));
        join_all(tries).await.into_iter().collect()
    }

    async fn try_profile(
        &self,
        cluster: &Cluster,
        profile: Option<&ProfileName>,
    ) -> Result<(), DefinitionError> {
        let pod = self.trial_pod(cluster, profile)?;
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let Err(error) = self.api.try_pod(namespace, &pod).await else {
            return Ok(());
        };
        let about = |words: String| match profile {
            Some(profile) => format!("profile {profile}: {words}"),
            None => words,
        };
        match judge(&error) {
            None => Ok(()),
            Some(DefinitionError::Rejected(words)) => Err(DefinitionError::Rejected(about(words))),
            Some(unavailable) => Err(unavailable),
        }
    }

    /// The pod of a session that does not exist.
    fn trial_pod(&self, cluster: &Cluster, profile: Option<&ProfileName>) -> Result<Pod, DefinitionError> {
        let org = cluster.granted_orgs.first().cloned();
        let spec = ComputeSpec {
            key: SessionKey {
                org: org
                    .map_or_else(|| "dry-run".parse::<OrgId>(), Ok)
                    .map_err(rejected)?,
                id: SessionId::generate(Timestamp::ZERO, 0),
            },
            generation: 0,
            cluster: cluster.with_profile(profile).map_err(rejected)?,
            catalog: None,
        };
        let pods = pods_of(&spec).map_err(rejected)?;
        let plan = Plan::new(&spec, pods, &self.config.install_id, None);
        let plan = plan.map_err(|cause| rejected(format!("{} {}", cause.text, cause.detail).trim()))?;
        Ok(plan.pod)
    }
}

fn rejected(why: impl ToString) -> DefinitionError {
    DefinitionError::Rejected(bounded(&why.to_string()))
}

fn bounded(words: &str) -> String {
    let mut words = printable::escape(words).into_owned();
    words.truncate(words.floor_char_boundary(MAX_WORDS));
    words
}

/// What an answer means for a definition; `None` if it is no reason against it.
fn judge(error: &kube::Error) -> Option<DefinitionError> {
    let kube::Error::Api(status) = error else {
        let text = format!("the Kubernetes API server does not answer: {error}");
        return Some(DefinitionError::Unavailable(bounded(&text)));
    };
    let words = words_of(status);
    // A quota may have room later. A webhook that is not prepared for a dry run says
    // nothing about the pod, nor does a pod of this name.
    let is_no_reason = words.contains("exceeded quota: ")
        || words.contains("does not support dry run")
        || status.code == 409;
    if is_no_reason {
        return None;
    }
    let cannot_say = matches!(status.code, 401 | 408 | 429)
        || status.code >= 500
        || words.contains("failed calling webhook");
    Some(if cannot_say {
        let text = format!("the Kubernetes API server cannot try the pod now: {words}");
        DefinitionError::Unavailable(bounded(&text))
    } else {
        rejected(words)
    })
}
