//! The `process` provider: one child process per session generation, on the machine of
//! the manager.
//!
//! Each generation has an `EngineTask` that owns its child process. All other code
//! only reads the state that the task writes, and requests its stop. Released
//! generations are stored, so that a late `ensure` does not start them again.

mod child;
mod command;
mod definition;
mod engine_task;
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
use engine_task::EngineTask;
use futures::stream::BoxStream;
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

/// The supervisor's 2 s between SIGTERM and SIGKILL after the end of the manager, plus
/// a reserve.
const LEFTOVERS_TIMEOUT: Duration = Duration::from_secs(5);
const LEFTOVERS_POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Settings of the provider.
#[derive(Debug, Clone)]
pub struct ProcessConfig {
    /// Parent folder of the sessions' folders, used by one manager only.
    pub state_dir: PathBuf,
    /// The program `berth-supervise`.
    pub supervise: PathBuf,
    /// Maximum number of children.
    pub max_children: usize,
    /// Maximum number of starting children.
    pub max_starting: usize,
    /// Allows children of several organizations at a time, although only the engine
    /// separates their users.
    pub trust_all_users: bool,
    /// Id of the installation.
    pub install_id: String,
    /// Host of the children's loopback addresses, for [`Route::host`].
    pub host: Option<String>,
}

impl ProcessConfig {
    /// Defaults: 64 children, 4 starting at a time, `berth-supervise` beside the
    /// running program.
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
    // Test programs are one folder below the programs that they test.
    let above = here
        .parent()
        .map(|dir| dir.join(name))
        .filter(|path| path.exists());
    match here.join(name) {
        path if path.exists() => path,
        path => above.unwrap_or(path),
    }
}

/// The `process` provider; see the module.
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
    tasks: TaskTracker,
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
    /// The task that may write this entry.
    run: u64,
    cluster: ClusterName,
    created: Instant,
    stage: Stage,
    stop: CancellationToken,
    crashes: u32,
    /// Values to mask in its log tail.
    secrets: Vec<Secret>,
    log_tail: Option<String>,
}

#[derive(Debug, Clone)]
enum Stage {
    Starting { cause: Cause },
    Ready { route: Route },
    Failed { cause: Cause, permanent: bool },
    Stopping,
}

impl Stage {
    fn has_task(&self) -> bool {
        match self {
            Self::Starting { .. } | Self::Ready { .. } | Self::Stopping => true,
            Self::Failed { .. } => false,
        }
    }
}

impl ProcessProvider {
    /// Locks the state folder, and removes what a dead manager left in it.
    ///
    /// # Errors
    /// If the folder is unusable or in use by another manager.
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
                tasks: TaskTracker::new(),
                _lock: lock,
            }),
        })
    }

    /// The last 4 KiB of an engine's output at most, secrets masked; for the session's
    /// owner and organization admins only.
    pub fn log_tail(&self, key: &SessionKey, generation: u64) -> Option<String> {
        let state = self.shared.state();
        let compute = state.computes.get(&(key.clone(), generation))?;
        let folders = self.shared.folders(key, generation);
        compute
            .log_tail
            .clone()
            .or_else(|| Some(log::tail(&folders.log(), &compute.secrets)))
    }

    /// Ends all children and waits for their end. Afterwards every call fails, so that
    /// children do not count as lost.
    pub async fn shutdown(&self) {
        {
            let mut state = self.shared.state();
            state.shut_down = true;
            for compute in state.computes.values() {
                compute.stop.cancel();
            }
        }
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
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
        check_provider(spec)?;
        let unfit = unfit(spec, check_definition);
        let id = (spec.key.clone(), spec.generation);
        let shared = &self.shared;
        let mut state = shared.state();
        state.check_running()?;
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
        let obstacle = unfit
            .map(|cause| (cause, true))
            .or_else(|| shared.start_obstacle(&state, spec));
        let stage = match obstacle {
            Some((cause, permanent)) => Stage::Failed { cause, permanent },
            None => Stage::Starting {
                cause: format!("{} is about to start", spec.cluster.engine).into(),
            },
        };
        let starts = stage.has_task();
        let (run, stop) = state.add_compute(spec, stage, crashes);
        drop(state);
        if starts {
            let task = EngineTask {
                shared: shared.clone(),
                spec: spec.clone(),
                run,
                stop,
            };
            shared.tasks.spawn(task.run());
        } else {
            shared.changes.publish(&spec.key, spec.generation);
        }
        Ok(())
    }

    async fn observe(&self, spec: &ComputeSpec) -> Result<Observation, Error> {
        check_provider(spec)?;
        let state = self.shared.state();
        state.check_running()?;
        Ok(
            match state
                .computes
                .get(&(spec.key.clone(), spec.generation))
                .map(|compute| &compute.stage)
            {
                None => Observation::Missing,
                Some(Stage::Starting { cause }) => Observation::Starting { cause: cause.clone() },
                Some(Stage::Stopping) => Observation::Starting {
                    cause: "it is being stopped".into(),
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
        check_provider(spec)?;
        let mut removed = Vec::new();
        {
            let mut state = self.shared.state();
            state.released.add(&spec.key, spec.generation);
            state.computes.retain(|(key, generation), compute| {
                if *key != spec.key || *generation > spec.generation {
                    return true;
                }
                if compute.stage.has_task() {
                    compute.stage = Stage::Stopping;
                    compute.stop.cancel();
                    return true;
                }
                removed.push(*generation);
                false
            });
        }
        for generation in removed {
            self.shared.changes.publish(&spec.key, generation);
        }
        Ok(())
    }

    async fn inventory(&self) -> Result<Vec<Found>, Error> {
        let state = self.shared.state();
        state.check_running()?;
        let existing = state.computes.iter().filter(|(_, compute)| match compute.stage {
            Stage::Starting { .. } | Stage::Ready { .. } => true,
            Stage::Failed { .. } | Stage::Stopping => false,
        });
        Ok(existing
            .map(|((key, generation), compute)| Found {
                key: key.clone(),
                generation: *generation,
                cluster: compute.cluster.clone(),
                install_id: self.shared.config.install_id.clone(),
                age: compute.created.elapsed(),
            })
            .collect())
    }

    fn watch(&self) -> BoxStream<'static, ComputeChanged> {
        self.shared.changes.watch()
    }
}

fn check_provider(spec: &ComputeSpec) -> Result<(), Error> {
    if spec.cluster.provider.kind() == ProviderKind::Process {
        Ok(())
    } else {
        Err(Error::WrongProvider(spec.cluster.name.to_string()))
    }
}

impl State {
    fn check_running(&self) -> Result<(), Error> {
        if self.shut_down {
            Err(Error::Unavailable("the provider is shutting down".to_owned()))
        } else {
            Ok(())
        }
    }

    /// Adds an entry; returns its run number and the token that stops its task.
    fn add_compute(&mut self, spec: &ComputeSpec, stage: Stage, crashes: u32) -> (u64, CancellationToken) {
        self.runs += 1;
        let stop = CancellationToken::new();
        let compute = Compute {
            run: self.runs,
            cluster: spec.cluster.name.clone(),
            created: Instant::now(),
            stage,
            stop: stop.clone(),
            crashes,
            secrets: Vec::new(),
            log_tail: None,
        };
        self.computes.insert((spec.key.clone(), spec.generation), compute);
        (self.runs, stop)
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

    /// Reason against a start now, and whether it is permanent.
    fn start_obstacle(&self, state: &State, spec: &ComputeSpec) -> Option<(Cause, bool)> {
        let id = (spec.key.clone(), spec.generation);
        let live = || {
            state
                .computes
                .iter()
                .filter(|(other, compute)| **other != id && compute.stage.has_task())
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

/// Removes the folders of engines that ended with their manager. Engines can write for
/// two more seconds, and a new file makes the removal fail; folders that remain are
/// harmless.
fn clear_leftovers(state_dir: &Path) {
    let begun = std::time::Instant::now();
    while let Err(cause) = try_clear(state_dir) {
        if begun.elapsed() >= LEFTOVERS_TIMEOUT {
            tracing::warn!(folder = %state_dir.display(), %cause, "removing folders of a dead manager failed");
            return;
        }
        std::thread::park_timeout(LEFTOVERS_POLL_INTERVAL);
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
