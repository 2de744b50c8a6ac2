//! Wrong, expired, foreign, missing and revoked tokens, wrong and doubled
//! headers, closed, failed and unknown sessions: each with its exact code and
//! reason, on raw gRPC and as PySpark shows it.

use anyhow::Result;
use e2e::{Client, Engine, Stack, StackOptions, Tls};
use serde_json::Value;
use session_core::{Clock, SessionId, SystemClock, Timestamp, TokenId};
use session_token::{Claims, Signer, generate_key_pem};
use std::time::Duration;

struct Raw<'a> {
    stack: &'a Stack,
    target: String,
}

impl Raw<'_> {
    async fn call(&self, args: &[&str]) -> Result<Value> {
        let args = [&["execute", "--target", &self.target, "--sql", "SELECT 1"], args].concat();
        Client::Py41
            .run(self.stack.dir.path(), "raw.py", &args, self.stack.ca())
            .await
    }

    async fn expect(&self, args: &[&str], code: &str, reason: &str) -> Result<()> {
        let seen = self.call(args).await?;
        assert_eq!(
            (seen["code"].as_str(), seen["reason"].as_str()),
            (Some(code), Some(reason)),
            "{args:?}: {seen}"
        );
        assert_eq!(seen["berth_reason"], reason, "{seen}");
        assert_eq!(seen["domain"], "berth", "{seen}");
        Ok(())
    }
}

/// What a token of the real issuer for `session` says, to be changed.
fn claims(session: &str, now: Timestamp) -> Result<Claims> {
    Ok(Claims {
        iss: "berth".to_owned(),
        aud: "berth-spark-connect".to_owned(),
        sub: "sa|ada".parse()?,
        org: "acme".parse()?,
        sid: session.parse()?,
        epoch: 1,
        iat: now.as_secs(),
        nbf: now.as_secs(),
        exp: now.as_secs() + 600,
        jti: TokenId::generate(now, 1),
    })
}

fn real_signer(stack: &Stack) -> Result<Signer> {
    Ok(Signer::from_pkcs8_pem(&std::fs::read_to_string(
        stack.dir.path().join("signing.pem"),
    )?)?)
}

#[tokio::test]
async fn tokens() -> Result<()> {
    let stack = Stack::start().await?;
    let session = stack.session("ada", Engine::Sail, &[])?;
    let good = stack.token("ada", &session)?;
    let raw = Raw {
        stack: &stack,
        target: format!("localhost:{}", stack.proxy_address.port()),
    };
    let (signer, now) = (real_signer(&stack)?, SystemClock.now());
    let old = now.before(Duration::from_secs(3600));
    let header = ["--session-header", session.as_str()];
    let with = |token: &str| vec!["--token".to_owned(), token.to_owned()];

    let expired = signer.sign(&claims(&session, old)?)?;
    let stranger = Signer::from_pkcs8_pem(&generate_key_pem()?)?.sign(&claims(&session, now)?)?;
    let elsewhere = signer.sign(&Claims {
        aud: "other".to_owned(),
        ..claims(&session, now)?
    })?;
    // The last character of a signature has spare bits; the one before has none.
    let (rest, last) = good.split_at(good.len() - 2);
    let broken = format!(
        "{rest}{}{}",
        if last.starts_with('A') { 'B' } else { 'A' },
        &last[1..]
    );
    for (token, reason) in [
        (expired.as_str(), "TOKEN_EXPIRED"),
        (&stranger, "TOKEN_INVALID"),
        (&elsewhere, "TOKEN_INVALID"),
        (&broken, "TOKEN_INVALID"),
        ("abc", "TOKEN_MALFORMED"),
        (stack.key_of("ada"), "TOKEN_MALFORMED"),
    ] {
        let args = with(token);
        let args: Vec<&str> = args.iter().map(String::as_str).chain(header).collect();
        raw.expect(&args, "UNAUTHENTICATED", reason).await?;
    }
    raw.expect(&header, "UNAUTHENTICATED", "TOKEN_MISSING").await?;

    // The clean text that a person sees, at once.
    let url = format!("sc://{}/;token={expired};x-session-id={session}", raw.target);
    let seen = Client::Py41
        .run(
            stack.dir.path(),
            "client.py",
            &["expect-error", "--url", &url],
            None,
        )
        .await?;
    assert!(
        seen["text"]
            .as_str()
            .is_some_and(|text| text.contains("berth token")),
        "{seen}"
    );
    assert!(
        seen["seconds"].as_f64().is_some_and(|seconds| seconds < 5.0),
        "{seen}"
    );

    // One token taken back, then all.
    let listed = stack.berth("ada", &["tokens", &session])?;
    let id = listed[0]["token_id"].as_str().unwrap_or_default().to_owned();
    stack.berth("ada", &["revoke", &session, &id])?;
    let second = stack.token("ada", &session)?;
    let args = [&["--token", good.as_str()], &header[..]].concat();
    revoked(&raw, &args).await?;
    let args = [&["--token", second.as_str()], &header[..]].concat();
    assert_eq!(raw.call(&args).await?["code"], "OK");
    stack.berth("ada", &["revoke", &session, "--all"])?;
    revoked(&raw, &args).await
}

/// Revocation reaches the proxy within a second.
async fn revoked(raw: &Raw<'_>, args: &[&str]) -> Result<()> {
    e2e::wait::until("TOKEN_REVOKED", Duration::from_secs(2), async || {
        match raw.call(args).await {
            Ok(seen) if seen["reason"] == "TOKEN_REVOKED" && seen["code"] == "UNAUTHENTICATED" => Ok(()),
            Ok(seen) => Err(seen.to_string()),
            Err(error) => Err(error.to_string()),
        }
    })
    .await
}

#[tokio::test]
async fn sessions_and_headers() -> Result<()> {
    let stack = Stack::start().await?;
    let session = stack.session("ada", Engine::Sail, &[])?;
    let other = stack.session("ada", Engine::Sail, &[])?;
    let token = stack.token("ada", &session)?;
    let raw = Raw {
        stack: &stack,
        target: format!("localhost:{}", stack.proxy_address.port()),
    };
    let bearer = format!("authorization=Bearer {token}");
    let own = format!("x-session-id={session}");
    let foreign = format!("x-session-id={other}");

    assert_eq!(
        raw.call(&["--token", &token, "--session-header", &session])
            .await?["code"],
        "OK"
    );
    assert_eq!(
        raw.call(&["--token", &token]).await?["code"],
        "OK",
        "Go leaves the header out on Config"
    );
    let mismatch = ["--token", token.as_str(), "--session-header", other.as_str()];
    raw.expect(&mismatch, "PERMISSION_DENIED", "SESSION_MISMATCH")
        .await?;
    for doubled in [
        ["--md", &bearer, "--md", &own, "--md", &own],
        ["--md", &bearer, "--md", &own, "--md", &foreign],
        ["--md", &bearer, "--md", &bearer, "--md", &own],
    ] {
        raw.expect(&doubled, "INVALID_ARGUMENT", "HEADER_DUPLICATE")
            .await?;
    }
    let path = [
        "--token",
        token.as_str(),
        "--path",
        "/spark.connect.Other/ExecutePlan",
    ];
    raw.expect(&path, "UNIMPLEMENTED", "UNKNOWN_METHOD").await?;

    let unknown = SessionId::generate(SystemClock.now(), 42).to_string();
    let signed = real_signer(&stack)?.sign(&claims(&unknown, SystemClock.now())?)?;
    raw.expect(&["--token", &signed], "FAILED_PRECONDITION", "SESSION_CLOSED")
        .await?;

    stack.berth("ada", &["close", &session])?;
    e2e::wait::until("SESSION_CLOSED", Duration::from_secs(2), async || {
        match raw.call(&["--token", &token, "--session-header", &session]).await {
            Ok(seen) if seen["reason"] == "SESSION_CLOSED" && seen["code"] == "FAILED_PRECONDITION" => Ok(()),
            Ok(seen) => Err(seen.to_string()),
            Err(error) => Err(error.to_string()),
        }
    })
    .await?;
    let url = format!("sc://{}/;token={token};x-session-id={session}", raw.target);
    let seen = Client::Py41
        .run(
            stack.dir.path(),
            "client.py",
            &["expect-error", "--url", &url],
            None,
        )
        .await?;
    assert!(
        seen["text"]
            .as_str()
            .is_some_and(|text| text.contains("is closed")),
        "{seen}"
    );
    assert_eq!(seen["error_class"], "BERTH.SESSION_CLOSED", "{seen}");
    Ok(())
}

#[tokio::test]
async fn a_failed_session_says_why() -> Result<()> {
    let stack = Stack::start().await?;
    stack
        .session("ada", Engine::Sail, &["--catalog", "broken"])
        .unwrap_err();
    let failed = stack.berth("ada", &["list", "--all"])?[0]["id"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let token = real_signer(&stack)?.sign(&claims(&failed, SystemClock.now())?)?;
    let raw = Raw {
        stack: &stack,
        target: format!("localhost:{}", stack.proxy_address.port()),
    };
    raw.expect(&["--token", &token], "FAILED_PRECONDITION", "SESSION_FAILED")
        .await
}

#[tokio::test]
async fn the_header_can_be_made_mandatory() -> Result<()> {
    let options = StackOptions {
        proxy: "tokens.require_session_header = true".to_owned(),
        ..StackOptions::default()
    };
    let stack = Stack::start_with(options).await?;
    let session = stack.session("ada", Engine::Sail, &[])?;
    let token = stack.token("ada", &session)?;
    let raw = Raw {
        stack: &stack,
        target: format!("localhost:{}", stack.proxy_address.port()),
    };
    raw.expect(&["--token", &token], "UNAUTHENTICATED", "HEADER_MISSING")
        .await?;
    assert_eq!(
        raw.call(&["--token", &token, "--session-header", &session])
            .await?["code"],
        "OK"
    );
    Ok(())
}

#[tokio::test]
async fn plaintext_where_tls_is_required() -> Result<()> {
    let stack = Stack::start_with(StackOptions {
        tls: Tls::Required,
        ..StackOptions::default()
    })
    .await?;
    let session = stack.session("ada", Engine::Sail, &[])?;
    let token = stack.token("ada", &session)?;
    let raw = Raw {
        stack: &stack,
        target: format!("localhost:{}", stack.proxy_address.port()),
    };
    raw.expect(&["--token", &token], "FAILED_PRECONDITION", "TLS_REQUIRED")
        .await?;
    assert_eq!(raw.call(&["--token", &token, "--tls"]).await?["code"], "OK");
    // PySpark 4 speaks plaintext to the literal localhost unless told otherwise.
    let url = format!("sc://{}/;token={token};x-session-id={session}", raw.target);
    let seen = Client::Py41
        .run(
            stack.dir.path(),
            "client.py",
            &["expect-error", "--url", &url],
            stack.ca(),
        )
        .await?;
    assert!(
        seen["text"]
            .as_str()
            .is_some_and(|text| text.contains("use_ssl=true")),
        "{seen}"
    );
    Ok(())
}
