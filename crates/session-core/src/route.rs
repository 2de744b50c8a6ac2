//! Route to a session's compute.

use crate::cluster::Engine;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A secret that is masked in debug output.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself; must not reach any output.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// Route from the proxy to the compute of one session generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// `host:port`, cluster-internal.
    pub endpoint: String,
    /// Server name for TLS verification; `None` means plaintext.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_server_name: Option<String>,
    /// The backend's own bearer token; it replaces the client's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<Secret>,
    /// The engine.
    pub engine: Engine,
    /// The engine's version, read by the readiness probe.
    #[serde(default)]
    pub engine_version: String,
    /// Whether this compute serves one session only.
    pub dedicated: bool,
    /// Host id of the machine whose loopback address `endpoint` is; `None` if
    /// it is not a loopback address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
}
