//! Wiring of the service: the ports, and [`run`].

use crate::assets::Assets;
use crate::config::Config;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::sign_in::SignIn;
use crate::state::{App, AppState};
use crate::upstream::Upstream;
use crate::{auth, front, pages, rest, server};
use anyhow::{Context, Result};
use axum::Router;
use axum::middleware;
use service_kit::admin::Admin;
use service_kit::listen::Listener;
use service_kit::shutdown::Shutdown;
use service_kit::tls::H2_HTTP1;
use std::sync::Arc;
use tokio::net::TcpListener;

/// The bound ports.
#[derive(Debug)]
pub struct Listeners {
    /// Web pages and the REST API.
    pub web: Listener,
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
            web: Listener::bind(&config.listen, H2_HTTP1).await.context("listen")?,
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
    let metrics = Arc::new(Metrics::new(&admin.registry));
    let drain = config.drain;
    let prefix = config.public.prefix();
    let (public, tls) = (config.public.url.as_deref(), config.listen.tls.is_some());
    let app = Arc::new(App {
        upstream: Upstream::new(&config.manager, &config.issuer, Arc::clone(&metrics))?,
        limits: Limits::new(&config.limits, Arc::clone(&metrics)),
        sign_in: SignIn::new(&config.sign_in, public, &prefix, tls)?,
        assets: Assets::embedded(&prefix),
        prefix,
        stopping: shutdown.stopping(),
        metrics,
        config,
    });
    let router = router(&app);
    tokio::spawn({
        let (app, stop) = (Arc::clone(&app), shutdown.stopping());
        async move { app.sign_in.follow_keys(stop).await }
    });
    shutdown.spawn_critical(
        "web server",
        server::serve(listeners.web, app, router, shutdown.clone()),
    );
    admin.spawn(listeners.admin, &shutdown);
    tracing::info!("console started");
    shutdown.finish(drain).await?;
    Ok(())
}

/// All routes. Each part sets its own headers and fallbacks.
fn router(app: &AppState) -> Router {
    Router::new()
        .merge(rest::router(app))
        .merge(auth::router(app))
        .layer(middleware::from_fn_with_state(app.clone(), auth::attach))
        .merge(pages::router(app))
        .layer(middleware::from_fn_with_state(app.clone(), front::run))
        .layer(middleware::from_fn_with_state(app.clone(), pages::secure))
}
