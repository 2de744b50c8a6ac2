//! Entry point of token-issuer: reads the configuration, binds the ports, runs.

use anyhow::Result;
use clap::Parser;
use service_kit::config::{ConfigArgs, Start, start};
use service_kit::shutdown::Shutdown;
use service_kit::telemetry;
use token_issuer::{Config, Listeners, run};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Signs Berth's session tokens and publishes the public keys.
#[derive(Debug, Parser)]
#[command(name = "token-issuer", version)]
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
    let _telemetry = telemetry::init(&config.telemetry, "token-issuer")?;
    let listeners = Listeners::bind(&config).await?;
    run(config, listeners, Shutdown::on_signals()?).await
}
