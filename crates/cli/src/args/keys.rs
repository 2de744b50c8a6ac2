//! Arguments of `berth keys`.

use super::label;
use clap::Subcommand;
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(crate) enum Keys {
    /// Create a key that signs session tokens, as a PKCS#8 PEM file.
    Signing {
        /// The file to write; must not exist.
        file: PathBuf,
    },
    /// Create a new signing key in the folder that token-issuer follows
    /// (`keys.dir`). It is published immediately and signs automatically later.
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
    /// Add a key, which is published immediately and signs automatically later, and
    /// remove keys of which no token can be valid any more.
    #[arg(long)]
    pub(crate) rotate: bool,
}
