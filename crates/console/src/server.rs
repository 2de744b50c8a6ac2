//! The web server: connections with limits of time and size, and the drain.

use crate::state::AppState;
use axum::Router;
use futures::StreamExt;
use http::Uri;
use hyper::body::Incoming as RequestBody;
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use service_kit::connection::{IdleLimits, PeerInfo};
use service_kit::grpc::MAX_HEAD_BYTES;
use service_kit::listen::{AcceptLimits, Accepted, Incoming, Listener};
use service_kit::shutdown::Shutdown;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// Concurrent requests of one HTTP/2 connection; clients queue more.
const MAX_STREAMS_PER_CONNECTION: u32 = 256;
/// Time without data on an HTTP/2 connection before a ping, and its timeout.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(20));
/// Bytes of a response that wait for a client that does not read, by HTTP/2
/// stream.
const MAX_SEND_BUFFER: usize = 256 * 1024;

/// Serves until the shutdown; then waits for open requests.
///
/// # Errors
/// None; the type is that of critical tasks.
pub(crate) async fn serve(
    listener: Listener,
    app: AppState,
    router: Router,
    shutdown: Shutdown,
) -> Result<(), Infallible> {
    let mut incoming = Incoming::new(listener, accept_limits(&app), shutdown.stopping());
    let builder = builder(app.config.limits.header_timeout);
    let graceful = GracefulShutdown::new();
    let prefix: Arc<str> = app.prefix.as_str().into();
    while let Some(connection) = incoming.next().await {
        let Ok(connection) = connection else { continue };
        let service = WithPeer {
            peer: connection.get_ref().peer().clone(),
            prefix: Arc::clone(&prefix),
            inner: TowerToHyperService::new(router.clone()),
        };
        let serving = serve_connection(builder.clone(), connection, service, graceful.watcher());
        let forced = shutdown.forced();
        tokio::spawn(async move { forced.run_until_cancelled(serving).await });
    }
    let forced = shutdown.forced();
    forced.run_until_cancelled(graceful.shutdown()).await;
    Ok(())
}

fn accept_limits(app: &AppState) -> AcceptLimits {
    let limits = &app.config.limits;
    let exempt = limits.shared_addresses.iter().chain(&limits.trusted_proxies);
    AcceptLimits {
        connections: usize::try_from(limits.connections).unwrap_or(usize::MAX),
        connections_per_address: limits.connections_per_address,
        exempt: exempt.copied().collect(),
        idle: Some(IdleLimits {
            unknown_caller: limits.connection_caller_timeout,
            idle: limits.connection_idle_timeout,
        }),
        ..AcceptLimits::default()
    }
}

fn builder(header_timeout: Duration) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_buf_size(2 * MAX_HEAD_BYTES);
    let (interval, timeout) = KEEPALIVE;
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION)
        .max_header_list_size(u32::try_from(MAX_HEAD_BYTES).unwrap_or(u32::MAX))
        .max_send_buf_size(MAX_SEND_BUFFER)
        .keep_alive_interval(interval)
        .keep_alive_timeout(timeout);
    builder
}

async fn serve_connection(
    builder: auto::Builder<TokioExecutor>,
    connection: Accepted,
    service: WithPeer,
    watcher: Watcher,
) {
    let serving = builder.serve_connection(TokioIo::new(connection), service);
    // Errors of a client connection are not logged.
    let _ = watcher.watch(serving.into_owned()).await;
}

/// Adds the peer of the connection to every request, and removes the path
/// prefix if the proxy before the console did not.
#[derive(Clone)]
struct WithPeer {
    peer: PeerInfo,
    prefix: Arc<str>,
    inner: TowerToHyperService<Router>,
}

type Answer = Pin<Box<dyn Future<Output = Result<axum::response::Response, Infallible>> + Send>>;

impl Service<http::Request<RequestBody>> for WithPeer {
    type Response = axum::response::Response;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, mut request: http::Request<RequestBody>) -> Answer {
        request.extensions_mut().insert(self.peer.clone());
        if let Some(below) = without_prefix(request.uri(), &self.prefix) {
            *request.uri_mut() = below;
        }
        Box::pin(self.inner.call(request))
    }
}

/// The address without the prefix; none if it does not have it.
fn without_prefix(uri: &Uri, prefix: &str) -> Option<Uri> {
    let rest = uri.path().strip_prefix(prefix).filter(|_| !prefix.is_empty())?;
    let path = match rest {
        "" => "/",
        rest if rest.starts_with('/') => rest,
        _ => return None,
    };
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(format!("{path}{query}").parse().ok()?);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_prefix_is_removed() {
        for (address, below) in [
            ("/data/berth/sessions?a=%2F&b", Some("/sessions?a=%2F&b")),
            ("/data/berth", Some("/")),
            ("/data/berth/", Some("/")),
            ("https://example.org/data/berth/x", Some("https://example.org/x")),
            ("/data/berths", None),
            ("/sessions", None),
            ("/", None),
        ] {
            let found = without_prefix(&address.parse().unwrap(), "/data/berth");
            assert_eq!(found.map(|uri| uri.to_string()).as_deref(), below, "{address}");
        }
        assert_eq!(without_prefix(&"/sessions".parse().unwrap(), ""), None);
    }
}
