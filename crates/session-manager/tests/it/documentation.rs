//! The documents have a row for each key and each metric, and no other rows.

use crate::support::Manager;
use service_kit::config::{Sources, load};
use session_manager::Config;
use test_support::documentation::{Document, exported};

#[test]
fn every_key_is_documented() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("session-manager.toml");
    Document::read("config.md")
        .of("session-manager")
        .check_keys(|text| {
            std::fs::write(&file, text).unwrap();
            let sources = Sources {
                file: Some(file.clone()),
                ..Default::default()
            };
            let loaded = load::<Config>(&sources);
            loaded.err().map(|error| error.to_string()).unwrap_or_default()
        });
}

#[tokio::test]
async fn every_metric_is_documented() {
    let manager = Manager::start().await;
    let text = exported(manager.admin).await.unwrap();
    Document::read("metrics.md")
        .of("session-manager")
        .check_metrics(&text);
}
