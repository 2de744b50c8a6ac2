//! TestCatalog: tries a catalog on a cluster as a new session would.
//!
//! Where Berth starts engines, one is started for it, asked what every new
//! session's engine is asked, and given back; it ends with this manager at the
//! latest, and no record of it is ever written. A session-manager that does not
//! run the child processes starts none and ends the call at once. On existing
//! servers a new Spark session on each of them is enough, and it is ended after it.

use super::{Api, placement};
use crate::admission::concurrency::{ConcurrencyLimit, ConcurrencyPermit, Full};
use crate::providers::registry::Providers;
use compute::ComputeSpec;
use session_core::machine::{Cause, Observation};
use session_core::{Catalog, OrgId, Principal, Reason, SessionId, SessionKey};
use session_proto::error::Refused;
use session_proto::v1;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

pub(crate) type CatalogTests = Arc<ConcurrencyLimit<OrgId>>;

/// Of one organization at a time.
const EACH: usize = 2;
/// At a time.
const ALL: usize = 8;
/// No trial takes longer: its caller waits for it within one call.
const LONGEST: Duration = Duration::from_secs(75);
/// How often the engine is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// How often giving it back is tried.
const RELEASES: usize = 120;
const RELEASE_AGAIN: Duration = Duration::from_secs(1);
/// How long the caller waits for it.
const RELEASE_WAIT: Duration = Duration::from_secs(5);
/// When to try again while others are under way.
const RETRY: Duration = Duration::from_secs(10);

pub(crate) fn catalog_tests() -> CatalogTests {
    ConcurrencyLimit::new(EACH, ALL)
}

/// Tries it; goes on to its clean end when the caller leaves.
pub(super) async fn run(
    api: &Arc<Api>,
    who: &Principal,
    catalog: Catalog,
    cluster: &str,
) -> Result<v1::TestCatalogResponse, Refused> {
    let cluster = api.cluster_for(who, cluster).await?;
    placement::fits(&cluster, &catalog)?;
    let slot = api.catalog_tests.take(&catalog.org).map_err(too_many)?;
    let now = api.store.now().await.map_err(crate::error::store)?;
    let spec = ComputeSpec {
        key: SessionKey {
            org: catalog.org.clone(),
            id: SessionId::generate(now, rand::random()),
        },
        generation: 1,
        cluster,
        catalog: Some(catalog),
    };
    let computes = api.computes.clone();
    let (trial, actor) = (spec.key.id.clone(), who.id.clone());
    let work = tokio::spawn(async move {
        if spec.cluster.provider.is_dedicated() {
            return on_own_engine(computes, spec, slot).await;
        }
        let _slot = slot;
        on_servers(&computes, &spec).await.map_err(Failure::Unusable)
    });
    let outcome = work.await.map_err(|error| {
        tracing::error!(%error, "a trial of a catalog broke off");
        Refused::new(
            Reason::Internal,
            "The test broke off. Try again; if it stays so, tell your platform team.",
        )
    })?;
    tracing::info!(%trial, %actor, usable = outcome.is_ok(), "catalog tested");
    Ok(match outcome {
        Ok(message) => v1::TestCatalogResponse {
            usable: true,
            message,
        },
        Err(Failure::Unusable(cause)) => v1::TestCatalogResponse {
            usable: false,
            message: in_full(&cause),
        },
        Err(Failure::NotLeader(why)) => return Err(not_leader(&why)),
    })
}

/// Why there is no engine that can use the catalog.
enum Failure {
    Unusable(Cause),
    /// This session-manager cannot start one.
    NotLeader(String),
}

fn not_leader(why: &str) -> Refused {
    Refused::new(
        Reason::ControlPlaneUnavailable,
        format!(
            "This session-manager cannot test a catalog on a process cluster: {why}. Nothing was tested. \
             Try again: a load balancer may choose the session-manager that runs the engines, and \
             when that one ends, another takes over within 15 s."
        ),
    )
}

fn too_many(full: Full) -> Refused {
    let text = match full {
        Full::Each => format!("{EACH} tests of your organization are under way, the most at one time."),
        Full::All => format!("{ALL} tests are under way, the most at one time."),
    };
    Refused::new(
        Reason::RateLimited,
        format!("{text} Wait until one has ended, then try again."),
    )
    .retry_after(RETRY)
}

/// Org admins may hear all of it.
fn in_full(cause: &Cause) -> String {
    if cause.detail.is_empty() || cause.text.contains(&cause.detail) {
        cause.text.clone()
    } else {
        format!("{}: {}", cause.text, cause.detail)
    }
}

/// The slot is held for as long as the engine may exist.
async fn on_own_engine(
    computes: Providers,
    spec: ComputeSpec,
    slot: ConcurrencyPermit<OrgId>,
) -> Result<String, Failure> {
    let outcome = ready(&computes, &spec).await;
    let released = tokio::spawn(async move {
        let _slot = slot;
        release(&computes, &spec).await;
    });
    // A release that takes longer goes on without the caller.
    let _ = tokio::time::timeout(RELEASE_WAIT, released).await;
    outcome
}

async fn release(computes: &Providers, spec: &ComputeSpec) {
    for _ in 0..RELEASES {
        match computes.release(spec).await {
            Ok(()) => return,
            // Engines that it did start have no record: orphan collection finds them.
            Err(compute::Error::NotLeader(_)) => return,
            Err(error) => {
                tracing::warn!(trial = %spec.key.id, %error, "the engine of a trial is not given back yet");
            }
        }
        sleep(RELEASE_AGAIN).await;
    }
    tracing::error!(trial = %spec.key.id, "the engine of a trial was not given back; it ends with this manager");
}

/// Waits as long as a session would, within what one call may take.
async fn ready(computes: &Providers, spec: &ComputeSpec) -> Result<String, Failure> {
    let deadline = spec.cluster.policy.provisioning_deadline.unwrap_or(LONGEST);
    let limit = deadline.min(LONGEST);
    let until = Instant::now() + limit;
    loop {
        let seen = match computes.ensure(spec).await {
            Ok(()) => computes.observe(spec).await,
            Err(error) => Err(error),
        };
        let waits: Cause = match seen {
            Ok(Observation::Ready { route }) => {
                return Ok(format!("{} {} answered", route.engine, route.engine_version));
            }
            Ok(Observation::Failed {
                cause,
                permanent: true,
            }) => return Err(Failure::Unusable(cause)),
            Ok(Observation::Failed {
                cause,
                permanent: false,
            }) => cause,
            Ok(Observation::Starting { detail }) => detail.into(),
            Ok(Observation::Missing) => "it is not started yet".into(),
            Err(compute::Error::NotLeader(why)) => return Err(Failure::NotLeader(why)),
            Err(error) => error.to_string().into(),
        };
        if Instant::now() >= until {
            return Err(Failure::Unusable(Cause {
                text: format!("not usable within {} s: {}", limit.as_secs(), waits.text),
                detail: waits.detail,
            }));
        }
        sleep(LOOK).await;
    }
}

async fn on_servers(computes: &Providers, spec: &ComputeSpec) -> Result<String, Cause> {
    let shared = computes
        .shared(&spec.cluster)
        .map_err(|error| Cause::from(error.to_string()))?;
    let servers = shared.servers(&spec.cluster);
    let until = Instant::now() + LONGEST;
    let mut versions = Vec::new();
    for (index, server) in servers.iter().enumerate() {
        let asked = async {
            let target = shared.target_at(&spec.cluster, server)?;
            compute::shared_servers::try_catalog(&target, spec).await
        };
        let late = || Err(Cause::from("the test took too long"));
        match tokio::time::timeout_at(until, asked)
            .await
            .unwrap_or_else(|_| late())
        {
            Ok(version) => versions.push(version),
            Err(cause) if servers.len() == 1 => return Err(cause),
            // Their addresses are not for org admins.
            Err(cause) => {
                return Err(Cause {
                    text: format!("on server {} of {}: {}", index + 1, servers.len(), cause.text),
                    detail: cause.detail,
                });
            }
        }
    }
    versions.dedup();
    Ok(format!(
        "{} {} answered",
        spec.cluster.engine,
        versions.join(", ")
    ))
}
