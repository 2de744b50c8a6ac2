//! The connection string as `berth token` prints it, unchanged, in clients that no other test drives.

use anyhow::{Result, ensure};
use e2e::{Client, Engine, Stack, StackOptions, Tls};

/// JDBC, ADBC and the Rust client each take it behind TLS; the Rust client refuses a token without
/// `use_ssl=true`, ADBC would send it in clear.
#[tokio::test]
async fn one_string_for_all() -> Result<()> {
    let stack = Stack::start_with(StackOptions {
        tls: Tls::Required,
        ..StackOptions::default()
    })
    .await?;
    let session = stack.session("ada", Engine::Sail, &[])?;
    let (dir, ca) = (stack.dir.path(), stack.ca());
    for (client, script, command) in [
        (Client::ScalaNew, "client.py", Some("jdbc")),
        (Client::Adbc, "adbc.py", None),
    ] {
        let url = stack.url("ada", &session)?;
        let args: Vec<&str> = command.into_iter().chain(["--url", &url]).collect();
        let seen = client.run(dir, script, &args, ca).await?;
        ensure!(seen["value"] == 1, "{client:?}: {seen}");
    }
    for client in Client::ALL {
        let url = stack.url("ada", &session)?;
        let seen = client
            .run(dir, "client.py", &["select1", "--url", &url], ca)
            .await?;
        ensure!(seen["value"] == 1, "{client:?}: {seen}");
    }
    Ok(())
}

/// The string of a proxy without TLS, as `make run` prints it.
#[tokio::test]
async fn plaintext_on_localhost() -> Result<()> {
    let stack = Stack::start().await?;
    let session = stack.session("ada", Engine::Sail, &[])?;
    let dir = stack.dir.path();
    let url = stack.url("ada", &session)?;
    for (client, script, command) in [
        (Client::ScalaNew, "client.py", Some("jdbc")),
        (Client::Adbc, "adbc.py", None),
        (Client::PyRust, "client.py", Some("select1")),
        (Client::ScalaOld, "client.py", Some("select1")),
    ] {
        let args: Vec<&str> = command.into_iter().chain(["--url", &url]).collect();
        let seen = client.run(dir, script, &args, None).await?;
        ensure!(seen["value"] == 1, "{client:?}: {seen}");
    }
    Ok(())
}
