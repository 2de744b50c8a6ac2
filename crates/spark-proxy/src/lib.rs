//! `spark-proxy`: the data path. It checks session tokens, finds the route,
//! and streams bytes between Spark Connect clients and compute.
//!
//! One acceptor hands connections to worker threads ([`worker`]); a
//! connection is TLS and HTTP/2 ([`connection`]); a call is one future
//! ([`call`]). Everything that asks others (routes, keys) runs on the
//! runtime that called [`run`]. HTTP/2 is spoken with h2 itself on both sides:
//! the proxy needs to say when flow-control credit is given back and when a
//! stream is reset, and one future per call keeps both sides of it.

mod activity;
#[doc(hidden)]
pub mod bench_support;
mod call;
pub mod config;
mod downstream;
mod grpc;
mod jwks;
mod metrics;
mod overload;
mod per_ip_limit;
mod routes;
mod run_loop;
mod service;
mod shares;
mod stop;
mod upstream;
mod worker;

pub use config::Config;

use service_kit::shutdown::Shutdown;
use session_core::{Clock, SystemClock};
use std::sync::Arc;
use tokio::net::TcpListener;

/// Ports that are bound already. What is `None` is bound by the configuration,
/// the data port only when there is a key to check tokens with.
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
/// A port that cannot be bound, certificates that cannot be used, or a part
/// that crashed.
pub async fn run(config: Config, listeners: Listeners, shutdown: Shutdown) -> anyhow::Result<()> {
    run_with_clock(config, listeners, shutdown, Arc::new(SystemClock)).await
}

/// [`run`] with a clock of the caller's, which tests own.
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
