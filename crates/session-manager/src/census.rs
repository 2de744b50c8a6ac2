//! Numbers for the metrics: live sessions by status, and how late the
//! due-queue is.

use crate::directory::Directory;
use crate::metrics::Metrics;
use session_core::{Cluster, OrgId, Status};
use session_store::{Error, SessionStore};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often the due-queue is asked.
const LAG: Duration = Duration::from_secs(10);
/// Sessions are counted once in so many of those.
const COUNT: u64 = 6;
const PAGE: usize = 1000;

/// Counts until `stop`.
pub(crate) async fn run(
    store: Arc<dyn SessionStore>,
    directory: Directory,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let mut turn: u64 = 0;
    loop {
        let counted = async {
            let now = store.now().await?;
            let oldest = store.oldest_due().await?;
            metrics.due_lag(oldest.map_or(Duration::ZERO, |at| now.since(at)));
            if turn.is_multiple_of(COUNT) {
                metrics.sessions(&count(&*store, &directory).await?);
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = counted.await {
            tracing::debug!(%error, "sessions cannot be counted");
        }
        turn += 1;
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LAG) => {}
        }
    }
}

/// Organizations need not be defined anywhere: those that have live sessions
/// are found by them.
async fn count(store: &dyn SessionStore, directory: &Directory) -> Result<BTreeMap<Status, u64>, Error> {
    let mut orgs: BTreeSet<OrgId> = BTreeSet::new();
    for cluster in directory.all::<Cluster>().await? {
        let mut after = None;
        loop {
            let keys = store.live_on_cluster(&cluster.name, after.as_ref(), PAGE).await?;
            let Some(last) = keys.last().cloned() else { break };
            after = Some(last);
            orgs.extend(keys.into_iter().map(|key| key.org));
        }
    }
    let mut all = BTreeMap::new();
    for org in orgs {
        for (status, count) in store.counts(&org).await? {
            *all.entry(status).or_default() += count;
        }
    }
    Ok(all)
}
