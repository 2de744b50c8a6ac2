//! Places of sessions on servers that they share.

use crate::Error;
use async_trait::async_trait;
use session_core::SessionKey;

/// Places of sessions on shared servers.
#[async_trait]
pub trait Places {
    /// Gives `holder` a place: the one it has if it is among `servers`, else on
    /// the server with the fewest holders, the first of several such. If
    /// `org_alone`, servers where another organization has a place are passed
    /// over. None if nothing is left. All in one step.
    async fn take_place(
        &self,
        servers: &[String],
        holder: &SessionKey,
        org_alone: bool,
    ) -> Result<Option<String>, Error>;

    /// Gives a place back if `holder` has it.
    async fn leave_place(&self, server: &str, holder: &SessionKey) -> Result<(), Error>;

    /// The servers where `holder` has a place, sorted.
    async fn places_of(&self, holder: &SessionKey) -> Result<Vec<String>, Error>;
}
