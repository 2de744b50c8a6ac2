//! The end of an engine's log in the cause of a failure, without secrets.

use super::Shared;
use super::pod::{Plan, pods_of};
use crate::ComputeSpec;
use crate::user_message;
use session_core::machine::Cause;
use session_core::route::Secret;

impl Shared {
    /// A cause with the last lines of the log of a pod, masked by what the pod was
    /// started with and by what the session would be started with now. Without log
    /// lines if either cannot be read.
    pub(super) async fn with_log(
        &self,
        spec: &ComputeSpec,
        namespace: &str,
        name: &str,
        why: Cause,
    ) -> Cause {
        let secrets = match self.masks_of(spec, namespace, name).await {
            Ok(secrets) => secrets,
            Err(planned) => return user_message::masked(&why, &planned),
        };
        let Ok(log) = self.api.log(namespace, name).await else {
            return user_message::masked(&why, &secrets);
        };
        let last = user_message::last_lines(&user_message::mask(&log, &secrets));
        let detail = [why.detail.as_str(), last.as_str()]
            .into_iter()
            .filter(|text| !text.is_empty())
            .collect::<Vec<_>>()
            .join("\n");
        user_message::masked(&Cause { detail, ..why }, &secrets)
    }

    /// Everything that must not appear in the log tail of a pod of this session. A pod
    /// may be claimed, or made by another manager, so its own Secret is read.
    ///
    /// # Errors
    /// What a pod of the session would be started with now, if the Secret cannot be
    /// read.
    pub(super) async fn masks_of(
        &self,
        spec: &ComputeSpec,
        namespace: &str,
        name: &str,
    ) -> Result<Vec<Secret>, Vec<Secret>> {
        let pods = pods_of(spec).ok();
        let plan = pods.and_then(|pods| Plan::new(spec, pods, &self.config.install_id, None).ok());
        let mut secrets = plan.map_or_else(Vec::new, |plan| plan.secrets);
        match self.api.masks(namespace, name).await {
            Ok(own) => {
                secrets.extend(own);
                // A secret that contains another is masked as a whole.
                secrets.sort_by_key(|secret| std::cmp::Reverse(secret.expose().len()));
                Ok(secrets)
            }
            Err(_) => Err(secrets),
        }
    }
}
