//! Options, telemetry, and [`spark_proxy::run`].

use clap::Parser;
use service_kit::config::{ConfigArgs, Start, start};
use service_kit::shutdown::Shutdown;
use spark_proxy::{Config, Listeners, run};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The data path of Berth: verifies tokens, finds the route, streams bytes.
#[derive(Parser)]
#[command(version)]
struct Options {
    #[command(flatten)]
    config: ConfigArgs,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let config: Config = match start(&options.config, "BERTH")? {
        Start::Run(config) => config,
        Start::Print(text) => {
            println!("{text}");
            return Ok(());
        }
    };
    // Control work only; the workers have their own runtimes.
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?
        .block_on(async {
            let telemetry = service_kit::telemetry::init(&config.telemetry, "spark-proxy")?;
            let result = run(config, Listeners::default(), Shutdown::on_signals()?).await;
            drop(telemetry);
            result
        })
}
