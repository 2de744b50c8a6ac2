//! Results as tables for people or JSON for programs.
//!
//! Every output of the command goes through here. Texts that somebody else
//! chose are escaped, so that they stay in their cell. A reader that closes the
//! pipe (`berth list | head`) ends the output and nothing else: what the
//! command does for the other sessions that it was given is still done.

use crate::Output;
use serde::Serialize;
use session_core::Timestamp;
use session_proto::{convert, json, v1};
use std::io::{self, Write as _};
use std::sync::OnceLock;

/// Why the output could not be written, once it could not.
static FAILURE: OnceLock<io::Error> = OnceLock::new();
/// Where the second and later lines of a value begin.
const VALUE_COLUMN: usize = 18;

/// Why the output could not be written: nothing more is printed then.
pub(crate) fn failure() -> Option<&'static io::Error> {
    FAILURE.get()
}

/// Prints a line, or several, as they are. Whoever reads a pipe sees them at once.
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

/// Prints a line of text, escaped.
pub(crate) fn line(text: &str) {
    print(&printable::escape(text));
}

/// Prints JSON, with what a terminal must not get as JSON's own escapes.
pub(crate) fn json_text(json: &str) {
    print(&printable::escape_json(json));
}

/// Tells people something on stderr, escaped. It is lost if nobody reads.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{}", printable::escape_lines(text));
}

/// Prints rows under their headings, or what they are about as a JSON array.
pub(crate) fn rows<T: Serialize>(output: Output, headings: &[&str], rows: Vec<Vec<String>>, all: &[T]) {
    match output {
        Output::Json => object(&all),
        Output::Table => print(&table(headings, &rows)),
    }
}

/// Prints something as indented JSON.
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

/// Prints one thing as `name  value` lines, or the thing as a JSON object. Further lines
/// of a value are indented, so that none can pass for another field.
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

/// How long ago, or in how long, in the largest unit that fits.
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

/// What was used so far, in one line; nothing before the first call.
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

/// In the largest unit that leaves at least one, with one decimal.
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

    /// An operation id is whatever its client chose, a status message whatever its engine said.
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
