//! People and their programs: they create sessions, query them, and ask for
//! everything that can be asked, whenever they like.

use super::managers::Managers;
use super::proxies::{Proxies, Proxy};
use super::world::{World, short};
use session_core::machine::{self, Event, NewSession};
use session_core::policy::{PolicyRange, PolicyRequest};
use session_core::{
    Actor, ChangeReason, Cluster, ClusterStatus, Engine, IdlePolicy, Limits, Provider, SessionId, SessionKey,
    SessionPolicy, State,
};
use session_store::prelude::*;
use session_store::{Create, Kind};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);

pub(super) fn clusters() -> Vec<Cluster> {
    let cluster = |name: &str, idle_policy, provider| Cluster {
        name: name.parse().unwrap(),
        status: ClusterStatus::Active,
        engine: Engine::Sail,
        engine_version: None,
        client_versions: Vec::new(),
        granted_orgs: BTreeSet::default(),
        provider,
        idle_policy: Some(idle_policy),
        wake: Default::default(),
        policy: PolicyRange {
            provisioning_deadline: Some(Duration::from_secs(10)),
            ..PolicyRange::default()
        },
        managed_by_config: false,
        version: 0,
    };
    let process = || Provider::Process {
        program: "/opt/sail".to_owned(),
        java_home: None,
        properties: BTreeMap::default(),
        python: None,
        driver_memory: None,
    };
    let shared = Provider::Static {
        endpoints: Vec::new(),
        allow_shared_untrusted: false,
    };
    vec![
        cluster("release", IdlePolicy::Release, process()),
        cluster("keep", IdlePolicy::Keep, process()),
        cluster("shared", IdlePolicy::Keep, shared),
    ]
}

pub(super) async fn define(world: &World) {
    for cluster in clusters() {
        let json = serde_json::to_string(&cluster).unwrap();
        let name = cluster.name.to_string();
        let put = world.store.put_definition(Kind::Cluster, &name, 0, &json);
        put.await.unwrap();
    }
}

/// One person with one session.
pub(super) struct User {
    pub(super) world: Arc<World>,
    pub(super) managers: Arc<Managers>,
    pub(super) proxies: Arc<Proxies>,
    pub(super) n: u64,
}

impl User {
    pub(super) async fn live(self, first: Duration) {
        tokio::time::sleep(first).await;
        let Some(key) = self.create().await else { return };
        loop {
            let world = &self.world;
            // Often about as long as it takes to idle, to be given back, to close.
            let thinks = match world.below(6) {
                0 => world.between(0, 2000),
                1 => world.between(58_000, 63_000),
                2 => world.between(68_000, 76_000),
                3 => world.between(100_000, 140_000),
                4 | 5 => world.between(1000, 60_000),
                _ => unreachable!(),
            };
            tokio::time::sleep(thinks).await;
            let over = match world.below(20) {
                0..=12 => self.query(&key).await,
                13 => {
                    let until = world.now().after(world.between(1000, 200_000));
                    self.ask(&key, Event::KeepAlive { until }).await
                }
                14 => {
                    let expires_at = world.now().after(world.between(1000, 900_000));
                    self.ask(&key, Event::Extend { expires_at }).await
                }
                15 | 16 => self.ask(&key, Event::Wake).await,
                17 => self.ask(&key, Event::RevokeTokens).await,
                18 => {
                    let name = Some(Some(world.below(9).to_string()));
                    self.ask(&key, Event::Update { name, labels: None }).await
                }
                19 => {
                    let reason = ChangeReason::CloseRequested;
                    world.one_in(3) && self.ask(&key, Event::Close { reason }).await
                }
                _ => unreachable!(),
            };
            if over {
                return;
            }
        }
    }

    /// As the API does it: what was created is started and looked at.
    async fn create(&self) -> Option<SessionKey> {
        let world = &self.world;
        let clusters = clusters();
        let cluster = &clusters[usize::try_from(world.below(10).min(8) % 4 % 3).unwrap()];
        let close_after_idle = match world.below(4) {
            0 => Duration::ZERO,
            1 => world.between(5_000, 60_000),
            2 => world.between(60_000, 200_000),
            3 => world.between(301_000, 420_000),
            _ => unreachable!(),
        };
        let asked = PolicyRequest {
            idle_timeout: Some(MINUTE),
            close_after_idle: Some(close_after_idle),
            max_lifetime: Some(world.between(600_000, 900_000)),
        };
        let policy = SessionPolicy::resolve(cluster, &asked).unwrap();
        for _ in 0..20 {
            let manager = self.managers.any();
            let new = || async {
                let now = manager.store.now().await.ok()?;
                let id = SessionId::generate(now, world.random());
                let change = machine::create(
                    NewSession {
                        id: id.clone(),
                        org: "acme".parse().unwrap(),
                        owner: format!("sa|user-{}", self.n).parse().unwrap(),
                        name: None,
                        team: None,
                        labels: BTreeMap::default(),
                        cluster: cluster.name.clone(),
                        catalog: None,
                        policy: policy.clone(),
                    },
                    now,
                );
                let key = change.session.key();
                // Also one whose answer is lost is there, and must be looked after.
                world.state().sessions.insert(key.clone());
                world.note(
                    &manager.run.name,
                    format_args!("creates {} on {}", short(&key), cluster.name),
                );
                let created = manager.store.create(Create {
                    session: change.session,
                    record: change.record,
                    due: now.after(machine::RECHECK),
                    request: None,
                    limits: Limits::default(),
                });
                let created = created.await;
                if world.recorded(&key).is_none() {
                    world.state().sessions.remove(&key);
                }
                let created = created.ok()?;
                manager
                    .reconciler
                    .start_new(&created.session, &change.effects, cluster, None)
                    .await;
                manager.reconciler.enqueue(key.clone());
                Some(key)
            };
            match tokio::time::timeout(Duration::from_secs(20), new()).await {
                Ok(Some(key)) => return Some(key),
                Ok(None) | Err(_) => tokio::time::sleep(world.between(100, 3000)).await,
            }
        }
        None
    }

    /// True if the session is over.
    async fn ask(&self, key: &SessionKey, event: Event) -> bool {
        let manager = self.managers.any();
        let (who, key, name) = (self.n, key.clone(), manager.run.name.clone());
        self.world
            .note(&name, format_args!("is asked of {}: {event:?}", short(&key)));
        // A manager goes on when whoever asked has left.
        let asking = tokio::spawn(async move {
            let actor = Actor::Principal(format!("sa|user-{who}").parse().unwrap());
            let answer = manager.reconciler.ask(&key, &event, &actor, |_| Ok(())).await;
            if answer.is_ok() {
                manager.reconciler.enqueue(key);
            }
            answer.is_ok_and(|(session, _)| session.status().is_terminal())
        });
        matches!(
            tokio::time::timeout(Duration::from_secs(10), asking).await,
            Ok(Ok(true))
        )
    }

    /// A call: finds its route as a proxy does, wakes the session if need be,
    /// and runs. True if the session is over.
    async fn query(&self, key: &SessionKey) -> bool {
        let world = &self.world;
        let proxy = self.proxies.any();
        let until = world.elapsed() + Duration::from_secs(50);
        while world.elapsed() < until && !proxy.gone.is_cancelled() {
            let manager = self.managers.any();
            let asked = tokio::time::timeout(Duration::from_secs(5), manager.store.get(key));
            let Ok(Ok(Some(session))) = asked.await else {
                tokio::time::sleep(Duration::from_millis(500)).await;
                continue;
            };
            match session.state {
                State::Active { .. } => {
                    // What happens meanwhile, the proxy has not heard of yet.
                    if world.one_in(3) {
                        tokio::time::sleep(world.between(0, 900)).await;
                    }
                    if world.one_in(8) {
                        self.burst(&proxy, key, session.generation).await;
                        return false;
                    }
                    let length = match world.below(4) {
                        0 => world.between(1, 500),
                        1 => world.between(500, 10_000),
                        2 => world.between(10_000, 70_000),
                        3 => world.between(70_000, 240_000),
                        _ => unreachable!(),
                    };
                    proxy.call(key, session.generation, length).await;
                    return false;
                }
                State::IdleKept { .. } | State::IdleReleasing { .. } | State::IdleReleased { .. } => {
                    self.ask(key, Event::Wake).await;
                }
                State::Pending { .. } => {}
                State::Closed | State::Failed => return true,
            }
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
        false
    }

    /// A program of many short calls, most of which are mere activity.
    async fn burst(&self, proxy: &Proxy, key: &SessionKey, generation: u64) {
        for _ in 0..self.world.between(2, 40).as_millis() {
            proxy.call(key, generation, self.world.between(1, 300)).await;
            tokio::time::sleep(self.world.between(1, 2000)).await;
        }
    }
}
