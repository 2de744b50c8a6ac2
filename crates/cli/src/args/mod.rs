//! Command-line arguments.

use clap::Subcommand;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a session.
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
    Show {
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
    /// Wake an idle session before the first query needs it.
    Warm {
        /// The session's id.
        session: String,
    },
    /// Issue a token for a session and print the connection string.
    Token {
        /// The session's id.
        session: String,
        /// Lifetime of the token, e.g. 30m; 60 s to 12 h.
        #[arg(long, value_parser = humantime::parse_duration)]
        ttl: Option<Duration>,
    },
    /// List the tokens of a session, without the tokens themselves.
    Tokens {
        /// The session's id.
        session: String,
    },
    /// Revoke one token, or all; their running queries end too.
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
    /// Follow changes of sessions: yours, or those you administer. Ends with
    /// the session if one is given.
    Watch {
        /// Only this session.
        session: Option<String>,
    },
    /// Change the latest closing time of a session; at most 7 days after its
    /// creation.
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
    /// Change name and labels of a session.
    #[command(group = at_least_one(&["name", "no_name", "labels", "removed"]))]
    Update(Update),
    /// List the running operations of a session.
    Ops {
        /// The session's id.
        session: String,
    },
    /// Interrupt queries of a session. The session continues.
    Interrupt {
        /// The session's id.
        session: String,
        /// Id of an operation, as in `berth ops`; may be repeated.
        #[arg(long = "operation", value_name = "ID", required_unless_present = "all")]
        operations: Vec<String>,
        /// All running operations.
        #[arg(long, conflicts_with = "operations")]
        all: bool,
    },
    /// List the clusters you may use, or define them (platform admins).
    Clusters {
        #[command(subcommand)]
        command: Option<Clusters>,
    },
    /// List the catalogs you may use, or define them (org admins).
    Catalogs {
        #[command(subcommand)]
        command: Option<Catalogs>,
    },
    /// Show your organization, or manage all of them (platform admins).
    Orgs {
        #[command(subcommand)]
        command: Option<Orgs>,
    },
    /// Disable a principal: closes its sessions, revokes its tokens, and
    /// rejects its calls (org admins in their organization, platform admins).
    DisablePrincipal(Who),
    /// Enable a principal again.
    EnablePrincipal(Who),
    /// Create keys for the setup of Berth. Needs no server.
    #[command(subcommand)]
    Keys(Keys),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Create {
    /// Cluster of the session: `berth clusters` lists them.
    #[arg(long)]
    pub(crate) cluster: String,
    /// Default catalog: `berth catalogs` lists them.
    #[arg(long)]
    pub(crate) catalog: Option<String>,
    /// Size of the compute, one of the cluster's profiles: `berth clusters`
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
    /// Idempotency key: a repeat of the same command returns the same session.
    #[arg(long)]
    pub(crate) request_id: Option<String>,
    /// Wait until the session is ready.
    #[arg(short, long)]
    pub(crate) wait: bool,
}

impl Create {
    pub(crate) fn labels(&self) -> BTreeMap<String, String> {
        self.labels.iter().cloned().collect()
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Keys {
    /// Create a key that signs session tokens, as a PKCS#8 PEM file.
    Signing {
        /// The file to write; must not exist.
        file: PathBuf,
    },
    /// Create a new signing key in the folder that token-issuer follows
    /// (`keys.dir`). It is published at once and signs automatically later.
    Rotate {
        /// The folder.
        dir: PathBuf,
    },
    /// List the signing keys of a folder, oldest first.
    List {
        /// The folder.
        dir: PathBuf,
    },
    /// Remove a signing key from the folder, when none of its tokens can be
    /// valid any more.
    Retire {
        /// The folder.
        dir: PathBuf,
        /// The key's id, or its beginning.
        kid: String,
        /// Remove it now, even if its tokens are valid: within a minute all its
        /// tokens are rejected. If it is the last one, another is created
        /// first.
        #[arg(long)]
        emergency: bool,
    },
    /// Create the Kubernetes Secret that token-issuer mounts, with a first
    /// signing key. A Secret that has a key stays as it is.
    Secret(KeySecret),
    /// Create a service-account key: the key itself for its user, its SHA-256
    /// for the configuration.
    ServiceAccount,
}

/// Runs in a pod with a service account, or with the current context of a
/// kubeconfig.
#[derive(Debug, clap::Args)]
pub(crate) struct KeySecret {
    /// Name of the Secret.
    pub(crate) name: String,
    /// Its namespace. Default: that of the pod, or of the context.
    #[arg(short, long)]
    pub(crate) namespace: Option<String>,
    /// Service account in the namespace that owns a new Secret: deleting it
    /// deletes the Secret.
    #[arg(long)]
    pub(crate) owner: Option<String>,
    /// Labels of a new Secret, as key=value; may be repeated.
    #[arg(long = "label", value_parser = label)]
    pub(crate) labels: Vec<(String, String)>,
    /// Add a key, which is published at once and signs automatically later, and
    /// remove keys of which no token can be valid any more.
    #[arg(long)]
    pub(crate) rotate: bool,
}

fn at_least_one(args: &[&'static str]) -> clap::ArgGroup {
    let args = args.iter().copied();
    clap::ArgGroup::new("at_least_one")
        .args(args)
        .required(true)
        .multiple(true)
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        Some(_) | None => Err("write it as key=value".to_owned()),
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

#[derive(Debug, clap::Args)]
pub(crate) struct Who {
    /// "issuer-alias|subject", as `berth list` shows owners; quote it.
    pub(crate) principal: String,
    /// Its organization; default: your own.
    #[arg(long)]
    pub(crate) org: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Clusters {
    /// List the clusters you may use.
    List,
    /// Show a cluster; platform admins also see the provider.
    Show {
        /// Its name.
        name: String,
    },
    /// Define a cluster.
    Create {
        /// A TOML or JSON file with the keys of [[clusters]] in the
        /// configuration (docs/config.md).
        file: PathBuf,
        /// Accept no sessions before `berth clusters activate`.
        #[arg(long)]
        pending: bool,
    },
    /// Replace the definition of a cluster. It applies to new sessions.
    Update {
        /// A TOML or JSON file, as for create.
        file: PathBuf,
    },
    /// Let a pending or draining cluster accept sessions.
    Activate {
        /// Its name.
        name: String,
    },
    /// Accept no new sessions; existing ones continue to their own deadlines.
    Drain {
        /// Its name.
        name: String,
    },
    /// Remove a cluster.
    Delete {
        /// Its name.
        name: String,
        /// Close the remaining sessions of the cluster.
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Catalogs {
    /// List the catalogs you may use.
    List,
    /// Show a catalog.
    Show {
        /// Its name.
        name: String,
    },
    /// Define a catalog.
    Create {
        /// A TOML or JSON file with the keys of [[catalogs]] in the
        /// configuration (docs/config.md).
        file: PathBuf,
    },
    /// Replace the definition of a catalog. It applies to new compute only.
    Update {
        /// A TOML or JSON file, as for create.
        file: PathBuf,
    },
    /// Remove a catalog.
    Delete {
        /// Its name.
        name: String,
        /// Delete it even if live sessions use it: they fail when they need new
        /// compute.
        #[arg(long)]
        force: bool,
    },
    /// Test a catalog on a cluster as a new session would use it. Fails if it
    /// cannot be used.
    Test {
        /// Its name.
        name: String,
        /// The cluster.
        #[arg(long)]
        cluster: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Orgs {
    /// List organizations: your own, or all for platform admins.
    List,
    /// Show an organization and its limits.
    Show {
        /// Its name.
        name: String,
    },
    /// Define an organization.
    Create {
        /// Its name.
        name: String,
        #[command(flatten)]
        limits: LimitArgs,
    },
    /// Change limits of an organization; others stay.
    #[command(group = at_least_one(&[
        "live_sessions_per_owner", "live_sessions", "creates_per_minute", "labels", "tokens_per_session",
    ]))]
    Limits {
        /// Its name.
        name: String,
        #[command(flatten)]
        limits: LimitArgs,
    },
    /// Enable a disabled organization again.
    Enable {
        /// Its name.
        name: String,
    },
    /// Close every session of an organization and reject its calls.
    Disable {
        /// Its name.
        name: String,
    },
}

#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub(crate) struct LimitArgs {
    /// Maximum number of live sessions per owner.
    #[arg(long, value_name = "N")]
    pub(crate) live_sessions_per_owner: Option<u32>,
    /// Maximum number of live sessions of the organization.
    #[arg(long, value_name = "N")]
    pub(crate) live_sessions: Option<u32>,
    /// Maximum number of sessions that one owner can create per minute.
    #[arg(long, value_name = "N")]
    pub(crate) creates_per_minute: Option<u32>,
    /// Maximum number of labels per session.
    #[arg(long, value_name = "N")]
    pub(crate) labels: Option<u32>,
    /// Maximum number of live tokens per session.
    #[arg(long, value_name = "N")]
    pub(crate) tokens_per_session: Option<u32>,
}
