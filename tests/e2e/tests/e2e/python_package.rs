//! The Python package `berth` (crates/cli/python): its wheel is built, and its
//! own tests run by pytest on released PySparks, against the whole of Berth.
//!
//! `make test` runs a part; `make test-python` runs the matrix of releases,
//! engines, TLS and plaintext (CLIENTS="Py35 Py43" ENGINES=sail choose).

use crate::login::{Provider, trusting};
use anyhow::{Context, Result, bail, ensure};
use e2e::{Client, Engine, Stack, StackOptions, Tls, binary, installed, repo};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::process::Command;
use tokio::sync::{OnceCell, Semaphore};
use tokio::task::{JoinSet, LocalSet};

/// The longest run of pytest.
const LIMIT: Duration = Duration::from_secs(1500);
/// Lines of output that a failure shows.
const SHOWN_LINES: usize = 120;
/// Runs of the matrix at the same time: most of their time they wait.
const AT_ONCE: usize = 3;

/// No difference of clocks and no grace, so that an old token fails at the next
/// call; and an organization whose quota one session fills.
fn options(tls: Tls) -> StackOptions {
    StackOptions {
        tls,
        proxy: "tokens.leeway = \"0s\"\ntokens.reattach_grace = \"0s\"\ntokens.interrupt_grace = \"0s\""
            .to_owned(),
        // The tests create more than the 30 sessions a minute that one owner may.
        manager: "[[orgs]]\nname = \"acme\"\nlimits = { creates_per_minute = 1000 }\n\
                  [[orgs]]\nname = \"umbrella\"\nlimits = { live_sessions_per_owner = 1 }\n"
            .to_owned(),
        ..StackOptions::default()
    }
}

/// The folder of the installed wheel, built once.
async fn package() -> Result<&'static Path> {
    static PACKAGE: OnceCell<TempDir> = OnceCell::const_new();
    let dir = PACKAGE.get_or_try_init(build).await?;
    Ok(dir.path())
}

async fn build() -> Result<TempDir> {
    let dir = tempfile::tempdir()?;
    let pip = async |args: &[&str]| {
        let output = Command::new(installed("venv-wheel/bin/python")?)
            .args(["-m", "pip", "--disable-pip-version-check", "--quiet"])
            .args(args)
            .current_dir(dir.path())
            .output()
            .await?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        anyhow::Ok(())
    };
    let source = repo().join("crates/cli/python").display().to_string();
    pip(&[
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        "wheel",
        &source,
    ])
    .await?;
    let wheel = std::fs::read_dir(dir.path().join("wheel"))?
        .next()
        .context("no wheel")??;
    let name = wheel.file_name().to_string_lossy().into_owned();
    let expected = format!("berth-{}-py3-none-any.whl", env!("CARGO_PKG_VERSION"));
    ensure!(name == expected, "{name} is not {expected}");
    let wheel = wheel.path().display().to_string();
    pip(&["install", "--no-deps", "--no-index", "--target", ".", &wheel]).await?;
    Ok(dir)
}

/// One run of pytest.
struct Run<'a> {
    client: Client,
    /// Files of the package's tests, and options.
    args: &'a [&'a str],
    env: Vec<(&'a str, String)>,
}

impl Run<'_> {
    async fn finish(&self) -> Result<String> {
        let mut packages = vec![package().await?.to_owned()];
        packages.extend(self.client.packages()?);
        packages.extend([installed("client-pytest")?, installed("client-notebook")?]);
        let dir = tempfile::tempdir()?;
        let tests = repo().join("crates/cli/python");
        let output = Command::new(self.client.interpreter()?)
            .args(["-m", "pytest", "-q", "--durations=3", "--basetemp"])
            .arg(dir.path().join("pytest"))
            .arg("--rootdir")
            .arg(&tests)
            .arg("-c")
            .arg(tests.join("pyproject.toml"))
            .args(self.args.iter().map(|arg| absolute(&tests, arg)))
            .current_dir(dir.path())
            .env("PYTHONPATH", std::env::join_paths(packages)?)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env_remove("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH")
            .env_remove("SPARK_REMOTE")
            .envs(self.env.iter().map(|(name, value)| (*name, value.as_str())))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(LIMIT, output)
            .await
            .context("pytest hangs")??;
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        let shown = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
        ensure!(
            output.status.success(),
            "{:?}: pytest failed\n{shown}",
            self.client
        );
        let summary = lines.iter().rev().find(|line| line.contains(" passed"));
        summary
            .map(|line| (*line).to_owned())
            .with_context(|| format!("no test ran: {shown}"))
    }
}

/// Paths are those in the folder of the package.
fn absolute(tests: &Path, arg: &str) -> OsString {
    match arg.strip_prefix("tests/") {
        Some(_) => tests.join(arg).into_os_string(),
        None => arg.into(),
    }
}

/// What the package's tests must know about a stack.
fn stack_of(stack: &Stack, engine: Engine, tls: bool) -> Result<Value> {
    let keys: serde_json::Map<String, Value> = ["ada", "bob", "olga", "eve"]
        .into_iter()
        .map(|who| (who.to_owned(), stack.key_of(who).into()))
        .collect();
    Ok(json!({
        "manager": stack.manager_uri,
        "issuer": stack.issuer_uri(),
        "ca": stack.ca(),
        "keys": keys,
        "berth": binary("berth")?,
        "engine": engine.cluster(),
        "tls": tls,
        "oidc": null,
    }))
}

async fn on_stack(stack: &Stack, client: Client, engine: Engine, tls: bool, args: &[&str]) -> Result<String> {
    let run = Run {
        client,
        args,
        env: vec![("BERTH_TEST", stack_of(stack, engine, tls)?.to_string())],
    };
    run.finish().await
}

/// Everything that needs no Berth, on the oldest PySpark, that of Sail, and the newest.
#[tokio::test]
async fn units() -> Result<()> {
    for client in [Client::Py35, Client::Py41, Client::Py43] {
        let run = Run {
            client,
            args: &["tests/unit"],
            env: Vec::new(),
        };
        println!("{client:?}: {}", run.finish().await?);
    }
    Ok(())
}

/// `mypy --strict`, for the oldest Python that the checker knows and this one.
#[tokio::test]
async fn types() -> Result<()> {
    for version in ["3.10", "3.13"] {
        let output = Command::new(installed("venv-wheel/bin/python")?)
            .args(["-m", "mypy", "--no-incremental", "--cache-dir", "/dev/null"])
            .args(["--python-version", version, "src/berth"])
            .current_dir(repo().join("crates/cli/python"))
            .output()
            .await?;
        ensure!(
            output.status.success(),
            "{version}: {}",
            String::from_utf8_lossy(&output.stdout)
        );
    }
    Ok(())
}

/// PySpark 3.5 speaks TLS with a private authority.
#[tokio::test]
async fn oldest_pyspark_on_sail() -> Result<()> {
    let stack = Stack::start_with(options(Tls::Required)).await?;
    let summary = on_stack(&stack, Client::Py35, Engine::Sail, true, &["tests/stack"]).await?;
    println!("{summary}");
    Ok(())
}

/// The newest one on Apache Spark in plaintext: what concerns the engine.
#[tokio::test]
async fn newest_pyspark_on_spark() -> Result<()> {
    let stack = Stack::start_with(options(Tls::Off)).await?;
    let args = ["tests/stack/test_renewal.py", "tests/stack/test_notebook.py"];
    let summary = on_stack(&stack, Client::Py43, Engine::Spark, false, &args).await?;
    println!("{summary}");
    Ok(())
}

/// The examples of docs/python.md, on the PySpark that they install.
#[tokio::test]
async fn documented_examples() -> Result<()> {
    let stack = Stack::start_with(options(Tls::Off)).await?;
    let args = ["tests/stack/test_documented.py"];
    let summary = on_stack(&stack, Client::Py41, Engine::Sail, false, &args).await?;
    println!("{summary}");
    Ok(())
}

/// The sign-in by device, renewed beyond the life of its token.
#[tokio::test]
async fn sign_in() -> Result<()> {
    let provider = Provider::start(15).await?;
    let stack = Stack::start_with(trusting(&provider)).await?;
    let mut test = stack_of(&stack, Engine::Sail, false)?;
    test["oidc"] = json!({ "issuer": provider.issuer(), "dir": provider.dir.path() });
    let run = Run {
        client: Client::Py41,
        args: &["tests/stack/test_login.py"],
        env: vec![("BERTH_TEST", test.to_string())],
    };
    println!("{}", run.finish().await?);
    Ok(())
}

/// Every release on Sail and on Apache Spark in plaintext, the oldest and the
/// newest over TLS too. Prints a line for each.
#[tokio::test]
#[ignore = "make test-python runs it: half an hour"]
async fn matrix() -> Result<()> {
    // The start of a stack stays on its thread.
    LocalSet::new().run_until(run_matrix()).await
}

async fn run_matrix() -> Result<()> {
    let engines = std::env::var("ENGINES").unwrap_or_default();
    let chosen = |engine: Engine| {
        engines.is_empty() || engines.split_whitespace().any(|word| word == engine.cluster())
    };
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut runs = JoinSet::new();
    for engine in [Engine::Sail, Engine::Spark]
        .into_iter()
        .filter(|engine| chosen(*engine))
    {
        for client in Client::chosen().into_iter().filter(|client| client.is_pyspark()) {
            runs.spawn_local(one_of_matrix(client, engine, Tls::Off, places.clone()));
            if matches!(client, Client::Py35 | Client::Py43) {
                runs.spawn_local(one_of_matrix(client, engine, Tls::Required, places.clone()));
            }
        }
    }
    let failed: Vec<String> = runs.join_all().await.into_iter().flatten().collect();
    if !failed.is_empty() {
        bail!("{} runs failed:\n\n{}", failed.len(), failed.join("\n\n"));
    }
    Ok(())
}

/// The failure, if it failed. Each has a stack of its own: the limits of the
/// accounts are for one run.
async fn one_of_matrix(client: Client, engine: Engine, tls: Tls, places: Arc<Semaphore>) -> Option<String> {
    let _place = places.acquire().await.ok()?;
    let begun = Instant::now();
    let run = async {
        let stack = Stack::start_with(options(tls)).await?;
        let mut test = stack_of(&stack, engine, tls == Tls::Required)?;
        // Long enough for Spark to end its stream, so that PySpark reattaches.
        test["long"] = true.into();
        let run = Run {
            client,
            args: &["tests/stack"],
            env: vec![("BERTH_TEST", test.to_string())],
        };
        run.finish().await
    };
    let transport = if tls == Tls::Required { "TLS" } else { "plaintext" };
    let which = format!("{client:?} on {} in {transport}", engine.cluster());
    match run.await {
        Ok(summary) => {
            println!("{which}: {summary} ({:.0} s)", begun.elapsed().as_secs_f64());
            None
        }
        Err(error) => {
            println!("{which}: FAILED ({:.0} s)", begun.elapsed().as_secs_f64());
            Some(format!("{which}: {error:#}"))
        }
    }
}
