//! The outermost layer of all requests: request id, limits, span, metrics.

use crate::limits::{CredentialPermit, RequestPermit};
use crate::metrics::Part;
use crate::problem::Problem;
use crate::state::AppState;
use axum::body::Body;
use axum::extract::State;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Request};
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use service_kit::connection::{ConnectionUse, OpenCall, PeerInfo};
use service_kit::request_span;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;
use tracing::{Instrument as _, Span};

/// Header with the id of a request: the client's own, or a new one.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const MAX_REQUEST_ID: usize = 128;

/// What this layer knows of a request; an extension of it.
#[derive(Debug, Clone)]
pub(crate) struct Front {
    /// The client's address.
    pub(crate) client: Option<SocketAddr>,
    pub(crate) request_id: String,
    /// Usage of the connection.
    pub(crate) usage: ConnectionUse,
    places: Places,
}

/// The request's places among the concurrent ones, held until the connection took the last part of
/// the response; streams release them early.
type Places = Arc<Mutex<(Option<RequestPermit>, Option<CredentialPermit>)>>;

/// Largest part of a response that is given to the connection at a time. A connection that takes
/// all of a large response ends the request before its client has read it.
const MAX_PART: usize = 16 * 1024;

impl Front {
    /// Of a request that passed the layer.
    pub(crate) fn of(parts: &Parts) -> Self {
        let found = parts.extensions.get::<Self>().cloned();
        found.unwrap_or_else(|| Self {
            client: None,
            request_id: String::new(),
            usage: ConnectionUse::default(),
            places: Places::default(),
        })
    }

    /// Holds the place among the requests of the credential too.
    pub(crate) fn hold(&self, permit: CredentialPermit) {
        self.places.lock().1 = Some(permit);
    }

    /// Releases the places among the concurrent requests.
    pub(crate) fn release(&self) {
        *self.places.lock() = (None, None);
    }
}

/// Runs a request.
pub(crate) async fn run(State(app): State<AppState>, request: Request<Body>, next: Next) -> Response {
    let began = Instant::now();
    let (mut parts, body) = request.into_parts();
    let part = part(parts.uri.path());
    let request_id = request_id(&parts);
    let client = app.limits.client_ip(&parts);
    let mut response = match app.limits.enter(client) {
        Ok(permit) => {
            let peer = parts.extensions.get::<PeerInfo>();
            let front = Front {
                client,
                request_id: request_id.clone(),
                usage: peer.map(|peer| peer.usage.clone()).unwrap_or_default(),
                places: Arc::new(Mutex::new((Some(permit), None))),
            };
            let span = span(&parts, &request_id);
            let held = (front.usage.begin(), Arc::clone(&front.places));
            parts.extensions.insert(front);
            let response = next
                .run(Request::from_parts(parts, body))
                .instrument(span.clone())
                .await;
            span.record("http.response.status_code", response.status().as_u16());
            hold(response, held)
        }
        Err(problem) => problem.into_response(),
    };
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        *response.body_mut() = Body::from(problem.to_json(&app.prefix).to_string());
        // Of the body without the prefix.
        response.headers_mut().remove(http::header::CONTENT_LENGTH);
    }
    if let Ok(id) = HeaderValue::try_from(&request_id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    app.metrics.count(part, response.status());
    let is_stream = response.extensions().get::<IsStream>().is_some();
    if !is_stream {
        app.metrics.seconds.at(part).observe(began.elapsed());
    }
    response
}

/// Marks the response of a stream, whose time is not that of a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IsStream;

fn part(path: &str) -> Part {
    match path.split('/').nth(1) {
        Some("api") => Part::Rest,
        Some("auth") => Part::SignIn,
        Some(_) | None => Part::Pages,
    }
}

/// The client's id if it is short and visible ASCII, else a new one.
fn request_id(parts: &Parts) -> String {
    let given = parts.headers.get(&REQUEST_ID).and_then(|id| id.to_str().ok());
    let usable = given.filter(|id| {
        (1..=MAX_REQUEST_ID).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
    });
    usable.map_or_else(|| uuid::Uuid::new_v4().to_string(), str::to_owned)
}

/// The span of a request, if its trace is sampled.
fn span(parts: &Parts, request_id: &str) -> Span {
    request_span!(
        &parts.headers,
        "http",
        otel.name = parts.method.as_str(),
        otel.kind = "server",
        http.request.method = parts.method.as_str(),
        url.path = parts.uri.path(),
        request_id = request_id,
        http.response.status_code = tracing::field::Empty,
    )
}

/// The request keeps its places until the connection took the last part of the response.
fn hold(response: Response, held: (OpenCall, Places)) -> Response {
    response.map(|body| {
        Body::new(Held {
            body,
            rest: Bytes::new(),
            _held: held,
        })
    })
}

struct Held {
    body: Body,
    /// What is left of the last frame.
    rest: Bytes,
    _held: (OpenCall, Places),
}

impl http_body::Body for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)).map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => self.rest = data,
                Some(Ok(Err(trailers))) => return Poll::Ready(Some(Ok(trailers))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
        let len = self.rest.len().min(MAX_PART);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(len)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, hint) = (self.rest.len() as u64, self.body.size_hint());
        let mut all = SizeHint::new();
        all.set_lower(hint.lower().saturating_add(rest));
        if let Some(upper) = hint.upper().and_then(|upper| upper.checked_add(rest)) {
            all.set_upper(upper);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body::Body as _;
    use http_body_util::BodyExt as _;

    #[tokio::test]
    async fn a_response_is_sent_in_parts_and_keeps_its_places_until_the_last() {
        let text = Bytes::from(vec![7; 3 * MAX_PART + 5]);
        let places = Places::default();
        let held = (ConnectionUse::default().begin(), Arc::clone(&places));
        let mut body = hold(Response::new(Body::from(text.clone())), held).into_body();
        assert_eq!(body.size_hint().exact(), Some(text.len() as u64));
        let mut sizes = Vec::new();
        while let Some(frame) = body.frame().await {
            assert_eq!(Arc::strong_count(&places), 2);
            sizes.push(frame.unwrap().into_data().unwrap().len());
        }
        assert_eq!(sizes, [MAX_PART, MAX_PART, MAX_PART, 5]);
        assert!(body.is_end_stream());
        drop(body);
        assert_eq!(Arc::strong_count(&places), 1);
    }
}
