//! The first query of a fresh client process succeeds in every phase in which its session has no
//! compute: while it is provisioned, after a loss, and idle.

use anyhow::{Context, Result, ensure};
use e2e::{Client, Engine, Gate, Stack, StackOptions, Tls, wait};
use serde_json::Value;
use std::time::Duration;
use tokio::task::JoinHandle;

const LIMIT: Duration = Duration::from_secs(240);

struct Trial {
    stack: Stack,
    gate: Gate,
    engine: Engine,
    /// Clients are spread over them, so that several wake an idle session at the same time.
    sessions: Vec<String>,
}

impl Trial {
    async fn begin(engine: Engine) -> Result<Self> {
        let gate = Gate::closed()?;
        let stack = Stack::start_with(StackOptions {
            // Some clients come over TLS, the others in plaintext.
            tls: Tls::Auto,
            manager: gate.clusters(),
            // Two cores start seven clients and three Apache Sparks meanwhile.
            proxy: "routes.hold_max = \"4m\"".to_owned(),
            ..StackOptions::default()
        })
        .await?;
        Ok(Self {
            stack,
            gate,
            engine,
            sessions: Vec::new(),
        })
    }

    fn create(&mut self, count: usize) -> Result<()> {
        for _ in 0..count {
            let args = ["create", "--cluster", Gate::cluster(self.engine)];
            let made = self.stack.berth("ada", &args)?;
            ensure!(made["status"] == "pending", "{made}");
            let id = made["id"].as_str().context("no id")?;
            self.sessions.push(id.to_owned());
        }
        Ok(())
    }

    /// Every client asks its first question while the gate is closed; then compute may come.
    async fn first_queries(&self, clients: &[Client]) -> Result<()> {
        let mut running: Vec<(Client, JoinHandle<Result<Value>>)> = Vec::new();
        for (at, &client) in clients.iter().enumerate() {
            let session = self
                .sessions
                .get(at % self.sessions.len())
                .context("no session")?;
            let url = self.stack.url_for(client, "ada", session)?;
            let dir = self.stack.dir.path().to_owned();
            let ca = self.stack.ca_for(client).map(ToOwned::to_owned);
            let run = async move {
                let args = ["select1", "--url", &url];
                client.run(&dir, "client.py", &args, ca.as_deref()).await
            };
            running.push((client, tokio::spawn(run)));
        }
        wait::until("every client to wait for compute", LIMIT, async || {
            let held = self.held().await.map_err(|error| error.to_string())?;
            let going = running.iter().filter(|(_, run)| !run.is_finished());
            let going: Vec<Client> = going.map(|(client, _)| *client).collect();
            if held >= going.len() {
                Ok(())
            } else {
                Err(format!("{held} calls of {going:?} are held"))
            }
        })
        .await?;
        self.gate.open()?;
        let mut failed = Vec::new();
        for (client, run) in running {
            match run.await? {
                Ok(seen) if seen["value"] == 1 => {}
                Ok(seen) => failed.push(format!("{client:?}: {seen}")),
                Err(error) => failed.push(format!("{client:?}: {error:#}")),
            }
        }
        ensure!(failed.is_empty(), "{}", failed.join("\n\n"));
        Ok(())
    }

    async fn held(&self) -> Result<usize> {
        let metrics = self.stack.proxy.admin("/metrics").await?;
        let value = metrics
            .lines()
            .find_map(|line| line.strip_prefix("spark_proxy_held_calls "));
        Ok(value.context("no metric of held calls")?.trim().parse()?)
    }

    async fn until_all(&self, what: &str, good: impl Fn(&Value) -> bool) -> Result<()> {
        for session in &self.sessions {
            wait::until(what, LIMIT, async || match self.stack.show("ada", session) {
                Ok(shown) if good(&shown) => Ok(()),
                Ok(shown) => Err(shown.to_string()),
                Err(error) => Err(error.to_string()),
            })
            .await?;
        }
        Ok(())
    }

    /// The engines end without a word, and no new one starts.
    async fn lose_compute(&self) -> Result<()> {
        self.gate.close()?;
        for session in &self.sessions {
            self.stack.crash_compute_of(session)?;
        }
        self.until_all("new compute in the making", |shown| {
            shown["status"] == "pending" && shown["phase"] == "restarting"
        })
        .await
    }

    async fn idle(&self) -> Result<()> {
        for session in &self.sessions {
            self.stack
                .shorten_idle_timeout(session, Duration::from_secs(5))
                .await?;
        }
        self.until_all("idle, its compute given back", |shown| {
            shown["status"] == "idle" && shown["phase"] == "released"
        })
        .await?;
        self.gate.close()
    }

    async fn every_phase(mut self, sessions: usize, clients: &[Client]) -> Result<()> {
        self.create(sessions)?;
        self.first_queries(clients).await.context("provisioning")?;
        self.lose_compute().await?;
        self.first_queries(clients).await.context("restarting")?;
        self.idle().await?;
        self.first_queries(clients).await.context("idle")
    }
}

/// Each client has a session of its own, which it finds idle.
#[tokio::test]
async fn sail() -> Result<()> {
    let trial = Trial::begin(Engine::Sail).await?;
    let clients = Client::chosen();
    trial.every_phase(clients.len(), &clients).await
}

/// Two sessions for the clients that differ most in their first calls (`CLIENTS` names others): those
/// that start first find their session idle, the others find it warming.
#[tokio::test]
async fn apache_spark() -> Result<()> {
    let trial = Trial::begin(Engine::Spark).await?;
    let mut clients = Client::chosen_or(&[Client::Py35, Client::Py41, Client::Py43, Client::ScalaNew]);
    // What 4.1 and later ask first is what an idle session is most easily wrong about.
    clients.sort_by_key(|client| !matches!(client, Client::Py41 | Client::Py42 | Client::Py43));
    trial.every_phase(2, &clients).await
}
