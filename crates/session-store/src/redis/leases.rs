//! Leases in Redis.

use super::RedisStore;
use crate::{Error, Leases};
use async_trait::async_trait;
use std::time::Duration;

#[async_trait]
impl Leases for RedisStore {
    async fn acquire_lease(&self, name: &str, owner: &str, ttl: Duration) -> Result<Option<u64>, Error> {
        let mut script = self.scripts.acquire_lease.key(self.keys.lease(name));
        script.key(self.keys.lease_fence());
        let millis = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let reply = self.run(script.arg(owner).arg(millis)).await?;
        match reply.fields()[..] {
            ["ok", fence] => match fence.parse() {
                Ok(fence) => Ok(Some(fence)),
                Err(_) => Err(Error::Corrupt(format!("{fence:?} is no fencing number"))),
            },
            _ => Ok(None),
        }
    }

    async fn release_lease(&self, name: &str, owner: &str) -> Result<(), Error> {
        let mut script = self.scripts.release_lease.key(self.keys.lease(name));
        self.run(script.arg(owner)).await?.done().map(drop)
    }
}
