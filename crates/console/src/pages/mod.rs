//! The web pages and their assets.

use crate::rest::problem::{Problem, RestReason};
use crate::service::AppState;
use axum::Router;

/// All paths that no other part has.
pub(crate) fn router(app: &AppState) -> Router {
    Router::new()
        .fallback(async || Problem::of_http(RestReason::NotFound, "There is no such page."))
        .with_state(app.clone())
}
