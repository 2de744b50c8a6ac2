//! One gRPC call over a checked stream, and what its answer means.

use super::fault::{Checked, Fault};
use super::report::Part;
use super::transport::{Endpoint, Stream};
use bytes::{BufMut as _, Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderMap, Request, Response, StatusCode, header};
use prost::Message;
use session_core::Reason;
use session_proto::error::reason_of;
use std::time::Duration;
use tokio::task::JoinHandle;
use tonic::{Code, Status};

/// Maximum size of an answer that is read, in bytes.
const MAX_ANSWER_BYTES: usize = 4 * 1024 * 1024;

/// An HTTP/2 connection.
pub(crate) struct Connection {
    send: SendRequest<Bytes>,
    driver: JoinHandle<Result<(), h2::Error>>,
    authority: String,
    scheme: &'static str,
}

/// A unary call.
pub(crate) struct Call<'a> {
    pub(crate) path: &'static str,
    pub(crate) bearer: &'a str,
    pub(crate) session: Option<&'a str>,
    pub(crate) message: Vec<u8>,
    pub(crate) limit: Duration,
}

/// A gRPC answer: a message, or a status.
pub(crate) struct Answer {
    pub(crate) message: Bytes,
    pub(crate) status: Status,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection {
    /// Starts HTTP/2 on a new connection to `endpoint`.
    pub(crate) async fn open(endpoint: &Endpoint) -> Checked<Self> {
        let stream: Box<dyn Stream> = endpoint.open().await?;
        let started = tokio::time::timeout(endpoint.limit, h2::client::handshake(stream)).await;
        let (send, connection) = match started {
            Ok(Ok(started)) => started,
            Ok(Err(error)) => return Err(Fault::CutDuringCall.seen(format!("starting HTTP/2: {error}"))),
            Err(_) => return Err(Fault::NoAnswer.seen("no answer to the start of HTTP/2")),
        };
        Ok(Self {
            send,
            driver: tokio::spawn(connection),
            authority: endpoint.authority(),
            scheme: if endpoint.tls { "https" } else { "http" },
        })
    }

    /// Waits until the connection ends, with its error.
    pub(crate) async fn closed(&mut self) -> String {
        match (&mut self.driver).await {
            Ok(Ok(())) | Err(_) => "the connection was closed".to_owned(),
            Ok(Err(error)) => error.to_string(),
        }
    }

    /// Makes a call.
    pub(crate) async fn call(&mut self, call: &Call<'_>) -> Checked<Answer> {
        match tokio::time::timeout(call.limit, self.exchange(call)).await {
            Ok(answer) => answer,
            Err(_) => Err(Fault::NoAnswer.seen(format!("no answer to the call within {:?}", call.limit))),
        }
    }

    async fn exchange(&mut self, call: &Call<'_>) -> Checked<Answer> {
        let cut = |error: h2::Error| Fault::CutDuringCall.seen(error.to_string());
        let uri = format!("{}://{}{}", self.scheme, self.authority, call.path);
        let mut request = Request::post(uri)
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .header(
                header::USER_AGENT,
                concat!("berth-doctor/", env!("CARGO_PKG_VERSION")),
            )
            .header(header::AUTHORIZATION, format!("Bearer {}", call.bearer));
        if let Some(session) = call.session {
            request = request.header("x-session-id", session);
        }
        let request = request.body(()).map_err(|_| {
            Fault::ConnectionStringInvalid.seen("the token or session cannot be sent as a header")
        })?;
        let mut send = self.send.clone().ready().await.map_err(cut)?;
        let (response, body) = send.send_request(request, false).map_err(cut)?;
        let message = framed(&call.message);
        let sending = send_all(body, message);
        let receiving = async {
            let response: Response<h2::RecvStream> = response.await.map_err(cut)?;
            read(response).await
        };
        tokio::pin!(sending);
        tokio::pin!(receiving);
        let mut sent = false;
        // An answer can begin, or end, before the whole message was sent.
        loop {
            tokio::select! {
                answer = &mut receiving => return answer,
                // Its error shows in the answer.
                () = &mut sending, if !sent => sent = true,
            }
        }
    }
}

fn framed(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(message.len() + 5);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.extend_from_slice(message);
    framed.freeze()
}

/// Sends as much as the peer takes, to the end or to the first error.
async fn send_all(mut body: h2::SendStream<Bytes>, mut message: Bytes) {
    while !message.is_empty() {
        body.reserve_capacity(message.len());
        let granted = std::future::poll_fn(|context| body.poll_capacity(context)).await;
        let Some(Ok(granted)) = granted else { return };
        let piece = message.split_to(granted.min(message.len()));
        if body.send_data(piece, message.is_empty()).is_err() {
            return;
        }
    }
}

async fn read(response: Response<h2::RecvStream>) -> Checked<Answer> {
    let (head, mut body) = response.into_parts();
    check_head(head.status, &head.headers)?;
    if let Some(status) = Status::from_header_map(&head.headers) {
        let message = Bytes::new();
        return Ok(Answer { message, status });
    }
    let cut = |error: h2::Error| Fault::CutDuringCall.seen(error.to_string());
    let mut content = BytesMut::new();
    while let Some(piece) = body.data().await {
        let piece = piece.map_err(cut)?;
        // Failures show as a missing answer.
        let _ = body.flow_control().release_capacity(piece.len());
        if content.len() + piece.len() > MAX_ANSWER_BYTES {
            return Err(Fault::NotGrpc.seen("the answer is too long for this call"));
        }
        content.extend_from_slice(&piece);
    }
    let trailers = body.trailers().await.map_err(cut)?;
    let Some(status) = trailers.as_ref().and_then(Status::from_header_map) else {
        return Err(Fault::TrailersStripped.seen("the answer has no grpc-status"));
    };
    let message = content.freeze();
    let message = if message.len() >= 5 {
        message.slice(5..)
    } else {
        Bytes::new()
    };
    Ok(Answer { message, status })
}

/// Checks that an answer is gRPC, and names who answered else.
fn check_head(status: StatusCode, headers: &HeaderMap) -> Checked<()> {
    let text = |name| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    let content_type = text(header::CONTENT_TYPE);
    if status == StatusCode::OK && content_type.starts_with("application/grpc") {
        return Ok(());
    }
    let server = text(header::SERVER);
    let seen = if server.is_empty() {
        format!("HTTP status {status}")
    } else {
        format!("HTTP status {status} from {server}")
    };
    Err(match status.as_u16() {
        300..=399 => Fault::GatewayRefused.seen(format!("{seen}, to {}", text(header::LOCATION))),
        401 | 403 | 407 => Fault::GatewayRefused.seen(seen),
        413 => Fault::MessageTooLarge.seen(seen),
        429 => Fault::RateLimited.seen(seen),
        431 => Fault::HeadersTooLarge.seen(seen),
        502..=504 => Fault::GatewayNoBackend.seen(seen),
        _ => Fault::NotGrpc.seen(format!("{seen}, content type {content_type:?}")),
    })
}

impl Answer {
    /// The reason of a status of Berth.
    pub(crate) fn reason(&self) -> Option<Reason> {
        reason_of(&self.status)
    }

    /// The message of a successful call to an API, or the fault of its status.
    pub(crate) fn decode<T: Message + Default>(&self, part: Part) -> Checked<T> {
        if self.status.code() != Code::Ok {
            return Err(self.finding(part));
        }
        T::decode(self.message.clone())
            .map_err(|_| Fault::NotGrpc.seen("the answer is not a message of this API"))
    }

    /// The fault that a status of `part` means.
    pub(crate) fn finding(&self, part: Part) -> super::fault::Finding {
        let text = self.status.message().to_owned();
        match self.reason() {
            Some(reason) => of_reason(reason, part, &self.status).seen(text),
            None => match self.status.code() {
                Code::Unimplemented => Fault::WrongService.seen(format!("not a service of Berth: {text}")),
                Code::ResourceExhausted => Fault::MessageTooLarge.seen(text),
                Code::Unavailable | Code::DeadlineExceeded => Fault::GatewayNoBackend.seen(text),
                Code::Unauthenticated | Code::PermissionDenied => Fault::GatewayRefused.seen(text),
                code => Fault::Berth.seen(format!("{code:?}: {text}")),
            },
        }
    }
}

fn of_reason(reason: Reason, part: Part, status: &Status) -> Fault {
    match reason {
        Reason::TokenMissing => Fault::TokenMissing,
        Reason::TokenMalformed => Fault::TokenMalformed,
        Reason::TokenExpired => Fault::TokenExpired,
        Reason::TokenRevoked => Fault::TokenRevoked,
        Reason::TokenInvalid => Fault::TokenForeign,
        Reason::CallerUnknown => Fault::CredentialRejected,
        Reason::HeaderMissing | Reason::HeaderDuplicate | Reason::SparkSessionTaken => {
            Fault::ConnectionStringInvalid
        }
        Reason::SessionMismatch => Fault::SessionMismatch,
        // The proxy's own calls are refused: a setting of the operator.
        Reason::NotAuthorized if part == Part::Proxy => Fault::Berth,
        Reason::NotAuthorized => Fault::SessionNotFound,
        Reason::InvalidArgument if status.message().starts_with("session_id") => Fault::SessionNotFound,
        Reason::InvalidArgument => Fault::HeadersTooLarge,
        Reason::OrgDisabled => Fault::OrganizationDisabled,
        Reason::SessionClosed => Fault::SessionClosed,
        Reason::SessionFailed => Fault::SessionFailed,
        Reason::SessionWarming => Fault::SessionStarting,
        Reason::ComputeReleased => Fault::SessionIdle,
        Reason::CatalogUnavailable => Fault::CatalogUnavailable,
        Reason::ClusterNotActive => Fault::ClusterNotActive,
        Reason::TlsRequired => Fault::TlsExpected,
        Reason::ProxyDraining => Fault::ProxyDraining,
        Reason::BackendUnavailable | Reason::BackendLost | Reason::OperationLost => Fault::ComputeUnavailable,
        Reason::ControlPlaneUnavailable if part == Part::Manager => Fault::StateStoreUnavailable,
        Reason::ControlPlaneUnavailable => Fault::ControlPlaneUnavailable,
        Reason::QuotaExceeded => Fault::QuotaExceeded,
        Reason::RateLimited | Reason::TooManyWaiting => Fault::RateLimited,
        Reason::UnknownMethod => Fault::WrongService,
        Reason::MalformedMessage
        | Reason::CompressedRequest
        | Reason::RequestIdReused
        | Reason::ManagedByConfig
        | Reason::Conflict
        | Reason::InUse
        | Reason::AlreadyExists
        | Reason::Internal => Fault::Berth,
    }
}
