//! An engine that answers a readiness probe and nothing else.

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response};
use prost::Message;
use session_proto::spark as sc;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// The fake; it ends when this is dropped.
pub(crate) struct FakeEngine {
    task: JoinHandle<()>,
    /// The `authorization` of all calls.
    pub(crate) tokens: Arc<Mutex<Vec<String>>>,
}

impl Drop for FakeEngine {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl FakeEngine {
    /// Listens where a pod with this address would.
    pub(crate) async fn start(ip: IpAddr) -> Self {
        let listener = TcpListener::bind(SocketAddr::new(ip, 15002)).await.unwrap();
        let tokens = Arc::default();
        let task = tokio::spawn(serve(listener, Arc::clone(&tokens)));
        Self { task, tokens }
    }
}

async fn serve(listener: TcpListener, tokens: Arc<Mutex<Vec<String>>>) {
    while let Ok((connection, _)) = listener.accept().await {
        let tokens = Arc::clone(&tokens);
        tokio::spawn(async move {
            // A connection that only asks whether the port is open ends here.
            let Ok(mut calls) = h2::server::handshake(connection).await else {
                return;
            };
            while let Some(Ok((request, mut answer))) = calls.accept().await {
                let token = request.headers().get("authorization");
                let token = token.and_then(|token| token.to_str().ok()).unwrap_or_default();
                tokens.lock().unwrap().push(token.to_owned());
                let headers = Response::builder()
                    .header("content-type", "application/grpc")
                    .body(())
                    .unwrap();
                let mut stream = answer.send_response(headers, false).unwrap();
                let is_version = request.uri().path().ends_with("/AnalyzePlan");
                stream.send_data(message(is_version), false).unwrap();
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", HeaderValue::from_static("0"));
                stream.send_trailers(trailers).unwrap();
            }
        });
    }
}

fn message(is_version: bool) -> Bytes {
    use sc::analyze_plan_response::{Result, SparkVersion};
    let content = if is_version {
        sc::AnalyzePlanResponse {
            result: Some(Result::SparkVersion(SparkVersion {
                version: "9.9.9".to_owned(),
            })),
            ..Default::default()
        }
        .encode_to_vec()
    } else {
        Vec::new()
    };
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(content.len()).unwrap());
    framed.extend_from_slice(&content);
    framed.freeze()
}
