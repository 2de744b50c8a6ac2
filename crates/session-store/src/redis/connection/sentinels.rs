//! Sentinels, and the primary that they name.

use super::failure::Failure;
use super::server::{Request, Server};
use super::target::{Address, Target};
use futures::future::{BoxFuture, join_all};
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::timeout;

/// Time limit for one sentinel, because others can answer.
const QUERY_TIMEOUT: Duration = Duration::from_millis(500);

/// Replies to `SENTINEL MASTER` and `GET-MASTER-ADDR-BY-NAME`.
type SentinelReply = (HashMap<String, String>, Option<(String, u16)>);

/// The sentinels of a primary.
pub(super) struct Sentinels {
    servers: Vec<Server>,
    /// Name of the primary in the sentinels.
    name: String,
}

/// The primary as a sentinel names it.
pub(super) struct PrimaryInfo {
    /// Address of the primary.
    pub(super) address: Address,
    /// Whether it has replicas, connected or not.
    pub(super) has_replicas: bool,
    /// Configuration epoch of the change that made it the primary.
    epoch: u64,
}

impl Sentinels {
    pub(super) fn new(addresses: &[Address], name: &str) -> Self {
        Self {
            servers: addresses.iter().cloned().map(Server::sentinel).collect(),
            name: name.to_owned(),
        }
    }

    /// Returns the primary. During a fail-over sentinels disagree: the highest
    /// configuration epoch wins. The sentinel that leads a fail-over already uses the
    /// new epoch, but shows the old address in `SENTINEL MASTER` until every replica
    /// follows; `GET-MASTER-ADDR-BY-NAME` shows the new one.
    // Boxed: the type is recursive, because sentinels are servers too.
    pub(super) fn primary<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<PrimaryInfo, Failure>> {
        Box::pin(async move {
            let mut pipeline = redis::pipe();
            // The epoch is read first: an address that is newer than its epoch is
            // harmless.
            pipeline.cmd("SENTINEL").arg("MASTER").arg(&self.name);
            pipeline
                .cmd("SENTINEL")
                .arg("GET-MASTER-ADDR-BY-NAME")
                .arg(&self.name);
            let replies = self.servers.iter().map(async |sentinel| {
                let reply = sentinel.call::<SentinelReply>(target, Request::Many(&pipeline));
                timeout(QUERY_TIMEOUT, reply)
                    .await
                    .map_err(|_| Failure::Timeout(QUERY_TIMEOUT))?
            });
            let (mut best, mut why) = (None::<PrimaryInfo>, None);
            for reply in join_all(replies).await {
                match reply.and_then(PrimaryInfo::parse) {
                    Ok(primary) if best.as_ref().is_some_and(|best| best.epoch >= primary.epoch) => {}
                    Ok(primary) => best = Some(primary),
                    Err(failure) => why = Some(failure),
                }
            }
            let no_sentinel = || Failure::NoServer("no sentinel is configured".to_owned());
            best.ok_or_else(|| Failure::Sentinels(Box::new(why.unwrap_or_else(no_sentinel))))
        })
    }
}

impl PrimaryInfo {
    fn parse((master, address): SentinelReply) -> Result<Self, Failure> {
        let number = |field: &str| master.get(field).and_then(|text| text.parse::<u64>().ok());
        let (host, port) = address
            .ok_or_else(|| Failure::NoServer("a sentinel knows no address of the primary".to_owned()))?;
        Ok(Self {
            address: Address { host, port },
            has_replicas: number("num-slaves").unwrap_or(0) > 0,
            epoch: number("config-epoch").unwrap_or(0),
        })
    }
}
