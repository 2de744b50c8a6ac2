//! The client of the API server.

use kube::config::{KubeConfigOptions, Kubeconfig};
use std::path::{Path, PathBuf};

/// Why the API server cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig file cannot be used.
    #[error("kubeconfig {path}: {cause}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: kube::config::KubeconfigError,
    },
    /// This process does not run in a pod with a service account.
    #[error("no kubeconfig is set, and there is no service account of a pod: {0}")]
    NotInCluster(#[from] kube::config::InClusterError),
    /// The client cannot be made.
    #[error(transparent)]
    Client(#[from] kube::Error),
}

/// Connects to the API server of a kubeconfig file, or to that of the pod in
/// which this process runs. Nothing is sent yet.
///
/// # Errors
/// [`ConnectError`] if no client can be made.
pub async fn connect(kubeconfig: Option<&Path>) -> Result<kube::Client, ConnectError> {
    let config = match kubeconfig {
        None => kube::Config::incluster()?,
        Some(path) => {
            let about = |cause| ConnectError::Kubeconfig {
                path: path.to_owned(),
                cause,
            };
            let file = Kubeconfig::read_from(path).map_err(about)?;
            kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .map_err(about)?
        }
    };
    Ok(kube::Client::try_from(config)?)
}
