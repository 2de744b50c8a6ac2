//! Service accounts in a file of their own that is followed, so that a leaked
//! key stops working without a restart.

use super::{Accounts, ServiceAccountConfig, validate_accounts};
use crate::config::{self, Problems, Sources, Validate};
use anyhow::Context as _;
use arc_swap::ArcSwap;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
const LARGEST: u64 = 4 * 1024 * 1024;

type Check = Arc<dyn Fn(&[ServiceAccountConfig]) -> Result<(), String> + Send + Sync>;

/// The file, and what the accounts in it must be like.
#[derive(Clone)]
pub struct AccountsFile {
    path: PathBuf,
    /// Those of the configuration itself, which stay.
    fixed: Vec<ServiceAccountConfig>,
    check: Check,
}

/// What stands in the file.
#[derive(Debug, Default, Deserialize)]
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
    /// `check` judges all accounts together, those of the file and `fixed`.
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

    /// All accounts, as they are now.
    ///
    /// # Errors
    /// When the file cannot be used; in words that quote nothing of it.
    pub fn read(&self) -> anyhow::Result<Accounts> {
        let shown = || self.path.display().to_string();
        let size = std::fs::metadata(&self.path).with_context(shown)?.len();
        anyhow::ensure!(size <= LARGEST, "{} is larger than {LARGEST} bytes", shown());
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

    /// Puts what changed into `accounts` until told to stop. A file that is
    /// gone or cannot be used leaves the last good accounts, and is reported.
    pub(super) async fn follow(&self, accounts: &ArcSwap<Accounts>, stop: &CancellationToken) {
        let mut seen: Option<Option<Vec<u8>>> = None;
        while stop
            .run_until_cancelled(tokio::time::sleep(LOOK_EVERY))
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
                        "changed service accounts cannot be used; keeping the last good ones"
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
