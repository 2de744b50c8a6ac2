//! The credential of a request: its `Authorization` header, or else the cookie
//! of a signed-in browser.

use super::csrf;
use super::session::SignedIn;
use crate::rest::problem::{Problem, RestReason};
use crate::service::AppState;
use axum::extract::FromRequestParts;
use http::request::Parts;
use service_kit::config::Secret;
use service_kit::grpc::{self, BearerError};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// Digest of a credential: a key for limits and channels that reveals nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct CredentialId([u8; 16]);

/// What the caller shows to the gRPC APIs: a service-account key, or a token of
/// an identity provider. Not verified here.
#[derive(Debug, Clone)]
pub(crate) struct Credential {
    secret: Secret,
    id: CredentialId,
}

impl Credential {
    /// A credential with this text.
    pub(crate) fn new(text: &str) -> Self {
        let digest = Sha256::digest(text.as_bytes());
        let mut id = [0; 16];
        id.copy_from_slice(&digest[..16]);
        Self {
            secret: Secret::new(text),
            id: CredentialId(id),
        }
    }

    /// The text.
    pub(crate) fn expose(&self) -> &str {
        self.secret.expose()
    }

    /// Its digest.
    pub(crate) fn id(&self) -> CredentialId {
        self.id
    }
}

impl FromRequestParts<AppState> for Credential {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &AppState) -> Result<Self, Problem> {
        match grpc::bearer(&parts.headers) {
            Ok(bearer) => Ok(Self::new(bearer)),
            Err(BearerError::Missing) => of_browser(parts, app),
            Err(problem) => Err(Problem::no_credential(problem)),
        }
    }
}

/// The credential that [`super::attach`] found in the cookie.
fn of_browser(parts: &Parts, app: &AppState) -> Result<Credential, Problem> {
    let signed_in = parts.extensions.get::<Arc<SignedIn>>();
    let signed_in = signed_in.ok_or_else(|| Problem::no_credential(BearerError::Missing))?;
    if csrf::is_unsafe(&parts.method) {
        require_same_origin(parts, app)?;
    }
    Ok(Credential::new(&signed_in.credential))
}

/// Rejects requests that another site made the browser send.
///
/// # Errors
/// `CROSS_SITE_REQUEST`.
pub(crate) fn require_same_origin(parts: &Parts, app: &AppState) -> Result<(), Problem> {
    if csrf::is_same_origin(parts, app.sign_in.origin.as_deref()) {
        return Ok(());
    }
    Err(Problem::of_http(
        RestReason::CrossSiteRequest,
        "A request with a cookie must come from the console's own pages, with the header \
         `X-Berth-Request: 1`. Programs send their credential as `Authorization: Bearer …` instead. \
         If you see this in the console, `public.url` is not the address in your browser.",
    ))
}
