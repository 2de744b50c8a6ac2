//! `token-issuer`: signs session-scoped tokens and publishes the public keys.
//!
//! Its only state is the key files: session-manager's ledger authorizes each
//! token and records it before it is returned. [`run`] is the whole service.

mod admission;
mod config;
mod issue;
mod jwks;
mod key_file;
mod keys;
mod metrics;
mod public;

pub use config::{Config, KeysConfig, MAX_TTL, MIN_TTL};
pub use issue::Issuance;
pub use public::PublicAddress;

use anyhow::{Context, Result};
use futures::StreamExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use issue::Tokens;
use keys::{Follower, Keys};
use service_kit::admin::Admin;
use service_kit::admission::AdmissionLayer;
use service_kit::grpc::{self, ServerConfig};
use service_kit::listen::{AcceptLimits, Incoming, Listener};
use service_kit::service_account_token::service_channel;
use service_kit::shutdown::Shutdown;
use service_kit::tls::{H2, H2_HTTP1};
use session_core::SystemClock;
use session_proto::internal::token_ledger_client::TokenLedgerClient;
use session_proto::v1::token_service_server::TokenServiceServer;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tonic_reflection::server::v1::{ServerReflection, ServerReflectionServer};

/// Maximum duration of a connection to the key set.
const JWKS_CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// The bound ports.
#[derive(Debug)]
pub struct Listeners {
    /// `berth.v1.TokenService`.
    pub grpc: Listener,
    /// The public keys.
    pub jwks: Listener,
    /// Health and metrics.
    pub admin: TcpListener,
}

impl Listeners {
    /// Binds the configured ports.
    ///
    /// # Errors
    /// The address that is not available.
    pub async fn bind(config: &Config) -> Result<Self> {
        Ok(Self {
            grpc: Listener::bind(&config.listen.grpc, H2)
                .await
                .context("listen.grpc")?,
            jwks: Listener::bind(&config.listen.jwks, H2_HTTP1)
                .await
                .context("listen.jwks")?,
            admin: config.admin.bind().await?,
        })
    }
}

/// Runs the service until `shutdown`.
///
/// # Errors
/// If the start fails, or a critical task ends early.
pub async fn run(config: Config, listeners: Listeners, shutdown: Shutdown) -> Result<()> {
    let admin = Admin::new(service_kit::build_info!());
    let metrics = Arc::new(metrics::Metrics::new(&admin.registry));
    let ledger = TokenLedgerClient::new(service_channel(&config.manager).context("manager")?);
    let follower = Follower::start(&config.keys, ledger.clone(), Arc::clone(&metrics))?;
    let keys = follower.keys();
    let tokens = Tokens {
        ledger,
        keys: Arc::clone(&keys),
        issuance: Issuance {
            issuer: config.tokens.issuer.clone(),
            audience: config.tokens.audience.clone(),
            default_ttl: config.tokens.default_ttl,
            public: PublicAddress::new(config.public.endpoint.clone(), config.public.tls),
        },
        clock: Arc::new(SystemClock),
        metrics: Arc::clone(&metrics),
    };
    let stop = shutdown.stopping();
    let server = grpc::server(&ServerConfig::default())
        .layer(AdmissionLayer::new(admission::Admission::new(
            &config.limits,
            metrics,
        )))
        .add_service(grpc::health(&admin.readiness, stop.clone()))
        .add_service(reflection()?)
        .add_service(TokenServiceServer::new(tokens).max_decoding_message_size(config.limits.request_bytes));
    let incoming = Incoming::new(listeners.grpc, config.limits.api_connections(), stop.clone());
    shutdown.spawn_critical("token API", {
        let stopped = stop.clone().cancelled_owned();
        async move { server.serve_with_incoming_shutdown(incoming, stopped).await }
    });
    shutdown.spawn_critical(
        "key set",
        serve_keys(
            listeners.jwks,
            config.limits.connections(),
            keys,
            shutdown.clone(),
        ),
    );
    shutdown.spawn_critical("keys", async move {
        follower.run(stop).await;
        anyhow::Ok(())
    });
    admin.spawn(listeners.admin, &shutdown);
    tracing::info!("token-issuer started");
    shutdown.finish(config.drain).await?;
    Ok(())
}

/// Lists the public services to clients without the definitions.
fn reflection() -> Result<ServerReflectionServer<impl ServerReflection>> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(session_proto::PUBLIC_DESCRIPTORS)
        .build_v1()
        .context("server reflection")
}

async fn serve_keys(
    listener: Listener,
    limits: AcceptLimits,
    keys: Arc<Keys>,
    shutdown: Shutdown,
) -> Result<()> {
    let stop = shutdown.stopping();
    let router = jwks::router(keys);
    let mut incoming = Incoming::new(listener, limits, stop.clone());
    while let Some(connection) = incoming.next().await {
        let Ok(connection) = connection else { continue };
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            let server = auto::Builder::new(TokioExecutor::new());
            let serving = server.serve_connection(TokioIo::new(connection), service);
            // Errors of a client connection are not logged.
            let _ = tokio::time::timeout(JWKS_CONNECTION_TIMEOUT, serving).await;
        }));
    }
    Ok(())
}
