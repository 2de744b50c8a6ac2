//! Configuration of the state store.

use serde::{Deserialize, Serialize};
use service_kit::config::{Problems, Secret, Validate, duration};
use session_store::redis::{ConnectError, Credentials, Options, TlsFiles};
use std::path::PathBuf;
use std::time::Duration;

/// State store.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreConfig {
    /// `redis://`, `redis-sentinel://`, `redis-cluster://`, the same with
    /// `rediss`, or `memory://` for one process without persistence.
    pub url: Secret,
    /// The ACL user; takes precedence over the URL's.
    pub username: Option<String>,
    /// Its password; takes precedence over the URL's.
    pub password: Option<Secret>,
    /// The ACL user of the sentinels.
    pub sentinel_username: Option<String>,
    /// Its password.
    pub sentinel_password: Option<Secret>,
    /// Certificates for `rediss`.
    pub tls: StoreTls,
    /// Prefix of every key, so that several installations can share a Redis.
    pub key_prefix: String,
    /// Time limit of a call to Redis.
    #[serde(with = "duration")]
    pub call_timeout: Duration,
    /// Maximum calls in flight; further calls fail at once.
    pub max_in_flight: usize,
    /// Start even if Redis may evict keys, which loses sessions.
    pub allow_eviction: bool,
    /// Records that each of 16 partitions of the audit trail keeps, at least.
    pub audit_length: usize,
}

/// Certificates for Redis, as PEM files.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreTls {
    /// Trusted authorities; the system's if not set.
    pub ca: Option<PathBuf>,
    /// The client certificate with its chain.
    pub certificate: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            url: Secret::new("redis://127.0.0.1:6379"),
            username: None,
            password: None,
            sentinel_username: None,
            sentinel_password: None,
            tls: StoreTls::default(),
            key_prefix: "berth:".to_owned(),
            call_timeout: Duration::from_secs(2),
            max_in_flight: 4096,
            allow_eviction: false,
            audit_length: session_store::audit_trail::MAX_AUDIT_RECORDS,
        }
    }
}

impl StoreConfig {
    /// The options of the Redis store.
    pub fn options(&self) -> Options {
        let credentials = |username: &Option<String>, password: &Option<Secret>| Credentials {
            username: username.clone(),
            password: password.as_ref().map(|password| password.expose().to_owned()),
        };
        Options {
            prefix: self.key_prefix.clone(),
            call_timeout: self.call_timeout,
            allow_eviction: self.allow_eviction,
            audit_length: self.audit_length,
            max_in_flight: self.max_in_flight,
            credentials: credentials(&self.username, &self.password),
            sentinel_credentials: credentials(&self.sentinel_username, &self.sentinel_password),
            tls: TlsFiles {
                ca: self.tls.ca.clone(),
                certificate: self.tls.certificate.clone(),
                key: self.tls.key.clone(),
            },
        }
    }
}

impl Validate for StoreConfig {
    fn validate(&self, problems: &mut Problems) {
        match session_store::redis::check(self.url.expose(), &self.options()) {
            Ok(()) => {}
            Err(ConnectError::Prefix) => problems.add("key_prefix", ConnectError::Prefix.to_string()),
            Err(ConnectError::Tls(why)) => problems.add("tls", why),
            // The URL is not quoted: it may contain a password.
            Err(ConnectError::Url(_) | ConnectError::Evicts { .. } | ConnectError::Unavailable(_)) => {
                problems.add(
                    "url",
                    "must be redis://host:port, redis-sentinel://host:port,host:port/name, \
                 redis-cluster://host:port,host:port, one of these with rediss, or memory://",
                )
            }
        }
        problems.require(!self.call_timeout.is_zero(), "call_timeout", "must not be zero");
        problems.require(
            (64..=1_000_000).contains(&self.max_in_flight),
            "max_in_flight",
            "must be between 64 and 1000000",
        );
        problems.require(
            (1000..=10_000_000).contains(&self.audit_length),
            "audit_length",
            "must be between 1000 and 10000000",
        );
        for (user, password, key) in [
            (&self.username, &self.password, "password"),
            (
                &self.sentinel_username,
                &self.sentinel_password,
                "sentinel_password",
            ),
        ] {
            problems.require(
                user.is_none() || password.is_some(),
                key,
                "is missing: a user needs one",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(config: &StoreConfig) -> String {
        let mut problems = Problems::default();
        config.validate(&mut problems);
        format!("{problems:?}")
    }

    #[test]
    fn every_bad_key_is_named_and_no_secret_is() {
        let good = StoreConfig {
            url: Secret::new("rediss-sentinel://a:1,b:2/main"),
            username: Some("berth".to_owned()),
            password: Some(Secret::new("hunter2")),
            ..StoreConfig::default()
        };
        assert_eq!(problems(&good), format!("{:?}", Problems::default()));
        let bad = StoreConfig {
            url: Secret::new("redis://:hunter2@a,b"),
            sentinel_username: Some("x".to_owned()),
            max_in_flight: 1,
            ..StoreConfig::default()
        };
        let text = problems(&bad);
        for key in ["url", "sentinel_password", "max_in_flight"] {
            assert!(text.contains(key), "{key}: {text}");
        }
        assert!(!text.contains("hunter2"), "{text}");
        let files = StoreConfig {
            tls: StoreTls {
                ca: Some("/nowhere/ca.pem".into()),
                ..StoreTls::default()
            },
            ..StoreConfig::default()
        };
        assert!(problems(&files).contains("rediss"), "{}", problems(&files));
        assert!(!format!("{good:?}").contains("hunter2"));
        assert!(!serde_json::to_string(&good).unwrap().contains("hunter2"));
    }
}
