//! `berth-dev mutants --apply`.

use std::path::Path;
use std::process::{Command, Output};

const PATCH: &str = "What: Two is one.\nExpect: caught\n\n--- a/src/x.rs\n+++ b/src/x.rs\n\
                     @@ -1,3 +1,3 @@\n one\n-two\n+one\n three\n";

fn apply(root: &Path, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_berth-dev"))
        .args(["mutants", "--apply", "--root"])
        .arg(root)
        .args(more)
        .output()
        .unwrap()
}

/// Succeeds, or fails with a text on standard error, and changes nothing.
fn assert_applies(root: &Path, more: &[&str], complaint: Option<&str>) {
    let source = root.join("src/x.rs");
    let before = std::fs::read_to_string(&source).unwrap();
    let output = apply(root, more);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.success(), complaint.is_none(), "{error}");
    assert!(error.contains(complaint.unwrap_or_default()), "{error}");
    assert_eq!(std::fs::read_to_string(&source).unwrap(), before);
}

#[test]
fn a_mutation_that_no_longer_applies_is_named() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let folder = root.join("crates/session-manager/mutations");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::create_dir(root.join("src")).unwrap();
    let source = |text: &str| std::fs::write(root.join("src/x.rs"), text).unwrap();
    let mutation = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();

    source("one\ntwo\nthree\n");
    assert_applies(root, &[], Some("no mutations"));
    mutation("good.patch", PATCH);
    assert_applies(root, &[], None);
    assert_applies(root, &["good"], None);
    assert_applies(root, &["unknown"], Some("unknown.patch"));
    mutation("stale.patch", &PATCH.replace("three", "four"));
    assert_applies(root, &[], Some("present code: stale"));
    assert_applies(root, &["good"], None);
    mutation("stale.patch", &PATCH.replace("Expect: caught\n", ""));
    assert_applies(root, &[], Some("Expect"));
    std::fs::remove_file(folder.join("stale.patch")).unwrap();
    // Not with other lines around it.
    source("zero\none\ntwo\nthird\n");
    assert_applies(root, &[], Some("good"));
}
