//! Tokens: how long they live, how large they are, and the keys that check them.

use anyhow::{Context, Result};
use e2e::{Engine, Stack, http};
use serde_json::Value;

#[tokio::test]
async fn they_live_as_long_as_asked_within_bounds_and_never_past_their_session() -> Result<()> {
    let mut stack = Stack::start().await?;
    let session = stack.session("ada", Engine::Sail, &["--max-lifetime", "10m"])?;
    for ttl in ["59s", "12h 1s"] {
        let refused = stack
            .berth("ada", &["token", &session, "--ttl", ttl])
            .unwrap_err()
            .to_string();
        assert!(
            refused.contains("ttl") && refused.contains("60 s and 12 h"),
            "{ttl}: {refused}"
        );
    }
    let expires_at = stack.show("ada", &session)?["expires_at"].clone();
    let long = stack.berth("ada", &["token", &session, "--ttl", "12h"])?;
    assert_eq!(
        long["expires_at"], expires_at,
        "cut at the end of the session: {long}"
    );
    let short = stack.berth("ada", &["token", &session, "--ttl", "1m"])?;
    assert_ne!(short["expires_at"], expires_at, "{short}");
    let token = short["token"].as_str().context("token")?;
    assert!(token.len() <= 600, "{} bytes", token.len());

    // Listed without the token itself, and recorded before it left.
    let listed = stack.berth("ada", &["tokens", &session])?;
    assert_eq!(listed.as_array().map(Vec::len), Some(2), "{listed}");
    assert!(!listed.to_string().contains(token), "the ledger holds the token");

    // Without the ledger there is no token.
    stack.manager.kill9().await?;
    let refused = stack.token("ada", &session).unwrap_err().to_string();
    assert!(refused.contains("cannot be reached"), "{refused}");
    Ok(())
}

#[tokio::test]
async fn keys_are_public_and_cached() -> Result<()> {
    let stack = Stack::start().await?;
    let path = "/.well-known/jwks.json";
    let answer = http::get(stack.jwks_address, path, "").await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an HTTP answer")?;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.contains("cache-control: public, max-age="), "{head}");
    let keys: Value = serde_json::from_str(body)?;
    assert_eq!(keys["keys"][0]["crv"], "P-256", "{keys}");
    assert!(
        keys["keys"][0]["d"].is_null(),
        "the private half is published: {keys}"
    );

    let etag = head
        .lines()
        .find_map(|line| line.strip_prefix("etag: "))
        .context("an ETag")?;
    let again = http::get(stack.jwks_address, path, &format!("if-none-match: {etag}\r\n")).await?;
    assert!(again.starts_with("HTTP/1.1 304"), "{again}");
    Ok(())
}
