//! One child process per session generation, on the manager's own machine.
//!
//! Each generation has a keeper task that owns its child from the first moment
//! to the last; everybody else only reads what the keeper wrote down, and asks
//! it to stop. A generation that was released is remembered, so that a late
//! `ensure` cannot bring it back.

mod child;
mod command;
mod log;
mod port;

use crate::dial::Target;
use crate::probe::{self, CatalogQuestion, Question};
use crate::properties::{validate_catalog, validate_cluster, validate_use};
use crate::watch::Changes;
use crate::{ComputeChanged, ComputeProvider, ComputeSpec, Error};
use async_trait::async_trait;
use child::{Exit, Supervised};
use command::{EngineCommand, Folders};
use futures::stream::BoxStream;
use port::{Listener, Port, Ports};
use session_core::machine::Observation;
use session_core::route::Secret;
use session_core::{Provider, Route, SessionKey};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// So many ends before readiness in a row, and trying again is no use.
const CRASH_BUDGET: u32 = 3;
/// So many ports taken by others in a row, and this start has failed.
const PORT_TRIES: u32 = 3;
/// A start that takes longer no longer holds others up.
const TURN: Duration = Duration::from_secs(30);
/// Released generations are remembered at least so long, should there be many.
const REMEMBER: Duration = Duration::from_secs(3600);
const REMEMBER_MANY: usize = 10_000;
const LISTEN_POLL: Duration = Duration::from_millis(20);

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
    released: HashMap<SessionKey, (u64, Instant)>,
    runs: u64,
}

#[derive(Debug)]
struct Compute {
    /// Which keeper may write here.
    run: u64,
    stage: Stage,
    stop: CancellationToken,
    crashes: u32,
    log_tail: Option<String>,
}

#[derive(Debug, Clone)]
enum Stage {
    Starting { detail: String },
    Ready { route: Route },
    Failed { cause: String, permanent: bool },
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
        clear_leftovers(&state_dir).map_err(about)?;
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
            .or_else(|| Some(log::tail(&folders.log(), &[])))
    }

    /// Ends every child and waits until all are gone.
    pub async fn shutdown(&self) {
        for compute in self.shared.state().computes.values() {
            compute.stop.cancel();
        }
        self.shared.keepers.close();
        self.shared.keepers.wait().await;
    }
}

#[async_trait]
impl ComputeProvider for ProcessProvider {
    async fn ensure(&self, spec: &ComputeSpec) -> Result<(), Error> {
        must_be_process(spec)?;
        let unfit = unfit(spec);
        let id = (spec.key.clone(), spec.generation);
        let shared = &self.shared;
        let mut state = shared.state();
        if state
            .released
            .get(&spec.key)
            .is_some_and(|(up_to, _)| spec.generation <= *up_to)
        {
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
                stage,
                stop: stop.clone(),
                crashes,
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
            state.remember_release(&spec.key, spec.generation);
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

    fn watch(&self) -> BoxStream<'static, ComputeChanged> {
        self.shared.changes.watch()
    }
}

fn must_be_process(spec: &ComputeSpec) -> Result<(), Error> {
    match spec.cluster.provider {
        Provider::Process { .. } => Ok(()),
        Provider::Static { .. } => Err(Error::WrongProvider(spec.cluster.name.to_string())),
    }
}

/// Why this spec can never run, if so.
fn unfit(spec: &ComputeSpec) -> Option<String> {
    let cluster = validate_cluster(&spec.cluster).map_err(|e| format!("cluster {}: {e}", spec.cluster.name));
    let catalog = spec.catalog.as_ref().map_or(Ok(()), |catalog| {
        validate_catalog(catalog)
            .and_then(|()| validate_use(&spec.cluster, catalog))
            .map_err(|e| format!("catalog {}: {e}", catalog.name))
    });
    cluster.and(catalog).err()
}

impl State {
    fn remember_release(&mut self, key: &SessionKey, up_to: u64) {
        let now = Instant::now();
        if self.released.len() >= REMEMBER_MANY {
            self.released
                .retain(|_, (_, at)| now.duration_since(*at) < REMEMBER);
        }
        let entry = self.released.entry(key.clone()).or_insert((up_to, now));
        *entry = (entry.0.max(up_to), now);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn folders(&self, key: &SessionKey, generation: u64) -> Folders {
        Folders {
            root: self.config.state_dir.join(format!("{}-g{generation}", key.id)),
        }
    }

    /// Why there is no room for it now, and whether that is for good.
    fn refusal(&self, state: &State, spec: &ComputeSpec) -> Option<(String, bool)> {
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
                ),
                true,
            ));
        }
        (live().count() >= self.config.max_children).then(|| {
            (
                format!(
                    "all {} places for engines on this machine are in use",
                    self.config.max_children
                ),
                false,
            )
        })
    }
}

fn clear_leftovers(state_dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(state_dir)? {
        let entry = entry?;
        let is_ours = entry.file_name().to_str().is_some_and(|name| {
            name.rsplit_once("-g").is_some_and(|(id, generation)| {
                id.parse::<session_core::SessionId>().is_ok() && generation.parse::<u64>().is_ok()
            })
        });
        if is_ours {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Owns one child from the first moment to the last.
struct Keeper {
    shared: Arc<Shared>,
    spec: ComputeSpec,
    run: u64,
    stop: CancellationToken,
}

/// How a keeper's work ended.
enum End {
    Stopped,
    Failed {
        cause: String,
        permanent: bool,
        crashed: bool,
        log_tail: Option<String>,
    },
}

impl End {
    fn failed(cause: String, permanent: bool) -> Self {
        Self::Failed {
            cause,
            permanent,
            crashed: false,
            log_tail: None,
        }
    }
}

/// What became of a child that was started.
enum Began {
    Stopped,
    Ended(Exit),
    Ready(String),
    PortTaken,
    Never(String),
}

impl Keeper {
    async fn keep(self) {
        let end = self.live().await;
        let folders = self.shared.folders(&self.spec.key, self.spec.generation);
        if let Err(e) = tokio::task::spawn_blocking(move || remove_folders(&folders)).await {
            tracing::warn!(session = %self.spec.key.id, cause = %e, "the session's folder was not removed");
        }
        {
            let mut state = self.shared.state();
            let id = (self.spec.key.clone(), self.spec.generation);
            if let Some(compute) = state
                .computes
                .get_mut(&id)
                .filter(|compute| compute.run == self.run)
            {
                match (end, &compute.stage) {
                    // A release that came while it failed wants it gone all the same.
                    (End::Stopped, _) | (End::Failed { .. }, Stage::Stopping) => {
                        state.computes.remove(&id);
                    }
                    (
                        End::Failed {
                            cause,
                            permanent,
                            crashed,
                            log_tail,
                        },
                        _,
                    ) => {
                        compute.crashes = if crashed { compute.crashes + 1 } else { 0 };
                        let permanent = permanent || compute.crashes >= CRASH_BUDGET;
                        tracing::info!(session = %self.spec.key.id, generation = self.spec.generation, %cause, permanent, "compute failed");
                        compute.stage = Stage::Failed { cause, permanent };
                        compute.log_tail = log_tail;
                    }
                }
            }
        }
        self.shared.changes.tell(&self.spec.key, self.spec.generation);
    }

    async fn live(&self) -> End {
        let ahead = self
            .shared
            .config
            .max_starting
            .saturating_sub(self.shared.starts.available_permits());
        if self.shared.starts.available_permits() == 0 {
            self.waiting(format!(
                "waiting for its turn: {ahead} other engines are starting"
            ));
        }
        let permit = tokio::select! {
            biased;
            () = self.stop.cancelled() => return End::Stopped,
            permit = self.shared.starts.clone().acquire_owned() => permit,
        };
        // Given back when the start is over, or has taken too long to hold others up.
        let started = CancellationToken::new();
        let turn = started.clone();
        tokio::spawn(async move {
            let _permit = permit;
            tokio::select! { () = turn.cancelled() => {}, () = sleep(TURN) => {} }
        });
        let _turn_ends = started.clone().drop_guard();

        for _ in 0..PORT_TRIES {
            let port = match self.shared.ports.take() {
                Ok(port) => port,
                Err(e) => return End::failed(format!("no loopback port: {e}"), false),
            };
            let folders = self.shared.folders(&self.spec.key, self.spec.generation);
            let command = match EngineCommand::new(&self.spec, &folders, port.number) {
                Ok(command) => command,
                Err(cause) => return End::failed(cause, true),
            };
            self.waiting(format!("{} is starting", self.spec.cluster.engine));
            let mut child = match Supervised::start(&self.shared.config.supervise, &command, &folders).await {
                Ok(child) => child,
                Err(e) => return self.not_started(&e),
            };
            let target = Target::child(port.number, command.credential.clone());
            let group = child.group();
            let began = tokio::select! {
                biased;
                () = self.stop.cancelled() => Began::Stopped,
                exit = child.ended() => Began::Ended(exit),
                began = self.until_ready(&port, group, &target) => began,
            };
            match began {
                Began::Stopped => {
                    child.stop().await;
                    return End::Stopped;
                }
                Began::Ended(exit) => return self.crashed(exit, &folders, &command.secrets, true),
                Began::PortTaken => child.stop().await,
                Began::Never(cause) => {
                    child.stop().await;
                    let log_tail = Some(log::tail(&folders.log(), &command.secrets));
                    let cause = log::mask(&cause, &command.secrets);
                    return End::Failed {
                        cause,
                        permanent: true,
                        crashed: false,
                        log_tail,
                    };
                }
                Began::Ready(version) => {
                    started.cancel();
                    self.ready(&target, &command, version);
                    return tokio::select! {
                        biased;
                        () = self.stop.cancelled() => {
                            child.stop().await;
                            End::Stopped
                        }
                        exit = child.ended() => self.crashed(exit, &folders, &command.secrets, false),
                    };
                }
            }
        }
        End::failed(
            "other processes on this machine keep taking its port".to_owned(),
            false,
        )
    }

    async fn until_ready(&self, port: &Port, group: i32, target: &Target) -> Began {
        let number = port.number;
        loop {
            let found = tokio::task::spawn_blocking(move || port::listener(number, group)).await;
            match found {
                Ok(Ok(Listener::Ours)) => break,
                Ok(Ok(Listener::Foreign)) => return Began::PortTaken,
                Ok(Ok(Listener::Nobody) | Err(_)) | Err(_) => sleep(LISTEN_POLL).await,
            }
        }
        let question = Question {
            user_id: self.spec.key.id.to_string(),
            catalog: self.spec.catalog.as_ref().map(|catalog| CatalogQuestion {
                name: catalog.name.to_string(),
                database: catalog.default_database.clone(),
                select: false,
            }),
        };
        let engine = self.spec.cluster.engine;
        let asked = probe::until_ready(target, &question, |why| {
            self.waiting(format!("{engine} is not ready: {why}"))
        });
        match asked.await {
            Ok(version) => Began::Ready(version),
            Err(cause) => Began::Never(cause),
        }
    }

    fn waiting(&self, detail: String) {
        self.write(|stage| {
            if let Stage::Starting { detail: old } = stage {
                *old = detail;
            }
        });
    }

    fn ready(&self, target: &Target, command: &EngineCommand, engine_version: String) {
        let route = Route {
            endpoint: target.address.clone(),
            tls_server_name: None,
            credential: command.credential.clone(),
            engine: self.spec.cluster.engine,
            engine_version,
            dedicated: true,
        };
        self.write(|stage| {
            if let Stage::Starting { .. } = stage {
                *stage = Stage::Ready { route };
            }
        });
        self.shared.changes.tell(&self.spec.key, self.spec.generation);
    }

    fn write(&self, edit: impl FnOnce(&mut Stage)) {
        let mut state = self.shared.state();
        let id = (self.spec.key.clone(), self.spec.generation);
        if let Some(compute) = state
            .computes
            .get_mut(&id)
            .filter(|compute| compute.run == self.run)
        {
            edit(&mut compute.stage);
        }
    }

    fn not_started(&self, e: &io::Error) -> End {
        let helper = self.shared.config.supervise.display();
        match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
                if !self.shared.config.supervise.exists() =>
            {
                End::failed(format!("Berth is not installed whole: {helper} is missing"), true)
            }
            _ => End::failed(
                format!("{} could not be started: {e}", self.spec.cluster.engine),
                false,
            ),
        }
    }

    fn crashed(&self, exit: Exit, folders: &Folders, secrets: &[Secret], before_ready: bool) -> End {
        let tail = log::tail(&folders.log(), secrets);
        let how = match exit {
            Exit::Code(code) => format!("exited with code {code}"),
            Exit::Signal(signal) => format!("was killed by signal {signal}"),
            Exit::HelperLost => "was ended because its helper berth-supervise was killed".to_owned(),
        };
        let when = if before_ready { " before it was ready" } else { "" };
        let last_words = log::last_words(&tail);
        let said = if last_words.is_empty() {
            String::new()
        } else {
            format!(": {last_words}")
        };
        // 126 and 127: what the program's path names cannot be run.
        let permanent = matches!(exit, Exit::Code(126 | 127)) && before_ready;
        let cause = format!("{} {how}{when}{said}", self.spec.cluster.engine);
        End::Failed {
            cause,
            permanent,
            crashed: before_ready,
            log_tail: Some(tail),
        }
    }
}

fn remove_folders(folders: &Folders) {
    match std::fs::remove_dir_all(&folders.root) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(folder = %folders.root.display(), cause = %e, "a session's folder was not removed");
        }
        Ok(()) | Err(_) => {}
    }
}
