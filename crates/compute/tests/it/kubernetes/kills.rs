//! A manager is killed at each of its requests to the API server; the next one
//! finishes what it began, and leaves nothing else.

use super::pools::{eventually, pool, sessions, set, status, warm_names, warm_spec};
use super::*;
use crate::support::fake_kube::Mortal;

/// More requests than one session needs, the refill of its pool included.
const REQUESTS: i64 = 16;
const POOL: usize = 2;

/// Plays scheduler and kubelet for all pods.
fn kubelet(fake: &FakeKube, ip: IpAddr) -> tokio::task::JoinHandle<()> {
    let fake = fake.clone();
    tokio::spawn(async move {
        loop {
            for name in fake.names("pods") {
                // As the kubelet does, which waits for the Secret that a pod mounts.
                let mounts = |pod: Value| pod["spec"]["volumes"].to_string().contains("secretName");
                let waits =
                    fake.object("pods", &name).is_some_and(mounts) && fake.object("secrets", &name).is_none();
                if !waits {
                    fake.place(&name, &running(ip));
                }
            }
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    })
}

/// Starts and releases a session until it is done or killed. Returns whether the
/// release had begun.
async fn life(manager: &KubernetesProvider, process: &Mortal, spec: &ComputeSpec) -> bool {
    let step = Duration::from_millis(5);
    // A call of a killed process does not return.
    let patience = Duration::from_millis(300);
    loop {
        let _ = tokio::time::timeout(patience, manager.ensure(spec)).await;
        let seen = tokio::time::timeout(patience, manager.observe(spec)).await;
        if matches!(seen, Ok(Ok(Observation::Ready { .. }))) {
            break;
        }
        if process.is_dead() {
            return false;
        }
        tokio::time::sleep(step).await;
    }
    loop {
        let _ = tokio::time::timeout(patience, manager.release(spec)).await;
        let seen = tokio::time::timeout(patience, manager.observe(spec)).await;
        if matches!(seen, Ok(Ok(Observation::Missing))) || process.is_dead() {
            return true;
        }
        tokio::time::sleep(step).await;
    }
}

/// Kills a manager at a request; the next one takes over.
async fn kill_at(request: i64, is_served: bool, engine: Engine, has_pool: bool, ip: IpAddr) -> bool {
    let what = format!("request {request}, served {is_served}, {engine}, pool {has_pool}");
    let fake = FakeKube::new();
    let kubelet = kubelet(&fake, ip);
    let spec = if has_pool {
        warm_spec(engine, 1, 1)
    } else {
        spec(engine, 1, 1)
    };
    let pools = || {
        if has_pool {
            vec![pool(engine, POOL)]
        } else {
            Vec::new()
        }
    };
    if has_pool {
        let first = provider(&fake);
        set(&first, pools());
        eventually(&what, || status(&first).available == POOL).await;
    }
    let process = Mortal::new(&fake, request, is_served);
    let config = provider_config();
    let killed = KubernetesProvider::new(config, process.client());
    set(&killed, pools());
    let is_released = life(&killed, &process, &spec).await;
    let was_killed = process.is_dead();
    drop(killed);
    let next = provider(&fake);
    set(&next, pools());
    provider_ready(&next, &spec).await;
    if !is_released {
        let begun = std::time::Instant::now();
        loop {
            next.ensure(&spec).await.unwrap();
            if matches!(next.observe(&spec).await, Ok(Observation::Ready { .. })) {
                break;
            }
            assert!(
                begun.elapsed() < Duration::from_secs(20),
                "{what}: {:?}",
                next.observe(&spec).await
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let served = sessions(&fake);
        assert_eq!(served.len(), 1, "{what}: {served:?}");
    }
    next.release(&spec).await.unwrap();
    until_missing(&next, &spec).await;
    let size = if has_pool { POOL } else { 0 };
    eventually(&format!("{what}: only the pool is left"), || {
        sessions(&fake).is_empty() && warm_names(&fake).len() == size && fake.names("pods").len() == size
    })
    .await;
    if has_pool {
        eventually(&format!("{what}: the pool is full"), || {
            status(&next).available == POOL
        })
        .await;
    }
    let secrets = if engine == Engine::Spark { size } else { 0 };
    assert_eq!(fake.names("secrets").len(), secrets, "{what}");
    kubelet.abort();
    was_killed
}

#[tokio::test]
async fn the_next_manager_finishes_after_a_kill_at_any_request() {
    let of_kind = async |engine, has_pool| {
        let ip = pod_ip();
        let _engine = FakeEngine::start(ip).await;
        let mut kills = 0;
        for request in 1..=REQUESTS {
            for is_served in [false, true] {
                kills += usize::from(kill_at(request, is_served, engine, has_pool, ip).await);
            }
        }
        kills
    };
    let (a, b, c, d) = tokio::join!(
        of_kind(Engine::Sail, false),
        of_kind(Engine::Spark, false),
        of_kind(Engine::Sail, true),
        of_kind(Engine::Spark, true),
    );
    let kills = a + b + c + d;
    assert!(kills >= 60, "{kills} kills");
}
