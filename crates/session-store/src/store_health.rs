//! The clock, the epoch, the reachability and the memory of the store.

use crate::Error;
use async_trait::async_trait;
use session_core::Timestamp;

/// Memory of a server of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Used memory, in bytes.
    pub used: u64,
    /// The limit above which the server rejects new data, in bytes.
    pub limit: u64,
}

/// The clock, the epoch, the reachability and the memory of the store.
#[async_trait]
pub trait StoreHealth {
    /// Time of the store's clock, which all due times use.
    async fn now(&self) -> Result<Timestamp, Error>;

    /// The store epoch: increases when writes may have been lost. Routes contain it;
    /// the feed sends [`crate::Feed::Reset`] after an increase.
    async fn epoch(&self) -> Result<u64, Error>;

    /// Verifies that the store is reachable and accepts changes. Memory is not
    /// verified: a store without free memory still accepts changes that end something.
    async fn ping(&self) -> Result<(), Error>;

    /// Memory of the server with the smallest free share at the last check; `None` if
    /// no server has a limit.
    async fn memory(&self) -> Result<Option<Memory>, Error>;
}
