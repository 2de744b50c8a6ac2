//! `berth exec`: runs a command beside a forwarder that it finds by its environment.

use super::access_of;
use super::listener::{Listener, Place};
use super::server::Server;
use super::session::Session;
use super::signals::Signals;
use crate::args::{Exec, SPARK_CONNECT_PORT};
use crate::settings::Target;
use crate::{Exit, output};
use anyhow::Result;
use rustix::process::{Pid, Signal};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use tokio::process::{Child, Command};

/// Exit codes of commands that run others, as `env` has them.
const FAILED: u8 = 125;
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Variables by which HTTP proxies are configured; gRPC uses them for 127.0.0.1 too.
const PROXY_VARIABLES: [&str; 6] = [
    "grpc_proxy",
    "https_proxy",
    "http_proxy",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "all_proxy",
];
const NO_PROXY_VARIABLES: [&str; 3] = ["no_grpc_proxy", "no_proxy", "NO_PROXY"];

/// Runs the command to its end, and ends with its exit code.
pub(crate) async fn exec(target: &Target, args: Exec) -> Result<()> {
    let code = match Box::pin(run(target, args)).await {
        Ok(code) => code,
        Err(error) if error.is::<Exit>() => return Err(error),
        Err(error) => {
            let text = format!("{error:#}");
            return Err(Exit { code: FAILED, text }.into());
        }
    };
    match code {
        0 => Ok(()),
        code => Err(Exit {
            code,
            text: String::new(),
        }
        .into()),
    }
}

async fn run(target: &Target, mut args: Exec) -> Result<u8> {
    let mut signals = Signals::install()?;
    let port = if args.default_port {
        SPARK_CONNECT_PORT
    } else {
        args.port
    };
    // A program with the address in its code has no secret.
    args.access.trust_own_processes |= args.default_port && cfg!(target_os = "linux");
    let access = access_of(&args.access, false)?;
    let listener = Listener::bind(Place::Port(port)).await?;
    let session = Session::open(target, args.session, args.new, &mut signals).await?;
    let starting = Server::start(target, session.id(), listener, access, &args.access);
    let ran = match signals.unless_stopped(starting).await {
        Ok(server) => {
            server.print_access_warning();
            let ran = command(&server, session.id(), &args.command, &mut signals).await;
            server.stop().await;
            ran
        }
        Err(error) => Err(error),
    };
    session.close(target).await;
    ran
}

/// Runs the command; returns its exit code.
async fn command(server: &Server, session: &str, command: &[OsString], signals: &mut Signals) -> Result<u8> {
    let (program, args) = match command {
        [program, args @ ..] => (program, args),
        // clap requires one.
        [] => return Ok(NOT_FOUND),
    };
    let mut child = Command::new(program);
    child
        .args(args)
        .env("SPARK_REMOTE", server.connection_url())
        // PySpark's functions otherwise look for a JVM until there is a session.
        .env("SPARK_CONNECT_MODE_ENABLED", "1")
        .env("BERTH_SESSION", session)
        // With a token PySpark uses TLS.
        .env_remove("SPARK_CONNECT_AUTHENTICATE_TOKEN");
    if PROXY_VARIABLES
        .iter()
        .any(|name| std::env::var_os(name).is_some())
    {
        for name in NO_PROXY_VARIABLES {
            child.env(name, without_proxy(std::env::var_os(name).as_deref()));
        }
    }
    match child.spawn() {
        Ok(child) => wait(child, server, signals).await,
        Err(error) => {
            let code = if error.kind() == ErrorKind::NotFound {
                NOT_FOUND
            } else {
                NOT_EXECUTABLE
            };
            output::error(&format!("berth: starting {} failed: {error}", program.display()));
            Ok(code)
        }
    }
}

/// The hosts without a proxy, and this machine.
fn without_proxy(hosts: Option<&OsStr>) -> OsString {
    let mut all = hosts.unwrap_or_default().to_owned();
    if !all.is_empty() {
        all.push(",");
    }
    all.push("127.0.0.1,localhost");
    all
}

/// Waits for the end of the command and passes signals on.
async fn wait(mut child: Child, server: &Server, signals: &mut Signals) -> Result<u8> {
    let pid = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(Pid::from_raw);
    let mut is_over = false;
    loop {
        tokio::select! {
            status = child.wait() => return Ok(exit_code(status?)),
            signal = signals.any() => {
                if let Some(pid) = pid.filter(|_| !comes_from_terminal(signal)) {
                    // Fails only if the command has just ended.
                    let _ = rustix::process::kill_process(pid, signal);
                }
            }
            // The command's calls get the same error.
            why = server.session_over(), if !is_over => {
                is_over = true;
                output::note(&format!("The session is over: {why}"));
            }
        }
    }
}

/// Whether the terminal sends this signal to the command as well, because the command is in the
/// terminal's foreground group.
fn comes_from_terminal(signal: Signal) -> bool {
    if signal != Signal::INT && signal != Signal::QUIT {
        return false;
    }
    let foreground = File::open("/dev/tty")
        .ok()
        .and_then(|terminal| rustix::termios::tcgetpgrp(terminal).ok());
    foreground == Some(rustix::process::getpgrp())
}

fn exit_code(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(FAILED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_shells() {
        assert_eq!(exit_code(ExitStatus::from_raw(0)), 0);
        assert_eq!(exit_code(ExitStatus::from_raw(7 << 8)), 7);
        assert_eq!(exit_code(ExitStatus::from_raw(255 << 8)), 255);
        assert_eq!(exit_code(ExitStatus::from_raw(15)), 143);
    }

    #[test]
    fn this_machine_needs_no_proxy() {
        assert_eq!(without_proxy(None), "127.0.0.1,localhost");
        assert_eq!(
            without_proxy(Some(OsStr::new("example.org"))),
            "example.org,127.0.0.1,localhost"
        );
    }
}
