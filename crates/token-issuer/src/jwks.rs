//! HTTP endpoint of the public keys.

use crate::keys::Keys;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use std::sync::Arc;

/// Cache time for intermediaries: with the polling interval of verifiers (30
/// s), a withdrawn key is gone everywhere within 60 s.
const MAX_AGE: &str = "public, max-age=15";

/// `GET /.well-known/jwks.json` (and `/jwks.json`), with ETag.
pub(crate) fn router(keys: Arc<Keys>) -> Router {
    Router::new()
        .route("/.well-known/jwks.json", get(serve))
        .route("/jwks.json", get(serve))
        .with_state(keys)
}

async fn serve(State(keys): State<Arc<Keys>>, request: HeaderMap) -> Response {
    let document = Arc::clone(&keys.current().document);
    let caching = [
        (header::ETAG, document.etag().to_owned()),
        (header::CACHE_CONTROL, MAX_AGE.to_owned()),
    ];
    let known = request
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|tag| tag.trim() == "*" || tag.trim().trim_start_matches("W/") == document.etag());
    if known {
        return (StatusCode::NOT_MODIFIED, caching).into_response();
    }
    let kind = [(header::CONTENT_TYPE, "application/jwk-set+json".to_owned())];
    (caching, kind, document.json().to_owned()).into_response()
}
