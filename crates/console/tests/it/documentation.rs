//! The documents have a row for each key and each metric, and no other rows.

use crate::support::Stack;
use console::Config;
use service_kit::config::{Sources, load};
use test_support::documentation::{Document, exported};

#[test]
fn every_key_is_documented() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("console.toml");
    Document::read("config.md").of("console").check_keys(|text| {
        std::fs::write(&file, text).unwrap();
        let sources = Sources {
            file: Some(file.clone()),
            ..Sources::default()
        };
        let loaded = load::<Config>(&sources);
        loaded.err().map(|error| error.to_string()).unwrap_or_default()
    });
}

#[tokio::test]
async fn every_metric_is_documented() {
    let stack = Stack::start().await;
    let text = exported(stack.admin).await.unwrap();
    Document::read("metrics.md").of("console").check_metrics(&text);
}
