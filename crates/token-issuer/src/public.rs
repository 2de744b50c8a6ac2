//! Connection strings for clients.

use session_core::SessionId;

/// Public address of spark-proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicAddress {
    endpoint: String,
    tls: bool,
}

impl PublicAddress {
    /// `endpoint` is `host:port`; `tls` is whether the proxy uses TLS there.
    pub fn new(endpoint: impl Into<String>, tls: bool) -> Self {
        Self {
            endpoint: endpoint.into(),
            tls,
        }
    }

    /// `host:port`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Connection string for `SparkSession.builder.remote(…)` and for clients
    /// in other languages. With TLS it contains `use_ssl=true` for every host:
    /// PySpark and Scala need it for `localhost`, Rust and Swift for all hosts,
    /// and no client rejects it.
    pub fn connection_url(&self, token: &str, session: &SessionId) -> String {
        let use_ssl = if self.tls { "use_ssl=true;" } else { "" };
        format!(
            "sc://{}/;{use_ssl}token={token};x-session-id={session}",
            self.endpoint
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn use_ssl_is_set_for_every_host_with_tls() {
        let session: SessionId = "s-0123456789abcdefghjk".parse().unwrap();
        let url = |endpoint: &str, tls| PublicAddress::new(endpoint, tls).connection_url("T", &session);
        assert_eq!(
            url("localhost:8085", false),
            "sc://localhost:8085/;token=T;x-session-id=s-0123456789abcdefghjk"
        );
        for endpoint in ["localhost:8085", "127.0.0.1:8085", "berth.example.org:443"] {
            assert_eq!(
                url(endpoint, true),
                format!("sc://{endpoint}/;use_ssl=true;token=T;x-session-id=s-0123456789abcdefghjk")
            );
        }
    }
}
