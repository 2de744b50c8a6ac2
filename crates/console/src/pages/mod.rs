//! The web pages and their assets.
//!
//! The front end is one page; its script shows what the path names. Every path
//! that no other part of the service has and that is not an asset is that page.
//!
//! - `headers`: what browsers may do with an answer
//! - `message`: a page with one message, without the front end

mod headers;
mod message;

pub(crate) use headers::secure;
pub(crate) use message::message_page;

use crate::assets::{Asset, HASHED};
use crate::problem::{Problem, RestReason};
use crate::state::AppState;
use axum::Router;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, StatusCode};

/// Files that browsers ask for without a link to them.
const UNASKED: [&str; 3] = ["favicon.ico", "robots.txt", "apple-touch-icon.png"];

/// All paths that no other part has.
pub(crate) fn router(app: &AppState) -> Router {
    Router::new().fallback(page).with_state(app.clone())
}

async fn page(State(app): State<AppState>, request: Request) -> Result<Response, Problem> {
    let (parts, _) = request.into_parts();
    let path = parts.uri.path().trim_start_matches('/');
    if is_api(path) {
        return Err(Problem::of_http(
            RestReason::NotFound,
            "There is no such resource.",
        ));
    }
    if !matches!(parts.method, Method::GET | Method::HEAD) {
        return Err(Problem::of_http(
            RestReason::MethodNotAllowed,
            "Pages can only be read.",
        ));
    }
    if let Some(asset) = app.assets.file(path) {
        return Ok(answer(asset, &parts.headers, &parts.method));
    }
    if path.starts_with(HASHED) || UNASKED.contains(&path) || !wants_page(&parts.headers) {
        return Err(Problem::of_http(RestReason::NotFound, "There is no such page."));
    }
    match app.assets.index() {
        Some(index) => Ok(answer(index, &parts.headers, &parts.method)),
        None => Ok(message_page(
            &app,
            StatusCode::SERVICE_UNAVAILABLE,
            "The console's pages are missing",
            "This program was built without them: run `make console-web`, and build it again. The REST API below \
             api/v1 works without pages.",
        )),
    }
}

/// Whether the path belongs to the REST API or to the sign-in.
fn is_api(path: &str) -> bool {
    let first = path.split('/').next().unwrap_or_default();
    first == "api" || first == "auth"
}

/// Whether the client takes a page: programs that ask for JSON get an error.
fn wants_page(headers: &HeaderMap) -> bool {
    let mut accepted = headers.get_all(header::ACCEPT).iter().peekable();
    accepted.peek().is_none()
        || accepted.any(|value| {
            let value = value.to_str().unwrap_or_default();
            value.contains("text/html") || value.contains("*/*")
        })
}

fn answer(asset: &Asset, request: &HeaderMap, method: &Method) -> Response {
    let mut headers = HeaderMap::new();
    let mut set = |name: HeaderName, value: &HeaderValue| headers.insert(name, value.clone());
    set(header::ETAG, &asset.etag);
    set(header::CACHE_CONTROL, &HeaderValue::from_static(asset.caching()));
    set(header::VARY, &HeaderValue::from_static("accept-encoding"));
    if asset.is_page() {
        set(
            header::CONTENT_SECURITY_POLICY,
            &HeaderValue::from_static(headers::PAGE_POLICY),
        );
    }
    if is_known(request, &asset.etag) {
        return (StatusCode::NOT_MODIFIED, headers).into_response();
    }
    let (encoding, body) = asset.encoded(request);
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(asset.content_type()),
    );
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    if let Some(encoding) = encoding {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding));
    }
    if *method == Method::HEAD {
        return (StatusCode::OK, headers).into_response();
    }
    (StatusCode::OK, headers, body).into_response()
}

/// Whether the browser has the current version.
fn is_known(request: &HeaderMap, etag: &HeaderValue) -> bool {
    let etag = etag.to_str().unwrap_or_default();
    let mut known = request.get_all(header::IF_NONE_MATCH).iter();
    known.any(|line| {
        let line = line.to_str().unwrap_or_default();
        line.split(',')
            .any(|one| matches!(one.trim(), one if one == etag || one == "*"))
    })
}
