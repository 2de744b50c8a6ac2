//! Sign-in and the credential of a request.

pub(crate) mod credential;

use crate::service::AppState;
use axum::Router;

/// The routes below `/auth`.
pub(crate) fn router(app: &AppState) -> Router {
    Router::new().with_state(app.clone())
}
