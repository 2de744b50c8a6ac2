//! An engine with its supervisor `berth-supervise`, as a child of the manager.

use super::command::{EngineCommand, Folders};
use super::port::pids_of_group;
use rustix::process::{Pid, Signal, kill_process_group};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::{sleep, timeout};

/// Size limit of the log files of an engine.
const LOG_BYTES: u64 = 2 << 20;
/// Time limit for the first report of the supervisor, which it sends at once.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// The supervisor's 5 s between SIGTERM and SIGKILL, plus a reserve.
const STOP_TIMEOUT: Duration = Duration::from_secs(7);
const KILL_POLL_INTERVAL: Duration = Duration::from_millis(10);

/// End of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Code(i32),
    Signal(i32),
    /// Its supervisor was killed, so the manager killed the engine.
    SupervisorLost,
}

/// A running engine. Dropping it closes the supervisor's pipe, which ends both.
#[derive(Debug)]
pub(crate) struct Supervised {
    supervisor: Child,
    pipe: Option<ChildStdin>,
    reports: Lines<BufReader<ChildStdout>>,
    group: Pid,
}

impl Supervised {
    /// Starts the engine in new folders.
    pub(crate) async fn start(
        supervise: &Path,
        command: &EngineCommand,
        folders: &Folders,
    ) -> io::Result<Self> {
        make_folders(folders, command)?;
        let mut supervisor = Command::new(supervise)
            .arg(folders.log())
            .arg(LOG_BYTES.to_string())
            .arg(&command.program)
            .args(&command.start.args)
            .env_clear()
            .envs(&command.start.env)
            .current_dir(folders.work())
            // Ctrl-C in the manager's terminal must not reach the engine.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let pipe = supervisor.stdin.take();
        let stdout = supervisor
            .stdout
            .take()
            .ok_or_else(|| io::Error::other("the supervisor has no output"))?;
        let mut reports = BufReader::new(stdout).lines();
        let first = timeout(START_TIMEOUT, reports.next_line()).await;
        let group = match &first {
            Ok(Ok(Some(line))) => line
                .strip_prefix("started ")
                .and_then(|pid| Pid::from_raw(pid.parse().ok()?)),
            Ok(Ok(None) | Err(_)) | Err(_) => None,
        };
        match group {
            Some(group) => Ok(Self {
                supervisor,
                pipe,
                reports,
                group,
            }),
            None => {
                supervisor.kill().await.ok();
                Err(io::Error::other(
                    "the supervisor berth-supervise did not start the engine",
                ))
            }
        }
    }

    /// Process group of the engine.
    pub(crate) fn group(&self) -> i32 {
        self.group.as_raw_pid()
    }

    /// Waits for the end of the engine and its process group. Cancel-safe.
    pub(crate) async fn ended(&mut self) -> Exit {
        let mut exit = loop {
            match self.reports.next_line().await {
                Ok(Some(line)) => {
                    if let Some(exit) = parse_exit(&line) {
                        break exit;
                    }
                }
                Ok(None) | Err(_) => break Exit::SupervisorLost,
            }
        };
        if exit == Exit::SupervisorLost {
            self.kill_group().await;
        }
        // If the guard was killed, the process below it has stopped the engine.
        if self
            .supervisor
            .wait()
            .await
            .is_ok_and(|status| status.signal().is_some())
        {
            exit = Exit::SupervisorLost;
        }
        exit
    }

    /// Sends SIGTERM, after 5 s SIGKILL, and returns when the group is empty.
    pub(crate) async fn stop(mut self) {
        if let Some(pipe) = &mut self.pipe {
            pipe.write_all(b"stop\n").await.ok();
            pipe.flush().await.ok();
        }
        if timeout(STOP_TIMEOUT, self.ended()).await.is_err() {
            self.kill_group().await;
            self.supervisor.kill().await.ok();
        }
    }

    async fn kill_group(&self) {
        while pids_of_group(self.group()).is_ok_and(|pids| !pids.is_empty()) {
            if kill_process_group(self.group, Signal::KILL).is_err() {
                return;
            }
            sleep(KILL_POLL_INTERVAL).await;
        }
    }
}

fn parse_exit(line: &str) -> Option<Exit> {
    let (what, number) = line.split_once(' ')?;
    let number = number.parse().ok()?;
    match what {
        "exited" => Some(Exit::Code(number)),
        "signal" => Some(Exit::Signal(number)),
        _ => None,
    }
}

fn make_folders(folders: &Folders, command: &EngineCommand) -> io::Result<()> {
    match std::fs::remove_dir_all(&folders.root) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        Ok(()) | Err(_) => {}
    }
    let mut private = std::fs::DirBuilder::new();
    private.mode(0o700);
    for folder in [folders.root.clone(), folders.work(), folders.tmp()] {
        private.create(folder)?;
    }
    for (path, text) in &command.start.files {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        io::Write::write_all(&mut file, text.as_bytes())?;
    }
    Ok(())
}
