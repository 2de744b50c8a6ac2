//! The admin port: `/livez`, `/readyz`, `/metrics`, `/buildz`, without secrets.

use crate::config::{Problems, Validate};
use crate::metrics::Registry;
use crate::shutdown::Shutdown;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Address of the admin port. The port is plaintext and must stay internal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminConfig {
    /// Address and port; port 0 takes a free one.
    pub address: SocketAddr,
}

impl AdminConfig {
    /// Binds the port.
    pub async fn bind(&self) -> std::io::Result<TcpListener> {
        TcpListener::bind(self.address).await.map_err(|error| {
            std::io::Error::new(
                error.kind(),
                format!("cannot listen on {} (admin): {error}", self.address),
            )
        })
    }
}

impl Validate for AdminConfig {
    fn validate(&self, _: &mut Problems) {}
}

/// Named conditions; the service is ready when all of them are met.
#[derive(Debug, Clone)]
pub struct Readiness {
    conditions: Arc<watch::Sender<BTreeMap<&'static str, Met>>>,
}

/// Whether a condition is met, and if not, why; the cause may be unknown.
type Met = Result<(), Option<&'static str>>;

/// One condition of a [`Readiness`]; not met until set.
#[derive(Debug, Clone)]
pub struct Condition {
    name: &'static str,
    readiness: Readiness,
}

impl Default for Readiness {
    fn default() -> Self {
        Self {
            conditions: Arc::new(watch::Sender::new(BTreeMap::new())),
        }
    }
}

impl Readiness {
    /// A readiness without conditions, which is ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition that is not met yet.
    pub fn condition(&self, name: &'static str) -> Condition {
        self.conditions.send_modify(|conditions| {
            conditions.insert(name, Err(None));
        });
        Condition {
            name,
            readiness: self.clone(),
        }
    }

    /// Whether all conditions are met.
    pub fn is_ready(&self) -> bool {
        self.conditions.borrow().values().all(Result::is_ok)
    }

    /// The conditions that are not met, with the cause if it is known.
    pub fn missing(&self) -> Vec<String> {
        self.conditions
            .borrow()
            .iter()
            .filter_map(|(name, met)| match met {
                Ok(()) => None,
                Err(None) => Some((*name).to_owned()),
                Err(Some(cause)) => Some(format!("{name} ({cause})")),
            })
            .collect()
    }

    /// Waits until the service is ready.
    pub async fn ready(&self) {
        let mut changes = self.conditions.subscribe();
        let _ = changes
            .wait_for(|conditions| conditions.values().all(Result::is_ok))
            .await;
    }

    /// Waits until the readiness differs from `was`, and returns it.
    pub async fn changed_from(&self, was: bool) -> bool {
        let mut changes = self.conditions.subscribe();
        let _ = changes
            .wait_for(|conditions| conditions.values().all(Result::is_ok) != was)
            .await;
        !was
    }
}

impl Condition {
    /// Sets whether the condition is met.
    pub fn set(&self, met: bool) {
        self.change(if met { Ok(()) } else { Err(None) });
    }

    /// Sets the condition to not met, with the cause for operators.
    pub fn unmet(&self, cause: &'static str) {
        self.change(Err(Some(cause)));
    }

    fn change(&self, met: Met) {
        self.readiness
            .conditions
            .send_if_modified(|conditions| conditions.insert(self.name, met) != Some(met));
    }
}

/// Build information.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Build {
    /// The service's name.
    pub service: &'static str,
    /// Its version.
    pub version: &'static str,
    /// The commit of the build, if known.
    pub commit: Option<&'static str>,
}

/// The [`Build`] of the crate that uses this macro.
#[macro_export]
macro_rules! build_info {
    () => {
        $crate::admin::Build {
            service: env!("CARGO_PKG_NAME"),
            version: env!("CARGO_PKG_VERSION"),
            commit: option_env!("BUILD_COMMIT"),
        }
    };
}

/// The admin server of one service.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Content of `/buildz`.
    pub build: Build,
    /// Conditions of `/readyz`.
    pub readiness: Readiness,
    /// Metrics of `/metrics`.
    pub registry: Registry,
}

impl Admin {
    /// An admin server without metrics or conditions.
    pub fn new(build: Build) -> Self {
        Self {
            build,
            readiness: Readiness::new(),
            registry: Registry::new(),
        }
    }

    /// The routes, for services with their own server.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/livez", get(async || "alive\n"))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .route(
                "/buildz",
                get(async |State(admin): State<Self>| Json(admin.build)),
            )
            .with_state(self.clone())
    }

    /// Serves until the end of the shutdown, because a draining service is
    /// alive; it is not ready from the start of the shutdown.
    pub fn spawn(&self, listener: TcpListener, shutdown: &Shutdown) {
        let running = self.readiness.condition("running");
        running.set(true);
        let stopping = shutdown.stopping();
        shutdown.spawn(async move {
            stopping.cancelled().await;
            running.set(false);
        });
        shutdown.spawn_background("admin port", self.clone().serve(listener, shutdown.forced()));
    }

    /// Serves until `stop`.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) -> std::io::Result<()> {
        axum::serve(listener, self.router())
            .with_graceful_shutdown(stop.cancelled_owned())
            .await
    }
}

async fn readyz(State(admin): State<Admin>) -> Response {
    let missing = admin.readiness.missing();
    if missing.is_empty() {
        "ready\n".into_response()
    } else {
        let text = format!("not ready, missing: {}\n", missing.join(", "));
        (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
    }
}

async fn metrics(State(admin): State<Admin>) -> Response {
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        admin.registry.render(),
    )
        .into_response()
}
