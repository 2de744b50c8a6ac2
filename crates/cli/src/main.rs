//! `berth`: sessions and tokens from the terminal, for people and scripts.

mod client;
mod commands;
mod keyfolder;
mod keys;
mod show;

use clap::{Parser, Subcommand, ValueEnum};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Warm, private Spark Connect sessions.
///
/// Set BERTH_KEY to your service-account key, or BERTH_TOKEN to a token of your
/// identity provider. A first session:
///
///   berth create --cluster local --wait
///   berth token <session>
#[derive(Debug, Parser)]
#[command(name = "berth", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    target: Target,

    /// How to print results.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,

    #[command(subcommand)]
    command: Command,
}

/// Where Berth is and who asks.
#[derive(Debug, clap::Args)]
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

    /// A file with such a token, which is read anew by each command.
    #[arg(long, global = true, env = "BERTH_TOKEN_FILE", conflicts_with = "bearer")]
    token_file: Option<PathBuf>,

    /// Send the key or token in plaintext to an address beyond this machine.
    #[arg(long, global = true, env = "BERTH_INSECURE")]
    insecure: bool,

    /// A PEM file with the certificate authority of both, if it is private.
    #[arg(long, global = true, env = "BERTH_CA")]
    ca: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// For programs: the API's own fields.
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a session.
    Create(Create),
    /// List your sessions, newest first.
    List {
        /// Also those that are closed or failed.
        #[arg(short, long)]
        all: bool,
        /// At most this many.
        #[arg(long, default_value_t = 100)]
        limit: i32,
    },
    /// Show a session.
    Show {
        /// The session's id.
        session: String,
    },
    /// Show what happened to a session.
    Events {
        /// The session's id.
        session: String,
    },
    /// Close a session: ends its queries and gives its compute back.
    Close {
        /// The sessions' ids.
        #[arg(required = true)]
        sessions: Vec<String>,
    },
    /// Wake an idle session before the first query needs it.
    Warm {
        /// The session's id.
        session: String,
    },
    /// Make a token for a session and print the connection string.
    Token {
        /// The session's id.
        session: String,
        /// How long it is good, e.g. 30m; 60 s to 12 h.
        #[arg(long, value_parser = humantime::parse_duration)]
        ttl: Option<Duration>,
    },
    /// List the tokens of a session, never the tokens themselves.
    Tokens {
        /// The session's id.
        session: String,
    },
    /// Take back one token, or all; their running queries end too.
    Revoke {
        /// The session's id.
        session: String,
        /// The token's id.
        #[arg(required_unless_present = "all")]
        token: Option<String>,
        /// Every token issued so far.
        #[arg(long, conflicts_with = "token")]
        all: bool,
    },
    /// List the clusters you may use.
    Clusters,
    /// List the catalogs you may use.
    Catalogs,
    /// Make keys, for setting Berth up. Needs no server.
    #[command(subcommand)]
    Keys(Keys),
}

#[derive(Debug, clap::Args)]
struct Create {
    /// Where it runs: `berth clusters` lists them.
    #[arg(long)]
    cluster: String,
    /// Its default catalog: `berth catalogs` lists them.
    #[arg(long)]
    catalog: Option<String>,
    /// A name for people.
    #[arg(long)]
    name: Option<String>,
    /// One of your teams.
    #[arg(long)]
    team: Option<String>,
    /// Labels, as key=value; may be repeated.
    #[arg(long = "label", value_parser = label)]
    labels: Vec<(String, String)>,
    /// Idle after this much silence, e.g. 15m.
    #[arg(long, value_parser = humantime::parse_duration)]
    idle_timeout: Option<Duration>,
    /// Closed after this long in idle; 0s closes instead of idling.
    #[arg(long, value_parser = humantime::parse_duration)]
    close_after_idle: Option<Duration>,
    /// Closed after this long in all, e.g. 24h.
    #[arg(long, value_parser = humantime::parse_duration)]
    max_lifetime: Option<Duration>,
    /// Makes a repeat of this very command return the same session.
    #[arg(long)]
    request_id: Option<String>,
    /// Wait until it is ready.
    #[arg(short, long)]
    wait: bool,
}

impl Create {
    fn labels(&self) -> BTreeMap<String, String> {
        self.labels.iter().cloned().collect()
    }
}

#[derive(Debug, Subcommand)]
enum Keys {
    /// A new key that signs session tokens, as a PKCS#8 PEM file.
    Signing {
        /// The file to write; must not exist.
        file: PathBuf,
    },
    /// Put a new signing key into the folder that token-issuer follows
    /// (`keys.dir`). It is published at once, and signs by itself later.
    Rotate {
        /// The folder.
        dir: PathBuf,
    },
    /// List the signing keys of a folder, oldest first.
    List {
        /// The folder.
        dir: PathBuf,
    },
    /// Remove a signing key from the folder, when no token of it can be good
    /// any more.
    Retire {
        /// The folder.
        dir: PathBuf,
        /// The key's id, or how it begins.
        kid: String,
        /// Remove it now, whatever it signed: within a minute all its tokens
        /// are refused. If it is the last one, another is made first.
        #[arg(long)]
        emergency: bool,
    },
    /// A new service-account key: the key itself for its user, its SHA-256
    /// for the configuration.
    ServiceAccount,
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        Some(_) | None => Err("write it as key=value".to_owned()),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    match commands::run(cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("berth: {error:#}");
            ExitCode::FAILURE
        }
    }
}
