//! Bad configuration: every wrong key is named at once, and no port is opened.

use anyhow::Result;
use e2e::binary;
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Command, Stdio};

/// Two sockets cannot listen on one port: so the port is ours before, and a
/// service that opened it early would have failed for that reason instead.
fn refused(service: &str, config: &str, keys: &[&str]) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("config.toml");
    std::fs::write(&file, config)?;
    let output = Command::new(binary(service)?)
        .arg("--config")
        .arg(&file)
        .stdin(Stdio::null())
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{service} started: {said}");
    for key in keys {
        assert!(said.contains(key), "{service} does not name {key}:\n{said}");
    }
    assert!(
        !said.contains("cannot listen"),
        "{service} tried to open a port:\n{said}"
    );
    Ok(())
}

fn taken() -> Result<(TcpListener, String)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?.to_string();
    Ok((listener, address))
}

#[test]
fn session_manager() -> Result<()> {
    let (_held, address) = taken()?;
    refused(
        "session-manager",
        &format!(
            r#"
listen.public.address = "{address}"
listen.internal.address = "0.0.0.0:8082"
store.url = "postgres://x"
store.colour = "red"
drain = 10
[[clusters]]
name = "Bad_Name"
engine = "sail"
[[clusters]]
name = "fine"
engine = "sail"
idle_timeout = "1s"
static.endpoints = [{{ address = "no-port" }}]
[[service_accounts]]
name = "ada"
org = "acme"
roles = ["king"]
key_sha256 = "abc"
"#
        ),
        &[
            "listen.internal",
            "store.url",
            "store.colour",
            "drain",
            "clusters[0].name",
            "clusters[1]",
            "idle_timeout",
            "service_accounts[0]",
            "key_sha256",
        ],
    )
}

#[test]
fn token_issuer() -> Result<()> {
    let (_held, address) = taken()?;
    refused(
        "token-issuer",
        &format!(
            r#"
listen.grpc.address = "{address}"
keys.signing = "/nowhere/key.pem"
tokens.default_ttl = "13h"
public.endpoint = "no port"
manager.uri = "http://manager.example:8082"
speed = 3
"#
        ),
        &[
            "keys.signing",
            "tokens.default_ttl",
            "public.endpoint",
            "manager.uri",
            "speed",
        ],
    )
}

#[test]
fn spark_proxy() -> Result<()> {
    let (_held, address) = taken()?;
    refused(
        "spark-proxy",
        &format!(
            r#"
listen.address = "{address}"
listen.tls.mode = "required"
tokens.keys.location = "ftp://issuer/jwks.json"
tokens.issuer = ""
manager.uri = "manager"
routes.hold_max = "1h"
limits.streams_per_connection = 0
speed = 3
"#
        ),
        &[
            "listen.tls",
            "tokens.keys.location",
            "tokens.issuer",
            "manager.uri",
            "routes.hold_max",
            "limits.streams_per_connection",
            "speed",
        ],
    )
}

#[test]
fn a_good_configuration_is_shown_without_its_secrets() -> Result<()> {
    let output = Command::new(binary("session-manager")?)
        .arg("--print-config")
        .env("BERTH__STORE__URL", "redis://user:hunter2@127.0.0.1:6379")
        .output()?;
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && shown.contains("[store]"), "{shown}");
    assert!(!shown.contains("hunter2"), "{shown}");
    Ok(())
}
