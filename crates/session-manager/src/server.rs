//! The gRPC servers of both ports, and the admin port.

use crate::admission::{external_jwt, layer};
use crate::api::{self, Api};
use crate::config::Config;
use anyhow::{Context, Result};
use service_kit::admin::{Admin, Condition};
use service_kit::admission::AdmissionLayer;
use service_kit::grpc::{self, MAX_MESSAGE, ServerConfig};
use service_kit::limiter::ConcurrencyLimiter;
use service_kit::limits::AddressLimits;
use service_kit::listen::{AcceptLimits, Incoming, Listener};
use service_kit::service_account_token::ServiceTokens;
use service_kit::shutdown::Shutdown;
use service_kit::tls::H2;
use session_proto::internal::route_service_server::RouteServiceServer;
use session_proto::internal::token_ledger_server::TokenLedgerServer;
use session_proto::v1::audit_service_server::AuditServiceServer;
use session_proto::v1::catalog_service_server::CatalogServiceServer;
use session_proto::v1::cluster_service_server::ClusterServiceServer;
use session_proto::v1::org_service_server::OrgServiceServer;
use session_proto::v1::session_service_server::SessionServiceServer;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tonic::service::Routes;

/// Time limit of a call at the public port.
const PUBLIC_CALL_TIMEOUT: Duration = Duration::from_secs(90);
/// Time limit of a call at the internal port: ResolveRoute waits up to the
/// longest configurable hold, so this is slightly more.
const INTERNAL_CALL_TIMEOUT: Duration = Duration::from_secs(16 * 60);
/// Concurrent streams of one connection at the internal port. A proxy resolves the
/// routes of all its sessions on one connection and binds Spark sessions on
/// another; the limit exceeds its held calls (`limits.held_calls`).
const MAX_INTERNAL_STREAMS: u32 = 16 * 1024;

/// The bound ports.
#[derive(Debug)]
pub struct Listeners {
    /// `berth.v1`.
    pub public: Listener,
    /// `berth.internal.v1`.
    pub internal: Listener,
    /// Health and metrics.
    pub admin: TcpListener,
}

impl Listeners {
    /// Binds the configured addresses.
    ///
    /// # Errors
    /// Names the configuration key of the address that cannot be bound.
    pub async fn bind(config: &Config) -> Result<Self> {
        Ok(Self {
            public: Listener::bind(&config.listen.public, H2)
                .await
                .context("listen.public")?,
            internal: Listener::bind(&config.listen.internal, H2)
                .await
                .context("listen.internal")?,
            admin: config.admin.bind().await?,
        })
    }

    pub(crate) fn ports(&self) -> impl Iterator<Item = u16> + use<> {
        let admin = self.admin.local_addr().map(|address| address.port()).ok();
        [self.public.local_addr().port(), self.internal.local_addr().port()]
            .into_iter()
            .chain(admin)
    }
}

/// The ports of a service that is starting. The admin port serves already, so that
/// liveness checks succeed while the service waits for the state store.
pub(crate) struct Ports {
    pub(crate) public: Listener,
    internal: Listener,
    pub(crate) admin: Admin,
    started: Condition,
}

impl Ports {
    pub(crate) fn admin_first(listeners: Listeners, shutdown: &Shutdown) -> Self {
        let admin = Admin::new(service_kit::build_info!());
        let started = admin.readiness.condition("started");
        admin.clone().spawn(listeners.admin, shutdown);
        Self {
            public: listeners.public,
            internal: listeners.internal,
            admin,
            started,
        }
    }
}

/// Starts the servers of both ports; they end with `shutdown`.
///
/// # Errors
/// If the section `internal.tokens` is invalid.
pub(crate) fn serve(shutdown: &Shutdown, ports: Ports, config: &Config, api: &Arc<Api>) -> Result<()> {
    let counts = Arc::new(layer::Counts::new(&config.limits));
    let tokens = service_tokens(config, shutdown)?;
    let stop = shutdown.stopping();
    let health = || grpc::health(&ports.admin.readiness, stop.clone());
    let public = grpc::server(&ServerConfig {
        timeout: PUBLIC_CALL_TIMEOUT,
        ..ServerConfig::default()
    })
    .layer(AdmissionLayer::new(layer::Public {
        admission: Arc::clone(&api.admission),
        addresses: AddressLimits::new(&config.limits),
        counts: Arc::clone(&counts),
        at_once: ConcurrencyLimiter::new(config.limits.calls_at_once),
    }))
    .add_routes(public_services(api, config.limits.request_bytes)?.add_service(health()));
    let internal = grpc::server(&ServerConfig {
        timeout: INTERNAL_CALL_TIMEOUT,
        streams_per_connection: MAX_INTERNAL_STREAMS,
        ..ServerConfig::default()
    })
    .layer(AdmissionLayer::new(layer::Internal {
        admission: Arc::clone(&api.admission),
        counts,
        allow: config.internal.clone(),
        tokens,
    }))
    .add_routes(internal_services(api).add_service(health()));
    let connections = |listener, limits| Incoming::new(listener, limits, stop.clone());
    let incoming = connections(ports.public, config.limits.api_connections());
    let public = public.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
    let incoming = connections(ports.internal, AcceptLimits::default());
    let internal = internal.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
    shutdown.spawn_critical("public API", public);
    shutdown.spawn_critical("internal API", internal);
    ports.started.set(true);
    Ok(())
}

/// The verifier of services' tokens, if configured; a task of `shutdown` keeps
/// its keys fresh.
fn service_tokens(config: &Config, shutdown: &Shutdown) -> Result<Option<Arc<ServiceTokens>>> {
    let Some(tokens) = &config.internal.tokens else {
        return Ok(None);
    };
    let tokens = ServiceTokens::new(tokens, Arc::new(external_jwt::Foreign)).context("internal.tokens")?;
    let tokens = Arc::new(tokens);
    let (refreshed, stop) = (Arc::clone(&tokens), shutdown.stopping());
    shutdown.spawn(async move { refreshed.keep_fresh(stop).await });
    Ok(Some(tokens))
}

/// The services of the public port; requests are limited to `max_bytes`.
fn public_services(api: &Arc<Api>, max_bytes: usize) -> Result<Routes> {
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(session_proto::PUBLIC_DESCRIPTORS)
        .build_v1()
        .context("server reflection")?;
    let api = || Arc::clone(api);
    Ok(Routes::new(reflection)
        .add_service(
            SessionServiceServer::new(api::sessions::Sessions { api: api() })
                .max_decoding_message_size(max_bytes),
        )
        .add_service(
            ClusterServiceServer::new(api::clusters::Clusters { api: api() })
                .max_decoding_message_size(max_bytes),
        )
        .add_service(
            CatalogServiceServer::new(api::catalogs::Catalogs { api: api() })
                .max_decoding_message_size(max_bytes),
        )
        .add_service(
            OrgServiceServer::new(api::orgs::Orgs { api: api() }).max_decoding_message_size(max_bytes),
        )
        .add_service(
            AuditServiceServer::new(api::audit::Audit { api: api() }).max_decoding_message_size(max_bytes),
        ))
}

/// The services of the internal port.
fn internal_services(api: &Arc<Api>) -> Routes {
    let routes = api::routes::Routes { api: Arc::clone(api) };
    let ledger = api::ledger::Ledger { api: Arc::clone(api) };
    Routes::new(RouteServiceServer::new(routes).max_decoding_message_size(MAX_MESSAGE))
        .add_service(TokenLedgerServer::new(ledger).max_decoding_message_size(MAX_MESSAGE))
}
