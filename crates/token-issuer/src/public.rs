//! Where tokens are good, as people paste it.

use session_core::SessionId;

/// The spark-proxy's public address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicAddress {
    endpoint: String,
    tls: bool,
}

impl PublicAddress {
    /// `endpoint` is `host:port`; `tls` says what the proxy speaks there.
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

    /// Ready for `SparkSession.builder.remote(…)`. PySpark 4 and Scala take
    /// the literal host `localhost` for plaintext, even with a token, so only
    /// there TLS has to be asked for.
    pub fn connection_url(&self, token: &str, session: &SessionId) -> String {
        let local = self
            .endpoint
            .rsplit_once(':')
            .map_or(self.endpoint.as_str(), |(host, _)| host)
            == "localhost";
        let use_ssl = if self.tls && local { "use_ssl=true;" } else { "" };
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
    fn tls_is_asked_for_only_where_clients_would_not_use_it() {
        let session: SessionId = "s-0123456789abcdefghjk".parse().unwrap();
        let url = |endpoint: &str, tls| PublicAddress::new(endpoint, tls).connection_url("T", &session);
        assert_eq!(
            url("localhost:8085", false),
            "sc://localhost:8085/;token=T;x-session-id=s-0123456789abcdefghjk"
        );
        assert!(url("localhost:8085", true).contains(";use_ssl=true;token="));
        assert!(!url("berth.example.org:443", true).contains("use_ssl"));
    }
}
