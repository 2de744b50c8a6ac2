//! Supervisor of one engine: ensures that it ends with session-manager.
//!
//! Standard input is a pipe of the manager. When it closes, however the manager died,
//! the whole process group of the engine is killed. The output of the engine goes to a
//! log of limited size. Standard output reports `started <process group>`, then `exited
//! <code>` or `signal <number>`.
//!
//! It is two processes, so that a SIGKILL of either leaves nothing behind: the guard
//! starts the second process and forwards the manager's lines to it. Both are
//! subreapers. If the second process is killed, its children become the guard's, which
//! kills them; if the guard is killed, the input of the second process ends.
//!
//! Usage: `berth-supervise <log file> <log bytes> <program> [argument…]`

#[path = "../process/stat.rs"]
mod stat;

use rustix::process::{
    Pid, Signal, WaitOptions, getpid, getppid, kill_process, kill_process_group, set_child_subreaper,
    set_parent_process_death_signal, wait,
};
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, PipeReader, PipeWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

/// First argument of the stage that becomes the engine.
const EXEC: &str = "--exec";
/// First argument of the process below the guard.
const GUARDED: &str = "--guarded";
/// Time between SIGTERM and SIGKILL at a stop by the manager.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// The same after the end of the manager, when a clean end matters less.
const ORPHAN_GRACE: Duration = Duration::from_secs(2);
/// Time for the last output after the end of the group.
const LOG_GRACE: Duration = Duration::from_secs(1);
/// Rounds of killing the remaining processes, and the pause between them.
const MAX_ORPHAN_ROUNDS: usize = 200;
const ORPHAN_ROUND_INTERVAL: Duration = Duration::from_millis(5);

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let outcome = match args.as_slice() {
        [stage, parent, program, rest @ ..] if stage.to_str() == Some(EXEC) => {
            become_engine(parent, program, rest)
        }
        [stage, log, bytes, program, rest @ ..] if stage.to_str() == Some(GUARDED) => {
            supervise(log, bytes, program, rest)
        }
        [_log, _bytes, _program, ..] => guard(&args),
        _ => Err(io::Error::other(
            "usage: berth-supervise <log file> <log bytes> <program> [argument…]",
        )),
    };
    outcome.unwrap_or_else(|e| {
        eprintln!("berth-supervise: {e}");
        ExitCode::from(127)
    })
}

/// Replaces this process by the engine, which the kernel kills when its parent dies.
fn become_engine(parent: &OsString, program: &OsString, args: &[OsString]) -> io::Result<ExitCode> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let alive = getppid().map(Pid::as_raw_pid).map(|pid| pid.to_string());
    if alive.as_deref() != parent.to_str() {
        return Err(io::Error::other("the supervisor has ended"));
    }
    let failed = Command::new(program).args(args).exec();
    Err(io::Error::new(
        failed.kind(),
        format!("cannot run {}: {failed}", Path::new(program).display()),
    ))
}

/// Runs the process that supervises the engine, and kills what it leaves.
fn guard(args: &[OsString]) -> io::Result<ExitCode> {
    let _ = set_child_subreaper(Some(getpid()));
    let mut guarded = Command::new(std::env::current_exe()?)
        .arg(GUARDED)
        .args(args)
        .process_group(0)
        .stdin(Stdio::piped())
        .spawn()?;
    let to_guarded = guarded.stdin.take();
    thread::spawn(move || {
        let mut lines = io::stdin().lock().lines().map_while(Result::ok);
        to_guarded.map(|mut pipe| lines.try_for_each(|line| writeln!(pipe, "{line}")))
    });
    let status = guarded.wait()?;
    end_orphans();
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

enum Event {
    Exited(io::Result<ExitStatus>),
    Stop,
    ManagerGone,
}

fn supervise(
    log: &OsString,
    bytes: &OsString,
    program: &OsString,
    args: &[OsString],
) -> io::Result<ExitCode> {
    let limit: u64 = bytes
        .to_str()
        .and_then(|bytes| bytes.parse().ok())
        .ok_or_else(|| io::Error::other("log bytes is not a number"))?;
    let mut log = RingLog::create(Path::new(log), limit)?;
    // Orphans of the engine become children of this process, which can kill them.
    let _ = set_child_subreaper(Some(getpid()));
    let (output, to_output) = io::pipe()?;
    let child = start_engine(to_output, program, args)?;
    let group = Pid::from_child(&child);
    report(&format!("started {}", group.as_raw_pid()));

    let (events_tx, events) = mpsc::channel();
    let (logged_tx, logged) = mpsc::channel::<()>();
    thread::spawn(move || {
        log.pump(output);
        drop(logged_tx);
    });
    let from_manager = events_tx.clone();
    thread::spawn(move || read_manager(&from_manager));
    thread::spawn(move || wait_for(child, &events_tx));

    let status = until_exited(&events, group)?;
    // Processes that the engine left, in its group or not.
    let _ = kill_process_group(group, Signal::KILL);
    end_orphans();
    let _ = logged.recv_timeout(LOG_GRACE);
    Ok(report_end(status))
}

/// Starts the stage that becomes the engine, in a process group of its own.
fn start_engine(output: PipeWriter, program: &OsString, args: &[OsString]) -> io::Result<Child> {
    // The engine must be a child of this thread: the death signal follows the
    // thread, and this one lives as long as the process.
    Command::new(std::env::current_exe()?)
        .arg(EXEC)
        .arg(getpid().as_raw_pid().to_string())
        .arg(program)
        .args(args)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()
}

/// Reads the manager's pipe until it closes.
fn read_manager(events: &mpsc::Sender<Event>) {
    let stop_requested = io::stdin()
        .lock()
        .lines()
        .map_while(Result::ok)
        .any(|line| line == "stop");
    if stop_requested {
        let _ = events.send(Event::Stop);
        io::copy(&mut io::stdin().lock(), &mut io::sink()).ok();
    }
    let _ = events.send(Event::ManagerGone);
}

/// Reports the end of the engine; returns the exit code of this process.
fn report_end(status: ExitStatus) -> ExitCode {
    match (status.code(), status.signal()) {
        (Some(code), _) => {
            report(&format!("exited {code}"));
            ExitCode::from(u8::try_from(code).unwrap_or(1))
        }
        (None, signal) => {
            let signal = signal.unwrap_or(0);
            report(&format!("signal {signal}"));
            ExitCode::from(u8::try_from(128 + signal).unwrap_or(1))
        }
    }
}

/// Kills processes that the engine started and left: PySpark's worker daemon, for
/// example, has its own process group. Orphans of orphans follow in the next round.
fn end_orphans() {
    for _ in 0..MAX_ORPHAN_ROUNDS {
        while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
        let remaining = own_children();
        if remaining.is_empty() {
            return;
        }
        for pid in remaining {
            let _ = kill_process(pid, Signal::KILL);
        }
        thread::park_timeout(ORPHAN_ROUND_INTERVAL);
    }
}

/// Child processes. Some kernels lack `/proc/<pid>/task/*/children`, so all parents are
/// read.
fn own_children() -> Vec<Pid> {
    let own = getpid().as_raw_pid();
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .flatten()
        .filter_map(|process| {
            let pid = process.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(process.path().join("stat")).ok()?;
            let (_, parent, _) = stat::parse(&stat)?;
            (parent == own).then(|| Pid::from_raw(pid)).flatten()
        })
        .collect()
}

fn wait_for(mut child: Child, events: &mpsc::Sender<Event>) {
    let _ = events.send(Event::Exited(child.wait()));
}

fn until_exited(events: &Receiver<Event>, group: Pid) -> io::Result<ExitStatus> {
    let ended = || io::Error::other("a thread of the supervisor ended");
    let mut grace = match events.recv().map_err(|_| ended())? {
        Event::Exited(status) => return status,
        Event::Stop => STOP_GRACE,
        Event::ManagerGone => ORPHAN_GRACE,
    };
    let _ = kill_process_group(group, Signal::TERM);
    loop {
        match events.recv_timeout(grace) {
            Ok(Event::Exited(status)) => return status,
            // The manager died while it waited for a clean end.
            Ok(Event::Stop | Event::ManagerGone) => grace = grace.min(ORPHAN_GRACE),
            Err(RecvTimeoutError::Timeout) => {
                let _ = kill_process_group(group, Signal::KILL);
                grace = Duration::from_secs(60);
            }
            Err(RecvTimeoutError::Disconnected) => return Err(ended()),
        }
    }
}

/// Errors are ignored, because the manager can be gone.
fn report(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

/// A log of two files, each at most half of the limit: the current and the previous
/// one.
struct RingLog {
    path: PathBuf,
    file: File,
    written: u64,
    half: u64,
}

impl RingLog {
    fn create(path: &Path, limit: u64) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            file: new_log(path)?,
            written: 0,
            half: (limit / 2).max(4096),
        })
    }

    /// Copies until the engine closes its output. On a full disk log lines are lost,
    /// but the engine continues.
    fn pump(&mut self, mut from: PipeReader) {
        let mut chunk = [0_u8; 8192];
        loop {
            match io::Read::read(&mut from, &mut chunk) {
                Ok(0) => return,
                Ok(n) => {
                    if self.written + n as u64 > self.half {
                        self.rotate();
                    }
                    self.written += n as u64;
                    let _ = self.file.write_all(&chunk[..n]);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    fn rotate(&mut self) {
        let _ = std::fs::rename(&self.path, self.path.with_extension("log.1"));
        if let Ok(file) = new_log(&self.path) {
            self.file = file;
        }
        self.written = 0;
    }
}

fn new_log(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}
