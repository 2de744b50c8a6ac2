//! Configuration of console. docs/config.md describes every key.

use crate::sign_in::SignInConfig;
use http::Uri;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use service_kit::admin::AdminConfig;
use service_kit::config::{Problems, Validate, duration};
use service_kit::grpc::{ClientConfig, is_secure};
use service_kit::listen::ListenerConfig;
use service_kit::telemetry::TelemetryConfig;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

/// Allowed sizes of a request body in bytes.
const REQUEST_BYTES_RANGE: RangeInclusive<usize> = 16 * 1024..=1024 * 1024;
/// Allowed timeouts of a request's headers and body.
const REQUEST_TIMEOUT_RANGE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(60);
/// Allowed idle timeouts of connections.
const CONNECTION_TIMEOUT_RANGE: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(86_400);
/// Timeout of a call of the gRPC APIs: longer than their longest call, the test
/// of a catalog.
const CALL_TIMEOUT: Duration = Duration::from_secs(90);

/// The whole configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Web pages and the REST API.
    pub listen: ListenerConfig,
    /// Health and metrics.
    pub admin: AdminConfig,
    /// The console as browsers see it.
    pub public: PublicConfig,
    /// How browsers sign in.
    pub sign_in: SignInConfig,
    /// Where Spark clients connect, for the instructions on the pages.
    pub spark_connect: SparkConnectConfig,
    /// Public port of session-manager.
    pub manager: ClientConfig,
    /// Port of token-issuer.
    pub issuer: ClientConfig,
    /// Limits on callers.
    pub limits: LimitsConfig,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
    /// Time limit of the drain.
    #[serde(with = "duration")]
    pub drain: Duration,
}

/// The console as browsers see it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PublicConfig {
    /// Address of the console, e.g. `https://berth.example.org/berth`. Its path
    /// is the prefix that a proxy removes from requests.
    pub url: Option<String>,
    /// Permits [`Self::url`] with `http` beyond loopback: keys and cookies of
    /// sign-ins can be read on the network.
    pub insecure: bool,
}

/// Where Spark clients connect, as in token-issuer's `public`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SparkConnectConfig {
    /// `host:port` of spark-proxy.
    pub endpoint: String,
    /// Whether it uses TLS.
    pub tls: bool,
    /// Whether its certificate is of a private authority, which clients need.
    pub private_ca: bool,
}

/// Limits on callers. Zero means no limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Requests of one credential per second; the burst is twice as many.
    pub requests_per_second_per_credential: u32,
    /// Concurrent requests of one credential, without streams.
    pub requests_at_once_per_credential: u32,
    /// Requests of one address per second; the burst is twice as many.
    pub requests_per_second_per_address: u32,
    /// Concurrent requests of one address, without streams.
    pub requests_at_once_per_address: u32,
    /// Concurrent requests in all, without streams.
    pub requests_at_once: u32,
    /// Concurrent streams (watches and long polls) of one credential.
    pub streams_per_credential: u32,
    /// Concurrent streams of one address.
    pub streams_per_address: u32,
    /// Concurrent streams in all.
    pub streams: u32,
    /// Rejected credentials of one address per minute.
    pub failures_per_minute_per_address: u32,
    /// Open connections of one address.
    pub connections_per_address: u32,
    /// Open connections in all; more wait.
    pub connections: u32,
    /// Timeout of a connection without an authenticated caller: 1 s to 24 h.
    #[serde(with = "duration")]
    pub connection_caller_timeout: Duration,
    /// Timeout of a connection without requests: 1 s to 24 h.
    #[serde(with = "duration")]
    pub connection_idle_timeout: Duration,
    /// Timeout of the headers of a request: 1 s to 60 s.
    #[serde(with = "duration")]
    pub header_timeout: Duration,
    /// Timeout of the body of a request: 1 s to 60 s.
    #[serde(with = "duration")]
    pub body_timeout: Duration,
    /// Maximum size of a request body in bytes: 16 KiB to 1 MiB.
    pub request_bytes: usize,
    /// Networks whose addresses have many callers. They are exempt from limits
    /// per address.
    pub shared_addresses: Vec<IpNet>,
    /// Networks of proxies whose `x-forwarded-for` is trusted: the reported
    /// address is limited, and passed on to the gRPC APIs.
    pub trusted_proxies: Vec<IpNet>,
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn api(uri: &str) -> ClientConfig {
    ClientConfig {
        timeout: CALL_TIMEOUT,
        ..ClientConfig::new(uri)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: ListenerConfig::plaintext(local(8080)),
            admin: AdminConfig { address: local(9080) },
            public: PublicConfig::default(),
            sign_in: SignInConfig::default(),
            spark_connect: SparkConnectConfig::default(),
            manager: api("http://127.0.0.1:8081"),
            issuer: api("http://127.0.0.1:8083"),
            limits: LimitsConfig::default(),
            telemetry: TelemetryConfig::default(),
            drain: Duration::from_secs(10),
        }
    }
}

impl Default for SparkConnectConfig {
    fn default() -> Self {
        Self {
            endpoint: "localhost:8085".to_owned(),
            tls: true,
            private_ca: false,
        }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            requests_per_second_per_credential: 100,
            requests_at_once_per_credential: 64,
            requests_per_second_per_address: 500,
            requests_at_once_per_address: 200,
            requests_at_once: 2000,
            streams_per_credential: 20,
            streams_per_address: 200,
            streams: 2000,
            failures_per_minute_per_address: 60,
            connections_per_address: 500,
            connections: 10_000,
            connection_caller_timeout: Duration::from_secs(60),
            connection_idle_timeout: Duration::from_secs(300),
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(10),
            request_bytes: 64 * 1024,
            shared_addresses: Vec::new(),
            trusted_proxies: Vec::new(),
        }
    }
}

impl Validate for Config {
    fn validate(&self, problems: &mut Problems) {
        problems.check("listen", &self.listen);
        problems.check("admin", &self.admin);
        problems.check("public", &self.public);
        problems.within("sign_in", |problems| {
            self.sign_in.validate_at(self.public.url.as_deref(), problems);
        });
        problems.check("spark_connect", &self.spark_connect);
        problems.check("manager", &self.manager);
        problems.check("issuer", &self.issuer);
        problems.check("limits", &self.limits);
        problems.check("telemetry", &self.telemetry);
    }
}

impl PublicConfig {
    /// The path of [`Self::url`] without a slash at its end; empty without a
    /// prefix.
    pub fn prefix(&self) -> String {
        let uri = self.url.as_ref().and_then(|url| url.parse::<Uri>().ok());
        uri.map(|uri| uri.path().trim_end_matches('/').to_owned())
            .unwrap_or_default()
    }
}

impl SparkConnectConfig {
    /// Host and port.
    fn parts(&self) -> Option<(&str, u16)> {
        let (host, port) = self.endpoint.rsplit_once(':')?;
        let plain = |b: u8| b.is_ascii_alphanumeric() || b".-[]:".contains(&b);
        let port = port.parse().ok().filter(|port| *port > 0)?;
        (!host.is_empty() && host.bytes().all(plain)).then_some((host, port))
    }

    /// The JSON form of `auth/session`, with the version of this program.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        let parts = self.parts();
        serde_json::json!({
            "proxy_host": parts.map(|(host, _)| host),
            "proxy_port": parts.map(|(_, port)| port),
            "proxy_tls": self.tls,
            "proxy_ca": self.private_ca,
            "version": env!("CARGO_PKG_VERSION"),
        })
    }
}

impl Validate for SparkConnectConfig {
    fn validate(&self, problems: &mut Problems) {
        problems.require(self.parts().is_some(), "endpoint", "must be host:port");
    }
}

impl Validate for PublicConfig {
    fn validate(&self, problems: &mut Problems) {
        let is_valid = self.url.as_ref().is_none_or(|url| {
            url.parse::<Uri>().is_ok_and(|uri| {
                matches!(uri.scheme_str(), Some("http" | "https"))
                    && uri.host().is_some()
                    && uri.query().is_none()
            })
        });
        problems.require(
            is_valid,
            "url",
            "must be like https://berth.example.org or https://example.org/berth",
        );
        let is_secure = self.url.as_deref().is_none_or(is_secure);
        problems.require(
            !is_valid || is_secure || self.insecure,
            "url",
            "must begin with https:// beyond loopback (or say `insecure = true`: then keys and \
             cookies of sign-ins can be read on the network)",
        );
        problems.require(
            !self.insecure || !is_secure,
            "insecure",
            "has no effect with this url; remove it",
        );
    }
}

impl Validate for LimitsConfig {
    fn validate(&self, problems: &mut Problems) {
        problems.require(
            REQUEST_BYTES_RANGE.contains(&self.request_bytes),
            "request_bytes",
            "must be 16384 to 1048576",
        );
        problems.require(self.connections > 0, "connections", "must not be 0");
        for (field, timeout) in [
            ("connection_caller_timeout", self.connection_caller_timeout),
            ("connection_idle_timeout", self.connection_idle_timeout),
        ] {
            let is_valid = CONNECTION_TIMEOUT_RANGE.contains(&timeout);
            problems.require(is_valid, field, "must be 1s to 24h");
        }
        for (field, timeout) in [
            ("header_timeout", self.header_timeout),
            ("body_timeout", self.body_timeout),
        ] {
            let is_valid = REQUEST_TIMEOUT_RANGE.contains(&timeout);
            problems.require(is_valid, field, "must be 1s to 60s");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(url: Option<&str>, insecure: bool) -> String {
        let config = PublicConfig {
            url: url.map(str::to_owned),
            insecure,
        };
        let mut problems = Problems::default();
        problems.check("public", &config);
        let found = problems
            .found()
            .iter()
            .map(|problem| format!("{} {}", problem.key, problem.what));
        found.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn http_beyond_loopback_needs_the_word_insecure() {
        for url in [
            None,
            Some("https://berth.example.org"),
            Some("http://localhost:8080"),
            Some("http://127.0.0.1:8080/data/berth"),
            Some("http://[::1]"),
        ] {
            assert_eq!(problems(url, false), "", "{url:?}");
            assert!(problems(url, true).contains("public.insecure"), "{url:?}");
        }
        for url in [
            "http://berth.example.org",
            "http://192.0.2.7:8080",
            "http://localhost.example.org",
        ] {
            assert!(problems(Some(url), false).contains("public.url"), "{url}");
            assert_eq!(problems(Some(url), true), "", "{url}");
        }
        assert!(problems(Some("ftp://localhost"), false).contains("must be like"));
    }
}
