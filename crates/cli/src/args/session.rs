//! Arguments of `berth session`, `berth token` and `berth operation`.

use super::{at_least_one, label};
use clap::Subcommand;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

#[derive(Debug, Subcommand)]
pub(crate) enum SessionCommand {
    /// Create a session.
    #[command(after_help = CREATE_EXAMPLES)]
    Create(Create),
    /// List your sessions, newest first.
    List {
        /// Include closed and failed sessions.
        #[arg(short, long)]
        all: bool,
        /// Maximum number of sessions.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        limit: u32,
    },
    /// Show a session.
    #[command(alias = "show")]
    Describe {
        /// The session's id.
        session: String,
        /// Wait until its start has ended.
        #[arg(short, long)]
        wait: bool,
    },
    /// Follow changes of sessions: yours, or those you administer. Ends with
    /// the session if one is given.
    Watch {
        /// Only this session.
        session: Option<String>,
    },
    /// Change name and labels of a session.
    #[command(group = at_least_one(&["name", "no_name", "labels", "removed"]))]
    Update(Update),
    /// Change the latest closing time of a session; at most 7 days after its
    /// creation.
    #[command(after_help = "Example:\n  berth session extend s-01… --for 8h")]
    Extend {
        /// The session's id.
        session: String,
        #[command(flatten)]
        until: Until,
    },
    /// Suspend a session's idle timeouts, for work without an open call, such
    /// as structured streaming.
    KeepAlive {
        /// The session's id.
        session: String,
        #[command(flatten)]
        until: Until,
    },
    /// Wake an idle session before the first query needs it.
    Warm {
        /// The session's id.
        session: String,
    },
    /// Show the history of a session.
    Events {
        /// The session's id.
        session: String,
    },
    /// Close a session: ends its queries and releases its compute.
    Close {
        /// The sessions' ids.
        #[arg(required = true)]
        sessions: Vec<String>,
    },
}

const CREATE_EXAMPLES: &str = "Examples:
  berth session create --cluster local --wait
  berth session create --cluster sail --profile large --name nightly --label job=etl
  berth session create --cluster sail --request-id \"$RUN_ID\"    # safe to repeat";

// `berth token SESSION` is the short form of `berth token issue SESSION`.
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct TokenGroup {
    #[command(subcommand)]
    pub(crate) command: Option<TokenCommand>,
    #[arg(hide = true)]
    pub(crate) session: Option<String>,
    #[arg(long, hide = true, requires = "session", value_parser = humantime::parse_duration)]
    pub(crate) ttl: Option<Duration>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Issue a token for a session and print the connection string.
    #[command(after_help = "Example:\n  berth token issue s-01… --ttl 8h")]
    Issue {
        /// The session's id.
        session: String,
        /// Lifetime of the token, e.g. 30m; 60 s to 12 h.
        #[arg(long, value_parser = humantime::parse_duration)]
        ttl: Option<Duration>,
    },
    /// List the tokens of a session, without the tokens themselves.
    List {
        /// The session's id.
        session: String,
    },
    /// Revoke one token, or all; their running queries end too.
    Revoke(Revoke),
}

/// Words of earlier releases for token commands.
#[derive(Debug, Subcommand)]
pub(crate) enum FlatTokenCommand {
    /// List the tokens of a session, without the tokens themselves.
    Tokens {
        /// The session's id.
        session: String,
    },
    /// Revoke one token, or all; their running queries end too.
    Revoke(Revoke),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Revoke {
    /// The session's id.
    pub(crate) session: String,
    /// The token's id.
    #[arg(required_unless_present = "all")]
    pub(crate) token: Option<String>,
    /// Every token issued so far.
    #[arg(long, conflicts_with = "token")]
    pub(crate) all: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum OperationCommand {
    /// List the running operations of a session.
    List {
        /// The session's id.
        session: String,
    },
    /// Interrupt queries of a session. The session continues.
    Interrupt(Interrupt),
}

/// Words of earlier releases for operation commands.
#[derive(Debug, Subcommand)]
pub(crate) enum FlatOperationCommand {
    /// List the running operations of a session.
    Ops {
        /// The session's id.
        session: String,
    },
    /// Interrupt queries of a session. The session continues.
    Interrupt(Interrupt),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Interrupt {
    /// The session's id.
    pub(crate) session: String,
    /// Id of an operation, as in `berth operation list`; may be repeated.
    #[arg(long = "operation", value_name = "ID", required_unless_present = "all")]
    pub(crate) operations: Vec<String>,
    /// All running operations.
    #[arg(long, conflicts_with = "operations")]
    pub(crate) all: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Create {
    /// Cluster of the session: `berth cluster list` lists them.
    #[arg(long)]
    pub(crate) cluster: String,
    #[command(flatten)]
    pub(crate) options: SessionOptions,
    /// Idempotency key: a repeat of the same command returns the same session.
    #[arg(long)]
    pub(crate) request_id: Option<String>,
    /// Wait until the session is ready.
    #[arg(short, long)]
    pub(crate) wait: bool,
}

/// What a new session is like, beside its cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub(crate) struct SessionOptions {
    /// Default catalog: `berth catalog list` lists them.
    #[arg(long)]
    pub(crate) catalog: Option<String>,
    /// Size of the compute, one of the cluster's profiles: `berth cluster list`
    /// lists them.
    #[arg(long)]
    pub(crate) profile: Option<String>,
    /// Display name.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// One of your teams.
    #[arg(long)]
    pub(crate) team: Option<String>,
    /// Labels, as key=value; may be repeated.
    #[arg(long = "label", value_parser = label)]
    pub(crate) labels: Vec<(String, String)>,
    /// Idle after this time without calls, e.g. 15m.
    #[arg(long, value_parser = humantime::parse_duration)]
    pub(crate) idle_timeout: Option<Duration>,
    /// Closed after this idle time; 10s at the least.
    #[arg(long, value_parser = humantime::parse_duration)]
    pub(crate) close_after_idle: Option<Duration>,
    /// Maximum lifetime, e.g. 24h.
    #[arg(long, value_parser = humantime::parse_duration)]
    pub(crate) max_lifetime: Option<Duration>,
}

impl SessionOptions {
    pub(crate) fn labels(&self) -> BTreeMap<String, String> {
        self.labels.iter().cloned().collect()
    }
}

/// A time, in one of two forms.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Until {
    /// Duration from now, e.g. 2h.
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) duration: Option<Duration>,
    /// Time, e.g. 2026-12-31T18:00:00Z.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_rfc3339_weak)]
    pub(crate) until: Option<SystemTime>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Update {
    /// The session's id.
    pub(crate) session: String,
    /// A new name.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Remove the name.
    #[arg(long, conflicts_with = "name")]
    pub(crate) no_name: bool,
    /// A label to set, as key=value; may be repeated. Others stay.
    #[arg(long = "label", value_parser = label)]
    pub(crate) labels: Vec<(String, String)>,
    /// The key of a label to remove; may be repeated.
    #[arg(long = "remove-label", value_name = "KEY")]
    pub(crate) removed: Vec<String>,
}
