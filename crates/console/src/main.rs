//! Entry point of console: reads the configuration, binds the ports, runs.

use anyhow::Result;
use clap::Parser;
use console::{Config, Listeners, run};
use service_kit::config::{ConfigArgs, Start, start};
use service_kit::shutdown::Shutdown;
use service_kit::telemetry;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Serves Berth's web console and REST API.
#[derive(Debug, Parser)]
#[command(name = "console", version)]
struct Args {
    #[command(flatten)]
    config: ConfigArgs,
}

#[tokio::main]
async fn main() -> Result<()> {
    let config: Config = match start(&Args::parse().config, "BERTH")? {
        Start::Run(config) => config,
        Start::Print(text) => {
            println!("{text}");
            return Ok(());
        }
    };
    let _telemetry = telemetry::init(&config.telemetry, "console")?;
    let listeners = Listeners::bind(&config).await?;
    run(config, listeners, Shutdown::on_signals()?).await
}
