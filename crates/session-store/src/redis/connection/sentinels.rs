//! The sentinels, and whom they call the primary.

use super::failure::Failure;
use super::server::{Request, Server};
use super::target::{Address, Target};
use futures::future::{BoxFuture, join_all};
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::timeout;

/// One sentinel is not waited for longer, since others can be asked.
const ASK_LIMIT: Duration = Duration::from_millis(500);

/// The answers to `SENTINEL MASTER` and `GET-MASTER-ADDR-BY-NAME`.
type Answer = (HashMap<String, String>, Option<(String, u16)>);

/// The sentinels that watch over a primary.
pub(super) struct Sentinels {
    servers: Vec<Server>,
    /// What they call the primary.
    name: String,
}

/// What the sentinels say.
pub(super) struct Named {
    /// The primary.
    pub(super) address: Address,
    /// It has replicas, connected or not.
    pub(super) has_replicas: bool,
    /// Of the change that made it the primary.
    epoch: u64,
}

impl Sentinels {
    pub(super) fn new(addresses: &[Address], name: &str) -> Self {
        Self {
            servers: addresses.iter().cloned().map(Server::sentinel).collect(),
            name: name.to_owned(),
        }
    }

    /// They may disagree while they change their mind: the one that knows of
    /// the latest change is right. The sentinel that leads a change shows the
    /// old address in `SENTINEL MASTER` until every replica follows, already
    /// under the new epoch; `GET-MASTER-ADDR-BY-NAME` does not.
    // Boxed: data servers ask sentinels, which are servers too.
    pub(super) fn named<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Named, Failure>> {
        Box::pin(async move {
            let mut question = redis::pipe();
            // The epoch first: an address that is newer than its epoch does no harm.
            question.cmd("SENTINEL").arg("MASTER").arg(&self.name);
            question
                .cmd("SENTINEL")
                .arg("GET-MASTER-ADDR-BY-NAME")
                .arg(&self.name);
            let asked = self.servers.iter().map(async |sentinel| {
                let answer = sentinel.call::<Answer>(target, Request::Many(&question));
                timeout(ASK_LIMIT, answer)
                    .await
                    .map_err(|_| Failure::Timeout(ASK_LIMIT))?
            });
            let (mut best, mut why) = (None::<Named>, None);
            for answer in join_all(asked).await {
                match answer.and_then(Named::read) {
                    Ok(named) if best.as_ref().is_some_and(|best| best.epoch >= named.epoch) => {}
                    Ok(named) => best = Some(named),
                    Err(failure) => why = Some(failure),
                }
            }
            let nobody = || Failure::NoServer("there is no sentinel to ask".to_owned());
            best.ok_or_else(|| why.unwrap_or_else(nobody))
        })
    }
}

impl Named {
    fn read((master, address): Answer) -> Result<Self, Failure> {
        let number = |field: &str| master.get(field).and_then(|text| text.parse::<u64>().ok());
        let (host, port) =
            address.ok_or_else(|| Failure::NoServer("a sentinel names no address".to_owned()))?;
        Ok(Self {
            address: Address { host, port },
            has_replicas: number("num-slaves").unwrap_or(0) > 0,
            epoch: number("config-epoch").unwrap_or(0),
        })
    }
}
