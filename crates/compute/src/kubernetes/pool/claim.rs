//! A starter takes a pod of a pool for its session.
//!
//! The patch names the uid and the resource version of the pod, so the API server
//! lets exactly one of any number of claims pass. The opposite, two pods for one
//! generation, is possible while two managers start it at once: each manager looks
//! for another pod after its own claim, and the one that finds one withdraws. What is
//! left if that has no answer: `duplicates`.

use super::Reserved;
use super::state::Pools;
use crate::kubernetes::names::{CLAIMED_ANNOTATION, Owner, POOL_LABEL};
use crate::kubernetes::pod::PORT;
use crate::kubernetes::starter::{End, Starter};
use crate::user_message;
use crate::warm_pools::PoolUse;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

/// Pods that one start tries to claim.
const MAX_ATTEMPTS: usize = 5;
/// An engine that does not accept a connection in this time is asked again.
const CONNECT_LIMIT: Duration = Duration::from_millis(500);

enum Claim {
    Won(Box<Pod>),
    /// The pod cannot be claimed.
    Lost,
    Unknown(kube::Error),
}

impl Pools {
    /// Takes an available pod for a start of this session.
    pub(in crate::kubernetes) fn reserve_for(
        &mut self,
        key: &super::PoolKey,
        id: &session_core::SessionId,
    ) -> Option<Reserved> {
        self.reserve(key, id.as_str(), Instant::now())
    }
}

impl Starter {
    /// Claims the reserved pod, or another of its pool.
    pub(in crate::kubernetes) async fn claim(&self, first: &Reserved) -> End {
        let mut warm = first.clone();
        for _ in 0..MAX_ATTEMPTS {
            match self.try_claim(&warm).await {
                Claim::Won(pod) => return self.won(&warm, &pod).await,
                Claim::Unknown(error) => {
                    self.shared.pools.lock().start_again(&warm.uid);
                    let cause = user_message::cause("claiming a warm pod failed", error);
                    return End::failed(cause, false);
                }
                Claim::Lost => {}
            }
            let next = {
                let mut pools = self.shared.pools.lock();
                pools.reserve(&warm.key, self.spec.key.id.as_str(), first.since)
            };
            match next {
                Some(next) => warm = next,
                None => break,
            }
        }
        // The next attempt takes its turn among the cold starts.
        self.shared.pools.lock().missed(&first.key);
        End::Gone
    }

    async fn try_claim(&self, warm: &Reserved) -> Claim {
        let address = warm.route.endpoint.as_str();
        let connected = timeout(CONNECT_LIMIT, TcpStream::connect(address)).await;
        if !matches!(connected, Ok(Ok(_))) {
            tracing::info!(
                pod = warm.name,
                port = PORT,
                "a warm pod does not accept connections"
            );
            self.shared.pools.lock().start_again(&warm.uid);
            return Claim::Lost;
        }
        let api = &self.shared.api;
        let mut version = warm.version.clone();
        loop {
            let patch = self.patch(&warm.uid, &version);
            match api.patch_unchanged(&warm.namespace, &warm.name, &patch).await {
                Ok(Some(pod)) => return Claim::Won(Box::new(pod)),
                Ok(None) => {}
                Err(error) => return Claim::Unknown(error),
            }
            // The watch may be behind a change of its status.
            let found = match api.pod(&warm.namespace, &warm.name).await {
                Ok(found) => found,
                Err(error) => return Claim::Unknown(error),
            };
            let is_own = |pod: &Pod| pod.metadata.labels.as_ref().and_then(Owner::read) == Some(self.owner());
            if let Some(own) = found.as_ref().filter(|pod| is_own(pod) && is_same(pod, warm)) {
                // Another manager claimed it for the same session.
                return Claim::Won(Box::new(own.clone()));
            }
            match found.and_then(|pod| unclaimed_version(&pod, warm)) {
                Some(newer) if newer != version => version = newer,
                Some(_) | None => {
                    self.shared.pools.lock().left(&warm.uid);
                    return Claim::Lost;
                }
            }
        }
    }

    fn owner(&self) -> Owner {
        Owner {
            key: self.spec.key.clone(),
            generation: self.spec.generation,
            cluster: self.spec.cluster.name.clone(),
            install_id: self.shared.config.install_id.clone(),
        }
    }

    fn patch(&self, uid: &str, version: &str) -> Value {
        let mut labels: serde_json::Map<String, Value> = self
            .owner()
            .session_labels()
            .into_iter()
            .map(|(key, value)| (key, Value::String(value)))
            .collect();
        labels.insert(POOL_LABEL.to_owned(), Value::Null);
        let now = jiff::Timestamp::now().to_string();
        json!({"metadata": {
            "uid": uid, "resourceVersion": version, "labels": labels,
            "annotations": {CLAIMED_ANNOTATION: now},
        }})
    }

    /// The pod belongs to the session from here on.
    async fn won(&self, warm: &Reserved, pod: &Pod) -> End {
        let shared = &self.shared;
        shared.saw_owner(&self.owner(), pod);
        shared.pools.lock().left(&warm.uid);
        shared.pools_changed.notify_one();
        match shared.has_rival(&warm.namespace, &self.spec, &warm.uid).await {
            Ok(false) => {}
            Ok(true) => {
                self.withdraw_claim(warm).await;
                return End::Gone;
            }
            Err(error) => return End::failed(error.to_string(), false),
        }
        if self.stop.is_cancelled() {
            self.withdraw_claim(warm).await;
            return End::Stopped;
        }
        let time = warm.since.elapsed();
        shared.pools.lock().used(PoolUse::Hit(time));
        tracing::info!(session = %self.spec.key.id, generation = self.spec.generation, pod = warm.name, ?time, "warm pod claimed");
        End::Ready {
            route: warm.route.clone(),
            uid: warm.uid.clone(),
        }
    }

    async fn withdraw_claim(&self, warm: &Reserved) {
        let id = (self.spec.key.id.clone(), self.spec.generation);
        self.shared.owners.lock().remove(&id, &warm.uid);
        let deleted = self
            .shared
            .api
            .delete_pod(&warm.namespace, &warm.name, Some(&warm.uid))
            .await;
        if let Err(error) = deleted {
            tracing::warn!(pod = warm.name, %error, "deleting a claimed pod failed; orphan collection finds it");
        }
    }
}

/// The resource version of the pod, if it is still a pod of the pool.
fn unclaimed_version(pod: &Pod, warm: &Reserved) -> Option<String> {
    let pool = pod.metadata.labels.as_ref()?.get(POOL_LABEL)?;
    let is_free = *pool == warm.key.0 && is_same(pod, warm);
    is_free.then(|| pod.metadata.resource_version.clone())?
}

fn is_same(pod: &Pod, warm: &Reserved) -> bool {
    pod.metadata.uid.as_ref() == Some(&warm.uid) && pod.metadata.deletion_timestamp.is_none()
}
