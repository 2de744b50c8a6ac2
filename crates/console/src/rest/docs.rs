//! Documents of the API: the OpenAPI document, a page that shows it, and a page
//! of error reasons. Without scripts, and without anything from other hosts.

use crate::state::AppState;
use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::header;
use serde_json::{Map, Value};
use std::fmt::Write as _;
use std::sync::Arc;

/// The reference of errors, whose tables have a row for each reason.
const ERRORS: &str = include_str!("../../../../docs/errors.md");
/// Sections of it whose rows the page shows.
const SECTIONS: [&str; 2] = ["## On the REST API", "## On the APIs"];
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'";
const STYLE: &str = "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;\
color-scheme:light dark}code{font-family:ui-monospace,monospace}h2{margin-top:2rem}\
dt{font-weight:600}section{border-top:1px solid #8886;padding:.5rem 0}</style>";

/// The routes of the documents, which need no credential.
pub(super) fn router(document: Value, prefix: &str) -> Router<AppState> {
    let page: Arc<str> = page(&document, prefix).into();
    let errors: Arc<str> = errors().into();
    let document: Arc<str> = document.to_string().into();
    Router::new()
        .route(
            "/openapi.json",
            get(async move || text("application/json", &document)),
        )
        .route("/docs", get(async move || html(&page)))
        .route("/errors", get(async move || html(&errors)))
}

fn text(kind: &'static str, text: &str) -> Response {
    (
        [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache")],
        text.to_owned(),
    )
        .into_response()
}

fn html(page: &str) -> Response {
    let headers = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, text("text/html; charset=utf-8", page)).into_response()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

fn begin(title: &str) -> String {
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\"><title>{title}</title>{STYLE}<h1>{title}</h1>"
    )
}

/// The operations by path.
fn page(document: &Value, prefix: &str) -> String {
    let mut page = begin("REST API of Berth");
    let base = format!("{prefix}{}", super::openapi::BASE);
    let _ = write!(
        page,
        "<p>Machine-readable: <a href=\"{base}/openapi.json\">openapi.json</a> (OpenAPI 3.1). Errors: <a href=\"{base}/errors\">reasons</a>. \
         Every request needs <code>Authorization: Bearer …</code> with a service-account key or a token of your identity provider.</p>"
    );
    let empty = Map::new();
    for (path, item) in document["paths"].as_object().unwrap_or(&empty) {
        for (method, operation) in item.as_object().unwrap_or(&empty) {
            if operation["operationId"].is_string() {
                show_operation(&mut page, &base, path, method, operation);
            }
        }
    }
    page
}

fn show_operation(page: &mut String, base: &str, path: &str, method: &str, operation: &Value) {
    let (method, path) = (method.to_ascii_uppercase(), escaped(path));
    let _ = write!(page, "<section><h2><code>{method} {base}{path}</code></h2>");
    for field in ["summary", "description"] {
        if let Some(text) = operation[field].as_str() {
            let _ = write!(page, "<p>{}</p>", escaped(text));
        }
    }
    page.push_str("<dl>");
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        let text = |field: &str| escaped(parameter[field].as_str().unwrap_or_default());
        let _ = write!(
            page,
            "<dt><code>{}</code> ({})<dd>{}",
            text("name"),
            text("in"),
            text("description")
        );
    }
    let body = &operation["requestBody"]["content"]["application/json"]["schema"]["$ref"];
    if let Some(schema) = body.as_str().and_then(|path| path.rsplit('/').next()) {
        let _ = write!(page, "<dt>Body<dd><code>{schema}</code>");
    }
    page.push_str("</dl></section>");
}

/// The reasons, each with an anchor of its name.
fn errors() -> String {
    let mut page = begin("Errors of Berth's APIs");
    let mut shown = std::collections::BTreeSet::new();
    for (reason, cells) in SECTIONS.iter().flat_map(|section| rows(section)) {
        if shown.insert(reason) {
            let _ = write!(page, "<section id=\"{reason}\"><h2><code>{reason}</code></h2>");
            for cell in cells {
                let _ = write!(page, "<p>{}</p>", escaped(&cell.replace('`', "")));
            }
            page.push_str("</section>");
        }
    }
    page
}

/// The rows of a section's table: the reason and the other cells.
fn rows(section: &str) -> impl Iterator<Item = (&'static str, Vec<&'static str>)> {
    let start = ERRORS.find(section).map_or(ERRORS.len(), |at| at + section.len());
    let rest = &ERRORS[start..];
    let end = rest.find("\n## ").unwrap_or(rest.len());
    rest[..end].lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split('|').map(str::trim);
        let reason = cells.next()?.strip_suffix('`')?;
        let is_reason = reason
            .bytes()
            .all(|byte| byte.is_ascii_uppercase() || byte == b'_');
        is_reason.then(|| (reason, cells.filter(|cell| !cell.is_empty()).collect()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::RestReason;

    #[test]
    fn the_page_of_errors_has_every_reason_of_the_api() {
        let page = errors();
        for reason in RestReason::ALL {
            assert!(
                page.contains(&format!("id=\"{}\"", reason.as_str())),
                "{reason:?}"
            );
        }
        for reason in [
            "CALLER_UNKNOWN",
            "NOT_AUTHORIZED",
            "SESSION_CLOSED",
            "REQUEST_ID_REUSED",
            "CONFLICT",
        ] {
            assert!(page.contains(&format!("id=\"{reason}\"")), "{reason}");
        }
        assert!(!page.contains("<script"));
    }
}
