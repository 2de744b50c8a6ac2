//! session-manager's entry: read the configuration, bind, run.

use anyhow::Result;
use clap::Parser;
use service_kit::config::{ConfigArgs, Start, start};
use service_kit::shutdown::Shutdown;
use service_kit::telemetry;
use session_manager::{Config, Listeners, open_store, run, show};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The life of Berth's sessions: gRPC APIs, clocks, compute.
#[derive(Debug, Parser)]
#[command(name = "session-manager", version)]
struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print what the store holds of one session, and stop.
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
        println!("{:#}", show(&*store, name).await?);
        return Ok(());
    }
    let _telemetry = telemetry::init(&config.telemetry, "session-manager")?;
    let listeners = Listeners::bind(&config).await?;
    run(config, listeners, Shutdown::on_signals()?).await
}
