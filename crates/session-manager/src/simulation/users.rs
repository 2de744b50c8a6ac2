//! Users and their programs: they create sessions, query them, and send every kind
//! of request at random times.

use super::managers::{Manager, Managers};
use super::proxies::{Proxies, Proxy};
use super::world::{World, short};
use crate::fixtures;
use session_core::machine::{self, Event, NewSession};
use session_core::policy::{PolicyRange, PolicyRequest};
use session_core::{Actor, ChangeReason, Cluster, IdlePolicy, Limits, SessionKey, SessionPolicy, State};
use session_store::Create;
use std::sync::Arc;
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);

pub(super) fn clusters() -> Vec<Cluster> {
    let cluster = |name: &str, idle_policy, like: Cluster| Cluster {
        name: name.parse().unwrap(),
        idle_policy: Some(idle_policy),
        policy: PolicyRange {
            provisioning_deadline: Some(Duration::from_secs(10)),
            ..PolicyRange::default()
        },
        ..like
    };
    vec![
        cluster("release", IdlePolicy::Release, fixtures::cluster()),
        cluster("keep", IdlePolicy::Keep, fixtures::cluster()),
        cluster("shared", IdlePolicy::Keep, fixtures::shared_cluster()),
    ]
}

pub(super) async fn define(world: &World) {
    for cluster in clusters() {
        fixtures::define(&world.store, &cluster).await;
    }
}

/// One user with one session.
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
            // Often near the times of the idle timeout, the release and the close.
            let thinks = match world.below(6) {
                0 => world.between(0, 2000),
                1 => world.between(58_000, 63_000),
                2 => world.between(68_000, 76_000),
                3 => world.between(100_000, 140_000),
                4 | 5 => world.between(1000, 60_000),
                _ => unreachable!(),
            };
            tokio::time::sleep(thinks).await;
            let ended = match world.below(20) {
                0..=12 => self.query(&key).await,
                13 => {
                    let until = world.now().after(world.between(1000, 200_000));
                    self.request(&key, Event::KeepAlive { until }).await
                }
                14 => {
                    let expires_at = world.now().after(world.between(1000, 900_000));
                    self.request(&key, Event::Extend { expires_at }).await
                }
                15 | 16 => self.request(&key, Event::Wake).await,
                17 => self.request(&key, Event::RevokeTokens).await,
                18 => {
                    let name = Some(Some(world.below(9).to_string()));
                    self.request(&key, Event::Update { name, labels: None }).await
                }
                19 => {
                    let reason = ChangeReason::CloseRequested;
                    world.one_in(3) && self.request(&key, Event::Close { reason }).await
                }
                _ => unreachable!(),
            };
            if ended {
                return;
            }
        }
    }

    /// Creates the session as the API does, with retries.
    async fn create(&self) -> Option<SessionKey> {
        let world = &self.world;
        let (cluster, policy) = self.choose_policy();
        for _ in 0..20 {
            let manager = self.managers.any();
            let creating = self.create_on(&manager, &cluster, &policy);
            match tokio::time::timeout(Duration::from_secs(20), creating).await {
                Ok(Some(key)) => return Some(key),
                Ok(None) | Err(_) => tokio::time::sleep(world.between(100, 3000)).await,
            }
        }
        None
    }

    fn choose_policy(&self) -> (Cluster, SessionPolicy) {
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
        let requested = PolicyRequest {
            idle_timeout: Some(MINUTE),
            close_after_idle: Some(close_after_idle),
            max_lifetime: Some(world.between(600_000, 900_000)),
        };
        let policy = SessionPolicy::resolve(cluster, &requested).unwrap();
        (cluster.clone(), policy)
    }

    async fn create_on(
        &self,
        manager: &Manager,
        cluster: &Cluster,
        policy: &SessionPolicy,
    ) -> Option<SessionKey> {
        let world = &self.world;
        let now = manager.store.now().await.ok()?;
        let change = machine::create(
            NewSession {
                owner: format!("sa|user-{}", self.n).parse().unwrap(),
                policy: policy.clone(),
                ..fixtures::new_session(world.random(), cluster, now)
            },
            now,
        );
        let key = change.session.key();
        // A session whose response is lost exists too and is checked.
        world.state().sessions.insert(key.clone());
        world.stimulate(&key);
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
    }

    /// Sends a request to a manager. True if the session has ended.
    async fn request(&self, key: &SessionKey, event: Event) -> bool {
        let manager = self.managers.any();
        self.world.stimulate(key);
        let (who, key, name) = (self.n, key.clone(), manager.run.name.clone());
        self.world.note(
            &name,
            format_args!("gets a request for {}: {event:?}", short(&key)),
        );
        // The manager continues if the caller disconnects.
        let request = tokio::spawn(async move {
            let actor = Actor::Principal(format!("sa|user-{who}").parse().unwrap());
            let response = manager.reconciler.apply(&key, &event, &actor, |_| Ok(())).await;
            if response.is_ok() {
                manager.reconciler.enqueue(key);
            }
            response.is_ok_and(|(session, _)| session.status().is_terminal())
        });
        matches!(
            tokio::time::timeout(Duration::from_secs(10), request).await,
            Ok(Ok(true))
        )
    }

    /// A call: resolves its route as a proxy does, wakes the session if necessary,
    /// and runs. True if the session has ended.
    async fn query(&self, key: &SessionKey) -> bool {
        let world = &self.world;
        let proxy = self.proxies.any();
        let until = world.elapsed() + Duration::from_secs(50);
        while world.elapsed() < until && !proxy.gone.is_cancelled() {
            let manager = self.managers.any();
            let read = tokio::time::timeout(Duration::from_secs(5), manager.store.get(key));
            let Ok(Ok(Some(session))) = read.await else {
                tokio::time::sleep(Duration::from_millis(500)).await;
                continue;
            };
            match session.state {
                State::Active { .. } => {
                    // The proxy's route may be outdated by then.
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
                    self.request(key, Event::Wake).await;
                }
                State::Pending { .. } => {}
                State::Closed | State::Failed => return true,
            }
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
        false
    }

    /// A program with many short calls.
    async fn burst(&self, proxy: &Proxy, key: &SessionKey, generation: u64) {
        for _ in 0..self.world.between(2, 40).as_millis() {
            proxy.call(key, generation, self.world.between(1, 300)).await;
            tokio::time::sleep(self.world.between(1, 2000)).await;
        }
    }
}
