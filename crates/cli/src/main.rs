//! `berth`: command line for sessions and tokens.

mod args;
mod client;
mod commands;
mod definition;
mod key_dir;
mod key_secret;
mod keys;
mod output;

use args::Command;
use clap::{Parser, ValueEnum};
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::ExitCode;

/// Heading of the options that every command has.
const GLOBAL: &str = "Global options";

/// Warm, private Spark Connect sessions.
///
/// Set BERTH_KEY to your service-account key, or BERTH_TOKEN to a token of your
/// identity provider. A first session:
///
///   berth create --cluster local --wait
///   berth token <session>
#[derive(Debug, Parser)]
#[command(
    name = "berth",
    version,
    max_term_width = 100,
    verbatim_doc_comment,
    after_help = "Exit codes: 0 done (also when the reader of the output closed it), 1 refused or failed (the reason is on stderr), 2 not a command."
)]
struct Cli {
    #[command(flatten)]
    target: Target,

    /// Output format.
    #[arg(short, long, global = true, help_heading = GLOBAL, value_enum, default_value_t = Output::Table)]
    output: Output,

    #[command(subcommand)]
    command: Command,
}

/// Addresses and credentials.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = GLOBAL)]
struct Target {
    /// The session-manager's address.
    #[arg(
        long,
        global = true,
        env = "BERTH_MANAGER",
        default_value = "http://127.0.0.1:8081"
    )]
    manager: String,

    /// The token-issuer's address.
    #[arg(
        long,
        global = true,
        env = "BERTH_ISSUER",
        default_value = "http://127.0.0.1:8083"
    )]
    issuer: String,

    /// Your service-account key. Prefer the environment variable: arguments
    /// are visible to other users of this machine.
    #[arg(long, global = true, env = "BERTH_KEY", hide_env_values = true)]
    key: Option<String>,

    /// A token of your identity provider, instead of a key. Prefer the
    /// environment variable, or a file.
    #[arg(long, global = true, env = "BERTH_TOKEN", hide_env_values = true)]
    bearer: Option<String>,

    /// A file with such a token; each command reads it again.
    #[arg(long, global = true, env = "BERTH_TOKEN_FILE", conflicts_with = "bearer")]
    token_file: Option<PathBuf>,

    /// Allow plaintext for the key or token beyond loopback.
    #[arg(long, global = true, env = "BERTH_INSECURE")]
    insecure: bool,

    /// A PEM file with the private certificate authority of both servers.
    #[arg(long, global = true, env = "BERTH_CA")]
    ca: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Tables for people.
    Table,
    /// JSON for programs, with the fields of the API.
    Json,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(error) = commands::run(cli).await {
        output::note(&format!("berth: {error:#}"));
        return ExitCode::FAILURE;
    }
    match output::failure() {
        // A closed pipe is not an error.
        Some(error) if error.kind() != ErrorKind::BrokenPipe => {
            output::note(&format!("berth: writing the output failed: {error}"));
            ExitCode::FAILURE
        }
        Some(_) | None => ExitCode::SUCCESS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_commands_are_well_formed() {
        Cli::command().debug_assert();
    }

    fn parses(line: &str) -> bool {
        Cli::try_parse_from(line.split(' ')).is_ok()
    }

    #[test]
    fn what_can_be_said_and_what_cannot() {
        for line in [
            "berth watch",
            "berth watch s-1",
            "berth extend s-1 --for 2h",
            "berth extend s-1 --until 2030-01-01T00:00:00Z",
            "berth keep-alive s-1 --for 30m",
            "berth update s-1 --name x --label a=b --remove-label c",
            "berth ops s-1",
            "berth interrupt s-1 --all",
            "berth interrupt s-1 --operation a --operation b",
            "berth orgs",
            "berth orgs create acme --live-sessions 5",
            "berth orgs limits acme --labels 3",
            "berth orgs disable acme",
            "berth disable-principal sa|ada --org acme",
            "berth enable-principal sa|ada",
            "berth clusters",
            "berth clusters create lab.toml",
            "berth clusters delete lab --force",
            "berth catalogs test lake --cluster c",
            "berth catalogs delete lake --force",
            "berth keys secret signing -n berth --owner keys --label a=b",
            "berth keys secret signing --rotate",
        ] {
            assert!(parses(line), "{line}");
        }
        for line in [
            "berth extend s-1",
            "berth extend s-1 --for 2h --until 2030-01-01T00:00:00Z",
            "berth keep-alive s-1 --for soon",
            "berth update s-1",
            "berth update s-1 --name x --no-name",
            "berth interrupt s-1",
            "berth interrupt s-1 --all --operation a",
            "berth orgs limits acme",
            "berth catalogs test lake",
        ] {
            assert!(!parses(line), "{line}");
        }
    }

    #[test]
    fn the_help_shows_a_first_session_and_global_options_apart() {
        let help = Cli::command().render_long_help().to_string();
        let example = "\n  berth create --cluster local --wait\n  berth token <session>\n";
        assert!(help.contains(example), "{help}");
        let (_, global) = help.split_once("\nGlobal options:\n").unwrap();
        for option in ["--manager", "--issuer", "--key", "--token-file", "--output"] {
            assert!(global.contains(option), "{option} in {help}");
        }
        Cli::command().debug_assert();
    }
}
