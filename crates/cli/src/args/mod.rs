//! Command-line arguments: groups by noun. The words of earlier releases
//! (`berth create`, `berth tokens` …) still work and are hidden in the help.

mod admin;
mod audit;
mod forward;
mod keys;
mod local;
mod session;

pub(crate) use admin::{CatalogCommand, ClusterCommand, LimitArgs, OrgCommand, PrincipalCommand, Who};
pub(crate) use audit::{Audit, Moment, Usage};
pub(crate) use forward::{AccessArgs, Connect, Exec, NewSession, SPARK_CONNECT_PORT};
pub(crate) use keys::{KeySecret, Keys};
pub(crate) use local::{
    CompletionShell, ContextCommand, ContextSet, Doctor, Env, Login, OidcArgs, Shell, UnsetField,
};
pub(crate) use session::{
    Create, FlatOperationCommand, FlatTokenCommand, Interrupt, OperationCommand, Revoke, SessionCommand,
    SessionOptions, TokenCommand, TokenGroup, Until, Update,
};

use clap::Subcommand;
use forward::{CONNECT_EXAMPLES, EXEC_EXAMPLES};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Sessions: create, list, describe, watch, extend, close.
    #[command(subcommand)]
    Session(SessionCommand),
    /// Tokens of a session: issue, list, revoke.
    Token(TokenGroup),
    /// Running operations of a session: list, interrupt.
    #[command(subcommand)]
    Operation(OperationCommand),
    /// Clusters: list those you may use, define them (platform admins).
    #[command(alias = "clusters")]
    Cluster {
        #[command(subcommand)]
        command: Option<ClusterCommand>,
    },
    /// Catalogs: list those you may use, define and test them (org admins).
    #[command(alias = "catalogs")]
    Catalog {
        #[command(subcommand)]
        command: Option<CatalogCommand>,
    },
    /// Organizations: show your own, manage all of them (platform admins).
    #[command(alias = "orgs")]
    Org {
        #[command(subcommand)]
        command: Option<OrgCommand>,
    },
    /// Show the audit trail: who did what (org admins, platform admins).
    #[command(after_help = AUDIT_EXAMPLES)]
    Audit(Audit),
    /// Sum what sessions used, by owner and cluster.
    Usage(Usage),
    /// Forward a local port to a session, for any Spark client: no token to
    /// handle, renewed by itself.
    #[command(after_help = CONNECT_EXAMPLES)]
    Connect(Box<Connect>),
    /// Run a program whose Spark client connects to a session.
    #[command(after_help = EXEC_EXAMPLES)]
    Exec(Box<Exec>),
    /// Print the environment variables with which a Spark client connects.
    Env(Env),
    /// Open the console in a browser, at a session if one is given.
    Open {
        /// The session's id.
        session: Option<String>,
    },
    /// Find out why a connection does not work, and name the fix.
    Doctor(Doctor),
    /// Sign in with your identity provider.
    Login(Login),
    /// Delete the stored sign-in of the context.
    Logout,
    /// Show the context, the credential and the organization in use.
    Whoami,
    /// Contexts: addresses, certificate authority and credential by name.
    #[command(subcommand)]
    Context(ContextCommand),
    /// Create keys for the setup of Berth. Needs no server.
    #[command(subcommand)]
    Keys(Keys),
    /// Print the completion script of a shell.
    #[command(after_help = COMPLETION_EXAMPLES)]
    Completion {
        /// The shell.
        shell: CompletionShell,
    },
    #[command(flatten)]
    FlatSession(SessionCommand),
    #[command(flatten)]
    FlatToken(FlatTokenCommand),
    #[command(flatten)]
    FlatOperation(FlatOperationCommand),
    #[command(flatten)]
    FlatPrincipal(PrincipalCommand),
}

const AUDIT_EXAMPLES: &str = "Examples:
  berth audit --since 24h --action token.issued --action token.revoked
  berth audit --principal 'sa|etl' --output json
  berth audit --session s-01… --limit 1000";

const COMPLETION_EXAMPLES: &str = "Examples:
  berth completion bash > ~/.local/share/bash-completion/completions/berth
  berth completion zsh > ~/.zfunc/_berth          # a folder of $fpath
  berth completion fish > ~/.config/fish/completions/berth.fish";

/// Hides the words of earlier releases.
pub(crate) fn hide_flat_words(command: clap::Command) -> clap::Command {
    let none = || clap::Command::new("flat");
    let flat = [
        SessionCommand::augment_subcommands(none()),
        FlatTokenCommand::augment_subcommands(none()),
        FlatOperationCommand::augment_subcommands(none()),
        PrincipalCommand::augment_subcommands(none()),
    ];
    let names = flat
        .iter()
        .flat_map(|command| command.get_subcommands().map(|word| word.get_name().to_owned()));
    names.fold(command, |command, name| {
        command.mut_subcommand(name, |word| word.hide(true))
    })
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
