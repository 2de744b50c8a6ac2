//! Which calls have spans. A collector in the test receives what the released proxy exports.

use crate::common::{Client, OwnProcess, Rpc, within};
use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

/// The span of the client, and the trace of its first call; ids are big-endian on the wire.
const CLIENT_SPAN: u64 = 0xb7ad_6b71_6920_3331;
const FIRST_TRACE: u128 = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_3190;

/// A collector that keeps the bytes of all export requests.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<u8>>>);

impl Collector {
    /// Starts one; it and its URI.
    async fn start() -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap());
        let collector = Self::default();
        let accepting = collector.clone();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                tokio::spawn(accepting.clone().serve(tcp));
            }
        });
        (collector, uri)
    }

    async fn serve(self, tcp: TcpStream) {
        let mut connection = h2::server::handshake(tcp).await.unwrap();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let collector = self.clone();
            tokio::spawn(async move {
                let mut body = request.into_body();
                while let Some(Ok(data)) = body.data().await {
                    body.flow_control().release_capacity(data.len()).unwrap();
                    collector.0.lock().extend_from_slice(&data);
                }
                let head = http::Response::builder().header("content-type", "application/grpc");
                let mut reply = respond.send_response(head.body(()).unwrap(), false).unwrap();
                reply.send_data(Bytes::from_static(&[0; 5]), false).unwrap();
                let trailers = http::HeaderMap::from_iter([(
                    http::HeaderName::from_static("grpc-status"),
                    http::HeaderValue::from_static("0"),
                )]);
                reply.send_trailers(trailers).unwrap();
            });
        }
    }

    /// Whether an exported span contains these bytes.
    fn received(&self, id: &[u8]) -> bool {
        self.0.lock().windows(id.len()).any(|window| window == id)
    }

    fn has_trace(&self, trace: u128) -> bool {
        self.received(&trace.to_be_bytes())
    }
}

fn in_trace(rpc: Rpc, trace: u128) -> Rpc {
    rpc.header("traceparent", &format!("00-{trace:032x}-{CLIENT_SPAN:016x}-01"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_verified_token_makes_spans_for_a_callers_flag() {
    let (collector, uri) = Collector::start().await;
    let proxy = OwnProcess::start(|config| {
        config.telemetry.otlp_endpoint = Some(uri);
        config.telemetry.sample_ratio = 0.0;
    })
    .await;
    let client = Client::plain(proxy.address).await.unwrap();
    let call = async |rpc: Rpc, trace| within("an answer", client.call(in_trace(rpc, trace))).await;
    let unverified = [
        Rpc::spark("ExecutePlan"),
        Rpc::spark("ExecutePlan").bearer("x.y.z"),
        Rpc::to("/grpc.health.v1.Health/Check"),
        Rpc::to("/unknown/Method").bearer(&proxy.token()),
    ];
    let mut trace = FIRST_TRACE;
    for rpc in unverified {
        let _ = call(rpc, trace).await;
        trace += 1;
    }
    call(proxy.rpc(), trace).await;

    within("the span of the verified call", async {
        while !collector.has_trace(trace) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert!(
        collector.received(&CLIENT_SPAN.to_be_bytes()),
        "the client's span is not the parent of the proxy's"
    );
    // The exporter sends spans in the order in which they ended.
    for unverified in FIRST_TRACE..trace {
        assert!(!collector.has_trace(unverified), "{unverified:032x} was exported");
    }
}
