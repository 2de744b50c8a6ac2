//! A page with one message. It needs neither the front end nor a style.

use crate::assets::escaped;
use crate::state::AppState;
use axum::response::{Html, IntoResponse as _, Response};
use http::{HeaderValue, StatusCode, header};

/// A page with a title, a text and a link to the first page. Both texts are
/// escaped.
pub(crate) fn message_page(app: &AppState, status: StatusCode, title: &str, text: &str) -> Response {
    let page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\">\n<meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{title} · Berth</title>\n<main>\n<h1>{title}</h1>\n<p>{text}</p>\n<p><a href=\"{prefix}/\">Back to \
         Berth</a></p>\n</main>\n</html>\n",
        title = escaped(title),
        text = escaped(text),
        prefix = escaped(&app.prefix),
    );
    let mut response = (status, Html(page)).into_response();
    let no_store = HeaderValue::from_static("no-store");
    response.headers_mut().insert(header::CACHE_CONTROL, no_store);
    response
}
