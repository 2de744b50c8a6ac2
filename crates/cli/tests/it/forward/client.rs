//! A client of the forwarder on raw HTTP/2, without any retries.

use crate::support::within;
use bytes::{Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use session_core::Reason;
use session_proto::error::reason_of;
use std::future::poll_fn;
use test_support::fake_spark::{SHAPE, Shape, request};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tonic::{Code, Status};

pub(super) const EXECUTE: &str = "/spark.connect.SparkConnectService/ExecutePlan";
pub(super) const INTERRUPT: &str = "/spark.connect.SparkConnectService/Interrupt";

/// A connection.
pub(super) struct Client {
    send: SendRequest<Bytes>,
    secret: Option<String>,
}

/// The whole answer of a call.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) code: Code,
    pub(super) message: String,
    pub(super) reason: Option<Reason>,
    pub(super) body: Bytes,
    pub(super) head: HeaderMap,
    pub(super) trailers: HeaderMap,
}

/// A call whose response has begun.
pub(super) struct Call {
    head: HeaderMap,
    body: RecvStream,
    // Dropped, it would end the call.
    _request: SendStream<Bytes>,
}

impl Client {
    /// Connects to `host:port`, or to the path of a socket.
    pub(super) async fn connect(address: &str, secret: Option<&str>) -> Self {
        let send = if address.starts_with('/') {
            start(UnixStream::connect(address).await.unwrap()).await
        } else {
            start(TcpStream::connect(address).await.unwrap()).await
        };
        Self {
            send,
            secret: secret.map(str::to_owned),
        }
    }

    fn head(&self, shape: Shape) -> Request<()> {
        let mut head = Request::post(format!("http://localhost{EXECUTE}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header(SHAPE, shape.header())
            .body(())
            .unwrap();
        if let Some(secret) = &self.secret {
            head.headers_mut()
                .insert("x-berth-secret", secret.parse().unwrap());
        }
        head
    }

    /// Makes a call with a small message.
    pub(super) async fn call(&mut self, shape: Shape) -> Answer {
        let head = self.head(shape);
        self.call_with(head, request(b"plan")).await
    }

    /// Makes a call to another method.
    pub(super) async fn call_path(&mut self, path: &str, shape: Shape) -> Answer {
        let mut head = self.head(shape);
        *head.uri_mut() = format!("http://localhost{path}").parse().unwrap();
        self.call_with(head, request(b"plan")).await
    }

    /// Makes a call with one more header.
    pub(super) async fn call_header(&mut self, name: &'static str, value: &str) -> Answer {
        let mut head = self.head(Shape::Echo);
        head.headers_mut().insert(name, value.parse().unwrap());
        self.call_with(head, request(b"plan")).await
    }

    /// Makes a call with this message.
    pub(super) async fn send(&mut self, shape: Shape, message: Bytes) -> Answer {
        let head = self.head(shape);
        self.call_with(head, message).await
    }

    async fn call_with(&mut self, head: Request<()>, message: Bytes) -> Answer {
        within("the call ends", async {
            let (response, stream) = self.open(head).await;
            let sending = tokio::spawn(upload(stream, message));
            let (head, body) = response.await.unwrap().into_parts();
            // The answer may begin, and have to be read, before all was sent.
            let answer = finish(head.headers, body).await;
            drop(sending.await.unwrap());
            answer
        })
        .await
    }

    /// Begins a call and waits for its first message.
    pub(super) async fn begin(&mut self, shape: Shape) -> Call {
        let head = self.head(shape);
        within("the response begins", async {
            let (response, stream) = self.open(head).await;
            let stream = upload(stream, request(b"plan")).await;
            let (head, mut body) = response.await.unwrap().into_parts();
            let first = body.data().await.unwrap().unwrap();
            assert!(!first.is_empty());
            Call {
                head: head.headers,
                body,
                _request: stream,
            }
        })
        .await
    }

    async fn open(&mut self, head: Request<()>) -> (ResponseFuture, SendStream<Bytes>) {
        let mut send = self.send.clone().ready().await.unwrap();
        send.send_request(head, false).unwrap()
    }

    /// A request that is no gRPC call.
    pub(super) async fn get(&mut self, path: &str) -> (StatusCode, String) {
        within("the request ends", async {
            let request = Request::builder()
                .method(Method::GET)
                .uri(format!("http://localhost{path}"))
                .body(())
                .unwrap();
            let mut send = self.send.clone().ready().await.unwrap();
            let (response, _) = send.send_request(request, true).unwrap();
            let response: Response<RecvStream> = response.await.unwrap();
            let status = response.status();
            let text = response.into_body().data().await.unwrap().unwrap();
            (status, String::from_utf8(text.to_vec()).unwrap())
        })
        .await
    }

    /// Waits until the forwarder closes the connection.
    pub(super) async fn closed(mut self) {
        within("the connection is closed", async {
            while poll_fn(|cx| self.send.poll_ready(cx)).await.is_ok() {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        })
        .await;
    }
}

impl Call {
    /// Reads the rest.
    pub(super) async fn end(self) -> Answer {
        within("the call ends", finish(self.head, self.body)).await
    }
}

async fn start<T: AsyncRead + AsyncWrite + Send + Unpin + 'static>(stream: T) -> SendRequest<Bytes> {
    // Windows for several unread calls, as gRPC clients have them.
    let (send, connection) = h2::client::Builder::new()
        .initial_window_size(1 << 20)
        .initial_connection_window_size(32 << 20)
        .handshake(stream)
        .await
        .unwrap();
    tokio::spawn(connection);
    send
}

/// Sends as the peer takes it; its early answer ends the sending.
async fn upload(mut stream: SendStream<Bytes>, mut message: Bytes) -> SendStream<Bytes> {
    while !message.is_empty() {
        let Ok(room) = service_kit::http2::capacity(&mut stream, message.len()).await else {
            break;
        };
        let piece = message.split_to(room.min(message.len()));
        if stream.send_data(piece, message.is_empty()).is_err() {
            break;
        }
    }
    stream
}

async fn finish(head: HeaderMap, mut body: RecvStream) -> Answer {
    let mut content = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        let _ = body.flow_control().release_capacity(data.len());
        content.extend_from_slice(&data);
    }
    let trailers = body.trailers().await.unwrap().unwrap_or_default();
    let status = Status::from_header_map(&trailers)
        .or_else(|| Status::from_header_map(&head))
        .expect("a gRPC status");
    Answer {
        code: status.code(),
        message: status.message().to_owned(),
        reason: reason_of(&status),
        body: content.freeze(),
        head,
        trailers,
    }
}
