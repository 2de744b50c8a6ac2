//! The command-line options that every service has.

use super::{ConfigError, Sources, Validate, load, to_toml};
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
    /// Check the configuration, report all problems, and exit
    #[arg(long)]
    pub check_config: bool,
    /// Print the effective configuration as TOML with masked secrets, and exit
    #[arg(long)]
    pub print_config: bool,
}

/// Next step of `main`.
#[derive(Debug)]
pub enum Start<T> {
    /// Run with this configuration.
    Run(T),
    /// Print this and exit with success.
    Print(String),
}

/// Loads the configuration of this process ([`load`]) and applies the options.
///
/// # Errors
/// Every problem of the configuration.
pub fn start<T>(args: &ConfigArgs, prefix: &str) -> Result<Start<T>, ConfigError>
where
    T: DeserializeOwned + Serialize + Validate + Default,
{
    let config: T = load(&Sources::of_process(prefix, args.config.clone()))?;
    Ok(if args.print_config {
        Start::Print(to_toml(&config)?)
    } else if args.check_config {
        Start::Print("the configuration is valid".to_owned())
    } else {
        Start::Run(config)
    })
}
