//! Protection against requests that other sites make a browser send.
//!
//! A request that changes something and is authenticated by a cookie needs the
//! header `X-Berth-Request`, which a form cannot set and a script of another
//! origin only after a preflight that is never answered, and it must come from
//! this origin by `Sec-Fetch-Site` or `Origin`.

use http::request::Parts;
use http::{HeaderMap, Method, header};

/// The header of requests of the console's own pages.
pub(crate) const REQUEST_HEADER: &str = "x-berth-request";

/// Whether the method can change something.
pub(crate) fn is_unsafe(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// Whether a page of this origin sent the request. `own` is the configured
/// origin, such as `https://berth.example.org`; without it the host that the
/// request names is the own one.
pub(crate) fn is_same_origin(parts: &Parts, own: Option<&str>) -> bool {
    let headers = &parts.headers;
    if only(headers, REQUEST_HEADER) != Some("1") {
        return false;
    }
    // Browsers set this one themselves; it is independent of names that proxies
    // change.
    if headers.contains_key("sec-fetch-site") {
        return only(headers, "sec-fetch-site") == Some("same-origin");
    }
    let Some(origin) = only(headers, header::ORIGIN.as_str()) else {
        return false;
    };
    match own {
        Some(own) => origin.eq_ignore_ascii_case(own),
        None => host(parts).is_some_and(|host| {
            let named = origin.strip_prefix("https://").or(origin.strip_prefix("http://"));
            named.is_some_and(|named| named.eq_ignore_ascii_case(host))
        }),
    }
}

/// The host that the request names, with its port.
fn host(parts: &Parts) -> Option<&str> {
    let authority = parts.uri.authority().map(http::uri::Authority::as_str);
    authority.or_else(|| only(&parts.headers, header::HOST.as_str()))
}

/// The value of a header that is there once.
fn only<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(headers: &[(&str, &str)], own: Option<&str>) -> bool {
        let mut request = http::Request::post("/api/v1/sessions");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        is_same_origin(&request.body(()).unwrap().into_parts().0, own)
    }

    #[test]
    fn only_pages_of_this_origin_pass() {
        let ours = ("x-berth-request", "1");
        let own = Some("https://berth.example.org");
        assert!(same(&[ours, ("sec-fetch-site", "same-origin")], own));
        assert!(same(&[ours, ("origin", "https://berth.example.org")], own));
        assert!(same(
            &[
                ours,
                ("origin", "http://localhost:8080"),
                ("host", "localhost:8080")
            ],
            None
        ));
        let foreign: [&[(&str, &str)]; 12] = [
            &[],
            &[ours],
            &[("origin", "https://berth.example.org")],
            &[("sec-fetch-site", "same-origin")],
            &[("x-berth-request", "0"), ("sec-fetch-site", "same-origin")],
            &[ours, ("sec-fetch-site", "cross-site")],
            &[ours, ("sec-fetch-site", "same-site")],
            &[ours, ("sec-fetch-site", "none")],
            &[
                ours,
                ("sec-fetch-site", "cross-site"),
                ("origin", "https://berth.example.org"),
            ],
            &[ours, ("origin", "https://berth.example.org.evil.example")],
            &[ours, ("origin", "null")],
            &[
                ours,
                ("origin", "https://berth.example.org"),
                ("origin", "https://evil.example"),
            ],
        ];
        for headers in foreign {
            assert!(!same(headers, own), "{headers:?}");
        }
        for (origin, host) in [
            ("http://evil.example", "localhost:8080"),
            ("localhost:8080", "localhost:8080"),
        ] {
            assert!(
                !same(&[ours, ("origin", origin), ("host", host)], None),
                "{origin}"
            );
        }
    }

    #[test]
    fn methods_that_only_read_are_safe() {
        for safe in [Method::GET, Method::HEAD, Method::OPTIONS] {
            assert!(!is_unsafe(&safe));
        }
        for other in [
            Method::POST,
            Method::PUT,
            Method::PATCH,
            Method::DELETE,
            Method::TRACE,
        ] {
            assert!(is_unsafe(&other));
        }
    }
}
