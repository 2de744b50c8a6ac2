//! Forwards both directions of a call frame by frame. Data is read only when the other side can
//! take it, so backpressure of a slow reader affects only its own call.
//!
//! Both directions run in the task of the call. When [`forward`] returns, the upstream stream is
//! dropped, which resets it unless it has ended; only then does the caller send the result to the
//! client.

use crate::activity::running::RunningStream;
use crate::activity::sail_operations;
use crate::call::bind;
use crate::call::engine_errors::{self, Translator};
use crate::call::redact::Redactor;
use crate::call::result_watch::{self, Encoding, ResultWatch};
use crate::call::sail_keep_alive;
use crate::grpc::headers;
use crate::grpc::identity::SparkSessionId;
use crate::grpc::method::Method;
use crate::grpc::reply::{Client, capacity};
use crate::grpc::request_body::{Broken, Messages, Next, Outgoing};
use crate::metrics::{Metrics, Outcome, Stage, Way};
use crate::routes::{Backend, Route};
use crate::shares::{Exceeded, Limits, Taken};
use crate::stop::{Stop, backend_lost};
use crate::upstream::{Body, Upstream};
use crate::worker::Worker;
use crate::worker::session::OpenCall;
use crate::worker::settings::SettingsChange;
use bytes::{Buf as _, Bytes, BytesMut};
use h2::SendStream;
use h2::client::ResponseFuture;
use http::{HeaderMap, HeaderName, StatusCode};
use prost::Message as _;
use service_kit::child_span;
use session_core::{Engine, Reason};
use session_proto::error::Refused;
use session_proto::spark::InterruptResponse;
use std::cell::OnceCell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::Instant;
use tracing::Instrument as _;

/// Available response frames below this size are joined.
const SMALL: usize = 4 * 1024;
/// Maximum size of joined frames.
const JOINED: usize = 32 * 1024;
/// Maximum size of a response to `Interrupt`, which is a list of ids.
const MAX_INTERRUPT_ANSWER: usize = 64 * 1024;
/// Maximum number of ids taken from one response.
const MAX_INTERRUPTED: usize = 256;
/// Interval at which unread response bytes are counted: starts short, because most data arrives at
/// once, and grows.
const MIN_UNREAD_INTERVAL: Duration = Duration::from_millis(10);
const MAX_UNREAD_INTERVAL: Duration = Duration::from_millis(250);
/// Maximum size of a response to `CloneSession`, which holds a few ids.
const MOST_CLONED: usize = 64 * 1024;

/// Response header with the generation of the compute. A higher value means that state in the
/// engine's memory was lost.
static GENERATION: HeaderName = HeaderName::from_static("x-berth-generation");

/// State shared by both directions of a call.
pub(crate) struct Exchange<'a> {
    pub(crate) worker: &'a Worker,
    pub(crate) open: &'a OpenCall,
    pub(crate) backend: &'a Backend,
    pub(crate) spark_session: SparkSessionId,
    pub(crate) translator: Option<Translator>,
    /// The response names the new Spark session of a `CloneSession`.
    pub(crate) clones: bool,
    /// On Sail: the stream of a reattachable operation.
    pub(crate) on_sail: OnceCell<sail_operations::Stream>,
    /// Set when the engine responds to an operation.
    pub(crate) running: OnceCell<RunningStream>,
    /// Settings change to be stored.
    pub(crate) settings: Option<&'a SettingsChange>,
    pub(crate) route: &'a Route,
}

impl Exchange<'_> {
    fn metrics(&self) -> &Metrics {
        &self.worker.shared.metrics
    }

    /// Begins a stream of this operation on Sail.
    pub(crate) fn begin_on_sail(&self, operation: &str) {
        if self.backend.engine == Engine::Sail {
            let on_sail = &self.open.tally().on_sail;
            let stream = on_sail.begin(self.backend.generation, &self.spark_session, operation);
            // Set once per call.
            let _ = self.on_sail.set(stream);
        }
    }

    /// Records a running operation when its response begins.
    fn note_running(&self) {
        if matches!(self.open.method(), Method::ExecutePlan | Method::ReattachExecute) {
            let running = &self.open.tally().running;
            // Set once per response.
            let _ = self
                .running
                .set(running.begin(self.backend.generation, self.spark_session));
        }
    }

    /// Waits until a newer stream of the same operation takes over.
    async fn superseded(&self) {
        match self.on_sail.get() {
            Some(stream) => stream.superseded.cancelled().await,
            None => std::future::pending().await,
        }
    }

    /// Records the operations that Sail's response to `Interrupt` names.
    fn note_interrupted(&self, encoding: Encoding, body: &[u8]) {
        let Some(message) = result_watch::unary(encoding, body) else {
            return;
        };
        let Ok(answer) = InterruptResponse::decode(message) else {
            return;
        };
        let on_sail = &self.open.tally().on_sail;
        for operation in answer.interrupted_ids.iter().take(MAX_INTERRUPTED) {
            on_sail.interrupted(self.backend.generation, &self.spark_session, operation);
        }
    }

    /// Replaces an engine status that the client would misinterpret.
    fn translated(&self, trailers: &HeaderMap) -> Result<(), Stop> {
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
    request: &mut Messages,
    client: &Client,
) -> Result<Outcome, Stop> {
    let Upstream { response, sender } = upstream;
    let mut upload = pin!(upload(exchange, request, sender));
    let mut download = pin!(download(exchange, response, client));
    let mut keeping =
        sail_keep_alive::is_needed(exchange).then(|| Box::pin(sail_keep_alive::alive(exchange)));
    let mut uploading = true;
    loop {
        tokio::select! {
            biased;
            sent = &mut upload, if uploading => match sent {
                Ok(_) => uploading = false,
                Err(broken) => return Err(broken.into()),
            },
            done = &mut download => return done,
            () = exchange.superseded(), if !uploading => {
                return Err(Stop::Engine(Box::new(engine_errors::superseded())));
            }
            never = poll_fn(|cx| poll_kept(keeping.as_mut(), cx)) => match never {},
        }
    }
}

fn poll_kept(
    keeping: Option<&mut Pin<Box<impl Future<Output = Infallible>>>>,
    cx: &mut Context<'_>,
) -> Poll<Infallible> {
    keeping.map_or(Poll::Pending, |keeping| keeping.as_mut().poll(cx))
}

/// Sends the request to the backend. The send half is returned, because dropping it early would
/// end the call.
async fn upload(
    exchange: &Exchange<'_>,
    request: &mut Messages,
    mut backend: SendStream<Outgoing>,
) -> Result<SendStream<Outgoing>, Broken> {
    while let Some(next) = request.next().await? {
        let sent = match next {
            Next::Data(data, end) => {
                let len = data.remaining();
                if capacity(&mut backend, len).await.is_err() {
                    break;
                }
                exchange.metrics().bytes.at(Way::ToBackend).add(len as u64);
                exchange.open.tally().count_in(len);
                backend.send_data(data, end)
            }
            Next::End => backend.send_data(Bytes::new().chain(Bytes::new()), true),
        };
        if sent.is_err() {
            break;
        }
        request.passed();
    }
    if let Some(operation) = request.operation() {
        let user_id = exchange.open.user_id(exchange.backend);
        exchange.open.learn(&exchange.spark_session, user_id, operation);
        if operation.is_reattachable()
            && let Some(id) = operation.id()
        {
            exchange.begin_on_sail(id);
        }
    }
    // The response explains why the backend stopped reading.
    Ok(backend)
}

/// Sends the response to the client.
async fn download(
    exchange: &Exchange<'_>,
    response: ResponseFuture,
    client: &Client,
) -> Result<Outcome, Stop> {
    let (mut head, body) = first_byte(exchange, response).await?;
    let status = outcome(&head.headers);
    if body.is_end_stream() {
        exchange.translated(&head.headers)?;
        engine_errors::explain_replacement(&mut head.headers, exchange.route);
        client.begin(http::Response::from_parts(head, ()), true)?;
        return Ok(status.unwrap_or(Outcome::BackendError));
    }
    exchange.note_running();
    if exchange.open.method() == Method::ReattachExecute {
        // Spark has accepted the operation: it runs and keeps the session busy.
        exchange.open.work();
    }
    let trailers = if exchange.clones {
        Box::pin(cloned(exchange, head, body, client)).await?
    } else {
        let mut inspection = Inspection::of(exchange, &head.headers);
        client.begin(http::Response::from_parts(head, ()), false)?;
        let trailers = stream(exchange, body, client, &mut inspection).await?;
        if trailers.as_ref().and_then(outcome) == Some(Outcome::Ok) {
            inspection.end(exchange)?;
        }
        trailers
    };
    finish(exchange, trailers, client).await
}

/// Receives the response headers for the client, and the body.
async fn first_byte(
    exchange: &Exchange<'_>,
    response: ResponseFuture,
) -> Result<(http::response::Parts, Body), Stop> {
    let sent = Instant::now();
    let response = response.instrument(child_span!("first_byte")).await;
    let response = response.map_err(|error| lost(&error))?;
    let waited = &exchange.metrics().waited;
    waited.at(Stage::FirstByte).observe(sent.elapsed());
    let (mut head, body) = response.into_parts();
    if head.status != StatusCode::OK {
        tracing::info!(status = head.status.as_u16(), "compute response is not gRPC");
        return Err(Stop::Refused(backend_lost("The compute's answer is not gRPC.")));
    }
    headers::toward_client(&mut head.headers);
    let generation = exchange.backend.generation_header.clone();
    head.headers.insert(&GENERATION, generation);
    Ok((head, body))
}

/// Ends a response with a body.
async fn finish(
    exchange: &Exchange<'_>,
    trailers: Option<HeaderMap>,
    client: &Client,
) -> Result<Outcome, Stop> {
    let Some(mut trailers) = trailers else {
        return Err(Stop::Refused(backend_lost(
            "The compute ended its answer without a status.",
        )));
    };
    let Some(outcome) = outcome(&trailers) else {
        // Or the status was in trailers that exceeded the limit.
        return Err(Stop::Refused(backend_lost(
            "The compute's answer ended without a status, or with more trailers than the limit (1 MiB).",
        )));
    };
    exchange.translated(&trailers)?;
    headers::toward_client(&mut trailers);
    if outcome == Outcome::Ok {
        if let Some(change) = exchange.settings {
            let Exchange {
                worker,
                open,
                backend,
                spark_session,
                ..
            } = exchange;
            Box::pin(bind::keep_settings(worker, open, backend, *spark_session, change)).await;
        }
    } else {
        engine_errors::explain_replacement(&mut trailers, exchange.route);
    }
    client.trailers(trailers)?;
    Ok(outcome)
}

/// Inspection of response data.
enum Inspection {
    None,
    /// The response of a query on Sail.
    Results(ResultWatch),
    /// The received part of Sail's response to `Interrupt`.
    Interrupt(Encoding, Vec<u8>),
}

impl Inspection {
    fn of(exchange: &Exchange<'_>, headers: &HeaderMap) -> Self {
        if exchange.backend.engine != Engine::Sail {
            return Self::None;
        }
        match exchange.open.method() {
            Method::Interrupt => Self::Interrupt(Encoding::of(headers), Vec::new()),
            _ if exchange.on_sail.get().is_some() => Self::Results(ResultWatch::new(Encoding::of(headers))),
            _ => Self::None,
        }
    }

    fn feed(&mut self, exchange: &Exchange<'_>, data: &[u8]) {
        match self {
            Self::None => {}
            Self::Results(watch) => {
                watch.feed(data);
                if watch.has_results()
                    && let Some(stream) = exchange.on_sail.get()
                {
                    stream.has_results();
                }
            }
            Self::Interrupt(_, body) => {
                if body.len() + data.len() <= MAX_INTERRUPT_ANSWER {
                    body.extend_from_slice(data);
                }
            }
        }
    }

    /// Handles a response that ended with OK.
    fn end(self, exchange: &Exchange<'_>) -> Result<(), Stop> {
        match self {
            Self::None => Ok(()),
            Self::Results(watch) if watch.is_complete() => Ok(()),
            Self::Results(_) => {
                // Otherwise the client would reattach to a lost operation, or take the result for
                // complete.
                if let Some(stream) = exchange.on_sail.get() {
                    stream.interrupted();
                }
                Err(Stop::Engine(Box::new(engine_errors::operation_canceled())))
            }
            Self::Interrupt(encoding, body) => {
                exchange.note_interrupted(encoding, &body);
                Ok(())
            }
        }
    }
}

/// Forwards the response body up to its trailers.
async fn stream(
    exchange: &Exchange<'_>,
    mut body: Body,
    client: &Client,
    inspection: &mut Inspection,
) -> Result<Option<HeaderMap>, Stop> {
    let mut redactor = exchange.redactor();
    let mut more = true;
    while more {
        let (data, taken, ended) = poll_fn(|cx| poll_joined(&mut body, cx)).await?;
        more = !ended;
        inspection.feed(exchange, &data);
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
            pass(exchange, &mut body, client, data).await?;
            exchange.metrics().bytes.at(Way::ToClient).add(len as u64);
            exchange.open.tally().count_out(len);
        }
        let _ = body.flow_control().release_capacity(taken);
    }
    trailers(&mut body).await
}

/// Sends bytes within the client's flow-control window. Bytes beyond it are not passed to HTTP/2,
/// which would buffer them beyond the end of the call.
async fn pass(
    exchange: &Exchange<'_>,
    body: &mut Body,
    client: &Client,
    mut data: Bytes,
) -> Result<(), Stop> {
    while !data.is_empty() {
        let room = until_taken(exchange, body, client, data.len()).await?;
        client.data(data.split_to(room.min(data.len())), false)?;
    }
    Ok(())
}

/// Waits until the client takes more of `len` available bytes; returns how many. Bytes held
/// meanwhile are counted.
async fn until_taken(
    exchange: &Exchange<'_>,
    body: &mut Body,
    client: &Client,
    len: usize,
) -> Result<usize, Stop> {
    let mut taken = pin!(client.capacity(len));
    tokio::select! {
        biased;
        taken = &mut taken => return Ok(taken?),
        () = std::future::ready(()) => {}
    }
    let limits = &exchange.worker.shared.config.limits;
    let mut unread = Taken::new(
        exchange.open.tally().shares(),
        |shares| &shares.unread_bytes,
        Limits([
            (limits.unread_bytes_per_session, "limits.unread_bytes_per_session"),
            (limits.unread_bytes_per_org, "limits.unread_bytes_per_org"),
            (limits.unread_bytes, "limits.unread_bytes"),
        ]),
    );
    let mut interval = MIN_UNREAD_INTERVAL;
    loop {
        unread
            .grow_to(body.flow_control().used_capacity().max(len))
            .map_err(too_much_unread)?;
        tokio::select! {
            biased;
            taken = &mut taken => return Ok(taken?),
            () = tokio::time::sleep(interval) => {}
        }
        interval = (2 * interval).min(MAX_UNREAD_INTERVAL);
    }
}

fn too_much_unread(exceeded: Exceeded) -> Refused {
    let whose = exceeded.whose;
    exceeded.refused(
        Reason::QuotaExceeded,
        format_args!("Too many bytes of responses {whose} wait for clients that do not read them, so this call was ended"),
    )
}

async fn trailers(body: &mut Body) -> Result<Option<HeaderMap>, Stop> {
    poll_fn(|cx| body.poll_trailers(cx))
        .await
        .map_err(|error| lost(&error))
}

/// Bytes for one frame, the number of bytes read for them, and whether they are the last.
type Joined = (Bytes, usize, bool);

/// Reads the next bytes; small frames that are available together are joined.
fn poll_joined(body: &mut Body, cx: &mut Context<'_>) -> Poll<Result<Joined, Stop>> {
    let first = match ready!(body.poll_data(cx)) {
        None => return Poll::Ready(Ok((Bytes::new(), 0, true))),
        Some(data) => data.map_err(|error| lost(&error))?,
    };
    if first.len() >= SMALL {
        let taken = first.len();
        return Poll::Ready(Ok((first, taken, false)));
    }
    let mut joined = BytesMut::new();
    let mut ended = false;
    while first.len() + joined.len() < JOINED {
        match body.poll_data(cx) {
            Poll::Pending => break,
            Poll::Ready(None) => {
                ended = true;
                break;
            }
            Poll::Ready(Some(data)) => {
                let data = data.map_err(|error| lost(&error))?;
                if joined.is_empty() {
                    joined.reserve(JOINED);
                    joined.extend_from_slice(&first);
                }
                joined.extend_from_slice(&data);
            }
        }
    }
    let data = if joined.is_empty() { first } else { joined.freeze() };
    let taken = data.len();
    Poll::Ready(Ok((data, taken, ended)))
}

/// Holds the response to `CloneSession` until the new Spark session is bound to this session.
async fn cloned(
    exchange: &Exchange<'_>,
    head: http::response::Parts,
    mut body: Body,
    client: &Client,
) -> Result<Option<HeaderMap>, Stop> {
    let mut answer = BytesMut::new();
    while let Some(data) = poll_fn(|cx| body.poll_data(cx)).await {
        let data = data.map_err(|error| lost(&error))?;
        answer.extend_from_slice(&data);
        let _ = body.flow_control().release_capacity(data.len());
        if answer.len() > MOST_CLONED {
            return Err(Stop::Refused(backend_lost(
                "The compute's answer to CloneSession is too long.",
            )));
        }
    }
    let trailers = trailers(&mut body).await?;
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
    client.begin(http::Response::from_parts(head, ()), false)?;
    pass(exchange, &mut body, client, answer.freeze()).await?;
    Ok(trailers)
}

fn outcome(headers: &HeaderMap) -> Option<Outcome> {
    let status = headers.get("grpc-status")?;
    Some(if status.as_bytes() == b"0" {
        Outcome::Ok
    } else {
        Outcome::BackendError
    })
}

/// Classifies the loss of an upstream stream. Only REFUSED_STREAM, or a GOAWAY below the stream id,
/// proves that nothing was processed.
fn lost(error: &h2::Error) -> Stop {
    let refused = error.is_remote()
        && match error.reason() {
            Some(h2::Reason::REFUSED_STREAM) => error.is_reset(),
            Some(h2::Reason::NO_ERROR) => error.is_go_away(),
            _ => false,
        };
    tracing::debug!(%error, refused, "compute stream lost");
    if refused {
        Stop::Untouched
    } else {
        Stop::Refused(backend_lost(
            "The connection to the compute was lost while the call ran.",
        ))
    }
}
