//! Arguments of `berth connect` and `berth exec`.

use super::SessionOptions;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// Heading of the options of a new session.
const NEW_SESSION: &str = "New session";
/// Heading of the options of the local side.
const LOCAL: &str = "Local clients";

/// The port of Spark Connect servers, which clients use if none is named.
pub(crate) const SPARK_CONNECT_PORT: u16 = 15002;

pub(super) const CONNECT_EXAMPLES: &str = "Examples:
  berth connect s-01…                                   # prints the connection string; Ctrl-C ends it
  berth connect --create --cluster local                # closes the session at its end
  berth connect s-01… --socket ~/.berth-spark.sock
  berth connect s-01… --port 0 --output json            # a free port, for scripts

`curl http://127.0.0.1:15002/readyz` tells whether queries can be sent.";

pub(super) const EXEC_EXAMPLES: &str = "Examples:
  berth exec s-01… -- python job.py
  berth exec --create --cluster local -- dbt run
  berth exec s-01… --default-port -- ./program-with-sc-localhost-15002

The exit code is that of the command, 128 and its signal if a signal ended it, 127 if there is no such
command, 126 if it cannot be executed, 125 if Berth failed before or beside it.";

#[derive(Debug, clap::Args)]
pub(crate) struct Connect {
    /// The session's id.
    #[arg(required_unless_present = "create", conflicts_with = "create")]
    pub(crate) session: Option<String>,
    /// Port on 127.0.0.1 and [::1]; 0 selects a free one.
    #[arg(long, default_value_t = SPARK_CONNECT_PORT, help_heading = LOCAL)]
    pub(crate) port: u16,
    /// A UNIX socket in place of the port; only your user can open it.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["port", "trust_local_users"], help_heading = LOCAL)]
    pub(crate) socket: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) access: AccessArgs,
    #[command(flatten)]
    pub(crate) new: NewSession,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Exec {
    /// The session's id.
    #[arg(required_unless_present = "create", conflicts_with = "create")]
    pub(crate) session: Option<String>,
    /// Port on 127.0.0.1 and [::1]; default: a free one.
    #[arg(long, default_value_t = 0, hide_default_value = true, help_heading = LOCAL)]
    pub(crate) port: u16,
    /// Listen on port 15002 and accept programs of your user without the
    /// secret, for programs with `sc://localhost:15002` in their code.
    #[arg(long, conflicts_with = "port", help_heading = LOCAL)]
    pub(crate) default_port: bool,
    #[command(flatten)]
    pub(crate) access: AccessArgs,
    #[command(flatten)]
    pub(crate) new: NewSession,
    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

/// Who may use the local side, and how much of it.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = LOCAL)]
pub(crate) struct AccessArgs {
    /// Accept programs of your own user without the secret. Linux only: the
    /// kernel names the user of each connection.
    #[arg(long)]
    pub(crate) trust_own_processes: bool,
    /// Accept every user of this machine without the secret.
    #[arg(long)]
    pub(crate) trust_local_users: bool,
    /// Maximum number of client connections.
    #[arg(long, value_name = "NUMBER", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) max_connections: u32,
    /// Maximum number of concurrent calls, running queries included. Calls that
    /// end work are not limited.
    #[arg(long, value_name = "NUMBER", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) max_calls: u32,
    /// Lifetime of each token, e.g. 30m; 60 s to 12 h. Tokens are renewed
    /// after three quarters of it.
    #[arg(long, value_parser = humantime::parse_duration)]
    pub(crate) ttl: Option<Duration>,
}

/// A session that the command creates and closes.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = NEW_SESSION)]
pub(crate) struct NewSession {
    /// Create a session, and close it at the end.
    #[arg(long, requires = "cluster")]
    pub(crate) create: bool,
    /// Cluster of the session: `berth cluster list` lists them.
    #[arg(long, requires = "create")]
    pub(crate) cluster: Option<String>,
    #[command(flatten)]
    pub(crate) options: SessionOptions,
}
