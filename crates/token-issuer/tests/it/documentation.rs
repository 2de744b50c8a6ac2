//! The documents have a row for each key and each metric, and no other rows.

use service_kit::config::{self, Sources};
use service_kit::shutdown::Shutdown;
use std::path::Path;
use test_support::documentation::{Document, exported};
use token_issuer::{Config, Listeners};

fn load(file: &Path, text: &str) -> Result<Config, String> {
    std::fs::write(file, text).unwrap();
    let sources = Sources {
        file: Some(file.to_owned()),
        ..Default::default()
    };
    config::load::<Config>(&sources).map_err(|error| error.to_string())
}

#[test]
fn every_key_is_documented() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token-issuer.toml");
    let document = Document::read("config.md");
    let reference = document.of("token-issuer");
    reference.check_keys(|text| load(&file, text).err().unwrap_or_default());
}

#[tokio::test]
async fn every_metric_is_documented() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("signing.pem");
    std::fs::write(&key, session_token::generate_key_pem().unwrap()).unwrap();
    let text = format!(
        "listen.grpc.address = \"127.0.0.1:0\"\nlisten.jwks.address = \"127.0.0.1:0\"\n\
         admin.address = \"127.0.0.1:0\"\nkeys.signing = \"{}\"\n",
        key.display()
    );
    let config = load(&dir.path().join("token-issuer.toml"), &text).unwrap();
    let listeners = Listeners::bind(&config).await.unwrap();
    let admin = listeners.admin.local_addr().unwrap();
    tokio::spawn(token_issuer::run(config, listeners, Shutdown::new()));
    let text = exported(admin).await.unwrap();
    Document::read("metrics.md")
        .of("token-issuer")
        .check_metrics(&text);
}
