//! What operators can set and see is what the documentation says.

use crate::common::Rig;
use spark_proxy::Config;
use std::collections::BTreeSet;
use std::path::Path;

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

fn keys(prefix: &str, table: &toml::Table, out: &mut Vec<String>) {
    for (name, value) in table {
        let key = format!("{prefix}{name}");
        match value {
            toml::Value::Table(table) => keys(&format!("{key}."), table, out),
            _ => out.push(key),
        }
    }
}

#[test]
fn every_limit_is_documented() {
    let config = toml::Table::try_from(Config::default()).unwrap();
    let documented = document("config.md");
    let documented = rows(&documented);
    let mut all = Vec::new();
    for section in ["limits", "routes", "drain"] {
        keys(
            &format!("{section}."),
            config[section].as_table().unwrap(),
            &mut all,
        );
    }
    keys("backend.", config["backend"].as_table().unwrap(), &mut all);
    assert!(all.len() > 15, "{all:?}");
    let missing: Vec<_> = all
        .iter()
        .filter(|key| !documented.contains(key.as_str()) && !key.starts_with("backend.tls."))
        .collect();
    assert!(missing.is_empty(), "not in docs/config.md: {missing:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_is_documented() {
    let rig = Rig::start().await;
    let (_, text) = rig.get("/metrics").await;
    let documented = document("metrics.md");
    let documented = rows(&documented);
    let all: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .filter(|name| name.starts_with("spark_proxy_"))
        .collect();
    assert!(all.len() > 10, "{text}");
    let missing: Vec<_> = all.difference(&documented).collect();
    assert!(missing.is_empty(), "not in docs/metrics.md: {missing:?}");
}

/// Sections whose keys are named in texts and mean nothing else.
const SECTIONS: [&str; 4] = ["limits", "backend", "routes", "listen"];

/// What an error or a log tells an operator to set must be there to be set.
#[test]
fn keys_that_texts_name_exist() {
    let documented = document("config.md");
    let documented = rows(&documented);
    let mut sources = Vec::new();
    files(&Path::new(env!("CARGO_MANIFEST_DIR")).join(".."), &mut sources);
    let mut found = 0;
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

/// By its own row, or by that of a table it belongs to.
fn is_documented(rows: &BTreeSet<&str>, key: &str) -> bool {
    rows.contains(key)
        || key
            .rsplit_once('.')
            .is_some_and(|(table, _)| table.contains('.') && is_documented(rows, table))
}

/// The sources of programs, not of their tests.
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
