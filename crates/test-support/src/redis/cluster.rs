//! A Redis Cluster of several masters.

use super::{PrivateRedis, READY_TIMEOUT, RedisOptions};
use anyhow::{Context, ensure};
use std::time::Duration;
use tokio::time::{Instant, sleep};

const SLOTS: usize = 16_384;

/// A cluster; its servers stop on drop.
#[derive(Debug)]
pub struct PrivateCluster {
    /// The masters, each with an equal share of the slots; then one replica of
    /// each, if the cluster has replicas.
    pub servers: Vec<PrivateRedis>,
    masters: usize,
}

impl PrivateCluster {
    /// Starts a cluster, with or without one replica for each master.
    pub async fn start(masters: usize, with_replicas: bool) -> anyhow::Result<Self> {
        let options = RedisOptions {
            cluster: true,
            more: ["--cluster-node-timeout", "1500"].map(str::to_owned).to_vec(),
            ..RedisOptions::default()
        };
        let mut servers = Vec::new();
        for _ in 0..masters * (1 + usize::from(with_replicas)) {
            servers.push(PrivateRedis::launch_with(options.clone()).await?);
        }
        let cluster = Self { servers, masters };
        let first = cluster.servers.first().context("no server")?;
        for (n, server) in cluster.servers.iter().enumerate() {
            let port = server.address().port();
            if n < masters {
                let (from, to) = (n * SLOTS / masters, (n + 1) * SLOTS / masters - 1);
                server
                    .command(&format!("CLUSTER ADDSLOTSRANGE {from} {to}"))
                    .await?;
            }
            // With equal epochs, the masters would compete for slots.
            server
                .command(&format!("CLUSTER SET-CONFIG-EPOCH {}", n + 1))
                .await?;
            let bus = server.bus_port().await?;
            first
                .command(&format!("CLUSTER MEET 127.0.0.1 {port} {bus}"))
                .await?;
        }
        let all = format!("cluster_known_nodes:{}", cluster.servers.len());
        for server in &cluster.servers {
            server.wait_for("CLUSTER INFO", &all).await?;
        }
        if with_replicas {
            for n in 0..masters {
                let master = cluster.id(n).await?;
                let replica = &cluster.servers[masters + n];
                // Fails until the replica has received the slots of the master.
                let deadline = Instant::now() + READY_TIMEOUT;
                while !replica
                    .command(&format!("CLUSTER REPLICATE {master}"))
                    .await?
                    .starts_with("+OK")
                {
                    ensure!(Instant::now() < deadline, "{master} cannot be followed");
                    sleep(Duration::from_millis(20)).await;
                }
                replica
                    .wait_for("INFO replication", "master_link_status:up")
                    .await?;
            }
        }
        for server in &cluster.servers {
            server.wait_for("CLUSTER INFO", "cluster_state:ok").await?;
        }
        Ok(cluster)
    }

    /// URL of the masters.
    pub fn url(&self) -> String {
        let masters = self.servers.iter().take(self.masters);
        let hosts: Vec<_> = masters.map(|server| server.address().to_string()).collect();
        format!("redis-cluster://{}", hosts.join(","))
    }

    /// Node id of a server.
    pub async fn id(&self, server: usize) -> anyhow::Result<String> {
        let answer = self.servers[server].command("CLUSTER MYID").await?;
        let id = answer.lines().nth(1).context("no id")?;
        Ok(id.to_owned())
    }

    /// The master that serves the hash slot.
    pub fn master_of(&self, slot: usize) -> usize {
        (0..self.masters)
            .find(|n| slot < (n + 1) * SLOTS / self.masters)
            .unwrap_or(0)
    }
}

impl PrivateRedis {
    async fn bus_port(&self) -> anyhow::Result<u16> {
        let answer = self.command("CONFIG GET cluster-port").await?;
        let port = answer.lines().nth(4).context("no cluster-port")?;
        Ok(port.parse()?)
    }
}
