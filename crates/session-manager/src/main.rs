//! session-manager's entry: read the configuration, bind, run.

use anyhow::Result;
use clap::Parser;
use service_kit::config::{ConfigArgs, Start, start_over_defaults};
use service_kit::shutdown::Shutdown;
use service_kit::telemetry;
use session_manager::{Config, Listeners, run};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The life of Berth's sessions: gRPC APIs, clocks, compute.
#[derive(Debug, Parser)]
#[command(name = "session-manager", version)]
struct Args {
    #[command(flatten)]
    config: ConfigArgs,
}

#[tokio::main]
async fn main() -> Result<()> {
    let config: Config = match start_over_defaults(&Args::parse().config, "BERTH")? {
        Start::Run(config) => config,
        Start::Print(text) => {
            println!("{text}");
            return Ok(());
        }
    };
    let _telemetry = telemetry::init(&config.telemetry, "session-manager")?;
    let listeners = Listeners::bind(&config).await?;
    run(config, listeners, Shutdown::on_signals()?).await
}
