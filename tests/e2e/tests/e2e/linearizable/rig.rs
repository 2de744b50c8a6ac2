//! Two session-managers, two token-issuers, two proxies, and Redis under Sentinel, with a way that
//! can be cut before each part, and a clock of its own for each process.

use super::client::Places;
use super::clock::{Clocks, ProcessClock};
use anyhow::{Context as _, Result};
use e2e::{AnotherIssuer, AnotherManager, Link, LinkMode, Server, Service, Stack, StackOptions, free_port};
use std::net::SocketAddr;
use tempfile::TempDir;
use test_support::redis::{RedisOptions, Watched};

/// Servers of Redis: a primary and two replicas.
const REDIS: usize = 3;

/// Everything that runs.
pub(super) struct Rig {
    pub(super) stack: Stack,
    pub(super) manager: AnotherManager,
    pub(super) issuer: AnotherIssuer,
    pub(super) proxy: (Service, SocketAddr),
    pub(super) redis: Watched,
    pub(super) ways: Ways,
    pub(super) clocks: Vec<(&'static str, ProcessClock)>,
    _server: Server,
    _dir: TempDir,
}

/// The ways between the parts.
pub(super) struct Ways {
    /// To session-manager, from each proxy and each token-issuer.
    pub(super) managers: [Link; 4],
    /// To each server of Redis, from everybody.
    pub(super) redis: Vec<Link>,
}

impl Ways {
    /// All parts that they begin at or lead to.
    pub(super) const NAMES: [&'static str; 4] = ["proxy 0", "proxy 1", "issuer 0", "issuer 1"];

    pub(super) fn open(&self) {
        for link in self.managers.iter().chain(&self.redis) {
            link.set(LinkMode::Open);
        }
    }
}

const PROCESSES: [&str; 9] = [
    "manager 0",
    "manager 1",
    "issuer 0",
    "issuer 1",
    "proxy 0",
    "proxy 1",
    "redis 0",
    "redis 1",
    "redis 2",
];

/// Variables of a process: its clock, and its way to session-manager.
fn env(clocks: &[(&'static str, ProcessClock)], name: &str, way: Option<&Link>) -> Vec<(String, String)> {
    let clock = clocks.iter().find(|(of, _)| *of == name);
    let mut env = clock.map(|(_, clock)| clock.env.clone()).unwrap_or_default();
    env.extend(way.map(|way| {
        (
            "BERTH__MANAGER__URI".to_owned(),
            format!("http://{}", way.address),
        )
    }));
    env
}

async fn redis(clocks: &[(&'static str, ProcessClock)]) -> Result<(Watched, Vec<Link>)> {
    let (mut links, mut options) = (Vec::new(), Vec::new());
    for n in 0..REDIS {
        let own = free_port()?;
        let link = Link::to(vec![own]).await?;
        options.push(RedisOptions {
            // A server that was killed has what it acknowledged.
            appendonly: true,
            port: Some(own.port()),
            announced: Some(link.address),
            env: env(clocks, PROCESSES[6 + n], None),
            ..RedisOptions::default()
        });
        links.push(link);
    }
    Ok((Watched::start_each(options).await?, links))
}

impl Rig {
    pub(super) async fn start() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("berth-clocks-").tempdir()?;
        let made = Clocks::make(dir.path())?;
        let clocks: Vec<_> = PROCESSES
            .into_iter()
            .map(|name| Ok((name, made.clock(&name.replace(' ', "-"))?)))
            .collect::<Result<_>>()?;
        let server = Server::sail().await?;
        let (redis, redis_links) = redis(&clocks).await?;
        let managers = [
            Link::to(Vec::new()).await?,
            Link::to(Vec::new()).await?,
            Link::to(Vec::new()).await?,
            Link::to(Vec::new()).await?,
        ];
        let mut stack = Stack::prepare(&options(&server, &redis)).await?;
        for (service, name, way) in [
            (&mut stack.manager, "manager 0", None),
            (&mut stack.proxy, "proxy 0", Some(&managers[0])),
            (&mut stack.issuer, "issuer 0", Some(&managers[2])),
        ] {
            for (name, value) in env(&clocks, name, way) {
                service.set_env(&name, &value);
            }
        }
        for link in &managers {
            link.point_at(vec![stack.internal_address]);
        }
        stack.up().await.context("starting the stack")?;
        let manager = stack
            .another_manager_with(&env(&clocks, "manager 1", None))
            .await?;
        for link in &managers {
            link.point_at(vec![stack.internal_address, manager.internal]);
        }
        let issuer = stack
            .another_issuer_with(&env(&clocks, "issuer 1", Some(&managers[3])))
            .await?;
        let proxy = stack
            .another_proxy_with(&env(&clocks, "proxy 1", Some(&managers[1])))
            .await?;
        Ok(Self {
            stack,
            manager,
            issuer,
            proxy,
            redis,
            ways: Ways {
                managers,
                redis: redis_links,
            },
            clocks,
            _server: server,
            _dir: dir,
        })
    }

    pub(super) fn places(&self) -> Result<Places> {
        let of = |uri: &str| -> Result<SocketAddr> { Ok(uri.trim_start_matches("http://").parse()?) };
        Ok(Places {
            managers: [of(&self.stack.manager_uri)?, self.manager.public],
            internal: [self.stack.internal_address, self.manager.internal],
            issuers: [of(self.stack.issuer_uri())?, self.issuer.api],
            proxies: [self.stack.proxy_address, self.proxy.1],
        })
    }

    /// The ends of all logs, for a failure.
    pub(super) fn logs(&self) -> Vec<(&'static str, String)> {
        vec![
            ("manager-0", self.stack.manager.log()),
            ("manager-1", self.manager.service.log()),
            ("issuer-0", self.stack.issuer.log()),
            ("issuer-1", self.issuer.service.log()),
            ("proxy-0", self.stack.proxy.log()),
            ("proxy-1", self.proxy.0.log()),
        ]
    }
}

fn options(server: &Server, redis: &Watched) -> StackOptions {
    StackOptions {
        manager: format!(
            "limits.calls_per_second_per_principal = 0\nlimits.calls_per_second_per_address = 0\n\
             limits.failures_per_minute_per_address = 0\n\
             [[orgs]]\nname = \"acme\"\n[orgs.limits]\nlive_sessions_per_owner = 5000\n\
             live_sessions = 10000\ncreates_per_minute = 10000\n\
             [[clusters]]\nname = \"shared\"\nengine = \"sail\"\ngranted_orgs = [\"acme\"]\n\
             static.endpoints = [{{ address = \"{}\" }}]\n",
            server.address
        ),
        issuer: "limits.calls_per_second_per_address = 0\n".to_owned(),
        // So the longest time for which a proxy may use what it knows is 12 + 15 s.
        proxy: "routes.stale_if_unreachable = \"15s\"\n".to_owned(),
        store: Some(redis.url()),
        ..StackOptions::default()
    }
}
