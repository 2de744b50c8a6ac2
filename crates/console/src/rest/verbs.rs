//! Paths with a verb, such as `/sessions/{id}:close`. The router matches whole
//! segments only, so a verb becomes a segment of its own: `/sessions/{id}/~close`.

use http::Request;
use http::uri::{PathAndQuery, Uri};

/// The form of a path that the router has: of a request, or of a route.
pub(crate) fn routed(path: &str) -> String {
    let (parents, last) = path.rsplit_once('/').unwrap_or(("", path));
    match last.rsplit_once(':') {
        Some((name, verb)) if !name.is_empty() && is_verb(verb) => format!("{parents}/{name}/~{verb}"),
        _ => path.to_owned(),
    }
}

fn is_verb(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphabetic())
}

/// Rewrites the path of a request for the router.
pub(crate) fn rewrite<B>(mut request: Request<B>) -> Request<B> {
    let uri = request.uri();
    let path = uri.path();
    // No request may name the router's own form.
    let new = match path.contains("/~") {
        true => "/~".to_owned(),
        false => routed(path),
    };
    if new != path {
        let with_query = match uri.query() {
            Some(query) => format!("{new}?{query}"),
            None => new,
        };
        let mut parts = uri.clone().into_parts();
        if let Ok(path_and_query) = with_query.parse::<PathAndQuery>() {
            parts.path_and_query = Some(path_and_query);
            if let Ok(uri) = Uri::from_parts(parts) {
                *request.uri_mut() = uri;
            }
        }
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_verb_becomes_a_segment() {
        let rewritten = |uri: &str| {
            let request = Request::get(uri).body(()).unwrap();
            rewrite(request).uri().to_string()
        };
        for (asked, routed) in [
            ("/sessions/s-1:close", "/sessions/s-1/~close"),
            (
                "/sessions:watch?session_id=s-1:x",
                "/sessions/~watch?session_id=s-1:x",
            ),
            (
                "/sessions/s-1/operations:interrupt",
                "/sessions/s-1/operations/~interrupt",
            ),
            ("/principals/sa%7Cx:y:disable", "/principals/sa%7Cx:y/~disable"),
            ("/sessions/s-1", "/sessions/s-1"),
            ("/clusters/a:1", "/clusters/a:1"),
            ("/clusters/a:", "/clusters/a:"),
            ("/sessions/s-1/~close", "/~"),
        ] {
            assert_eq!(rewritten(asked), routed, "{asked}");
        }
        assert_eq!(routed("/sessions/{id}:keepAlive"), "/sessions/{id}/~keepAlive");
    }
}
