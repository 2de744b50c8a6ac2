//! A Spark Connect server that does what each request asks for in its header
//! `x-shape`, on raw HTTP/2, and remembers what it got. The shape travels as
//! custom metadata, so a test that gets its shape has shown that metadata pass.

use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic_types::{ErrorDetails, StatusExt as _};

/// The header that says what to do.
pub const SHAPE: &str = "x-shape";

/// The Spark session that requests of tests are about.
pub const SPARK_SESSION: &str = "01234567-89ab-cdef-0123-456789abcdef";

/// An operation that requests of tests are about.
pub const OPERATION: &str = "fedcba98-7654-3210-fedc-ba9876543210";

/// What a request may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// The request's body back, with initial metadata and trailers.
    Echo,
    /// This many messages of this many bytes each.
    Stream(usize, usize),
    /// How many bytes the request's body had, as decimal text.
    Count,
    /// Nothing, ever.
    Hang,
    /// Headers and one message, then nothing, ever.
    HangAfterOne,
    /// Trailers alone: INTERNAL with details.
    Error,
    /// Headers and one message, then the connection is cut.
    Kill,
    /// The connection is cut at once.
    KillAtOnce,
    /// `RST_STREAM(REFUSED_STREAM)`.
    Refuse,
    /// The same for the first such request, [`Shape::Echo`] for all others.
    RefuseOnce,
    /// What Apache Spark answers about an operation that it does not know.
    SparkUnknown,
    /// What Sail answers about the operation [`OPERATION`] if it does not know it.
    SailUnknown,
    /// What Apache Spark answers about a table that is not there.
    MissingTable,
    /// HTTP 503 without any gRPC.
    Bare,
    /// A message, and no trailers.
    NoStatus,
    /// A message, and so many bytes of trailers; the status comes last.
    HeavyTrailers(usize),
    /// So many bytes of initial metadata.
    HeavyHead(usize),
}

impl Shape {
    /// The header's value.
    pub fn header(self) -> HeaderValue {
        let text = match self {
            Self::Echo => "echo".to_owned(),
            Self::Stream(count, size) => format!("stream {count} {size}"),
            Self::Count => "count".to_owned(),
            Self::Hang => "hang".to_owned(),
            Self::HangAfterOne => "hang-after-one".to_owned(),
            Self::Error => "error".to_owned(),
            Self::Kill => "kill".to_owned(),
            Self::KillAtOnce => "kill-at-once".to_owned(),
            Self::Refuse => "refuse".to_owned(),
            Self::RefuseOnce => "refuse-once".to_owned(),
            Self::SparkUnknown => "spark-unknown".to_owned(),
            Self::SailUnknown => "sail-unknown".to_owned(),
            Self::MissingTable => "missing-table".to_owned(),
            Self::Bare => "bare".to_owned(),
            Self::NoStatus => "no-status".to_owned(),
            Self::HeavyTrailers(bytes) => format!("heavy-trailers {bytes}"),
            Self::HeavyHead(bytes) => format!("heavy-head {bytes}"),
        };
        HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("echo"))
    }

    fn of(headers: &HeaderMap) -> Self {
        let text = headers
            .get(SHAPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or("echo");
        let mut words = text.split(' ');
        let word = words.next().unwrap_or("echo");
        let mut number = || words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
        match word {
            "stream" => Self::Stream(number(), number()),
            "count" => Self::Count,
            "hang" => Self::Hang,
            "hang-after-one" => Self::HangAfterOne,
            "error" => Self::Error,
            "kill" => Self::Kill,
            "kill-at-once" => Self::KillAtOnce,
            "refuse" => Self::Refuse,
            "refuse-once" => Self::RefuseOnce,
            "spark-unknown" => Self::SparkUnknown,
            "sail-unknown" => Self::SailUnknown,
            "missing-table" => Self::MissingTable,
            "bare" => Self::Bare,
            "no-status" => Self::NoStatus,
            "heavy-trailers" => Self::HeavyTrailers(number()),
            "heavy-head" => Self::HeavyHead(number()),
            _ => Self::Echo,
        }
    }
}

/// What the server got and did so far.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Paths and headers, in order of arrival.
    pub requests: Vec<(String, HeaderMap)>,
    /// Trailers of requests.
    pub trailers: Vec<HeaderMap>,
    /// Bytes of request bodies.
    pub received: usize,
    /// Bytes of response bodies that HTTP/2 took.
    pub sent: usize,
    /// Streams that the other side reset.
    pub resets: usize,
    /// Streams that were refused.
    pub refused: usize,
    /// Connections accepted.
    pub connections: usize,
    /// Connections open now.
    pub open_connections: usize,
}

/// The server; it ends when dropped.
#[derive(Debug)]
pub struct FakeSpark {
    address: SocketAddr,
    seen: Arc<Record>,
    stop: CancellationToken,
}

#[derive(Debug)]
struct Record(Mutex<watch::Sender<Seen>>);

impl Record {
    fn note(&self, change: impl FnOnce(&mut Seen)) {
        self.0.lock().send_modify(change);
    }

    /// Was no stream refused yet? From now on one was.
    fn first_refusal(&self) -> bool {
        let mut first = false;
        self.note(|seen| {
            first = seen.refused == 0;
            seen.refused += 1;
        });
        first
    }

    fn watch(&self) -> watch::Receiver<Seen> {
        self.0.lock().subscribe()
    }
}

impl FakeSpark {
    /// Starts on a free port of loopback.
    pub async fn start() -> std::io::Result<Self> {
        Self::start_at(([127, 0, 0, 1], 0).into()).await
    }

    /// Starts at this address.
    pub async fn start_at(address: SocketAddr) -> std::io::Result<Self> {
        Self::start_bounded(address, None).await
    }

    /// Starts on a free port of loopback; a connection takes so many calls at once.
    pub async fn start_with_streams(most: u32) -> std::io::Result<Self> {
        Self::start_bounded(([127, 0, 0, 1], 0).into(), Some(most)).await
    }

    async fn start_bounded(address: SocketAddr, streams: Option<u32>) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let seen = Arc::new(Record(Mutex::new(watch::Sender::new(Seen::default()))));
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(accept(
            listener,
            Arc::clone(&seen),
            stop.clone(),
            streams,
        )));
        Ok(Self { address, seen, stop })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it got and did so far.
    pub fn seen(&self) -> Seen {
        self.seen.watch().borrow().clone()
    }

    /// Returns when `condition` holds.
    pub async fn until(&self, condition: impl FnMut(&Seen) -> bool) {
        // The sender lives as long as this does.
        let _ = self.seen.watch().wait_for(condition).await;
    }

    /// Cuts every connection and closes the port.
    pub fn stop(&self) {
        self.stop.cancel();
    }
}

impl Drop for FakeSpark {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn accept(listener: TcpListener, seen: Arc<Record>, stop: CancellationToken, streams: Option<u32>) {
    while let Ok((tcp, _)) = listener.accept().await {
        let seen = Arc::clone(&seen);
        let cut = stop.child_token();
        tokio::spawn(async move {
            seen.note(|seen| {
                seen.connections += 1;
                seen.open_connections += 1;
            });
            cut.clone()
                .run_until_cancelled_owned(connection(tcp, Arc::clone(&seen), cut, streams))
                .await;
            seen.note(|seen| seen.open_connections -= 1);
        });
    }
}

async fn connection(tcp: TcpStream, seen: Arc<Record>, cut: CancellationToken, streams: Option<u32>) {
    let _ = tcp.set_nodelay(true);
    let mut builder = h2::server::Builder::new();
    if let Some(most) = streams {
        builder.max_concurrent_streams(most);
    }
    let handshake = builder
        .initial_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .max_frame_size(256 << 10)
        .max_send_buffer_size(1 << 20)
        .handshake(tcp);
    let Ok(mut http) = handshake.await else { return };
    while let Some(Ok((request, respond))) = http.accept().await {
        let (seen, cut) = (Arc::clone(&seen), cut.clone());
        tokio::spawn(async move {
            let (head, body) = request.into_parts();
            seen.note(|seen| {
                seen.requests
                    .push((head.uri.path().to_owned(), head.headers.clone()))
            });
            let shape = Shape::of(&head.headers);
            if serve(shape, Request::from_parts(head, body), respond, &seen, &cut)
                .await
                .is_none()
            {
                seen.note(|seen| seen.resets += 1);
            }
        });
    }
}

/// `None`: the other side reset the stream.
async fn serve(
    shape: Shape,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    seen: &Record,
    cut: &CancellationToken,
) -> Option<()> {
    let mut body = request.into_body();
    match shape {
        Shape::RefuseOnce if seen.first_refusal() => {
            respond.send_reset(Reason::REFUSED_STREAM);
            Some(())
        }
        Shape::Echo | Shape::RefuseOnce => {
            let mut stream = begin(&mut respond)?;
            while let Some(data) = body.data().await {
                let data = data.ok()?;
                seen.note(|seen| seen.received += data.len());
                let _ = body.flow_control().release_capacity(data.len());
                send(&mut stream, data, seen).await?;
            }
            note_trailers(&mut body, seen).await?;
            finish(&mut stream)
        }
        Shape::Stream(count, size) => {
            drain(&mut body, seen).await?;
            let mut stream = begin(&mut respond)?;
            let message = message(size);
            for _ in 0..count {
                send(&mut stream, message.clone(), seen).await?;
            }
            finish(&mut stream)
        }
        Shape::Count => {
            let count = drain(&mut body, seen).await?;
            let mut stream = begin(&mut respond)?;
            send(&mut stream, framed(count.to_string().as_bytes()), seen).await?;
            finish(&mut stream)
        }
        Shape::Hang => {
            let _ = poll_fn(|cx| respond.poll_reset(cx)).await;
            None
        }
        Shape::HangAfterOne => {
            drain(&mut body, seen).await?;
            let mut stream = begin(&mut respond)?;
            send(&mut stream, message(10), seen).await?;
            let _ = poll_fn(|cx| stream.poll_reset(cx)).await;
            None
        }
        Shape::Error => {
            drain(&mut body, seen).await?;
            let mut response = Response::new(());
            *response.headers_mut() = trailers("13", "kaputt");
            response
                .headers_mut()
                .insert("content-type", HeaderValue::from_static("application/grpc"));
            respond.send_response(response, true).ok().map(drop)
        }
        Shape::SparkUnknown | Shape::SailUnknown | Shape::MissingTable => {
            drain(&mut body, seen).await?;
            let mut response = Response::new(());
            let error = if shape == Shape::MissingTable {
                missing_table()
            } else {
                unknown_operation(shape)
            };
            error.add_header(response.headers_mut()).ok()?;
            response
                .headers_mut()
                .insert("content-type", HeaderValue::from_static("application/grpc"));
            respond.send_response(response, true).ok().map(drop)
        }
        Shape::Kill => {
            drain(&mut body, seen).await?;
            let mut stream = begin(&mut respond)?;
            send(&mut stream, message(10), seen).await?;
            // Only after the message is out.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            cut.cancel();
            Some(())
        }
        Shape::KillAtOnce => {
            cut.cancel();
            Some(())
        }
        Shape::Refuse => {
            respond.send_reset(Reason::REFUSED_STREAM);
            Some(())
        }
        Shape::Bare => {
            let mut response = Response::new(());
            *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
            respond.send_response(response, true).ok().map(drop)
        }
        Shape::NoStatus => {
            let mut stream = begin(&mut respond)?;
            stream.send_data(message(10), true).ok()
        }
        Shape::HeavyTrailers(bytes) => {
            drain(&mut body, seen).await?;
            let mut stream = begin(&mut respond)?;
            send(&mut stream, message(10), seen).await?;
            let mut heavy = heavy(bytes);
            heavy.extend(trailers("0", ""));
            stream.send_trailers(heavy).ok()
        }
        Shape::HeavyHead(bytes) => {
            drain(&mut body, seen).await?;
            let mut response = Response::new(());
            *response.headers_mut() = heavy(bytes);
            let mut stream = respond.send_response(response, false).ok()?;
            finish(&mut stream)
        }
    }
}

/// As the two engines say it (measured with Sail 0.7.2 and Spark 4.3.0).
fn unknown_operation(shape: Shape) -> tonic::Status {
    let mut metadata = HashMap::from([(
        "classes".to_owned(),
        r#"["org.apache.spark.SparkException"]"#.to_owned(),
    )]);
    let text = if shape == Shape::SailUnknown {
        format!("invalid argument: operation not found: {OPERATION}")
    } else {
        let class = "INVALID_HANDLE.OPERATION_NOT_FOUND";
        metadata.insert("errorClass".to_owned(), class.to_owned());
        format!("[{class}] The handle {OPERATION} is invalid. Operation not found.")
    };
    let details =
        ErrorDetails::with_error_info("org.apache.spark.SparkException", "org.apache.spark", metadata);
    tonic::Status::with_error_details(tonic::Code::Internal, text, details)
}

fn missing_table() -> tonic::Status {
    let class = "TABLE_OR_VIEW_NOT_FOUND";
    let metadata = HashMap::from([("errorClass".to_owned(), class.to_owned())]);
    let details = ErrorDetails::with_error_info(
        "org.apache.spark.sql.AnalysisException",
        "org.apache.spark",
        metadata,
    );
    let text = format!("[{class}] The table or view `v` cannot be found.");
    tonic::Status::with_error_details(tonic::Code::Internal, text, details)
}

fn begin(respond: &mut SendResponse<Bytes>) -> Option<SendStream<Bytes>> {
    let mut response = Response::new(());
    response
        .headers_mut()
        .insert("content-type", HeaderValue::from_static("application/grpc"));
    response
        .headers_mut()
        .insert("x-initial", HeaderValue::from_static("metadata"));
    respond.send_response(response, false).ok()
}

fn finish(stream: &mut SendStream<Bytes>) -> Option<()> {
    stream.send_trailers(trailers("0", "")).ok()
}

fn trailers(status: &'static str, message: &'static str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(status));
    trailers.insert("grpc-message", HeaderValue::from_static(message));
    trailers.insert(
        "grpc-status-details-bin",
        HeaderValue::from_static("CA0SBmthcHV0dA"),
    );
    trailers.insert("x-trailing", HeaderValue::from_static("metadata"));
    trailers
}

/// Headers of this size.
fn heavy(bytes: usize) -> HeaderMap {
    const VALUE: usize = 8 * 1024;
    let mut headers = HeaderMap::new();
    for number in 0..bytes.div_ceil(VALUE) {
        let name = http::HeaderName::try_from(format!("x-heavy-{number}"));
        let value = HeaderValue::try_from("v".repeat(VALUE));
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.insert(name, value);
        }
    }
    headers
}

/// A gRPC message around `content`.
pub fn framed(content: &[u8]) -> Bytes {
    let mut message = BytesMut::with_capacity(content.len() + 5);
    message.extend_from_slice(&[0]);
    message.extend_from_slice(&u32::try_from(content.len()).unwrap_or(u32::MAX).to_be_bytes());
    message.extend_from_slice(content);
    message.freeze()
}

/// A request as every Spark Connect client writes one: `session_id`, then
/// `content` as field 3.
pub fn request(content: &[u8]) -> Bytes {
    let mut message = vec![0x0a, 36];
    message.extend_from_slice(SPARK_SESSION.as_bytes());
    message.push(0x1a);
    let mut len = content.len();
    while len >= 0x80 {
        message.push(u8::try_from(len & 0x7f).unwrap_or(0) | 0x80);
        len >>= 7;
    }
    message.push(u8::try_from(len).unwrap_or(0));
    message.extend_from_slice(content);
    framed(&message)
}

/// A gRPC message that is `size` bytes long with its prefix.
pub fn message(size: usize) -> Bytes {
    framed(&vec![b'x'; size.saturating_sub(5)])
}

async fn drain(body: &mut RecvStream, seen: &Record) -> Option<usize> {
    let mut count = 0;
    while let Some(data) = body.data().await {
        let data = data.ok()?;
        count += data.len();
        seen.note(|seen| seen.received += data.len());
        let _ = body.flow_control().release_capacity(data.len());
    }
    note_trailers(body, seen).await?;
    Some(count)
}

async fn note_trailers(body: &mut RecvStream, seen: &Record) -> Option<()> {
    if let Some(trailers) = body.trailers().await.ok()? {
        seen.note(|seen| seen.trailers.push(trailers));
    }
    Some(())
}

async fn send(stream: &mut SendStream<Bytes>, mut data: Bytes, seen: &Record) -> Option<()> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        while stream.capacity() == 0 {
            poll_fn(|cx| stream.poll_capacity(cx)).await?.ok()?;
        }
        let piece = data.split_to(stream.capacity().min(data.len()));
        seen.note(|seen| seen.sent += piece.len());
        stream.send_data(piece, false).ok()?;
    }
    Some(())
}
