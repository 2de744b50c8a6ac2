//! Route to a session's compute.

pub use field_types::Secret;
pub use field_types::secret::serialize_exposed;

use crate::cluster::Engine;
use field_types::secret;
use serde::{Deserialize, Serialize};

/// Route from the proxy to the compute of one session generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// `host:port`, cluster-internal.
    pub endpoint: String,
    /// Server name for TLS verification; `None` means plaintext.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_server_name: Option<String>,
    /// The backend's own bearer token; it replaces the client's.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "secret::exposed")]
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
