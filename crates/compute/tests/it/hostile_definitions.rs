//! Texts in definitions reach an engine unchanged, verified with the real arguments,
//! environment and settings of a child of the provider. No shell interprets them, and
//! no variable of the manager's environment is passed on.

use crate::support::*;
use compute::{ComputeProvider, ComputeSpec, ProcessProvider, validate_catalog, validate_cluster};
use session_core::{CatalogName, ClusterName, Engine, OrgId, Provider, SessionId};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const MANAGER: &str = "BERTH_TEST_MANAGER";
const SECRET: &str = "s3cr3t $(id) `id` ; -x 'y'";
/// Writes its arguments and environment, then runs like an engine.
const ENGINE: &str = "#!/bin/sh
cat /proc/$$/environ > \"$HOME/environ.new\" && mv \"$HOME/environ.new\" \"$HOME/environ\"
cat /proc/$$/cmdline > \"$HOME/cmdline.new\" && mv \"$HOME/cmdline.new\" \"$HOME/cmdline\"
exec sleep 600
";

/// Texts that a shell could interpret; `touch` would leave a file.
fn texts(trace: &Path) -> Vec<String> {
    let touch = format!("touch {}", trace.display());
    vec![
        format!("$({touch})"),
        format!("`{touch}`"),
        format!("; {touch} #"),
        format!("x\u{2028}{touch}"),
        format!("| {touch}"),
        format!("&& {touch} &"),
        format!("<({touch})"),
        "--help".to_owned(),
        "-Dspark.jars=x".to_owned(),
        "--conf spark.jars=x".to_owned(),
        "@/etc/passwd".to_owned(),
        "$HOME $PATH %PATH% ~ *".to_owned(),
        "'quoted' and 'unclosed".to_owned(),
        "a=b=c#d!e:f, g".to_owned(),
        "größe 名前 😀".to_owned(),
        "{a, b} [c]".to_owned(),
        " ".to_owned(),
        "x".repeat(8192),
    ]
}

/// Runs this test again as a manager with secrets in its environment.
fn as_a_manager(test: &str) -> bool {
    if std::env::var_os(MANAGER).is_some() {
        return true;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("hostile_definitions::{test}"), "--nocapture"])
        .env(MANAGER, "1")
        .env("BERTH_SECRET_CLUSTER", SECRET)
        .env("BERTH_SECRET_ACME__LAKE", SECRET)
        .env("BERTH_SECRET_OTHER__LAKE", "canary-of-another")
        .env("BERTH__STORE__URL", "redis://:canary@127.0.0.1")
        .env("AWS_SECRET_ACCESS_KEY", "canary-of-the-manager")
        .env("SPARK_CONF_DIR", "/canary")
        .env("JDK_JAVA_OPTIONS", "-Dcanary=1")
        .env("SAIL_MODE", "canary")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("1 passed"), "{said}");
    false
}

fn write_program(path: &Path) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, ENGINE).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// A session on a fake engine.
fn spec_of(engine: Engine, program: &Path, java_home: Option<&Path>) -> ComputeSpec {
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let provider = Provider::Process {
        program: text(program),
        java_home: java_home.map(text),
        properties: BTreeMap::new(),
        python: None,
        driver_memory: None,
    };
    spec_on(cluster(engine, provider), 1)
}

fn set_properties(spec: &mut ComputeSpec, prefix: &str, texts: &[String], secret: (&str, &str)) {
    if let Provider::Process { properties, .. } = &mut spec.cluster.provider {
        properties.extend(
            texts
                .iter()
                .enumerate()
                .map(|(n, text)| (format!("{prefix}{n}"), text.clone())),
        );
        properties.insert(secret.0.to_owned(), secret.1.to_owned());
    }
}

fn find(dir: &Path, name: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(dir).ok()?.flatten();
    entries.map(|entry| entry.path()).find_map(|path| {
        if path.is_dir() {
            find(&path, name)
        } else {
            path.file_name().is_some_and(|have| have == name).then_some(path)
        }
    })
}

fn parts(bytes: &[u8]) -> Vec<String> {
    let text = std::str::from_utf8(bytes).unwrap();
    text.strip_suffix('\0')
        .unwrap_or(text)
        .split('\0')
        .map(str::to_owned)
        .collect()
}

/// Arguments and environment of the engine, and its settings file, if any.
struct Started {
    args: Vec<String>,
    env: BTreeMap<String, String>,
    file: Option<PathBuf>,
    provider: ProcessProvider,
}

async fn start(dir: &Path, spec: &ComputeSpec) -> Started {
    validate_cluster(&spec.cluster).unwrap();
    validate_catalog(spec.catalog.as_ref().unwrap()).unwrap();
    let provider = provider(dir);
    provider.ensure(spec).await.unwrap();
    wait_for("the engine runs", LONG, || find(dir, "cmdline").is_some()).await;
    let env = parts(&std::fs::read(find(dir, "environ").unwrap()).unwrap());
    let env = env.iter().map(|entry| entry.split_once('=').unwrap());
    Started {
        args: parts(&std::fs::read(find(dir, "cmdline").unwrap()).unwrap()),
        env: env
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect(),
        file: find(dir, "spark.properties"),
        provider,
    }
}

/// The environment of every engine, except its folders.
fn take_common(env: &mut BTreeMap<String, String>, dir: &Path) {
    for (key, value) in [
        ("PATH", "/usr/local/bin:/usr/bin:/bin"),
        ("LANG", "C.UTF-8"),
        ("PYTHONNOUSERSITE", "1"),
        ("PYTHONUNBUFFERED", "1"),
    ] {
        assert_eq!(env.remove(key).as_deref(), Some(value), "{key}");
    }
    let dir = dir.canonicalize().unwrap();
    for key in ["HOME", "TMPDIR"] {
        let folder = PathBuf::from(env.remove(key).unwrap());
        assert!(folder.canonicalize().unwrap().starts_with(&dir), "{key}");
    }
}

#[tokio::test]
async fn sail_gets_what_was_said_and_nothing_else() {
    if !as_a_manager("sail_gets_what_was_said_and_nothing_else") {
        return;
    }
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (trace, program) = (other.path().join("trace"), other.path().join("sail"));
    write_program(&program);
    let texts = texts(&trace);
    let mut spec = spec_of(Engine::Sail, &program, None);
    set_properties(
        &mut spec,
        "SAIL_TELEMETRY__N",
        &texts,
        ("AWS_SECRET_ACCESS_KEY", "${BERTH_SECRET_CLUSTER}"),
    );
    let fields: Vec<(String, &str)> = texts
        .iter()
        .enumerate()
        .map(|(n, text)| (format!("n{n:02}"), text.as_str()))
        .collect();
    let mut said: Vec<(&str, &str)> = fields.iter().map(|(key, text)| (key.as_str(), *text)).collect();
    said.extend([("token", "${BERTH_SECRET_ACME__LAKE}"), ("type", "memory")]);
    spec.catalog = Some(catalog(Engine::Sail, "lake", &said));

    let started = start(dir.path(), &spec).await;
    let script = program.to_str().unwrap();
    let (port, args) = started.args.split_last().unwrap();
    assert_eq!(
        args,
        [
            "/bin/sh",
            script,
            "spark",
            "server",
            "--ip",
            "127.0.0.1",
            "--port"
        ]
    );
    assert!(port.parse::<u16>().is_ok(), "{port}");
    let mut env = started.env;
    take_common(&mut env, dir.path());
    for (n, text) in texts.iter().enumerate() {
        assert_eq!(env.remove(&format!("SAIL_TELEMETRY__N{n}")).as_ref(), Some(text));
    }
    assert_eq!(env.remove("AWS_SECRET_ACCESS_KEY").as_deref(), Some(SECRET));
    assert_eq!(
        env.remove("SAIL_SPARK__SESSION_TIMEOUT_SECS").as_deref(),
        Some("608400")
    );
    assert_eq!(
        env.remove("SAIL_CATALOG__DEFAULT_CATALOG").as_deref(),
        Some("lake")
    );
    let list = env.remove("SAIL_CATALOG__LIST").unwrap();
    let quoted = fields.iter().map(|(key, text)| format!("{key}=\"{text}\", "));
    let expected = format!(
        "[{{name=\"lake\", {}token=\"{SECRET}\", type=\"memory\", initial_database=[\"default\"]}}]",
        quoted.collect::<String>()
    );
    assert_eq!(list, expected);
    assert!(env.is_empty(), "nobody said {env:?}");
    started.provider.shutdown().await;
    assert!(!trace.exists(), "something was run");
}

/// The settings as Java reads them.
fn java_reads(dir: &Path, file: &Path) -> BTreeMap<String, String> {
    let source = dir.join("Dump.java");
    std::fs::write(
        &source,
        "import java.nio.file.*; import java.util.*;
        class Dump { public static void main(String[] args) throws Exception {
            var read = new Properties();
            try (var from = Files.newBufferedReader(Path.of(args[0]))) { read.load(from); }
            for (var key : read.stringPropertyNames())
                System.out.println(hex(key) + ' ' + hex(read.getProperty(key)));
        } static String hex(String text) throws Exception {
            return HexFormat.of().formatHex(text.getBytes(\"UTF-8\")) + '.';
        } }",
    )
    .unwrap();
    let output = Command::new("java")
        .arg(&source)
        .arg(file)
        .env_remove("JDK_JAVA_OPTIONS")
        .output();
    let output = output.expect("run deploy/local/setup.sh test: java is missing");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = |hex: &str| {
        let digits = hex.trim_end_matches('.').as_bytes().chunks(2);
        let bytes = digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap());
        String::from_utf8(bytes.collect()).unwrap()
    };
    let lines = String::from_utf8(output.stdout).unwrap();
    let pairs = lines.lines().map(|line| line.split_once(' ').unwrap());
    pairs.map(|(key, value)| (text(key), text(value))).collect()
}

#[tokio::test]
async fn spark_gets_what_was_said_and_nothing_else() {
    if !as_a_manager("spark_gets_what_was_said_and_nothing_else") {
        return;
    }
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (trace, java) = (other.path().join("trace"), other.path().join("java/bin/java"));
    write_program(&java);
    let home = other.path().join("spark");
    std::fs::create_dir_all(home.join("jars")).unwrap();
    let mut texts = texts(&trace);
    // A file can contain these, so Spark accepts them.
    texts.extend(["\"double\"", "back\\slash\\", "\\n\\u0041"].map(str::to_owned));
    let mut spec = spec_of(Engine::Spark, &home, Some(&other.path().join("java")));
    set_properties(
        &mut spec,
        "spark.sql.n",
        &texts,
        ("spark.hadoop.fs.s3a.secret.key", "${BERTH_SECRET_CLUSTER}"),
    );
    let fields: Vec<(String, &str)> = texts
        .iter()
        .enumerate()
        .map(|(n, text)| (format!("n{n}"), text.as_str()))
        .collect();
    let mut said: Vec<(&str, &str)> = fields.iter().map(|(key, text)| (key.as_str(), *text)).collect();
    said.extend([("", "a.b.Catalog"), ("token", "${BERTH_SECRET_ACME__LAKE}")]);
    spec.catalog = Some(catalog(Engine::Spark, "lake", &said));

    let started = start(dir.path(), &spec).await;
    // Arguments are readable by all users of the machine: they contain no setting.
    for arg in &started.args {
        let said = texts
            .iter()
            .any(|text| text.len() > 2 && arg.contains(text.as_str()));
        assert!(!said && !arg.contains("s3cr3t"), "{arg}");
    }
    let last: Vec<&str> = started.args.iter().rev().take(3).map(String::as_str).collect();
    assert_eq!(
        last,
        [
            "spark-internal",
            "org.apache.spark.sql.connect.service.SparkConnectServer",
            "--class"
        ]
    );
    let mut env = started.env;
    take_common(&mut env, dir.path());
    let real_home = home.canonicalize().unwrap();
    assert_eq!(env.remove("SPARK_HOME").as_deref(), real_home.to_str());
    assert_eq!(env.remove("SPARK_LOCAL_IP").as_deref(), Some("127.0.0.1"));
    assert!(env.is_empty(), "nobody said {env:?}");

    let file = started.file.unwrap();
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "only the manager's user reads it");
    let mut read = java_reads(other.path(), &file);
    for (n, text) in texts.iter().enumerate() {
        assert_eq!(read.remove(&format!("spark.sql.n{n}")).as_ref(), Some(text));
        assert_eq!(
            read.remove(&format!("spark.sql.catalog.lake.n{n}")).as_ref(),
            Some(text)
        );
    }
    for (key, value) in [
        ("spark.hadoop.fs.s3a.secret.key", SECRET),
        ("spark.sql.catalog.lake.token", SECRET),
        ("spark.sql.catalog.lake", "a.b.Catalog"),
        ("spark.sql.defaultCatalog", "lake"),
    ] {
        assert_eq!(read.remove(key).as_deref(), Some(value), "{key}");
    }
    let left: Vec<&str> = read.keys().map(String::as_str).collect();
    assert_eq!(
        left,
        [
            "spark.app.name",
            "spark.connect.authenticate.token",
            "spark.connect.grpc.binding.address",
            "spark.connect.grpc.binding.port",
            "spark.connect.session.manager.defaultSessionTimeout",
            "spark.driver.bindAddress",
            "spark.driver.host",
            "spark.hadoop.javax.jdo.option.ConnectionURL",
            "spark.jars.ivy",
            "spark.local.dir",
            "spark.master",
            "spark.sql.warehouse.dir",
            "spark.ui.enabled",
        ]
    );
    started.provider.shutdown().await;
    assert!(!trace.exists(), "something was run");
}

#[test]
fn names_have_no_room_for_anything_else() {
    let long = "x".repeat(5000);
    for name in [
        "",
        " ",
        "a b",
        "a\nb",
        "a\0b",
        "-a",
        "--help",
        "$(id)",
        "`id`",
        "a;b",
        "a'b",
        "a\"b",
        "a\\b",
        "a/b",
        "../a",
        "a=b",
        "a{b}",
        "a,b",
        "\u{430}",
        "a\u{202e}",
        "a\u{1b}[2J",
        &long,
    ] {
        assert!(name.parse::<ClusterName>().is_err(), "cluster {name:?}");
        assert!(name.parse::<CatalogName>().is_err(), "catalog {name:?}");
        assert!(name.parse::<OrgId>().is_err(), "org {name:?}");
        assert!(name.parse::<SessionId>().is_err(), "session {name:?}");
    }
}
