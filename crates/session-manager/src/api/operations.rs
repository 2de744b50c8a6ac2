//! InterruptOperations: interrupts a session's operations at its compute. It does
//! not wake the session, and sends nothing about Spark sessions that may not exist,
//! because an engine might create them.

use super::Api;
use crate::caller::AuthenticatedCaller;
use compute::interrupt::{self, InterruptScope, RunningSparkSession};
use session_core::access::Rpc;
use session_core::{AuditAction, Operation, Reason, Route, Session, SparkSessionId, State};
use session_proto::error::Refused;
use session_proto::v1;
use std::collections::{BTreeMap, BTreeSet};

/// Operations that one request may name.
const MAX_OPERATIONS: usize = 256;
/// Longest operation id in bytes; reports truncate longer ones.
const MAX_OPERATION_ID: usize = 128;

/// Interrupts the requested operations. Returns the ids of those that the engine
/// interrupted.
pub(super) async fn interrupt(
    api: &Api,
    who: &AuthenticatedCaller,
    request: &v1::InterruptOperationsRequest,
) -> Result<Vec<String>, Refused> {
    check(&request.operation_ids)?;
    let (session, _) = api
        .session_for(who, &request.session_id, Rpc::InterruptOperations)
        .await?;
    let route = route_of(&session)?;
    let key = session.key();
    let (operations, cluster) = tokio::try_join!(
        api.store.operations(&key),
        api.definitions.cluster(&session.cluster)
    )
    .map_err(crate::error::store)?;
    let cluster = cluster.ok_or_else(|| nothing_runs(&session))?;
    let mut wanted = wanted(&operations, &request.operation_ids);
    if !route.dedicated {
        // On a shared server, only Spark sessions that are bound to this session.
        let bound = bound(api, &session, route).await?;
        wanted.retain(|running, _| bound.contains(&running.spark_session));
    }
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let target = api.computes.target(&cluster, route);
    let interrupted = match target {
        Ok(target) => interrupt::interrupt(&target, &key, who.id.as_str(), &wanted).await,
        Err(cause) => Err(cause),
    };
    let interrupted = interrupted.map_err(|cause| {
        tracing::warn!(session = %session.id, cause = cause.text, detail = cause.detail, "interrupting operations failed");
        Refused::new(
            Reason::BackendUnavailable,
            format!(
                "The session's compute did not take the interrupt: {}. Try again shortly, or close the session.",
                cause.text
            ),
        )
    })?;
    tracing::info!(
        session = %session.id, org = %session.org, actor = %who.id, count = interrupted.len(),
        "operations interrupted"
    );
    api.audit(who, AuditAction::OperationsInterrupted, |record| {
        record.on_session(&key)
    })
    .await;
    Ok(interrupted)
}

fn check(operation_ids: &[String]) -> Result<(), Refused> {
    if operation_ids.len() > MAX_OPERATIONS {
        return Err(Refused::field(
            "operation_ids",
            format!("must be at most {MAX_OPERATIONS}; leave it empty to interrupt all"),
        ));
    }
    let valid = 1..=MAX_OPERATION_ID;
    if operation_ids.iter().any(|id| !valid.contains(&id.len())) {
        return Err(Refused::field(
            "operation_ids",
            format!("each must be 1 to {MAX_OPERATION_ID} bytes, as ListOperations names them"),
        ));
    }
    Ok(())
}

fn route_of(session: &Session) -> Result<&Route, Refused> {
    match &session.state {
        State::Active { route } => Ok(route),
        State::Pending { .. } => Err(Refused::new(
            Reason::SessionWarming,
            format!(
                "Session {} is being made ready: nothing runs there yet.",
                session.id
            ),
        )),
        State::IdleKept { .. } | State::IdleReleasing { .. } | State::IdleReleased { .. } => {
            Err(nothing_runs(session))
        }
        State::Closed | State::Failed => Err(crate::error::ended(session)),
    }
}

fn nothing_runs(session: &Session) -> Refused {
    Refused::new(
        Reason::ComputeReleased,
        format!(
            "Session {} is idle: nothing runs there that could be interrupted. The next query wakes it.",
            session.id
        ),
    )
}

/// The operations to interrupt by Spark session.
fn wanted(operations: &[Operation], ids: &[String]) -> BTreeMap<RunningSparkSession, InterruptScope> {
    let mut wanted: BTreeMap<RunningSparkSession, InterruptScope> = BTreeMap::new();
    for operation in operations {
        let Ok(spark_session) = operation.spark_session_id.parse::<SparkSessionId>() else {
            continue;
        };
        let spark = RunningSparkSession {
            user_id: operation.user_id.clone(),
            spark_session,
        };
        if ids.is_empty() {
            wanted.insert(spark, InterruptScope::All);
        } else if ids.contains(&operation.operation_id) {
            let of = wanted
                .entry(spark)
                .or_insert(InterruptScope::Operations(Vec::new()));
            if let InterruptScope::Operations(of) = of
                && !of.contains(&operation.operation_id)
            {
                of.push(operation.operation_id.clone());
            }
        }
    }
    wanted
}

async fn bound(api: &Api, session: &Session, route: &Route) -> Result<BTreeSet<SparkSessionId>, Refused> {
    let server = route.endpoint.to_ascii_lowercase();
    let bindings = api.store.list_bindings(&session.key()).await;
    let bindings = bindings.map_err(crate::error::store)?.into_iter();
    Ok(bindings
        .filter(|binding| binding.generation == session.generation && binding.spark.server == server)
        .map(|binding| binding.spark.id)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use session_core::Timestamp;

    const A: &str = "00000000-0000-0000-0000-00000000000a";
    const B: &str = "00000000-0000-0000-0000-00000000000b";

    fn operation(spark: &str, id: &str) -> Operation {
        Operation {
            spark_session_id: spark.to_owned(),
            operation_id: id.to_owned(),
            method: "ExecutePlan".to_owned(),
            started_at: Timestamp::ZERO,
            user_id: String::new(),
        }
    }

    #[test]
    fn all_or_the_named_ones_of_each_spark_session() {
        let of = |id: &str| RunningSparkSession {
            user_id: String::new(),
            spark_session: id.parse().unwrap(),
        };
        let (a, b) = (of(A), of(B));
        let running = [
            operation(A, "1"),
            operation(A, "2"),
            operation(B, "3"),
            operation("?", "4"),
        ];
        let all = wanted(&running, &[]);
        assert_eq!(all, [(a, InterruptScope::All), (b, InterruptScope::All)].into());
        let some = wanted(&running, &["2".to_owned(), "9".to_owned(), "4".to_owned()]);
        assert_eq!(
            some,
            [(of(A), InterruptScope::Operations(vec!["2".to_owned()]))].into()
        );
    }
}
