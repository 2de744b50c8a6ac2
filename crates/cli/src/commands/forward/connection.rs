//! One local connection: HTTP/2 for Spark clients, HTTP/1.1 for `/readyz`.
//!
//! Until its first admitted call a connection waits in the lobby, whose oldest entry makes room for
//! the newest: clients without the secret cannot use up the connections of those that have it.

use super::listener::Client;
use super::server::Shared;
use super::{call, readyz};
use crate::doctor::transport::Stream;
use bytes::Bytes;
use h2::server;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use service_kit::connection::LingeringIo;
use session_core::Reason;
use session_proto::error::Refused;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

/// First byte of TLS, and of `PRI * HTTP/2.0`.
const TLS_RECORD: u8 = 0x16;
const HTTP2_PREFACE: u8 = b'P';
/// Time limit for the first byte and the start of HTTP/2, and for a request of HTTP/1.1.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time limit for the first admitted call.
const FIRST_CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Time for the last bytes of a connection that is closed without an admitted call.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(100);
const MAX_HTTP1_BUFFER_BYTES: usize = 16 * 1024;

/// Calls that a client may open; those beyond the limit of calls get an error, while gRPC clients
/// queue calls beyond this number without a word.
const MAX_STREAMS: u32 = 1024;
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;
const MAX_FRAME_BYTES: u32 = 64 * 1024;
/// Limit that HTTP/2 itself enforces; below it, headers that are too large get a status.
const HARD_HEADER_LIST_BYTES: u32 = 64 * 1024;
/// Response bytes that HTTP/2 holds for one call.
const SEND_BUFFER_BYTES: usize = 256 * 1024;

/// Maximum number of connections without an admitted call.
const MAX_LOBBY: usize = 64;

/// Connections without an admitted call, oldest first.
#[derive(Debug, Default)]
pub(super) struct Lobby(Mutex<VecDeque<Arc<Seat>>>);

/// A place in the lobby.
#[derive(Debug, Default)]
struct Seat {
    evicted: CancellationToken,
}

impl Lobby {
    fn enter(&self) -> Arc<Seat> {
        let seat = Arc::new(Seat::default());
        let mut seats = self.0.lock();
        if seats.len() >= MAX_LOBBY
            && let Some(oldest) = seats.pop_front()
        {
            oldest.evicted.cancel();
        }
        seats.push_back(Arc::clone(&seat));
        seat
    }

    fn leave(&self, seat: &Arc<Seat>) {
        self.0.lock().retain(|other| !Arc::ptr_eq(other, seat));
    }
}

/// State of a connection, shared with its calls.
pub(super) struct ConnectionState {
    is_trusted: bool,
    /// A call had the secret.
    is_authenticated: AtomicBool,
    /// One of all connections, from the first admitted call on.
    permit: Mutex<Option<OwnedSemaphorePermit>>,
    has_entered: AtomicBool,
    seat: Arc<Seat>,
}

impl ConnectionState {
    pub(super) fn is_trusted(&self) -> bool {
        self.is_trusted
    }

    pub(super) fn is_authenticated(&self) -> bool {
        self.is_authenticated.load(Ordering::Relaxed)
    }

    pub(super) fn authenticate(&self) {
        self.is_authenticated.store(true, Ordering::Relaxed);
    }

    /// No call was admitted yet.
    fn is_waiting(&self) -> bool {
        !self.has_entered.load(Ordering::Relaxed)
    }

    /// Counts the connection, once.
    pub(super) fn enter(&self, shared: &Shared) -> Result<(), Refused> {
        if !self.is_waiting() {
            return Ok(());
        }
        let Ok(permit) = Arc::clone(&shared.connections).try_acquire_owned() else {
            return Err(Refused::new(
                Reason::QuotaExceeded,
                format!(
                    "This `berth connect` has {} client connections, which is its limit (--max-connections). Stop a SparkSession, or raise the limit.",
                    shared.max_connections
                ),
            )
            .retry_after(Duration::from_secs(1)));
        };
        *self.permit.lock() = Some(permit);
        self.has_entered.store(true, Ordering::Relaxed);
        shared.lobby.leave(&self.seat);
        Ok(())
    }
}

/// Serves a connection until its end.
pub(super) async fn serve(shared: Arc<Shared>, client: Client) {
    let seat = shared.lobby.enter();
    tokio::select! {
        () = serve_protocol(&shared, client, &seat) => {}
        () = shared.ended() => {}
    }
    shared.lobby.leave(&seat);
}

async fn serve_protocol(shared: &Arc<Shared>, client: Client, seat: &Arc<Seat>) {
    let first = tokio::select! {
        first = tokio::time::timeout(HANDSHAKE_TIMEOUT, client.first_byte()) => first,
        () = seat.evicted.cancelled() => return,
    };
    match first {
        Ok(Ok(Some(HTTP2_PREFACE))) => {
            let is_trusted = shared.access.trusts_connection(client.is_own()).await;
            let state = ConnectionState {
                is_trusted,
                is_authenticated: AtomicBool::new(false),
                permit: Mutex::default(),
                has_entered: AtomicBool::new(false),
                seat: Arc::clone(seat),
            };
            Box::pin(serve_http2(shared, client.into_stream(), state)).await;
        }
        Ok(Ok(Some(TLS_RECORD))) => shared.note_tls_client(),
        Ok(Ok(Some(_))) => {
            tokio::select! {
                () = serve_http1(shared, client.into_stream()) => {}
                () = seat.evicted.cancelled() => {}
            }
        }
        // Nothing was sent, or not in time.
        Ok(Ok(None) | Err(_)) | Err(_) => {}
    }
}

async fn serve_http2(shared: &Arc<Shared>, stream: Box<dyn Stream>, state: ConnectionState) {
    let handshake = server::Builder::new()
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(MAX_FRAME_BYTES)
        .max_header_list_size(HARD_HEADER_LIST_BYTES)
        .max_concurrent_streams(MAX_STREAMS)
        .max_concurrent_reset_streams(MAX_STREAMS as usize)
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .handshake(LingeringIo::new(stream));
    let Ok(Ok(mut http)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await else {
        return;
    };
    let state = Arc::new(state);
    let first_call = tokio::time::sleep(FIRST_CALL_TIMEOUT);
    tokio::pin!(first_call);
    let mut is_draining = false;
    loop {
        let is_waiting = state.is_waiting();
        tokio::select! {
            biased;
            call = http.accept() => match call {
                Some(Ok((request, respond))) => {
                    let (shared, state) = (Arc::clone(shared), Arc::clone(&state));
                    tokio::spawn(call::handle(shared, state, request, respond));
                }
                Some(Err(_)) | None => return,
            },
            () = shared.stopping.cancelled(), if !is_draining => {
                is_draining = true;
                http.graceful_shutdown();
            }
            () = state.seat.evicted.cancelled(), if is_waiting => {}
            () = &mut first_call, if is_waiting => {}
        }
        // A call may have been admitted since the wait began.
        let is_out_of_time = first_call.is_elapsed() || state.seat.evicted.is_cancelled();
        if is_out_of_time && state.is_waiting() {
            break;
        }
    }
    http.abrupt_shutdown(h2::Reason::NO_ERROR);
    // Sends the remaining data.
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, poll_fn(|cx| http.poll_closed(cx))).await;
}

async fn serve_http1(shared: &Arc<Shared>, stream: Box<dyn Stream>) {
    let answer = |request: Request<Incoming>| async move {
        let (status, text) = readyz::answer(shared, request.method(), request.uri().path()).await;
        let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
        *response.status_mut() = status;
        Ok::<_, Infallible>(response)
    };
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE_TIMEOUT)
        .max_buf_size(MAX_HTTP1_BUFFER_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(LingeringIo::new(stream)), service_fn(answer));
    // The client sees how it ended.
    let _ = serving.await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_waiting_connection_makes_room() {
        let lobby = Lobby::default();
        let seats: Vec<_> = (0..MAX_LOBBY).map(|_| lobby.enter()).collect();
        assert!(seats.iter().all(|seat| !seat.evicted.is_cancelled()));
        lobby.leave(&seats[0]);
        let _room_was_made = lobby.enter();
        assert!(seats.iter().all(|seat| !seat.evicted.is_cancelled()));
        let _newest = lobby.enter();
        assert!(!seats[0].evicted.is_cancelled(), "it has left the lobby");
        assert!(seats[1].evicted.is_cancelled());
        assert!(!seats[2].evicted.is_cancelled());
    }
}
