//! Clock, epoch, reachability and memory in Redis.

use super::RedisStore;
use super::connection::Failure;
use super::from_redis_time;
use crate::{Error, Memory, StoreHealth};
use async_trait::async_trait;
use session_core::Timestamp;

#[async_trait]
impl StoreHealth for RedisStore {
    async fn now(&self) -> Result<Timestamp, Error> {
        self.connections
            .query(&redis::cmd("TIME"))
            .await
            .map(from_redis_time)
    }

    async fn epoch(&self) -> Result<u64, Error> {
        self.epoch.current().await
    }

    async fn ping(&self) -> Result<(), Error> {
        self.connections.ping().await.map_err(Failure::into_error)?;
        self.epoch
            .rejection()
            .map_or(Ok(()), |outage| Err(Error::Unavailable(outage)))
    }

    async fn memory(&self) -> Result<Option<Memory>, Error> {
        let servers = self.connections.servers().await.map_err(Failure::into_error)?;
        let limited = servers
            .iter()
            .map(|server| server.info())
            .filter(|info| info.limit > 0);
        let fullest = limited.max_by(|a, b| {
            let (a, b) = (
                u128::from(a.used) * u128::from(b.limit),
                u128::from(b.used) * u128::from(a.limit),
            );
            a.cmp(&b)
        });
        Ok(fullest.map(|info| Memory {
            used: info.used,
            limit: info.limit,
        }))
    }
}
