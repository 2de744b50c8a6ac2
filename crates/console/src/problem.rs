//! Errors of HTTP requests: RFC 9457 problem details with the reason of the
//! gRPC status.

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{self, HeaderValue};
use serde::Serialize;
use serde_json::json;
use session_core::Reason;
use session_proto::error::{DOMAIN, reason_of};
use std::collections::BTreeMap;
use std::time::Duration;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// Media type of problems.
pub(crate) const PROBLEM_JSON: &str = "application/problem+json";
/// Keys of ErrorInfo metadata that are only for Spark clients.
const SPARK_ONLY: [&str; 3] = ["classes", "errorClass", "sqlState"];
const MAX_RETRY_DELAY: Duration = Duration::from_secs(3600);

/// Reasons of the HTTP layer, beside those of the gRPC APIs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RestReason {
    /// No route has this path.
    NotFound,
    /// The path has no such method.
    MethodNotAllowed,
    /// The body is larger than allowed.
    RequestTooLarge,
    /// The body is not JSON.
    UnsupportedMediaType,
    /// The body did not arrive in time.
    RequestTimeout,
    /// `If-Match` names another version.
    PreconditionFailed,
    /// A request with a cookie does not come from the console's own pages.
    CrossSiteRequest,
}

impl RestReason {
    /// Every reason, for tests of the documents.
    #[cfg(test)]
    pub(crate) const ALL: [Self; 7] = [
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::RequestTooLarge,
        Self::UnsupportedMediaType,
        Self::RequestTimeout,
        Self::PreconditionFailed,
        Self::CrossSiteRequest,
    ];

    /// The fixed spelling.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "NOT_FOUND",
            Self::MethodNotAllowed => "METHOD_NOT_ALLOWED",
            Self::RequestTooLarge => "REQUEST_TOO_LARGE",
            Self::UnsupportedMediaType => "UNSUPPORTED_MEDIA_TYPE",
            Self::RequestTimeout => "REQUEST_TIMEOUT",
            Self::PreconditionFailed => "PRECONDITION_FAILED",
            Self::CrossSiteRequest => "CROSS_SITE_REQUEST",
        }
    }

    const fn status(self) -> StatusCode {
        match self {
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::RequestTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::PreconditionFailed => StatusCode::PRECONDITION_FAILED,
            Self::CrossSiteRequest => StatusCode::FORBIDDEN,
        }
    }
}

/// An error of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    status: StatusCode,
    reason: &'static str,
    detail: String,
    retry_after: Option<Duration>,
    metadata: BTreeMap<String, String>,
}

/// The JSON form.
#[derive(Debug, Serialize)]
struct Body<'a> {
    r#type: String,
    title: String,
    status: u16,
    detail: &'a str,
    reason: &'a str,
    retry_after: Option<String>,
    metadata: &'a BTreeMap<String, String>,
}

impl Problem {
    fn new(status: StatusCode, reason: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            reason,
            detail: detail.into(),
            retry_after: None,
            metadata: BTreeMap::new(),
        }
    }

    /// An error of the HTTP layer.
    pub(crate) fn of_http(reason: RestReason, detail: impl Into<String>) -> Self {
        Self::new(reason.status(), reason.as_str(), detail)
    }

    /// An error with a reason of the gRPC APIs.
    pub(crate) fn of_reason(reason: Reason, detail: impl Into<String>) -> Self {
        let code = session_proto::error::code_of(reason);
        Self::new(http_status(code), reason.as_str(), detail)
    }

    /// A field, parameter or header of the request is invalid.
    pub(crate) fn field(field: impl Into<String>, problem: impl std::fmt::Display) -> Self {
        let field = field.into();
        let detail = format!("{field}: {problem}");
        Self::of_reason(Reason::InvalidArgument, detail).with("field", field)
    }

    /// The request has no credential, or one that cannot be used.
    pub(crate) fn no_credential(problem: impl std::fmt::Display) -> Self {
        Self::of_reason(
            Reason::CallerUnknown,
            format!(
                "{problem}. Send your service-account key or token as `Authorization: Bearer …`, or sign in."
            ),
        )
    }

    /// Sets the retry delay.
    #[must_use]
    pub(crate) fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay.min(MAX_RETRY_DELAY));
        self
    }

    /// Adds a detail for programs.
    #[must_use]
    pub(crate) fn with(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// The HTTP status.
    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    /// The text for the caller.
    pub(crate) fn detail(&self) -> &str {
        &self.detail
    }

    /// The reason.
    pub(crate) fn reason(&self) -> &'static str {
        self.reason
    }

    /// The JSON form. `type` is the address of the reason's description.
    pub(crate) fn to_json(&self, prefix: &str) -> serde_json::Value {
        let body = Body {
            r#type: format!("{prefix}/api/v1/errors#{}", self.reason),
            title: title(self.reason),
            status: self.status.as_u16(),
            detail: &self.detail,
            reason: self.reason,
            retry_after: self.retry_after.map(|delay| format!("{}s", seconds(delay))),
            metadata: &self.metadata,
        };
        // Cannot fail: texts and numbers.
        serde_json::to_value(&body).unwrap_or_else(|_| json!({"reason": self.reason}))
    }
}

/// Whole seconds, rounded up, at least 1.
fn seconds(delay: Duration) -> u64 {
    let up = u64::from(delay.subsec_nanos() > 0);
    (delay.as_secs() + up).max(1)
}

/// `SESSION_CLOSED` becomes `Session closed`.
fn title(reason: &str) -> String {
    let mut text = reason.replace('_', " ").to_ascii_lowercase();
    if let Some(first) = text.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    text
}

/// The HTTP status of a gRPC code.
pub(crate) const fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::InvalidArgument | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted | Code::FailedPrecondition => StatusCode::CONFLICT,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::Cancelled | Code::Unknown | Code::DataLoss | Code::Internal => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    }
}

impl From<Status> for Problem {
    fn from(status: Status) -> Self {
        let Some(reason) = reason_of(&status) else {
            return of_foreign(&status);
        };
        let mut problem = Self::new(http_status(status.code()), reason.as_str(), status.message());
        let details = status.get_error_details();
        if let Some(info) = details.error_info().filter(|info| info.domain == DOMAIN) {
            let metadata = info.metadata.iter();
            let metadata = metadata.filter(|(key, _)| !SPARK_ONLY.contains(&key.as_str()));
            problem.metadata = metadata
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect();
        }
        let delay = details.retry_info().and_then(|info| info.retry_delay);
        problem.retry_after = delay.map(|delay| delay.min(MAX_RETRY_DELAY));
        problem
    }
}

/// A status that Berth did not make: mostly a connection that failed. Its text
/// may have addresses, so it goes to the log only.
fn of_foreign(status: &Status) -> Problem {
    match status.code() {
        Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded | Code::Unknown => {
            tracing::warn!(code = ?status.code(), error = %status.message(), "call of a gRPC API failed");
            let text = "Berth's services cannot be reached at the moment. Try again in a few seconds.";
            Problem::of_reason(Reason::ControlPlaneUnavailable, text).retry_after(Duration::from_secs(2))
        }
        Code::Unimplemented => {
            let text =
                "Berth's services do not have this function: they are of another release than this console.";
            Problem::of_reason(Reason::UnknownMethod, text)
        }
        code => {
            tracing::error!(?code, error = %status.message(), "call of a gRPC API failed without a reason");
            Problem::of_reason(Reason::Internal, "Berth failed; its logs have the details.")
        }
    }
}

/// The outermost layer writes the body again, with the prefix of the service.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = self.to_json("").to_string();
        let mut response = (self.status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(delay) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds(delay)));
        }
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use session_proto::error::Refused;

    #[test]
    fn a_status_becomes_a_problem_with_its_reason() {
        let refused = Refused::field("cluster", "must not be empty").retry_after(Duration::from_millis(1500));
        let problem = Problem::from(refused.into_status());
        assert_eq!(problem.status(), StatusCode::BAD_REQUEST);
        let json = problem.to_json("/berth");
        assert_eq!(json["type"], "/berth/api/v1/errors#INVALID_ARGUMENT");
        assert_eq!(json["title"], "Invalid argument");
        assert_eq!(json["detail"], "cluster: must not be empty");
        assert_eq!(json["retry_after"], "2s");
        assert_eq!(
            json["metadata"],
            json!({"field": "cluster"}),
            "nothing for Spark clients"
        );
        let response = problem.into_response();
        assert_eq!(response.headers()[header::RETRY_AFTER], "2");
        assert_eq!(response.headers()[header::CONTENT_TYPE], PROBLEM_JSON);
    }

    #[test]
    fn texts_of_the_network_stay_inside() {
        let problem = Problem::from(Status::unavailable("tcp connect error: 10.0.0.7:8081"));
        assert_eq!(problem.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(problem.reason(), "CONTROL_PLANE_UNAVAILABLE");
        assert!(!problem.to_json("").to_string().contains("10.0.0.7"));
        let problem = Problem::from(Status::internal("secret"));
        assert!(!problem.to_json("").to_string().contains("secret"));
    }

    #[test]
    fn every_code_has_a_status() {
        for reason in Reason::ALL {
            let status = Problem::of_reason(*reason, "").status();
            assert!(status.is_client_error() || status.is_server_error(), "{reason}");
        }
        assert_eq!(
            Problem::of_reason(Reason::RequestIdReused, "").status(),
            StatusCode::CONFLICT
        );
        assert_eq!(
            Problem::of_reason(Reason::SessionWarming, "").status(),
            StatusCode::SERVICE_UNAVAILABLE
        );
    }
}
