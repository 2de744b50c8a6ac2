//! Service accounts in a separate file that is polled, so that a leaked key can
//! be removed without a restart.

use super::{Accounts, ServiceAccountConfig, validate_accounts};
use crate::config::{self, Problems, Sources, Validate};
use anyhow::Context as _;
use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Poll interval of the file.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

type Check = Arc<dyn Fn(&[ServiceAccountConfig]) -> Result<(), String> + Send + Sync>;

/// The file, and the checks for its accounts.
#[derive(Clone)]
pub struct AccountsFile {
    path: PathBuf,
    /// Accounts of the configuration itself, always included.
    fixed: Vec<ServiceAccountConfig>,
    check: Check,
}

/// Content of the file.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Contents {
    service_accounts: Vec<ServiceAccountConfig>,
}

impl Validate for Contents {
    fn validate(&self, problems: &mut Problems) {
        validate_accounts("service_accounts", &self.service_accounts, problems);
    }
}

impl AccountsFile {
    /// `check` validates all accounts together, those of the file and `fixed`.
    pub fn new(
        path: PathBuf,
        fixed: &[ServiceAccountConfig],
        check: impl Fn(&[ServiceAccountConfig]) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        Self {
            path,
            fixed: fixed.to_vec(),
            check: Arc::new(check),
        }
    }

    /// Reads all current accounts.
    ///
    /// # Errors
    /// When the file is unusable; the text quotes nothing from the file.
    pub fn read(&self) -> anyhow::Result<Accounts> {
        let shown = || self.path.display().to_string();
        let size = std::fs::metadata(&self.path).with_context(shown)?.len();
        anyhow::ensure!(
            size <= MAX_FILE_BYTES,
            "{} is larger than {MAX_FILE_BYTES} bytes",
            shown()
        );
        let contents: Contents = config::load(&Sources {
            file: Some(self.path.clone()),
            ..Sources::default()
        })
        .with_context(shown)?;
        let all = [self.fixed.clone(), contents.service_accounts].concat();
        let mut problems = Problems::default();
        validate_accounts("service_accounts", &all, &mut problems);
        if let Some(first) = problems.found().first() {
            anyhow::bail!("{}: {} {}", shown(), first.key, first.what);
        }
        (self.check)(&all)
            .map_err(anyhow::Error::msg)
            .with_context(shown)?;
        Ok(Accounts::new(&all))
    }

    /// Applies changes to `accounts` until `stop`. A missing or unusable file
    /// leaves the last valid accounts, and is logged.
    pub(super) async fn follow(&self, accounts: &ArcSwap<Accounts>, stop: &CancellationToken) {
        let mut seen: Option<Option<Vec<u8>>> = None;
        while stop
            .run_until_cancelled(tokio::time::sleep(POLL_INTERVAL))
            .await
            .is_some()
        {
            let (file, last) = (self.clone(), seen.clone());
            let looked = tokio::task::spawn_blocking(move || {
                let print = std::fs::read(&file.path)
                    .ok()
                    .map(|bytes| Sha256::digest(bytes).to_vec());
                (last.as_ref() != Some(&print)).then(|| (print, file.read()))
            });
            let Ok(Some((print, read))) = looked.await else {
                continue;
            };
            let first_look = seen.replace(print).is_none();
            match read {
                Ok(read) => {
                    accounts.store(Arc::new(read));
                    if !first_look {
                        tracing::info!(file = %self.path.display(), "service accounts replaced");
                    }
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::error!(
                        error,
                        "reloading service accounts failed; the last valid ones stay in use"
                    );
                }
            }
        }
    }
}

impl fmt::Debug for AccountsFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccountsFile")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}
