//! Arguments of `berth cluster`, `berth catalog` and `berth org`.

use super::at_least_one;
use clap::Subcommand;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(crate) struct Who {
    /// "issuer-alias|subject", as `berth session list` shows owners; quote it.
    pub(crate) principal: String,
    /// Its organization; default: your own.
    #[arg(long)]
    pub(crate) org: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// List the clusters you may use.
    List,
    /// Show a cluster; platform admins also see the provider.
    #[command(alias = "show")]
    Describe {
        /// Its name.
        name: String,
    },
    /// Define a cluster.
    Create {
        /// A TOML or JSON file with the keys of [[clusters]] in the
        /// configuration (docs/config.md).
        file: PathBuf,
        /// Accept no sessions before `berth cluster activate`.
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
pub(crate) enum CatalogCommand {
    /// List the catalogs you may use.
    List,
    /// Show a catalog.
    #[command(alias = "show")]
    Describe {
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
pub(crate) enum OrgCommand {
    /// List organizations: your own, or all for platform admins.
    List,
    /// Show an organization and its limits.
    #[command(alias = "show")]
    Describe {
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
    #[command(flatten)]
    Principal(PrincipalCommand),
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

#[derive(Debug, Subcommand)]
pub(crate) enum PrincipalCommand {
    /// Disable a principal: closes its sessions, revokes its tokens, and
    /// rejects its calls (org admins in their organization, platform admins).
    DisablePrincipal(Who),
    /// Enable a principal again.
    EnablePrincipal(Who),
}
