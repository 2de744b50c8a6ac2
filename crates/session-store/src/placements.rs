//! Placements: assignment of sessions to static servers.

use crate::Error;
use async_trait::async_trait;
use session_core::SessionKey;

/// Placements of sessions on static servers.
#[async_trait]
pub trait Placements {
    /// Assigns `holder` to a server, in one step: to its present one if that is in
    /// `servers`, else to the server with the fewest holders, the first of several.
    /// With `org_alone`, servers with a holder of another organization are excluded.
    /// `None` if no server is left.
    async fn place_session(
        &self,
        servers: &[String],
        holder: &SessionKey,
        org_alone: bool,
    ) -> Result<Option<String>, Error>;

    /// Removes the placement of `holder` on `server`, if it exists.
    async fn remove_placement(&self, server: &str, holder: &SessionKey) -> Result<(), Error>;

    /// The servers to which `holder` is assigned, sorted.
    async fn list_placements(&self, holder: &SessionKey) -> Result<Vec<String>, Error>;
}
