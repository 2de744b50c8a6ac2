//! The programs that try the promises, one per client library, and how each is run.

use super::Way;
use super::table::Tried;
use anyhow::{Context, Result, ensure};
use e2e::{Client, installed, java, repo};
use serde_json::Value;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// No program runs longer.
const LIMIT: Duration = Duration::from_secs(600);
/// Lines of output that a failure shows.
const SHOWN_LINES: usize = 30;

/// The ways of clients that use TLS whenever they have a token.
const TLS: &[Way] = &[Way::Tls, Way::Direct];
const PLAINTEXT_TOO: &[Way] = &[Way::Tls, Way::Plaintext, Way::Direct];
const ALL: &[Way] = &[Way::Tls, Way::Plaintext, Way::Forwarder, Way::Direct];

/// A client of the matrix.
#[derive(Debug, Clone, Copy)]
pub(super) struct Program {
    /// As in the table and in `CLIENTS`.
    pub name: &'static str,
    /// As people call it.
    pub title: &'static str,
    /// How it can reach an engine.
    pub ways: &'static [Way],
    kind: Kind,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// A script of `tests/clients/pyspark`.
    Python(Client, &'static str),
    /// A class of `tests/clients/scala`, on the class path of the client.
    Java(Client, &'static str),
    /// A program that `setup.sh clients` built.
    Native(&'static str),
}

const fn pyspark(name: &'static str, client: Client, ways: &'static [Way]) -> Program {
    Program {
        name,
        title: "PySpark",
        ways,
        kind: Kind::Python(client, "promises.py"),
    }
}

const fn scala(name: &'static str, client: Client) -> Program {
    Program {
        name,
        title: "Scala",
        ways: PLAINTEXT_TOO,
        kind: Kind::Java(client, "Promises"),
    }
}

const fn rust(name: &'static str, title: &'static str, path: &'static str, ways: &'static [Way]) -> Program {
    Program {
        name,
        title,
        ways,
        kind: Kind::Native(path),
    }
}

/// Every client of the matrix.
pub(super) const PROGRAMS: [Program; 18] = [
    pyspark("pyspark-3.4", Client::Py34, TLS),
    pyspark("pyspark-3.5", Client::Py35, TLS),
    pyspark("pyspark-4.0", Client::Py40, PLAINTEXT_TOO),
    pyspark("pyspark-4.1", Client::Py41, PLAINTEXT_TOO),
    pyspark("pyspark-4.2", Client::Py42, PLAINTEXT_TOO),
    pyspark("pyspark-4.3", Client::Py43, PLAINTEXT_TOO),
    Program {
        name: "pyspark-client-rust",
        title: "pyspark-client-rust",
        ways: PLAINTEXT_TOO,
        kind: Kind::Python(Client::PyRust, "promises.py"),
    },
    scala("scala-4.0", Client::Scala40),
    scala("scala-4.1.2", Client::ScalaOld),
    scala("scala-4.1.3", Client::Scala41),
    scala("scala-4.3", Client::ScalaNew),
    Program {
        name: "jdbc",
        title: "JDBC",
        ways: PLAINTEXT_TOO,
        kind: Kind::Java(Client::ScalaNew, "Jdbc"),
    },
    Program {
        name: "adbc",
        title: "ADBC",
        ways: PLAINTEXT_TOO,
        kind: Kind::Python(Client::Adbc, "adbc_promises.py"),
    },
    Program {
        name: "go",
        title: "Go",
        ways: TLS,
        kind: Kind::Native("client-go/promises"),
    },
    rust(
        "apache-spark-connect",
        "Rust apache-spark-connect",
        "client-rust/debug/apache",
        ALL,
    ),
    rust(
        "spark-connect",
        "Rust spark-connect",
        "client-rust/debug/connect",
        ALL,
    ),
    // Built with the feature `tls` it always uses TLS, and never without it.
    rust(
        "spark-connect-rs",
        "Rust spark-connect-rs",
        "client-rust/debug/rs-tls",
        &[Way::Tls],
    ),
    rust(
        "spark-connect-rs-plaintext",
        "Rust spark-connect-rs",
        "client-rust/debug/rs-plaintext",
        &[Way::Plaintext, Way::Forwarder, Way::Direct],
    ),
];

/// What a program printed.
#[derive(Debug)]
pub(super) struct Printed {
    /// The client's release.
    pub release: String,
    /// A line for each promise.
    pub tried: Vec<Tried>,
}

impl Program {
    /// The one with this name.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn named(name: &str) -> Result<Self> {
        let found = PROGRAMS.into_iter().find(|program| program.name == name);
        found.with_context(|| format!("no client {name}"))
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// When it hangs, fails, or prints something else than lines of promises.
    pub(super) async fn run(&self, dir: &Path, url: &str, ca: Option<&Path>) -> Result<Printed> {
        let dir = tempfile::tempdir_in(dir)?;
        let mut command = self.command(dir.path(), ca).await?;
        command
            .args(["--url", url])
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .env_remove("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH");
        if let Some(ca) = ca {
            command.env("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", ca);
            command.env("SSL_CERT_FILE", ca);
        }
        let output = tokio::time::timeout(LIMIT, command.output())
            .await
            .context("the client hangs")??;
        let stdout = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success(),
            "it ended with {}\n{stdout}\n{}",
            output.status,
            end_of(&String::from_utf8_lossy(&output.stderr))
        );
        read(&stdout).with_context(|| stdout.to_string())
    }

    async fn command(&self, dir: &Path, ca: Option<&Path>) -> Result<Command> {
        match self.kind {
            Kind::Python(client, script) => python(client, script),
            Kind::Java(client, class) => compiled_java(client, class, dir, ca).await,
            Kind::Native(path) => Ok(Command::new(installed(path)?)),
        }
    }
}

fn python(client: Client, script: &str) -> Result<Command> {
    let mut command = Command::new(client.interpreter()?);
    command
        .arg(repo().join("tests/clients/pyspark").join(script))
        .env_remove("PYTHONPATH");
    if let Some(packages) = client.packages()? {
        command.env("PYTHONPATH", packages);
    }
    Ok(command)
}

/// Compiled into files, because the engine gets classes of the program as uploads.
async fn compiled_java(client: Client, class: &str, dir: &Path, ca: Option<&Path>) -> Result<Command> {
    let sources = repo().join("tests/clients/scala");
    let client_path = client.class_path()?;
    let compiled = Command::new("javac")
        .args(["-nowarn", "-cp", &client_path, "-sourcepath"])
        .arg(&sources)
        .arg("-d")
        .arg(dir)
        .arg(sources.join(format!("{class}.java")))
        .output()
        .await
        .context("javac")?;
    ensure!(
        compiled.status.success(),
        "{}",
        String::from_utf8_lossy(&compiled.stderr)
    );
    let mut command = java(dir, ca)?;
    command
        .arg("-cp")
        .arg(format!("{}:{client_path}", dir.display()))
        .arg(class);
    Ok(command)
}

fn read(stdout: &str) -> Result<Printed> {
    let mut release = None;
    let mut tried = Vec::new();
    for line in stdout.lines().filter(|line| line.starts_with('{')) {
        let line: Value = serde_json::from_str(line)?;
        match line["release"].as_str() {
            Some(text) => release = Some(text.to_owned()),
            None => tried.push(serde_json::from_value(line)?),
        }
    }
    Ok(Printed {
        release: release.context("no line with the release")?,
        tried,
    })
}

fn end_of(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
}
