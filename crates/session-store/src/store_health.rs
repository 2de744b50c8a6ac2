//! The clock, the epoch and the reachability of the store.

use crate::Error;
use async_trait::async_trait;
use session_core::Timestamp;

/// The clock, the epoch and the reachability of the store.
#[async_trait]
pub trait StoreHealth {
    /// The store's own clock, which all due times are of.
    async fn now(&self) -> Result<Timestamp, Error>;

    /// Rises when stored state may have gone back in time; routes carry it. The
    /// feed says [`crate::Feed::Reset`] after it rose.
    async fn epoch(&self) -> Result<u64, Error>;

    /// Can it be reached now?
    async fn ping(&self) -> Result<(), Error>;
}
