//! Where a session's compute answers.

use crate::cluster::Engine;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A secret that never shows in debug output.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself; name every use carefully.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// How the proxy reaches the compute of one session generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// `host:port`, cluster-internal.
    pub endpoint: String,
    /// Speak TLS to it (verified against this server name).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_server_name: Option<String>,
    /// The backend's own bearer token, put in place of the client's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<Secret>,
    /// What speaks there.
    pub engine: Engine,
    /// The engine's version as the readiness probe read it.
    #[serde(default)]
    pub engine_version: String,
    /// True when this compute serves this one session only.
    pub dedicated: bool,
    /// The host whose loopback `endpoint` means; none where it is no loopback
    /// address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
}
