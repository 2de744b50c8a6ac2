//! Imports run one way: the pure core below, then what builds on it, then the
//! programs. Plumbing knows none of ours. Checked on what cargo itself says.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// What each crate may use of ours when it ships. Tests may use more.
const MAY_USE: &[(&str, &[&str])] = &[
    ("field-types", &[]),
    ("printable", &[]),
    ("session-core", &["field-types", "printable"]),
    ("service-kit", &["field-types", "printable"]),
    ("session-proto", &["field-types", "session-core"]),
    ("session-token", &["printable", "session-core"]),
    ("session-store", &["session-core"]),
    ("compute", &["printable", "session-core", "session-proto"]),
    (
        "session-manager",
        &[
            "printable",
            "session-core",
            "session-proto",
            "session-token",
            "session-store",
            "compute",
            "service-kit",
        ],
    ),
    (
        "token-issuer",
        &["session-core", "session-proto", "session-token", "service-kit"],
    ),
    (
        "spark-proxy",
        &["session-core", "session-proto", "session-token", "service-kit"],
    ),
    (
        "console",
        &[
            "session-core",
            "session-proto",
            "session-token",
            "service-kit",
            "printable",
        ],
    ),
    (
        "cli",
        &[
            "printable",
            "session-core",
            "session-proto",
            "session-token",
            "service-kit",
        ],
    ),
];

/// Crates that only some of ours may use.
const FENCED: &[(&str, &[&str])] = &[
    ("redis", &["session-store"]),
    ("jsonwebtoken", &["session-token"]),
    // `berth keys secret` stores signing keys.
    ("kube", &["compute", "cli"]),
];

/// Programs for tests only: they may use anything, and nothing that ships uses them.
const TESTS_ONLY: &[&str] = &["local-stack", "test-support", "e2e", "lifecycle", "load"];

fn shipped_dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--offline",
            "--locked",
        ])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| {
            let uses = package["dependencies"].as_array().unwrap().iter();
            let shipped = uses
                .filter(|dependency| dependency["kind"] != "dev")
                .map(|d| text(&d["name"]));
            (text(&package["name"]), shipped.collect())
        })
        .collect()
}

#[test]
fn crates_use_only_what_is_below_them() {
    let all = shipped_dependencies();
    let ours: BTreeSet<&str> = all.keys().map(String::as_str).collect();
    for (name, uses) in &all {
        if TESTS_ONLY.contains(&name.as_str()) {
            continue;
        }
        let allowed = MAY_USE
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, allowed)| *allowed);
        let allowed = allowed.unwrap_or_else(|| panic!("{name} has no place in the order of crates yet"));
        for used in uses.iter().filter(|used| ours.contains(used.as_str())) {
            assert!(allowed.contains(&used.as_str()), "{name} must not use {used}");
        }
    }
}

#[test]
fn fenced_crates_are_used_where_they_belong() {
    for (name, uses) in shipped_dependencies() {
        for (fenced, users) in FENCED {
            assert!(
                !uses.contains(*fenced) || users.contains(&name.as_str()),
                "{name} must not use {fenced}: {users:?} do"
            );
        }
    }
}
