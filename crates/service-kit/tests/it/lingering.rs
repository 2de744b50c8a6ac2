//! The end of a connection of an API server loses no bytes of its last response.

use axum::Router;
use axum::routing::get;
use service_kit::grpc::{self, ServerConfig};
use service_kit::listen::{AcceptLimits, Incoming, Listener, ListenerConfig};
use service_kit::tls::H2;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

/// More than the kernel takes for a client that reads slowly.
const BODY: usize = 12 << 20;
const TIMEOUT: Duration = Duration::from_secs(60);
/// Time between two reads: the server sends the end before the client has read it.
const READ_INTERVAL: Duration = Duration::from_millis(2);
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A request of `/large` with windows for the whole of it.
fn request() -> Vec<u8> {
    let mut block = vec![0x82, 0x86];
    for (name, value) in [(0x04, "/large"), (0x01, "localhost")] {
        block.extend([name, u8::try_from(value.len()).unwrap()]);
        block.extend(value.as_bytes());
    }
    let largest = 0x7fff_ffff_u32;
    let window = [&[0, 4][..], &largest.to_be_bytes()].concat();
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(SETTINGS, 0, 0, &window),
        // There is room for the updates that follow.
        frame(WINDOW_UPDATE, 0, 0, &(largest / 2).to_be_bytes()),
        frame(HEADERS, 5, 1, &block),
    ]
    .concat()
}

/// What a client has received.
#[derive(Default)]
struct Received {
    /// Bytes of an incomplete frame.
    rest: Vec<u8>,
    body: usize,
    has_goaway: bool,
}

impl Received {
    /// Takes received bytes; returns the answers to pings.
    fn take(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.rest.extend_from_slice(bytes);
        let mut answers = Vec::new();
        while let Some((head, rest)) = self.rest.split_at_checked(9) {
            let len = usize::try_from(u32::from_be_bytes([0, head[0], head[1], head[2]])).unwrap();
            let Some(payload) = rest.get(..len) else { break };
            match head[3] {
                DATA => self.body += len,
                GOAWAY => self.has_goaway = true,
                PING => answers.extend(frame(PING, 1, 0, payload)),
                _ => {}
            }
            self.rest.drain(..9 + len);
        }
        answers
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_gets_its_whole_response_from_a_server_that_stops() {
    let config = ListenerConfig::plaintext("127.0.0.1:0".parse().unwrap());
    let listener = Listener::bind(&config, H2).await.unwrap();
    let address = listener.local_addr();
    let stop = CancellationToken::new();
    let incoming = Incoming::new(listener, AcceptLimits::default(), stop.clone());
    let router = Router::new().route("/large", get(async || vec![7_u8; BODY]));
    let server = grpc::server(&ServerConfig::default()).add_routes(Routes::from(router));
    let serving = tokio::spawn(server.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned()));

    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(128 * 1024).unwrap();
    let mut client = socket.connect(address).await.unwrap();
    client.set_nodelay(true).unwrap();
    client.write_all(&request()).await.unwrap();
    let (mut received, mut chunk) = (Received::default(), vec![0; 64 * 1024]);
    let reading = async {
        loop {
            let count = client.read(&mut chunk).await?;
            if count == 0 {
                return std::io::Result::Ok(());
            }
            let mut answers = received.take(&chunk[..count]);
            if received.body > BODY / 16 {
                // The server stops while it sends the response.
                stop.cancel();
            }
            answers.extend(frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes()));
            let _ = client.write_all(&answers).await;
            tokio::time::sleep(READ_INTERVAL).await;
        }
    };
    let ended = tokio::time::timeout(TIMEOUT, reading).await.expect("it ends");
    assert!(ended.is_ok(), "{ended:?} after {} bytes", received.body);
    assert_eq!((received.body, received.has_goaway), (BODY, true));
    drop(client);
    tokio::time::timeout(TIMEOUT, serving)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}
