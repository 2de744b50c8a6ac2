//! Callers of a real identity provider (npm `oidc-provider`) beside service
//! accounts: its keys rotate while everything runs, and what its tokens may
//! not do they cannot do.

use anyhow::{Context as _, Result, ensure};
use e2e::wait::until;
use e2e::{Client, Engine, OidcProvider, Stack, StackOptions};
use std::time::Duration;

fn trusting(provider: &OidcProvider) -> StackOptions {
    let issuer = provider.issuer();
    StackOptions {
        manager: format!(
            r#"
[[oidc]]
alias = "corp"
issuer = "{issuer}"
audiences = ["berth"]
orgs = ["acme"]
org_claim = "org"
roles_claim = "roles"
teams_claim = "groups"
algorithms = ["RS256", "ES256"]
keys.again_after = "1s"
leeway = "1s"
subjects = [{{ sub = "etl", org = "acme", roles = ["member"] }}]
"#
        ),
        ..StackOptions::default()
    }
}

fn refusal(outcome: Result<serde_json::Value>) -> Result<String> {
    match outcome {
        Ok(answer) => anyhow::bail!("it was let in: {answer}"),
        Err(error) => Ok(format!("{error:#}")),
    }
}

#[tokio::test]
async fn a_real_providers_tokens_open_sessions_and_nothing_more() -> Result<()> {
    let provider = OidcProvider::start().await?;
    let stack = Stack::start_with(trusting(&provider)).await?;

    // An OIDC principal makes a session and a token for it, and both services
    // know it by its qualified name.
    let ada = provider.token("ada", "urn:berth").await?;
    let session = stack.berth_with_token(&ada, &["create", "--wait", "--cluster", Engine::Sail.cluster()])?;
    assert_eq!(session["owner"], "corp|ada", "{session}");
    let id = session["id"].as_str().context("id")?.to_owned();
    let issued = stack.berth_with_token(&ada, &["token", &id])?;
    let token = issued["token"].as_str().context("token")?.to_owned();
    let listed = stack.berth_with_token(&ada, &["tokens", &id])?;
    assert_eq!(listed[0]["subject"], "corp|ada", "{listed}");

    // The service account of the same name is somebody else; each sees its own.
    let by_key = stack.berth("ada", &["create", "--cluster", Engine::Sail.cluster()])?;
    assert_eq!(by_key["owner"], "sa|ada", "{by_key}");
    let refused = refusal(stack.berth("ada", &["show", &id]))?;
    ensure!(refused.contains("no access"), "{refused}");
    let olga = provider.token("olga", "urn:berth").await?;
    let all = stack.berth_with_token(&olga, &["list"])?;
    assert_eq!(
        all.as_array().map(Vec::len),
        Some(2),
        "an org admin by claim: {all}"
    );
    let etl = provider.token("etl", "urn:berth").await?;
    let none = stack.berth_with_token(&etl, &["list"])?;
    assert_eq!(
        none.as_array().map(Vec::len),
        Some(0),
        "a configured subject: {none}"
    );

    // What is refused, each for its own reason.
    let short = provider.token("ada", "urn:short").await?;
    let far = OidcProvider::start().await?;
    for (name, credential, says) in [
        (
            "another audience",
            provider.token("ada", "urn:other").await?,
            "another aud",
        ),
        (
            "another issuer",
            far.token("ada", "urn:berth").await?,
            "is not trusted here",
        ),
        (
            "another organization",
            provider.token("mallory", "urn:berth").await?,
            "may not speak for",
        ),
        ("a session token", token.clone(), "session token"),
    ] {
        let refused = refusal(stack.berth_with_token(&credential, &["list"]))?;
        ensure!(refused.contains(says), "{name}: {refused}");
        let refused = refusal(stack.berth_with_token(&credential, &["token", &id]))?;
        ensure!(refused.contains(says), "{name}, at token-issuer: {refused}");
        ensure!(
            !refused.contains(&credential),
            "{name}: the credential is in the text"
        );
    }
    until("the short token to expire", Duration::from_secs(90), async || {
        let said = refusal(stack.berth_with_token(&short, &["list"])).unwrap_or_default();
        said.contains("has expired").then_some(()).ok_or(said)
    })
    .await?;

    // Keys rotate while everything runs; earlier tokens stay good.
    provider.rotate().await?;
    let rotated = provider.token("ada", "urn:berth").await?;
    until("the new key to be known", Duration::from_secs(30), async || {
        let shown = stack.berth_with_token(&rotated, &["show", &id]);
        shown.map(drop).map_err(|error| format!("{error:#}"))
    })
    .await?;
    stack.berth_with_token(&ada, &["show", &id])?;

    // The proxy takes no token but a session token.
    let target = format!("localhost:{}", stack.proxy_address.port());
    let args = [
        "execute", "--target", &target, "--sql", "SELECT 1", "--token", &ada,
    ];
    let seen = Client::Py41.run(stack.dir.path(), "raw.py", &args, None).await?;
    assert_eq!(seen["reason"], "TOKEN_MALFORMED", "{seen}");
    Ok(())
}

#[tokio::test]
async fn a_token_of_many_groups_passes_every_hop_and_a_larger_one_is_explained() -> Result<()> {
    let provider = OidcProvider::start().await?;
    let stack = Stack::start_with(trusting(&provider)).await?;
    let gina = provider.token("gina", "urn:berth").await?;
    ensure!(gina.len() > 32 << 10, "only {} bytes", gina.len());
    // To session-manager; to token-issuer, and from there to session-manager.
    let session = stack.berth_with_token(&gina, &["create", "--cluster", Engine::Sail.cluster()])?;
    let id = session["id"].as_str().context("id")?.to_owned();
    let issued = stack.berth_with_token(&gina, &["token", &id])?;
    ensure!(issued["token"].is_string(), "{issued}");

    let hugo = provider.token("hugo", "urn:berth").await?;
    for args in [&["list"][..], &["token", &id]] {
        let said = refusal(stack.berth_with_token(&hugo, args))?;
        ensure!(said.contains("fewer groups"), "{args:?}: {said}");
    }
    Ok(())
}
