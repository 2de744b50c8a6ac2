//! What clusters and catalogs may set on an engine.
//!
//! An allow-list of prefixes, because engines have settings that load code,
//! move files or open the server. Every wrong key is named at once. Secrets
//! are references to the manager's environment, never values.

use crate::ComputeSpec;
use crate::address::split_host_port;
use crate::words;
use session_core::catalog::PropertyValue;
use session_core::machine::Cause;
use session_core::route::Secret;
use session_core::{Catalog, Cluster, Engine, OrgId, Provider};
use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

/// Environment variables of the manager that properties may refer to begin so.
pub const SECRET_PREFIX: &str = "BERTH_SECRET_";

/// What is wrong with one field or property.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The field or property.
    pub key: String,
    /// What is wrong, in words.
    pub problem: String,
}

/// Everything that is wrong with a definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// At least one.
    pub problems: Vec<Problem>,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            let between = if i == 0 { "" } else { "; " };
            write!(f, "{between}{}: {}", problem.key, problem.problem)?;
        }
        Ok(())
    }
}

impl std::error::Error for Invalid {}

#[derive(Debug, Default)]
struct Problems(Vec<Problem>);

impl Problems {
    fn add(&mut self, key: impl Into<String>, problem: impl Into<String>) {
        self.0.push(Problem {
            key: key.into(),
            problem: problem.into(),
        });
    }

    fn done(self) -> Result<(), Invalid> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Invalid { problems: self.0 })
        }
    }
}

/// Environment of a Sail child that a cluster may set.
const SAIL_ALLOWED: &[&str] = &[
    "SAIL_EXECUTION__",
    "SAIL_OPTIMIZER__",
    "SAIL_PARQUET__",
    "SAIL_PYTHON__",
    "SAIL_RUNTIME__",
    "SAIL_SPARK__",
    "SAIL_TELEMETRY__",
    "AWS_",
    "AZURE_",
    "GOOGLE_",
    "RUST_LOG",
];
const SAIL_RESERVED: &[&str] = &[
    "SAIL_SPARK__SESSION_TIMEOUT_SECS",
    "SAIL_RUNTIME__TEMPORARY_FILES",
    "SAIL_CATALOG__",
];

/// Spark properties that a cluster may set.
const SPARK_ALLOWED: &[&str] = &[
    "spark.sql.",
    "spark.hadoop.",
    "spark.default.parallelism",
    "spark.driver.maxResultSize",
    "spark.executor.heartbeatInterval",
    "spark.files.maxPartitionBytes",
    "spark.io.",
    "spark.kryo",
    "spark.locality.",
    "spark.master",
    "spark.memory.",
    "spark.network.",
    "spark.python.worker.",
    "spark.rdd.",
    "spark.reducer.",
    "spark.rpc.",
    "spark.scheduler.",
    "spark.serializer",
    "spark.shuffle.",
    "spark.speculation",
    "spark.storage.",
    "spark.task.",
];
/// Set by Berth itself, able to load code, or able to open the server up.
const SPARK_RESERVED: &[&str] = &[
    "spark.app.",
    "spark.archives",
    "spark.connect.",
    "spark.driver.bindAddress",
    "spark.driver.extra",
    "spark.driver.host",
    "spark.driver.defaultJavaOptions",
    "spark.driver.memory",
    "spark.executor.extra",
    "spark.executor.defaultJavaOptions",
    "spark.files",
    "spark.jars",
    "spark.local.dir",
    "spark.plugins",
    "spark.pyspark.",
    "spark.python.daemon.module",
    "spark.python.worker.module",
    "spark.sql.defaultCatalog",
    "spark.submit.",
    "spark.ui.",
];

/// Checks everything a cluster says about its provider.
///
/// # Errors
/// [`Invalid`] names every wrong field and property.
pub fn validate_cluster(cluster: &Cluster) -> Result<(), Invalid> {
    let mut problems = Problems::default();
    match &cluster.provider {
        Provider::Static {
            endpoints,
            allow_shared_untrusted,
        } => {
            if endpoints.is_empty() {
                problems.add("endpoints", "must name at least one server");
            }
            if cluster.engine == Engine::Spark && *allow_shared_untrusted {
                problems.add("allow_shared_untrusted", "is only for the engine sail");
            }
            if cluster.keeps_orgs_apart() && cluster.granted_orgs.len() != 1 {
                problems.add(
                    "granted_orgs",
                    "must name exactly one organization: Sail finds a Spark session by its id alone, so \
                     organizations that share a server depend on nobody learning an id; name one, or set \
                     allow_shared_untrusted = true to accept that",
                );
            }
            let mut seen = BTreeSet::new();
            for (i, endpoint) in endpoints.iter().enumerate() {
                let field = |name: &str| format!("endpoints[{i}].{name}");
                if let Err(e) = split_host_port(&endpoint.address) {
                    problems.add(field("address"), e.to_string());
                }
                if !seen.insert(endpoint.address.to_ascii_lowercase()) {
                    problems.add(field("address"), format!("{} is named twice", endpoint.address));
                }
                if let Some(name) = &endpoint.tls_server_name
                    && rustls_pki_types::ServerName::try_from(name.as_str()).is_err()
                {
                    problems.add(field("tls_server_name"), "is not a host name or address");
                }
                if let Some(variable) = &endpoint.token_env
                    && !is_secret_variable(variable)
                {
                    problems.add(
                        field("token_env"),
                        format!("must be an environment variable whose name begins with {SECRET_PREFIX}"),
                    );
                }
            }
        }
        Provider::Process {
            program,
            java_home,
            properties,
            python,
            driver_memory,
        } => {
            must_be_absolute(&mut problems, "program", program);
            let for_spark = [
                ("java_home", java_home),
                ("python", python),
                ("driver_memory", driver_memory),
            ];
            for (field, value) in for_spark {
                match (cluster.engine, value) {
                    (_, None) => {}
                    (Engine::Sail, Some(_)) => problems.add(field, "is only for the engine spark"),
                    (Engine::Spark, Some(text)) if field == "driver_memory" => {
                        if !is_jvm_size(text) {
                            problems.add(field, "must be a number and m or g, e.g. 2g");
                        }
                    }
                    (Engine::Spark, Some(text)) => must_be_absolute(&mut problems, field, text),
                }
            }
            for (key, value) in properties {
                if let Some(problem) = cluster_key_problem(cluster.engine, key) {
                    problems.add(key, problem);
                }
                check_text(&mut problems, key, value, is_secret_variable);
                if key == "spark.master" && !value.starts_with("local") {
                    problems.add(key, "must be local[…]: the process provider runs one machine");
                }
            }
        }
    }
    problems.done()
}

/// Checks everything a catalog says to its engine.
///
/// # Errors
/// [`Invalid`] names every wrong field and property.
pub fn validate_catalog(catalog: &Catalog) -> Result<(), Invalid> {
    let mut problems = Problems::default();
    if let Some(database) = &catalog.default_database
        && !database.split('.').all(is_plain_name)
    {
        problems.add(
            "default_database",
            "must be names of letters, digits, _ and -, joined by dots",
        );
    }
    let implementation = match catalog.engine {
        Engine::Sail => "type",
        Engine::Spark => "",
    };
    match catalog.properties.get(implementation) {
        Some(PropertyValue::Text(text)) if !text.is_empty() => {}
        Some(PropertyValue::Text(_) | PropertyValue::List(_)) | None => problems.add(
            shown_key(implementation),
            match catalog.engine {
                Engine::Sail => "must say the kind of catalog, e.g. memory or iceberg-rest",
                Engine::Spark => {
                    "must name the class of the catalog, e.g. org.apache.iceberg.spark.SparkCatalog"
                }
            },
        ),
    }
    for (key, value) in &catalog.properties {
        if let Some(problem) = catalog_key_problem(catalog.engine, key) {
            problems.add(shown_key(key), problem);
        }
        let (texts, is_list) = match value {
            PropertyValue::Text(text) => (std::slice::from_ref(text), false),
            PropertyValue::List(list) => (list.as_slice(), true),
        };
        for text in texts {
            if is_list && text.contains("${") {
                problems.add(
                    shown_key(key),
                    "is a list, and a list cannot refer to secrets: give the secret to a property that is one text",
                );
            } else {
                check_text(&mut problems, shown_key(key), text, |name| {
                    is_secret_of(&catalog.org, name)
                });
            }
            if catalog.engine == Engine::Sail && text.contains(['"', '\\']) {
                problems.add(shown_key(key), "must not contain quotation marks or backslashes");
            }
        }
    }
    problems.done()
}

/// Checks whether sessions on `cluster` can have `catalog` as their default.
///
/// # Errors
/// [`Invalid`] with the reasons.
pub fn validate_use(cluster: &Cluster, catalog: &Catalog) -> Result<(), Invalid> {
    let mut problems = Problems::default();
    if cluster.engine != catalog.engine {
        problems.add(
            "catalog",
            format!(
                "{} is written for {}, cluster {} runs {}",
                catalog.name, catalog.engine, cluster.name, cluster.engine
            ),
        );
    }
    if cluster.engine == Engine::Spark
        && cluster.provider.is_dedicated()
        && catalog.default_database.is_some()
        && !takes_default_namespace(catalog)
    {
        problems.add(
            "default_database",
            format!(
                "Apache Spark cannot start in a database of catalog {}: only Iceberg catalogs have a setting for it",
                catalog.name
            ),
        );
    }
    problems.done()
}

/// Why this spec can never run, if so.
pub(crate) fn unfit(spec: &ComputeSpec) -> Option<Cause> {
    let told = |what: &str, name: &str, e: Invalid| {
        words::cause_said(&format!("{what} {name} cannot be used"), &e.to_string())
    };
    let cluster = validate_cluster(&spec.cluster).map_err(|e| told("cluster", spec.cluster.name.as_str(), e));
    let catalog = spec.catalog.as_ref().map_or(Ok(()), |catalog| {
        validate_catalog(catalog)
            .and_then(|()| validate_use(&spec.cluster, catalog))
            .map_err(|e| told("catalog", catalog.name.as_str(), e))
    });
    cluster.and(catalog).err()
}

/// Does the class of this Spark catalog know the property `default-namespace`?
pub(crate) fn takes_default_namespace(catalog: &Catalog) -> bool {
    catalog.properties.contains_key("default-namespace")
        || matches!(catalog.properties.get(""),
            Some(PropertyValue::Text(class)) if class == "org.apache.iceberg.spark.SparkCatalog")
}

/// Puts the secret in place of a reference to it.
///
/// # Errors
/// The name of the environment variable that is not set.
pub(crate) fn resolve(text: &str, secrets: &mut Vec<Secret>) -> Result<String, String> {
    let Some(variable) = secret_reference(text) else {
        return Ok(text.to_owned());
    };
    let value = secret_from_env(variable)?;
    let plain = value.expose().to_owned();
    secrets.push(value);
    Ok(plain)
}

/// Reads a secret from the manager's environment.
///
/// # Errors
/// Says which variable is not set.
pub(crate) fn secret_from_env(variable: &str) -> Result<Secret, String> {
    match std::env::var(variable) {
        Ok(value) if !value.is_empty() => Ok(Secret::new(value)),
        Ok(_) | Err(_) => Err(format!(
            "the secret {variable} is not set in the manager's environment"
        )),
    }
}

/// `${BERTH_SECRET_…}` as the whole value.
fn secret_reference(text: &str) -> Option<&str> {
    text.strip_prefix("${")?.strip_suffix('}')
}

fn is_secret_variable(variable: &str) -> bool {
    variable.strip_prefix(SECRET_PREFIX).is_some_and(|rest| {
        !rest.is_empty()
            && rest
                .bytes()
                .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
    })
}

/// Catalogs are written by organizations, so each has names of its own:
/// `BERTH_SECRET_<ORG>__<NAME>`, where NAME has no double underscore.
fn is_secret_of(org: &OrgId, variable: &str) -> bool {
    let own = format!(
        "{SECRET_PREFIX}{}__",
        org.as_str().to_ascii_uppercase().replace('-', "_")
    );
    is_secret_variable(variable)
        && variable
            .strip_prefix(&own)
            .is_some_and(|name| !name.is_empty() && !name.contains("__"))
}

fn cluster_key_problem(engine: Engine, key: &str) -> Option<String> {
    let (reserved, allowed) = match engine {
        Engine::Sail => (SAIL_RESERVED, SAIL_ALLOWED),
        Engine::Spark => (SPARK_RESERVED, SPARK_ALLOWED),
    };
    let begins = |list: &[&str]| list.iter().any(|prefix| key.starts_with(prefix));
    // A single allowed name below a reserved prefix.
    let excepted = engine == Engine::Spark && key == "spark.files.maxPartitionBytes";
    if !key
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    {
        Some("has characters that no property name has".to_owned())
    } else if begins(reserved) && !excepted || key.ends_with("JavaOptions") {
        Some("is reserved: Berth sets it, or it could load code or open the server".to_owned())
    } else if begins(allowed) {
        None
    } else {
        Some(format!("is not on the allow-list ({})", allowed.join(", ")))
    }
}

fn catalog_key_problem(engine: Engine, key: &str) -> Option<String> {
    match engine {
        Engine::Sail if key == "name" => Some("is reserved: it is the catalog's own name".to_owned()),
        Engine::Sail if key.ends_with("_file") => {
            Some("is reserved: it would read files of Berth's machine".to_owned())
        }
        Engine::Sail => (key.is_empty()
            || !key
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'))
        .then(|| "must be a field of one entry of SAIL_CATALOG__LIST, e.g. uri".to_owned()),
        Engine::Spark => (!key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
            || key.starts_with('.')
            || key.ends_with('.'))
        .then(|| "must be what follows spark.sql.catalog.<name>., e.g. uri".to_owned()),
    }
}

fn check_text(problems: &mut Problems, key: &str, text: &str, may_refer: impl Fn(&str) -> bool) {
    if text.chars().any(char::is_control) {
        problems.add(key, "must not contain control characters");
    }
    match secret_reference(text) {
        Some(variable) if !may_refer(variable) => problems.add(
            key,
            format!(
                "may refer to {SECRET_PREFIX}<NAME> on a cluster and to {SECRET_PREFIX}<ORG>__<NAME> on a catalog, not to {variable}"
            ),
        ),
        Some(_) => {}
        None if text.contains("${") => {
            problems.add(key, "may be one reference to a secret as a whole, not contain one");
        }
        None if (names_a_secret(key) && !is_plain_scalar(text))
            || text.to_ascii_lowercase().contains("password=") =>
        {
            problems.add(key, format!("is a secret: write ${{{SECRET_PREFIX}…}} and set that variable"));
        }
        None => {}
    }
}

fn names_a_secret(key: &str) -> bool {
    let key: String = key
        .to_ascii_lowercase()
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .collect();
    ["password", "secret", "token", "credential", "accesskey", "apikey", "privatekey", "authorization"]
        .iter()
        .any(|word| key.contains(word))
        // Where a token comes from is no secret.
        && !["uri", "url", "provider", "endpoint", "enabled"].iter().any(|end| key.ends_with(end))
}

fn is_plain_scalar(text: &str) -> bool {
    matches!(text, "true" | "false") || (text.len() <= 9 && text.bytes().all(|b| b.is_ascii_digit()))
}

fn is_plain_name(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

fn is_jvm_size(text: &str) -> bool {
    let digits = text.trim_end_matches(['m', 'g', 'M', 'G']);
    digits.len() + 1 == text.len() && digits.parse::<u32>().is_ok_and(|n| n > 0)
}

fn must_be_absolute(problems: &mut Problems, field: &str, text: &str) {
    if !Path::new(text).is_absolute() || text.chars().any(char::is_control) {
        problems.add(field, "must be an absolute path");
    }
}

fn shown_key(key: &str) -> &str {
    if key.is_empty() { "\"\"" } else { key }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{catalog, process_cluster, static_cluster};

    fn keys(result: Result<(), Invalid>) -> Vec<String> {
        result
            .err()
            .map(|e| e.problems.into_iter().map(|p| p.key).collect())
            .unwrap_or_default()
    }

    fn text(value: &str) -> PropertyValue {
        PropertyValue::Text(value.to_owned())
    }

    #[test]
    fn reserved_and_unknown_spark_properties_are_named_at_once() {
        let good = [
            ("spark.sql.shuffle.partitions", "4"),
            ("spark.hadoop.fs.s3a.endpoint", "http://minio:9000"),
            ("spark.hadoop.fs.s3a.secret.key", "${BERTH_SECRET_S3}"),
            ("spark.files.maxPartitionBytes", "1m"),
            ("spark.master", "local[2]"),
        ];
        let mut cluster = process_cluster(Engine::Spark, "/opt/spark", &good);
        assert_eq!(validate_cluster(&cluster), Ok(()));
        let bad = [
            ("spark.connect.grpc.binding.address", "0.0.0.0"),
            ("spark.driver.extraJavaOptions", "-Dx"),
            ("spark.executor.extraJavaOptions", "-Dx"),
            ("spark.hadoop.fs.s3a.access.key", "AKIA"),
            ("spark.hadoop.x.password", "${HOME}"),
            ("spark.jars", "x.jar"),
            ("spark.jars.packages", "a:b:1"),
            ("spark.master", "yarn"),
            ("spark.plugins", "X"),
            ("spark.sql.defaultCatalog", "x"),
            ("spark.sql.warehouse.dir", "a\nspark.jars=x"),
            ("spark.yarn.queue", "x"),
            ("not.spark", "x"),
        ];
        cluster = process_cluster(Engine::Spark, "/opt/spark", &bad);
        let mut expected: Vec<&str> = bad.iter().map(|(key, _)| *key).collect();
        expected.sort_unstable();
        assert_eq!(keys(validate_cluster(&cluster)), expected);
    }

    #[test]
    fn reserved_and_unknown_sail_variables_are_named_at_once() {
        let good = [
            ("SAIL_EXECUTION__BATCH_SIZE", "1024"),
            ("AWS_REGION", "eu-west-1"),
            ("RUST_LOG", "info"),
        ];
        assert_eq!(
            validate_cluster(&process_cluster(Engine::Sail, "/opt/sail", &good)),
            Ok(())
        );
        let bad = [
            ("AWS_SECRET_ACCESS_KEY", "x"),
            ("LD_PRELOAD", "/x.so"),
            ("SAIL_CATALOG__LIST", "[]"),
            ("SAIL_MODE", "cluster"),
            ("SAIL_SPARK__SESSION_TIMEOUT_SECS", "1"),
        ];
        let named = keys(validate_cluster(&process_cluster(
            Engine::Sail,
            "/opt/sail",
            &bad,
        )));
        assert_eq!(named, bad.map(|(key, _)| key));
    }

    #[test]
    fn fields_of_a_process_cluster_are_checked() {
        let mut cluster = process_cluster(Engine::Sail, "sail", &[]);
        if let Provider::Process {
            python,
            driver_memory,
            ..
        } = &mut cluster.provider
        {
            *python = Some("/usr/bin/python3".into());
            *driver_memory = Some("1g".into());
        }
        assert_eq!(
            keys(validate_cluster(&cluster)),
            ["program", "python", "driver_memory"]
        );
        cluster.engine = Engine::Spark;
        if let Provider::Process { driver_memory, .. } = &mut cluster.provider {
            *driver_memory = Some("1g -Dx=y".into());
        }
        assert_eq!(keys(validate_cluster(&cluster)), ["program", "driver_memory"]);
    }

    #[test]
    fn a_sail_server_is_for_one_organization_unless_it_is_said_otherwise() {
        let with = |engine, orgs: &[&str], allow: bool| {
            let mut cluster = static_cluster(engine, &["a:1"]);
            cluster.granted_orgs = orgs.iter().map(|org| org.parse().unwrap()).collect();
            if let Provider::Static {
                allow_shared_untrusted,
                ..
            } = &mut cluster.provider
            {
                *allow_shared_untrusted = allow;
            }
            validate_cluster(&cluster)
        };
        assert_eq!(with(Engine::Sail, &["acme"], false), Ok(()));
        assert_eq!(keys(with(Engine::Sail, &[], false)), ["granted_orgs"]);
        assert_eq!(keys(with(Engine::Sail, &["a", "b"], false)), ["granted_orgs"]);
        assert_eq!(with(Engine::Sail, &[], true), Ok(()));
        assert_eq!(with(Engine::Spark, &[], false), Ok(()));
        assert_eq!(keys(with(Engine::Spark, &[], true)), ["allow_shared_untrusted"]);
    }

    #[test]
    fn endpoints_are_checked() {
        let mut cluster = static_cluster(Engine::Spark, &["a:1", "A:1", "nonsense"]);
        if let Provider::Static { endpoints, .. } = &mut cluster.provider {
            endpoints[0].token_env = Some("REDIS_URL".into());
        }
        assert_eq!(
            keys(validate_cluster(&cluster)),
            [
                "endpoints[0].token_env",
                "endpoints[1].address",
                "endpoints[2].address"
            ]
        );
        assert_eq!(
            keys(validate_cluster(&static_cluster(Engine::Sail, &[]))),
            ["endpoints"]
        );
    }

    #[test]
    fn catalogs_name_their_kind_and_refer_to_their_own_secrets() {
        let class = "org.apache.iceberg.spark.SparkCatalog";
        let good = [
            ("", text(class)),
            ("uri", text("http://c")),
            ("token", text("${BERTH_SECRET_ACME__LAKE}")),
        ];
        assert_eq!(validate_catalog(&catalog(Engine::Spark, "lake", &good)), Ok(()));
        let foreign = [
            ("", text(class)),
            ("token", text("${BERTH_SECRET_OTHER__LAKE}")),
            ("password", text("x")),
        ];
        assert_eq!(
            keys(validate_catalog(&catalog(Engine::Spark, "lake", &foreign))),
            ["password", "token"]
        );
        let sail = [
            ("name", text("x")),
            ("bearer_access_token_file", text("/etc/shadow")),
            ("warehouse", text("a\"}, {type=\"memory")),
        ];
        assert_eq!(
            keys(validate_catalog(&catalog(Engine::Sail, "lake", &sail))),
            [
                "type",
                "bearer_access_token_file",
                "bearer_access_token_file",
                "name",
                "warehouse"
            ]
        );
        let nested = [
            ("type", text("memory")),
            ("initial_database", PropertyValue::List(vec!["a".into()])),
        ];
        assert_eq!(validate_catalog(&catalog(Engine::Sail, "lake", &nested)), Ok(()));
        for reference in ["${BERTH_SECRET_ACME__LAKE}", "x${BERTH_SECRET_ACME__LAKE}"] {
            let list = PropertyValue::List(vec!["a".into(), reference.into()]);
            let hidden = [("type", text("memory")), ("scopes", list)];
            let refused = validate_catalog(&catalog(Engine::Sail, "lake", &hidden)).unwrap_err();
            assert_eq!(refused.problems.len(), 1, "{refused}");
            assert!(
                refused
                    .to_string()
                    .starts_with("scopes: is a list, and a list cannot refer to secrets"),
                "{refused}"
            );
        }
    }

    #[test]
    fn an_org_cannot_reach_the_secrets_of_an_org_with_a_longer_name() {
        let org = |name: &str| name.parse::<OrgId>().unwrap();
        assert!(is_secret_of(&org("a"), "BERTH_SECRET_A__X"));
        assert!(is_secret_of(&org("a-b"), "BERTH_SECRET_A_B__X"));
        assert!(!is_secret_of(&org("a"), "BERTH_SECRET_A_B__X"));
        assert!(!is_secret_of(&org("a"), "BERTH_SECRET_A__B__X"));
    }

    #[test]
    fn a_catalog_must_fit_the_cluster() {
        let spark = process_cluster(Engine::Spark, "/opt/spark", &[]);
        let mut jdbc = catalog(Engine::Spark, "db", &[("", text("x.JdbcCatalog"))]);
        assert_eq!(validate_use(&spark, &jdbc), Ok(()));
        jdbc.default_database = Some("sales".into());
        assert_eq!(keys(validate_use(&spark, &jdbc)), ["default_database"]);
        assert_eq!(
            validate_use(&static_cluster(Engine::Spark, &["a:1"]), &jdbc),
            Ok(())
        );
        let sail = process_cluster(Engine::Sail, "/opt/sail", &[]);
        assert_eq!(keys(validate_use(&sail, &jdbc)), ["catalog"]);
    }
}
