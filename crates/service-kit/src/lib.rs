//! Parts that every service needs, without product terms.
//!
//! A service's `main` reads its configuration ([`config`]), starts logs and
//! traces ([`telemetry`]), binds its ports ([`listen`]), and passes all of it
//! with a [`shutdown::Shutdown`] to its own `run`. [`admin`] serves health and
//! metrics, [`tls`] and [`grpc`] the connections, [`caller`] authenticates
//! callers.
//!
//! Example of a `main`, and of the `run` that tests use as well:
//!
//! ```no_run
//! use clap::Parser;
//! use serde::{Deserialize, Serialize};
//! use service_kit::admin::{Admin, AdminConfig};
//! use service_kit::config::{self, ConfigArgs, Problems, Start, Validate};
//! use service_kit::listen::{AcceptLimits, Incoming, Listener, ListenerConfig};
//! use service_kit::shutdown::Shutdown;
//! use service_kit::telemetry::{self, TelemetryConfig};
//! use service_kit::tls::H2;
//! use service_kit::{build_info, grpc};
//! use std::time::Duration;
//!
//! #[derive(Serialize, Deserialize)]
//! #[serde(default, deny_unknown_fields)]
//! struct Config {
//!     listen: ListenerConfig,
//!     admin: AdminConfig,
//!     grpc: grpc::ServerConfig,
//!     telemetry: TelemetryConfig,
//!     #[serde(with = "config::duration")]
//!     drain: Duration,
//! }
//! # impl Default for Config { fn default() -> Self { unimplemented!() } }
//!
//! impl Validate for Config {
//!     fn validate(&self, problems: &mut Problems) {
//!         problems.check("listen", &self.listen);
//!         problems.check("grpc", &self.grpc);
//!         problems.check("telemetry", &self.telemetry);
//!     }
//! }
//!
//! struct Listeners {
//!     public: Listener,
//!     admin: tokio::net::TcpListener,
//! }
//!
//! impl Listeners {
//!     async fn bind(config: &Config) -> anyhow::Result<Self> {
//!         Ok(Self { public: Listener::bind(&config.listen, H2).await?, admin: config.admin.bind().await? })
//!     }
//! }
//!
//! #[derive(Parser)]
//! struct Args {
//!     #[command(flatten)]
//!     config: ConfigArgs,
//! }
//!
//! #[tokio::main]
//! async fn main() -> anyhow::Result<()> {
//!     let config: Config = match config::start(&Args::parse().config, "BERTH")? {
//!         Start::Run(config) => config,
//!         Start::Print(text) => return Ok(println!("{text}")),
//!     };
//!     let _telemetry = telemetry::init(&config.telemetry, "shop")?;
//!     let listeners = Listeners::bind(&config).await?;
//!     run(config, listeners, Shutdown::on_signals()?).await
//! }
//!
//! async fn run(config: Config, listeners: Listeners, shutdown: Shutdown) -> anyhow::Result<()> {
//!     let admin = Admin::new(build_info!());
//!     admin.spawn(listeners.admin, &shutdown);
//!     let serving = admin.readiness.condition("grpc");
//!     let incoming = Incoming::new(listeners.public, AcceptLimits::default(), shutdown.stopping());
//!     let server = grpc::server(&config.grpc).add_service(grpc::health(&admin.readiness, shutdown.stopping()));
//!     let stop = shutdown.stopping().cancelled_owned();
//!     shutdown.spawn_critical("grpc", server.serve_with_incoming_shutdown(incoming, stop));
//!     serving.set(true);
//!     Ok(shutdown.finish(config.drain).await?)
//! }
//! ```

pub mod admin;
pub mod admission;
pub mod backoff;
pub mod caller;
pub mod client_ip;
pub mod config;
pub mod connection;
pub mod grpc;
pub mod host;
pub mod http2;
pub mod http_client;
pub mod limiter;
pub mod limits;
pub mod listen;
pub mod metrics;
pub mod polled_document;
pub mod service_account_token;
pub mod shutdown;
pub mod telemetry;
pub mod tls;
