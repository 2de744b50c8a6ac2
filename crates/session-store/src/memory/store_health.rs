//! Clock, epoch and reachability in memory.

use super::MemoryStore;
use crate::{Error, Memory, StoreHealth};
use async_trait::async_trait;
use session_core::Timestamp;
use std::sync::atomic::Ordering;

#[async_trait]
impl StoreHealth for MemoryStore {
    async fn now(&self) -> Result<Timestamp, Error> {
        Ok(self.clock.now())
    }

    async fn epoch(&self) -> Result<u64, Error> {
        Ok(self.epoch.load(Ordering::Acquire))
    }

    async fn ping(&self) -> Result<(), Error> {
        Ok(())
    }

    async fn memory(&self) -> Result<Option<Memory>, Error> {
        Ok(None)
    }
}
