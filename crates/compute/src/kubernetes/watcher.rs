//! The pods and events of one namespace, kept up to date by watches.
//!
//! A watch that ends is resumed, one that is too old is begun again with a list
//! (`kube::runtime`), with a back-off. A dead connection is noticed within
//! [`WATCH_SECONDS`] and a little more.

use super::names::{INSTALL_LABEL, ROLE_LABEL, Role};
use super::reasons::PodEvent;
use super::{Shared, WorkId};
use futures::{FutureExt, Stream, StreamExt};
use k8s_openapi::api::core::v1::{Event as KubeEvent, Pod};
use kube::runtime::reflector::{self, Store, store::Writer};
use kube::runtime::watcher::{self, Event, watcher};
use kube::runtime::{WatchStreamExt, reflector::ObjectRef};
use std::pin::pin;
use std::sync::{Arc, Weak};
use tokio_util::sync::CancellationToken;

/// The API server ends each watch after so long.
const WATCH_SECONDS: u32 = 60;

/// The pods of one namespace as last seen.
#[derive(Debug, Clone)]
pub(super) struct Pods(Store<Pod>);

impl Pods {
    pub(super) fn new() -> (Self, Writer<Pod>) {
        let (store, writer) = reflector::store();
        (Self(store), writer)
    }

    /// Whether the namespace was listed once.
    pub(super) fn are_listed(&self) -> bool {
        matches!(self.0.wait_until_ready().now_or_never(), Some(Ok(())))
    }

    pub(super) fn get(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.0.get(&ObjectRef::new(name).within(namespace))
    }

    pub(super) fn all(&self) -> Vec<Arc<Pod>> {
        self.0.state()
    }

    pub(super) fn count(&self) -> usize {
        self.0.len()
    }
}

/// Keeps the pods of a namespace up to date until `stop`.
pub(super) async fn watch_pods(
    shared: Weak<Shared>,
    namespace: String,
    writer: Writer<Pod>,
    stop: CancellationToken,
) {
    let Some(config) = shared.upgrade().map(|shared| {
        let worker = Role::Worker.as_str();
        let labels = format!(
            "{INSTALL_LABEL}={},{ROLE_LABEL}!={worker}",
            shared.config.install_id
        );
        (shared.api.pods(&namespace), watch_config().labels(&labels))
    }) else {
        return;
    };
    let events = watcher(config.0, config.1)
        .default_backoff()
        .modify(|pod| pod.metadata.managed_fields = None)
        .reflect(writer);
    follow(&namespace, "pods", events, stop, |event| {
        let Some(shared) = shared.upgrade() else {
            return;
        };
        match event {
            Event::Apply(pod) => shared.pod_changed(&pod),
            Event::Delete(pod) => shared.pod_deleted(&pod),
            Event::InitDone => shared.listed(&namespace),
            Event::Init | Event::InitApply(_) => {}
        }
    })
    .await;
}

/// Hands the events of pods that start to their work until `stop`.
pub(super) async fn watch_events(shared: Weak<Shared>, namespace: String, stop: CancellationToken) {
    let Some(api) = shared.upgrade().map(|shared| shared.api.events(&namespace)) else {
        return;
    };
    let config = watch_config().fields("involvedObject.kind=Pod");
    let events = watcher(api, config).default_backoff();
    follow(&namespace, "events", events, stop, |event| {
        let (Event::Apply(event) | Event::InitApply(event)) = event else {
            return;
        };
        if let (Some(shared), Some(id)) = (shared.upgrade(), work_of(&event)) {
            shared.event_arrived(&id, PodEvent::read(&event));
        }
    })
    .await;
}

fn watch_config() -> watcher::Config {
    watcher::Config::default().timeout(WATCH_SECONDS)
}

fn work_of(event: &KubeEvent) -> Option<WorkId> {
    let (id, generation) = event.involved_object.name.as_deref()?.rsplit_once("-g")?;
    Some((id.parse().ok()?, generation.parse().ok()?))
}

/// Calls `seen` for each event of a watch. Logs the first error of a series.
async fn follow<K>(
    namespace: &str,
    what: &str,
    events: impl Stream<Item = Result<Event<K>, watcher::Error>>,
    stop: CancellationToken,
    seen: impl Fn(Event<K>),
) {
    let mut events = pin!(events);
    let mut is_broken = false;
    while let Some(Some(event)) = stop.run_until_cancelled(events.next()).await {
        match event {
            Ok(event) => {
                if is_broken {
                    tracing::info!(namespace, what, "Kubernetes watch resumed");
                }
                is_broken = false;
                seen(event);
            }
            // An expired watch is begun again; that is how the API works.
            Err(error) if is_broken || is_expired(&error) => {
                tracing::debug!(namespace, what, %error, "Kubernetes watch failed");
            }
            Err(error) => {
                is_broken = true;
                tracing::warn!(namespace, what, %error, "Kubernetes watch failed; it is tried again");
            }
        }
    }
}

fn is_expired(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchError(status) if status.code == 410)
}
