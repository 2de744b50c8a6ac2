//! Admission layer of a gRPC server: every call passes an [`Admit`] before
//! any handler, so that no handler can skip authentication.
//!
//! The permits of a call ([`CallPermits`]) live until the end of the response body,
//! also when the client disconnects early.

use crate::client_ip;
use crate::connection::PeerInfo;
use crate::grpc::MAX_HEAD_BYTES;
use crate::request_span;
use bytes::Bytes;
use http::HeaderMap;
use http::header;
use http::request::Parts;
use http_body::{Frame, SizeHint};
use std::any::Any;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Sleep;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::{Instrument as _, Span};

/// Timeout of a whole request body. Requests are one message of at most a few
/// hundred KiB; without a timeout, an unfinished request would keep its permits
/// for an unlimited time.
pub const REQUEST_BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Resources of a running call: permits, gauges. Dropped at its end.
pub type CallPermits = Box<dyn Any + Send>;

/// A call whose headers exceed [`MAX_HEAD_BYTES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadTooLarge {
    /// Size of all headers, counted as in HTTP/2.
    pub bytes: usize,
    /// Size of `authorization` alone.
    pub credential: usize,
}

/// Whether the caller of a call is authenticated, for the idle timeouts of its
/// connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallerKnown {
    /// Authenticated at admission.
    Yes,
    /// Authenticated if the call succeeds: another service authenticates the
    /// caller.
    IfAnswered,
    /// Never authenticated.
    No,
}

/// Admission of calls.
pub trait Admit: Send + Sync + 'static {
    /// Admits or rejects a call. Values for handlers are stored in its
    /// extensions.
    fn admit(&self, call: &mut Parts) -> impl Future<Output = Result<CallPermits, Status>> + Send;

    /// Whether the caller of an admitted call is authenticated.
    fn caller_known(&self, call: &Parts) -> CallerKnown;

    /// Whether this call continues after its client disconnects, because its
    /// effects belong together: an action and its audit record.
    fn outlives_caller(&self, _: &Parts) -> bool {
        false
    }

    /// The status of a call whose headers are too large.
    fn too_large(&self, head: HeadTooLarge) -> Status;

    /// Client IP of the call.
    fn client_ip(&self, call: &Parts) -> Option<SocketAddr> {
        client_ip::peer(call)
    }

    /// Called with the status of a call; for streams, with the status at their
    /// start.
    fn answered(&self, peer: Option<SocketAddr>, code: Code);

    /// Called with the headers or trailers of a response, before they are sent.
    fn sends(&self, _: &HeaderMap) {}
}

/// Layer that applies an [`Admit`] to all calls of a server.
#[derive(Debug)]
pub struct AdmissionLayer<D>(Arc<D>);

impl<D> AdmissionLayer<D> {
    /// A layer with this admission.
    pub fn new(admission: D) -> Self {
        Self(Arc::new(admission))
    }
}

impl<D> Clone for AdmissionLayer<D> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<D, S> Layer<S> for AdmissionLayer<D> {
    type Service = AdmissionService<D, S>;

    fn layer(&self, inner: S) -> Self::Service {
        AdmissionService {
            admission: Arc::clone(&self.0),
            inner,
        }
    }
}

/// A service behind an [`AdmissionLayer`].
#[derive(Debug)]
pub struct AdmissionService<D, S> {
    admission: Arc<D>,
    inner: S,
}

impl<D, S: Clone> Clone for AdmissionService<D, S> {
    fn clone(&self) -> Self {
        Self {
            admission: Arc::clone(&self.admission),
            inner: self.inner.clone(),
        }
    }
}

type Answer = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

impl<D, S> Service<http::Request<Body>> for AdmissionService<D, S>
where
    D: Admit,
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Answer {
        let admission = Arc::clone(&self.admission);
        // This instance is ready; a clone stays for the next call.
        let next = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, next);
        Box::pin(async move {
            let (mut parts, body) = request.into_parts();
            let client = admission.client_ip(&parts);
            let response = match admit(&*admission, &mut parts).await {
                Ok(permits) => {
                    let span = rpc_span(&parts);
                    let request = http::Request::from_parts(parts, body);
                    let run = run(&admission, inner, request, permits);
                    let response = run.instrument(span.clone()).await?;
                    span.record("rpc.grpc.status_code", i32::from(code(&response)));
                    response
                }
                Err(status) => status.into_http(),
            };
            admission.sends(response.headers());
            admission.answered(client, code(&response));
            Ok(response)
        })
    }
}

/// The span of an admitted call, if its trace is sampled. Rejected calls have
/// none, so that their senders cannot make the service export spans.
fn rpc_span(parts: &Parts) -> Span {
    request_span!(
        &parts.headers,
        "rpc",
        otel.name = parts.uri.path(),
        otel.kind = "server",
        rpc.system = "grpc",
        rpc.grpc.status_code = tracing::field::Empty,
    )
}

async fn admit<D: Admit>(admission: &D, parts: &mut Parts) -> Result<CallPermits, Status> {
    match head_bytes(parts) {
        ..=MAX_HEAD_BYTES => admission.admit(parts).await,
        bytes => Err(admission.too_large(HeadTooLarge {
            bytes,
            credential: parts
                .headers
                .get(header::AUTHORIZATION)
                .map_or(0, |value| value.len()),
        })),
    }
}

/// Runs an admitted call. Its permits are held to the end of the response body.
async fn run<D, S>(
    admission: &Arc<D>,
    mut inner: S,
    request: http::Request<Body>,
    permits: CallPermits,
) -> Result<http::Response<Body>, Infallible>
where
    D: Admit,
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    let (parts, body) = request.into_parts();
    let known = admission.caller_known(&parts);
    let peer = parts.extensions.get::<PeerInfo>();
    let usage = peer.map(|peer| peer.usage.clone()).unwrap_or_default();
    if known == CallerKnown::Yes {
        usage.caller_known();
    }
    let permits: CallPermits = Box::new((permits, usage.begin()));
    let outlives = admission.outlives_caller(&parts);
    let body = Body::new(Timed::new(body, REQUEST_BODY_TIMEOUT));
    let call = inner.call(http::Request::from_parts(parts, body));
    let (response, permits) = if outlives {
        // The permits are held until the call has ended, also without its
        // client.
        let task = tokio::spawn(async move { (call.await, permits) }.in_current_span());
        match task.await {
            Ok((response, permits)) => (response?, permits),
            Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
            Err(_) => return Ok(Status::unavailable("The service is stopping.").into_http()),
        }
    } else {
        (call.await?, permits)
    };
    if known == CallerKnown::IfAnswered && code(&response) == Code::Ok {
        usage.caller_known();
    }
    let admission = Arc::clone(admission);
    Ok(response.map(|body| {
        Body::new(Held {
            body,
            admission,
            _permits: permits,
        })
    }))
}

/// The size of a request's header list, counted as in HTTP/2; of the
/// pseudo-headers only the path is included.
fn head_bytes(parts: &Parts) -> usize {
    const FIELD: usize = 32;
    let fields = parts
        .headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + FIELD);
    let path = parts.uri.path_and_query().map_or(0, |path| path.as_str().len());
    path + FIELD + fields.sum::<usize>()
}

/// An error before the first message is in the headers.
fn code(response: &http::Response<Body>) -> Code {
    response
        .headers()
        .get("grpc-status")
        .map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()))
}

/// A request body with a timeout.
struct Timed {
    body: Body,
    limit: Duration,
    end: Pin<Box<Sleep>>,
}

impl Timed {
    fn new(body: Body, limit: Duration) -> Self {
        Self {
            body,
            limit,
            end: Box::pin(tokio::time::sleep(limit)),
        }
    }
}

impl http_body::Body for Timed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if frame.is_pending() && self.end.as_mut().poll(cx).is_ready() {
            let told = format!("The request was not complete within {} s.", self.limit.as_secs());
            return Poll::Ready(Some(Err(Status::deadline_exceeded(told))));
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

struct Held<D> {
    body: Body,
    admission: Arc<D>,
    _permits: CallPermits,
}

impl<D: Admit> http_body::Body for Held<D> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(trailers) = frame.trailers_ref()
        {
            self.admission.sends(trailers);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{StreamExt as _, stream};
    use http_body_util::{BodyExt as _, StreamBody};
    use tower::ServiceExt as _;
    use tracing_subscriber::fmt::format::FmtSpan;

    /// Admits all calls.
    #[derive(Debug)]
    struct Open;

    impl Admit for Open {
        fn caller_known(&self, _: &Parts) -> CallerKnown {
            CallerKnown::No
        }

        async fn admit(&self, _: &mut Parts) -> Result<CallPermits, Status> {
            Ok(Box::new(()))
        }

        fn too_large(&self, head: HeadTooLarge) -> Status {
            Status::resource_exhausted(format!("{} {}", head.bytes > MAX_HEAD_BYTES, head.credential))
        }

        fn answered(&self, _: Option<SocketAddr>, _: Code) {}
    }

    #[tokio::test]
    async fn heads_beyond_the_limit_get_a_status_and_reach_no_handler() {
        let handler = tower::service_fn(async |_: http::Request<Body>| {
            Ok::<_, Infallible>(http::Response::new(Body::empty()))
        });
        let layer = AdmissionLayer::new(Open).layer(handler);
        let ask = |bytes: usize| {
            http::Request::post("http://localhost/berth.v1.X/Y")
                .header("authorization", "x".repeat(bytes))
                .body(Body::empty())
                .unwrap()
        };
        let answer = layer.clone().oneshot(ask(48 << 10)).await.unwrap();
        assert_eq!(code(&answer), Code::Ok);
        let answer = layer.oneshot(ask(MAX_HEAD_BYTES)).await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(code(&answer), Code::ResourceExhausted);
        assert_eq!(answer.headers()["grpc-message"], "true%2065536");
    }

    /// Admits calls with a credential.
    #[derive(Debug)]
    struct Known;

    impl Admit for Known {
        fn caller_known(&self, _: &Parts) -> CallerKnown {
            CallerKnown::Yes
        }

        async fn admit(&self, call: &mut Parts) -> Result<CallPermits, Status> {
            match call.headers.get(header::AUTHORIZATION) {
                Some(_) => Ok(Box::new(())),
                None => Err(Status::unauthenticated("")),
            }
        }

        fn too_large(&self, _: HeadTooLarge) -> Status {
            Status::resource_exhausted("")
        }

        fn answered(&self, _: Option<SocketAddr>, _: Code) {}
    }

    #[tokio::test]
    async fn only_an_admitted_call_has_a_span() {
        let log = crate::telemetry::tests::Buffer::default();
        let subscriber = tracing_subscriber::fmt()
            .with_span_events(FmtSpan::NEW)
            .with_writer(log.clone())
            .finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let handler = tower::service_fn(async |_: http::Request<Body>| {
            Ok::<_, Infallible>(http::Response::new(Body::empty()))
        });
        let layer = AdmissionLayer::new(Known).layer(handler);
        let sampled = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        for (credential, spans) in [(None, 0), (Some("key"), 1)] {
            let mut request =
                http::Request::post("http://localhost/berth.v1.X/Y").header("traceparent", sampled);
            if let Some(credential) = credential {
                request = request.header(header::AUTHORIZATION, credential);
            }
            let request = request.body(Body::empty()).unwrap();
            layer.clone().oneshot(request).await.unwrap();
            assert_eq!(log.text().matches("rpc.system").count(), spans, "{}", log.text());
        }
    }

    /// Calls of `/berth.v1.X/Write` continue after their clients disconnect.
    #[derive(Debug)]
    struct Writes;

    impl Admit for Writes {
        fn caller_known(&self, _: &Parts) -> CallerKnown {
            CallerKnown::No
        }

        async fn admit(&self, _: &mut Parts) -> Result<CallPermits, Status> {
            Ok(Box::new(()))
        }

        fn outlives_caller(&self, call: &Parts) -> bool {
            call.uri.path().ends_with("/Write")
        }

        fn too_large(&self, _: HeadTooLarge) -> Status {
            Status::resource_exhausted("")
        }

        fn answered(&self, _: Option<SocketAddr>, _: Code) {}
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_goes_on_when_its_caller_leaves_and_a_read_does_not() {
        let done = Arc::new(std::sync::Mutex::new(Vec::new()));
        let handler = tower::service_fn({
            let done = Arc::clone(&done);
            move |request: http::Request<Body>| {
                let done = Arc::clone(&done);
                async move {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    done.lock().unwrap().push(request.uri().path().to_owned());
                    Ok::<_, Infallible>(http::Response::new(Body::empty()))
                }
            }
        });
        let layer = AdmissionLayer::new(Writes).layer(handler);
        for path in ["/berth.v1.X/Read", "/berth.v1.X/Write"] {
            let request = http::Request::post(format!("http://localhost{path}"));
            let call = layer.clone().oneshot(request.body(Body::empty()).unwrap());
            let left = tokio::time::timeout(Duration::from_millis(10), call).await;
            assert!(left.is_err(), "{path} was answered");
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(*done.lock().unwrap(), ["/berth.v1.X/Write"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_stays_unfinished_ends() {
        let half = Ok::<_, Status>(Frame::data(Bytes::from_static(b"half")));
        let frames = stream::iter([half]).chain(stream::pending());
        let body = Body::new(StreamBody::new(frames));
        let mut body = Body::new(Timed::new(body, REQUEST_BODY_TIMEOUT));
        let began = tokio::time::Instant::now();
        let frame = body.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "half");
        let error = body.frame().await.unwrap().unwrap_err();
        assert_eq!(error.code(), Code::DeadlineExceeded, "{error:?}");
        assert_eq!(began.elapsed(), REQUEST_BODY_TIMEOUT);
    }
}
