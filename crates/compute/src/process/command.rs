//! What an engine is started with: program, arguments, environment, files.
//!
//! Everything is data until [`super::child`] runs it, so that tests can read
//! it. No shell anywhere; nothing of the manager's own environment; secrets
//! travel in the environment or in a file of the session, never in arguments.

use crate::ComputeSpec;
use crate::properties::{resolve, takes_default_namespace};
use crate::user_message;
use session_core::catalog::PropertyValue;
use session_core::machine::Cause;
use session_core::policy::MAX_LIFETIME;
use session_core::route::Secret;
use session_core::{Catalog, Engine, Provider};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Engine idle timers run this much longer than any session can live.
const BEYOND_LIFETIME: Duration = Duration::from_secs(3600);
const SYSTEM_PATH: &str = "/usr/local/bin:/usr/bin:/bin";
const DRIVER_MEMORY: &str = "1g";

/// How to run one engine.
#[derive(Debug)]
pub(crate) struct EngineCommand {
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
    /// Files to write before the start: path and text.
    pub(crate) files: Vec<(PathBuf, String)>,
    /// What clients must present.
    pub(crate) credential: Option<Secret>,
    /// Everything that must not appear in a log tail.
    pub(crate) secrets: Vec<Secret>,
}

/// The folders of one session generation.
#[derive(Debug, Clone)]
pub(crate) struct Folders {
    pub(crate) root: PathBuf,
}

impl Folders {
    pub(crate) fn work(&self) -> PathBuf {
        self.root.join("work")
    }

    pub(crate) fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.root.join("engine.log")
    }
}

impl EngineCommand {
    /// Works out how to run the engine of `spec` on `port`.
    ///
    /// # Errors
    /// Says what can never work.
    pub(crate) fn new(spec: &ComputeSpec, folders: &Folders, port: u16) -> Result<Self, Cause> {
        match spec.cluster.engine {
            Engine::Sail => sail(spec, folders, port),
            Engine::Spark => spark(spec, folders, port),
        }
    }
}

/// Beyond the longest life, not this session's own: it may yet be extended.
fn idle_timer() -> u64 {
    (MAX_LIFETIME + BEYOND_LIFETIME).as_secs()
}

fn common_env(folders: &Folders) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    let mut set = |key: &str, value: String| env.insert(key.to_owned(), value);
    set("PATH", SYSTEM_PATH.to_owned());
    set("LANG", "C.UTF-8".to_owned());
    set("HOME", text(&folders.work()));
    set("TMPDIR", text(&folders.tmp()));
    set("PYTHONNOUSERSITE", "1".to_owned());
    set("PYTHONUNBUFFERED", "1".to_owned());
    env
}

fn sail(spec: &ComputeSpec, folders: &Folders, port: u16) -> Result<EngineCommand, Cause> {
    let Provider::Process {
        program, properties, ..
    } = &spec.cluster.provider
    else {
        return Err("the cluster has no process provider".into());
    };
    let mut secrets = Vec::new();
    let mut env = common_env(folders);
    for (key, value) in properties {
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
    Ok(EngineCommand {
        program: existing_program("Sail", Path::new(program))?,
        args: [
            "spark",
            "server",
            "--ip",
            "127.0.0.1",
            "--port",
            &port.to_string(),
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

fn spark(spec: &ComputeSpec, folders: &Folders, port: u16) -> Result<EngineCommand, Cause> {
    let Provider::Process {
        program,
        java_home,
        properties,
        python,
        driver_memory,
    } = &spec.cluster.provider
    else {
        return Err("the cluster has no process provider".into());
    };
    let home = std::fs::canonicalize(program).map_err(|e| {
        user_message::cause(
            "the cluster's SPARK_HOME cannot be used",
            format!("{program}: {e}"),
        )
    })?;
    if !home.join("jars").is_dir() {
        return Err(user_message::cause(
            "the cluster's SPARK_HOME has no folder jars",
            program,
        ));
    }
    let java = match java_home {
        Some(home) => existing_program("Java", &Path::new(home).join("bin/java"))?,
        None => default_java()?,
    };

    let mut secrets = Vec::new();
    let token =
        Secret::new(uuid::Uuid::new_v4().simple().to_string() + &uuid::Uuid::new_v4().simple().to_string());
    secrets.push(token.clone());

    let mut conf = BTreeMap::new();
    let mut set = |key: &str, value: String| conf.insert(key.to_owned(), value);
    set("spark.master", "local[*]".to_owned());
    set(
        "spark.sql.warehouse.dir",
        file_uri(&folders.work().join("spark-warehouse")),
    );
    set("spark.hadoop.javax.jdo.option.ConnectionURL", {
        format!(
            "jdbc:derby:;databaseName={};create=true",
            text(&folders.work().join("metastore_db"))
        )
    });
    for (key, value) in properties {
        set(key, resolve(value, &mut secrets)?);
    }
    set("spark.app.name", format!("berth {}", spec.key.id));
    set("spark.ui.enabled", "false".to_owned());
    set("spark.driver.host", "127.0.0.1".to_owned());
    set("spark.driver.bindAddress", "127.0.0.1".to_owned());
    set("spark.local.dir", text(&folders.tmp()));
    set("spark.jars.ivy", text(&folders.work().join("ivy")));
    set("spark.connect.grpc.binding.address", "127.0.0.1".to_owned());
    set("spark.connect.grpc.binding.port", port.to_string());
    set("spark.connect.authenticate.token", token.expose().to_owned());
    set(
        "spark.connect.session.manager.defaultSessionTimeout",
        format!("{}s", idle_timer()),
    );
    if let Some(python) = python {
        set(
            "spark.pyspark.python",
            text(&existing_program("Python", Path::new(python))?),
        );
    }
    if let Some(catalog) = &spec.catalog {
        for (key, value) in spark_catalog(catalog, &mut secrets)? {
            set(&key, value);
        }
    }

    let memory = driver_memory.as_deref().unwrap_or(DRIVER_MEMORY);
    let conf_file = folders.root.join("spark.properties");
    let mut args = vec![
        "-cp".to_owned(),
        format!("{}/*", text(&home.join("jars"))),
        format!("-Xmx{memory}"),
    ];
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
    args.push(format!("-Djava.io.tmpdir={}", text(&folders.tmp())));
    args.push(format!("-Dderby.system.home={}", text(&folders.work())));
    args.extend([
        "org.apache.spark.deploy.SparkSubmit".to_owned(),
        "--properties-file".to_owned(),
    ]);
    args.push(text(&conf_file));
    args.extend(
        [
            "--class",
            "org.apache.spark.sql.connect.service.SparkConnectServer",
            "spark-internal",
        ]
        .map(str::to_owned),
    );

    let mut env = common_env(folders);
    env.insert("SPARK_HOME".to_owned(), text(&home));
    env.insert("SPARK_LOCAL_IP".to_owned(), "127.0.0.1".to_owned());
    if let Some(python) = python {
        env.insert("PYSPARK_PYTHON".to_owned(), python.clone());
        env.insert("PYSPARK_DRIVER_PYTHON".to_owned(), python.clone());
    }
    Ok(EngineCommand {
        program: java,
        args,
        env,
        files: vec![(conf_file, java_properties(&conf))],
        credential: Some(token),
        secrets,
    })
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

fn existing_program(what: &str, path: &Path) -> Result<PathBuf, Cause> {
    use std::os::unix::fs::PermissionsExt;
    let shown = path.display();
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_file() && meta.permissions().mode() & 0o111 != 0 => Ok(path.to_owned()),
        Ok(_) => Err(user_message::cause(
            format!("the cluster's program for {what} cannot be executed"),
            shown,
        )),
        Err(e) => Err(user_message::cause(
            format!("the cluster's program for {what} cannot be used"),
            format!("{shown}: {e}"),
        )),
    }
}

fn default_java() -> Result<PathBuf, Cause> {
    if let Some(home) = std::env::var_os("JAVA_HOME").filter(|home| !home.is_empty()) {
        return existing_program("Java", &Path::new(&home).join("bin/java"));
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| SYSTEM_PATH.into());
    std::env::split_paths(&path)
        .find_map(|folder| existing_program("Java", &folder.join("java")).ok())
        .ok_or_else(|| "Apache Spark needs Java: set java_home on the cluster".into())
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
    use crate::testing::{catalog, process_cluster, spec};

    fn folders(root: &Path) -> Folders {
        Folders {
            root: root.to_owned(),
        }
    }

    fn property(text: &str) -> PropertyValue {
        PropertyValue::Text(text.to_owned())
    }

    #[test]
    fn sail_gets_its_catalog_and_timer_by_environment() {
        let dir = tempfile::tempdir().unwrap();
        let properties = [("SAIL_EXECUTION__BATCH_SIZE", "1024")];
        let mut spec = spec(process_cluster(Engine::Sail, "/bin/sh", &properties), 1);
        let list = PropertyValue::List(vec!["dev".into(), "x".into()]);
        spec.catalog = Some(catalog(
            Engine::Sail,
            "c1",
            &[("type", property("memory")), ("initial_database", list)],
        ));
        let command = EngineCommand::new(&spec, &folders(dir.path()), 4711).unwrap();
        assert_eq!(
            command.args,
            ["spark", "server", "--ip", "127.0.0.1", "--port", "4711"]
        );
        let mut env = command.env;
        for key in [
            "PATH",
            "LANG",
            "HOME",
            "TMPDIR",
            "PYTHONNOUSERSITE",
            "PYTHONUNBUFFERED",
        ] {
            assert!(env.remove(key).is_some(), "{key}");
        }
        let expected = [
            ("SAIL_CATALOG__DEFAULT_CATALOG", "c1"),
            ("SAIL_CATALOG__DEFAULT_DATABASE", "[\"dev\", \"x\"]"),
            (
                "SAIL_CATALOG__LIST",
                "[{name=\"c1\", initial_database=[\"dev\", \"x\"], type=\"memory\"}]",
            ),
            ("SAIL_EXECUTION__BATCH_SIZE", "1024"),
            ("SAIL_SPARK__SESSION_TIMEOUT_SECS", "608400"),
        ];
        assert_eq!(env, expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
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
    fn spark_gets_everything_by_a_private_file() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("spark");
        std::fs::create_dir_all(home.join("jars")).unwrap();
        let properties = [
            ("spark.master", "local[2]"),
            ("spark.sql.shuffle.partitions", "4"),
        ];
        let mut cluster = process_cluster(Engine::Spark, home.to_str().unwrap(), &properties);
        if let Provider::Process {
            java_home,
            driver_memory,
            ..
        } = &mut cluster.provider
        {
            let java = dir.path().join("java");
            std::fs::create_dir_all(java.join("bin")).unwrap();
            std::os::unix::fs::symlink("/bin/sh", java.join("bin/java")).unwrap();
            *java_home = Some(text(&java));
            *driver_memory = Some("2g".into());
        }
        let mut spec = spec(cluster, 1);
        let class = "org.apache.iceberg.spark.SparkCatalog";
        let mut lake = catalog(
            Engine::Spark,
            "lake",
            &[("", property(class)), ("uri", property("http://c:1/x"))],
        );
        lake.default_database = Some("sales".into());
        spec.catalog = Some(lake);
        let command = EngineCommand::new(&spec, &folders(dir.path()), 4711).unwrap();
        let token = command.credential.clone().unwrap();
        assert_eq!(token.expose().len(), 64);
        assert!(command.args.contains(&"-Xmx2g".to_owned()));
        assert!(
            !command.args.iter().any(|arg| arg.contains(token.expose())),
            "arguments are public"
        );
        let (path, conf) = &command.files[0];
        assert_eq!(path, &dir.path().join("spark.properties"));
        for line in [
            "spark.connect.grpc.binding.address=127.0.0.1",
            "spark.connect.grpc.binding.port=4711",
            "spark.connect.session.manager.defaultSessionTimeout=608400s",
            &format!("spark.connect.authenticate.token={}", token.expose()),
            "spark.master=local[2]",
            "spark.sql.catalog.lake=org.apache.iceberg.spark.SparkCatalog",
            "spark.sql.catalog.lake.default-namespace=sales",
            "spark.sql.catalog.lake.uri=http://c:1/x",
            "spark.sql.defaultCatalog=lake",
            "spark.sql.shuffle.partitions=4",
        ] {
            assert!(
                conf.lines().any(|have| have == line),
                "{line} is missing in\n{conf}"
            );
        }
    }

    #[test]
    fn what_cannot_work_is_said_in_words() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |cluster| EngineCommand::new(&spec(cluster, 1), &folders(dir.path()), 1).unwrap_err();
        let missing = refused(process_cluster(Engine::Sail, "/nowhere/sail", &[]));
        assert_eq!(missing.text, "the cluster's program for Sail cannot be used");
        assert!(
            missing.detail.starts_with("/nowhere/sail: No such file"),
            "{missing:?}"
        );
        let plain = dir.path().join("plain");
        std::fs::write(&plain, "").unwrap();
        let plain_file = refused(process_cluster(Engine::Sail, plain.to_str().unwrap(), &[]));
        assert_eq!(
            plain_file.text,
            "the cluster's program for Sail cannot be executed"
        );
        assert!(plain_file.detail.ends_with("/plain"), "{plain_file:?}");
        let no_jars = refused(process_cluster(Engine::Spark, dir.path().to_str().unwrap(), &[]));
        assert_eq!(no_jars.text, "the cluster's SPARK_HOME has no folder jars");
        assert_eq!(Path::new(&no_jars.detail), dir.path());
        let secret = [("AWS_SECRET_ACCESS_KEY", "${BERTH_SECRET_UNSET}")];
        let unset = refused(process_cluster(Engine::Sail, "/bin/sh", &secret));
        assert_eq!(
            unset.text,
            "the secret BERTH_SECRET_UNSET is not set in the manager's environment"
        );
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
