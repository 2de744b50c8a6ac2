//! Clock, epoch and reachability in Redis.

use super::RedisStore;
use super::connection::Failure;
use super::from_redis_time;
use crate::{Error, StoreHealth};
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
        self.connections.ping().await.map_err(Failure::into_error)
    }
}
