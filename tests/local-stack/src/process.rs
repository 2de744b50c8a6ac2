//! A process that never outlives its owner. A small shell holds a pipe to the
//! owner and kills the process when the pipe closes, also when the owner was
//! killed.

use crate::wait::until;
use anyhow::{Context, Result, anyhow};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// Time until a killed process is gone: longer than any disk is slow.
const KILL_TIMEOUT: Duration = Duration::from_secs(60);

/// Starts the process with its output in `$1` and prints its id. Then each line
/// of the pipe is a signal; `end` waits for the process and exits as it did. When
/// the pipe closes before, the process is killed, and the folder `$2` is removed.
const HELPER: &str = r#"_log=$1; _folder=$2; shift 2
"$@" >>"$_log" 2>&1 </dev/null & _pid=$!; echo "$_pid"
while read -r _signal; do
if [ "$_signal" = end ]; then wait "$_pid"; exit; fi
kill -s "$_signal" "$_pid"
done
kill -s KILL "$_pid"; wait "$_pid"
[ -z "$_folder" ] || rm -rf -- "$_folder""#;

/// What a process can be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// End in order.
    Term,
    /// End at once.
    Kill,
    /// Stand still, as a process that hangs.
    Stop,
    /// Continue after [`Signal::Stop`].
    Cont,
}

impl Signal {
    fn name(self) -> &'static str {
        match self {
            Self::Term => "TERM",
            Self::Kill => "KILL",
            Self::Stop => "STOP",
            Self::Cont => "CONT",
        }
    }
}

/// A running process; killed when dropped and when its owner dies.
///
/// It is in a process group of its own, so that the terminal's Ctrl-C does not
/// reach it.
#[derive(Debug)]
pub struct Process {
    helper: Child,
    pid: u32,
    log: PathBuf,
}

impl Process {
    /// Starts `command` (its program, arguments, environment and folder) with
    /// its output appended to `log`, an absolute path. The folder `temporary` is removed if the
    /// owner dies without ending the process.
    ///
    /// # Errors
    /// When no shell can be started. A program that cannot be started ends at
    /// once, with the cause in `log`.
    pub fn start(command: &Command, log: &Path, temporary: Option<&Path>) -> Result<Self> {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", HELPER, "sh"])
            .args([log, temporary.unwrap_or(Path::new(""))])
            .arg(command.get_program())
            .args(command.get_args());
        if let Some(folder) = command.get_current_dir() {
            shell.current_dir(folder);
        }
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        let mut helper = shell
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("starting a shell")?;
        let mut line = String::new();
        let stdout = helper.stdout.take().context("the shell has no output")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let pid = line
            .trim()
            .parse()
            .with_context(|| format!("the shell printed {line:?} in place of a process id"))?;
        Ok(Self {
            helper,
            pid,
            log: log.to_owned(),
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The last 20 lines of its log.
    pub fn log_tail(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Sends a signal; does not wait for its effect. A process that has ended
    /// gets none: its id may be another's by then.
    ///
    /// # Errors
    /// When the shell has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.has_ended() {
            return Ok(());
        }
        self.order(signal.name())
    }

    /// True if the process stands still after [`Signal::Stop`].
    pub fn is_stopped(&self) -> bool {
        self.state() == Some('T')
    }

    /// True if the process ended by itself or by a signal.
    pub fn has_ended(&self) -> bool {
        self.state().is_none_or(|state| state == 'Z')
    }

    /// Sends `signal` and waits until the process has ended, at most `limit`;
    /// then it is killed.
    ///
    /// A process that a signal ended has the exit code 128 + signal.
    ///
    /// # Errors
    /// When the process did not end within the limit.
    pub async fn stop(mut self, signal: Signal, limit: Duration) -> Result<ExitStatus> {
        self.signal(signal)?;
        let ended = until("the end of a process", limit, async || self.ended()).await;
        if ended.is_err() {
            self.signal(Signal::Kill)?;
            until("the end of a killed process", KILL_TIMEOUT, async || self.ended()).await?;
        }
        let status = self.reap()?;
        ended.map(|()| status)
    }

    /// As [`Process::stop`], blocking and without a limit: for processes that
    /// end soon.
    ///
    /// # Errors
    /// When the shell has ended.
    pub fn stop_blocking(mut self, signal: Signal) -> Result<ExitStatus> {
        self.signal(signal)?;
        self.reap()
    }

    fn ended(&self) -> Result<(), String> {
        if self.has_ended() {
            Ok(())
        } else {
            Err("still running".to_owned())
        }
    }

    /// Waits for the process and the shell.
    fn reap(&mut self) -> Result<ExitStatus> {
        self.order("end")?;
        Ok(self.helper.wait()?)
    }

    fn order(&mut self, word: &str) -> Result<()> {
        let pipe = self.helper.stdin.as_mut().context("the shell has no input")?;
        Ok(pipe.write_all(format!("{word}\n").as_bytes())?)
    }

    /// The kernel's letter for the state of the process; none if it is gone.
    fn state(&self) -> Option<char> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok()?;
        stat.rsplit(") ").next()?.chars().next()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.helper.stdin.take());
        // Nothing useful can be done about a failure while dropping.
        drop(self.helper.wait());
    }
}

/// Waits until a process is ready.
///
/// # Errors
/// When it ends or is not ready within `limit`; with the end of its log.
pub async fn until_ready<T>(
    name: &str,
    process: &Process,
    limit: Duration,
    mut ask: impl AsyncFnMut() -> Result<T, String>,
) -> Result<T> {
    let ready = until(name, limit, async || {
        // Another process might answer in its place.
        if process.has_ended() {
            return Ok(None);
        }
        ask().await.map(Some)
    });
    let ready = match ready.await {
        Ok(None) => Err(anyhow!("{name} ended at its start")),
        Ok(Some(answer)) => Ok(answer),
        Err(error) => Err(error),
    };
    ready.with_context(|| {
        format!(
            "{name} is not ready; its log, {}, ends:\n{}",
            process.log.display(),
            process.log_tail()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    fn start(dir: &Path, script: &str) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", script]).env("WORD", "hello").current_dir(dir);
        Process::start(&command, &dir.join("log"), None).unwrap()
    }

    async fn until_logged(process: &Process, text: &str) {
        until_ready("the script", process, LIMIT, async || {
            let log = process.log_tail();
            log.contains(text).then_some(()).ok_or(log)
        })
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn the_exit_code_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let process = start(dir.path(), "exit 7");
        until("the end", LIMIT, async || process.ended()).await.unwrap();
        let status = process.stop(Signal::Term, LIMIT).await.unwrap();
        assert_eq!(status.code(), Some(7));
    }

    #[tokio::test]
    async fn it_has_the_environment_and_the_folder_and_ends_when_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let process = start(dir.path(), "pwd; echo $WORD; exec sleep 1000");
        until_logged(&process, &format!("{}\nhello", dir.path().display())).await;
        let proc = format!("/proc/{}", process.pid());
        assert!(Path::new(&proc).exists());
        drop(process);
        assert!(!Path::new(&proc).exists());
    }

    #[tokio::test]
    async fn it_is_killed_when_it_does_not_end_in_time() {
        let dir = tempfile::tempdir().unwrap();
        let script = "trap '' TERM; echo ready; while :; do sleep 0.1; done";
        let process = start(dir.path(), script);
        until_logged(&process, "ready").await;
        let proc = format!("/proc/{}", process.pid());
        let stopped = process.stop(Signal::Term, Duration::from_millis(300)).await;
        assert!(stopped.is_err());
        assert!(!Path::new(&proc).exists());
    }

    /// Much sooner than the limit, with the cause.
    #[tokio::test]
    async fn a_program_that_is_missing_is_reported_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let command = Command::new("/no/such/program");
        let process = Process::start(&command, &dir.path().join("log"), None).unwrap();
        let hour = Duration::from_secs(3600);
        let ready = until_ready("it", &process, hour, async || Err::<(), _>("no".to_owned()));
        let ready = tokio::time::timeout(LIMIT, ready).await.unwrap();
        let error = format!("{:#}", ready.unwrap_err());
        assert!(
            error.contains("/no/such/program") && error.contains("ended at its start"),
            "{error}"
        );
    }
}
