//! The driver: keys, certificates, processes, rounds.

mod certificates;
mod instructions;
pub mod noise;
pub mod peer;
pub mod report;
pub mod rows;
mod run;
pub mod scenario;
mod worker;

use crate::callers::{self, Caller};
use crate::proc;
use crate::protocol::{Addresses, Counts, Job, Outcome};
use anyhow::{Context as _, Result};
use peer::{Kind, Peer};
use rustix::process::{Resource, getrlimit, setrlimit};
use session_core::{Clock as _, SystemClock};
use session_token::{Jwks, Signer, generate_key_pem};
use std::collections::BTreeMap;
use std::path::PathBuf;
use tempfile::TempDir;
use test_support::fake_routes::{FakeRoutes, active};
use worker::Worker;

/// Sessions are spread over this many ports of the backend.
pub const BACKENDS: usize = 10;
/// Enough for 10 000 connections, each with one behind it.
const OPEN_FILES: u64 = 20_000;

/// What the peers are configured with.
#[derive(Debug)]
pub struct Kit {
    /// Configuration, keys, logs.
    pub dir: PathBuf,
    /// Where `setup.sh` puts what it installs.
    pub home: PathBuf,
    /// The program of spark-proxy.
    pub proxy: PathBuf,
    /// Another build of it, measured beside it.
    pub before: Option<PathBuf>,
    /// The scripted RouteService.
    pub manager: String,
    /// The backend's ports.
    pub backend: Addresses,
}

/// Everything that runs, in one folder that vanishes with it.
pub struct Rig {
    /// What the peers are configured with.
    pub kit: Kit,
    routes: FakeRoutes,
    signer: Signer,
    serial: u64,
    backend: Worker,
    /// Load generators: the second is for loads beside another.
    generators: [Worker; 2],
    peers: BTreeMap<Kind, Peer>,
    spent: f64,
    /// Answers that were wrong, in words.
    pub wrong: Vec<String>,
    _dir: TempDir,
}

impl Rig {
    /// Starts the backend, the generators and the routes. `program` is the rig's own.
    ///
    /// # Errors
    /// When a part does not start.
    pub async fn start(program: &std::path::Path, proxy: PathBuf, home: PathBuf) -> Result<Self> {
        raise_open_files();
        let temp = tempfile::Builder::new().prefix("berth-load-").tempdir()?;
        let dir = temp.path().to_owned();
        certificates::write(&dir)?;
        let signer = Signer::from_pkcs8_pem(&generate_key_pem()?)?;
        std::fs::write(dir.join("jwks.json"), Jwks::new([signer.public_jwk()]).to_json())?;
        let routes = FakeRoutes::start().await?;
        let cores = std::thread::available_parallelism()?.get();
        let words = |role: &[&str]| -> Vec<String> {
            std::iter::once(program.display().to_string())
                .chain(role.iter().map(|&word| word.to_owned()))
                .collect()
        };
        let mut backend = Worker::start(
            &words(&[
                "backend",
                "--asserting",
                &BACKENDS.to_string(),
                "--threads",
                &cores.to_string(),
            ]),
            &dir.join("backend.log"),
        )?;
        let addresses: Addresses = backend.read().await?;
        let generators = [
            Worker::start(&words(&["generate"]), &dir.join("generate-0.log"))?,
            Worker::start(&words(&["generate"]), &dir.join("generate-1.log"))?,
        ];
        let mut rig = Self {
            kit: Kit {
                dir,
                home,
                proxy,
                before: None,
                manager: routes.uri(),
                backend: addresses,
            },
            routes,
            signer,
            serial: 0,
            backend,
            generators,
            peers: BTreeMap::new(),
            spent: 0.0,
            wrong: Vec::new(),
            _dir: temp,
        };
        rig.add_sessions(0, 1);
        Ok(rig)
    }

    /// Sessions `from..to` have routes, over the backend's ports in turn.
    pub fn add_sessions(&mut self, from: u64, to: u64) {
        let ports = &self.kit.backend.asserting;
        for index in from..to {
            let port = ports[usize::try_from(index).unwrap_or(0) % ports.len()];
            self.routes
                .set(active(callers::session(index).as_str(), callers::ORG, port));
        }
    }

    /// Sessions `from..to` have routes to compute that all of them share, so
    /// that knowing many sessions is not having many connections.
    pub fn add_sharing_sessions(&mut self, from: u64, to: u64) {
        for index in from..to {
            let mut route = active(
                callers::session(index).as_str(),
                callers::ORG,
                self.kit.backend.asserting[0],
            );
            if let Some(backend) = &mut route.backend {
                backend.dedicated = false;
            }
            self.routes.set(route);
        }
    }

    /// A new token of session `index`.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn caller(&mut self, index: u64) -> Result<Caller> {
        self.serial += 1;
        callers::caller(&self.signer, index, self.serial, SystemClock.now())
    }

    /// Tokens of each of these sessions.
    ///
    /// # Errors
    /// When one cannot be signed.
    pub fn callers(&mut self, indexes: impl Iterator<Item = u64>) -> Result<Vec<Caller>> {
        indexes.map(|index| self.caller(index)).collect()
    }

    /// The peer, started if it does not run.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn peer(&mut self, kind: Kind) -> Result<&Peer> {
        if !self.peers.contains_key(&kind) {
            let peer = Peer::start(kind, &self.kit).await?;
            self.peers.insert(kind, peer);
        }
        self.peers.get(&kind).context("it was just started")
    }

    /// The peer as new.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn fresh_peer(&mut self, kind: Kind) -> Result<&Peer> {
        self.end_peer(kind);
        self.peer(kind).await
    }

    /// Ends a peer, if it runs.
    pub fn end_peer(&mut self, kind: Kind) {
        if let Some(peer) = self.peers.remove(&kind) {
            self.spent += peer.stop();
        }
    }

    /// Has a load made. What went wrong is written down.
    ///
    /// # Errors
    /// When the generator is gone.
    pub async fn load(&mut self, what: &str, job: &Job) -> Result<Outcome> {
        let outcome = self.generators[0].ask(job).await?;
        self.note(what, &outcome);
        Ok(outcome)
    }

    /// Has two loads made at once; the first one's outcome counts, the second's too.
    ///
    /// # Errors
    /// When a generator is gone.
    pub async fn load_beside(&mut self, what: &str, job: &Job, beside: &Job) -> Result<(Outcome, Outcome)> {
        let [first, second] = &mut self.generators;
        let (one, other) = tokio::try_join!(first.ask(job), second.ask(beside))?;
        self.note(what, &one);
        self.note(what, &other);
        Ok((one, other))
    }

    /// Has the second generator do something.
    ///
    /// # Errors
    /// When it is gone.
    pub async fn aside(&mut self, what: &str, job: &Job) -> Result<Outcome> {
        let outcome = self.generators[1].ask(job).await?;
        self.note(what, &outcome);
        Ok(outcome)
    }

    fn note(&mut self, what: &str, outcome: &Outcome) {
        if outcome.errors > 0 {
            let error = outcome.error.as_deref().unwrap_or("unknown");
            self.wrong.push(format!(
                "{what}: {} calls went wrong, the first so: {error}",
                outcome.errors
            ));
        }
    }

    /// Makes sure that a peer which is to check tokens does: the token of one
    /// session must not open another.
    ///
    /// # Errors
    /// When it lets the call through, or does not start.
    pub async fn prove_refusal(&mut self, kind: Kind) -> Result<()> {
        let caller = Caller {
            session: callers::session(0).as_str().to_owned(),
            ..self.caller(1)?
        };
        let job = Job::Connects {
            target: self.peer(kind).await?.target.clone(),
            caller,
            count: 1,
            watch: Vec::new(),
        };
        // Not through `load`: here the error is what is right.
        let outcome = self.generators[0].ask::<Outcome>(&job).await?;
        let error = outcome.error.unwrap_or_default();
        // UNAUTHENTICATED or PERMISSION_DENIED.
        let refused = error.contains("gRPC status 7") || error.contains("gRPC status 16");
        anyhow::ensure!(
            refused,
            "{} lets the token of one session open another: {error:?}",
            kind.name()
        );
        Ok(())
    }

    /// What the backend counted at the ports that look for identities.
    ///
    /// # Errors
    /// When the backend is gone.
    pub async fn counts(&mut self) -> Result<Counts> {
        self.backend.ask(&()).await
    }

    /// The generator's and the backend's processes.
    pub fn helpers(&self) -> [Vec<u32>; 2] {
        [vec![self.generators[0].pid()], vec![self.backend.pid()]]
    }

    /// CPU seconds of all that the rig started, and its own.
    pub fn spent(&self) -> f64 {
        let mut pids = vec![std::process::id(), self.backend.pid()];
        pids.extend(self.generators.iter().map(Worker::pid));
        pids.extend(self.peers.values().flat_map(|peer| &peer.pids));
        self.spent + proc::cpu_seconds(&pids).unwrap_or(0.0)
    }
}

/// Connections are files, and shells give few. Children inherit what is set
/// here; not more, because haproxy sizes its tables by it.
fn raise_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = Some(limit.maximum.map_or(OPEN_FILES, |most| most.min(OPEN_FILES)));
    // If not, connecting says what is wrong.
    let _ = setrlimit(Resource::Nofile, limit);
}
