//! `berth-dev`: runs Berth on this machine, and its mutations. The Makefile
//! builds and calls it.

mod mutants;
mod run;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// Exit code after Ctrl-C, as shells have it.
const INTERRUPTED: u8 = 130;

/// Runs Berth on this machine, and its mutations.
#[derive(Debug, Parser)]
#[command(name = "berth-dev", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Starts everything, runs a PySpark query, and serves until Ctrl-C.
    Run(run::Options),
    /// Introduces one fault at a time and requires that the simulation detects it.
    Mutants(mutants::Options),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut stack = run::Stack::default();
    let done = match Cli::parse().command {
        Command::Run(options) => until_interrupted(run::run(&options, &mut stack)).await,
        Command::Mutants(options) => until_interrupted(mutants::mutants(&options)).await,
    };
    let code = match done {
        Ok(Some(())) => ExitCode::SUCCESS,
        Ok(None) => ExitCode::from(INTERRUPTED),
        Err(error) => {
            eprintln!("berth: error: {error:#}");
            ExitCode::FAILURE
        }
    };
    // Another signal kills what has not ended yet.
    if let Err(error) = until_interrupted(stack.stop()).await {
        eprintln!("berth: error: {error:#}");
        return ExitCode::FAILURE;
    }
    code
}

/// The outcome of `work`; none if a signal came first that ends a program.
async fn until_interrupted(work: impl Future<Output = Result<()>>) -> Result<Option<()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        done = work => done.map(Some),
        _ = interrupt.recv() => Ok(None),
        _ = terminate.recv() => Ok(None),
        _ = hangup.recv() => Ok(None),
    }
}
