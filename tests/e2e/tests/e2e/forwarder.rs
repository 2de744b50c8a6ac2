//! `berth connect` and `berth exec` with real clients on real engines.

mod commands;
mod load;
mod outages;

use anyhow::{Result, ensure};
use e2e::{Client, Engine, Forwarder, Stack, StackOptions, Tls};

/// One string for all: plaintext at 127.0.0.1 without a token, behind which
/// the proxy is reached over TLS with a private authority.
#[tokio::test]
async fn every_client_connects() -> Result<()> {
    let stack = Stack::start_with(StackOptions {
        tls: Tls::Required,
        ..StackOptions::default()
    })
    .await?;
    let session = stack.session("ada", Engine::Sail, &[])?;
    let forwarder = Forwarder::start(&stack, "ada", &[&session]).await?;
    let dir = stack.dir.path();
    let url = ["--url", forwarder.url.as_str()];
    for client in Client::chosen() {
        let args = [&["select1"], &url[..]].concat();
        let seen = client.run(dir, "client.py", &args, None).await?;
        ensure!(seen["value"] == 1, "{client:?}: {seen}");
    }
    let args = [&["jdbc"], &url[..]].concat();
    let seen = Client::ScalaNew.run(dir, "client.py", &args, None).await?;
    ensure!(seen["value"] == 1, "JDBC: {seen}");
    let seen = Client::Adbc.run(dir, "adbc.py", &url, None).await?;
    ensure!(seen["value"] == 1, "ADBC: {seen}");
    Ok(())
}

/// Clients that have a setting for a token only, such as Airflow's hook.
#[tokio::test]
async fn the_secret_can_be_the_token_and_is_required() -> Result<()> {
    let stack = Stack::start().await?;
    let session = stack.session("ada", Engine::Sail, &[])?;
    let forwarder = Forwarder::start(&stack, "ada", &[&session]).await?;
    let (address, secret) = forwarder.parts()?;
    let port = address.rsplit(':').next().unwrap_or_default();
    let dir = stack.dir.path();
    // The literal name: there PySpark 4 speaks plaintext although it has a token.
    let url = format!("sc://localhost:{port}/;token={secret}");
    let args = ["select1", "--url", &url];
    for client in [Client::Py41, Client::Py43, Client::ScalaNew] {
        let seen = client.run(dir, "client.py", &args, None).await?;
        ensure!(seen["value"] == 1, "{client:?}: {seen}");
    }
    let token = stack.token("ada", &session)?;
    for url in [
        format!("sc://localhost:{port}"),
        format!("sc://localhost:{port}/;token={token};x-session-id={session}"),
    ] {
        let args = ["expect-error", "--url", &url];
        let seen = Client::Py43.run(dir, "client.py", &args, None).await?;
        ensure!(seen["grpc_code"] == "UNAUTHENTICATED", "{seen}");
        ensure!(seen["text"].to_string().contains("berth connect"), "{seen}");
    }
    Ok(())
}
