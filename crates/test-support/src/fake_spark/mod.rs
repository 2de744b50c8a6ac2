//! A Spark Connect server on raw HTTP/2 that answers each request in the shape
//! of its header `x-shape` and records what it received. The shape is custom
//! metadata, so a test that gets its shape has also shown that metadata pass.

mod shape;

pub use shape::{SHAPE, Shape};

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

/// The Spark session of test requests.
pub const SPARK_SESSION: &str = "01234567-89ab-cdef-0123-456789abcdef";

/// The operation of test requests.
pub const OPERATION: &str = "fedcba98-7654-3210-fedc-ba9876543210";

/// Record of received requests and sent responses.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Paths and headers, in order of arrival.
    pub requests: Vec<(String, HeaderMap)>,
    /// Trailers of requests.
    pub trailers: Vec<HeaderMap>,
    /// Bytes of request bodies.
    pub received: usize,
    /// Bytes of response bodies that HTTP/2 accepted.
    pub sent: usize,
    /// Streams reset by the peer.
    pub resets: usize,
    /// Refused streams.
    pub refused: usize,
    /// Accepted connections.
    pub connections: usize,
    /// Open connections.
    pub open_connections: usize,
}

/// The server; stops on drop.
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

    /// Counts a refusal and returns whether it is the first.
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

    /// Starts on a free port of loopback with this maximum of concurrent streams
    /// per connection.
    pub async fn start_with_streams(streams: u32) -> std::io::Result<Self> {
        Self::start_bounded(([127, 0, 0, 1], 0).into(), Some(streams)).await
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

    /// The listening address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The record so far.
    pub fn seen(&self) -> Seen {
        self.seen.watch().borrow().clone()
    }

    /// Waits until `condition` holds.
    pub async fn until(&self, condition: impl FnMut(&Seen) -> bool) {
        // The sender lives as long as this server.
        let _ = self.seen.watch().wait_for(condition).await;
    }

    /// Closes every connection and the port.
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

/// Answers one request. `None` if the other side reset the stream.
async fn serve(
    shape: Shape,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    seen: &Record,
    cut: &CancellationToken,
) -> Option<()> {
    let mut body = request.into_body();
    match shape {
        Shape::RefuseOnce if seen.first_refusal() => refuse(&mut respond),
        Shape::Refuse => refuse(&mut respond),
        Shape::Echo | Shape::RefuseOnce => echo(&mut body, &mut respond, seen).await,
        Shape::Hang => {
            let _ = poll_fn(|cx| respond.poll_reset(cx)).await;
            None
        }
        Shape::KillAtOnce => {
            cut.cancel();
            Some(())
        }
        Shape::Bare => unavailable(&mut respond),
        Shape::NoStatus => begin(&mut respond)?.send_data(message(10), true).ok(),
        after_request => {
            let received = drain(&mut body, seen).await?;
            answer(after_request, received, respond, seen, cut).await
        }
    }
}

/// Answers a request of `received` bytes.
async fn answer(
    shape: Shape,
    received: usize,
    mut respond: SendResponse<Bytes>,
    seen: &Record,
    cut: &CancellationToken,
) -> Option<()> {
    match shape {
        Shape::Stream(count, size) => {
            let mut stream = begin(&mut respond)?;
            let message = message(size);
            for _ in 0..count {
                send(&mut stream, message.clone(), seen).await?;
            }
            finish(&mut stream)
        }
        Shape::Results(count, size) | Shape::ResultsThenHang(count, size) => {
            let mut stream = begin(&mut respond)?;
            for number in 0..count {
                send(&mut stream, result(number, size), seen).await?;
            }
            if let Shape::ResultsThenHang(..) = shape {
                let _ = poll_fn(|cx| stream.poll_reset(cx)).await;
                return None;
            }
            send(&mut stream, result_complete(count), seen).await?;
            finish(&mut stream)
        }
        Shape::Count => {
            let count = framed(received.to_string().as_bytes());
            finish(&mut begin_with(&mut respond, count, seen).await?)
        }
        Shape::HangAfterOne => {
            let mut stream = begin_with(&mut respond, message(10), seen).await?;
            let _ = poll_fn(|cx| stream.poll_reset(cx)).await;
            None
        }
        Shape::Kill => {
            let _stream = begin_with(&mut respond, message(10), seen).await?;
            // Time to write the message to the socket.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            cut.cancel();
            Some(())
        }
        Shape::HeavyTrailers(bytes) => {
            let mut stream = begin_with(&mut respond, message(10), seen).await?;
            finish_with(&mut stream, heavy(bytes))
        }
        Shape::HeavyResult(bytes) => {
            let mut stream = respond.send_response(headed(heavy(bytes)), false).ok()?;
            send(&mut stream, result(0, 10), seen).await?;
            send(&mut stream, result_complete(1), seen).await?;
            finish_with(&mut stream, heavy(bytes))
        }
        Shape::HeavyHead(bytes) => finish(&mut respond.send_response(headed(heavy(bytes)), false).ok()?),
        Shape::SparkUnknown | Shape::SailUnknown | Shape::MissingTable => {
            let mut headers = HeaderMap::new();
            engine_error(shape).add_header(&mut headers).ok()?;
            trailers_only(&mut respond, headers)
        }
        Shape::Error => trailers_only(&mut respond, trailers("13", "kaputt")),
        Shape::RefuseOnce
        | Shape::Refuse
        | Shape::Echo
        | Shape::Hang
        | Shape::KillAtOnce
        | Shape::Bare
        | Shape::NoStatus => unreachable!("{shape:?} is answered before the request has arrived"),
    }
}

fn refuse(respond: &mut SendResponse<Bytes>) -> Option<()> {
    respond.send_reset(Reason::REFUSED_STREAM);
    Some(())
}

async fn echo(body: &mut RecvStream, respond: &mut SendResponse<Bytes>, seen: &Record) -> Option<()> {
    let mut stream = begin(respond)?;
    while let Some(data) = body.data().await {
        let data = data.ok()?;
        seen.note(|seen| seen.received += data.len());
        let _ = body.flow_control().release_capacity(data.len());
        send(&mut stream, data, seen).await?;
    }
    note_trailers(body, seen).await?;
    finish(&mut stream)
}

fn headed(headers: HeaderMap) -> Response<()> {
    let mut response = Response::new(());
    *response.headers_mut() = headers;
    response
}

fn trailers_only(respond: &mut SendResponse<Bytes>, mut headers: HeaderMap) -> Option<()> {
    headers.insert("content-type", HeaderValue::from_static("application/grpc"));
    respond.send_response(headed(headers), true).ok().map(drop)
}

fn unavailable(respond: &mut SendResponse<Bytes>) -> Option<()> {
    let mut response = Response::new(());
    *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
    respond.send_response(response, true).ok().map(drop)
}

/// The error of an engine.
fn engine_error(shape: Shape) -> tonic::Status {
    if shape == Shape::MissingTable {
        missing_table()
    } else {
        unknown_operation(shape)
    }
}

/// The errors of the two engines, measured with Sail 0.7.2 and Spark 4.3.0.
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

/// Sends the head and one message.
async fn begin_with(
    respond: &mut SendResponse<Bytes>,
    message: Bytes,
    seen: &Record,
) -> Option<SendStream<Bytes>> {
    let mut stream = begin(respond)?;
    send(&mut stream, message, seen).await?;
    Some(stream)
}

fn finish(stream: &mut SendStream<Bytes>) -> Option<()> {
    finish_with(stream, HeaderMap::new())
}

/// Ends the response with OK and more trailers.
fn finish_with(stream: &mut SendStream<Bytes>, mut more: HeaderMap) -> Option<()> {
    more.extend(trailers("0", ""));
    stream.send_trailers(more).ok()
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

/// The id of a message of [`Shape::Results`].
pub fn response_id(number: usize) -> String {
    format!("{number:08x}-89ab-cdef-0123-456789abcdef")
}

/// A message of [`Shape::Results`]: rows, and its id after them, as engines write them.
pub fn result(number: usize, size: usize) -> Bytes {
    // `data` of `arrow_batch`: its bytes tell the messages apart.
    let data = field(2, &vec![u8::try_from(number % 251).unwrap_or(0); size]);
    framed(&[field(2, &data), field(13, response_id(number).as_bytes())].concat())
}

/// The last message of [`Shape::Results`].
pub fn result_complete(number: usize) -> Bytes {
    framed(&[field(13, response_id(number).as_bytes()), field(14, b"")].concat())
}

/// A length-delimited field.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut len = content.len();
    while len >= 0x80 {
        out.push(u8::try_from(len & 0x7f).unwrap_or(0) | 0x80);
        len >>= 7;
    }
    out.push(u8::try_from(len).unwrap_or(0));
    out.extend_from_slice(content);
    out
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
