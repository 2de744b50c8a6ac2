//! One service as a process that can be killed and started again.

use crate::http;
use crate::paths::{binary, write_private};
use crate::process::{Process, Signal, until_ready};
use anyhow::{Context, Result};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

const READY_TIMEOUT: Duration = Duration::from_secs(30);
const END_TIMEOUT: Duration = Duration::from_secs(90);

/// A service, its configuration file and its log.
#[derive(Debug)]
pub struct Service {
    name: &'static str,
    program: PathBuf,
    config: PathBuf,
    log: PathBuf,
    admin: SocketAddr,
    env: Vec<(String, String)>,
    process: Option<Process>,
}

impl Service {
    /// The service `name` with its configuration file and its log in `dir`;
    /// not started. Its admin port is at `admin`.
    ///
    /// # Errors
    /// When its program is not built or the file cannot be written.
    pub fn new(name: &'static str, dir: &Path, config: &str, admin: SocketAddr) -> Result<Self> {
        let file = dir.join(format!("{name}.toml"));
        write_private(&file, config)?;
        Ok(Self {
            name,
            program: binary(name)?,
            config: file,
            log: dir.join(format!("{name}.log")),
            admin,
            env: Vec::new(),
            process: None,
        })
    }

    /// Starts the process; does not wait.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&mut self) -> Result<()> {
        let process = Process::start(&self.command(), &self.log, None);
        self.process = Some(process.with_context(|| format!("starting {}", self.program.display()))?);
        Ok(())
    }

    /// Starts the process and waits until `/readyz` reports that it is ready.
    ///
    /// # Errors
    /// When it ends or does not become ready; with the end of its log.
    pub async fn start_ready(&mut self) -> Result<()> {
        self.start()?;
        self.ready().await
    }

    /// Waits until `/readyz` reports that it is ready.
    ///
    /// # Errors
    /// When it ends or does not become ready; with the end of its log.
    pub async fn ready(&self) -> Result<()> {
        let process = self.process.as_ref().context("the service is not started")?;
        until_ready(self.name, process, READY_TIMEOUT, async || {
            match self.admin("/readyz").await {
                Ok(answer) if answer.starts_with("HTTP/1.1 200") => Ok(()),
                Ok(answer) => Err(answer.lines().last().unwrap_or_default().to_owned()),
                Err(error) => Err(error.to_string()),
            }
        })
        .await
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
        let output = self.command().arg(argument).output()?;
        let text = [output.stdout, output.stderr].concat();
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// The name of its program.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Its process id.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// True if it was started and ended by itself.
    pub fn has_ended(&self) -> bool {
        self.process.as_ref().is_some_and(Process::has_ended)
    }

    /// Ends it as a crash would.
    ///
    /// # Errors
    /// When it cannot be signalled.
    pub async fn kill9(&mut self) -> Result<()> {
        self.end(Signal::Kill).await.map(|_| ())
    }

    /// Asks it to stop and waits for it; none if it does not run.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn terminate(&mut self) -> Result<Option<ExitStatus>> {
        self.end(Signal::Term).await
    }

    /// What its admin port answers at `path`, headers included.
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

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--config")
            .arg(&self.config)
            .envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    async fn end(&mut self, signal: Signal) -> Result<Option<ExitStatus>> {
        let Some(process) = self.process.take() else {
            return Ok(None);
        };
        let status = process.stop(signal, END_TIMEOUT).await;
        status.map(Some).with_context(|| format!("ending {}", self.name))
    }
}
