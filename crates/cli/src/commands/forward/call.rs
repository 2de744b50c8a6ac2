//! One call of a local client: may it be made, and by which attempts. Every rejection is a gRPC
//! status that names the fix.

use super::access::{SECRET_HEADER, Secret};
use super::connection::ConnectionState;
use super::exchange::{End, exchange, reason_in};
use super::reply::{ClientGone, Reply};
use super::request_body::RequestBody;
use super::server::Shared;
use super::tokens::SessionToken;
use super::{readyz, upstream::Unreachable};
use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderName, HeaderValue, Method, Request, Response, header};
use service_kit::http2::{is_hop_by_hop, list_size, remove_matching};
use session_core::Reason;
use session_proto::error::Refused;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tonic::Status;

static SESSION_ID: HeaderName = HeaderName::from_static("x-session-id");

/// Maximum size of a request's headers, as at spark-proxy.
const MAX_HEADER_LIST_BYTES: usize = 16 * 1024;
/// Time for which a call waits for a connection to spark-proxy.
const CONNECT_WAIT_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for which a call waits for a session that starts. spark-proxy ends its own waiting earlier,
/// and not every client tries again.
const WARM_TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// Delay before a call that was not processed is sent again.
const RETRY_DELAY: Duration = Duration::from_millis(200);
/// The same while the session starts.
const WARM_RETRY_DELAY: Duration = Duration::from_secs(2);
/// Maximum number of attempts that ended without being processed.
const MAX_UNPROCESSED: u32 = 5;

/// Serves one call.
pub(super) async fn handle(
    shared: Arc<Shared>,
    connection: Arc<ConnectionState>,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) {
    let mut reply = Reply::new(respond);
    if request.method() != Method::POST {
        return answer_get(&shared, &request, &mut reply).await;
    }
    let permits = match admit(&shared, &connection, &request) {
        Ok(permits) => permits,
        Err(refused) => return reply.fail(&refused.into_status()),
    };
    let (parts, body) = request.into_parts();
    let mut call = Call {
        shared: &shared,
        parts,
        body: RequestBody::new(body),
        reply,
        token_replaced: false,
        unprocessed: 0,
        warm_until: Instant::now() + WARM_TIMEOUT,
    };
    tokio::select! {
        () = call.run() => return drop(permits),
        () = shared.stopping.cancelled() => {}
    }
    let status = match shared.tokens.over() {
        Some(over) => over.into_status(),
        None => Status::cancelled(
            "`berth connect` was stopped. Start it again, and build a new SparkSession with the connection string that it prints.",
        ),
    };
    call.reply.fail(&status);
}

/// Requests of programs that are no gRPC clients.
async fn answer_get(shared: &Shared, request: &Request<RecvStream>, reply: &mut Reply) {
    let (status, text) = readyz::answer(shared, request.method(), request.uri().path()).await;
    let mut head = Response::new(());
    *head.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    head.headers_mut().insert(header::CONTENT_TYPE, plain);
    reply.text(head, text);
}

/// Checks secret, size, session and limits.
fn admit(
    shared: &Shared,
    connection: &ConnectionState,
    request: &Request<RecvStream>,
) -> Result<Option<tokio::sync::OwnedSemaphorePermit>, Refused> {
    match shared.access.check(request.headers()) {
        _ if connection.is_trusted() => {}
        Secret::Right => connection.authenticate(),
        // Some clients send the parameters of the connection string in some calls only.
        Secret::Absent if connection.is_authenticated() => {}
        Secret::Absent => return Err(secret_missing()),
        Secret::Wrong => return Err(secret_wrong()),
    }
    connection.enter(shared)?;
    let size = list_size(request);
    if size > MAX_HEADER_LIST_BYTES {
        return Err(Refused::field(
            "headers",
            format_args!(
                "they have {size} bytes, and a call may have {MAX_HEADER_LIST_BYTES}. Send less metadata."
            ),
        ));
    }
    let named = request.headers().get(&SESSION_ID);
    if named.is_some_and(|named| *named != shared.session_header) {
        return Err(Refused::new(
            Reason::SessionMismatch,
            "x-session-id names another session than the one of this `berth connect`. Remove it from the connection string, or connect to the forwarder of that session.",
        ));
    }
    if ends_work(request.uri().path()) {
        return Ok(None);
    }
    match Arc::clone(&shared.calls).try_acquire_owned() {
        Ok(permit) => Ok(Some(permit)),
        Err(_) => Err(Refused::new(
            Reason::QuotaExceeded,
            format!(
                "This `berth connect` has {} calls open, which is its limit (--max-calls). Wait until one of them ends.",
                shared.max_calls
            ),
        )
        .retry_after(Duration::from_secs(1))),
    }
}

/// Calls that make room are not limited by their number.
fn ends_work(path: &str) -> bool {
    matches!(
        path.strip_prefix("/spark.connect.SparkConnectService/"),
        Some("Interrupt" | "ReleaseExecute" | "ReleaseSession")
    )
}

fn secret_missing() -> Refused {
    Refused::new(
        Reason::TokenMissing,
        format!(
            "The secret of this `berth connect` is missing. Use the connection string that it printed, with `{SECRET_HEADER}=…`; \
             a client that sends no such parameter can send the secret as its token."
        ),
    )
}

fn secret_wrong() -> Refused {
    Refused::new(
        Reason::TokenInvalid,
        "The secret is not that of this `berth connect`: each run has a new one. Build a new SparkSession with the connection string that it printed.",
    )
}

struct Call<'a> {
    shared: &'a Shared,
    parts: http::request::Parts,
    body: RequestBody,
    reply: Reply,
    token_replaced: bool,
    unprocessed: u32,
    warm_until: Instant,
}

impl Call<'_> {
    /// Makes attempts until the client has an answer, or is gone.
    async fn run(&mut self) {
        prepare(&mut self.parts, self.shared);
        match self.attempts().await {
            Ok(()) | Err(Stop::ClientGone) => {}
            Err(Stop::Refused(refused)) => self.reply.fail(&refused.into_status()),
        }
    }

    async fn attempts(&mut self) -> Result<(), Stop> {
        let valid = self.shared.tokens.valid();
        let mut token = unless_gone(&mut self.reply, valid).await??;
        loop {
            match self.attempt(&token).await? {
                End::Done(reason) => {
                    self.note_reason(reason, &token);
                    return Ok(());
                }
                End::ClientGone => return Ok(()),
                End::Lost(status) => {
                    self.reply.fail(&status);
                    return Ok(());
                }
                End::NotProcessed(why) => {
                    self.unprocessed += 1;
                    if self.unprocessed >= MAX_UNPROCESSED || !self.body.rewind() {
                        return Err(unreachable_proxy(&why).into());
                    }
                    if self.unprocessed > 1 {
                        self.pause(RETRY_DELAY).await?;
                    }
                }
                End::Rejected(head) => match self.next_token(&head, &token).await? {
                    Some(next) => token = next,
                    None => {
                        // Fails only if the client is gone.
                        let _ = self.reply.begin(head, true);
                        return Ok(());
                    }
                },
            }
        }
    }

    async fn attempt(&mut self, token: &SessionToken) -> Result<End, Stop> {
        let lease = self.shared.upstream.lease(Instant::now() + CONNECT_WAIT_TIMEOUT);
        let lease = unless_gone(&mut self.reply, lease).await?;
        let lease = lease.map_err(|Unreachable(why)| unreachable_proxy(&why))?;
        let mut request = Request::from_parts(self.parts.clone(), ());
        let headers = request.headers_mut();
        headers.insert(header::AUTHORIZATION, token.bearer.clone());
        match lease.send(request).await {
            Ok((response, sender)) => Ok(exchange(response, sender, &mut self.body, &mut self.reply).await),
            Err(error) => Ok(End::NotProcessed(error.to_string())),
        }
    }

    /// The token for another attempt after a rejection; `None` if the rejection is for the client.
    async fn next_token(
        &mut self,
        head: &Response<()>,
        token: &SessionToken,
    ) -> Result<Option<Arc<SessionToken>>, Stop> {
        let reason = reason_in(head.headers());
        self.note_reason(reason, token);
        // Only these two reasons prove that the call was not processed: spark-proxy also ends
        // running calls for the other ones.
        let is_expired = reason == Some(Reason::TokenExpired);
        if is_expired && !self.token_replaced && self.body.rewind() {
            self.token_replaced = true;
            let next = self.shared.tokens.in_place_of(token);
            return Ok(unless_gone(&mut self.reply, next).await?.transpose()?);
        }
        let is_warming = reason == Some(Reason::SessionWarming);
        if is_warming && Instant::now() < self.warm_until && self.body.rewind() {
            self.pause(WARM_RETRY_DELAY).await?;
            let valid = self.shared.tokens.valid();
            return Ok(Some(unless_gone(&mut self.reply, valid).await??));
        }
        Ok(None)
    }

    /// Has the token renewed if the call ended for it, or for the session, which the renewal checks.
    fn note_reason(&self, reason: Option<Reason>, token: &SessionToken) {
        let tokens = &self.shared.tokens;
        if matches!(
            reason,
            Some(Reason::TokenExpired | Reason::TokenRevoked | Reason::TokenInvalid)
        ) {
            tokens.reject(token);
        }
        if matches!(reason, Some(Reason::SessionClosed | Reason::SessionFailed)) {
            tokens.request_renewal(token);
        }
    }

    async fn pause(&mut self, delay: Duration) -> Result<(), ClientGone> {
        unless_gone(&mut self.reply, tokio::time::sleep(delay)).await
    }
}

/// Why there is no further attempt.
enum Stop {
    Refused(Refused),
    ClientGone,
}

impl From<Refused> for Stop {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

impl From<ClientGone> for Stop {
    fn from(ClientGone: ClientGone) -> Self {
        Self::ClientGone
    }
}

/// Waits for the result of `work` while the client waits.
async fn unless_gone<T>(reply: &mut Reply, work: impl Future<Output = T>) -> Result<T, ClientGone> {
    tokio::select! {
        done = work => Ok(done),
        () = poll_fn(|cx| reply.poll_gone(cx)) => Err(ClientGone),
    }
}

/// Replaces the headers for this forwarder by those for spark-proxy.
fn prepare(parts: &mut http::request::Parts, shared: &Shared) {
    let is_ours = |name: &str| matches!(name, "authorization" | "authentication" | "x-berth-secret");
    remove_matching(&mut parts.headers, |name| is_ours(name) || is_hop_by_hop(name));
    parts.headers.insert(&SESSION_ID, shared.session_header.clone());
    parts.uri = shared.upstream.uri(parts.uri.path_and_query());
}

fn unreachable_proxy(why: &str) -> Refused {
    Refused::new(
        Reason::BackendUnavailable,
        format!(
            "Berth's Spark Connect port cannot be reached: {why}. `berth doctor SESSION` finds the cause."
        ),
    )
}
