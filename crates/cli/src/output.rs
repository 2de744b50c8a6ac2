//! Results as tables for people or JSON for programs.
//!
//! All output of the command passes through this module. Texts from others are
//! escaped, so that they stay in their cell. If the reader closes the pipe
//! (`berth list | head`), only the output ends: the command still processes the
//! remaining sessions of its arguments.

use crate::Output;
use serde::Serialize;
use session_core::Timestamp;
use session_proto::{convert, json, v1};
use std::io::{self, Write as _};
use std::sync::OnceLock;

/// Whether hints and progress are omitted.
static QUIET: OnceLock<bool> = OnceLock::new();
/// The first write error of the output.
static FAILURE: OnceLock<io::Error> = OnceLock::new();
/// Column of the second and later lines of a value.
const VALUE_COLUMN: usize = 18;

/// The first write error; nothing more is printed after it.
pub(crate) fn failure() -> Option<&'static io::Error> {
    FAILURE.get()
}

/// Prints lines without escaping, and flushes them.
fn print(text: &str) {
    if failure().is_some() {
        return;
    }
    let mut out = io::stdout().lock();
    let written = writeln!(out, "{text}").and_then(|()| out.flush());
    if let Err(error) = written {
        // Set at most once: nothing is printed after it.
        let _ = FAILURE.set(error);
    }
}

/// Prints a script of this command's own making, which shells read: without
/// escaping.
pub(crate) fn script(text: &str) {
    print(text.trim_end_matches('\n'));
}

/// Prints a line of text, escaped.
pub(crate) fn line(text: &str) {
    print(&printable::escape(text));
}

/// Prints a line of text, escaped, in a colour of the terminal.
pub(crate) fn colored_line(text: &str, color: Option<&str>) {
    let text = printable::escape(text);
    match color {
        Some(color) => print(&format!("\x1b[{color}m{text}\x1b[0m")),
        None => print(&text),
    }
}

/// Prints JSON; unsafe characters for a terminal become JSON escapes.
pub(crate) fn json_text(json: &str) {
    print(&printable::escape_json(json));
}

/// Omits hints and progress from now on.
pub(crate) fn be_quiet() {
    // Called once, at the start.
    let _ = QUIET.set(true);
}

/// Whether hints and progress are omitted.
pub(crate) fn is_quiet() -> bool {
    QUIET.get().copied().unwrap_or_default()
}

/// Prints an escaped hint to stderr, unless `--quiet`; write errors are
/// ignored.
pub(crate) fn note(text: &str) {
    if !is_quiet() {
        error(text);
    }
}

/// Prints an escaped text to stderr; write errors are ignored.
pub(crate) fn error(text: &str) {
    let _ = writeln!(io::stderr(), "{}", printable::escape_lines(text));
}

/// Prints rows under their headings, or the objects as a JSON array.
pub(crate) fn rows<T: Serialize>(output: Output, headings: &[&str], rows: Vec<Vec<String>>, all: &[T]) {
    match output {
        Output::Json => object(&all),
        Output::Table => print(&table(headings, &rows)),
    }
}

/// Prints an object as indented JSON.
pub(crate) fn object(what: &impl Serialize) {
    json_text(&format!("{:#}", json::value(what)));
}

fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            row.iter()
                .map(|cell| printable::escape(cell).into_owned())
                .collect()
        })
        .collect();
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .chain([headings[column].len()])
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let padded_line = |cells: Vec<&str>| {
        let padded: Vec<String> = cells
            .iter()
            .zip(&widths)
            .map(|(cell, &width)| format!("{cell:width$}"))
            .collect();
        padded.join("  ").trim_end().to_owned()
    };
    let mut lines = vec![padded_line(headings.to_vec())];
    lines.extend(
        rows.iter()
            .map(|row| padded_line(row.iter().map(String::as_str).collect())),
    );
    lines.join("\n")
}

/// Prints an object as `name  value` lines or as JSON. Continuation lines of a
/// value are indented, so that none can look like another field.
pub(crate) fn fields(output: Output, fields: &[(&str, String)], what: &impl Serialize) {
    match output {
        Output::Json => object(what),
        Output::Table => print(&field_lines(fields)),
    }
}

fn field_lines(fields: &[(&str, String)]) -> String {
    let indent = format!("\n{:VALUE_COLUMN$}", "");
    let lines: Vec<String> = fields
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| {
            let value = printable::escape_lines(value).replace('\n', &indent);
            format!("{name:<16}  {value}")
        })
        .collect();
    lines.join("\n")
}

pub(crate) fn moment(at: Option<&prost_types::Timestamp>) -> String {
    at.map(|at| convert::from_timestamp(at).to_string())
        .unwrap_or_default()
}

/// Time since or until `at`, in the largest unit that fits.
pub(crate) fn distance(at: Option<&prost_types::Timestamp>, now: Timestamp) -> String {
    let Some(at) = at.map(convert::from_timestamp) else {
        return String::new();
    };
    let secs = at.since(now).as_secs().max(now.since(at).as_secs());
    match secs {
        0..=119 => format!("{secs}s"),
        120..=7199 => format!("{}m", secs / 60),
        7200..=172_799 => format!("{}h", secs / 3600),
        _ => format!("{}d", secs / 86_400),
    }
}

pub(crate) fn status(session: &v1::Session) -> &'static str {
    match session.status() {
        v1::SessionStatus::Pending => "pending",
        v1::SessionStatus::Active => "active",
        v1::SessionStatus::Idle => "idle",
        v1::SessionStatus::Closed => "closed",
        v1::SessionStatus::Failed => "failed",
        v1::SessionStatus::Unspecified => "unknown",
    }
}

/// Usage in one line; empty before the first call.
fn usage_line(usage: Option<&v1::SessionUsage>) -> String {
    let Some(usage) = usage.filter(|usage| usage.rpcs > 0) else {
        return String::new();
    };
    format!(
        "{} calls, {} in, {} out, {} s of open streams",
        usage.rpcs,
        bytes(usage.bytes_in),
        bytes(usage.bytes_out),
        usage.open_stream_seconds
    )
}

/// Bytes in the largest unit with a value of at least one, with one decimal.
fn bytes(count: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match UNITS.into_iter().find(|(_, size)| count >= *size) {
        None => format!("{count} B"),
        Some((unit, size)) => format!("{}.{} {unit}", count / size, count % size * 10 / size),
    }
}

fn open_calls(session: &v1::Session) -> String {
    match session.active_operations {
        0 => String::new(),
        calls => calls.to_string(),
    }
}

pub(crate) fn session_fields(session: &v1::Session) -> Vec<(&'static str, String)> {
    let labels: Vec<String> = session
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    vec![
        ("session", session.id.clone()),
        ("name", session.name.clone()),
        ("status", format!("{} ({})", status(session), session.phase)),
        ("reason", session.reason.clone()),
        ("message", session.status_message.clone()),
        ("detail", session.status_detail.clone()),
        ("cluster", session.cluster.clone()),
        ("profile", session.profile.clone()),
        ("catalog", session.catalog.clone()),
        (
            "engine",
            format!("{} {}", session.engine, session.engine_version)
                .trim()
                .to_owned(),
        ),
        ("owner", session.owner.clone()),
        ("organization", session.org.clone()),
        ("team", session.team.clone()),
        ("labels", labels.join(" ")),
        ("created", moment(session.created_at.as_ref())),
        ("last activity", moment(session.last_activity_at.as_ref())),
        ("open calls", open_calls(session)),
        ("usage", usage_line(session.usage.as_ref())),
        ("kept alive until", moment(session.keep_alive_until.as_ref())),
        ("idle at", moment(session.idle_at.as_ref())),
        ("idle since", moment(session.idle_since.as_ref())),
        ("closes", moment(session.closes_at.as_ref())),
        ("closed", moment(session.closed_at.as_ref())),
    ]
}

/// Whether a definition is read-only here.
pub(crate) fn declared(managed_by_config: bool) -> String {
    let text = if managed_by_config {
        "in the configuration"
    } else {
        ""
    };
    text.to_owned()
}

/// "sail" or "spark".
pub(crate) fn engine(engine: v1::Engine) -> String {
    engine.as_str_name().trim_start_matches("ENGINE_").to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_reads_in_one_line() {
        assert_eq!(usage_line(None), "");
        assert_eq!(usage_line(Some(&v1::SessionUsage::default())), "");
        let usage = v1::SessionUsage {
            rpcs: 12,
            bytes_in: 1023,
            bytes_out: 3 * (1 << 29),
            open_stream_seconds: 7,
            warm_seconds: 0,
        };
        assert_eq!(
            usage_line(Some(&usage)),
            "12 calls, 1023 B in, 1.5 GiB out, 7 s of open streams"
        );
    }

    /// The client chooses the operation id, the engine the status message.
    #[test]
    fn nothing_that_others_chose_reaches_the_terminal_as_a_command() {
        let bad = "op\u{1b}]0;owned\u{7}\u{1b}[2J\r\u{9b}31m\u{202e}x";
        let table = table(
            &["OPERATION", "METHOD"],
            &[vec![bad.to_owned(), "Execute\nPlan".to_owned()]],
        );
        let fields = field_lines(&[("status message", bad.to_owned())]);
        let json = serde_json::json!([bad]).to_string();
        let json = printable::escape_json(&json).into_owned();
        for text in [table.as_str(), fields.as_str(), json.as_str()] {
            let lines = text.lines().all(printable::all_printable);
            assert!(lines, "{text:?}");
            assert!(text.contains("owned"), "{text:?} has lost what was said");
        }
        assert_eq!(table.lines().count(), 2, "a cell is no line");
    }
}
