//! The clock, the epoch and the reachability of the store.

use crate::Error;
use async_trait::async_trait;
use session_core::Timestamp;

/// The clock, the epoch and the reachability of the store.
#[async_trait]
pub trait StoreHealth {
    /// Time of the store's clock, which all due times use.
    async fn now(&self) -> Result<Timestamp, Error>;

    /// The store epoch: increases when writes may have been lost. Routes contain it;
    /// the feed sends [`crate::Feed::Reset`] after an increase.
    async fn epoch(&self) -> Result<u64, Error>;

    /// Verifies that the store is reachable.
    async fn ping(&self) -> Result<(), Error>;
}
