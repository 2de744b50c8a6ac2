//! A process of the rig's own that is asked by lines.

use super::peer::Process;
use anyhow::{Context as _, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{ChildStdin, ChildStdout};

/// No job takes longer.
const PATIENCE: Duration = Duration::from_secs(240);

/// The process.
pub(super) struct Worker {
    process: Process,
    questions: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    log: PathBuf,
}

impl Worker {
    pub(super) fn start(words: &[String], log: &Path) -> Result<Self> {
        let mut process = Process::start_with(words, Stdio::piped(), Stdio::piped(), File::create(log)?)?;
        let stdin = process.child.stdin.take().context("its input")?;
        let stdout = process.child.stdout.take().context("its output")?;
        Ok(Self {
            process,
            questions: ChildStdin::from_std(stdin)?,
            answers: BufReader::new(ChildStdout::from_std(stdout)?).lines(),
            log: log.to_owned(),
        })
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.child.id()
    }

    pub(super) async fn ask<T: DeserializeOwned>(&mut self, question: &impl Serialize) -> Result<T> {
        let mut line = serde_json::to_vec(question)?;
        line.push(b'\n');
        self.questions
            .write_all(&line)
            .await
            .with_context(|| self.log())?;
        self.read().await
    }

    pub(super) async fn read<T: DeserializeOwned>(&mut self) -> Result<T> {
        let line = tokio::time::timeout(PATIENCE, self.answers.next_line())
            .await
            .with_context(|| format!("no answer; {}", self.log()))??;
        let line = line.with_context(|| format!("a process of the rig ended; {}", self.log()))?;
        Ok(serde_json::from_str(&line)?)
    }

    fn log(&self) -> String {
        format!(
            "it said: {}",
            std::fs::read_to_string(&self.log).unwrap_or_default()
        )
    }
}
