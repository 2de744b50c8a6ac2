//! `berth-supervise` with shells as engines.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

fn supervise(log: &Path, bytes: u64, program: &str, script: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_berth-supervise"))
        .arg(log)
        .arg(bytes.to_string())
        .args([program, "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the helper starts")
}

/// Its reports and exit code, after it has ended by itself.
fn outcome(mut helper: Child) -> (String, Option<i32>) {
    let mut said = String::new();
    helper
        .stdout
        .take()
        .expect("piped")
        .read_to_string(&mut said)
        .expect("text");
    (said, helper.wait().expect("ended").code())
}

/// Processes whose command line contains `mark`.
fn running(mark: &str) -> usize {
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
    processes
        .filter(|process| {
            std::fs::read(process.path().join("cmdline"))
                .is_ok_and(|line| !line.is_empty() && holds(&line, mark))
        })
        .count()
}

fn holds(line: &[u8], mark: &str) -> bool {
    line.windows(mark.len()).any(|window| window == mark.as_bytes())
}

/// The parent of a process.
fn parent_of(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

fn children_of(parent: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
    let pids = processes.filter_map(|process| process.file_name().to_str()?.parse().ok());
    pids.filter(|pid| parent_of(*pid) == Some(parent)).collect()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// Like PySpark's workers: in their own process sessions, with dead parents.
#[test]
fn a_helper_that_is_killed_leaves_nothing_behind() {
    for (killed, mark) in [("guard", "98763"), ("guarded", "98764")] {
        let dir = tempfile::tempdir().expect("a folder");
        let script = format!(
            "setsid sh -c 'setsid sleep {mark} & sleep {mark}; :' & setsid setsid sleep {mark} & sleep {mark}; :"
        );
        let mut helper = supervise(&dir.path().join("engine.log"), 65536, "/bin/sh", &script);
        until("the engine's processes are there", || {
            running(&format!("sleep\0{mark}")) == 4
        });
        let guarded = children_of(helper.id())[0];
        let pid = match killed {
            "guard" => helper.id(),
            _ => guarded,
        };
        let kill = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
        assert!(kill.expect("kill runs").success());
        until(&format!("{killed} was killed, and something is left"), || {
            running(mark) == 0
        });
        helper.wait().expect("ended");
    }
}

#[test]
fn exit_codes_are_passed_on_and_nothing_is_left_behind() {
    let dir = tempfile::tempdir().expect("a folder");
    let script =
        "setsid sleep 98761 & setsid sh -c 'setsid sleep 98761 & sleep 98761' & sleep 0.2; echo bye; exit 3";
    let helper = supervise(&dir.path().join("engine.log"), 65536, "/bin/sh", script);
    let (said, code) = outcome(helper);
    assert!(
        said.starts_with("started ") && said.ends_with("\nexited 3\n"),
        "{said}"
    );
    assert_eq!(code, Some(3));
    assert_eq!(running("98761"), 0);
    assert_eq!(
        std::fs::read_to_string(dir.path().join("engine.log")).expect("a log"),
        "bye\n"
    );
}

#[test]
fn an_engine_that_will_not_go_is_killed_when_the_manager_is_gone() {
    let dir = tempfile::tempdir().expect("a folder");
    let script = "trap '' TERM; echo deaf; while :; do sleep 98762; done";
    let log = dir.path().join("engine.log");
    let mut helper = supervise(&log, 65536, "/bin/sh", script);
    let begun = Instant::now();
    while std::fs::read(&log).map_or(0, |text| text.len()) == 0 {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "the engine said nothing"
        );
        std::thread::yield_now();
    }
    let begun = Instant::now();
    drop(helper.stdin.take());
    let (said, code) = outcome(helper);
    assert!(said.ends_with("\nsignal 9\n"), "{said}");
    assert_eq!(code, Some(128 + 9));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(running("98762"), 0);
}

#[test]
fn stop_is_a_sigterm_first() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = dir.path().join("engine.log");
    let script = "trap 'echo clean; exit 0' TERM; echo up; while :; do sleep 0.05; done";
    let mut helper = supervise(&log, 65536, "/bin/sh", script);
    let begun = Instant::now();
    while std::fs::read(&log).map_or(0, |text| text.len()) == 0 {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "the engine said nothing"
        );
        std::thread::yield_now();
    }
    // Kept open until the end: a closed pipe means that the manager died.
    let mut pipe = helper.stdin.take().expect("piped");
    pipe.write_all(b"stop\n").expect("written");
    let (said, code) = outcome(helper);
    drop(pipe);
    assert!(said.ends_with("\nexited 0\n"), "{said}");
    assert_eq!(code, Some(0));
    assert!(std::fs::read_to_string(log).expect("a log").ends_with("clean\n"));
}

#[test]
fn logs_keep_their_end_and_their_bound() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = dir.path().join("engine.log");
    let script = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done";
    let (_, code) = outcome(supervise(&log, 65536, "/bin/sh", script));
    assert_eq!(code, Some(0));
    let newer = std::fs::read_to_string(&log).expect("a log");
    let older = std::fs::read_to_string(dir.path().join("engine.log.1")).expect("the log before");
    assert!(
        newer.len() + older.len() <= 65536,
        "{} and {}",
        newer.len(),
        older.len()
    );
    assert!(newer.ends_with("line 19999\n"));
}

#[test]
fn a_program_that_cannot_run_is_reported_in_the_log() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = dir.path().join("engine.log");
    let (said, code) = outcome(supervise(&log, 65536, "/nowhere/engine", ""));
    assert!(said.ends_with("\nexited 127\n"), "{said}");
    assert_eq!(code, Some(127));
    let text = std::fs::read_to_string(log).expect("a log");
    assert!(text.contains("cannot run /nowhere/engine"), "{text}");
}
