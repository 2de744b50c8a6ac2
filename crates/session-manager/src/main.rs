//! Entry point of session-manager: reads the configuration, binds the ports, runs.

use anyhow::Result;
use clap::Parser;
use service_kit::config::{ConfigArgs, Start, start};
use service_kit::shutdown::Shutdown;
use service_kit::telemetry;
use session_manager::{Config, Listeners, inspect, open_store, run};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Manages Berth's sessions: gRPC APIs, timeouts, compute.
#[derive(Debug, Parser)]
#[command(name = "session-manager", version)]
struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print the stored state of one session, and exit.
    #[arg(long, value_name = "ORG/SESSION")]
    show: Option<String>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let config: Config = match start(&args.config, "BERTH")? {
        Start::Run(config) => config,
        Start::Print(text) => {
            println!("{text}");
            return Ok(());
        }
    };
    if let Some(name) = &args.show {
        let store = open_store(&config).await?;
        println!("{:#}", inspect(&*store, name).await?);
        return Ok(());
    }
    let _telemetry = telemetry::init(&config.telemetry, "session-manager")?;
    let listeners = Listeners::bind(&config).await?;
    run(config, listeners, Shutdown::on_signals()?).await
}
