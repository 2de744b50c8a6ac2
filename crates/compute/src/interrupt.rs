//! Interrupts operations of Spark sessions.

use crate::connector::Target;
use crate::probe::{NotReady, SparkClient};
use crate::shared_servers::{has_ended, user_id};
use crate::user_message;
use futures::{StreamExt, stream};
use session_core::machine::Cause;
use session_core::{SessionKey, SparkSessionId};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::timeout;

/// Time limit of one call.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit of the operation, including the connection.
const INTERRUPT_TIMEOUT: Duration = Duration::from_secs(20);
/// Maximum number of concurrent calls.
const MAX_CONCURRENT: usize = 8;

/// Operations to interrupt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InterruptScope {
    /// All operations of a Spark session.
    All,
    /// Operations by the ids of the client.
    Operations(Vec<String>),
}

/// A Spark session as engines identify it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RunningSparkSession {
    /// The `user_id` under which it runs; empty if that is the session's id.
    pub user_id: String,
    /// Id of the Spark session, from the client.
    pub spark_session: SparkSessionId,
}

/// Interrupts operations of Spark sessions on one server, each with the user id under
/// which it runs (Apache Spark identifies it by this) and the user name `user_name`.
/// Returns the ids that the server reports as interrupted, even if some calls failed. A
/// call waits at most 5 s: Apache Spark 4.1 never answers for an unknown operation.
///
/// Only for existing Spark sessions: for an unknown one an engine may create it.
///
/// # Errors
/// If the server rejected every call or is unavailable.
pub async fn interrupt(
    target: &Target,
    key: &SessionKey,
    user_name: &str,
    scopes: &BTreeMap<RunningSparkSession, InterruptScope>,
) -> Result<Vec<String>, Cause> {
    let work = async {
        let client = SparkClient::connect(target, user_id(key), String::new())
            .await
            .map_err(NotReady::into_cause)?;
        let calls = scopes.iter().flat_map(|(running, scope)| {
            let client = if running.user_id.is_empty() {
                client.clone()
            } else {
                client.clone().for_user(&running.user_id)
            };
            let client = client.named(user_name).of(running.spark_session.to_string());
            let operations: Vec<Option<String>> = match scope {
                InterruptScope::All => vec![None],
                InterruptScope::Operations(ids) => ids.iter().cloned().map(Some).collect(),
            };
            operations
                .into_iter()
                .map(move |operation| (client.clone(), operation))
        });
        let calls: Vec<_> = calls.collect();
        let mut replies = stream::iter(calls)
            .map(|(client, operation)| async move {
                timeout(CALL_TIMEOUT, client.interrupt(operation, CALL_TIMEOUT)).await
            })
            .buffer_unordered(MAX_CONCURRENT);
        let (mut interrupted, mut failed) = (Vec::new(), None);
        while let Some(reply) = replies.next().await {
            match reply {
                Ok(Ok(ids)) => interrupted.extend(ids),
                // The Spark session ended after its operation was reported: nothing
                // runs there.
                Ok(Err(status)) if has_ended(&status) => {}
                Ok(Err(status)) => failed = Some(NotReady::from_status(&status).into_cause()),
                Err(_) => failed = Some(timed_out(CALL_TIMEOUT)),
            }
        }
        match failed {
            Some(cause) if interrupted.is_empty() => Err(cause),
            Some(_) | None => Ok(interrupted),
        }
    };
    let outcome = timeout(INTERRUPT_TIMEOUT, work)
        .await
        .unwrap_or_else(|_| Err(timed_out(INTERRUPT_TIMEOUT)));
    let mut interrupted =
        outcome.map_err(|cause| user_message::masked(&cause, target.credential.as_slice()))?;
    interrupted.sort_unstable();
    interrupted.dedup();
    Ok(interrupted)
}

fn timed_out(limit: Duration) -> Cause {
    format!("it did not answer within {} s", limit.as_secs()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use session_core::{SessionId, Timestamp};

    /// A server that accepts calls and never answers, like Apache Spark 4.1 for an
    /// unknown operation.
    #[tokio::test(start_paused = true)]
    async fn a_server_that_never_answers_is_not_waited_for() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Target {
            address: listener.local_addr().unwrap().to_string(),
            tls: None,
            credential: None,
            allow: None,
        };
        let key = SessionKey {
            org: "acme".parse().unwrap(),
            id: SessionId::generate(Timestamp::ZERO, 1),
        };
        let running = RunningSparkSession {
            user_id: String::new(),
            spark_session: "01234567-89ab-cdef-0123-456789abcdef".parse().unwrap(),
        };
        let unknown = (0..40).map(|id| id.to_string()).collect();
        let scopes = [(running, InterruptScope::Operations(unknown))].into();
        let began = tokio::time::Instant::now();
        let cause = interrupt(&target, &key, "ada", &scopes).await.unwrap_err();
        assert!(
            began.elapsed() <= INTERRUPT_TIMEOUT + CALL_TIMEOUT,
            "{:?}",
            began.elapsed()
        );
        assert!(cause.text.contains("did not answer within"), "{cause:?}");
    }
}
