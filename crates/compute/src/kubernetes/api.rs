//! The calls to the API server, each bounded in time. A generation needs each
//! write once: create the pod, create its Secret if it has secrets, create its
//! network policy if it has workers, delete the pod. One whose pod comes from a
//! pool needs the patch that claims it.

use super::names::{GENERATION_LABEL, INSTALL_LABEL, Owner, ROLE_LABEL, Role, SESSION_LABEL};
use super::pod::{CONTAINER, MASKS_KEY, TOKEN_KEY};
use super::reasons::PodEvent;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Pod, Secret as KubeSecret};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Client, Error};
use session_core::SessionKey;
use session_core::route::Secret;
use std::time::Duration;
use tokio::time::timeout;

/// One call takes no longer; below the limit that the manager sets on a
/// question to a provider.
const CALL_LIMIT: Duration = Duration::from_secs(8);
/// Objects in one page of a list.
const PAGE: u32 = 500;
/// Of a log, so much is read.
const LOG_LINES: i64 = 50;
/// More than is shown, so that a secret on the cut is still complete.
const LOG_BYTES: i64 = 2 * 4096;

/// Client of one API server.
#[derive(Clone)]
pub(super) struct KubeApi {
    client: Client,
}

impl std::fmt::Debug for KubeApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubeApi").finish_non_exhaustive()
    }
}

/// What became of the creation of a Secret.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum MadeSecret {
    Made,
    /// The pod has one already.
    Exists,
}

impl KubeApi {
    pub(super) fn new(client: Client) -> Self {
        Self { client }
    }

    pub(super) fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub(super) fn events(&self, namespace: &str) -> Api<Event> {
        Api::namespaced(self.client.clone(), namespace)
    }

    fn secrets(&self, namespace: &str) -> Api<KubeSecret> {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub(super) async fn pod(&self, namespace: &str, name: &str) -> Result<Option<Pod>, Error> {
        bounded(self.pods(namespace).get_opt(name)).await
    }

    /// Creates a pod, or reads the one that has its name, if its labels name the
    /// same session, generation and installation: no other pod may serve a session.
    pub(super) async fn create_pod(&self, namespace: &str, pod: &Pod) -> Result<Pod, Error> {
        let pods = self.pods(namespace);
        match bounded(pods.create(&PostParams::default(), pod)).await {
            Err(error) if is(&error, 409) => {
                let name = pod.metadata.name.as_deref().unwrap_or_default();
                match bounded(pods.get_opt(name)).await? {
                    Some(existing) if owner_of(&existing) == owner_of(pod) => Ok(existing),
                    // Another owner's pod, or deleted in between: the caller asks again.
                    Some(_) | None => Err(error),
                }
            }
            made => made,
        }
    }

    /// Asks whether a pod would be created; nothing is stored.
    pub(super) async fn try_pod(&self, namespace: &str, pod: &Pod) -> Result<(), Error> {
        let dry_run = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        bounded(self.pods(namespace).create(&dry_run, pod))
            .await
            .map(drop)
    }

    /// Deletes a pod, if it is the one with this uid; one that is gone is no error.
    pub(super) async fn delete_pod(
        &self,
        namespace: &str,
        name: &str,
        uid: Option<&str>,
    ) -> Result<(), Error> {
        let params = DeleteParams {
            preconditions: uid.map(|uid| Preconditions {
                uid: Some(uid.to_owned()),
                resource_version: None,
            }),
            ..DeleteParams::background()
        };
        match bounded(self.pods(namespace).delete(name, &params)).await {
            Ok(_) => Ok(()),
            // 409: another pod has the name by now.
            Err(error) if is(&error, 404) || is(&error, 409) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Deletes a pod, if it is the one with this uid and was not changed since this
    /// resource version; true if it is gone or being deleted.
    pub(super) async fn delete_unchanged(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        version: &str,
    ) -> Result<bool, Error> {
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(uid.to_owned()),
                resource_version: Some(version.to_owned()),
            }),
            ..DeleteParams::background()
        };
        match bounded(self.pods(namespace).delete(name, &params)).await {
            Ok(_) => Ok(true),
            Err(error) if is(&error, 404) => Ok(true),
            Err(error) if is(&error, 409) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Applies a merge patch that contains the uid and the resource version of a
    /// pod; `None` if the pod is another or was changed.
    pub(super) async fn patch_unchanged(
        &self,
        namespace: &str,
        name: &str,
        patch: &serde_json::Value,
    ) -> Result<Option<Pod>, Error> {
        let pods = self.pods(namespace);
        let patch = Patch::Merge(patch);
        match bounded(pods.patch(name, &PatchParams::default(), &patch)).await {
            Ok(pod) => Ok(Some(pod)),
            Err(error) if is(&error, 404) || is(&error, 409) || is(&error, 422) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The pods of one session generation, by their labels.
    pub(super) async fn pods_of(
        &self,
        namespace: &str,
        key: &SessionKey,
        generation: u64,
    ) -> Result<Vec<Pod>, Error> {
        let labels = format!("{SESSION_LABEL}={},{GENERATION_LABEL}={generation}", key.id);
        let params = ListParams::default().labels(&labels).limit(PAGE);
        let found = bounded(self.pods(namespace).list(&params)).await?.items;
        let is_own = |pod: &Pod| owner_of(pod).is_some_and(|owner| owner.key == *key);
        Ok(found.into_iter().filter(is_own).collect())
    }

    /// Creates the Secret of the pod with this uid. One of an earlier pod of the
    /// name goes first: Kubernetes would delete it under this pod.
    pub(super) async fn create_secret(
        &self,
        namespace: &str,
        secret: &KubeSecret,
        uid: &str,
    ) -> Result<MadeSecret, Error> {
        let secrets = self.secrets(namespace);
        let name = secret.metadata.name.as_deref().unwrap_or_default();
        let error = match bounded(secrets.create(&PostParams::default(), secret)).await {
            Ok(_) => return Ok(MadeSecret::Made),
            Err(error) if is(&error, 409) => error,
            Err(error) => return Err(error),
        };
        let Some(existing) = bounded(secrets.get_opt(name)).await? else {
            return Err(error);
        };
        let owners = existing.metadata.owner_references.unwrap_or_default();
        if owners.iter().any(|owner| owner.uid == uid) {
            return Ok(MadeSecret::Exists);
        }
        bounded(secrets.delete(name, &DeleteParams::background())).await?;
        bounded(secrets.create(&PostParams::default(), secret)).await?;
        Ok(MadeSecret::Made)
    }

    /// Creates the network policy of the driver with this uid, instead of one of
    /// an earlier pod of the name.
    pub(super) async fn create_peers(
        &self,
        namespace: &str,
        policy: &NetworkPolicy,
        uid: &str,
    ) -> Result<(), Error> {
        let policies: Api<NetworkPolicy> = Api::namespaced(self.client.clone(), namespace);
        let name = policy.metadata.name.as_deref().unwrap_or_default();
        let error = match bounded(policies.create(&PostParams::default(), policy)).await {
            Ok(_) => return Ok(()),
            Err(error) if is(&error, 409) => error,
            Err(error) => return Err(error),
        };
        let Some(existing) = bounded(policies.get_opt(name)).await? else {
            return Err(error);
        };
        let owners = existing.metadata.owner_references.unwrap_or_default();
        if owners.iter().any(|owner| owner.uid == uid) {
            return Ok(());
        }
        bounded(policies.delete(name, &DeleteParams::background())).await?;
        bounded(policies.create(&PostParams::default(), policy)).await?;
        Ok(())
    }

    /// The engine's own token, from the Secret of its pod.
    pub(super) async fn token(&self, namespace: &str, name: &str) -> Result<Option<Secret>, Error> {
        let secret = bounded(self.secrets(namespace).get_opt(name)).await?;
        let token = secret.and_then(|secret| secret.data?.remove(TOKEN_KEY));
        Ok(token
            .and_then(|bytes| String::from_utf8(bytes.0).ok())
            .map(Secret::new))
    }

    /// Everything that must not appear in the log tail of a pod, from its Secret; empty
    /// without a Secret.
    pub(super) async fn masks(&self, namespace: &str, name: &str) -> Result<Vec<Secret>, Error> {
        let secret = bounded(self.secrets(namespace).get_opt(name)).await?;
        let mut data = secret.and_then(|secret| secret.data).unwrap_or_default();
        let token = data
            .remove(TOKEN_KEY)
            .and_then(|bytes| String::from_utf8(bytes.0).ok());
        let masks = data
            .remove(MASKS_KEY)
            .and_then(|bytes| serde_json::from_slice::<Vec<String>>(&bytes.0).ok());
        Ok(masks
            .unwrap_or_default()
            .into_iter()
            .chain(token)
            .map(Secret::new)
            .collect())
    }

    /// The anchor as owner of pods; `None` if it does not exist.
    pub(super) async fn anchor(&self, namespace: &str, name: &str) -> Result<Option<OwnerReference>, Error> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let found = bounded(maps.get_metadata_opt(name)).await?;
        Ok(found.map(|found| OwnerReference {
            api_version: "v1".to_owned(),
            kind: "ConfigMap".to_owned(),
            name: name.to_owned(),
            uid: found.metadata.uid.unwrap_or_default(),
            ..OwnerReference::default()
        }))
    }

    /// The events of a pod, the oldest first.
    pub(super) async fn events_of(&self, namespace: &str, name: &str) -> Result<Vec<PodEvent>, Error> {
        let params = ListParams::default()
            .fields(&format!("involvedObject.kind=Pod,involvedObject.name={name}"))
            .limit(PAGE);
        let mut events = bounded(self.events(namespace).list(&params)).await?.items;
        events.sort_by_key(|event| event.last_timestamp.clone());
        Ok(events.iter().map(PodEvent::read).collect())
    }

    /// The end of the engine's log.
    pub(super) async fn log(&self, namespace: &str, name: &str) -> Result<String, Error> {
        let params = LogParams {
            container: Some(CONTAINER.to_owned()),
            tail_lines: Some(LOG_LINES),
            limit_bytes: Some(LOG_BYTES),
            ..LogParams::default()
        };
        bounded(self.pods(namespace).logs(name, &params)).await
    }

    /// Every pod that serves a session in a namespace, of any installation.
    pub(super) async fn all_pods(&self, namespace: &str) -> Result<Vec<Pod>, Error> {
        let worker = Role::Worker.as_str();
        self.list(namespace, &format!("{SESSION_LABEL},{ROLE_LABEL}!={worker}"))
            .await
    }

    /// The workers of an installation in a namespace.
    pub(super) async fn workers(&self, namespace: &str, install_id: &str) -> Result<Vec<Pod>, Error> {
        let worker = Role::Worker.as_str();
        let labels = format!("{INSTALL_LABEL}={install_id},{ROLE_LABEL}={worker}");
        self.list(namespace, &labels).await
    }

    async fn list(&self, namespace: &str, labels: &str) -> Result<Vec<Pod>, Error> {
        let mut params = ListParams::default().labels(labels).limit(PAGE);
        let mut all = Vec::new();
        loop {
            let page = bounded(self.pods(namespace).list(&params)).await?;
            all.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(all),
            }
        }
    }
}

fn owner_of(pod: &Pod) -> Option<Owner> {
    pod.metadata.labels.as_ref().and_then(Owner::read)
}

/// Whether the API server answered with this HTTP status.
fn is(error: &Error, code: u16) -> bool {
    matches!(error, Error::Api(status) if status.code == code)
}

async fn bounded<T>(call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    timeout(CALL_LIMIT, call).await.unwrap_or_else(|_| {
        let seconds = CALL_LIMIT.as_secs();
        Err(Error::Service(format!("no answer within {seconds} s").into()))
    })
}
