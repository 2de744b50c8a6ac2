//! TestCatalog: uses a catalog on a cluster as a new session would.
//!
//! On a cluster with dedicated compute, an engine is started, probed like that of a
//! new session, and released; it ends with this manager at the latest and has no
//! record. A session-manager that is not the leader starts none and fails the call
//! at once. On static servers a new Spark session on each of them is created and
//! ended.

use super::{Api, placement};
use crate::admission::concurrency::{ConcurrencyLimit, ConcurrencyPermit, Full};
use crate::providers::registry::Providers;
use compute::ComputeSpec;
use session_core::machine::{Cause, Observation};
use session_core::{Catalog, OrgId, Principal, Provider, Reason, SessionId, SessionKey};
use session_proto::error::Refused;
use session_proto::v1;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

pub(crate) type CatalogTests = Arc<ConcurrencyLimit<OrgId>>;

/// Concurrent tests of one organization.
const MAX_OF_ORG: usize = 2;
/// Concurrent tests of this manager.
const MAX_TESTS: usize = 8;
/// Time limit of a test, less than that of its call.
const TEST_TIMEOUT: Duration = Duration::from_secs(75);
/// Time between two observations of the engine.
const OBSERVE_INTERVAL: Duration = Duration::from_millis(200);
/// Attempts to release the engine.
const MAX_RELEASE_ATTEMPTS: usize = 120;
/// Time between two attempts to release the engine.
const RELEASE_INTERVAL: Duration = Duration::from_secs(1);
/// Time for which the caller waits for the release.
const RELEASE_WAIT: Duration = Duration::from_secs(5);
/// Retry delay of a caller above the limit.
const RETRY_DELAY: Duration = Duration::from_secs(10);

pub(crate) fn catalog_tests() -> CatalogTests {
    ConcurrencyLimit::new(MAX_OF_ORG, MAX_TESTS)
}

/// Tests the catalog. Continues to its end if the caller disconnects.
pub(super) async fn run(
    api: &Arc<Api>,
    who: &Principal,
    catalog: Catalog,
    cluster: &str,
) -> Result<v1::TestCatalogResponse, Refused> {
    let cluster = api.cluster_for(who, cluster).await?;
    placement::fits(&cluster, &catalog)?;
    let permit = api.catalog_tests.take(&catalog.org).map_err(too_many)?;
    let now = api.store.now().await.map_err(crate::error::store)?;
    let mut cluster = cluster.with_profile(None).unwrap_or(cluster);
    if let Provider::Kubernetes(pods) = &mut cluster.provider {
        // A warm pod answered before the test, and belongs to sessions.
        pods.warm_pods = 0;
        pods.warm_catalogs.clear();
    }
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
    let (test, actor) = (spec.key.id.clone(), who.id.clone());
    let work = tokio::spawn(async move {
        if spec.cluster.provider.is_dedicated() {
            return on_own_engine(computes, spec, permit).await;
        }
        let _permit = permit;
        on_servers(&computes, &spec).await.map_err(Failure::Unusable)
    });
    let outcome = work.await.map_err(|error| {
        tracing::error!(%error, "testing a catalog aborted");
        Refused::new(
            Reason::Internal,
            "The test broke off. Try again; if it stays so, tell your platform team.",
        )
    })?;
    tracing::info!(%test, %actor, usable = outcome.is_ok(), "catalog tested");
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

/// Why a test failed.
enum Failure {
    Unusable(Cause),
    /// This session-manager cannot start an engine.
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
        Full::Each => format!("{MAX_OF_ORG} tests of your organization are under way, the most at one time."),
        Full::All => format!("{MAX_TESTS} tests are under way, the most at one time."),
    };
    Refused::new(
        Reason::RateLimited,
        format!("{text} Wait until one has ended, then try again."),
    )
    .retry_after(RETRY_DELAY)
}

/// The cause with its detail, which org admins may see.
fn in_full(cause: &Cause) -> String {
    if cause.detail.is_empty() || cause.text.contains(&cause.detail) {
        cause.text.clone()
    } else {
        format!("{}: {}", cause.text, cause.detail)
    }
}

/// Tests on an engine of its own. The permit is held while the engine may exist.
async fn on_own_engine(
    computes: Providers,
    spec: ComputeSpec,
    permit: ConcurrencyPermit<OrgId>,
) -> Result<String, Failure> {
    let outcome = ready(&computes, &spec).await;
    let released = tokio::spawn(async move {
        let _permit = permit;
        release(&computes, &spec).await;
    });
    // A release that takes longer continues without the caller.
    let _ = tokio::time::timeout(RELEASE_WAIT, released).await;
    outcome
}

async fn release(computes: &Providers, spec: &ComputeSpec) {
    for _ in 0..MAX_RELEASE_ATTEMPTS {
        match computes.release(spec).await {
            Ok(()) => return,
            // An engine that was started has no record, so orphan collection finds it.
            Err(compute::Error::NotLeader(_)) => return,
            Err(error) => {
                tracing::warn!(test = %spec.key.id, %error, "releasing the engine of a catalog test failed; it is retried");
            }
        }
        sleep(RELEASE_INTERVAL).await;
    }
    tracing::error!(test = %spec.key.id, "releasing the engine of a catalog test given up; it ends with this manager");
}

/// Waits until the engine is ready: up to the cluster's provisioning deadline, at
/// most [`TEST_TIMEOUT`].
async fn ready(computes: &Providers, spec: &ComputeSpec) -> Result<String, Failure> {
    let deadline = spec.cluster.policy.provisioning_deadline.unwrap_or(TEST_TIMEOUT);
    let limit = deadline.min(TEST_TIMEOUT);
    let until = Instant::now() + limit;
    loop {
        let observed = match computes.ensure(spec).await {
            Ok(()) => computes.observe(spec).await,
            Err(error) => Err(error),
        };
        let waits: Cause = match observed {
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
            Ok(Observation::Starting { cause }) => cause,
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
        sleep(OBSERVE_INTERVAL).await;
    }
}

async fn on_servers(computes: &Providers, spec: &ComputeSpec) -> Result<String, Cause> {
    let shared = computes
        .shared(&spec.cluster)
        .map_err(|error| Cause::from(error.to_string()))?;
    let servers = shared.servers(&spec.cluster);
    let until = Instant::now() + TEST_TIMEOUT;
    let mut versions = Vec::new();
    for (index, server) in servers.iter().enumerate() {
        let test = async {
            let target = shared.target_at(&spec.cluster, server)?;
            compute::shared_servers::try_catalog(&target, spec).await
        };
        let timed_out = || Err(Cause::from("the test took too long"));
        match tokio::time::timeout_at(until, test)
            .await
            .unwrap_or_else(|_| timed_out())
        {
            Ok(version) => versions.push(version),
            Err(cause) if servers.len() == 1 => return Err(cause),
            // Org admins may not see server addresses.
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
