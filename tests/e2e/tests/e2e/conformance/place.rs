//! Where a suite runs: an engine of its own, or a session of Berth.

use super::suites::{Suite, Way};
use anyhow::{Context, Result};
use e2e::{Engine, Forwarder, Relay, Server, Stack, wait};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;

/// Where suites with the address in their code expect a server.
const USUAL_PORT: u16 = 15002;
/// Another program on this machine may use that port for a while.
const PORT_LIMIT: Duration = Duration::from_secs(600);

/// A server for one run, as new: nothing of another run is there.
#[derive(Debug)]
pub(super) struct Place {
    /// The connection string.
    pub url: String,
    /// Where it listens in plaintext; none if it does not.
    pub address: Option<SocketAddr>,
    /// The certificate to trust.
    pub ca: Option<PathBuf>,
    /// The folder in which the suite runs.
    pub dir: TempDir,
    session: Option<String>,
    // They end when dropped.
    _relay: Option<Relay>,
    _forwarder: Option<Forwarder>,
    _server: Option<Server>,
}

impl Place {
    /// An engine without Berth.
    ///
    /// # Errors
    /// When it does not start.
    pub(super) async fn direct(suite: &Suite, engine: Engine) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("berth-direct-").tempdir()?;
        let server = match engine {
            Engine::Sail => Server::sail_in(dir.path(), &[]).await?,
            Engine::Spark => Server::spark(dir.path(), &[]).await?,
        };
        Ok(Self {
            url: format!("sc://localhost:{}", server.address.port()),
            address: Some(server.address),
            ca: None,
            dir,
            session: None,
            _relay: relay(suite.way, server.address).await?,
            _forwarder: None,
            _server: Some(server),
        })
    }

    /// A new session of a stack.
    ///
    /// # Errors
    /// When it does not become active.
    pub(super) async fn berth(suite: &Suite, engine: Engine, stack: &Stack) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("berth-suite-").tempdir()?;
        let session = stack.session("ada", engine, &[])?;
        let tls = Self {
            url: stack.url("ada", &session)?.replacen("/;", "/;use_ssl=true;", 1),
            address: None,
            ca: stack.ca().map(ToOwned::to_owned),
            dir,
            session: Some(session.clone()),
            _relay: None,
            _forwarder: None,
            _server: None,
        };
        if suite.way == Way::Tls {
            return Ok(tls);
        }
        let forwarder =
            Forwarder::start(stack, "ada", &[&session, "--trust-own-processes", "--quiet"]).await?;
        let address = address(&forwarder.url)?;
        Ok(Self {
            _relay: relay(suite.way, address).await?,
            address: Some(address),
            url: forwarder.url.clone(),
            ca: None,
            _forwarder: Some(forwarder),
            ..tls
        })
    }

    /// Closes the session, so that its engine does not stay beside the next one.
    ///
    /// # Errors
    /// When it cannot be closed.
    pub(super) fn end(self, stack: &Stack) -> Result<()> {
        if let Some(session) = &self.session {
            stack.berth("ada", &["close", session])?;
        }
        Ok(())
    }
}

/// The usual port, if the suite needs it.
async fn relay(way: Way, target: SocketAddr) -> Result<Option<Relay>> {
    if way != Way::Port15002 {
        return Ok(None);
    }
    let relay = wait::until("port 15002 is free", PORT_LIMIT, async || {
        let started = Relay::start_on(USUAL_PORT, target).await;
        started.map_err(|error| error.to_string())
    });
    relay.await.map(Some)
}

/// Where a forwarder listens.
fn address(url: &str) -> Result<SocketAddr> {
    let port = url.rsplit_once("127.0.0.1:").context("an address")?.1;
    let port: String = port.chars().take_while(char::is_ascii_digit).collect();
    Ok((Ipv4Addr::LOCALHOST, port.parse()?).into())
}
