//! What dies, and comes back.

use super::{Churn, PrivateCluster, PrivateRedis, Shared, Watched};
use anyhow::{Context as _, Result, ensure};
use e2e::wait;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

const BETWEEN: Duration = Duration::from_secs(3);
const AWAY: Duration = Duration::from_millis(1500);
const FAIL_OVER: Duration = Duration::from_secs(60);

/// What dies.
pub(super) enum Victims {
    Managers {
        next: usize,
    },
    /// The stack's own.
    Redis,
    Primary(Watched),
    Master {
        cluster: PrivateCluster,
        next: usize,
    },
}

impl Victims {
    /// One dies, and comes back.
    pub(super) async fn strike(&mut self, churn: &mut Churn, shared: &Shared) -> Result<()> {
        shared.pause(BETWEEN).await;
        shared.faults.fetch_add(1, Ordering::Relaxed);
        match self {
            Self::Managers { next } => {
                let (first, second) = (*next % 4 != 1, *next % 4 != 0);
                *next += 1;
                if first {
                    churn.stack.manager.kill9().await?;
                }
                if second {
                    churn.second.service.kill9().await?;
                }
                shared.pause(AWAY).await;
                if first {
                    churn.stack.manager.start_ready().await?;
                }
                if second {
                    churn.second.service.start_ready().await?;
                }
            }
            Self::Redis => {
                churn.stack.redis.kill9()?;
                shared.pause(AWAY).await;
                churn.stack.redis.restart().await?;
            }
            Self::Primary(watched) => {
                let old = watched.primary().await?;
                has_a_replica_that_follows(watched.servers[old].address()).await?;
                watched.servers[old].kill9()?;
                let new = wait::until("another primary", FAIL_OVER, async || {
                    match watched.primary().await {
                        Ok(new) if new != old => Ok(new),
                        other => Err(format!("{other:?}")),
                    }
                })
                .await?;
                // As a replica, with what the new primary has.
                let [old, new] = watched.servers.get_disjoint_mut([old, new])?;
                old.restart().await?;
                old.follow(new).await?;
            }
            Self::Master { cluster, next } => {
                let master = nth_master(&cluster.servers, *next).await?;
                *next += 1;
                let id = cluster.id(master).await?;
                cluster.servers[master].kill9()?;
                let rest: Vec<&PrivateRedis> = cluster
                    .servers
                    .iter()
                    .enumerate()
                    .filter_map(|(n, server)| (n != master).then_some(server))
                    .collect();
                wait::until("a replica in its place", FAIL_OVER, async || {
                    in_its_place(&rest, &id).await
                })
                .await?;
                cluster.servers[master].restart().await?;
                cluster.servers[master]
                    .wait_for("INFO replication", "master_link_status:up")
                    .await?;
            }
        }
        Ok(())
    }
}

/// Waits until a replica has all that the primary wrote so far. Creates and names
/// are not waited for (docs/known-limits.md), so a replica that is seconds behind
/// on a busy machine would lose some by design.
async fn has_a_replica_that_follows(primary: SocketAddr) -> Result<()> {
    let mut tcp = TcpStream::connect(primary).await?;
    tcp.write_all(b"SET churn:probe 1\r\nWAIT 1 10000\r\n").await?;
    let mut replies = BufReader::new(tcp).lines();
    let (written, followed) = (replies.next_line().await?, replies.next_line().await?);
    ensure!(
        written.as_deref() == Some("+OK") && followed.as_ref().is_some_and(|count| count != ":0"),
        "no replica follows: {written:?} {followed:?}"
    );
    Ok(())
}

/// The servers that are masters now, counted round.
async fn nth_master(servers: &[PrivateRedis], n: usize) -> Result<usize> {
    let mut masters = Vec::new();
    for (place, server) in servers.iter().enumerate() {
        if server.command("ROLE").await?.contains("master") {
            masters.push(place);
        }
    }
    masters
        .get(n % masters.len().max(1))
        .copied()
        .context("a cluster without a master")
}

/// Everybody serves every slot again, and the dead one has none.
async fn in_its_place(servers: &[&PrivateRedis], dead: &str) -> Result<(), String> {
    for server in servers {
        let text = |error: anyhow::Error| error.to_string();
        let info = server.command("CLUSTER INFO").await.map_err(text)?;
        let nodes = server.command("CLUSTER NODES").await.map_err(text)?;
        let line = nodes.lines().find(|line| line.contains(dead)).unwrap_or_default();
        if !info.contains("cluster_state:ok") || !line.contains("fail") || has_slots(line) {
            return Err(format!("{line}; {info}"));
        }
    }
    Ok(())
}

/// Does a line of CLUSTER NODES end with slots?
fn has_slots(line: &str) -> bool {
    line.split_whitespace().count() > 8
}
