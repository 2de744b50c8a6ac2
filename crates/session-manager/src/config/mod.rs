//! Configuration of session-manager. The defaults are for one machine;
//! docs/config.md describes every key.

use serde::{Deserialize, Serialize};
use service_kit::admin::AdminConfig;
use service_kit::caller::ServiceAccountConfig;
use service_kit::caller::oidc::IssuerConfig;
use service_kit::config::{Problems, Validate, duration};
use service_kit::limits::LimitsConfig;
use service_kit::listen::ListenerConfig;
use service_kit::polled_document::DocumentConfig;
use service_kit::telemetry::TelemetryConfig;
use session_core::{Limits, Org};
use session_proto::definition::name;
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

pub(crate) mod callers;
mod store;

pub use crate::providers::configured::{ComputeConfig, ProcessSettings, StaticConfig};
pub use callers::InternalConfig;
pub use session_proto::definition::{CatalogDefinition, ClusterDefinition, Wrong};
pub use store::{StoreConfig, StoreTls};

/// The whole configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The ports.
    pub listen: Listen,
    /// Health and metrics.
    pub admin: AdminConfig,
    /// State store.
    pub store: StoreConfig,
    /// Verification of session tokens.
    pub tokens: TokensConfig,
    /// Compute providers.
    pub compute: ComputeConfig,
    /// Callers of the internal port.
    pub internal: InternalConfig,
    /// Service accounts that may call the APIs.
    pub service_accounts: Vec<ServiceAccountConfig>,
    /// File with more service accounts, read again when it changes.
    pub service_accounts_file: Option<PathBuf>,
    /// Identity providers whose tokens are accepted.
    pub oidc: Vec<IssuerConfig>,
    /// Principals with the role of a platform admin.
    pub platform_admins: BTreeSet<String>,
    /// Limits on callers.
    pub limits: LimitsConfig,
    /// Organizations with other limits than the defaults.
    pub orgs: Vec<OrgConfig>,
    /// Clusters declared here are read-only in the API.
    pub clusters: Vec<ClusterDefinition>,
    /// Catalogs declared here are read-only in the API.
    pub catalogs: Vec<CatalogDefinition>,
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
    /// For people and programs: sessions, clusters, catalogs, organizations.
    pub public: ListenerConfig,
    /// For spark-proxy and token-issuer only.
    pub internal: ListenerConfig,
}

/// Verification of session tokens.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokensConfig {
    /// Required `iss`.
    pub issuer: String,
    /// Required `aud`.
    pub audience: String,
    /// Key set of token-issuer.
    pub keys: DocumentConfig,
}

/// An organization with other limits than the defaults.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrgConfig {
    /// Its name.
    pub name: String,
    /// Its limits; each has a default.
    #[serde(default)]
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: Listen::default(),
            admin: AdminConfig { address: local(9081) },
            store: StoreConfig::default(),
            tokens: TokensConfig::default(),
            compute: ComputeConfig::default(),
            internal: InternalConfig::default(),
            service_accounts: Vec::new(),
            service_accounts_file: None,
            oidc: Vec::new(),
            platform_admins: BTreeSet::new(),
            limits: LimitsConfig::default(),
            orgs: Vec::new(),
            clusters: Vec::new(),
            catalogs: Vec::new(),
            telemetry: TelemetryConfig::default(),
            drain: Duration::from_secs(10),
        }
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            public: ListenerConfig::plaintext(local(8081)),
            internal: ListenerConfig::plaintext(local(8082)),
        }
    }
}

impl Default for TokensConfig {
    fn default() -> Self {
        Self {
            issuer: "berth".to_owned(),
            audience: "berth-spark-connect".to_owned(),
            keys: DocumentConfig::new("http://127.0.0.1:8084/.well-known/jwks.json"),
        }
    }
}

impl Validate for Config {
    fn validate(&self, problems: &mut Problems) {
        problems.check("listen.public", &self.listen.public);
        problems.check("listen.internal", &self.listen.internal);
        problems.check("admin", &self.admin);
        problems.check("store", &self.store);
        problems.within("tokens", |problems| {
            problems.require(!self.tokens.issuer.is_empty(), "issuer", "must not be empty");
            problems.require(!self.tokens.audience.is_empty(), "audience", "must not be empty");
            problems.check("keys", &self.tokens.keys);
        });
        problems.check("limits", &self.limits);
        self.validate_callers(problems);
        self.validate_compute(problems);
        self.validate_definitions(problems);
        problems.check("telemetry", &self.telemetry);
    }
}

impl Config {
    fn validate_compute(&self, problems: &mut Problems) {
        problems.check("compute", &self.compute);
        if self
            .compute
            .process
            .as_ref()
            .is_none_or(|process| process.trust_all_users)
        {
            return;
        }
        if let Err(problem) = self.check_trust(&self.service_accounts) {
            problems.add("compute.process", problem);
        }
        problems.require(
            self.listen.public.address.ip().is_loopback(),
            "compute.process",
            "runs every child as one user, and listen.public is not a loopback address; \
             set compute.process.trust_all_users = true if all who can reach it may see each other's data",
        );
    }

    fn validate_definitions(&self, problems: &mut Problems) {
        let mut report = |key: &str, unique: bool, outcome: Result<(), Vec<Wrong>>| {
            problems.require(unique, &format!("{key}.name"), "is there twice");
            for (field, what) in outcome.err().into_iter().flatten() {
                let key = if field.is_empty() {
                    key.to_owned()
                } else {
                    format!("{key}.{field}")
                };
                problems.add(&key, what);
            }
        };
        let mut names = BTreeSet::new();
        for (index, org) in self.orgs.iter().enumerate() {
            report(
                &format!("orgs[{index}]"),
                names.insert(&org.name),
                org.define().map(|_| ()),
            );
        }
        let mut names = BTreeSet::new();
        for (index, cluster) in self.clusters.iter().enumerate() {
            let outcome = cluster.define().and_then(|cluster| {
                self.compute
                    .check_cluster(&cluster)
                    .map_err(|invalid| vec![("", invalid.to_string())])
            });
            report(
                &format!("clusters[{index}]"),
                names.insert(&cluster.name),
                outcome,
            );
        }
        let mut names = BTreeSet::new();
        for (index, catalog) in self.catalogs.iter().enumerate() {
            let outcome = catalog.define().and_then(|catalog| {
                compute::validate_catalog(&catalog).map_err(|invalid| vec![("", invalid.to_string())])
            });
            report(
                &format!("catalogs[{index}]"),
                names.insert((&catalog.org, &catalog.name)),
                outcome,
            );
        }
    }
}

impl OrgConfig {
    /// The definition of the organization.
    ///
    /// # Errors
    /// Every invalid field.
    pub fn define(&self) -> Result<Org, Vec<Wrong>> {
        let mut wrong = Vec::new();
        let Some(id) = name("name", &self.name, &mut wrong) else {
            return Err(wrong);
        };
        self.limits
            .check()
            .map_err(|problem| vec![(problem.field, problem.to_string())])?;
        Ok(Org {
            id,
            limits: self.limits.clone(),
            managed_by_config: true,
            version: 0,
        })
    }
}
