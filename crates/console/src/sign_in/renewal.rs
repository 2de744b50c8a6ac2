//! Renewal of credentials: one request to the provider however many requests
//! of the browser need it.
//!
//! Providers that rotate refresh tokens treat a second use as theft. Requests
//! that arrive together at one replica share one renewal; a replica that is
//! late continues with the credential it has, which is renewed before it
//! expires.

use super::oidc::{LoginError, Provider};
use super::session::SignedIn;
use crate::credential::{Credential, CredentialId};
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use session_core::Timestamp;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Time for which the outcome of a renewal is shared.
const SHARED_FOR: Duration = Duration::from_secs(30);
/// Maximum number of remembered renewals; more are not shared.
const MAX_REMEMBERED: usize = 10_000;

type Outcome = Result<Arc<SignedIn>, LoginError>;
type Running = Shared<BoxFuture<'static, Outcome>>;

/// Renewals that run or ended a moment ago, by digest of the refresh token.
#[derive(Default)]
pub(super) struct Renewals {
    recent: Mutex<HashMap<CredentialId, (Instant, Running)>>,
}

impl Renewals {
    /// The sign-in with a new credential.
    ///
    /// # Errors
    /// [`LoginError`].
    pub(super) async fn renew(
        &self,
        provider: &Arc<Provider>,
        signed_in: &SignedIn,
        now: Timestamp,
    ) -> Outcome {
        let token = signed_in.refresh_token.as_deref().unwrap_or_default();
        let id = Credential::new(token).id();
        let running = {
            let mut recent = self.recent.lock();
            match recent.get(&id).filter(|(at, _)| at.elapsed() < SHARED_FOR) {
                Some((_, running)) => running.clone(),
                None => {
                    recent.retain(|_, (at, _)| at.elapsed() < SHARED_FOR);
                    let running = start(provider, signed_in, now);
                    if recent.len() < MAX_REMEMBERED {
                        recent.insert(id, (Instant::now(), running.clone()));
                    }
                    running
                }
            }
        };
        running.await
    }
}

/// In a task of its own: a browser that leaves must not lose the new token for
/// the others.
fn start(provider: &Arc<Provider>, signed_in: &SignedIn, now: Timestamp) -> Running {
    let (provider, signed_in) = (Arc::clone(provider), signed_in.clone());
    let task = tokio::spawn(async move { provider.renew(&signed_in, now).await.map(Arc::new) });
    async move { task.await.unwrap_or(Err(LoginError::Unavailable)) }
        .boxed()
        .shared()
}

impl fmt::Debug for Renewals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Renewals").finish_non_exhaustive()
    }
}
