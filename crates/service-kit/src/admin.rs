//! The admin port: `/livez`, `/readyz`, `/metrics`, `/buildz`, and no secrets.

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

/// Where the admin port listens. It is plaintext: keep it inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminConfig {
    /// Address and port; port 0 takes a free one.
    pub address: SocketAddr,
}

impl AdminConfig {
    /// Binds it.
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

/// Named conditions; the service is ready when every one of them is true.
#[derive(Debug, Clone)]
pub struct Readiness {
    conditions: Arc<watch::Sender<BTreeMap<&'static str, bool>>>,
}

/// One condition of a [`Readiness`]; false until set.
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
    /// Without any condition it is ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition, which is false for now.
    pub fn condition(&self, name: &'static str) -> Condition {
        self.conditions.send_modify(|conditions| {
            conditions.insert(name, false);
        });
        Condition {
            name,
            readiness: self.clone(),
        }
    }

    /// Is every condition true?
    pub fn is_ready(&self) -> bool {
        self.conditions.borrow().values().all(|met| *met)
    }

    /// The conditions that are not true.
    pub fn missing(&self) -> Vec<&'static str> {
        self.conditions
            .borrow()
            .iter()
            .filter(|(_, met)| !**met)
            .map(|(name, _)| *name)
            .collect()
    }

    /// Returns when the service becomes ready.
    pub async fn ready(&self) {
        let mut changes = self.conditions.subscribe();
        let _ = changes
            .wait_for(|conditions| conditions.values().all(|met| *met))
            .await;
    }

    /// Returns when readiness is no longer `was`, with what it is now.
    pub async fn changed_from(&self, was: bool) -> bool {
        let mut changes = self.conditions.subscribe();
        let _ = changes
            .wait_for(|conditions| conditions.values().all(|met| *met) != was)
            .await;
        !was
    }
}

impl Condition {
    /// Is it met now?
    pub fn set(&self, met: bool) {
        self.readiness
            .conditions
            .send_if_modified(|conditions| conditions.insert(self.name, met) != Some(met));
    }
}

/// What is running.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Build {
    /// The service's name.
    pub service: &'static str,
    /// Its version.
    pub version: &'static str,
    /// The commit it was built from, if known.
    pub commit: Option<&'static str>,
}

/// The [`Build`] of the crate that names this macro.
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
    /// What `/buildz` says.
    pub build: Build,
    /// What `/readyz` says.
    pub readiness: Readiness,
    /// What `/metrics` shows.
    pub registry: Registry,
}

impl Admin {
    /// An admin server with nothing registered yet.
    pub fn new(build: Build) -> Self {
        Self {
            build,
            readiness: Readiness::new(),
            registry: Registry::new(),
        }
    }

    /// The routes, for services that serve them themselves.
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

    /// Serves as part of a service: to the very end, because a draining
    /// service is alive, but not ready from the moment it is asked to stop.
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

    /// Serves until told to stop.
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
