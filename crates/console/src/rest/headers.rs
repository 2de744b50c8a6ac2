//! Conditions and keys in headers: `If-Match` and `Idempotency-Key`.

use crate::problem::{Problem, RestReason};
use crate::state::AppState;
use axum::extract::FromRequestParts;
use http::header::{self, HeaderName};
use http::request::Parts;
use http::{HeaderMap, Method};
use session_core::Reason;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// The path whose `POST` checks `Idempotency-Key`.
const CREATE_SESSION: &str = "/sessions";
const MAX_IDEMPOTENCY_KEY: usize = 128;

/// The version in `If-Match`; none without the header, or with `*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IfMatch(pub(crate) Option<u64>);

impl FromRequestParts<AppState> for IfMatch {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, Problem> {
        if_match(&parts.headers)
    }
}

fn if_match(headers: &HeaderMap) -> Result<IfMatch, Problem> {
    let Some(text) = single(headers, &header::IF_MATCH)? else {
        return Ok(IfMatch(None));
    };
    if text.trim() == "*" {
        return Ok(IfMatch(None));
    }
    let tag = text.trim().trim_start_matches("W/");
    let inner = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"'));
    let version = inner
        .and_then(|tag| tag.parse().ok())
        .filter(|version| *version > 0);
    match version {
        Some(version) => Ok(IfMatch(Some(version))),
        None => Err(Problem::field(
            "If-Match",
            "must be one ETag of this API, such as \"7\", or *",
        )),
    }
}

/// What a route does not check must not be ignored.
///
/// # Errors
/// `If-Match` on a request that is no `PATCH`; `Idempotency-Key` on a `POST` that is not the
/// creation of a session.
pub(crate) fn reject_unchecked(method: &Method, path: &str, headers: &HeaderMap) -> Result<(), Problem> {
    if method != Method::PATCH && if_match(headers)? != IfMatch(None) {
        return Err(Problem::field("If-Match", "is checked by PATCH only; remove it"));
    }
    if method == Method::POST && path != CREATE_SESSION && headers.contains_key(&IDEMPOTENCY_KEY) {
        return Err(Problem::field(
            "Idempotency-Key",
            "is checked by POST /sessions only; remove it",
        ));
    }
    Ok(())
}

/// A lost race becomes a failed precondition if the request had one.
pub(crate) fn precondition(problem: Problem, condition: IfMatch) -> Problem {
    if condition.0.is_some() && problem.reason() == Reason::Conflict.as_str() {
        return changed();
    }
    problem
}

/// The object has another version than `If-Match`.
pub(crate) fn changed() -> Problem {
    Problem::of_http(
        RestReason::PreconditionFailed,
        "The object changed since you read it. Read it again and repeat the change with its new ETag.",
    )
}

/// `Idempotency-Key`; empty without the header.
#[derive(Debug)]
pub(crate) struct IdempotencyKey(pub(crate) String);

impl FromRequestParts<AppState> for IdempotencyKey {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, Problem> {
        let key = single(&parts.headers, &IDEMPOTENCY_KEY)?;
        // The standard form is a text in quotes.
        let key = key.map(
            |key| match key.strip_prefix('"').and_then(|key| key.strip_suffix('"')) {
                Some(inner) => inner.to_owned(),
                None => key,
            },
        );
        match key {
            None => Ok(Self(String::new())),
            Some(key)
                if (1..=MAX_IDEMPOTENCY_KEY).contains(&key.len())
                    && key.bytes().all(|byte| byte.is_ascii_graphic()) =>
            {
                Ok(Self(key))
            }
            Some(_) => Err(Problem::field(
                "Idempotency-Key",
                "must have 1 to 128 visible ASCII characters",
            )),
        }
    }
}

fn single(headers: &HeaderMap, name: &HeaderName) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let text = value.to_str().ok().filter(|_| values.next().is_none());
    match text {
        Some(text) => Ok(Some(text.to_owned())),
        None => Err(Problem::field(
            name.as_str(),
            "must be one header of visible ASCII characters",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn if_match_is_one_version() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::IF_MATCH, text.parse().unwrap());
            if_match(&headers)
        };
        assert_eq!(read("\"7\""), Ok(IfMatch(Some(7))));
        assert_eq!(read("W/\"7\""), Ok(IfMatch(Some(7))));
        assert_eq!(read("*"), Ok(IfMatch(None)));
        for bad in ["7", "\"\"", "\"x\"", "\"7\", \"8\"", "\"0\"", ""] {
            assert!(read(bad).is_err(), "{bad}");
        }
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_MATCH, "\"7\"".parse().unwrap());
        assert!(reject_unchecked(&Method::DELETE, "/sessions/s", &headers).is_err());
        assert!(reject_unchecked(&Method::PATCH, "/sessions/s", &headers).is_ok());
    }

    #[test]
    fn an_idempotency_key_is_for_the_creation_of_sessions() {
        let mut headers = HeaderMap::new();
        headers.insert(IDEMPOTENCY_KEY, "k".parse().unwrap());
        assert!(reject_unchecked(&Method::POST, CREATE_SESSION, &headers).is_ok());
        assert!(reject_unchecked(&Method::POST, "/sessions/s/tokens", &headers).is_err());
    }
}
