//! Admission of calls to the APIs: authentication, access table, limits.
//!
//! ```text
//! call ─▶ layer ─▶ authenticate ── service accounts, external_jwt (OIDC)
//!           │
//!           └────▶ concurrency: permits by address, principal and organization ─▶ api
//! ```
//!
//! The layers of both ports and the services share [`Admission`].

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
    /// Authenticates the caller of an open stream again, by its headers.
    pub(crate) async fn reauthenticate(&self, headers: &HeaderMap) -> Result<Principal, Refused> {
        let who = self.authenticator.authenticate(headers).await?;
        self.authorize_enabled(&who).await?;
        Ok(who)
    }

    /// Rejects a disabled principal, and members of a disabled organization.
    /// Platform admins of a disabled organization may call, because they alone can
    /// enable it again.
    pub(crate) async fn authorize_enabled(&self, who: &Principal) -> Result<(), Refused> {
        let state = self.definitions.disabled_state(&who.org, &who.id).await;
        let state = state.map_err(crate::error::store)?;
        let platform = who.has(Role::PlatformAdmin);
        if let Some(disabled) = state.principal
            && (disabled.by_platform || !platform)
        {
            tracing::info!(org = %who.org, actor = %who.id, "call rejected: principal disabled");
            return Err(authenticate::disabled(who));
        }
        if state.org.is_some() && !platform {
            return Err(crate::error::org_disabled(&who.org));
        }
        Ok(())
    }

    /// The time at which credentials are verified.
    fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.clock.now().as_millis())
    }
}
