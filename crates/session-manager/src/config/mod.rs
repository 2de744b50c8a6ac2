//! Configuration of session-manager. Defaults suit one machine; docs/config.md
//! explains every key.

use compute::{AllowList, ProcessConfig};
use serde::{Deserialize, Serialize};
use service_kit::admin::AdminConfig;
use service_kit::caller::ServiceAccountConfig;
use service_kit::caller::oidc::IssuerConfig;
use service_kit::config::{Problems, Validate, duration};
use service_kit::limits::LimitsConfig;
use service_kit::listen::ListenerConfig;
use service_kit::polled_document::DocumentConfig;
use service_kit::telemetry::TelemetryConfig;
use session_core::catalog::PropertyValue;
use session_core::cluster::StaticEndpoint;
use session_core::policy::{PolicyRange, PolicyRequest, SessionPolicy};
use session_core::{Catalog, Cluster, ClusterStatus, Engine, IdlePolicy, Limits, Org, Provider, WakePolicy};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

pub(crate) mod callers;
mod store;

pub use callers::InternalConfig;
pub use store::{StoreConfig, StoreTls};

/// The whole configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The ports.
    pub listen: Listen,
    /// Health and metrics.
    pub admin: AdminConfig,
    /// Where state is kept.
    pub store: StoreConfig,
    /// What session tokens must say.
    pub tokens: TokensConfig,
    /// How compute is made.
    pub compute: ComputeConfig,
    /// Who may call the internal port.
    pub internal: InternalConfig,
    /// Who may call the APIs.
    pub service_accounts: Vec<ServiceAccountConfig>,
    /// More of them, in a file that is followed.
    pub service_accounts_file: Option<PathBuf>,
    /// Identity providers whose tokens are accepted.
    pub oidc: Vec<IssuerConfig>,
    /// Who of all these administers the platform.
    pub platform_admins: BTreeSet<String>,
    /// How much callers may ask for.
    pub limits: LimitsConfig,
    /// Organizations with other limits than the default.
    pub orgs: Vec<OrgConfig>,
    /// Clusters declared here are read-only in the API.
    pub clusters: Vec<ClusterConfig>,
    /// Catalogs declared here are read-only in the API.
    pub catalogs: Vec<CatalogConfig>,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
    /// How long open calls may take to finish when the service stops.
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

/// What session tokens must say, and the keys to check them with.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokensConfig {
    /// The exact `iss`.
    pub issuer: String,
    /// The exact `aud`.
    pub audience: String,
    /// The token-issuer's key set.
    pub keys: DocumentConfig,
}

/// How compute is made.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ComputeConfig {
    /// Servers that exist already.
    pub r#static: StaticConfig,
    /// Child processes; off unless set.
    pub process: Option<ProcessSettings>,
}

/// Where the endpoints of static clusters may be.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StaticConfig {
    /// Networks (`10.0.0.0/8`), addresses and host names (`*.spark.internal`).
    pub allow: Vec<String>,
    /// Allow loopback and link-local addresses and Berth's own ports: for development.
    pub dev: bool,
}

/// Child processes on this machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessSettings {
    /// Where sessions have their folders; belongs to this manager alone.
    pub state_dir: PathBuf,
    /// At most so many children at once.
    #[serde(default = "max_children")]
    pub max_children: usize,
    /// At most so many that are starting.
    #[serde(default = "max_starting")]
    pub max_starting: usize,
    /// Let several organizations, or a public port, use this machine, though
    /// all children run as one user.
    #[serde(default)]
    pub trust_all_users: bool,
}

fn max_children() -> usize {
    64
}

fn max_starting() -> usize {
    4
}

/// An organization with other limits than the default.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrgConfig {
    /// Its name.
    pub name: String,
    /// Its limits; each has a default.
    #[serde(default)]
    pub limits: Limits,
}

/// A cluster declared in configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterConfig {
    /// Its name.
    pub name: String,
    /// `sail` or `spark`.
    pub engine: Engine,
    /// For people.
    #[serde(default)]
    pub engine_version: Option<String>,
    /// For people: client releases that work with it.
    #[serde(default)]
    pub client_versions: Vec<String>,
    /// The organizations that may use it; every one if empty.
    #[serde(default)]
    pub granted_orgs: BTreeSet<String>,
    /// `release` or `keep`; the engine's default if not set.
    #[serde(default)]
    pub idle_policy: Option<IdlePolicy>,
    /// `restore` (the default) or `signal`: what Spark sessions that are older
    /// than the session's compute meet.
    #[serde(default)]
    pub wake: WakePolicy,
    /// Sessions' default idle timeout.
    #[serde(default, with = "duration::option")]
    pub idle_timeout: Option<Duration>,
    /// Sessions' default time from idle to closed.
    #[serde(default, with = "duration::option")]
    pub close_after_idle: Option<Duration>,
    /// Sessions' default lifetime.
    #[serde(default, with = "duration::option")]
    pub max_lifetime: Option<Duration>,
    /// How long compute may take to become ready.
    #[serde(default, with = "duration::option")]
    pub provisioning_deadline: Option<Duration>,
    /// Takes no new sessions.
    #[serde(default)]
    pub draining: bool,
    /// Existing servers.
    #[serde(default)]
    pub r#static: Option<StaticCluster>,
    /// Child processes.
    #[serde(default)]
    pub process: Option<ProcessCluster>,
}

/// Existing servers of a cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StaticCluster {
    /// Where they answer.
    pub endpoints: Vec<StaticEndpoint>,
    /// Several organizations may share these servers, which cannot keep them apart.
    #[serde(default)]
    pub allow_shared_untrusted: bool,
}

/// How a cluster's children are started.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessCluster {
    /// Sail: the program. Spark: the `SPARK_HOME` folder.
    pub program: String,
    /// The Java that runs Spark.
    #[serde(default)]
    pub java_home: Option<String>,
    /// More engine settings, from an allow-list.
    #[serde(default)]
    pub properties: BTreeMap<String, String>,
    /// The Python that runs user functions on Spark.
    #[serde(default)]
    pub python: Option<String>,
    /// Memory of a Spark driver, e.g. `1g`.
    #[serde(default)]
    pub driver_memory: Option<String>,
}

/// A catalog declared in configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogConfig {
    /// Its name, also in SQL.
    pub name: String,
    /// Whose it is.
    pub org: String,
    /// `sail` or `spark`.
    pub engine: Engine,
    /// Where a session starts in it.
    #[serde(default)]
    pub default_database: Option<String>,
    /// Engine properties.
    #[serde(default)]
    pub properties: BTreeMap<String, PropertyValue>,
    /// Only members of these teams may use it; everybody if empty.
    #[serde(default)]
    pub allowed_teams: BTreeSet<String>,
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
        if let Err(invalid) = self.allow_list([]) {
            problems.add("compute.static.allow", invalid);
        }
        let Some(process) = &self.compute.process else {
            return;
        };
        problems.require(
            process.max_children > 0,
            "compute.process.max_children",
            "must not be 0",
        );
        problems.require(
            process.max_starting > 0,
            "compute.process.max_starting",
            "must not be 0",
        );
        if process.trust_all_users {
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
                    .map_err(|what| vec![("", what)])
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

    /// Where static endpoints may be, given the ports that Berth itself has.
    pub(crate) fn allow_list(&self, own_ports: impl IntoIterator<Item = u16>) -> Result<AllowList, String> {
        let fixed = &self.compute.r#static;
        AllowList::new(fixed.allow.iter().map(String::as_str), own_ports, fixed.dev).map_err(|invalid| {
            invalid
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("; ")
        })
    }
}

impl ComputeConfig {
    /// Everything about a definition that can be known to be wrong.
    ///
    /// # Errors
    /// All of it, in words.
    pub fn check_cluster(&self, cluster: &Cluster) -> Result<(), String> {
        let mut problems = Vec::new();
        if let Err(bounds) = SessionPolicy::settle(cluster, &PolicyRequest::default()) {
            problems.push(bounds.to_string());
        }
        if let Err(invalid) = compute::validate_cluster(cluster) {
            problems.push(invalid.to_string());
        }
        if matches!(cluster.provider, Provider::Process { .. }) && self.process.is_none() {
            problems.push("the process provider is off: set compute.process.state_dir".to_owned());
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(problems.join("; "))
        }
    }

    /// The process provider's own configuration, if it is on.
    pub(crate) fn process_config(&self) -> Option<ProcessConfig> {
        self.process.as_ref().map(|settings| ProcessConfig {
            max_children: settings.max_children,
            max_starting: settings.max_starting,
            trust_all_users: settings.trust_all_users,
            ..ProcessConfig::new(&settings.state_dir)
        })
    }
}

/// A field that is wrong, and how.
pub type Wrong = (&'static str, String);

/// Reads a name; what is wrong with it goes to `wrong`. Names are texts in the
/// configuration so that one bad name does not hide what else is bad.
fn name<T: FromStr<Err: ToString>>(field: &'static str, text: &str, wrong: &mut Vec<Wrong>) -> Option<T> {
    text.parse()
        .map_err(|error: T::Err| wrong.push((field, error.to_string())))
        .ok()
}

impl ClusterConfig {
    /// The cluster as it is kept.
    ///
    /// # Errors
    /// Every field that is wrong by itself.
    pub fn define(&self) -> Result<Cluster, Vec<Wrong>> {
        let mut wrong = Vec::new();
        let own_name = name("name", &self.name, &mut wrong);
        let granted_orgs = self
            .granted_orgs
            .iter()
            .filter_map(|org| name("granted_orgs", org, &mut wrong))
            .collect();
        let provider = match (&self.r#static, &self.process) {
            (Some(fixed), None) => Some(Provider::Static {
                endpoints: fixed.endpoints.clone(),
                allow_shared_untrusted: fixed.allow_shared_untrusted,
            }),
            (None, Some(process)) => Some(Provider::Process {
                program: process.program.clone(),
                java_home: process.java_home.clone(),
                properties: process.properties.clone(),
                python: process.python.clone(),
                driver_memory: process.driver_memory.clone(),
            }),
            (None, None) | (Some(_), Some(_)) => {
                wrong.push((
                    "",
                    "needs exactly one of the sections static and process".to_owned(),
                ));
                None
            }
        };
        let (Some(own_name), Some(provider), true) = (own_name, provider, wrong.is_empty()) else {
            return Err(wrong);
        };
        Ok(Cluster {
            name: own_name,
            status: if self.draining {
                ClusterStatus::Draining
            } else {
                ClusterStatus::Active
            },
            engine: self.engine,
            engine_version: self.engine_version.clone(),
            client_versions: self.client_versions.clone(),
            granted_orgs,
            provider,
            idle_policy: self.idle_policy,
            wake: self.wake,
            policy: PolicyRange {
                idle_timeout: self.idle_timeout,
                close_after_idle: self.close_after_idle,
                max_lifetime: self.max_lifetime,
                provisioning_deadline: self.provisioning_deadline,
            },
            managed_by_config: true,
            version: 0,
        })
    }
}

impl CatalogConfig {
    /// The catalog as it is kept.
    ///
    /// # Errors
    /// Every field that is wrong by itself.
    pub fn define(&self) -> Result<Catalog, Vec<Wrong>> {
        let mut wrong = Vec::new();
        let (own_name, org) = (
            name("name", &self.name, &mut wrong),
            name("org", &self.org, &mut wrong),
        );
        let (Some(own_name), Some(org)) = (own_name, org) else {
            return Err(wrong);
        };
        Ok(Catalog {
            name: own_name,
            org,
            default_database: self.default_database.clone(),
            engine: self.engine,
            properties: self.properties.clone(),
            allowed_teams: self.allowed_teams.clone(),
            managed_by_config: true,
            version: 0,
        })
    }
}

impl OrgConfig {
    /// The organization as it is kept.
    ///
    /// # Errors
    /// Every field that is wrong by itself.
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
