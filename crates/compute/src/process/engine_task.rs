//! The task that owns one child process: start permit, port, start, readiness,
//! end, and removal of its folder.

use super::child::{Exit, Supervised};
use super::command::{EngineCommand, Folders};
use super::port::{self, Listener, Port};
use super::{Compute, Shared, Stage, State, log};
use crate::ComputeSpec;
use crate::connector::Target;
use crate::probe::{self, CatalogQuestion, Question};
use crate::user_message;
use session_core::Route;
use session_core::machine::Cause;
use session_core::route::Secret;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Consecutive crashes before readiness after which the failure is permanent.
const MAX_CRASHES: u32 = 3;
/// Consecutive ports taken by other processes after which a start fails.
const MAX_PORT_ATTEMPTS: u32 = 3;
/// Time after which a slow start releases its permit, so that others can start.
const START_PERMIT_TIMEOUT: Duration = Duration::from_secs(30);
const LISTEN_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The task of one child process.
pub(super) struct EngineTask {
    pub(super) shared: Arc<Shared>,
    pub(super) spec: ComputeSpec,
    pub(super) run: u64,
    pub(super) stop: CancellationToken,
}

/// Result of the task.
enum End {
    Stopped,
    Failed {
        cause: Cause,
        permanent: bool,
        crashed: bool,
        log_tail: Option<String>,
    },
}

impl End {
    fn failed(cause: impl Into<Cause>, permanent: bool) -> Self {
        Self::Failed {
            cause: cause.into(),
            permanent,
            crashed: false,
            log_tail: None,
        }
    }
}

/// A started engine.
struct Engine {
    port: Port,
    folders: Folders,
    command: EngineCommand,
    child: Supervised,
    target: Target,
}

/// Outcome of the wait for readiness.
enum StartOutcome {
    Stopped,
    Ended(Exit),
    Ready(String),
    PortTaken,
    NeverReady(Cause),
}

impl EngineTask {
    pub(super) async fn run(self) {
        let end = self.run_engine().await;
        let folders = self.shared.folders(&self.spec.key, self.spec.generation);
        if let Err(e) = tokio::task::spawn_blocking(move || remove_folders(&folders)).await {
            tracing::warn!(session = %self.spec.key.id, cause = %e, "removing the folder of a session failed");
        }
        self.finish(end);
        self.shared.changes.publish(&self.spec.key, self.spec.generation);
    }

    /// Records the end, unless another task has replaced this one.
    fn finish(&self, end: End) {
        let mut state = self.shared.state();
        let Some(compute) = self.compute(&mut state) else {
            return;
        };
        match (end, &compute.stage) {
            // A release during the failure removes it too.
            (End::Stopped, _) | (End::Failed { .. }, Stage::Stopping) => {
                let id = (self.spec.key.clone(), self.spec.generation);
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
                let permanent = permanent || compute.crashes >= MAX_CRASHES;
                tracing::info!(session = %self.spec.key.id, generation = self.spec.generation, cause = %cause.text, detail = %cause.detail, permanent, "compute failed");
                compute.stage = Stage::Failed { cause, permanent };
                compute.log_tail = log_tail;
            }
        }
    }

    async fn run_engine(&self) -> End {
        let started = CancellationToken::new();
        let _release_permit = started.clone().drop_guard();
        if !self.acquire_start_permit(&started).await {
            return End::Stopped;
        }
        for _ in 0..MAX_PORT_ATTEMPTS {
            let engine = match self.start().await {
                Ok(engine) => engine,
                Err(end) => return end,
            };
            if let Some(end) = self.supervise(engine, &started).await {
                return end;
            }
        }
        End::failed("other processes on this machine keep taking its port", false)
    }

    /// Waits for a permit to start; false if the task is stopped. The permit is
    /// released when `started` is cancelled, or after [`START_PERMIT_TIMEOUT`].
    async fn acquire_start_permit(&self, started: &CancellationToken) -> bool {
        let available = self.shared.starts.available_permits();
        if available == 0 {
            let starting = self.shared.config.max_starting;
            let text = format!("waiting for its turn: {starting} other engines are starting");
            self.set_waiting(text.into());
        }
        let permit = tokio::select! {
            biased;
            () = self.stop.cancelled() => return false,
            permit = self.shared.starts.clone().acquire_owned() => permit,
        };
        let started = started.clone();
        tokio::spawn(async move {
            let _permit = permit;
            tokio::select! { () = started.cancelled() => {}, () = sleep(START_PERMIT_TIMEOUT) => {} }
        });
        true
    }

    /// Starts the engine on a free port.
    async fn start(&self) -> Result<Engine, End> {
        let port = self
            .shared
            .ports
            .take()
            .map_err(|e| End::failed(user_message::cause("no loopback port is free", e), false))?;
        let folders = self.shared.folders(&self.spec.key, self.spec.generation);
        let command = EngineCommand::new(&self.spec, &folders, port.number)
            .map_err(|cause| End::failed(cause, true))?;
        self.set_waiting(format!("{} is starting", self.spec.cluster.engine).into());
        let child = Supervised::start(&self.shared.config.supervise, &command, &folders)
            .await
            .map_err(|e| self.not_started(&e))?;
        self.set_secrets(&command.start.secrets);
        let target = Target::child(port.number, command.start.credential.clone());
        Ok(Engine {
            port,
            folders,
            command,
            child,
            target,
        })
    }

    /// Waits until the engine is ready, then until it ends; `None` if another
    /// process took its port.
    async fn supervise(&self, mut engine: Engine, started: &CancellationToken) -> Option<End> {
        let secrets = &engine.command.start.secrets;
        let group = engine.child.group();
        let outcome = tokio::select! {
            biased;
            () = self.stop.cancelled() => StartOutcome::Stopped,
            exit = engine.child.ended() => StartOutcome::Ended(exit),
            outcome = self.until_ready(&engine.port, group, &engine.target, secrets) => outcome,
        };
        match outcome {
            StartOutcome::Stopped => {
                engine.child.stop().await;
                Some(End::Stopped)
            }
            StartOutcome::Ended(exit) => Some(self.crashed(exit, &engine.folders, secrets, true)),
            StartOutcome::PortTaken => {
                engine.child.stop().await;
                None
            }
            StartOutcome::NeverReady(cause) => {
                engine.child.stop().await;
                Some(End::Failed {
                    cause: user_message::masked(&cause, secrets),
                    permanent: true,
                    crashed: false,
                    log_tail: Some(log::tail(&engine.folders.log(), secrets)),
                })
            }
            StartOutcome::Ready(version) => {
                started.cancel();
                self.set_ready(&engine.target, &engine.command, version);
                Some(self.until_ended(engine).await)
            }
        }
    }

    /// Waits for the end of a ready engine, or stops it.
    async fn until_ended(&self, mut engine: Engine) -> End {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => {
                engine.child.stop().await;
                End::Stopped
            }
            exit = engine.child.ended() => {
                self.crashed(exit, &engine.folders, &engine.command.start.secrets, false)
            }
        }
    }

    async fn until_ready(
        &self,
        port: &Port,
        group: i32,
        target: &Target,
        secrets: &[Secret],
    ) -> StartOutcome {
        let number = port.number;
        loop {
            let listener = tokio::task::spawn_blocking(move || port::listener(number, group)).await;
            match listener {
                Ok(Ok(Listener::Own)) => break,
                Ok(Ok(Listener::Foreign)) => return StartOutcome::PortTaken,
                Ok(Ok(Listener::None) | Err(_)) | Err(_) => sleep(LISTEN_POLL_INTERVAL).await,
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
        let probe = probe::until_ready(target, &question, |why| {
            let why = user_message::masked(&why, secrets);
            tracing::debug!(session = %self.spec.key.id, cause = %why.text, detail = %why.detail, "engine not ready");
            self.set_waiting(user_message::prefixed(&format!("{engine} is not ready"), why));
        });
        match probe.await {
            Ok(version) => StartOutcome::Ready(version),
            Err(cause) => StartOutcome::NeverReady(cause),
        }
    }

    fn set_waiting(&self, cause: Cause) {
        let mut is_new = false;
        self.edit_stage(|stage| {
            if let Stage::Starting { cause: old } = stage {
                is_new = *old != cause;
                *old = cause;
            }
        });
        if is_new {
            self.shared.changes.publish(&self.spec.key, self.spec.generation);
        }
    }

    fn set_ready(&self, target: &Target, command: &EngineCommand, engine_version: String) {
        let route = Route {
            endpoint: target.address.clone(),
            tls_server_name: None,
            credential: command.start.credential.clone(),
            engine: self.spec.cluster.engine,
            engine_version,
            dedicated: true,
            host: self.shared.config.host.clone(),
        };
        self.edit_stage(|stage| {
            if let Stage::Starting { .. } = stage {
                *stage = Stage::Ready { route };
            }
        });
        self.shared.changes.publish(&self.spec.key, self.spec.generation);
    }

    fn set_secrets(&self, secrets: &[Secret]) {
        self.with_compute(|compute| compute.secrets = secrets.to_vec());
    }

    fn edit_stage(&self, edit: impl FnOnce(&mut Stage)) {
        self.with_compute(|compute| edit(&mut compute.stage));
    }

    /// Edits the entry, unless another task has replaced this one.
    fn with_compute(&self, edit: impl FnOnce(&mut Compute)) {
        if let Some(compute) = self.compute(&mut self.shared.state()) {
            edit(compute);
        }
    }

    /// The entry of this task, unless another task has replaced it.
    fn compute<'s>(&self, state: &'s mut State) -> Option<&'s mut Compute> {
        let id = (self.spec.key.clone(), self.spec.generation);
        let entry = state.computes.get_mut(&id);
        entry.filter(|compute| compute.run == self.run)
    }

    fn not_started(&self, e: &io::Error) -> End {
        let supervisor = self.shared.config.supervise.display();
        match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
                if !self.shared.config.supervise.exists() =>
            {
                let text = "Berth is not installed whole: berth-supervise is missing";
                End::failed(user_message::cause(text, supervisor), true)
            }
            _ => End::failed(
                user_message::cause(format!("{} could not be started", self.spec.cluster.engine), e),
                false,
            ),
        }
    }

    fn crashed(&self, exit: Exit, folders: &Folders, secrets: &[Secret], before_ready: bool) -> End {
        let tail = log::tail(&folders.log(), secrets);
        let how = match exit {
            Exit::Code(code) => format!("exited with code {code}"),
            Exit::Signal(signal) => format!("was killed by signal {signal}"),
            Exit::SupervisorLost => "was ended because its supervisor berth-supervise was killed".to_owned(),
        };
        let when = if before_ready { " before it was ready" } else { "" };
        // 126 and 127: the program cannot be executed.
        let permanent = matches!(exit, Exit::Code(126 | 127)) && before_ready;
        let text = format!("{} {how}{when}", self.spec.cluster.engine);
        let cause = user_message::cause(text, user_message::last_lines(&tail));
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
            tracing::warn!(folder = %folders.root.display(), cause = %e, "removing the folder of a session failed");
        }
        Ok(()) | Err(_) => {}
    }
}
