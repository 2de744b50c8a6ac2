//! SELECT, and a result equal to a direct connection: 10 million rows over TLS, 2 million in plaintext.

use anyhow::Result;
use e2e::{Client, Engine, Stack, StackOptions, Tls};

async fn select_and_big(client: Client, engine: Engine, tls: Tls) -> Result<()> {
    let stack = Stack::start_with(StackOptions {
        tls,
        ..StackOptions::default()
    })
    .await?;
    let session = stack.session("ada", engine, &[])?;
    let url = stack.url("ada", &session)?;
    let one = client
        .run(
            stack.dir.path(),
            "client.py",
            &["select1", "--url", &url],
            stack.ca(),
        )
        .await?;
    assert_eq!(one["value"], 1, "{one}");

    let direct = stack.backend_url(&session).await?;
    let rows: u64 = if tls == Tls::Off { 2_000_000 } else { 10_000_000 };
    let count = rows.to_string();
    let args = ["big", "--url", &url, "--direct-url", &direct, "--rows", &count];
    let big = client
        .run(stack.dir.path(), "client.py", &args, stack.ca())
        .await?;
    assert_eq!(big["equal"], true, "{big}");
    assert_eq!(big["through"]["rows"], rows, "{big}");
    Ok(())
}

#[tokio::test]
async fn sail_plaintext_on_localhost() -> Result<()> {
    select_and_big(Client::Py41, Engine::Sail, Tls::Off).await
}

#[tokio::test]
async fn sail_tls_with_a_private_ca() -> Result<()> {
    select_and_big(Client::Py41, Engine::Sail, Tls::Required).await
}

#[tokio::test]
async fn spark_plaintext_on_localhost() -> Result<()> {
    select_and_big(Client::Py41, Engine::Spark, Tls::Off).await
}

#[tokio::test]
async fn spark_tls_with_a_private_ca() -> Result<()> {
    select_and_big(Client::Py41, Engine::Spark, Tls::Required).await
}

#[tokio::test]
async fn both_on_one_port_for_development() -> Result<()> {
    let stack = Stack::start_with(StackOptions {
        tls: Tls::Auto,
        ..StackOptions::default()
    })
    .await?;
    let session = stack.session("ada", Engine::Sail, &[])?;
    let plain = stack.url("ada", &session)?;
    let tls = plain.replacen("/;", "/;use_ssl=true;", 1);
    for url in [plain, tls] {
        let args = ["select1", "--url", &url];
        let one = Client::Py41
            .run(stack.dir.path(), "client.py", &args, stack.ca())
            .await?;
        assert_eq!(one["value"], 1, "{one}");
    }
    Ok(())
}
