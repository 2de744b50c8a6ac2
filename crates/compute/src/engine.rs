//! What an engine is started with: arguments, environment, files.
//!
//! Everything is data until a provider runs it, so that tests can read it. No
//! shell anywhere; nothing of the manager's own environment; secrets travel in
//! the environment or in a file of the session, never in arguments. The program
//! itself, and what else depends on the place, is the provider's matter.

use crate::ComputeSpec;
use crate::properties::{resolve, takes_default_namespace};
use session_core::catalog::PropertyValue;
use session_core::machine::Cause;
use session_core::policy::MAX_LIFETIME;
use session_core::route::Secret;
use session_core::{Catalog, Engine};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Engine idle timers run this much longer than any session can live.
const BEYOND_LIFETIME: Duration = Duration::from_secs(3600);
const DRIVER_MEMORY: &str = "1g";

/// Where an engine runs: folders, address and the settings of its cluster.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    /// Where it listens.
    pub(crate) listen: SocketAddr,
    /// Its working folder, which it may write to.
    pub(crate) work: PathBuf,
    /// Its temporary files.
    pub(crate) tmp: PathBuf,
    /// The file with Spark's properties.
    pub(crate) conf_file: PathBuf,
    /// `SPARK_HOME`; unused on Sail.
    pub(crate) spark_home: String,
    /// Settings of the cluster.
    pub(crate) properties: &'a BTreeMap<String, String>,
    /// The Python that runs user functions on Spark.
    pub(crate) python: Option<&'a str>,
    /// Heap of a Spark driver.
    pub(crate) driver_memory: Option<&'a str>,
    /// Settings of the provider, without secrets; they win over all others.
    pub(crate) overrides: BTreeMap<String, String>,
}

/// How to run one engine.
#[derive(Debug)]
pub(crate) struct EngineStart {
    pub(crate) args: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
    /// Files to write before the start: path and text.
    pub(crate) files: Vec<(PathBuf, String)>,
    /// What clients must present.
    pub(crate) credential: Option<Secret>,
    /// Everything that must not appear in a log tail.
    pub(crate) secrets: Vec<Secret>,
}

impl EngineStart {
    /// Works out how to run the engine of `spec` at `place`.
    ///
    /// # Errors
    /// The reason why it can never work.
    pub(crate) fn new(spec: &ComputeSpec, place: &Place<'_>) -> Result<Self, Cause> {
        match spec.cluster.engine {
            Engine::Sail => sail(spec, place),
            Engine::Spark => spark(spec, place),
        }
    }
}

/// Beyond the longest life, not this session's own: it may yet be extended.
fn idle_timer() -> u64 {
    (MAX_LIFETIME + BEYOND_LIFETIME).as_secs()
}

fn common_env(place: &Place<'_>) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    let mut set = |key: &str, value: String| env.insert(key.to_owned(), value);
    set("LANG", "C.UTF-8".to_owned());
    set("HOME", text(&place.work));
    set("TMPDIR", text(&place.tmp));
    set("PYTHONNOUSERSITE", "1".to_owned());
    set("PYTHONUNBUFFERED", "1".to_owned());
    env
}

fn sail(spec: &ComputeSpec, place: &Place<'_>) -> Result<EngineStart, Cause> {
    let mut secrets = Vec::new();
    let mut env = common_env(place);
    for (key, value) in place.properties {
        env.insert(key.clone(), resolve(value, &mut secrets)?);
    }
    env.insert(
        "SAIL_SPARK__SESSION_TIMEOUT_SECS".to_owned(),
        idle_timer().to_string(),
    );
    if let Some(catalog) = &spec.catalog {
        let entry = sail_catalog(catalog, &mut secrets)?;
        env.insert("SAIL_CATALOG__LIST".to_owned(), format!("[{}]", entry.fields));
        env.insert(
            "SAIL_CATALOG__DEFAULT_CATALOG".to_owned(),
            catalog.name.to_string(),
        );
        if let Some(database) = entry.database {
            env.insert("SAIL_CATALOG__DEFAULT_DATABASE".to_owned(), database);
        }
    }
    env.extend(place.overrides.clone());
    Ok(EngineStart {
        args: [
            "spark",
            "server",
            "--ip",
            &place.listen.ip().to_string(),
            "--port",
            &place.listen.port().to_string(),
        ]
        .map(str::to_owned)
        .to_vec(),
        env,
        files: Vec::new(),
        credential: None,
        secrets,
    })
}

struct SailCatalog {
    fields: String,
    database: Option<String>,
}

/// One entry of Sail's list of catalogs. Its parser takes bare words as flags
/// and numbers, so everything but flags is quoted; quotation marks inside are
/// refused by `validate_catalog`, and here once more.
fn sail_catalog(catalog: &Catalog, secrets: &mut Vec<Secret>) -> Result<SailCatalog, String> {
    let path = |names: Vec<&str>| {
        names
            .into_iter()
            .map(quoted)
            .collect::<Result<Vec<_>, _>>()
            .map(|names| format!("[{}]", names.join(", ")))
    };
    let mut database = catalog
        .default_database
        .as_ref()
        .map(|name| path(name.split('.').collect()))
        .transpose()?;
    let mut fields = vec![format!("name={}", quoted(catalog.name.as_str())?)];
    for (key, value) in &catalog.properties {
        let value = match value {
            PropertyValue::Text(flag) if flag == "true" || flag == "false" => flag.clone(),
            PropertyValue::Text(text) => quoted(&resolve(text, secrets)?)?,
            PropertyValue::List(list) => path(list.iter().map(String::as_str).collect())?,
        };
        if key == "initial_database" && database.is_none() {
            database = Some(value.clone());
        }
        fields.push(format!("{key}={value}"));
    }
    let is_memory =
        matches!(catalog.properties.get("type"), Some(PropertyValue::Text(kind)) if kind == "memory");
    if is_memory && !catalog.properties.contains_key("initial_database") {
        // A memory catalog has no database but the one it begins with.
        let first = database.clone().unwrap_or_else(|| "[\"default\"]".to_owned());
        fields.push(format!("initial_database={first}"));
    }
    Ok(SailCatalog {
        fields: format!("{{{}}}", fields.join(", ")),
        database,
    })
}

fn quoted(text: &str) -> Result<String, String> {
    if text.contains(['"', '\\']) || text.chars().any(char::is_control) {
        return Err("a value for Sail has quotation marks, backslashes or control characters".to_owned());
    }
    Ok(format!("\"{text}\""))
}

/// What spark-submit would give the JVM on Java 17 and later.
const OPENED: [&str; 15] = [
    "java.base/java.lang",
    "java.base/java.lang.invoke",
    "java.base/java.lang.reflect",
    "java.base/java.io",
    "java.base/java.net",
    "java.base/java.nio",
    "java.base/java.util",
    "java.base/java.util.concurrent",
    "java.base/java.util.concurrent.atomic",
    "java.base/jdk.internal.ref",
    "java.base/sun.nio.ch",
    "java.base/sun.nio.cs",
    "java.base/sun.security.action",
    "java.base/sun.util.calendar",
    "java.security.jgss/sun.security.krb5",
];

fn spark(spec: &ComputeSpec, place: &Place<'_>) -> Result<EngineStart, Cause> {
    let token =
        Secret::new(uuid::Uuid::new_v4().simple().to_string() + &uuid::Uuid::new_v4().simple().to_string());
    let mut secrets = vec![token.clone()];
    let conf = spark_conf(spec, place, &token, &mut secrets)?;
    let mut env = common_env(place);
    env.insert("SPARK_HOME".to_owned(), place.spark_home.clone());
    env.insert("SPARK_LOCAL_IP".to_owned(), "127.0.0.1".to_owned());
    if let Some(python) = place.python {
        env.insert("PYSPARK_PYTHON".to_owned(), python.to_owned());
        env.insert("PYSPARK_DRIVER_PYTHON".to_owned(), python.to_owned());
    }
    Ok(EngineStart {
        args: java_args(place),
        env,
        files: vec![(place.conf_file.clone(), java_properties(&conf))],
        credential: Some(token),
        secrets,
    })
}

fn spark_conf(
    spec: &ComputeSpec,
    place: &Place<'_>,
    token: &Secret,
    secrets: &mut Vec<Secret>,
) -> Result<BTreeMap<String, String>, Cause> {
    let mut conf = BTreeMap::new();
    let mut set = |key: &str, value: String| conf.insert(key.to_owned(), value);
    set("spark.master", "local[*]".to_owned());
    set(
        "spark.sql.warehouse.dir",
        file_uri(&place.work.join("spark-warehouse")),
    );
    set("spark.hadoop.javax.jdo.option.ConnectionURL", {
        format!(
            "jdbc:derby:;databaseName={};create=true",
            text(&place.work.join("metastore_db"))
        )
    });
    for (key, value) in place.properties {
        set(key, resolve(value, secrets)?);
    }
    set("spark.app.name", format!("berth {}", spec.key.id));
    set("spark.ui.enabled", "false".to_owned());
    set("spark.driver.host", "127.0.0.1".to_owned());
    set("spark.driver.bindAddress", "127.0.0.1".to_owned());
    set("spark.local.dir", text(&place.tmp));
    set("spark.jars.ivy", text(&place.work.join("ivy")));
    set(
        "spark.connect.grpc.binding.address",
        place.listen.ip().to_string(),
    );
    set("spark.connect.grpc.binding.port", place.listen.port().to_string());
    set("spark.connect.authenticate.token", token.expose().to_owned());
    set(
        "spark.connect.session.manager.defaultSessionTimeout",
        format!("{}s", idle_timer()),
    );
    if let Some(python) = place.python {
        set("spark.pyspark.python", python.to_owned());
    }
    if let Some(catalog) = &spec.catalog {
        for (key, value) in spark_catalog(catalog, secrets)? {
            set(&key, value);
        }
    }
    conf.extend(place.overrides.clone());
    Ok(conf)
}

/// What every JVM of Spark gets, drivers and executors.
pub(crate) fn jvm_args(spark_home: &str) -> Vec<String> {
    let mut args = vec!["-cp".to_owned(), format!("{spark_home}/jars/*")];
    args.push("-XX:+IgnoreUnrecognizedVMOptions".to_owned());
    args.extend(OPENED.map(|package| format!("--add-opens={package}=ALL-UNNAMED")));
    args.extend(
        [
            "--add-modules=jdk.incubator.vector",
            "--enable-native-access=ALL-UNNAMED",
            "-Dio.netty.tryReflectionSetAccessible=true",
            "-Dderby.connection.requireAuthentication=false",
            // An engine out of memory must end, not linger half-dead.
            "-XX:+ExitOnOutOfMemoryError",
            // Would write to /tmp, outside the session's folders.
            "-XX:-UsePerfData",
        ]
        .map(str::to_owned),
    );
    args
}

fn java_args(place: &Place<'_>) -> Vec<String> {
    let memory = place.driver_memory.unwrap_or(DRIVER_MEMORY);
    let mut args = jvm_args(&place.spark_home);
    args.push(format!("-Xmx{memory}"));
    args.push(format!("-Djava.io.tmpdir={}", text(&place.tmp)));
    args.push(format!("-Dderby.system.home={}", text(&place.work)));
    args.extend([
        "org.apache.spark.deploy.SparkSubmit".to_owned(),
        "--properties-file".to_owned(),
    ]);
    args.push(text(&place.conf_file));
    args.extend(
        [
            "--class",
            "org.apache.spark.sql.connect.service.SparkConnectServer",
            "spark-internal",
        ]
        .map(str::to_owned),
    );
    args
}

fn spark_catalog(catalog: &Catalog, secrets: &mut Vec<Secret>) -> Result<Vec<(String, String)>, String> {
    let name = format!("spark.sql.catalog.{}", catalog.name);
    let mut conf = vec![("spark.sql.defaultCatalog".to_owned(), catalog.name.to_string())];
    for (key, value) in &catalog.properties {
        let key = if key.is_empty() {
            name.clone()
        } else {
            format!("{name}.{key}")
        };
        let value = match value {
            PropertyValue::Text(text) => resolve(text, secrets)?,
            PropertyValue::List(list) => list.join(","),
        };
        conf.push((key, value));
    }
    if let Some(database) = &catalog.default_database {
        if !takes_default_namespace(catalog) {
            return Err(format!(
                "Apache Spark cannot start in a database of catalog {}",
                catalog.name
            ));
        }
        conf.push((format!("{name}.default-namespace"), database.clone()));
    }
    Ok(conf)
}

/// The format of `java.util.Properties`.
fn java_properties(conf: &BTreeMap<String, String>) -> String {
    let escape = |text: &str, is_key: bool| {
        let mut out = String::with_capacity(text.len());
        for (i, c) in text.chars().enumerate() {
            match c {
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                ' ' | ':' | '=' | '#' | '!' if is_key || i == 0 => {
                    out.push('\\');
                    out.push(c);
                }
                c if c.is_ascii() => out.push(c),
                c => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
            }
        }
        out
    };
    conf.iter()
        .map(|(key, value)| format!("{}={}\n", escape(key, true), escape(value, false)))
        .collect()
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn file_uri(path: &Path) -> String {
    format!("file:{}", text(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::catalog;

    fn property(text: &str) -> PropertyValue {
        PropertyValue::Text(text.to_owned())
    }

    #[test]
    fn a_memory_catalog_begins_with_the_default_database() {
        let mut memory = catalog(Engine::Sail, "c", &[("type", property("memory"))]);
        memory.default_database = Some("sales".into());
        let entry = sail_catalog(&memory, &mut Vec::new()).unwrap();
        assert_eq!(
            entry.fields,
            "{name=\"c\", type=\"memory\", initial_database=[\"sales\"]}"
        );
        assert_eq!(entry.database.as_deref(), Some("[\"sales\"]"));
    }

    #[test]
    fn properties_files_are_escaped() {
        let conf =
            [("a b", " x=\\y"), ("k", "größe 😀\nspark.jars=x")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(
            java_properties(&conf.into()),
            "a\\ b=\\ x=\\\\y\nk=gr\\u00f6\\u00dfe \\ud83d\\ude00\\nspark.jars=x\n"
        );
    }
}
