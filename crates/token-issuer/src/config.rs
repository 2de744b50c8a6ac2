//! Configuration of token-issuer. docs/config.md describes every key.

use crate::key_file::read_key;
use serde::{Deserialize, Serialize};
use service_kit::admin::AdminConfig;
use service_kit::config::{Problems, Validate, duration};
use service_kit::grpc::ClientConfig;
use service_kit::limits::LimitsConfig;
use service_kit::listen::ListenerConfig;
use service_kit::telemetry::TelemetryConfig;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Shortest lifetime of a token.
pub const MIN_TTL: Duration = Duration::from_secs(60);
/// Longest lifetime of a token.
pub const MAX_TTL: Duration = Duration::from_secs(12 * 3600);

/// The whole configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The ports.
    pub listen: Listen,
    /// Health and metrics.
    pub admin: AdminConfig,
    /// Content of tokens.
    pub tokens: TokensConfig,
    /// Signing keys.
    pub keys: KeysConfig,
    /// Public address of spark-proxy.
    pub public: PublicConfig,
    /// Internal port of session-manager, which keeps the ledger.
    pub manager: ClientConfig,
    /// Limits on callers.
    pub limits: LimitsConfig,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
    /// Time limit of the drain.
    #[serde(with = "duration")]
    pub drain: Duration,
}

/// The ports.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Listen {
    /// `berth.v1.TokenService`.
    pub grpc: ListenerConfig,
    /// The public keys.
    pub jwks: ListenerConfig,
}

/// Content of tokens.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokensConfig {
    /// `iss`.
    pub issuer: String,
    /// `aud`.
    pub audience: String,
    /// Default lifetime of a token; 60 s to 12 h.
    #[serde(with = "duration")]
    pub default_ttl: Duration,
    /// Grace of proxies for reattaching with an expired token: the largest
    /// `tokens.reattach_grace` of all proxies. Keys stay published for it.
    #[serde(with = "duration")]
    pub reattach_grace: Duration,
}

/// Signing keys: PKCS#8 PEM files, P-256.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KeysConfig {
    /// A key that signs. Required without `dir`.
    pub signing: PathBuf,
    /// A folder whose `.pem` files are keys: a new key is published at once and
    /// signs after `publish_before_signing`.
    pub dir: Option<PathBuf>,
    /// Additional keys that are only published; they never sign.
    pub published: Vec<PathBuf>,
    /// Time of publication before a key signs.
    #[serde(with = "duration")]
    pub publish_before_signing: Duration,
    /// Time of publication after a key signed last.
    #[serde(with = "duration")]
    pub publish_after_signing: Duration,
}

/// Minimum time of publication before signing: verifiers read the key set every
/// 30 s, caches keep it 15 s, and files of a Kubernetes Secret reach all
/// replicas within about a minute.
const MIN_BEFORE_SIGNING: Duration = Duration::from_secs(90);
/// Allowance for clock differences and slow replicas.
const CLOCK_ALLOWANCE: Duration = Duration::from_secs(5 * 60);

/// Public address of spark-proxy.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PublicConfig {
    /// `host:port` for connection strings.
    pub endpoint: String,
    /// Whether it uses TLS.
    pub tls: bool,
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: Listen::default(),
            admin: AdminConfig { address: local(9083) },
            tokens: TokensConfig::default(),
            keys: KeysConfig::default(),
            public: PublicConfig::default(),
            manager: ClientConfig::new("http://127.0.0.1:8082"),
            limits: LimitsConfig::default(),
            telemetry: TelemetryConfig::default(),
            drain: Duration::from_secs(10),
        }
    }
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            grpc: ListenerConfig::plaintext(local(8083)),
            jwks: ListenerConfig::plaintext(local(8084)),
        }
    }
}

impl Default for KeysConfig {
    fn default() -> Self {
        Self {
            signing: PathBuf::new(),
            dir: None,
            published: Vec::new(),
            publish_before_signing: Duration::from_secs(5 * 60),
            // Lifetime 12 h, grace 12 h, and ten minutes.
            publish_after_signing: Duration::from_secs(24 * 3600 + 10 * 60),
        }
    }
}

impl Default for TokensConfig {
    fn default() -> Self {
        Self {
            issuer: "berth".to_owned(),
            audience: "berth-spark-connect".to_owned(),
            default_ttl: Duration::from_secs(3600),
            reattach_grace: Duration::from_secs(12 * 3600),
        }
    }
}

impl Default for PublicConfig {
    fn default() -> Self {
        Self {
            endpoint: "localhost:8085".to_owned(),
            tls: true,
        }
    }
}

impl Validate for Config {
    fn validate(&self, problems: &mut Problems) {
        problems.check("listen.grpc", &self.listen.grpc);
        problems.check("listen.jwks", &self.listen.jwks);
        problems.check("admin", &self.admin);
        problems.within("tokens", |problems| {
            problems.require(!self.tokens.issuer.is_empty(), "issuer", "must not be empty");
            problems.require(!self.tokens.audience.is_empty(), "audience", "must not be empty");
            let ttl = self.tokens.default_ttl;
            problems.require(
                (MIN_TTL..=MAX_TTL).contains(&ttl),
                "default_ttl",
                "must be between 60s and 12h",
            );
        });
        problems.within("keys", |problems| {
            let mut check = |key: &str, file: &Path| {
                if let Err(error) = read_key(file) {
                    problems.add(key, format!("{error:#}; make one with `berth keys signing FILE`"));
                }
            };
            if self.keys.dir.is_none() || !self.keys.signing.as_os_str().is_empty() {
                check("signing", &self.keys.signing);
            }
            for (index, file) in self.keys.published.iter().enumerate() {
                check(&format!("published[{index}]"), file);
            }
        });
        let last_use = MAX_TTL + self.tokens.reattach_grace;
        problems.within("keys", |problems| self.keys.check_schedule(last_use, problems));
        let endpoint_is_good = self.public.endpoint.rsplit_once(':').is_some_and(|(host, port)| {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b".-[]:".contains(&b);
            !host.is_empty() && host.bytes().all(plain) && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
        problems.require(endpoint_is_good, "public.endpoint", "must be host:port");
        problems.check("manager", &self.manager);
        problems.check("limits", &self.limits);
        problems.check("telemetry", &self.telemetry);
    }
}

impl KeysConfig {
    /// `last_use`: time after issue in which a token can still be accepted.
    fn check_schedule(&self, last_use: Duration, problems: &mut Problems) {
        if let Some(dir) = &self.dir {
            problems.require(
                dir.is_dir(),
                "dir",
                "is not a folder; make a key in one with `berth keys rotate DIR`",
            );
        }
        problems.require(
            self.publish_before_signing >= MIN_BEFORE_SIGNING,
            "publish_before_signing",
            "must be at least 90s: verifiers must read a key before it signs",
        );
        let least = last_use + CLOCK_ALLOWANCE;
        if self.publish_after_signing < least {
            problems.add(
                "publish_after_signing",
                format!(
                    "must be at least {}s: the 12h that a token may live, tokens.reattach_grace, and 5m; its key must \
                     be known for as long as it may be shown",
                    least.as_secs()
                ),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems_of(grace: u64, after_signing: u64) -> Vec<String> {
        let mut config = Config::default();
        config.tokens.reattach_grace = Duration::from_secs(grace);
        config.keys.publish_after_signing = Duration::from_secs(after_signing);
        let mut problems = Problems::default();
        config.validate(&mut problems);
        let found = problems.found().iter();
        let of_schedule = found.filter(|problem| problem.key == "keys.publish_after_signing");
        of_schedule.map(|problem| problem.what.clone()).collect()
    }

    #[test]
    fn keys_outlive_every_use_of_their_tokens() {
        let hour = 3600;
        assert!(problems_of(12 * hour, 24 * hour + 300).is_empty());
        let late = problems_of(12 * hour, 24 * hour + 299);
        assert!(late.len() == 1 && late[0].contains("86700s"), "{late:?}");
        assert!(problems_of(0, 12 * hour + 300).is_empty());
        assert_eq!(problems_of(0, 12 * hour).len(), 1);
        assert_eq!(problems_of(hour, 12 * hour + 300).len(), 1);
    }
}
