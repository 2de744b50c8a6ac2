//! Advice for clients that are newer than their engine: what proxies compare with, and the events
//! of the clients that they report.

use super::Api;
use parking_lot::Mutex;
use session_core::machine::Event;
use session_core::spark_version::printable_version;
use session_core::{Actor, ClusterName, NewestClient, Reason, Route, SessionKey, SparkVersion};
use session_proto::error::Refused;
use session_proto::internal as wire;
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

/// Newer clients of one session in a report; more are ignored.
pub(super) const MAX_NEWER_CLIENTS: usize = session_core::machine::MAX_ADVISED_CLIENTS;
/// Time for which a cluster's definition is not read again for advice.
const REREAD_INTERVAL: Duration = Duration::from_secs(10);
/// Clusters whose definition is remembered.
const MAX_CLUSTERS: usize = 1024;

/// What the definitions of clusters say, read at most once in [`REREAD_INTERVAL`]: routes are
/// resolved often, and a definition may be large.
#[derive(Debug, Default)]
pub(crate) struct ClusterVersions(Mutex<HashMap<ClusterName, (Instant, Option<NewestClient>)>>);

impl ClusterVersions {
    fn recent(&self, name: &ClusterName) -> Option<Option<NewestClient>> {
        let read = self.0.lock();
        let (at, defined) = read.get(name)?;
        (at.elapsed() < REREAD_INTERVAL).then_some(*defined)
    }

    fn insert(&self, name: &ClusterName, defined: Option<NewestClient>) {
        let mut read = self.0.lock();
        if read.len() >= MAX_CLUSTERS {
            read.clear();
        }
        read.insert(name.clone(), (Instant::now(), defined));
    }
}

/// The newest clients that the compute of a session serves. Only advice depends on it, so a failed
/// read of the definition is no error.
pub(super) async fn newest_client(api: &Api, name: &ClusterName, route: &Route) -> Option<NewestClient> {
    let defined = match api.cluster_versions.recent(name) {
        Some(defined) => defined,
        None => {
            let cluster = api.definitions.cluster(name).await.ok()?;
            let defined = cluster.as_ref().and_then(NewestClient::defined);
            api.cluster_versions.insert(name, defined);
            defined
        }
    };
    NewestClient::of(route.engine, &route.engine_version, defined)
}

/// Records an event for each newer client of a session, once for each version.
///
/// # Errors
/// The store is unavailable; the report must be repeated.
pub(super) async fn record(
    api: &Api,
    key: &SessionKey,
    clients: &[wire::NewerClient],
) -> Result<(), Refused> {
    for client in clients.iter().take(MAX_NEWER_CLIENTS) {
        let Some(version) = SparkVersion::parse(&client.newest_client) else {
            continue;
        };
        let newest = NewestClient {
            version,
            declared: client.newest_client_declared,
        };
        let Some(advice) = newest.advice(&client.version) else {
            continue;
        };
        let event = Event::AdviseClient {
            version: printable_version(&client.version).to_owned(),
            advice,
        };
        match api
            .reconciler
            .apply(key, &event, &Actor::System, |_| Ok(()))
            .await
        {
            Err(refused) if refused.reason == Reason::ControlPlaneUnavailable => return Err(refused),
            // It ended, or it changes too often for an event that nothing depends on.
            Ok(_) | Err(_) => {}
        }
    }
    Ok(())
}
