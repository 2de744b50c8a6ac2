//! Real Spark Connect clients as people run them, PySpark and Scala in several releases, and raw gRPC.

use anyhow::{Context, Result, bail, ensure};
use local_stack::paths::{installed, repo};
use serde_json::Value;
use std::fmt::Write as _;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// No client program runs longer.
const LIMIT: Duration = Duration::from_secs(300);

/// Which client library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// PySpark 3.4, which knows `promises.py` only. Speaks TLS only.
    Py34,
    /// PySpark 3.5. Speaks TLS only.
    Py35,
    /// PySpark 4.0.
    Py40,
    /// PySpark 4.1, beside Sail.
    Py41,
    /// PySpark 4.2.
    Py42,
    /// PySpark 4.3, beside Apache Spark.
    Py43,
    /// The PySpark API on the Rust client 4.2.
    PyRust,
    /// The Scala client 4.0.1, which sends its token as `authentication`; for `Promises.java` only.
    Scala40,
    /// The Scala client 4.1.2, which sends its token as `authentication`.
    ScalaOld,
    /// The Scala client 4.1.3, which sends it as `authorization`; for `Promises.java` only.
    Scala41,
    /// The Scala client 4.3, which sends it as `authorization`.
    ScalaNew,
    /// The ADBC driver, which knows `adbc.py` only.
    Adbc,
}

impl Client {
    /// Every client that knows the commands of `client.py`.
    pub const ALL: [Self; 8] = [
        Self::Py35,
        Self::Py40,
        Self::Py41,
        Self::Py42,
        Self::Py43,
        Self::PyRust,
        Self::ScalaOld,
        Self::ScalaNew,
    ];

    /// Those of [`Client::ALL`] that the environment names (`CLIENTS="Py40 ScalaNew"`), or all.
    pub fn chosen() -> Vec<Self> {
        let chosen = std::env::var("CLIENTS").unwrap_or_default();
        let named = |client: &Self| {
            let name = format!("{client:?}");
            chosen.is_empty() || chosen.split_whitespace().any(|word| word == name)
        };
        Self::ALL.into_iter().filter(named).collect()
    }

    /// Those that the environment names, or else these few.
    pub fn chosen_or(few: &[Self]) -> Vec<Self> {
        if std::env::var_os("CLIENTS").is_some() {
            Self::chosen()
        } else {
            few.to_vec()
        }
    }

    /// Whether it is the PySpark of Apache Spark.
    pub fn is_pyspark(self) -> bool {
        matches!(
            self,
            Self::Py35 | Self::Py40 | Self::Py41 | Self::Py42 | Self::Py43
        )
    }

    /// Whether the tests drive it over TLS: PySpark 3.5 does nothing else once it has a token, and
    /// the old Scala client says `authentication` only there; the Rust client and ADBC demand it in
    /// their own ways. The others come in plaintext.
    pub fn over_tls(self) -> bool {
        matches!(self, Self::Py35 | Self::PyRust | Self::ScalaOld | Self::Adbc)
    }

    fn command(self, dir: &Path, script: &str, args: &[&str], ca: Option<&Path>) -> Result<Command> {
        let mut command = match self {
            Self::ScalaOld | Self::ScalaNew => self.java(dir, script, ca)?,
            _ => self.python(script)?,
        };
        command
            .args(args)
            .current_dir(dir)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .env_remove("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH");
        if let Some(ca) = ca {
            // gRPC for Python, and Go and Rust.
            command.env("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", ca);
            command.env("SSL_CERT_FILE", ca);
        }
        Ok(command)
    }

    fn python(self, script: &str) -> Result<Command> {
        let mut command = Command::new(self.interpreter()?);
        command
            .arg(repo().join("tests/clients/pyspark").join(script))
            .env_remove("PYTHONPATH");
        if let Some(packages) = self.packages()? {
            command.env("PYTHONPATH", packages);
        }
        Ok(command)
    }

    /// The Python of a client for Python.
    ///
    /// # Errors
    /// When it is not installed.
    pub fn interpreter(self) -> Result<PathBuf> {
        installed(match self {
            Self::Py34 | Self::Py35 => "venv-py35/bin/python",
            Self::Py43 => "venv-spark/bin/python",
            _ => "venv-sail/bin/python",
        })
    }

    /// The folder with the client, if that is not in the packages of its Python.
    ///
    /// # Errors
    /// When it is not installed.
    pub fn packages(self) -> Result<Option<PathBuf>> {
        let folder = match self {
            Self::Py34 => "client-py34",
            Self::Py40 => "client-py40",
            Self::Py42 => "client-py42",
            Self::PyRust => "client-pyrust",
            Self::Adbc => "client-adbc",
            _ => return Ok(None),
        };
        installed(folder).map(Some)
    }

    /// The commands that `Client.java` has.
    fn java(self, dir: &Path, script: &str, ca: Option<&Path>) -> Result<Command> {
        ensure!(script == "client.py", "the Scala client has no {script}");
        let mut command = java(dir, ca)?;
        command
            .arg("-cp")
            .arg(self.class_path()?)
            .arg(repo().join("tests/clients/scala/Client.java"));
        Ok(command)
    }

    /// The class path of a Scala client.
    ///
    /// # Errors
    /// When it is not installed.
    pub fn class_path(self) -> Result<String> {
        let folder = match self {
            Self::Scala40 => "scala-4.0.1",
            Self::ScalaOld => "scala-4.1.2",
            Self::Scala41 => "scala-4.1.3",
            _ => return scala_beside_spark(),
        };
        Ok(format!("{}/*", installed(folder)?.display()))
    }

    /// Runs a program to its end and returns the JSON of its last line.
    ///
    /// # Errors
    /// When it fails; with the end of what it wrote.
    pub async fn run(self, dir: &Path, script: &str, args: &[&str], ca: Option<&Path>) -> Result<Value> {
        let mut command = self.command(dir, script, args, ca)?;
        let output = tokio::time::timeout(LIMIT, command.output())
            .await
            .context("the client hangs")??;
        let stdout = String::from_utf8_lossy(&output.stdout);
        let last = stdout.lines().last().unwrap_or_default();
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            let tail: Vec<&str> = stderr.lines().rev().take(25).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            bail!(
                "{script} {} ended with {}: {last}\n{}",
                args.first().unwrap_or(&""),
                output.status,
                tail.join("\n")
            );
        }
        serde_json::from_str(last).with_context(|| format!("{script} printed no JSON but {last:?}"))
    }

    /// Starts a program and returns once it has printed the line `mark`.
    ///
    /// # Errors
    /// When it ends or hangs before.
    pub async fn start_until(
        self,
        dir: &Path,
        script: &str,
        args: &[&str],
        ca: Option<&Path>,
        mark: &str,
    ) -> Result<RunningClient> {
        let mut command = self.command(dir, script, args, ca)?;
        let stderr = output_file(&dir.join("client-stderr.log"))?;
        let mut child = command.stdout(Stdio::piped()).stderr(stderr).spawn()?;
        let stdout = child.stdout.take().context("stdout")?;
        let mut running = RunningClient {
            child,
            lines: BufReader::new(stdout).lines(),
            stderr: dir.join("client-stderr.log"),
        };
        let waited = tokio::time::timeout(LIMIT, async {
            let mut last = String::new();
            while let Some(line) = running.lines.next_line().await? {
                if line == mark {
                    return Ok(());
                }
                last = line;
            }
            bail!(
                "it ended before it printed {mark:?}: {last}\n{}",
                running.complaint()
            )
        });
        waited.await.context("the client hangs")??;
        Ok(running)
    }

    /// As [`Client::start_until`], of a program that then waits for a line.
    ///
    /// # Errors
    /// When it ends or hangs before.
    pub async fn start_waiting(self, dir: &Path, script: &str, args: &[&str], mark: &str) -> Result<Waiting> {
        let mut command = self.command(dir, script, args, None)?;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(output_file(&dir.join("waiting-stderr.log"))?)
            .spawn()?;
        let stdin = child.stdin.take().context("stdin")?;
        let mut lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
        let line = tokio::time::timeout(LIMIT, lines.next_line())
            .await
            .context("the client hangs")??;
        if line.as_deref() != Some(mark) {
            bail!("it printed {line:?} instead of {mark:?}");
        }
        Ok(Waiting {
            running: RunningClient {
                child,
                lines,
                stderr: dir.join("waiting-stderr.log"),
            },
            stdin,
        })
    }

    /// Starts the interactive program: one Spark session, SQL in, answers out.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn repl(self, dir: &Path, url: &str, ca: Option<&Path>) -> Result<Repl> {
        let mut args = vec!["repl", "--url", url];
        if self.is_pyspark() {
            args.extend(["--limit", REPL_LIMIT]);
        }
        let mut command = self.command(dir, "client.py", &args, ca)?;
        let stderr = output_file(&dir.join("repl-stderr.log"))?;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()?;
        let stdin = child.stdin.take().context("stdin")?;
        let lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
        let mut repl = Repl {
            _child: child,
            stdin,
            lines,
        };
        let ready = repl.answer().await?;
        if ready["ready"] != true {
            bail!("the client is not ready: {ready}");
        }
        Ok(repl)
    }
}

/// `java` as the Scala client needs it, with a private authority; a class path and a program are missing.
///
/// # Errors
/// When the authority cannot be given to it.
pub fn java(dir: &Path, ca: Option<&Path>) -> Result<Command> {
    let mut command = Command::new("java");
    command
        .args([
            "--add-opens=java.base/java.nio=ALL-UNNAMED",
            "-XX:TieredStopAtLevel=1",
            "-XX:+UseSerialGC",
        ])
        .env("SPARK_LOCAL_IP", "127.0.0.1");
    if let Some(ca) = ca {
        let store = trust_store(dir, ca)?;
        command
            .arg(format!("-Djavax.net.ssl.trustStore={}", store.display()))
            .arg("-Djavax.net.ssl.trustStorePassword=changeit");
    }
    Ok(command)
}

/// `ca` as Java takes it. Made anew for each program: a key store that another one writes is broken.
fn trust_store(dir: &Path, ca: &Path) -> Result<PathBuf> {
    let store = tempfile::tempdir_in(dir)?.keep().join("trust.p12");
    let made = std::process::Command::new("keytool")
        .args([
            "-importcert",
            "-noprompt",
            "-storetype",
            "PKCS12",
            "-storepass",
            "changeit",
        ])
        .arg("-file")
        .arg(ca)
        .arg("-keystore")
        .arg(&store)
        .output()?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
    Ok(store)
}

/// The class path of the Scala client that comes with Apache Spark, as its own shell has it: without
/// the server's classes of the same names.
fn scala_beside_spark() -> Result<String> {
    let jars = installed("venv-spark/spark-home/jars")?;
    let mut path = format!("{}/connect-repl/*", jars.display());
    for jar in std::fs::read_dir(&jars)? {
        let jar = jar?.path();
        let name = jar.file_name().unwrap_or_default().to_string_lossy();
        let server = name.starts_with("spark-sql_") || name.starts_with("spark-connect_");
        if !server && jar.extension().is_some_and(|extension| extension == "jar") {
            write!(path, ":{}", jar.display())?;
        }
    }
    Ok(path)
}

/// Seconds after which a notebook ends itself. It ends with its test anyway, because its input ends.
const REPL_LIMIT: &str = "7200";

/// A client program on its way.
#[derive(Debug)]
pub struct RunningClient {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    stderr: PathBuf,
}

impl RunningClient {
    /// The last lines that it printed to stderr.
    fn complaint(&self) -> String {
        let said = std::fs::read_to_string(&self.stderr).unwrap_or_default();
        let lines: Vec<&str> = said.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    /// Waits for its end and returns the JSON of its last line.
    ///
    /// # Errors
    /// When it hangs or prints none.
    pub async fn finish(mut self, limit: Duration) -> Result<Value> {
        let mut last = String::new();
        tokio::time::timeout(limit, async {
            while let Some(line) = self.lines.next_line().await? {
                last = line;
            }
            self.child.wait().await
        })
        .await
        .with_context(|| format!("the client did not end within {limit:?}"))??;
        serde_json::from_str(&last).with_context(|| format!("no JSON but {last:?}\n{}", self.complaint()))
    }
}

/// A client program that waits for a line.
#[derive(Debug)]
pub struct Waiting {
    running: RunningClient,
    stdin: ChildStdin,
}

impl Waiting {
    /// Gives it the line, waits for its end and returns the JSON of its last line.
    ///
    /// # Errors
    /// When it hangs or prints none.
    pub async fn go_on(mut self, limit: Duration) -> Result<Value> {
        self.stdin.write_all(b"\n").await?;
        drop(self.stdin);
        self.running.finish(limit).await
    }
}

/// One Spark session under the test's control.
#[derive(Debug)]
pub struct Repl {
    _child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Repl {
    /// Runs one statement and returns its answer: `rows` or `error`.
    ///
    /// # Errors
    /// When the program ends or hangs.
    pub async fn sql(&mut self, statement: &str) -> Result<Value> {
        self.stdin.write_all(format!("{statement}\n").as_bytes()).await?;
        self.stdin.flush().await?;
        self.answer().await
    }

    /// `getOrCreate()` with another connection string, as a user does who was told to. Tells whether
    /// the client gave a `new` Spark session or the `same` one.
    ///
    /// # Errors
    /// When the program ends or hangs, or the client refuses.
    pub async fn connect(&mut self, url: &str) -> Result<String> {
        let answer = self.sql(&format!(":connect {url}")).await?;
        let which = answer["rows"][0].as_str().map(str::to_owned);
        which.with_context(|| format!("getOrCreate() failed: {answer}"))
    }

    /// `spark.stop()`. Answers whether it raised nothing.
    ///
    /// # Errors
    /// When the program ends or hangs.
    pub async fn stop(&mut self) -> Result<bool> {
        Ok(self.sql(":stop").await?["error"].is_null())
    }

    async fn answer(&mut self) -> Result<Value> {
        let line = tokio::time::timeout(LIMIT, self.lines.next_line())
            .await
            .context("the client hangs")??;
        let line = line.context("the client ended")?;
        serde_json::from_str(&line).with_context(|| format!("no JSON but {line:?}"))
    }
}

/// A file to collect a client's output in.
fn output_file(path: &Path) -> Result<File> {
    File::create(path).with_context(|| format!("creating {}", path.display()))
}
