//! Forwards both directions of a call frame by frame. Data is read only when the other side can
//! take it, so backpressure of a slow reader affects only its own call.
//!
//! Both directions run in the task of the call. When [`forward`] returns, the upstream stream is
//! dropped, which resets it unless it has ended; only then does the caller send the result to the
//! client.

pub(crate) mod client_window;
mod inspection;
pub(crate) mod response_body;

use crate::activity::running::RunningStream;
use crate::activity::sail_operations::RegisteredStream;
use crate::call::bind;
use crate::call::client_version;
use crate::call::engine_errors::{self, Translator};
use crate::call::redact::Redactor;
use crate::call::resumable;
use crate::call::sail_keep_alive;
use crate::call_error::{CallError, backend_lost};
use crate::grpc::headers;
use crate::grpc::identity::SparkSessionId;
use crate::grpc::method::Method;
use crate::grpc::reply::{ClientStream, fit};
use crate::grpc::request_body::{BodyPart, Outgoing, RequestBody, RequestError};
use crate::metrics::{Direction, Metrics, Outcome, ReattachRefused, Stage};
use crate::routes::{Backend, Route};
use crate::upstream::{Body, Upstream};
use crate::worker::Worker;
use crate::worker::session::OpenCall;
use crate::worker::settings::SettingsChange;
use bytes::{Buf as _, Bytes, BytesMut};
use client_window::{Unread, send_data};
use h2::SendStream;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use inspection::Inspection;
use response_body::{poll_joined, read_trailers, stream_error};
use service_kit::child_span;
use service_kit::http2::request_capacity;
use session_core::Engine;
use std::cell::{Cell, OnceCell};
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use tokio::time::Instant;
use tracing::Instrument as _;

/// Maximum size of a response to `CloneSession`, which holds a few ids.
const MAX_CLONE_RESPONSE: usize = 64 * 1024;

/// Response header with the generation of the compute. A higher value means that state in the
/// engine's memory was lost.
static GENERATION: HeaderName = HeaderName::from_static("x-berth-generation");

/// Response header for a client that is newer than the engine.
static ADVICE: HeaderName = HeaderName::from_static("x-berth-advice");

/// State shared by both directions of a call.
pub(crate) struct Exchange<'a> {
    pub(crate) worker: &'a Worker,
    pub(crate) open: &'a OpenCall,
    pub(crate) backend: &'a Backend,
    pub(crate) spark_session: SparkSessionId,
    pub(crate) translator: Option<Translator>,
    /// The response names the new Spark session of a `CloneSession`.
    pub(crate) clones: bool,
    /// On Sail: the stream of a reattachable operation, once its request was sent.
    pub(crate) sail_stream: Cell<Option<RegisteredStream>>,
    /// Set when the engine responds to an operation.
    pub(crate) running: OnceCell<RunningStream>,
    /// Settings change to be stored.
    pub(crate) settings: Option<&'a SettingsChange>,
    pub(crate) route: &'a Route,
    /// For the response headers, once the request was sent.
    pub(crate) advice: Cell<Option<Box<HeaderValue>>>,
    pub(crate) sent_at: Instant,
}

impl Exchange<'_> {
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.worker.shared.metrics
    }

    /// Registers the stream of this operation on Sail. Without it the response is forwarded as any
    /// other, and ends with its client.
    fn register_sail_stream(&self, operation: &str) {
        if self.backend.engine == Engine::Sail {
            let sail_operations = &self.open.usage().sail_operations;
            let subject = &self.open.caller().claims.sub;
            let stream =
                sail_operations.begin(self.backend.generation, &self.spark_session, operation, subject);
            self.sail_stream.set(stream);
        }
    }

    /// Records a running operation when its response begins.
    pub(crate) fn note_running(&self) {
        if matches!(self.open.method(), Method::ExecutePlan | Method::ReattachExecute) {
            let running = self.open.usage().running();
            // Set once per response.
            let _ = self
                .running
                .set(running.begin(self.backend.generation, self.spark_session));
        }
    }

    /// Replaces an engine status that the client would misinterpret.
    pub(crate) fn translated(&self, trailers: &HeaderMap) -> Result<(), CallError> {
        match self
            .translator
            .as_ref()
            .and_then(|translator| translator.translate(trailers))
        {
            Some(stop) => Err(stop),
            None => Ok(()),
        }
    }

    /// Spark includes its credential in a reply with all settings.
    fn redactor(&self) -> Option<Redactor> {
        let credential = self.backend.credential.as_ref()?;
        (self.open.method() == Method::Config)
            .then(|| Redactor::of(credential))
            .flatten()
    }
}

/// Forwards one call until it ends.
pub(crate) async fn forward(
    exchange: &Exchange<'_>,
    upstream: Upstream,
    request: &mut RequestBody,
    client: &ClientStream,
) -> Result<Outcome, CallError> {
    let Upstream { mut response, sender } = upstream;
    let mut upload = pin!(upload(exchange, request, sender));
    let (early, mut sent) = tokio::select! {
        biased;
        sent = &mut upload => (None, Some(sent?)),
        early = &mut response => (Some(early), None),
    };
    if let Some((_, request)) = &mut sent
        && let Some(stream) = exchange.sail_stream.take()
    {
        return Box::pin(resumable::own(exchange, stream, response, request, client)).await;
    }
    let response = async {
        match early {
            Some(early) => early,
            None => response.await,
        }
    };
    let mut uploading = sent.is_none();
    let mut download = pin!(download(exchange, response, client));
    let mut keep_alive =
        sail_keep_alive::is_needed(exchange).then(|| Box::pin(sail_keep_alive::run(exchange)));
    loop {
        tokio::select! {
            biased;
            done = &mut upload, if uploading => match done {
                Ok(_) => {
                    uploading = false;
                    // The compute answered before it had the request.
                    drop(exchange.sail_stream.take());
                }
                Err(broken) => return Err(broken.into()),
            },
            done = &mut download => return done,
            never = poll_fn(|cx| poll_keep_alive(keep_alive.as_mut(), cx)) => match never {},
        }
    }
}

fn poll_keep_alive(
    keep_alive: Option<&mut Pin<Box<impl Future<Output = Infallible>>>>,
    cx: &mut Context<'_>,
) -> Poll<Infallible> {
    keep_alive.map_or(Poll::Pending, |keep_alive| keep_alive.as_mut().poll(cx))
}

/// Sends the request to the backend. Returns the send half, because dropping it early would end the
/// call, and the request.
async fn upload<'r>(
    exchange: &Exchange<'_>,
    request: &'r mut RequestBody,
    mut backend: SendStream<Outgoing>,
) -> Result<(SendStream<Outgoing>, &'r mut RequestBody), RequestError> {
    let mut sent_bytes = 0;
    while let Some(next) = request.next().await? {
        let sent = match next {
            BodyPart::Data(data, end) => {
                let len = data.remaining();
                if request_capacity(&mut backend, sent_bytes, len).await.is_err() {
                    break;
                }
                sent_bytes += len;
                exchange
                    .metrics()
                    .calls
                    .bytes
                    .at(Direction::ToBackend)
                    .add(len as u64);
                exchange.open.usage().count_in(len);
                backend.send_data(data, end)
            }
            BodyPart::End => backend.send_data(Bytes::new().chain(Bytes::new()), true),
        };
        if sent.is_err() {
            break;
        }
        request.release_capacity();
    }
    if let Some(client_type) = request.client_type() {
        client_version::note(exchange, client_type);
    }
    if let Some(operation) = request.operation() {
        let user_id = exchange.open.user_id(exchange.backend);
        exchange
            .open
            .set_request_operation(&exchange.spark_session, user_id, operation);
        if operation.is_reattachable()
            && let Some(id) = operation.id()
        {
            exchange.register_sail_stream(id);
        }
    }
    // The response explains why the backend stopped reading.
    Ok((backend, request))
}

/// Sends the response to the client.
async fn download(
    exchange: &Exchange<'_>,
    response: impl Future<Output = Result<Response<Body>, h2::Error>>,
    client: &ClientStream,
) -> Result<Outcome, CallError> {
    let (mut head, body) = first_byte(exchange, response).await?;
    let status = outcome(&head.headers);
    if body.is_end_stream() {
        exchange.translated(&head.headers)?;
        engine_errors::explain_replacement(&mut head.headers, exchange.route);
        client.begin(Response::from_parts(head, ()), true)?;
        return Ok(status.unwrap_or(Outcome::BackendError));
    }
    if exchange.open.method() == Method::ReattachExecute {
        if exchange.backend.engine == Engine::Sail {
            return Err(resumable_elsewhere(exchange));
        }
        // Spark has accepted the operation: it runs and keeps the session busy.
        exchange.open.begin_work();
    }
    exchange.note_running();
    let trailers = if exchange.clones {
        Box::pin(cloned(exchange, head, body, client)).await?
    } else {
        let mut inspection = Inspection::new(exchange, &head.headers);
        client.begin(Response::from_parts(head, ()), false)?;
        let trailers = stream(exchange, body, client, inspection.as_mut()).await?;
        if trailers.as_ref().and_then(outcome) == Some(Outcome::Ok)
            && let Some(inspection) = inspection
        {
            inspection.end(exchange);
        }
        trailers
    };
    finish(exchange, trailers, client).await
}

/// Receives the response headers for the client, and the body.
pub(crate) async fn first_byte(
    exchange: &Exchange<'_>,
    response: impl Future<Output = Result<Response<Body>, h2::Error>>,
) -> Result<(http::response::Parts, Body), CallError> {
    let response = response.instrument(child_span!("first_byte")).await;
    let response = response.map_err(|error| stream_error(&error))?;
    let waited = &exchange.metrics().calls.waited;
    waited.at(Stage::FirstByte).observe(exchange.sent_at.elapsed());
    let (mut head, body) = response.into_parts();
    if head.status != StatusCode::OK {
        tracing::info!(status = head.status.as_u16(), "compute response is not gRPC");
        return Err(CallError::Refused(backend_lost(
            "The compute's answer is not gRPC.",
        )));
    }
    headers::toward_client(&mut head.headers);
    let generation = exchange.backend.generation_header.clone();
    head.headers.insert(&GENERATION, generation);
    if let Some(advice) = exchange.advice.take() {
        head.headers.insert(&ADVICE, *advice);
    }
    Ok((head, body))
}

/// Ends a response with a body.
async fn finish(
    exchange: &Exchange<'_>,
    trailers: Option<HeaderMap>,
    client: &ClientStream,
) -> Result<Outcome, CallError> {
    let (trailers, outcome) = ended(exchange, trailers)?;
    if outcome == Outcome::Ok
        && let Some(change) = exchange.settings
    {
        let Exchange {
            worker,
            open,
            backend,
            spark_session,
            ..
        } = exchange;
        Box::pin(bind::store_settings(
            worker,
            open,
            backend,
            *spark_session,
            change,
        ))
        .await;
    }
    client.trailers(trailers)?;
    Ok(outcome)
}

/// The trailers for the client, and the outcome that they state.
pub(crate) fn ended(
    exchange: &Exchange<'_>,
    trailers: Option<HeaderMap>,
) -> Result<(HeaderMap, Outcome), CallError> {
    let Some(mut trailers) = trailers else {
        return Err(CallError::Refused(backend_lost(
            "The compute ended its answer without a status.",
        )));
    };
    let Some(outcome) = outcome(&trailers) else {
        // Or the status was in trailers that exceeded the limit.
        return Err(CallError::Refused(backend_lost(
            "The compute's answer ended without a status, or with more trailers than the limit (1 MiB).",
        )));
    };
    exchange.translated(&trailers)?;
    headers::toward_client(&mut trailers);
    if outcome != Outcome::Ok {
        engine_errors::explain_replacement(&mut trailers, exchange.route);
    }
    // What a result retains is bounded by what clients accept.
    fit(&mut trailers);
    Ok((trailers, outcome))
}

/// The error of a reattach to an operation that Sail has and this proxy does not: another proxy has
/// its stream. Sail's own reattach would lose rows.
fn resumable_elsewhere(exchange: &Exchange<'_>) -> CallError {
    let refused = &exchange.metrics().held_streams.refused;
    refused.at(ReattachRefused::OtherProxy).inc();
    engine_errors::stream_lost().into()
}

/// Forwards the response body up to its trailers.
async fn stream(
    exchange: &Exchange<'_>,
    mut body: Body,
    client: &ClientStream,
    mut inspection: Option<&mut Inspection>,
) -> Result<Option<HeaderMap>, CallError> {
    let mut redactor = exchange.redactor();
    let mut more = true;
    while more {
        let (data, taken, ended) = poll_fn(|cx| poll_joined(&mut body, cx)).await?;
        more = !ended;
        if let Some(inspection) = &mut inspection {
            inspection.feed(&data);
        }
        let data = match &mut redactor {
            None => data,
            Some(redactor) if more => redactor.feed(&data),
            Some(redactor) => {
                let sure = redactor.feed(&data);
                [sure, redactor.finish()].concat().into()
            }
        };
        let len = data.len();
        if len > 0 {
            let unread = unread(exchange);
            send_data(unread, || body.flow_control().used_capacity(), client, data).await?;
            exchange
                .metrics()
                .calls
                .bytes
                .at(Direction::ToClient)
                .add(len as u64);
            exchange.open.usage().count_out(len);
        }
        let _ = body.flow_control().release_capacity(taken);
    }
    read_trailers(&mut body).await
}

/// Holds the response to `CloneSession` until the new Spark session is bound to this session.
async fn cloned(
    exchange: &Exchange<'_>,
    head: http::response::Parts,
    mut body: Body,
    client: &ClientStream,
) -> Result<Option<HeaderMap>, CallError> {
    let mut answer = BytesMut::new();
    while let Some(data) = poll_fn(|cx| body.poll_data(cx)).await {
        let data = data.map_err(|error| stream_error(&error))?;
        answer.extend_from_slice(&data);
        let _ = body.flow_control().release_capacity(data.len());
        if answer.len() > MAX_CLONE_RESPONSE {
            return Err(CallError::Refused(backend_lost(
                "The compute's answer to CloneSession is too long.",
            )));
        }
    }
    let trailers = read_trailers(&mut body).await?;
    if trailers.as_ref().and_then(outcome) == Some(Outcome::Ok) {
        let Exchange {
            worker,
            open,
            route,
            backend,
            ..
        } = exchange;
        let checked = bind::check_cloned(worker, open, route, backend, &answer);
        checked.await?;
    }
    client.begin(Response::from_parts(head, ()), false)?;
    send_data(unread(exchange), || 0, client, answer.freeze()).await?;
    Ok(trailers)
}

fn unread<'a>(exchange: &'a Exchange<'_>) -> Unread<'a> {
    Unread::new(&exchange.worker.shared.config.limits, exchange.open.usage())
}

/// The outcome that trailers state.
pub(crate) fn outcome(trailers: &HeaderMap) -> Option<Outcome> {
    let status = trailers.get(&headers::GRPC_STATUS)?;
    Some(if status.as_bytes() == b"0" {
        Outcome::Ok
    } else {
        Outcome::BackendError
    })
}
