//! Who may call the APIs, and how much.
//!
//! ```text
//! call ─▶ layer ─▶ authenticate ── service accounts, external_jwt (OIDC)
//!           │
//!           └────▶ concurrency: places by address, principal and organization ─▶ api
//! ```
//!
//! [`Admission`] is what the layers of both ports and the services share.

pub(crate) mod authenticate;
pub(crate) mod concurrency;
pub(crate) mod external_jwt;
pub(crate) mod layer;

use crate::audit::Trail;
use crate::definitions::DefinitionStore;
use crate::metrics::Metrics;
use authenticate::CallerAuthenticator;
use http::HeaderMap;
use session_core::{Clock, Principal, Role};
use session_proto::error::Refused;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Authenticates callers, and rejects those that are disabled.
#[derive(Debug)]
pub(crate) struct Admission {
    pub(crate) authenticator: CallerAuthenticator,
    pub(crate) definitions: DefinitionStore,
    pub(crate) trail: Arc<Trail>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) clock: Arc<dyn Clock>,
}

impl Admission {
    /// Authenticates the caller of a running stream again, by its headers.
    pub(crate) async fn reauthenticate(&self, headers: &HeaderMap) -> Result<Principal, Refused> {
        let who = self.authenticator.authenticate(headers).await?;
        self.authorize_enabled(&who).await?;
        Ok(who)
    }

    /// Rejects a disabled principal, and members of a disabled organization.
    /// Platform admins of a disabled organization may call: nobody could enable
    /// it again otherwise.
    pub(crate) async fn authorize_enabled(&self, who: &Principal) -> Result<(), Refused> {
        let standing = self.definitions.standing(&who.org, &who.id).await;
        let standing = standing.map_err(crate::error::store)?;
        let platform = who.has(Role::PlatformAdmin);
        if let Some(disabled) = standing.principal
            && (disabled.by_platform || !platform)
        {
            tracing::info!(org = %who.org, actor = %who.id, "a disabled principal was refused");
            return Err(authenticate::disabled(who));
        }
        if standing.org.is_some() && !platform {
            return Err(crate::error::org_disabled(&who.org));
        }
        Ok(())
    }

    /// The present, by which credentials are verified.
    fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.clock.now().as_millis())
    }
}
