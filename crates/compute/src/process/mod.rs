//! One child process per session generation, on the manager's own machine.
//!
//! Each generation has a keeper task that owns its child from the first moment
//! to the last; everybody else only reads what the keeper wrote down, and asks
//! it to stop. A generation that was released is remembered, so that a late
//! `ensure` cannot bring it back.

mod child;
mod command;
mod definition;
mod keeper;
mod log;
mod port;
mod stat;

use crate::change_feed::Changes;
use crate::properties::unfit;
use crate::released::Released;
use crate::{Capabilities, ComputeChanged, ComputeProvider, ComputeSpec, Error, Found};
use async_trait::async_trait;
use command::Folders;
pub(crate) use definition::check_definition;
use futures::stream::BoxStream;
use keeper::Keeper;
use parking_lot::{Mutex, MutexGuard};
use port::Ports;
use session_core::machine::{Cause, Observation};
use session_core::route::Secret;
use session_core::{ClusterName, ProviderKind, Route, SessionKey};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The helper's own 2 s between SIGTERM and SIGKILL once the manager is gone,
/// and a little more.
const LEFTOVERS_LIMIT: Duration = Duration::from_secs(5);
const LEFTOVERS_POLL: Duration = Duration::from_millis(50);

/// How children are run.
#[derive(Debug, Clone)]
pub struct ProcessConfig {
    /// Where sessions have their folders. Belongs to one manager alone.
    pub state_dir: PathBuf,
    /// The program `berth-supervise`.
    pub supervise: PathBuf,
    /// At most so many children at once.
    pub max_children: usize,
    /// At most so many that are starting.
    pub max_starting: usize,
    /// Let sessions of several organizations run side by side, though nothing
    /// but the engine keeps their users apart.
    pub trust_all_users: bool,
    /// The installation that the children belong to.
    pub install_id: String,
    /// The host whose loopback addresses they have, for [`Route::host`].
    pub host: Option<String>,
}

impl ProcessConfig {
    /// The defaults: 64 children, 4 starting at once, `berth-supervise` next to
    /// the running program.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self {
            state_dir: state_dir.into(),
            supervise: default_supervise(),
            max_children: 64,
            max_starting: 4,
            trust_all_users: false,
            install_id: String::new(),
            host: None,
        }
    }
}

fn default_supervise() -> PathBuf {
    let name = "berth-supervise";
    let here = std::env::current_exe()
        .ok()
        .and_then(|exe| exe.parent().map(Path::to_owned))
        .unwrap_or_default();
    // Test programs live one folder below the programs they test.
    let above = here
        .parent()
        .map(|dir| dir.join(name))
        .filter(|path| path.exists());
    match here.join(name) {
        path if path.exists() => path,
        path => above.unwrap_or(path),
    }
}

/// See the module.
#[derive(Debug)]
pub struct ProcessProvider {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: ProcessConfig,
    state: Mutex<State>,
    changes: Changes,
    starts: Arc<Semaphore>,
    ports: Ports,
    keepers: TaskTracker,
    _lock: File,
}

type Id = (SessionKey, u64);

#[derive(Debug, Default)]
struct State {
    computes: HashMap<Id, Compute>,
    released: Released,
    runs: u64,
    shut_down: bool,
}

#[derive(Debug)]
struct Compute {
    /// Which keeper may write here.
    run: u64,
    cluster: ClusterName,
    made: Instant,
    stage: Stage,
    stop: CancellationToken,
    crashes: u32,
    /// What must not appear in its log tail.
    secrets: Vec<Secret>,
    log_tail: Option<String>,
}

#[derive(Debug, Clone)]
enum Stage {
    Starting { detail: String },
    Ready { route: Route },
    Failed { cause: Cause, permanent: bool },
    Stopping,
}

impl Stage {
    fn has_keeper(&self) -> bool {
        match self {
            Self::Starting { .. } | Self::Ready { .. } | Self::Stopping => true,
            Self::Failed { .. } => false,
        }
    }
}

impl ProcessProvider {
    /// Takes the state folder, and clears what a dead manager left in it.
    ///
    /// # Errors
    /// If the folder cannot be used, or another manager is using it.
    pub fn new(config: ProcessConfig) -> io::Result<Self> {
        let shown = config.state_dir.display().to_string();
        let about = |e: io::Error| io::Error::new(e.kind(), format!("state folder {shown}: {e}"));
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&config.state_dir)
            .map_err(about)?;
        let state_dir = config.state_dir.canonicalize().map_err(about)?;
        let lock = File::create(state_dir.join("lock")).map_err(about)?;
        lock.try_lock()
            .map_err(|_| about(io::Error::other("another session-manager is using it")))?;
        clear_leftovers(&state_dir);
        Ok(Self {
            shared: Arc::new(Shared {
                starts: Arc::new(Semaphore::new(config.max_starting.max(1))),
                config: ProcessConfig { state_dir, ..config },
                state: Mutex::default(),
                changes: Changes::default(),
                ports: Ports::default(),
                keepers: TaskTracker::new(),
                _lock: lock,
            }),
        })
    }

    /// The last ≤ 4 KiB an engine wrote, secrets masked; for the session's
    /// owner and org admins only.
    pub fn log_tail(&self, key: &SessionKey, generation: u64) -> Option<String> {
        let state = self.shared.state();
        let compute = state.computes.get(&(key.clone(), generation))?;
        let folders = self.shared.folders(key, generation);
        compute
            .log_tail
            .clone()
            .or_else(|| Some(log::tail(&folders.log(), &compute.secrets)))
    }

    /// Ends every child and waits until all are gone. From now on the provider
    /// cannot be asked, so that nobody takes the children for lost.
    pub async fn shutdown(&self) {
        {
            let mut state = self.shared.state();
            state.shut_down = true;
            for compute in state.computes.values() {
                compute.stop.cancel();
            }
        }
        self.shared.keepers.close();
        self.shared.keepers.wait().await;
    }
}

#[async_trait]
impl ComputeProvider for ProcessProvider {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            dies_with_manager: true,
            needs_leader: true,
        }
    }

    async fn ensure(&self, spec: &ComputeSpec) -> Result<(), Error> {
        must_be_process(spec)?;
        let unfit = unfit(spec, check_definition);
        let id = (spec.key.clone(), spec.generation);
        let shared = &self.shared;
        let mut state = shared.state();
        state.must_be_up()?;
        if state.released.contains(&spec.key, spec.generation) {
            return Ok(());
        }
        let crashes = match state.computes.get(&id) {
            None => 0,
            Some(Compute {
                stage: Stage::Failed { permanent: false, .. },
                crashes,
                ..
            }) => *crashes,
            Some(_) => return Ok(()),
        };
        let refusal = unfit
            .map(|cause| (cause, true))
            .or_else(|| shared.refusal(&state, spec));
        state.runs += 1;
        let run = state.runs;
        let stop = CancellationToken::new();
        let stage = match refusal {
            Some((cause, permanent)) => Stage::Failed { cause, permanent },
            None => Stage::Starting {
                detail: format!("{} is about to start", spec.cluster.engine),
            },
        };
        let starts = stage.has_keeper();
        state.computes.insert(
            id,
            Compute {
                run,
                cluster: spec.cluster.name.clone(),
                made: Instant::now(),
                stage,
                stop: stop.clone(),
                crashes,
                secrets: Vec::new(),
                log_tail: None,
            },
        );
        drop(state);
        if starts {
            let keeper = Keeper {
                shared: shared.clone(),
                spec: spec.clone(),
                run,
                stop,
            };
            shared.keepers.spawn(keeper.keep());
        } else {
            shared.changes.tell(&spec.key, spec.generation);
        }
        Ok(())
    }

    async fn observe(&self, spec: &ComputeSpec) -> Result<Observation, Error> {
        must_be_process(spec)?;
        let state = self.shared.state();
        state.must_be_up()?;
        Ok(
            match state
                .computes
                .get(&(spec.key.clone(), spec.generation))
                .map(|compute| &compute.stage)
            {
                None => Observation::Missing,
                Some(Stage::Starting { detail }) => Observation::Starting {
                    detail: detail.clone(),
                },
                Some(Stage::Stopping) => Observation::Starting {
                    detail: "it is being stopped".to_owned(),
                },
                Some(Stage::Ready { route }) => Observation::Ready { route: route.clone() },
                Some(Stage::Failed { cause, permanent }) => Observation::Failed {
                    cause: cause.clone(),
                    permanent: *permanent,
                },
            },
        )
    }

    async fn release(&self, spec: &ComputeSpec) -> Result<(), Error> {
        must_be_process(spec)?;
        let mut told = Vec::new();
        {
            let mut state = self.shared.state();
            state.released.add(&spec.key, spec.generation);
            state.computes.retain(|(key, generation), compute| {
                if *key != spec.key || *generation > spec.generation {
                    return true;
                }
                if compute.stage.has_keeper() {
                    compute.stage = Stage::Stopping;
                    compute.stop.cancel();
                    return true;
                }
                told.push(*generation);
                false
            });
        }
        for generation in told {
            self.shared.changes.tell(&spec.key, generation);
        }
        Ok(())
    }

    async fn inventory(&self) -> Result<Vec<Found>, Error> {
        let state = self.shared.state();
        state.must_be_up()?;
        let there = state.computes.iter().filter(|(_, compute)| match compute.stage {
            Stage::Starting { .. } | Stage::Ready { .. } => true,
            Stage::Failed { .. } | Stage::Stopping => false,
        });
        Ok(there
            .map(|((key, generation), compute)| Found {
                key: key.clone(),
                generation: *generation,
                cluster: compute.cluster.clone(),
                install_id: self.shared.config.install_id.clone(),
                age: compute.made.elapsed(),
            })
            .collect())
    }

    fn watch(&self) -> BoxStream<'static, ComputeChanged> {
        self.shared.changes.watch()
    }
}

fn must_be_process(spec: &ComputeSpec) -> Result<(), Error> {
    if spec.cluster.provider.kind() == ProviderKind::Process {
        Ok(())
    } else {
        Err(Error::WrongProvider(spec.cluster.name.to_string()))
    }
}

impl State {
    fn must_be_up(&self) -> Result<(), Error> {
        if self.shut_down {
            Err(Error::Unavailable("the provider is shutting down".to_owned()))
        } else {
            Ok(())
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn folders(&self, key: &SessionKey, generation: u64) -> Folders {
        Folders {
            root: self.config.state_dir.join(format!("{}-g{generation}", key.id)),
        }
    }

    /// Why there is no room for it now, and whether that is for good.
    fn refusal(&self, state: &State, spec: &ComputeSpec) -> Option<(Cause, bool)> {
        let id = (spec.key.clone(), spec.generation);
        let live = || {
            state
                .computes
                .iter()
                .filter(|(other, compute)| **other != id && compute.stage.has_keeper())
        };
        if !self.config.trust_all_users && live().any(|((key, _), _)| key.org != spec.key.org) {
            return Some((
                format!(
                    "cluster {} runs sessions of another organization, and its provider keeps users apart only by trust",
                    spec.cluster.name
                )
                .into(),
                true,
            ));
        }
        (live().count() >= self.config.max_children).then(|| {
            (
                format!(
                    "all {} places for engines on this machine are in use",
                    self.config.max_children
                )
                .into(),
                false,
            )
        })
    }
}

/// Removes the folders of engines that died with their manager. Some may have
/// two more seconds to write, and a new file makes removing fail; what is left
/// in the end is in nobody's way.
fn clear_leftovers(state_dir: &Path) {
    let begun = std::time::Instant::now();
    while let Err(cause) = try_clear(state_dir) {
        if begun.elapsed() >= LEFTOVERS_LIMIT {
            tracing::warn!(folder = %state_dir.display(), %cause, "what a dead manager left was not cleared");
            return;
        }
        std::thread::park_timeout(LEFTOVERS_POLL);
    }
}

fn try_clear(state_dir: &Path) -> io::Result<()> {
    let mut failure = None;
    for entry in std::fs::read_dir(state_dir)? {
        let entry = entry?;
        let is_ours = entry.file_name().to_str().is_some_and(|name| {
            name.rsplit_once("-g").is_some_and(|(id, generation)| {
                id.parse::<session_core::SessionId>().is_ok() && generation.parse::<u64>().is_ok()
            })
        });
        if is_ours {
            failure = std::fs::remove_dir_all(entry.path()).err().or(failure);
        }
    }
    failure.map_or(Ok(()), Err)
}
