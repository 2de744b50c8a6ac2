//! The documentation lists what operators can set and see.

use crate::common::Rig;
use service_kit::config::{Sources, load};
use spark_proxy::Config;
use std::collections::BTreeSet;
use std::path::Path;
use test_support::documentation::Document;

fn document(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../docs")
        .join(name);
    std::fs::read_to_string(path).expect("the document")
}

/// The names in backticks at the beginning of a table's rows.
fn rows(document: &str) -> BTreeSet<&str> {
    document
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`').map(|(name, _)| name))
        .collect()
}

#[test]
fn every_key_is_documented() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("spark-proxy.toml");
    Document::read("config.md").of("spark-proxy").check_keys(|text| {
        std::fs::write(&file, text).unwrap();
        let sources = Sources {
            file: Some(file.clone()),
            ..Default::default()
        };
        let loaded = load::<Config>(&sources);
        loaded.err().map(|error| error.to_string()).unwrap_or_default()
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_is_documented() {
    let rig = Rig::start().await;
    let (_, text) = rig.get("/metrics").await;
    Document::read("metrics.md")
        .of("spark-proxy")
        .check_metrics(&text);
}

/// Sections whose names have no other meaning in messages.
const SECTIONS: [&str; 4] = ["limits", "backend", "routes", "listen"];

/// Keys that errors and logs name must exist.
#[test]
fn keys_named_in_messages_exist() {
    let documented = document("config.md");
    let documented = rows(&documented);
    let mut sources = Vec::new();
    files(&Path::new(env!("CARGO_MANIFEST_DIR")).join(".."), &mut sources);
    let mut found = 0;
    // Unit tests in files of their own quote messages of others.
    sources.retain(|path| !path.ends_with("tests.rs"));
    for path in sources {
        let source = std::fs::read_to_string(&path).expect("a source");
        let code = source.split("#[cfg(test)]").next().unwrap_or_default();
        let literals = code
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .flat_map(|line| line.split('"').skip(1).step_by(2));
        let words = literals.flat_map(|text| {
            text.split(|letter: char| !(letter.is_ascii_lowercase() || letter == '.' || letter == '_'))
        });
        for word in words.map(|word| word.trim_end_matches('.')) {
            let Some((section, _)) = word.split_once('.') else {
                continue;
            };
            if SECTIONS.contains(&section) {
                assert!(
                    is_documented(&documented, word),
                    "{}: {word} is no configuration key",
                    path.display()
                );
                found += 1;
            }
        }
    }
    assert!(found > 15, "{found}");
}

/// Documented by its own row, or by the row of its table.
fn is_documented(rows: &BTreeSet<&str>, key: &str) -> bool {
    rows.contains(key)
        || key
            .rsplit_once('.')
            .is_some_and(|(table, _)| table.contains('.') && is_documented(rows, table))
}

/// Sources of the programs, without tests.
fn files(folder: &Path, out: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        if path.is_dir() && !["tests", "target", "fuzz", "benches"].contains(&name) {
            files(&path, out);
        } else if name.ends_with(".rs") && path.components().any(|part| part.as_os_str() == "src") {
            out.push(path);
        }
    }
}
