//! docs/errors.md names every error of every port, with its code, and none that
//! is never sent: it is compared with the declaration in `ports.rs`, and that
//! with where the sources make errors.

use session_core::Reason;
use session_proto::error::{Refused, code_of, reason_of};
use session_proto::ports::{Port, is_sent_at, ports};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use tonic::Code;
use tonic_types::StatusExt as _;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn document() -> String {
    std::fs::read_to_string(root().join("docs/errors.md")).unwrap()
}

/// The cells of the rows of a section's table that begin with a name in backticks.
fn rows(document: &str, section: &str) -> Vec<Vec<String>> {
    let heading = format!("\n## {section}\n");
    let (_, rest) = document.split_once(&heading).unwrap();
    let body = rest.split("\n## ").next().unwrap();
    body.lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            let cells = line.trim_matches('|').split(" | ");
            cells
                .map(|cell| cell.trim().trim_matches('`').to_owned())
                .collect()
        })
        .collect()
}

fn reason(name: &str) -> Reason {
    let known = Reason::ALL.iter().copied().find(|reason| reason.as_str() == name);
    known.unwrap_or_else(|| panic!("{name} in docs/errors.md is no reason"))
}

/// As the document spells it.
fn spelled(code: Code) -> &'static str {
    match code {
        Code::Unauthenticated => "UNAUTHENTICATED",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Unavailable => "UNAVAILABLE",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Aborted => "ABORTED",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::Internal => "INTERNAL",
        other => panic!("no error of Berth's has the code {other:?}"),
    }
}

#[test]
fn the_document_lists_what_each_port_sends() {
    let document = document();
    let mut documented: BTreeMap<u16, BTreeSet<&str>> = BTreeMap::new();
    let proxy = rows(&document, "On the Spark Connect port");
    let apis = rows(&document, "On the APIs");
    for cells in proxy.iter().chain(&apis) {
        let reason = reason(&cells[0]);
        assert_eq!(cells[1], spelled(code_of(reason)), "the code of {reason}");
    }
    for cells in &proxy {
        assert_eq!(cells.len(), 5, "{cells:?}");
        let new = documented.entry(8085).or_default().insert(cells[0].as_str());
        assert!(new, "{} is there twice", cells[0]);
        let code = code_of(reason(&cells[0]));
        let answer = match code {
            Code::Unavailable => "retries",
            Code::Aborted => "not retried",
            Code::ResourceExhausted => "4.1 and later retry",
            _ => "final",
        };
        assert!(cells[4].starts_with(answer), "{}: {}", cells[0], cells[4]);
    }
    for cells in &apis {
        assert_eq!(cells.len(), 5, "{cells:?}");
        for port in cells[2].split(' ') {
            let new = documented
                .entry(port.parse().unwrap())
                .or_default()
                .insert(&cells[0]);
            assert!(new, "{} is there twice for {port}", cells[0]);
        }
    }
    for port in Port::ALL {
        let sent: BTreeSet<&str> = Reason::ALL
            .iter()
            .filter(|reason| is_sent_at(**reason, *port))
            .map(|reason| reason.as_str())
            .collect();
        assert_eq!(
            documented.remove(&port.number()).unwrap_or_default(),
            sent,
            "docs/errors.md, and what {port:?} sends"
        );
    }
    assert!(documented.is_empty(), "ports that do not exist: {documented:?}");
}

#[test]
fn the_document_says_which_errors_carry_no_error_info() {
    let document = document();
    let (_, table) = document.split_once("\n## Where the reason is\n").unwrap();
    let row = table.lines().find(|line| line.starts_with("| which |")).unwrap();
    let column = row.split(" | ").last().unwrap();
    let documented: BTreeSet<&str> = column.split('`').skip(1).step_by(2).collect();
    let bare: BTreeSet<&str> = Reason::ALL
        .iter()
        .filter(|reason| {
            let status = Refused::new(**reason, "text").into_status();
            assert_eq!(reason_of(&status), Some(**reason));
            status.get_details_error_info().is_none()
        })
        .map(|reason| reason.as_str())
        .collect();
    assert_eq!(documented, bare);
}

/// Where the errors of each port are made, besides those that it passes on.
const SOURCES: &[(&[Port], &[&str])] = &[
    (
        &[Port::SparkConnect],
        &["crates/spark-proxy/src", "crates/session-token/src"],
    ),
    (
        &[Port::Public, Port::Internal],
        &[
            "crates/session-manager/src",
            "crates/session-proto/src",
            "crates/session-token/src",
        ],
    ),
    (&[Port::Issuer], &["crates/token-issuer/src"]),
];
/// Who passes on what session-manager's internal port said.
const RELAYS: [Port; 2] = [Port::SparkConnect, Port::Issuer];
/// Files that name reasons and make no errors.
const NAMES_ONLY: [&str; 2] = ["spark-proxy/src/metrics.rs", "session-proto/src/ports.rs"];

fn sources(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|extension| extension == "rs")
            && !NAMES_ONLY.iter().any(|file| path.ends_with(file))
        {
            out.push(path);
        }
    }
}

/// Helpers of `Refused` that give the reason themselves.
const HELPERS: [(&str, Reason); 4] = [
    ("Refused::field(", Reason::InvalidArgument),
    ("Refused::no_key", Reason::CallerUnknown),
    ("Refused::not_authorized", Reason::NotAuthorized),
    ("misdirected(", Reason::UnknownMethod),
];

/// The reasons of errors that the code below these folders makes: named where
/// a value is given, not where one is compared or matched.
fn made(folders: &[&str]) -> BTreeSet<Reason> {
    let mut files = Vec::new();
    for folder in folders {
        sources(&root().join(folder), &mut files);
    }
    let mut made = BTreeSet::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]\nmod ").next().unwrap();
        for (at, path) in code.match_indices("Reason::") {
            let before = code[..at].trim_end();
            let after = &code[at + path.len()..];
            let name: String = after.chars().take_while(char::is_ascii_alphanumeric).collect();
            let after = after[name.len()..].trim_start();
            let is_value = ["(", "=>", "{"].iter().any(|end| before.ends_with(end));
            let is_compared = before.ends_with("Some(");
            let is_pattern = after.starts_with("=>") || after.starts_with('|');
            if is_value && !is_compared && !is_pattern {
                made.extend(Reason::ALL.iter().filter(|reason| format!("{reason:?}") == name));
            }
        }
        let helpers = HELPERS.iter().filter(|(call, _)| code.contains(call));
        made.extend(helpers.map(|(_, reason)| *reason));
    }
    made
}

#[test]
fn what_is_declared_is_what_the_sources_make() {
    let relayed = |reason: Reason, port: Port| RELAYS.contains(&port) && is_sent_at(reason, Port::Internal);
    for (at, folders) in SOURCES {
        let made = made(folders);
        assert!(made.len() >= 3, "the sources were not read: {made:?}");
        for reason in &made {
            assert!(
                at.iter().any(|port| is_sent_at(*reason, *port)),
                "{folders:?} makes {reason}, which is not declared for {at:?}"
            );
        }
        for reason in Reason::ALL {
            for port in at.iter().filter(|port| is_sent_at(*reason, **port)) {
                assert!(
                    made.contains(reason) || relayed(*reason, *port),
                    "{reason} is declared for {port:?}, and nothing in {folders:?} makes it"
                );
            }
        }
    }
    for reason in Reason::ALL {
        assert!(!ports(*reason).is_empty(), "{reason} is sent nowhere");
    }
}
