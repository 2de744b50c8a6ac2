//! `berth`: command line for sessions and tokens.

mod args;
mod browser;
mod client;
mod commands;
mod config_file;
mod definition;
mod doctor;
mod key_dir;
mod key_secret;
mod keys;
mod login;
mod output;
mod private_file;
mod progress;
mod settings;

use args::Command;
use clap::builder::{FalseyValueParser, OsStringValueParser, TypedValueParser};
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _, Parser, ValueEnum};
use std::collections::BTreeSet;
use std::fmt;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::ExitCode;

/// Heading of the options that every command has.
const GLOBAL: &str = "Global options";

/// Warm, private Spark Connect sessions.
///
/// Sign in with `berth login`, or set BERTH_KEY to your service-account key. A
/// first session:
///
///   berth session create --cluster local --wait
///   berth token issue SESSION
///
/// If a connection does not work: berth doctor SESSION
#[derive(Debug, Parser)]
#[command(
    name = "berth",
    version,
    max_term_width = 100,
    verbatim_doc_comment,
    after_help = "A setting comes from its option, else its environment variable, else the context, else the default.\n\nExit codes: 0 done (also when the reader of the output closed it), 1 refused or failed (the reason is on stderr), 2 not a command, 10 to 16 faults of `berth doctor`, 130 interrupted; `berth exec` has its own."
)]
struct Cli {
    #[command(flatten)]
    global: GlobalArgs,

    #[command(subcommand)]
    command: Command,
}

/// Addresses, credentials and output.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = GLOBAL)]
struct GlobalArgs {
    /// Context to use in place of the current one: `berth context list` lists them.
    #[arg(long, global = true, env = "BERTH_CONTEXT", value_name = "NAME")]
    context: Option<String>,

    /// The session-manager's address; default: http://127.0.0.1:8081.
    #[arg(long, global = true, env = "BERTH_MANAGER", value_name = "URL")]
    manager: Option<String>,

    /// The token-issuer's address; default: http://127.0.0.1:8083.
    #[arg(long, global = true, env = "BERTH_ISSUER", value_name = "URL")]
    issuer: Option<String>,

    /// The console's address.
    #[arg(long, global = true, env = "BERTH_CONSOLE", value_name = "URL")]
    console: Option<String>,

    /// A file with your service-account key, in place of BERTH_KEY.
    #[arg(long, global = true, env = "BERTH_KEY_FILE", value_name = "FILE", value_parser = file())]
    key_file: Option<PathBuf>,

    /// A file with a token of your identity provider, in place of BERTH_TOKEN;
    /// each call reads it again.
    #[arg(long, global = true, env = "BERTH_TOKEN_FILE", value_name = "FILE", value_parser = file())]
    token_file: Option<PathBuf>,

    /// Allow plaintext for the key or token beyond loopback.
    #[arg(long, global = true, env = "BERTH_INSECURE", value_parser = FalseyValueParser::new())]
    insecure: bool,

    /// A PEM file with the private certificate authority of the servers.
    #[arg(long, global = true, env = "BERTH_CA", value_name = "FILE", value_parser = file())]
    ca: Option<PathBuf>,

    /// Output format.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,

    /// Print results and errors only: no progress and no hints.
    #[arg(short, long, global = true)]
    quiet: bool,

    /// Not accepted: arguments are visible to other users of the machine.
    #[arg(long, global = true, hide = true)]
    key: Option<String>,

    /// Not accepted: arguments are visible to other users of the machine.
    #[arg(long, global = true, hide = true)]
    bearer: Option<String>,
}

/// A path that can be empty: an empty variable counts as not set.
fn file() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// Ids of the global options that are on the command line, not in the
/// environment.
#[derive(Debug, Clone, Default)]
struct Given(BTreeSet<String>);

impl Given {
    fn of(matches: &ArgMatches) -> Self {
        let mut given = BTreeSet::new();
        let mut level = Some(matches);
        while let Some(matches) = level {
            let on_line =
                |id: &&clap::Id| matches.value_source(id.as_str()) == Some(ValueSource::CommandLine);
            given.extend(matches.ids().filter(on_line).map(|id| id.as_str().to_owned()));
            level = matches.subcommand().map(|(_, below)| below);
        }
        Self(given)
    }

    fn contains(&self, id: &str) -> bool {
        self.0.contains(id)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Tables for people.
    Table,
    /// JSON for programs, with the fields of the API.
    Json,
}

/// End of a command with an exit code of its own; what there is to say was
/// printed, or is the text.
#[derive(Debug)]
struct Exit {
    code: u8,
    text: String,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Exit {}

/// The command line as clap parses it.
fn command_line() -> clap::Command {
    args::hide_flat_words(Cli::command())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let matches = command_line().get_matches();
    let given = Given::of(&matches);
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    if let Err(error) = Box::pin(commands::run(cli, &given)).await {
        let exit = error.downcast_ref::<Exit>();
        if exit.is_none_or(|exit| !exit.text.is_empty()) {
            output::error(&format!("berth: {error:#}"));
        }
        return exit.map_or(ExitCode::FAILURE, |exit| ExitCode::from(exit.code));
    }
    match output::failure() {
        // A closed pipe is not an error.
        Some(error) if error.kind() != ErrorKind::BrokenPipe => {
            output::error(&format!("berth: writing the output failed: {error}"));
            ExitCode::FAILURE
        }
        Some(_) | None => ExitCode::SUCCESS,
    }
}

#[cfg(test)]
mod tests;
