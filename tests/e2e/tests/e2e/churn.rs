//! Two session-managers and two proxies, people who create, query, change and
//! close sessions without a pause, and parts that die under them: nothing that
//! was acknowledged is lost, nothing that ended comes back, no running stream
//! is cut. `CHURN_SECONDS=600` makes each longer (`make churn`).

mod checks;
mod faults;
mod people;

use anyhow::{Result, ensure};
use e2e::{AnotherManager, Engine, Relay, Server, Service, Stack, StackOptions, shared_sail_without_limits};
use faults::Victims;
use people::{Api, Deed};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use test_support::redis::{PrivateCluster, PrivateRedis, RedisOptions, Watched};
use tokio::task::{JoinSet, LocalSet, spawn_local};

/// Who works in it, each at several sessions at once.
const PEOPLE: [&str; 3] = ["ada", "bob", "olga"];
const AT_ONCE: usize = 2;

/// How long parts die.
fn time() -> Duration {
    let seconds = std::env::var("CHURN_SECONDS").ok().and_then(|n| n.parse().ok());
    Duration::from_secs(seconds.unwrap_or(15))
}

/// What everybody in it shares.
#[derive(Default)]
struct Shared {
    over: AtomicBool,
    /// Deaths so far.
    faults: AtomicU64,
    /// Calls that were made again, because what they met passes.
    retries: AtomicU64,
    /// Queries that were answered.
    queries: AtomicU64,
    /// The longest time from a call's first try to its answer.
    longest: Mutex<Duration>,
}

impl Shared {
    fn over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    fn took(&self, time: Duration) {
        let mut longest = self.longest.lock().unwrap_or_else(PoisonError::into_inner);
        *longest = time.max(*longest);
    }

    /// Waits, but not beyond the end.
    async fn pause(&self, time: Duration) {
        let end = Instant::now() + time;
        while !self.over() && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Everything that runs.
struct Churn {
    stack: Stack,
    second: AnotherManager,
    proxies: [SocketAddr; 2],
    public: Relay,
    _rest: (Service, Relay, Server),
}

impl Churn {
    async fn start(store: Option<String>) -> Result<Self> {
        let server = Server::sail().await?;
        let [internal, public] = [
            Relay::start(server.address).await?,
            Relay::start(server.address).await?,
        ];
        let mut stack = Stack::prepare(&StackOptions {
            manager: shared_sail_without_limits(server.address),
            store,
            managers: Some(internal.address),
            ..StackOptions::default()
        })
        .await?;
        internal.point_at(stack.internal_address);
        stack.up().await?;
        let second = stack.another_manager().await?;
        let first = stack.manager_uri.trim_start_matches("http://").parse()?;
        public.balance(vec![first, second.public]);
        internal.balance(vec![stack.internal_address, second.internal]);
        let (other, address) = stack.another_proxy().await?;
        Ok(Self {
            proxies: [stack.proxy_address, address],
            stack,
            second,
            public,
            _rest: (other, internal, server),
        })
    }

    /// What `who` calls, by the way that load balancers choose.
    fn api(&self, who: &str, shared: &Arc<Shared>) -> Result<Api> {
        Api::new(
            self.stack.key_of(who),
            &format!("http://{}", self.public.address),
            self.stack.issuer_uri(),
            self.proxies,
            Arc::clone(shared),
        )
    }

    /// What `who` calls at one manager.
    fn api_at(&self, who: &str, manager: usize, shared: &Arc<Shared>) -> Result<Api> {
        let second = format!("http://{}", self.second.public);
        let uri = [self.stack.manager_uri.as_str(), &second][manager];
        Api::new(
            self.stack.key_of(who),
            uri,
            self.stack.issuer_uri(),
            self.proxies,
            Arc::clone(shared),
        )
    }

    async fn run(self, what: &str, victims: Victims) -> Result<()> {
        let life = Box::pin(self.live_through(what, victims));
        LocalSet::new().run_until(life).await
    }

    /// Lets people work while parts die, then looks at what is left.
    async fn live_through(mut self, what: &str, mut victims: Victims) -> Result<()> {
        let shared = Arc::new(Shared::default());
        let watched = Arc::new(checks::Watched::default());
        let mut watchers = JoinSet::new();
        for manager in 0..2 {
            let api = self.api_at("olga", manager, &shared)?;
            watchers.spawn_local(checks::watch(api, manager, Arc::clone(&watched)));
        }
        let analyst = spawn_local(people::a_long_query(self.api("ada", &shared)?));
        let mut people = JoinSet::new();
        for who in PEOPLE {
            for place in 0..AT_ONCE {
                people.spawn_local(people::work(self.api(who, &shared)?, who, place));
            }
        }
        // Children of a manager die with it, so only what is stored dies here.
        let engine = match victims {
            Victims::Managers { .. } => None,
            Victims::Redis | Victims::Primary(_) | Victims::Master { .. } => Some(self.stack.session(
                "ada",
                Engine::Sail,
                &["--idle-timeout", "8h"],
            )?),
        };
        let begun = Instant::now();
        while begun.elapsed() < time() {
            ensure!(
                !analyst.is_finished(),
                "the long query ended: {:?}",
                analyst.await
            );
            if let Some(early) = people.try_join_next() {
                early??;
                anyhow::bail!("somebody stopped working");
            }
            victims.strike(&mut self, &shared).await?;
        }
        shared.over.store(true, Ordering::Relaxed);
        let mut deeds: Vec<Deed> = Vec::new();
        while let Some(done) = people.join_next().await {
            deeds.extend(done??);
        }
        deeds.push(analyst.await??);
        checks::settled(&self, &shared, &watched, &deeds, engine.as_ref()).await?;
        watchers.shutdown().await;
        if let Some(engine) = engine {
            let shown = self.stack.show("ada", &engine)?;
            ensure!(shown["status"] == "active" && shown["generation"] == 1, "{shown}");
        }
        let longest = *shared.longest.lock().unwrap_or_else(PoisonError::into_inner);
        println!(
            "{what}: {:.0?}, {} deaths, {} sessions ({} closed by their owners), {} queries, {} calls \
             made again, the longest {longest:.1?}; {} changes seen, {} times anew",
            begun.elapsed(),
            shared.faults.load(Ordering::Relaxed),
            deeds.len(),
            deeds.iter().filter(|deed| deed.closed).count(),
            shared.queries.load(Ordering::Relaxed),
            shared.retries.load(Ordering::Relaxed),
            watched.changes(),
            watched.resets(),
        );
        ensure!(shared.faults.load(Ordering::Relaxed) > 0, "nothing died");
        Ok(())
    }
}

/// Each in turn, and now and then both.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn managers_are_killed() -> Result<()> {
    let churn = Churn::start(None).await?;
    churn.run("managers killed", Victims::Managers { next: 0 }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn redis_is_killed_and_reads_its_file_again() -> Result<()> {
    let churn = Churn::start(None).await?;
    churn.run("Redis killed", Victims::Redis).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn sentinels_choose_another_primary() -> Result<()> {
    let watched = Watched::start(2, &RedisOptions::default()).await?;
    let churn = Churn::start(Some(watched.url())).await?;
    churn.run("fail-overs", Victims::Primary(watched)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn masters_of_a_cluster_die() -> Result<()> {
    let cluster = PrivateCluster::start(3, true).await?;
    let churn = Churn::start(Some(cluster.url())).await?;
    churn
        .run("masters killed", Victims::Master { cluster, next: 0 })
        .await
}
