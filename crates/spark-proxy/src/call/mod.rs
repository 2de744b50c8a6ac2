//! One call, from its headers to its last byte.
//!
//! ```text
//! handle ─▶ serve: authenticate ─▶ admit ─▶ up to 3 attempts ─▶ end of the response
//!                        each attempt: route (held while the session warms)
//!                                      ─▶ first_message ─▶ bind ─▶ connect ─▶ forward
//!                                                             └▶ resumable: the rest of a held stream
//! ```
//!
//! One future owns all resources of a call and releases them when it ends or is dropped. [`handle`]
//! drops it when the client disconnects.

mod admit;
mod attempt;
mod authenticate;
mod bind;
mod client_version;
mod engine_errors;
mod first_message;
mod forward;
mod health;
mod local_reply;
mod redact;
mod resumable;
mod route;
mod sail_keep_alive;
mod trace;

use crate::call_error::{CallError, backend_unavailable};
use crate::grpc::headers;
use crate::grpc::method::{self, Method, RequestTarget};
use crate::grpc::reply::{ClientGone, ClientStream};
use crate::grpc::request_body::RequestBody;
use crate::grpc::unsent::Unsent;
use crate::metrics::{Outcome, Stage};
use crate::worker::Worker;
use crate::worker::session::OpenCall;
use crate::worker::tokens::LastAdmitted;
use attempt::{Attempts, Prepared};
use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::Request;
use service_kit::metrics::Label as _;
use session_core::Reason;
use session_proto::error::Refused;
use std::cell::{Cell, OnceCell};
use std::net::IpAddr;
use std::rc::Rc;
use tokio::time::Instant;
use tonic::Status;
use trace::{LoggedRequest, call_span};
use tracing::{Instrument as _, Span};

/// Maximum number of attempts for a call that provably was not processed.
const MAX_ATTEMPTS: usize = 3;

/// State shared by the calls of one connection.
pub(crate) struct ConnectionState {
    /// Client IP.
    address: IpAddr,
    /// Unsent response bytes of the connection.
    unsent: Rc<Unsent>,
    /// A call carried a token that verifies.
    pub(crate) has_verified_token: Cell<bool>,
    /// The caller of the last admitted call.
    pub(crate) last_admitted: Rc<LastAdmitted>,
}

impl ConnectionState {
    pub(crate) fn new(address: IpAddr, unsent: &Rc<Unsent>) -> Self {
        Self {
            address,
            unsent: Rc::clone(unsent),
            has_verified_token: Cell::default(),
            last_admitted: Rc::default(),
        }
    }
}

/// Handles one call.
pub(crate) async fn handle(
    worker: Rc<Worker>,
    connection: Rc<ConnectionState>,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) {
    let metrics = &worker.shared.metrics;
    metrics.calls.opened.inc();
    let began = Instant::now();
    let logged = LoggedRequest::of(&request);
    let span = OnceCell::new();
    let client = ClientStream::new(respond, &connection.unsent);
    // On the heap, so that the task of a call stays small: it is moved when it starts and ends.
    let served = Box::pin(serve(&worker, &connection, request, &client, began, &span));
    let served = client.unless_gone(served).await;
    let span = span.into_inner().unwrap_or_else(Span::none);
    let outcome = match served.unwrap_or_else(|ClientGone| Err(CallError::ClientGone)) {
        Ok(outcome) => outcome,
        Err(CallError::Refused(refused)) => {
            let outcome = Outcome::of(refused.reason);
            logged.refused(&span, refused.reason);
            client.refuse(refused);
            outcome
        }
        Err(CallError::Engine(status)) => {
            client.fail(&status);
            Outcome::BackendError
        }
        Err(CallError::Deadline) => {
            client.fail(&Status::deadline_exceeded("The call's own deadline is over."));
            Outcome::Warming
        }
        Err(CallError::NotProcessed) => {
            client.refuse(backend_unavailable());
            Outcome::BackendUnavailable
        }
        Err(CallError::ClientGone) => Outcome::ClientGone,
    };
    span.record("outcome", outcome.as_str());
    metrics.calls.ended.at(outcome).inc();
    metrics.calls.duration.at(outcome).observe(began.elapsed());
}

async fn serve(
    worker: &Rc<Worker>,
    connection: &ConnectionState,
    request: Request<RecvStream>,
    client: &ClientStream,
    began: Instant,
    span: &OnceCell<Span>,
) -> Result<Outcome, CallError> {
    let (head, body) = request.into_parts();
    let method = match method::target(&head) {
        RequestTarget::Spark(method) => method,
        RequestTarget::HealthCheck => {
            health::check(body, worker.shared.is_serving(), client).await?;
            return Ok(Outcome::Health);
        }
        RequestTarget::Unknown => return Err(unknown_method().into()),
    };
    let deadline = headers::grpc_timeout(&head.headers).map(|timeout| began + timeout);

    let caller = authenticate::authenticate(worker, connection, &head.headers, method).await?;
    let now = Instant::now();
    let authentication = now.duration_since(began);
    connection.has_verified_token.set(true);
    worker.shared.admit(method)?;
    let open = admit::admit(worker, connection, &caller, method, now)?;
    let waited = &worker.shared.metrics.calls.waited;
    waited.at(Stage::Auth).observe(authentication);
    let span = span.get_or_init(|| call_span(&head, &caller, authentication));
    let admitted = async {
        tokio::select! {
            biased;
            refused = open.ended() => Err(refused.into()),
            done = run(worker, &open, head, body, deadline, client) => done,
        }
    };
    admitted.instrument(span.clone()).await
}

/// Sends the call, and again if the compute provably did not process it.
async fn run(
    worker: &Rc<Worker>,
    open: &OpenCall,
    head: http::request::Parts,
    body: RecvStream,
    deadline: Option<Instant>,
    client: &ClientStream,
) -> Result<Outcome, CallError> {
    let mut request = RequestBody::new(body, &head.headers, &worker.shared.config.limits);
    check_expired_config(open, &mut request).await?;
    let mut attempts = Attempts::new(worker, open, deadline);
    for number in 1..=MAX_ATTEMPTS {
        match attempts.prepare(&mut request).await? {
            Prepared::Reply(answer) => {
                client.reply(answer)?;
                return Ok(Outcome::Local);
            }
            Prepared::Retry => {}
            Prepared::Resume(events) => return resumable::resume(worker, open, events, client).await,
            Prepared::Send(prepared) => match attempts.send(prepared, &head, &mut request, client).await {
                Err(CallError::NotProcessed) if client.is_fresh() && request.rewind() => {
                    tracing::debug!(number, "compute did not process the call; retrying");
                    worker.shared.metrics.calls.retried.inc();
                    attempts.require_new_route();
                }
                done => return done,
            },
        }
    }
    Err(backend_unavailable().into())
}

/// With an expired token `Config` may only read settings, which running or recently ended queries
/// still need.
async fn check_expired_config(open: &OpenCall, request: &mut RequestBody) -> Result<(), CallError> {
    let Some(expired) = &open.caller().expired_in_grace else {
        return Ok(());
    };
    if open.method() == Method::Config {
        let message = request.peek(local_reply::MAX_LOCAL_REQUEST).await?;
        if !message.is_some_and(|message| local_reply::only_reads(&message)) {
            return Err(expired.clone().into());
        }
    }
    Ok(())
}

fn unknown_method() -> Refused {
    Refused::new(
        Reason::UnknownMethod,
        "Only Spark Connect is served here (gRPC, POST /spark.connect.SparkConnectService/…). The berth command needs session-manager (port 8081, BERTH_MANAGER) and token-issuer (port 8083, BERTH_ISSUER).",
    )
}
