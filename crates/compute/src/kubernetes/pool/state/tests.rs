//! Pools without an API server: random events, failures, limits.

use super::*;
use crate::testing::kubernetes_cluster;
use session_core::Engine;
use std::collections::BTreeSet;

const LEASE: Duration = Duration::from_secs(100_000);
const MAX_STARTING: usize = 4;

fn key(n: u8) -> PoolKey {
    PoolKey(format!("pool-{n}"))
}

fn wanted(sizes: &[(u8, usize)]) -> BTreeMap<PoolKey, WarmPool> {
    let pool = |size| WarmPool {
        cluster: kubernetes_cluster(Engine::Sail),
        catalog: None,
        size,
    };
    sizes.iter().map(|(n, size)| (key(*n), pool(*size))).collect()
}

fn route() -> Route {
    Route {
        endpoint: "10.0.0.1:15002".into(),
        tls_server_name: None,
        credential: None,
        engine: Engine::Sail,
        engine_version: "1".into(),
        dedicated: true,
        host: None,
    }
}

/// The cluster: what exists, and what was claimed.
#[derive(Default)]
struct World {
    pools: Pools,
    pods: Vec<SeenPod>,
    made: u64,
    /// Session by uid of its pod.
    claimed: BTreeMap<String, u64>,
    sessions: u64,
    max_age: Option<Duration>,
}

impl World {
    fn pod(&mut self, key: PoolKey, name: String) {
        self.made += 1;
        self.pods.push(SeenPod {
            namespace: "sessions".into(),
            name,
            uid: format!("uid-{}", self.made),
            version: "1".into(),
            key,
            age: Duration::ZERO,
            is: SeenState::Waiting,
        });
    }

    /// A pass whose watch shows everything, and its effects but for questions.
    fn pass(&mut self, room: usize) -> Vec<Action> {
        let seen: Vec<_> = self
            .pods
            .iter()
            .filter(|pod| !self.claimed.contains_key(&pod.uid))
            .cloned()
            .collect();
        let limits = Limits {
            max_starting: MAX_STARTING,
            room,
            max_age: self.max_age,
        };
        let actions = self.pools.scan(seen, &limits);
        for action in &actions {
            match action {
                Action::Create(key) => {
                    let name = format!("warm-{}", self.made + 1);
                    self.pools.creating(key, &name);
                    self.pod(key.clone(), name);
                }
                Action::Delete { uid, .. } => self.pods.retain(|pod| pod.uid != *uid),
                Action::CreateSecret { .. } | Action::Ask { .. } => {}
            }
        }
        actions
    }

    fn run_all(&mut self) {
        for pod in &mut self.pods {
            pod.is = SeenState::Running("10.0.0.1".parse().unwrap());
        }
    }

    /// Passes until nothing is left to do.
    fn settle(&mut self) {
        for _ in 0..50 {
            self.run_all();
            for action in self.pass(1000) {
                if let Action::Ask { uid } = action {
                    self.pools.answered(&uid, route());
                }
            }
        }
    }

    fn available(&self) -> Vec<usize> {
        self.pools.status().iter().map(|pool| pool.available).collect()
    }

    fn claim(&mut self, key: &PoolKey, pick: u64) -> Option<String> {
        let reserved = self.pools.reserve(key, &pick.to_string(), Instant::now())?;
        self.pools.left(&reserved.uid);
        self.sessions += 1;
        let before = self.claimed.insert(reserved.uid.clone(), self.sessions);
        assert_eq!(before, None, "a pod for two sessions");
        Some(reserved.uid)
    }
}

#[tokio::test(start_paused = true)]
async fn pools_are_filled_within_the_limits() {
    let mut world = World::default();
    assert_eq!(world.pass(100), [], "nothing is known yet");
    world.pools.set(wanted(&[(1, 10), (2, 2)]), LEASE);
    assert_eq!(world.pass(100).len(), MAX_STARTING, "so many at a time");
    assert_eq!(world.pass(100), [], "these are starting");
    world.settle();
    assert_eq!(world.available(), [10, 2]);
    assert_eq!(world.pods.len(), 12);
    let mut small = World::default();
    small.pools.set(wanted(&[(1, 10)]), LEASE);
    assert_eq!(small.pass(3).len(), 3, "no more than there is room for");
    assert_eq!(small.pass(0), []);
}

#[tokio::test(start_paused = true)]
async fn scarce_room_goes_to_the_emptiest_pool() {
    let mut world = World::default();
    world.pools.set(wanted(&[(1, 8), (2, 4), (3, 4)]), LEASE);
    let have = |world: &World| [1, 2, 3].map(|n| world.pods.iter().filter(|pod| pod.key == key(n)).count());
    // Room for 8 of 16 pods: half of each pool.
    for room in [4, 4] {
        world.pass(room);
        world.run_all();
        for action in world.pass(0) {
            if let Action::Ask { uid } = action {
                world.pools.answered(&uid, route());
            }
        }
    }
    assert_eq!(have(&world), [4, 2, 2]);
    world.claim(&key(3), 0).unwrap();
    world.claim(&key(3), 1).unwrap();
    let left: Vec<_> = world
        .pods
        .iter()
        .filter(|pod| !world.claimed.contains_key(&pod.uid))
        .cloned()
        .collect();
    world.pods = left;
    world.pass(1);
    assert_eq!(have(&world), [4, 2, 1], "the empty one first");
}

#[tokio::test(start_paused = true)]
async fn old_pods_are_replaced_one_at_a_time() {
    let mut world = World {
        max_age: Some(Duration::from_secs(60)),
        ..World::default()
    };
    world.pools.set(wanted(&[(1, 3), (2, 1)]), LEASE);
    world.settle();
    let first: BTreeSet<String> = world.pods.iter().map(|pod| pod.uid.clone()).collect();
    for (n, pod) in world.pods.iter_mut().enumerate() {
        pod.age = Duration::from_secs(61 + u64::try_from(n).unwrap());
    }
    let deleted = |actions: &[Action]| {
        let all = actions.iter().filter_map(|action| match action {
            Action::Delete { uid, .. } => Some(uid.clone()),
            _ => None,
        });
        all.collect::<Vec<_>>()
    };
    let gone = deleted(&world.pass(100));
    assert_eq!(gone.len(), 2, "one of each pool: {gone:?}");
    for _ in 0..3 {
        assert_eq!(deleted(&world.pass(100)), Vec::<String>::new(), "not full again");
    }
    world.settle();
    assert_eq!(world.available(), [3, 1]);
    let now: BTreeSet<String> = world.pods.iter().map(|pod| pod.uid.clone()).collect();
    assert_eq!(first.intersection(&now).count(), 0, "all are new in the end");
    // While its pods fail, a pool keeps what it has.
    for pod in &mut world.pods {
        pod.age = Duration::from_secs(61);
    }
    world.pools.failed(&key(1), "no room");
    world.pools.failed(&key(2), "no room");
    assert_eq!(deleted(&world.pass(100)), Vec::<String>::new());
    world.max_age = None;
    tokio::time::advance(MAX_STOP).await;
    assert_eq!(deleted(&world.pass(100)), Vec::<String>::new(), "no maximum");
}

#[tokio::test(start_paused = true)]
async fn a_smaller_pool_loses_the_newest_and_no_reserved_pod() {
    let mut world = World::default();
    world.pools.set(wanted(&[(1, 4)]), LEASE);
    world.settle();
    for (n, pod) in world.pods.iter_mut().enumerate() {
        pod.age = Duration::from_secs(100 - u64::try_from(n).unwrap());
    }
    let oldest = world.pods[0].uid.clone();
    world.pass(100);
    let reserved = world.pools.reserve(&key(1), "s", Instant::now()).unwrap();
    world.pools.set(wanted(&[(1, 2)]), LEASE);
    world.settle();
    let left: BTreeSet<_> = world.pods.iter().map(|pod| pod.uid.clone()).collect();
    assert_eq!(left.len(), 2);
    assert!(left.contains(&reserved.uid) && left.contains(&oldest), "{left:?}");
}

#[tokio::test(start_paused = true)]
async fn failures_in_a_row_stop_a_pool_for_longer_and_longer() {
    let mut world = World::default();
    world.pools.set(wanted(&[(1, 4)]), LEASE);
    let fail_one = |world: &mut World| {
        let created: Vec<_> = world.pass(100);
        let count = created
            .iter()
            .filter(|action| matches!(action, Action::Create(_)))
            .count();
        world.pods.clear();
        world.pools.creating.clear();
        (0..count).for_each(|_| world.pools.failed(&key(1), "no room"));
        count
    };
    assert_eq!(fail_one(&mut world), 4);
    assert_eq!(world.pools.status()[0].stopped.as_deref(), Some("no room"));
    // The fourth failure came from a pod that was already starting.
    tokio::time::advance(MIN_STOP * 2).await;
    for pause in [4, 8, 15, 15] {
        assert_eq!(fail_one(&mut world), 1, "one attempt");
        tokio::time::advance(MIN_STOP * pause - Duration::from_millis(1)).await;
        assert_eq!(fail_one(&mut world), 0, "within the pause of {pause} min");
        tokio::time::advance(Duration::from_millis(1)).await;
    }
    world.settle();
    tokio::time::advance(MAX_STOP).await;
    world.settle();
    assert_eq!(
        (world.available(), world.pools.status()[0].stopped.clone()),
        (vec![4], None)
    );
}

#[tokio::test(start_paused = true)]
async fn pods_that_end_soon_after_they_answered_stop_a_pool() {
    let mut world = World::default();
    world.pools.set(wanted(&[(1, 2)]), LEASE);
    let end_all = |world: &mut World| {
        for pod in &mut world.pods {
            pod.is = SeenState::Failed("evicted".into());
        }
        world.pass(100);
    };
    for _ in 0..5 {
        world.settle();
        tokio::time::advance(EARLY_END).await;
        end_all(&mut world);
        assert_eq!(world.pools.status()[0].stopped, None, "they lived long enough");
        tokio::time::advance(CRASH_PAUSE).await;
    }
    world.settle();
    end_all(&mut world);
    assert_eq!(world.pools.status()[0].stopped, None, "two");
    tokio::time::advance(CRASH_PAUSE).await;
    world.settle();
    end_all(&mut world);
    let why = world.pools.status()[0].stopped.clone().unwrap();
    assert_eq!(why, "its pods end soon after they answered: evicted");
    for pause in [4, 8] {
        tokio::time::advance(MIN_STOP * pause).await;
        let created = world.pass(100).len();
        assert_eq!(created, 1, "one attempt");
        world.settle();
        end_all(&mut world);
        assert!(world.pools.status()[0].stopped.is_some());
    }
    tokio::time::advance(MAX_STOP).await;
    world.settle();
    world.claim(&key(1), 0).unwrap();
    world.settle();
    assert_eq!(world.available(), [2], "a claimed pod is a success");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_failed_counts_once() {
    let mut world = World::default();
    world.pools.set(wanted(&[(1, 1)]), LEASE);
    world.pass(100);
    let uid = world.pods[0].uid.clone();
    world.pass(100);
    for _ in 0..5 {
        world.pools.failed_pod(&uid, "crashed");
        world.pools.start_again(&uid);
    }
    assert_eq!(world.pools.status()[0].stopped, None);
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_changes_nothing_in_the_cluster() {
    let mut world = World::default();
    world.pools.set(wanted(&[(1, 3)]), Duration::from_secs(10));
    world.settle();
    tokio::time::advance(Duration::from_secs(10)).await;
    world.claim(&key(1), 0).unwrap();
    for pod in &mut world.pods {
        pod.is = SeenState::Failed("crashed".into());
    }
    assert_eq!(world.pass(100), []);
    world.pools.set(BTreeMap::new(), Duration::ZERO);
    assert_eq!(world.pass(100), []);
}

/// Random claims, failures, crashes of managers and definitions: no pod serves two
/// sessions, no claimed pod is deleted, and the pools are full in the end.
#[tokio::test(start_paused = true)]
async fn random_events_never_share_a_pod_and_pools_fill_up() {
    for seed in 1..=300u64 {
        let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut next = |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        let mut world = World::default();
        let mut sizes = vec![(1, 3), (2, 2)];
        world.pools.set(wanted(&sizes), LEASE);
        for _ in 0..120 {
            match next(8) {
                0 => drop(world.claim(&key(1), next(10))),
                1 => drop(world.claim(&key(2), next(10))),
                2 => world.run_all(),
                3 => {
                    let count = world.pods.len();
                    if count > 0 {
                        let which = usize::try_from(next(count as u64)).unwrap();
                        world.pods[which].is = SeenState::Failed("crashed".into());
                    }
                }
                4 => {
                    // Another manager takes over: it knows only what it sees.
                    world.pools = Pools::default();
                    world.pools.set(wanted(&sizes), LEASE);
                }
                5 => {
                    sizes[0].1 = usize::try_from(next(5)).unwrap() + 1;
                    world.pools.set(wanted(&sizes), LEASE);
                }
                6 => {
                    if let Some(reserved) =
                        world
                            .pools
                            .reserve(&key(1), &next(10).to_string(), Instant::now())
                    {
                        world.pools.give_back(&reserved);
                    }
                }
                _ => {
                    let claimed: BTreeSet<String> = world.claimed.keys().cloned().collect();
                    for action in world.pass(20) {
                        match action {
                            Action::Ask { uid } => world.pools.answered(&uid, route()),
                            Action::Delete { uid, .. } => assert!(!claimed.contains(&uid), "{seed}"),
                            Action::Create(_) | Action::CreateSecret { .. } => {}
                        }
                    }
                }
            }
            tokio::time::advance(Duration::from_millis(next(3000))).await;
        }
        for _ in 0..8 {
            tokio::time::advance(MAX_STOP).await;
            world.settle();
        }
        let full: Vec<usize> = sizes.iter().map(|(_, size)| *size).collect();
        assert_eq!(world.available(), full, "{seed}");
    }
}
