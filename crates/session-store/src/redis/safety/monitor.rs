//! Background checks of the store: topology and state of the servers, store epoch, and
//! changes that no replica has yet.

use crate::Error;
use crate::redis::RedisStore;
use std::time::Duration;
use tokio::task::AbortHandle;

/// Time between two checks.
const MONITOR_INTERVAL: Duration = Duration::from_secs(1);

/// The background task; dropping this value ends it.
pub(in crate::redis) struct Monitor(AbortHandle);

impl Drop for Monitor {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Monitor {
    pub(in crate::redis) fn begin(store: RedisStore) -> Self {
        let task = tokio::spawn(async move {
            let mut healthy = true;
            loop {
                tokio::time::sleep(MONITOR_INTERVAL).await;
                let outcome = store.tick().await;
                if let Err(error) = &outcome
                    && healthy
                {
                    tracing::warn!(%error, "monitoring Redis failed");
                }
                healthy = outcome.is_ok();
            }
        });
        Self(task.abort_handle())
    }
}

impl RedisStore {
    async fn tick(&self) -> Result<(), Error> {
        let servers = self.connections.refresh().await;
        self.epoch.tick().await?;
        let epoch = self.epoch.current().await?;
        let recent = self.recheck_recent(epoch).await;
        // Also when that failed for another session.
        self.recheck_unreplicated().await?;
        recent?;
        servers.map_err(|failure| failure.into_error())?;
        self.replication.forget_old(epoch);
        Ok(())
    }
}
