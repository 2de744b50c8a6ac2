//! The client matrix: released clients keep the promises of `tests/clients/promises.toml` through
//! Berth, on Sail and on Apache Spark, over TLS and, where the client allows it, in plaintext and
//! through `berth connect`.
//!
//! `make test` runs a part. `make test-clients` runs the whole (CLIENTS="pyspark-3.5 scala"
//! ENGINES=sail choose), each client once more without Berth, and writes what it saw to
//! docs/clients.md.

mod page;
mod program;
mod table;

use anyhow::{Context, Result, bail, ensure};
use e2e::{Engine, Forwarder, Server, Stack, StackOptions, Tls};
use page::Row;
use program::{PROGRAMS, Program};
use std::fmt;
use std::time::Instant;
use table::{Run, Table};

/// How a client reaches the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Tls,
    Plaintext,
    /// Through `berth connect`.
    Forwarder,
    /// Without Berth.
    Direct,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tls => "TLS",
            Self::Plaintext => "plaintext",
            Self::Forwarder => "forwarder",
            Self::Direct => "direct",
        })
    }
}

/// One engine behind Berth.
struct Stage {
    engine: Engine,
    stack: Stack,
    session: String,
    /// For the whole matrix.
    more: Option<More>,
    table: Table,
}

/// Other ways to an engine than the port of Berth.
struct More {
    forwarder: Forwarder,
    direct: Server,
}

impl Stage {
    async fn start(engine: Engine) -> Result<Self> {
        let table = Table::read()?;
        let stack = Stack::start_with(StackOptions {
            tls: Tls::Auto,
            ..StackOptions::default()
        })
        .await?;
        Ok(Self {
            session: stack.session("ada", engine, &[])?,
            engine,
            stack,
            more: None,
            table,
        })
    }

    /// With a forwarder, and an engine without Berth.
    async fn start_whole(engine: Engine) -> Result<Self> {
        let mut stage = Self::start(engine).await?;
        stage.more = Some(More {
            forwarder: Forwarder::start(&stage.stack, "ada", &[&stage.session]).await?,
            direct: match engine {
                Engine::Sail => Server::sail().await?,
                Engine::Spark => Server::spark(stage.stack.dir.path(), &[]).await?,
            },
        });
        Ok(stage)
    }

    fn url(&self, way: Way) -> Result<String> {
        let url = self.stack.url("ada", &self.session)?;
        Ok(match (way, &self.more) {
            (Way::Plaintext, _) => url,
            (Way::Tls, _) => url.replacen("/;", "/;use_ssl=true;", 1),
            (Way::Forwarder, Some(more)) => more.forwarder.url.clone(),
            (Way::Direct, Some(more)) => format!("sc://localhost:{}", more.direct.address.port()),
            (Way::Forwarder | Way::Direct, None) => bail!("{way} is a way of the whole matrix only"),
        })
    }

    /// Runs one client one way. The failure is what is not as the table has it.
    async fn run(&self, program: &Program, way: Way) -> Result<Row<'_>> {
        let begun = Instant::now();
        let url = self.url(way)?;
        let ca = self.stack.ca().filter(|_| way == Way::Tls);
        let dir = self.stack.dir.path();
        let run = program.run(dir, &url, ca).await;
        let which = format!("{} on {}, {way}", program.name, self.engine.cluster());
        let (client, engine) = (program.name, self.engine);
        let now = Run { client, engine, way };
        let printed = run.with_context(|| which.clone())?;
        let wrong = self.table.judge(now, &printed.tried);
        ensure!(wrong.is_empty(), "{which}:\n  {}", wrong.join("\n  "));
        let row = Row {
            title: program.title,
            release: printed.release,
            engine: self.engine,
            way,
            promises: self.table.len(),
            differs: self.table.differences(now),
            not_offered: self.table.not_offered(now),
        };
        println!(
            "{which}: {} ({:.0} s)",
            row.summary(),
            begun.elapsed().as_secs_f64()
        );
        Ok(row)
    }
}

/// The oldest release that many people have, over TLS, and that of Sail, in plaintext.
#[tokio::test]
async fn two_clients_on_sail() -> Result<()> {
    let stage = Stage::start(Engine::Sail).await?;
    stage.run(&Program::named("pyspark-3.5")?, Way::Tls).await?;
    stage.run(&Program::named("pyspark-4.1")?, Way::Plaintext).await?;
    Ok(())
}

/// The words of an environment variable; none when it is not set.
fn chosen(variable: &str) -> Vec<String> {
    let words = std::env::var(variable).unwrap_or_default();
    words.split_whitespace().map(ToOwned::to_owned).collect()
}

/// What one engine's part of the matrix saw, and what was not as the table has it.
async fn whole_on(engine: Engine, programs: &[Program]) -> Result<(Vec<String>, Vec<String>)> {
    let stage = Stage::start_whole(engine).await?;
    let (mut rows, mut failed) = (Vec::new(), Vec::new());
    for program in programs {
        for way in program.ways {
            match stage.run(program, *way).await {
                Ok(row) => rows.push(row),
                Err(error) => {
                    println!("FAILED {error:#}");
                    failed.push(format!("{error:#}"));
                }
            }
        }
    }
    Ok((page::lines(&rows), failed))
}

/// Every client on every engine in every way.
#[tokio::test]
#[ignore = "make test-clients runs it: a quarter of an hour"]
async fn matrix() -> Result<()> {
    let (clients, engines) = (chosen("CLIENTS"), chosen("ENGINES"));
    let wanted = |words: &[String], name: &str| {
        words.is_empty() || words.iter().any(|word| name.starts_with(word.as_str()))
    };
    let programs: Vec<Program> = PROGRAMS
        .into_iter()
        .filter(|program| wanted(&clients, program.name))
        .collect();
    ensure!(!programs.is_empty(), "no client is called {clients:?}");
    let part = async |engine: Engine| {
        if wanted(&engines, engine.cluster()) {
            whole_on(engine, &programs).await
        } else {
            Ok((Vec::new(), Vec::new()))
        }
    };
    let (sail, spark) = tokio::join!(part(Engine::Sail), part(Engine::Spark));
    let ((sail, sail_failed), (spark, spark_failed)) = (sail?, spark?);
    let failed = [sail_failed, spark_failed].concat();
    ensure!(
        failed.is_empty(),
        "{} runs failed:\n\n{}",
        failed.len(),
        failed.join("\n\n")
    );
    let lines = [sail, spark].concat();
    println!("{}", lines.join("\n"));
    page::TABLE.write(&lines, clients.is_empty() && engines.is_empty())
}
