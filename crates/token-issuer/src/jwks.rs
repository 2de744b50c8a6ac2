//! The public keys, for everybody who checks tokens.

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use session_token::Jwks;
use std::sync::Arc;

/// Verifiers ask again after this.
const MAX_AGE: &str = "public, max-age=300";

#[derive(Debug)]
struct Document {
    json: String,
    etag: String,
}

/// `GET /.well-known/jwks.json` (and `/jwks.json`), with ETag.
pub(crate) fn router(keys: &Jwks) -> Router {
    let document = Arc::new(Document {
        json: keys.to_json(),
        etag: keys.etag(),
    });
    Router::new()
        .route("/.well-known/jwks.json", get(serve))
        .route("/jwks.json", get(serve))
        .with_state(document)
}

async fn serve(State(document): State<Arc<Document>>, request: HeaderMap) -> Response {
    let caching = [
        (header::ETAG, document.etag.clone()),
        (header::CACHE_CONTROL, MAX_AGE.to_owned()),
    ];
    let known = request
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|tag| tag.trim() == "*" || tag.trim().trim_start_matches("W/") == document.etag);
    if known {
        return (StatusCode::NOT_MODIFIED, caching).into_response();
    }
    let kind = [(header::CONTENT_TYPE, "application/jwk-set+json".to_owned())];
    (caching, kind, document.json.clone()).into_response()
}
