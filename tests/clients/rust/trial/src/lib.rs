//! Tries promises of ../promises.toml one after the other and prints a JSON line for each, as `promises.py` does.

use serde_json::json;
use std::error::Error;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// A query of half a minute: if an interrupt does not reach it, it ends by itself.
pub const LONG: &str = "SELECT sum(id % 7) FROM range(30000000000)";
/// The rows of the large result, and its query.
pub const LARGE_ROWS: usize = 1_000_000;
/// See [`LARGE_ROWS`].
pub const LARGE: &str =
    "SELECT id, concat('a-value-of-some-length-', id) AS text FROM range(0, 1000000, 1, 8)";
/// A table that is not there.
pub const MISSING: &str = "SELECT * FROM no_such_table_here";

/// For each promise.
const LIMIT: Duration = Duration::from_secs(150);

/// How a promise went.
pub type Kept = Result<(), Box<dyn Error + Send + Sync>>;

/// `--url URL`, and whether the program is to leave without stopping (`--leave`).
pub struct Args {
    /// The connection string.
    pub url: String,
    /// Query once and end.
    pub leave: bool,
}

/// The arguments of the program.
pub fn args() -> Args {
    let args: Vec<String> = std::env::args().collect();
    assert!(
        args.len() >= 3 && args[1] == "--url",
        "usage: {} --url URL",
        args[0]
    );
    Args {
        url: args[2].clone(),
        leave: args.get(3).is_some_and(|arg| arg == "--leave"),
    }
}

/// The first line.
pub fn begin(client: &str, release: &str) {
    println!("{}", json!({"client": client, "release": release}));
}

/// Tries one promise.
pub fn promise(name: &str, keep: impl FnOnce() -> Kept + Send + 'static) {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || send.send(keep()));
    let (outcome, detail) = match receive.recv_timeout(LIMIT) {
        Ok(Ok(())) => ("passed", String::new()),
        Ok(Err(error)) => ("failed", error.to_string()),
        Err(error) => ("failed", format!("no end within {LIMIT:?}, or a panic: {error}")),
    };
    let detail: String = detail.chars().take(600).collect();
    println!(
        "{}",
        json!({"promise": name, "outcome": outcome, "detail": detail})
    );
}

/// Promises that the client cannot be asked for.
pub fn not_offered(names: &[&str]) {
    for name in names {
        let line =
            json!({"promise": name, "outcome": "not offered", "detail": "the client has no such call"});
        println!("{line}");
    }
}

/// An error, unless `fine`.
pub fn check(fine: bool, seen: impl Into<String>) -> Kept {
    if fine {
        Ok(())
    } else {
        Err(format!("wrong result: {}", seen.into()).into())
    }
}

/// The class of an error; a client without classes has it in the text.
pub fn has_class(class: Option<&str>, text: &str) -> Kept {
    const CLASS: &str = "TABLE_OR_VIEW_NOT_FOUND";
    if class.map_or_else(
        || text.contains(&format!("[{CLASS}] The table")),
        |class| class == CLASS,
    ) {
        return Ok(());
    }
    Err(format!("an error without class: {text}").into())
}

/// A query in a thread of its own, that `interrupt` ends.
pub fn ended_by(query: impl FnOnce() -> Kept + Send + 'static, interrupt: impl FnOnce() -> Kept) -> Kept {
    let running = thread::spawn(query);
    // Until its first tasks run: an interrupt before them would end the query, but not the tasks.
    thread::sleep(Duration::from_secs(5));
    check(!running.is_finished(), "the query ended before")?;
    interrupt()?;
    let begun = Instant::now();
    while !running.is_finished() {
        check(
            begun.elapsed() < Duration::from_secs(10),
            "the query continues 10 s after its interrupt",
        )?;
        thread::sleep(Duration::from_millis(50));
    }
    let ended = running.join().map_err(|_| "the query panicked")?;
    check(ended.is_err(), "the interrupted query has a result")
}

/// Starts this program again, which ends as a program does that forgot to stop its session.
pub fn leaves(url: &str) -> Kept {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--url", url, "--leave"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return check(status.success(), status.to_string());
        }
        if begun.elapsed() > Duration::from_secs(120) {
            child.kill()?;
            return check(false, "the program without stop does not end");
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// A file of 300 kB, for an upload.
pub fn upload() -> Result<String, Box<dyn Error + Send + Sync>> {
    let path = std::env::temp_dir().join(format!("upload-{}.txt", std::process::id()));
    std::fs::write(&path, "berth".repeat(60_000))?;
    Ok(path.display().to_string())
}

/// Asks every half second until `ask` says yes.
pub fn until(what: &str, mut ask: impl FnMut() -> Result<bool, Box<dyn Error + Send + Sync>>) -> Kept {
    let begun = Instant::now();
    while !ask()? {
        check(
            begun.elapsed() < Duration::from_secs(100),
            format!("not {what} after 100 s"),
        )?;
        thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}
