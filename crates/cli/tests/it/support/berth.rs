//! Runs the command in an environment of its own.

use super::within;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};

/// A user with a folder of settings and nothing else in the environment.
pub(crate) struct Berth {
    pub(crate) dir: TempDir,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// The output as JSON; panics with all output if it is not.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    /// Itself, if the command succeeded.
    pub(crate) fn good(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }
}

impl Berth {
    pub(crate) fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    /// A file in the folder of settings.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file in the folder of settings and returns its path.
    pub(crate) fn write(&self, name: &str, text: &str) -> String {
        let path = self.file(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// The command with these arguments and variables.
    pub(crate) fn command(&self, args: &[&str], env: &[(&str, &str)]) -> Command {
        self.program(env!("CARGO_BIN_EXE_berth"), args, env)
    }

    /// A shell script in the same environment; `$BERTH` is the command.
    pub(crate) fn script(&self, text: &str, args: &[&str], env: &[(&str, &str)]) -> Command {
        let args = [&["-c", text, "sh"], args].concat();
        let mut command = self.program("sh", &args, env);
        command.env("BERTH", env!("CARGO_BIN_EXE_berth"));
        command
    }

    fn program(&self, program: &str, args: &[&str], env: &[(&str, &str)]) -> Command {
        let mut command = Command::new(program);
        command
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.dir.path())
            .env("BERTH_CONFIG_DIR", self.dir.path())
            .env("BROWSER", "")
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Starts the command.
    pub(crate) fn start(&self, args: &[&str], env: &[(&str, &str)]) -> Child {
        self.command(args, env).spawn().unwrap()
    }

    /// Runs the command to its end.
    pub(crate) async fn run(&self, args: &[&str], env: &[(&str, &str)]) -> Ended {
        ended(self.start(args, env)).await
    }

    /// Runs the command with a text as standard input.
    pub(crate) async fn run_with_input(&self, args: &[&str], env: &[(&str, &str)], input: &str) -> Ended {
        let mut child = self.command(args, env).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).await.unwrap();
        drop(stdin);
        ended(child).await
    }
}

/// Waits for the end of a command.
pub(crate) async fn ended(child: Child) -> Ended {
    let output = within("the command ends", child.wait_with_output())
        .await
        .unwrap();
    Ended {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Makes a script that prints `text`, in place of a program.
pub(crate) fn script(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, format!("#!/bin/sh\ncat <<'END'\n{text}\nEND\n")).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}
