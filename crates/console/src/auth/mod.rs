//! The routes of the sign-in, and the credential of a request.
//!
//! ```text
//! auth/key ───────┐
//! auth/callback ──┴─▶ sealed cookie ─▶ attach (opens and renews it) ─▶ Credential of a request
//! ```
//!
//! - `browser`: the cookie around every request
//! - `credential`: from the header, or from the cookie for pages of the console
//! - `account`: who is signed in, service-account keys, sign-out
//! - `login`: to an identity provider and back

mod account;
mod browser;
mod caller;
mod credential;
mod login;

pub(crate) use browser::attach;

use crate::state::AppState;
use axum::Router;
use axum::routing::{get, post};

/// The routes below `/auth`.
pub(crate) fn router(app: &AppState) -> Router {
    Router::new()
        .route("/auth/session", get(account::session))
        .route("/auth/key", post(account::sign_in_with_key))
        .route("/auth/logout", post(account::sign_out))
        .route("/auth/login/{provider}", get(login::start))
        .route("/auth/callback", get(login::finish))
        .layer(axum::middleware::map_response(no_store))
        .with_state(app.clone())
}

/// Answers of the sign-in are never cached.
async fn no_store(mut response: axum::response::Response) -> axum::response::Response {
    let no_store = http::HeaderValue::from_static("no-store");
    response
        .headers_mut()
        .insert(http::header::CACHE_CONTROL, no_store);
    response
}
