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
use session_proto::v1::catalog_service_server::CatalogServiceServer;
use session_proto::v1::cluster_service_server::ClusterServiceServer;
use session_proto::v1::org_service_server::OrgServiceServer;
use session_proto::v1::session_service_server::SessionServiceServer;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

/// ResolveRoute may hold as long as a hold may be configured, and a little.
const LONGEST_INTERNAL_CALL: Duration = Duration::from_secs(16 * 60);
/// Streams of one connection at the internal port. A proxy asks for the routes
/// of all its sessions on one connection, and binds Spark sessions on another.
/// More than all calls that a proxy holds (`limits.held_calls`).
const INTERNAL_STREAMS: u32 = 16 * 1024;
/// The ports, bound.
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
    /// Binds what the configuration names.
    ///
    /// # Errors
    /// Names the address that cannot be had.
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

/// The ports of a service that is starting: the admin port serves already, so
/// that it can be seen to live while it waits for its state.
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

pub(crate) fn serve(shutdown: &Shutdown, ports: Ports, config: &Config, api: &Arc<Api>) -> Result<()> {
    let counts = Arc::new(layer::Counts::new(&config.limits));
    let tokens = config.internal.tokens.as_ref();
    let tokens = tokens
        .map(|tokens| ServiceTokens::new(tokens, Arc::new(external_jwt::Foreign)))
        .transpose()
        .context("internal.tokens")?
        .map(Arc::new);
    if let Some(tokens) = tokens.clone() {
        let stop = shutdown.stopping();
        shutdown.spawn(async move { tokens.keep_fresh(stop).await });
    }
    let largest = config.limits.request_bytes;
    let stop = shutdown.stopping();
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(session_proto::PUBLIC_DESCRIPTORS)
        .build_v1()
        .context("server reflection")?;
    let public = grpc::server(&ServerConfig {
        timeout: Duration::from_secs(90),
        ..ServerConfig::default()
    })
    .layer(AdmissionLayer::new(layer::Public {
        admission: Arc::clone(&api.admission),
        addresses: AddressLimits::new(&config.limits),
        counts: Arc::clone(&counts),
        at_once: ConcurrencyLimiter::new(config.limits.calls_at_once),
    }))
    .add_service(grpc::health(&ports.admin.readiness, stop.clone()))
    .add_service(reflection)
    .add_service(
        SessionServiceServer::new(api::sessions::Sessions { api: Arc::clone(api) })
            .max_decoding_message_size(largest),
    )
    .add_service(
        ClusterServiceServer::new(api::clusters::Clusters { api: Arc::clone(api) })
            .max_decoding_message_size(largest),
    )
    .add_service(
        CatalogServiceServer::new(api::catalogs::Catalogs { api: Arc::clone(api) })
            .max_decoding_message_size(largest),
    )
    .add_service(
        OrgServiceServer::new(api::orgs::Orgs { api: Arc::clone(api) }).max_decoding_message_size(largest),
    );
    let internal = grpc::server(&ServerConfig {
        timeout: LONGEST_INTERNAL_CALL,
        streams_per_connection: INTERNAL_STREAMS,
        ..ServerConfig::default()
    })
    .layer(AdmissionLayer::new(layer::Internal {
        admission: Arc::clone(&api.admission),
        counts,
        allow: config.internal.clone(),
        tokens,
    }))
    .add_service(grpc::health(&ports.admin.readiness, stop.clone()))
    .add_service(
        RouteServiceServer::new(api::routes::Routes { api: Arc::clone(api) })
            .max_decoding_message_size(MAX_MESSAGE),
    )
    .add_service(
        TokenLedgerServer::new(api::ledger::Ledger { api: Arc::clone(api) })
            .max_decoding_message_size(MAX_MESSAGE),
    );
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
