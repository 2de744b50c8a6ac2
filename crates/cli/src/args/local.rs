//! Arguments of the commands around a connection: `login`, `context`, `env`,
//! `doctor`, `completion`.

use clap::{Subcommand, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

/// Identity provider of a context.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct OidcArgs {
    /// Issuer of the identity provider, e.g. https://login.example.org/realms/main.
    #[arg(long, value_name = "URL")]
    pub(crate) oidc_issuer: Option<String>,
    /// Id of the public client registered for this command.
    #[arg(long, value_name = "ID")]
    pub(crate) oidc_client_id: Option<String>,
    /// Scopes to request, replacing openid and offline_access; may be repeated.
    #[arg(long = "oidc-scope", value_name = "SCOPE")]
    pub(crate) oidc_scopes: Vec<String>,
    /// `audience` parameter of the request (Auth0).
    #[arg(long, value_name = "TEXT")]
    pub(crate) oidc_audience: Option<String>,
    /// `resource` parameter of the request (RFC 8707).
    #[arg(long, value_name = "URI")]
    pub(crate) oidc_resource: Option<String>,
    /// Which token is sent to Berth.
    #[arg(long, value_name = "KIND", value_enum)]
    pub(crate) oidc_token: Option<crate::config_file::TokenKind>,
    /// A PEM file with the private certificate authority of the provider.
    #[arg(long, value_name = "FILE")]
    pub(crate) oidc_ca: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  berth login --context prod                # the context has the provider
  berth login --device                      # on a machine without a browser
  berth login --oidc-issuer https://login.example.org/realms/main --oidc-client-id berth-cli")]
pub(crate) struct Login {
    /// Sign in on another device, with a code.
    #[arg(long, conflicts_with = "browser")]
    pub(crate) device: bool,
    /// Sign in with the browser of this machine.
    #[arg(long)]
    pub(crate) browser: bool,
    /// Time to complete the sign-in.
    #[arg(long, default_value = "5m", value_parser = humantime::parse_duration)]
    pub(crate) timeout: Duration,
    #[command(flatten)]
    pub(crate) oidc: OidcArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ContextCommand {
    /// List the contexts; the current one is marked.
    List,
    /// Make a context the current one.
    Use {
        /// Its name.
        name: String,
    },
    /// Create a context or change fields of it; others stay.
    #[command(after_help = "The addresses and files are the global options:
  berth context set prod --manager https://berth.example.org:8081 --issuer https://berth.example.org:8083 \\
      --ca ca.pem --oidc-issuer https://login.example.org/realms/main --oidc-client-id berth-cli --use
  berth context set ci --key-file /run/secrets/berth-key")]
    Set(Box<ContextSet>),
    /// Delete a context and its stored sign-in.
    Delete {
        /// Its name.
        name: String,
    },
    /// Show a context; default: the one in use.
    Show {
        /// Its name.
        name: Option<String>,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct ContextSet {
    /// Its name: 1 to 64 of letters, digits, `.`, `_`, `-`.
    pub(crate) name: String,
    /// Make it the current context.
    #[arg(long = "use")]
    pub(crate) make_current: bool,
    /// A field to remove; may be repeated.
    #[arg(long = "unset", value_name = "FIELD", value_enum)]
    pub(crate) unset: Vec<UnsetField>,
    #[command(flatten)]
    pub(crate) oidc: OidcArgs,
}

/// Fields that `berth context set --unset` removes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum UnsetField {
    /// session-manager's address.
    Manager,
    /// token-issuer's address.
    Issuer,
    /// The console's address.
    Console,
    /// The certificate authority.
    Ca,
    /// Plaintext beyond loopback.
    Insecure,
    /// The file with a service-account key.
    KeyFile,
    /// The file with a token.
    TokenFile,
    /// The identity provider.
    Oidc,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  eval \"$(berth env s-01…)\"                       # sh, bash, zsh
  berth env s-01… --shell fish | source
  berth env s-01… --shell powershell | Invoke-Expression")]
pub(crate) struct Env {
    /// The session's id.
    #[arg(required_unless_present = "unset")]
    pub(crate) session: Option<String>,
    /// Syntax of the output; default: by $SHELL.
    #[arg(long, value_enum)]
    pub(crate) shell: Option<Shell>,
    /// Lifetime of the token, e.g. 8h; 60 s to 12 h.
    #[arg(long, value_parser = humantime::parse_duration)]
    pub(crate) ttl: Option<Duration>,
    /// Print the commands that remove the variables. Needs no server.
    #[arg(long, conflicts_with_all = ["session", "ttl"])]
    pub(crate) unset: bool,
}

/// Syntax of `berth env`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shell {
    /// sh, bash, zsh, dash.
    #[value(aliases = ["bash", "zsh", "dash"])]
    Sh,
    /// fish.
    Fish,
    /// PowerShell.
    #[value(alias = "pwsh")]
    Powershell,
}

/// Shells with completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CompletionShell {
    /// Bash.
    Bash,
    /// Zsh.
    Zsh,
    /// fish.
    Fish,
    /// PowerShell.
    Powershell,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  berth doctor                              # settings, session-manager, token-issuer, console
  berth doctor s-01…                        # also the session and the Spark Connect port
  SPARK_REMOTE='sc://…' berth doctor        # a connection string that does not work
  berth doctor --connection-file FILE --query --quiet-for 90s

The exit code is the kind of the first fault; docs/cli.md lists all faults.")]
pub(crate) struct Doctor {
    /// The session's id.
    pub(crate) session: Option<String>,
    /// A file with a connection string to check; `-` is standard input.
    /// Without it, SPARK_REMOTE of the environment is checked if it is set.
    #[arg(long, value_name = "FILE")]
    pub(crate) connection_file: Option<PathBuf>,
    /// Also ask the engine for its version. Wakes an idle session.
    #[arg(long)]
    pub(crate) query: bool,
    /// Keep a quiet connection for this time, to find what cuts it; up to 1h.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) quiet_for: Option<Duration>,
    /// Also send a message of this size, to find limits on the way; up to 128 MiB.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..=134_217_728))]
    pub(crate) message_bytes: Option<u64>,
    /// Python whose Spark client is compared with the cluster.
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) python: Option<PathBuf>,
    /// Limit of each network step.
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    pub(crate) timeout: Duration,
}
