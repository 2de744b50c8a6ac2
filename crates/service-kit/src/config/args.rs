//! The command-line options that every service has.

use super::{ConfigError, Sources, Validate, load, load_over_defaults, to_toml};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::PathBuf;

/// `--config`, `--check-config`, `--print-config`; flatten into the program's
/// own clap struct, or parse alone.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ConfigArgs {
    /// Configuration file, TOML or YAML by its extension
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Check the configuration, name everything that is wrong with it, and end
    #[arg(long)]
    pub check_config: bool,
    /// Print the configuration in effect as TOML, secrets hidden, and end
    #[arg(long)]
    pub print_config: bool,
}

/// What `main` does next.
#[derive(Debug)]
pub enum Start<T> {
    /// Run with this configuration.
    Run(T),
    /// Print this and end well.
    Print(String),
}

/// Loads the configuration of this process ([`load`]) and does what the options say.
pub fn start<T>(args: &ConfigArgs, prefix: &str) -> Result<Start<T>, ConfigError>
where
    T: DeserializeOwned + Serialize + Validate,
{
    proceed(args, load(&Sources::of_process(prefix, args.config.clone()))?)
}

/// The same by [`load_over_defaults`].
pub fn start_over_defaults<T>(args: &ConfigArgs, prefix: &str) -> Result<Start<T>, ConfigError>
where
    T: DeserializeOwned + Serialize + Validate + Default,
{
    proceed(
        args,
        load_over_defaults(&Sources::of_process(prefix, args.config.clone()))?,
    )
}

fn proceed<T: Serialize>(args: &ConfigArgs, config: T) -> Result<Start<T>, ConfigError> {
    Ok(if args.print_config {
        Start::Print(to_toml(&config)?)
    } else if args.check_config {
        Start::Print("the configuration is good".to_owned())
    } else {
        Start::Run(config)
    })
}
