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
