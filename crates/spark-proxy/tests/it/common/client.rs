//! A Spark Connect client on the level of HTTP/2.

use super::within;
use bytes::{Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use prost::Message as _;
use service_kit::tls::{ClientTls, ClientTlsFiles, H2};
use session_core::Reason;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::path::Path;
use test_support::fake_spark::{SHAPE, Shape, request};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// A connection.
#[derive(Clone)]
pub(crate) struct Client {
    sender: SendRequest<Bytes>,
}

/// A call to be made.
#[derive(Clone)]
pub(crate) struct Rpc {
    pub(crate) method: http::Method,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// A complete response.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) head: HeaderMap,
    pub(crate) http: u16,
    pub(crate) body: Bytes,
    /// The headers, if the response was trailers-only.
    pub(crate) trailers: HeaderMap,
    pub(crate) trailers_only: bool,
}

/// The fields of every request.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Echoed {
    #[prost(string, tag = "1")]
    pub(crate) session_id: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) user_context: Option<User>,
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) content: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct User {
    #[prost(string, tag = "1")]
    pub(crate) user_id: String,
    #[prost(string, tag = "2")]
    pub(crate) user_name: String,
    #[prost(bytes, repeated, tag = "999")]
    pub(crate) extensions: Vec<Vec<u8>>,
}

/// A started call.
pub(crate) struct Running {
    pub(crate) response: ResponseFuture,
    pub(crate) upload: SendStream<Bytes>,
}

impl Rpc {
    pub(crate) fn to(path: &str) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", HeaderValue::from_static("application/grpc"));
        headers.insert("te", HeaderValue::from_static("trailers"));
        Self {
            method: http::Method::POST,
            path: path.to_owned(),
            headers,
            body: request(b"request"),
        }
    }

    pub(crate) fn spark(method: &str) -> Self {
        Self::to(&format!("/spark.connect.SparkConnectService/{method}"))
    }

    pub(crate) fn execute(token: &str) -> Self {
        Self::spark("ExecutePlan").bearer(token)
    }

    pub(crate) fn bearer(self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    /// Adds one more value of a header.
    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.append(
            HeaderName::from_static(name),
            HeaderValue::from_str(value).unwrap(),
        );
        self
    }

    pub(crate) fn shape(mut self, shape: Shape) -> Self {
        self.headers.insert(SHAPE, shape.header());
        self
    }

    pub(crate) fn body(mut self, body: Bytes) -> Self {
        self.body = body;
        self
    }
}

impl Client {
    pub(crate) async fn plain(address: SocketAddr) -> anyhow::Result<Self> {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        Self::over(tcp).await
    }

    /// Connects to `localhost` with TLS, trusting this authority.
    pub(crate) async fn tls(address: SocketAddr, ca: &Path) -> anyhow::Result<Self> {
        let files = ClientTlsFiles {
            ca: Some(ca.to_owned()),
            ..ClientTlsFiles::default()
        };
        let tls = ClientTls::load(&files, H2)?;
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        Self::over(
            tls.connector()
                .connect(tls.server_name("localhost")?, tcp)
                .await?,
        )
        .await
    }

    pub(crate) async fn over(
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> anyhow::Result<Self> {
        let (sender, connection) = h2::client::Builder::new()
            .initial_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .handshake(io)
            .await?;
        tokio::spawn(connection);
        Ok(Self { sender })
    }

    /// Sends headers; the caller sends the body.
    pub(crate) async fn begin(&self, rpc: &Rpc) -> anyhow::Result<Running> {
        let mut request = Request::new(());
        *request.method_mut() = rpc.method.clone();
        *request.uri_mut() = format!("http://localhost{}", rpc.path).parse()?;
        *request.headers_mut() = rpc.headers.clone();
        let mut sender = self.sender.clone().ready().await?;
        let (response, upload) = sender.send_request(request, false)?;
        Ok(Running { response, upload })
    }

    pub(crate) async fn call(&self, rpc: Rpc) -> Reply {
        self.try_call(rpc).await.unwrap()
    }

    pub(crate) async fn try_call(&self, rpc: Rpc) -> anyhow::Result<Reply> {
        within("the call ends", async {
            let Running { response, mut upload } = self.begin(&rpc).await?;
            let body = rpc.body;
            if body.len() < 16 << 10 {
                // In one frame, like a small request of a gRPC client.
                let _ = upload.send_data(body, true);
                return Reply::read(response).await;
            }
            let sending = tokio::spawn(async move {
                let _ = send(&mut upload, body).await;
                let _ = upload.send_data(Bytes::new(), true);
            });
            let reply = Reply::read(response).await;
            sending.abort();
            reply
        })
        .await
    }
}

/// Sends within the window. `None`: the peer accepts no more.
pub(crate) async fn send(stream: &mut SendStream<Bytes>, mut data: Bytes) -> Option<()> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        while stream.capacity() == 0 {
            poll_fn(|cx| stream.poll_capacity(cx)).await?.ok()?;
        }
        let piece = data.split_to(stream.capacity().min(data.len()));
        stream.send_data(piece, false).ok()?;
    }
    Some(())
}

impl Running {
    /// Ends the request, unless its call was already answered and reset.
    pub(crate) fn finish(&mut self, body: Bytes) {
        let _ = self.upload.send_data(body, true);
    }

    pub(crate) async fn head(self) -> anyhow::Result<(SendStream<Bytes>, http::Response<RecvStream>)> {
        Ok((self.upload, self.response.await?))
    }
}

impl Reply {
    pub(crate) async fn read(response: ResponseFuture) -> anyhow::Result<Self> {
        let response = response.await?;
        Self::rest(response).await
    }

    /// Collects a response whose headers were received.
    pub(crate) async fn rest(response: http::Response<RecvStream>) -> anyhow::Result<Self> {
        let (head, mut stream) = response.into_parts();
        let trailers_only = stream.is_end_stream();
        let mut body = BytesMut::new();
        while let Some(data) = stream.data().await {
            let data = data?;
            stream.flow_control().release_capacity(data.len())?;
            body.extend_from_slice(&data);
        }
        let trailers = match stream.trailers().await? {
            Some(trailers) => trailers,
            None => head.headers.clone(),
        };
        Ok(Self {
            http: head.status.as_u16(),
            head: head.headers,
            body: body.freeze(),
            trailers,
            trailers_only,
        })
    }

    /// User and content in the echo of one request.
    pub(crate) fn echoed(&self) -> Echoed {
        Echoed::decode(&self.body[5..]).unwrap()
    }

    pub(crate) fn code(&self) -> tonic::Code {
        self.status().code()
    }

    pub(crate) fn status(&self) -> tonic::Status {
        tonic::Status::from_header_map(&self.trailers).unwrap_or_else(|| panic!("no gRPC status: {self:?}"))
    }

    /// Whether this is a complete error of the proxy with this reason.
    #[track_caller]
    pub(crate) fn refused(&self, reason: Reason) {
        assert_eq!(self.http, 200);
        let status = self.status();
        assert_eq!(
            session_proto::error::reason_of(&status),
            Some(reason),
            "{status:?}"
        );
        assert_eq!(status.code(), session_proto::error::code_of(reason), "{status:?}");
        assert!(!status.message().is_empty());
    }
}
