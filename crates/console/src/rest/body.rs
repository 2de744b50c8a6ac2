//! Bodies of requests and replies.

use crate::problem::{Problem, RestReason};
use crate::state::AppState;
use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use session_proto::json;

const JSON: &str = "application/json";
const MERGE_PATCH: &str = "application/merge-patch+json";

/// A message that requests have as their body.
pub(crate) trait RequestBody: DeserializeOwned {
    /// Fields that a body must not have, and where their values are instead.
    const ELSEWHERE: &'static [(&'static str, &'static str)] = &[];
}

/// The body of a request. An empty one is an empty object.
#[derive(Debug)]
pub(crate) struct Json<T>(pub(crate) T);

impl<T: RequestBody> FromRequest<AppState> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &AppState) -> Result<Self, Problem> {
        let Object(object) = Object::from_request(request, app).await?;
        message(object).map(Self)
    }
}

/// Reads a message from the object of a body.
///
/// # Errors
/// The first invalid field.
pub(crate) fn message<T: RequestBody>(object: Map<String, Value>) -> Result<T, Problem> {
    for (field, elsewhere) in T::ELSEWHERE {
        if object.contains_key(*field) {
            return Err(Problem::field(
                *field,
                format!("is not a field of the body: {elsewhere}"),
            ));
        }
    }
    json::from_value(&Value::Object(object)).map_err(invalid)
}

/// The body of a request as an object, before it is a message.
#[derive(Debug)]
pub(crate) struct Object(pub(crate) Map<String, Value>);

impl FromRequest<AppState> for Object {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &AppState) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let bytes = read(body, app).await?;
        if bytes.is_empty() {
            return Ok(Self(Map::new()));
        }
        require_json(&parts.headers)?;
        json::from_slice(&bytes).map(Self).map_err(invalid)
    }
}

/// A request without a body, or with an empty object.
#[derive(Debug)]
pub(crate) struct NoBody;

impl FromRequest<AppState> for NoBody {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &AppState) -> Result<Self, Problem> {
        let Object(object) = Object::from_request(request, app).await?;
        match object.keys().next() {
            None => Ok(Self),
            Some(field) => Err(Problem::field(field, "is not a field: this request has no body")),
        }
    }
}

fn invalid(invalid: json::Invalid) -> Problem {
    match invalid.field.as_str() {
        "" => Problem::field("body", invalid.problem),
        _ => Problem::field(invalid.field, invalid.problem),
    }
}

async fn read(body: Body, app: &AppState) -> Result<Bytes, Problem> {
    let limits = &app.config.limits;
    let reading = Limited::new(body, limits.request_bytes).collect();
    match tokio::time::timeout(limits.body_timeout, reading).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Problem::of_http(
            RestReason::RequestTooLarge,
            format!("The body has more than {} bytes.", limits.request_bytes),
        )),
        Ok(Err(_)) => Err(Problem::field("body", "was not received completely")),
        Err(_) => Err(Problem::of_http(
            RestReason::RequestTimeout,
            format!(
                "The body was not complete within {} s.",
                limits.body_timeout.as_secs()
            ),
        )),
    }
}

/// Simple cross-site requests of browsers cannot have this type.
fn require_json(headers: &HeaderMap) -> Result<(), Problem> {
    let given = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let essence = given
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default()
        .trim();
    if [JSON, MERGE_PATCH]
        .iter()
        .any(|known| essence.eq_ignore_ascii_case(known))
    {
        return Ok(());
    }
    let text = format!("Send the body as `Content-Type: {JSON}`.");
    Err(Problem::of_http(RestReason::UnsupportedMediaType, text))
}

/// A reply in the one JSON form of messages.
#[derive(Debug)]
pub(crate) struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

impl Reply {
    /// A reply with status 200.
    pub(crate) fn ok(message: &impl Serialize) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(JSON));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Self {
            status: StatusCode::OK,
            headers,
            body: json::value(message).to_string(),
        }
    }

    /// Status 201 with the address of the new object.
    #[must_use]
    pub(crate) fn created(mut self, location: &str) -> Self {
        self.status = StatusCode::CREATED;
        if let Ok(location) = HeaderValue::try_from(location) {
            self.headers.insert(header::LOCATION, location);
        }
        self
    }

    /// The version of the object.
    #[must_use]
    pub(crate) fn version(mut self, version: u64) -> Self {
        if let Ok(tag) = HeaderValue::try_from(format!("\"{version}\"")) {
            self.headers.insert(header::ETAG, tag);
        }
        self
    }
}

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        (self.status, self.headers, self.body).into_response()
    }
}
