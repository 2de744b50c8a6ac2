//! Redis as operators run it, with its faults: TLS and users at sentinels and in a cluster,
//! rights that are taken away, slots that move, a full disk, no memory left. Nothing that was
//! acknowledged is lost, errors name cause and advice, the admin port shows the fault, and
//! all services continue by themselves once it is over.
//!
//! `REDIS_SECONDS=60` makes each phase longer (`make redis-faults`).

mod callers;
mod engine;
mod history;
mod rig;

use anyhow::{Result, ensure};
use e2e::wait;
use rig::{LIMIT, Rig};
use session_store::redis::{Credentials, Options, RedisStore};
use std::path::Path;
use std::time::{Duration, Instant};
use test_support::redis::{PrivateCluster, PrivateRedis, RedisOptions, Secured, Watched};

const DISK: &str = "cannot write to its disk";
const RIGHTS: &str = "rejects the credentials or the rights";

/// How long each phase lasts: before, during and after a fault.
fn phase() -> Duration {
    let seconds = std::env::var("REDIS_SECONDS").ok().and_then(|n| n.parse().ok());
    Duration::from_secs(seconds.unwrap_or(1))
}

async fn pass() {
    tokio::time::sleep(phase()).await;
}

fn with(secured: &Secured) -> RedisOptions {
    RedisOptions {
        secured: Some(secured.clone()),
        ..RedisOptions::default()
    }
}

/// Waits until a replica has everything that the primary has now.
async fn replicated(primary: &PrivateRedis) -> Result<()> {
    let number = |info: &str, name: &str| -> Option<u64> {
        let text = info
            .split([',', '\n'])
            .find_map(|part| part.trim().strip_prefix(name))?;
        text.parse().ok()
    };
    let info = primary.command("INFO replication").await?;
    let written = number(&info, "master_repl_offset:").unwrap_or(u64::MAX);
    wait::until("a replica has it", LIMIT, async || {
        let info = primary
            .command("INFO replication")
            .await
            .map_err(|error| error.to_string())?;
        let mut replicas = info.lines().filter(|line| line.starts_with("slave"));
        let has = |line: &str| number(line, "offset=").is_some_and(|offset| offset >= written);
        replicas.any(has).then_some(()).ok_or(info)
    })
    .await
}

/// Berth's user is at this server over TLS only, and never lacked a right.
async fn over_tls_with_all_rights(server: &PrivateRedis) -> Result<usize> {
    let clients = server.command("CLIENT LIST").await?;
    let ours: Vec<&str> = clients
        .lines()
        .filter(|line| line.contains(&format!(" user={} ", Secured::USER)))
        .collect();
    let tls = format!(" laddr=127.0.0.1:{} ", server.data_port());
    ensure!(
        ours.iter().all(|line| line.contains(&tls)),
        "not over TLS: {ours:#?}"
    );
    ensure!(server.data_port() != server.address().port(), "without TLS");
    let denied = server.command("ACL LOG").await?;
    ensure!(denied == "*0\r\n", "rights are missing: {denied}");
    Ok(ours.len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn sentinels_with_tls_and_users_choose_another_primary() -> Result<()> {
    let secured = Secured::as_documented()?;
    let mut watched = Watched::start(2, &with(&secured)).await?;
    let rig = Rig::start(watched.url(), Some(&secured)).await?;
    let (work, begun) = (rig.work().await?, Instant::now());
    pass().await;
    work.goes_on().await?;
    let old = watched.primary().await?;
    ensure!(
        over_tls_with_all_rights(&watched.servers[old]).await? >= 2,
        "two managers"
    );
    work.shared
        .between_calls(async || {
            replicated(&watched.servers[old]).await?;
            watched.servers[old].kill9()
        })
        .await?;
    let new = wait::until("another primary", LIMIT, async || match watched.primary().await {
        Ok(new) if new != old => Ok(new),
        other => Err(format!("{other:?}")),
    })
    .await?;
    work.goes_on().await?;
    pass().await;
    ensure!(
        over_tls_with_all_rights(&watched.servers[new]).await? >= 2,
        "two managers"
    );
    for denied in watched.ask_sentinels("ACL LOG").await? {
        ensure!(denied == "*0\r\n", "rights are missing at a sentinel: {denied}");
    }
    rig.settled(&work.end("fail-over with TLS and users", begun).await?)
        .await?;

    let wrong = Options {
        sentinel_credentials: Credentials {
            password: Some("wrong".to_owned()),
            ..rig.options().sentinel_credentials.clone()
        },
        ..rig.options().clone()
    };
    let refused = RedisStore::connect(&watched.url(), &wrong).await;
    let refused = refused.err().map(|error| error.to_string()).unwrap_or_default();
    ensure!(
        refused.contains("no sentinel names the primary") && refused.contains("(access)"),
        "{refused}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_cluster_with_tls_and_users_loses_a_master() -> Result<()> {
    let secured = Secured::as_documented()?;
    let mut cluster = PrivateCluster::start_with(3, true, with(&secured)).await?;
    let rig = Rig::start(cluster.url(), Some(&secured)).await?;
    let (work, begun) = (rig.work().await?, Instant::now());
    pass().await;
    work.goes_on().await?;
    for master in &cluster.servers[..3] {
        ensure!(over_tls_with_all_rights(master).await? >= 2, "two managers");
    }
    let dies = cluster.master_of(cluster.slot_of(&tag_of("acme")?).await?);
    work.shared
        .between_calls(async || {
            replicated(&cluster.servers[dies]).await?;
            cluster.servers[dies].kill9()
        })
        .await?;
    work.goes_on().await?;
    // A replica took over: all callers work, those of the lost partition too.
    cluster.servers[3 + dies].wait_for("ROLE", "master").await?;
    work.goes_on().await?;
    pass().await;
    for server in cluster.servers.iter().filter(|server| server.is_running()) {
        over_tls_with_all_rights(server).await?;
    }
    rig.settled(
        &work
            .end("a master of a cluster with TLS and users", begun)
            .await?,
    )
    .await
}

/// The hash tag of the keys of an organization.
fn tag_of(org: &str) -> Result<String> {
    let org: session_core::OrgId = org.parse()?;
    Ok(format!("{{p{:02}}}", org.partition()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn rights_are_taken_away_and_given_back() -> Result<()> {
    let secured = Secured::as_documented()?;
    let redis = PrivateRedis::start_with(with(&secured)).await?;
    let rig = Rig::start(redis.url(), Some(&secured)).await?;
    let (work, begun) = (rig.work().await?, Instant::now());
    pass().await;
    work.goes_on().await?;
    let rule = async |rule: &str| {
        let answer = redis
            .command(&format!("ACL SETUSER {} {rule}", Secured::USER))
            .await?;
        ensure!(answer == "+OK\r\n", "{rule}: {answer}");
        anyhow::Ok(())
    };
    // One right of a script; the other calls continue.
    rule("-xadd").await?;
    work.is_refused("create", RIGHTS).await?;
    rule("+xadd").await?;
    work.goes_on().await?;
    // All keys.
    rule("resetkeys").await?;
    rig.managers_show(
        "/readyz",
        "state store (it rejects the credentials or the rights)",
    )
    .await?;
    rig.managers_show(
        "/metrics",
        "session_manager_store_unavailable{cause=\"access\"} 1",
    )
    .await?;
    for deed in ["create", "rename", "issue", "close"] {
        work.is_refused(deed, RIGHTS).await?;
    }
    rule("~berth:*").await?;
    rig.managers_are_ready().await?;
    work.goes_on().await?;
    // The password, and with it all connections.
    rule("resetpass").await?;
    redis.command("CLIENT KILL USER berth").await?;
    rig.managers_show(
        "/readyz",
        "state store (it rejects the credentials or the rights)",
    )
    .await?;
    rule(&format!(">{}", Secured::PASSWORD)).await?;
    rig.managers_are_ready().await?;
    work.goes_on().await?;
    pass().await;
    rig.settled(&work.end("rights", begun).await?).await
}

/// The slots of both organizations and of what all share move to the next master and back, key
/// by key; one of them stands half-way for longer than a call may take.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn slots_move_under_load() -> Result<()> {
    let secured = Secured::as_documented()?;
    let cluster = PrivateCluster::start_with(3, false, with(&secured)).await?;
    let rig = Rig::start(cluster.url(), Some(&secured)).await?;
    let (work, begun) = (rig.work().await?, Instant::now());
    pass().await;
    work.goes_on().await?;
    let (mut moved, mut first) = (0, true);
    while first || begun.elapsed() < phase() * 3 {
        for tag in [tag_of("acme")?, tag_of("umbrella")?, "{g}".to_owned()] {
            let slot = cluster.slot_of(&tag).await?;
            let home = cluster.master_of(slot);
            for (from, to) in [(home, (home + 1) % 3), ((home + 1) % 3, home)] {
                let moving = cluster.begin_move(slot, from, to).await?;
                moved += moving.move_keys(20).await?;
                if first {
                    // Its keys are at two servers.
                    work.is_refused("create", "is moving to another server").await?;
                    first = false;
                }
                for _ in 0..10 {
                    moved += moving.move_keys(20).await?;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                moving.end().await?;
                work.goes_on().await?;
            }
        }
    }
    pass().await;
    ensure!(moved > 0, "no key was moved");
    for server in &cluster.servers {
        over_tls_with_all_rights(server).await?;
    }
    rig.settled(&work.end("slots that move", begun).await?).await
}

fn appendonly(fsync: &str) -> RedisOptions {
    RedisOptions {
        appendonly: true,
        more: ["--appendfsync", fsync].map(str::to_owned).to_vec(),
        ..RedisOptions::default()
    }
}

/// Leaves the append-only file this much room, as a disk that is almost full.
fn leave(redis: &PrivateRedis, bytes: u64) -> Result<()> {
    let file = redis
        .dir()
        .join(Path::new("appendonlydir/appendonly.aof.1.incr.aof"));
    redis.limit_files(Some(std::fs::metadata(file)?.len() + bytes))
}

/// Redis continues and rejects all changes; nothing that it acknowledged before is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_full_disk_stops_changes_until_there_is_room() -> Result<()> {
    let mut redis = PrivateRedis::start_with(appendonly("everysec")).await?;
    let mut rig = Rig::start(redis.url(), None).await?;
    let (work, begun) = (rig.work().await?, Instant::now());
    pass().await;
    work.goes_on().await?;
    leave(&redis, 20_000)?;
    rig.managers_show("/readyz", &format!("state store (it {DISK})"))
        .await?;
    rig.managers_show("/metrics", "session_manager_store_unavailable{cause=\"disk\"} 1")
        .await?;
    for deed in ["create", "rename", "issue", "close"] {
        work.is_refused(deed, DISK).await?;
    }
    rig.reads_go_on().await?;
    work.a_new_client_is_refused(DISK).await?;
    pass().await;
    redis.limit_files(None)?;
    rig.managers_are_ready().await?;
    work.goes_on().await?;
    pass().await;
    let stories = work.end("a full disk", begun).await?;
    rig.settled(&stories).await?;
    // What was acknowledged is in the file, too.
    redis.kill9()?;
    redis.restart().await?;
    rig.settled(&stories).await?;
    leave(&redis, 0)?;
    rig.managers_show("/readyz", &format!("state store (it {DISK})"))
        .await?;
    rig.a_manager_starts("MISCONF", || redis.limit_files(None))
        .await?;
    rig.settled(&stories).await
}

/// The default configuration of Redis: snapshots, and no changes after one that failed.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_full_disk_fails_snapshots() -> Result<()> {
    let redis = PrivateRedis::start_with(RedisOptions {
        more: ["--save", "1 1"].map(str::to_owned).to_vec(),
        ..RedisOptions::default()
    })
    .await?;
    let rig = Rig::start(redis.url(), None).await?;
    let (work, begun) = (rig.work().await?, Instant::now());
    pass().await;
    work.goes_on().await?;
    redis.limit_files(Some(4096))?;
    rig.managers_show("/readyz", &format!("state store (it {DISK})"))
        .await?;
    work.is_refused("create", DISK).await?;
    redis.limit_files(None)?;
    rig.managers_are_ready().await?;
    work.goes_on().await?;
    rig.settled(&work.end("snapshots that fail", begun).await?).await
}

/// `min-replicas-to-write 1`, and the only replica dies.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn without_replicas_changes_stop_until_one_is_back() -> Result<()> {
    let settings = ["--min-replicas-to-write", "1", "--min-replicas-max-lag", "2"];
    let primary = PrivateRedis::start_with(RedisOptions {
        more: settings.map(str::to_owned).to_vec(),
        ..RedisOptions::default()
    })
    .await?;
    let mut replica = PrivateRedis::start().await?;
    replica.follow(&primary).await?;
    let rig = Rig::start(primary.url(), None).await?;
    let (work, begun) = (rig.work().await?, Instant::now());
    pass().await;
    work.goes_on().await?;
    replica.kill9()?;
    rig.managers_show("/readyz", "state store (too few replicas)")
        .await?;
    rig.managers_show(
        "/metrics",
        "session_manager_store_unavailable{cause=\"replicas\"} 1",
    )
    .await?;
    for deed in ["create", "close"] {
        work.is_refused(deed, "has too few replicas").await?;
    }
    rig.reads_go_on().await?;
    replica.restart().await?;
    replica.follow(&primary).await?;
    rig.managers_are_ready().await?;
    work.goes_on().await?;
    rig.settled(&work.end("no replica", begun).await?).await
}

/// With `appendfsync always` Redis ends when it cannot write.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_full_disk_ends_a_redis_that_writes_before_it_answers() -> Result<()> {
    let mut redis = PrivateRedis::start_with(appendonly("always")).await?;
    let rig = Rig::start(redis.url(), None).await?;
    let (work, begun) = (rig.work().await?, Instant::now());
    pass().await;
    work.goes_on().await?;
    leave(&redis, 20_000)?;
    // Once more with the disk as full as before.
    for _ in 0..2 {
        wait::until("Redis ends", LIMIT, async || {
            (!redis.is_running())
                .then_some(())
                .ok_or_else(|| "it runs".to_owned())
        })
        .await?;
        rig.managers_show("/readyz", "state store (unreachable)").await?;
        redis.restart().await?;
        leave(&redis, 0)?;
    }
    wait::until("Redis ends", LIMIT, async || {
        (!redis.is_running())
            .then_some(())
            .ok_or_else(|| "it runs".to_owned())
    })
    .await?;
    redis.restart().await?;
    rig.managers_are_ready().await?;
    work.goes_on().await?;
    pass().await;
    rig.settled(&work.end("a full disk that ends Redis", begun).await?)
        .await
}

/// First the reserve for changes that end something, then nothing is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn without_memory_nothing_new_is_accepted_and_everything_can_end() -> Result<()> {
    let redis = PrivateRedis::start().await?;
    let rig = Rig::start(redis.url(), None).await?;
    let (work, begun) = (rig.work().await?, Instant::now());
    pass().await;
    work.goes_on().await?;
    // Large compared to connection buffers.
    redis.command("SETRANGE filler 30000000 x").await?;
    let used = used_memory(&redis).await?;
    for limit in [used * 10 / 9, used / 2] {
        redis.command(&format!("CONFIG SET maxmemory {limit}")).await?;
        rig.managers_show(
            "/metrics",
            &format!("session_manager_store_memory_limit_bytes {limit}"),
        )
        .await?;
        for deed in ["create", "issue"] {
            work.is_refused(deed, "short of memory").await?;
        }
        rig.reads_go_on().await?;
        // Renames, revocations and closes.
        work.goes_on().await?;
        rig.managers_are_ready().await?;
        pass().await;
    }
    work.a_new_client_is_refused("short of memory").await?;
    let memory = rig.memory().await?;
    ensure!(
        memory.is_some_and(|memory| memory.used > memory.limit),
        "{memory:?}"
    );
    redis.command("CONFIG SET maxmemory 0").await?;
    let creates_again = async || {
        let id = uuid::Uuid::new_v4().to_string();
        rig.creates(&id).await.map_err(|error| error.to_string())
    };
    wait::until("creates are accepted", LIMIT, creates_again).await?;
    work.goes_on().await?;
    let refused = work.shared.refused();
    let ends = ["rename", "close", "revoke"];
    ensure!(
        !refused.keys().any(|refusal| ends.contains(&refusal.deed)),
        "{refused:?}"
    );
    rig.settled(&work.end("no memory", begun).await?).await
}

async fn used_memory(redis: &PrivateRedis) -> Result<u64> {
    let info = redis.command("INFO memory").await?;
    let used = info.lines().find_map(|line| line.strip_prefix("used_memory:"));
    Ok(used.unwrap_or_default().trim().parse()?)
}
