//! One client connection: TLS or not, then HTTP/2, then one task per call.

use crate::call::{ConnectionState, handle};
use crate::config::TlsMode;
use crate::metrics::Handshake;
use crate::respond::Client;
use crate::worker::Worker;
use anyhow::Context as _;
use bytes::Bytes;
use h2::server;
use service_kit::tls::Conn;
use session_core::Reason;
use session_proto::error::Refused;
use std::net::SocketAddr;
use std::rc::Rc;
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

/// The first byte of every TLS connection: a handshake record.
const TLS_RECORD: u8 = 0x16;
/// The first byte of `PRI * HTTP/2.0`.
const HTTP2_PREFACE: u8 = b'P';

/// A connection after its handshakes.
struct Ready {
    http: server::Connection<Conn, Bytes>,
    /// Plaintext where TLS is required: every call is told so.
    refused: bool,
}

/// Serves a connection to its end.
pub(crate) async fn serve(worker: Rc<Worker>, tcp: std::net::TcpStream, remote: SocketAddr) {
    let shared = &worker.shared;
    let ready = match tokio::time::timeout(shared.config.limits.handshake, open(&worker, tcp, remote)).await {
        Ok(Ok(ready)) => ready,
        Ok(Err(error)) => {
            tracing::debug!(%remote, error = format!("{error:#}"), "connection refused");
            shared.metrics.handshakes.at(Handshake::Failed).inc();
            return;
        }
        Err(_) => {
            tracing::debug!(%remote, "the handshakes took too long");
            shared.metrics.handshakes.at(Handshake::TimedOut).inc();
            return;
        }
    };
    if ready.refused {
        shared.metrics.handshakes.at(Handshake::Plaintext).inc();
    }
    if let Err(error) = calls(&worker, ready).await {
        tracing::debug!(%remote, %error, "connection ended");
    }
}

async fn open(worker: &Worker, tcp: std::net::TcpStream, remote: SocketAddr) -> anyhow::Result<Ready> {
    let shared = &worker.shared;
    let tcp = TcpStream::from_std(tcp)?;
    tcp.set_nodelay(true)?;
    let mode = shared.config.listen.tls.mode;
    let (conn, refused) = match (&shared.tls, mode) {
        (_, TlsMode::Off) | (None, _) => (Conn::plain(tcp, remote), false),
        (Some(tls), TlsMode::Required | TlsMode::Auto) => {
            let mut first = [0];
            tcp.peek(&mut first).await?;
            match first[0] {
                TLS_RECORD => {
                    let stream = tls.acceptor().accept(tcp).await.context("TLS")?;
                    (Conn::tls(TlsStream::Server(stream), remote), false)
                }
                HTTP2_PREFACE => (Conn::plain(tcp, remote), mode == TlsMode::Required),
                _ => anyhow::bail!("neither TLS nor HTTP/2"),
            }
        }
    };
    let limits = &shared.config.limits;
    let http = server::Builder::new()
        .initial_window_size(limits.first_stream_window_bytes)
        .initial_connection_window_size(limits.connection_window_bytes)
        .max_frame_size(limits.frame_bytes)
        .max_header_list_size(limits.header_list_bytes)
        .max_concurrent_streams(limits.streams_per_connection)
        .max_send_buffer_size(limits.send_buffer_bytes)
        .handshake(conn)
        .await
        .context("HTTP/2")?;
    Ok(Ready { http, refused })
}

async fn calls(worker: &Rc<Worker>, ready: Ready) -> Result<(), h2::Error> {
    let Ready { mut http, refused } = ready;
    let shared = &worker.shared;
    let state = Rc::new(ConnectionState::default());
    let (mut draining, mut widened) = (false, false);
    let mut stopping = std::pin::pin!(shared.stopping.cancelled());
    let mut ending = std::pin::pin!(worker.ending.cancelled());
    loop {
        tokio::select! {
            biased;
            call = http.accept() => {
                let Some(call) = call else { return Ok(()) };
                let (request, respond) = call?;
                if refused {
                    Client::new(respond).refuse(tls_required());
                    continue;
                }
                tokio::task::spawn_local(handle(Rc::clone(worker), Rc::clone(&state), request, respond));
            }
            () = &mut stopping, if !draining => {
                draining = true;
                http.graceful_shutdown();
            }
            () = &mut ending => {
                http.abrupt_shutdown(h2::Reason::NO_ERROR);
                // One more turn of the loop sends what is left to send.
                let _ = tokio::time::timeout(std::time::Duration::from_millis(100), std::future::poll_fn(|cx| http.poll_closed(cx))).await;
                return Ok(());
            }
        }
        if !widened && state.admitted.get() {
            // Refused while the client has not acknowledged our first settings; then the next turn tries again.
            widened = http
                .set_initial_window_size(shared.config.limits.stream_window_bytes)
                .is_ok();
        }
    }
}

fn tls_required() -> Refused {
    Refused::new(
        Reason::TlsRequired,
        "This address speaks TLS only. Add use_ssl=true to the connection string: sc://host:port/;use_ssl=true;token=…",
    )
}
