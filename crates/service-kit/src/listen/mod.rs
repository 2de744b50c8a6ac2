//! Ports, bound before anything starts: a port conflict fails at once, and a
//! test can read its port (`address` with port 0). [`Incoming`] accepts its
//! connections.

mod incoming;

pub use incoming::{AcceptLimits, Accepted, Incoming};

use crate::config::{Problems, Validate};
use crate::tls::{ServerTls, TlsFiles};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;

/// Configuration of one port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenerConfig {
    /// Address and port; port 0 takes a free one.
    pub address: SocketAddr,
    /// Certificate and key. Without it the port is plaintext.
    #[serde(default)]
    pub tls: Option<TlsFiles>,
    /// Allows plaintext beyond loopback.
    #[serde(default)]
    pub insecure: bool,
}

impl ListenerConfig {
    /// A plaintext port; valid on loopback only.
    pub fn plaintext(address: SocketAddr) -> Self {
        Self {
            address,
            tls: None,
            insecure: false,
        }
    }
}

impl Validate for ListenerConfig {
    fn validate(&self, problems: &mut Problems) {
        match &self.tls {
            Some(files) => {
                problems.check("tls", files);
                problems.require(
                    !self.insecure,
                    "insecure",
                    "contradicts `tls`; remove one of them",
                );
            }
            None => problems.require(
                self.insecure || self.address.ip().is_loopback(),
                "tls",
                "is required beyond loopback (or say `insecure = true` to serve plaintext)",
            ),
        }
    }
}

/// A bound port.
#[derive(Debug)]
pub struct Listener {
    /// The listening socket.
    pub tcp: TcpListener,
    /// TLS of the port, if configured.
    pub tls: Option<Arc<ServerTls>>,
    address: SocketAddr,
}

impl Listener {
    /// Loads the certificates and binds the port. `alpn` is the list that TLS
    /// offers, e.g. [`crate::tls::H2`].
    pub async fn bind(config: &ListenerConfig, alpn: &'static [&'static [u8]]) -> anyhow::Result<Self> {
        use anyhow::Context as _;
        let tls = config
            .tls
            .as_ref()
            .map(|files| ServerTls::load(files, alpn))
            .transpose()?;
        let tcp = TcpListener::bind(config.address)
            .await
            .with_context(|| format!("cannot listen on {}", config.address))?;
        let address = tcp
            .local_addr()
            .with_context(|| format!("cannot listen on {}", config.address))?;
        Ok(Self { tcp, tls, address })
    }

    /// The bound address, with the actual port.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(address: &str, insecure: bool) -> usize {
        let config = ListenerConfig {
            insecure,
            ..ListenerConfig::plaintext(address.parse().unwrap())
        };
        let mut problems = Problems::default();
        config.validate(&mut problems);
        problems.found().len()
    }

    #[test]
    fn plaintext_beyond_loopback_needs_the_word_insecure() {
        assert_eq!(problems("127.0.0.1:8081", false), 0);
        assert_eq!(problems("[::1]:8081", false), 0);
        assert_eq!(problems("0.0.0.0:8081", false), 1);
        assert_eq!(problems("[::]:8081", false), 1);
        assert_eq!(problems("10.0.0.1:8081", false), 1);
        assert_eq!(problems("0.0.0.0:8081", true), 0);
    }

    #[tokio::test]
    async fn port_zero_becomes_a_real_one_and_a_taken_one_is_named() {
        let any = ListenerConfig::plaintext("127.0.0.1:0".parse().unwrap());
        let listener = Listener::bind(&any, crate::tls::H2).await.unwrap();
        assert_ne!(listener.local_addr().port(), 0);
        let taken = ListenerConfig::plaintext(listener.local_addr());
        let error = Listener::bind(&taken, crate::tls::H2).await.unwrap_err();
        assert!(
            format!("{error:#}").contains(&listener.local_addr().to_string()),
            "{error:#}"
        );
    }
}
