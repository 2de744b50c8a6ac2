//! The task that owns one child from the first moment to the last: its turn,
//! its port, its start, its readiness, its end, its folder.

use super::child::{Exit, Supervised};
use super::command::{EngineCommand, Folders};
use super::port::{self, Listener, Port};
use super::{Compute, Shared, Stage, log};
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

/// So many ends before readiness in a row, and trying again is no use.
const CRASH_BUDGET: u32 = 3;
/// So many ports taken by others in a row, and this start has failed.
const PORT_TRIES: u32 = 3;
/// A start that takes longer no longer holds others up.
const TURN: Duration = Duration::from_secs(30);
const LISTEN_POLL: Duration = Duration::from_millis(20);

/// Owns one child from the first moment to the last.
pub(super) struct Keeper {
    pub(super) shared: Arc<Shared>,
    pub(super) spec: ComputeSpec,
    pub(super) run: u64,
    pub(super) stop: CancellationToken,
}

/// How a keeper's work ended.
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

/// What became of a child that was started.
enum Began {
    Stopped,
    Ended(Exit),
    Ready(String),
    PortTaken,
    Never(Cause),
}

impl Keeper {
    pub(super) async fn keep(self) {
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
                        tracing::info!(session = %self.spec.key.id, generation = self.spec.generation, cause = %cause.text, detail = %cause.detail, permanent, "compute failed");
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
                Err(e) => return End::failed(user_message::cause("no loopback port is free", e), false),
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
            self.keep_secret(&command.start.secrets);
            let target = Target::child(port.number, command.start.credential.clone());
            let group = child.group();
            let began = tokio::select! {
                biased;
                () = self.stop.cancelled() => Began::Stopped,
                exit = child.ended() => Began::Ended(exit),
                began = self.until_ready(&port, group, &target, &command.start.secrets) => began,
            };
            match began {
                Began::Stopped => {
                    child.stop().await;
                    return End::Stopped;
                }
                Began::Ended(exit) => return self.crashed(exit, &folders, &command.start.secrets, true),
                Began::PortTaken => child.stop().await,
                Began::Never(cause) => {
                    child.stop().await;
                    let log_tail = Some(log::tail(&folders.log(), &command.start.secrets));
                    let cause = user_message::masked(&cause, &command.start.secrets);
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
                        exit = child.ended() => self.crashed(exit, &folders, &command.start.secrets, false),
                    };
                }
            }
        }
        End::failed("other processes on this machine keep taking its port", false)
    }

    async fn until_ready(&self, port: &Port, group: i32, target: &Target, secrets: &[Secret]) -> Began {
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
            let why = user_message::masked(&why, secrets);
            tracing::debug!(session = %self.spec.key.id, cause = %why.text, detail = %why.detail, "not ready yet");
            self.waiting(format!("{engine} is not ready: {}", why.text));
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
            credential: command.start.credential.clone(),
            engine: self.spec.cluster.engine,
            engine_version,
            dedicated: true,
            host: self.shared.config.host.clone(),
        };
        self.write(|stage| {
            if let Stage::Starting { .. } = stage {
                *stage = Stage::Ready { route };
            }
        });
        self.shared.changes.tell(&self.spec.key, self.spec.generation);
    }

    fn keep_secret(&self, secrets: &[Secret]) {
        self.with_compute(|compute| compute.secrets = secrets.to_vec());
    }

    fn write(&self, edit: impl FnOnce(&mut Stage)) {
        self.with_compute(|compute| edit(&mut compute.stage));
    }

    /// Unless another keeper has taken over.
    fn with_compute(&self, edit: impl FnOnce(&mut Compute)) {
        let mut state = self.shared.state();
        let id = (self.spec.key.clone(), self.spec.generation);
        if let Some(compute) = state
            .computes
            .get_mut(&id)
            .filter(|compute| compute.run == self.run)
        {
            edit(compute);
        }
    }

    fn not_started(&self, e: &io::Error) -> End {
        let helper = self.shared.config.supervise.display();
        match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
                if !self.shared.config.supervise.exists() =>
            {
                let text = "Berth is not installed whole: berth-supervise is missing";
                End::failed(user_message::cause(text, helper), true)
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
            Exit::HelperLost => "was ended because its helper berth-supervise was killed".to_owned(),
        };
        let when = if before_ready { " before it was ready" } else { "" };
        // 126 and 127: what the program's path names cannot be run.
        let permanent = matches!(exit, Exit::Code(126 | 127)) && before_ready;
        let text = format!("{} {how}{when}", self.spec.cluster.engine);
        let cause = user_message::cause(text, user_message::last_words(&tail));
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
