//! The credential of a request: its `Authorization` header, or else the cookie
//! of a signed-in browser.

use crate::credential::Credential;
use crate::problem::{Problem, RestReason};
use crate::sign_in::csrf;
use crate::sign_in::session::SignedIn;
use crate::state::AppState;
use axum::extract::FromRequestParts;
use http::request::Parts;
use service_kit::grpc::{self, BearerError};
use std::sync::Arc;

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
    if app.sign_in.is_own_page(parts) {
        return Ok(());
    }
    Err(Problem::of_http(
        RestReason::CrossSiteRequest,
        "A request with a cookie must come from the console's own pages, with the header \
         `X-Berth-Request: 1`. Programs send their credential as `Authorization: Bearer …` instead. \
         If you see this in the console, `public.url` is not the address in your browser.",
    ))
}
