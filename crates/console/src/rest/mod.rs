//! The REST API: one call of the gRPC APIs for each request.

pub(crate) mod openapi;
pub(crate) mod problem;

use crate::service::AppState;
use axum::Router;
use problem::{Problem, RestReason};

/// The routes below `/api/v1`.
pub(crate) fn router(app: &AppState) -> Router {
    let api = Router::new()
        .fallback(async || Problem::of_http(RestReason::NotFound, "There is no such path in the API."))
        .with_state(app.clone());
    Router::new().nest("/api/v1", api)
}
