//! The program of a child process and its start, on the manager's machine.

use crate::ComputeSpec;
use crate::engine::{EngineStart, Place};
use crate::user_message;
use session_core::machine::Cause;
use session_core::{Engine, Provider};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

const SYSTEM_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// How to run one engine as a child.
#[derive(Debug)]
pub(crate) struct EngineCommand {
    pub(crate) program: PathBuf,
    pub(crate) start: EngineStart,
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
        let (run, spark_home) = match spec.cluster.engine {
            Engine::Sail => (existing_program("Sail", Path::new(program))?, String::new()),
            Engine::Spark => {
                let home = existing_spark(program)?;
                let java = match java_home {
                    Some(home) => existing_program("Java", &Path::new(home).join("bin/java"))?,
                    None => default_java()?,
                };
                if let Some(python) = python {
                    existing_program("Python", Path::new(python))?;
                }
                (java, home.to_string_lossy().into_owned())
            }
        };
        let place = Place {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            work: folders.work(),
            tmp: folders.tmp(),
            conf_file: folders.root.join("spark.properties"),
            spark_home,
            properties,
            python: python.as_deref(),
            driver_memory: driver_memory.as_deref(),
            overrides: BTreeMap::new(),
        };
        let mut start = EngineStart::new(spec, &place)?;
        start.env.insert("PATH".to_owned(), SYSTEM_PATH.to_owned());
        Ok(Self { program: run, start })
    }
}

fn existing_spark(program: &str) -> Result<PathBuf, Cause> {
    let home = std::fs::canonicalize(program).map_err(|e| {
        user_message::cause(
            "the cluster's SPARK_HOME cannot be used",
            format!("{program}: {e}"),
        )
    })?;
    if home.join("jars").is_dir() {
        Ok(home)
    } else {
        Err(user_message::cause(
            "the cluster's SPARK_HOME has no folder jars",
            program,
        ))
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{catalog, process_cluster, spec};
    use session_core::catalog::PropertyValue;

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
            command.start.args,
            ["spark", "server", "--ip", "127.0.0.1", "--port", "4711"]
        );
        let mut env = command.start.env;
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
            *java_home = Some(java.to_str().unwrap().to_owned());
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
        let token = command.start.credential.clone().unwrap();
        assert_eq!(token.expose().len(), 64);
        assert!(command.start.args.contains(&"-Xmx2g".to_owned()));
        assert!(
            !command.start.args.iter().any(|arg| arg.contains(token.expose())),
            "arguments are public"
        );
        let (path, conf) = &command.start.files[0];
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
}
