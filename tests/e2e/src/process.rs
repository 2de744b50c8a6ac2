//! One service as a process that can be killed and started again.

use crate::http;
use crate::wait::until;
use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{File, OpenOptions};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

const READY: Duration = Duration::from_secs(30);
const END: Duration = Duration::from_secs(90);

/// A service, its configuration file and its log.
#[derive(Debug)]
pub struct Service {
    name: &'static str,
    program: PathBuf,
    config: PathBuf,
    log: PathBuf,
    admin: SocketAddr,
    env: Vec<(String, String)>,
    child: Option<Child>,
}

impl Service {
    pub(crate) fn new(name: &'static str, dir: &Path, config: &str, admin: SocketAddr) -> Result<Self> {
        let file = dir.join(format!("{name}.toml"));
        std::fs::write(&file, config)?;
        Ok(Self {
            name,
            program: crate::binary(name)?,
            config: file,
            log: dir.join(format!("{name}.log")),
            admin,
            env: Vec::new(),
            child: None,
        })
    }

    /// Starts the process; does not wait.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&mut self) -> Result<()> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let child = Command::new(&self.program)
            .arg("--config")
            .arg(&self.config)
            .envs(self.env.iter().map(|(key, value)| (key.as_str(), value.as_str())))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", self.program.display()))?;
        self.child = Some(child);
        Ok(())
    }

    /// Starts the process and waits until `/readyz` says so.
    ///
    /// # Errors
    /// When it ends or does not become ready; with the end of its log.
    pub async fn start_ready(&mut self) -> Result<()> {
        self.start()?;
        self.ready().await
    }

    /// Waits until `/readyz` says so.
    ///
    /// # Errors
    /// When it ends or does not become ready; with the end of its log.
    pub async fn ready(&mut self) -> Result<()> {
        let admin = self.admin;
        let child = &mut self.child;
        let outcome = until(self.name, READY, async || {
            // Somebody else might answer in its place.
            if let Some(Ok(Some(status))) = child.as_mut().map(Child::try_wait) {
                return Err(format!("it ended: {status}"));
            }
            match http::get(admin, "/readyz", "").await {
                Ok(answer) if answer.starts_with("HTTP/1.1 200") => Ok(()),
                Ok(answer) => Err(answer.lines().last().unwrap_or_default().to_owned()),
                Err(error) => Err(error.to_string()),
            }
        })
        .await;
        outcome.with_context(|| format!("{} is not ready; its log ends:\n{}", self.name, self.log_tail()))
    }

    /// A variable of its environment, from the next start on.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.env.push((name.to_owned(), value.to_owned()));
    }

    /// What the program prints with its configuration and one more argument.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn print(&self, argument: &str) -> Result<String> {
        let output = Command::new(&self.program)
            .arg("--config")
            .arg(&self.config)
            .arg(argument)
            .envs(self.env.iter().map(|(key, value)| (key.as_str(), value.as_str())))
            .output()?;
        let text = [output.stdout, output.stderr].concat();
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Its process id.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Ends it as a crash would.
    ///
    /// # Errors
    /// When it cannot be signalled.
    pub async fn kill9(&mut self) -> Result<()> {
        self.end(Signal::KILL).await.map(|_| ())
    }

    /// Asks it to stop and waits for it.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn terminate(&mut self) -> Result<Option<ExitStatus>> {
        self.end(Signal::TERM).await
    }

    async fn end(&mut self, signal: Signal) -> Result<Option<ExitStatus>> {
        let Some(mut child) = self.child.take() else {
            return Ok(None);
        };
        let pid = i32::try_from(child.id())
            .ok()
            .and_then(Pid::from_raw)
            .context("a process id")?;
        kill_process(pid, signal).with_context(|| format!("signalling {}", self.name))?;
        let status = until("the end of a service", END, async || match child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err("still running".to_owned()),
            Err(error) => Err(error.to_string()),
        })
        .await;
        if status.is_err() {
            let _ = child.kill();
        }
        status.map(Some)
    }

    /// What its admin port says at `path`, headers included.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn admin(&self, path: &str) -> Result<String> {
        http::get(self.admin, path, "").await
    }

    /// The whole of its log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A file to collect a client's output in.
pub(crate) fn output_file(path: &Path) -> Result<File> {
    File::create(path).with_context(|| format!("creating {}", path.display()))
}
