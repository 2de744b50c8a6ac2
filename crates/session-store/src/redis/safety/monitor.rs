//! What a store does by itself every moment: looks who serves it, how they
//! are, whether they went back in time, and after its weak changes.

use crate::Error;
use crate::redis::RedisStore;
use std::time::Duration;
use tokio::task::AbortHandle;

/// How often.
const PERIOD: Duration = Duration::from_secs(1);

/// Ends with its value.
pub(in crate::redis) struct Watch(AbortHandle);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Watch {
    pub(in crate::redis) fn begin(store: RedisStore) -> Self {
        let task = tokio::spawn(async move {
            let mut well = true;
            loop {
                tokio::time::sleep(PERIOD).await;
                let outcome = store.tick().await;
                if let Err(error) = &outcome
                    && well
                {
                    tracing::warn!(%error, "Redis cannot be watched");
                }
                well = outcome.is_ok();
            }
        });
        Self(task.abort_handle())
    }
}

impl RedisStore {
    async fn tick(&self) -> Result<(), Error> {
        let servers = self.connections.refresh().await;
        self.epoch.tick().await?;
        self.recheck_unreplicated().await?;
        servers.map_err(|failure| failure.into_error())
    }
}
