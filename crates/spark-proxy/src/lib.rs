//! `spark-proxy`: the data path. It verifies session tokens, finds the route, and streams bytes
//! between Spark Connect clients and compute.
//!
//! One acceptor assigns connections to worker threads ([`worker`]); a connection is TLS and HTTP/2
//! ([`downstream`]); a call is one future ([`call`]). Requests to other services (routes, keys) run
//! on the runtime that called [`run`]. Both sides use h2 directly: the proxy must control when
//! flow-control capacity is released and when a stream is reset, and one future per call controls
//! both sides.

mod activity;
#[doc(hidden)]
pub mod bench_support;
mod call;
mod call_error;
pub mod config;
mod downstream;
mod grpc;
mod jwks;
mod metrics;
mod overload;
mod resource_limits;
mod routes;
mod run_loop;
mod service;
mod upstream;
mod worker;

pub use config::Config;

use service_kit::shutdown::Shutdown;
use session_core::{Clock, SystemClock};
use std::sync::Arc;
use tokio::net::TcpListener;

/// Already bound ports. A missing one is bound as configured, the data port only once there is a
/// key to verify tokens.
#[derive(Debug, Default)]
pub struct Listeners {
    /// Spark Connect.
    pub data: Option<TcpListener>,
    /// Health and metrics.
    pub admin: Option<TcpListener>,
}

/// Runs the proxy until `shutdown`, drain included.
///
/// # Errors
/// A port cannot be bound, a certificate is unusable, or a part crashed.
pub async fn run(config: Config, listeners: Listeners, shutdown: Shutdown) -> anyhow::Result<()> {
    run_with_clock(config, listeners, shutdown, Arc::new(SystemClock)).await
}

/// [`run`] with the clock of the caller, for tests.
///
/// # Errors
/// As [`run`].
pub async fn run_with_clock(
    config: Config,
    listeners: Listeners,
    shutdown: Shutdown,
    clock: Arc<dyn Clock>,
) -> anyhow::Result<()> {
    service::run(config, listeners, shutdown, clock).await
}
