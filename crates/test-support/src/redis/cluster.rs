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
        Self::start_with(masters, with_replicas, RedisOptions::default()).await
    }

    /// The same with more options of its servers.
    pub async fn start_with(
        masters: usize,
        with_replicas: bool,
        mut options: RedisOptions,
    ) -> anyhow::Result<Self> {
        options.cluster = true;
        options
            .more
            .extend(["--cluster-node-timeout", "1500"].map(str::to_owned));
        let mut servers = Vec::new();
        for _ in 0..masters * (1 + usize::from(with_replicas)) {
            servers.push(PrivateRedis::launch_with(options.clone()).await?);
        }
        let cluster = Self { servers, masters };
        let first = cluster.servers.first().context("no server")?;
        for (n, server) in cluster.servers.iter().enumerate() {
            let port = server.data_port();
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
        let hosts: Vec<_> = masters
            .map(|server| format!("127.0.0.1:{}", server.data_port()))
            .collect();
        let scheme = match self.servers.first() {
            Some(first) if first.tls_port.is_some() => "rediss",
            _ => "redis",
        };
        format!("{scheme}-cluster://{}", hosts.join(","))
    }

    /// Node id of a server.
    pub async fn id(&self, server: usize) -> anyhow::Result<String> {
        let answer = self.servers[server].command("CLUSTER MYID").await?;
        let id = answer.lines().nth(1).context("no id")?;
        Ok(id.to_owned())
    }

    /// The master that served the hash slot at first.
    pub fn master_of(&self, slot: usize) -> usize {
        (0..self.masters)
            .find(|n| slot < (n + 1) * SLOTS / self.masters)
            .unwrap_or(0)
    }

    /// The hash slot of the keys with this tag.
    pub async fn slot_of(&self, tag: &str) -> anyhow::Result<usize> {
        let first = self.servers.first().context("no server")?;
        let answer = first.command(&format!("CLUSTER KEYSLOT {tag}")).await?;
        Ok(answer.trim().trim_start_matches(':').parse()?)
    }

    /// Begins to move a slot, as an administrator does: from now on its keys can be on
    /// either of the two masters.
    pub async fn begin_move(&self, slot: usize, from: usize, to: usize) -> anyhow::Result<SlotMove<'_>> {
        let moving = SlotMove {
            cluster: self,
            slot,
            from,
            to,
        };
        let (from_id, to_id) = (self.id(from).await?, self.id(to).await?);
        moving.order(to, &format!("IMPORTING {from_id}")).await?;
        moving.order(from, &format!("MIGRATING {to_id}")).await?;
        Ok(moving)
    }
}

/// A slot that moves from one master to another.
#[derive(Debug)]
pub struct SlotMove<'a> {
    cluster: &'a PrivateCluster,
    slot: usize,
    from: usize,
    to: usize,
}

impl SlotMove<'_> {
    /// Moves at most this many keys; returns how many were moved.
    pub async fn move_keys(&self, at_most: usize) -> anyhow::Result<usize> {
        let (source, target) = (&self.cluster.servers[self.from], &self.cluster.servers[self.to]);
        let keys = source
            .command(&format!("CLUSTER GETKEYSINSLOT {} {at_most}", self.slot))
            .await?;
        let keys = keys.lines().filter(|line| !line.starts_with(['*', '$']));
        let mut moved = 0;
        for key in keys {
            let login = target.login().map(|login| format!(" AUTH2 {login}"));
            let words = format!(
                "MIGRATE 127.0.0.1 {} {key} 0 5000{}",
                target.data_port(),
                login.unwrap_or_default()
            );
            let answer = source.command(&words).await?;
            ensure!(
                answer.starts_with("+OK") || answer.starts_with("+NOKEY"),
                "{words}: {answer}"
            );
            moved += 1;
        }
        Ok(moved)
    }

    /// Moves all keys that are left, and assigns the slot to the new master.
    pub async fn end(self) -> anyhow::Result<()> {
        while self.move_keys(100).await? > 0 {}
        let to_id = self.cluster.id(self.to).await?;
        let others = (0..self.cluster.masters).filter(|n| ![self.from, self.to].contains(n));
        for server in [self.to, self.from].into_iter().chain(others) {
            self.order(server, &format!("NODE {to_id}")).await?;
        }
        Ok(())
    }

    async fn order(&self, server: usize, words: &str) -> anyhow::Result<()> {
        let words = format!("CLUSTER SETSLOT {} {words}", self.slot);
        let answer = self.cluster.servers[server].command(&words).await?;
        ensure!(answer.starts_with("+OK"), "{words}: {answer}");
        Ok(())
    }
}

impl PrivateRedis {
    async fn bus_port(&self) -> anyhow::Result<u16> {
        let answer = self.command("CONFIG GET cluster-port").await?;
        let port = answer.lines().nth(4).context("no cluster-port")?;
        Ok(port.parse()?)
    }
}
