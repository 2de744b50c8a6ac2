//! Interrupting what Spark sessions execute, in the name of their session.

use crate::connector::Target;
use crate::probe::{Asker, NotReady};
use crate::shared_servers::{has_ended, user_id};
use crate::user_message;
use futures::{StreamExt, stream};
use session_core::machine::Cause;
use session_core::{SessionKey, SparkSessionId};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::timeout;

/// One call takes no longer.
const CALL_LIMIT: Duration = Duration::from_secs(5);
/// All of it takes no longer, connecting included.
const LIMIT: Duration = Duration::from_secs(20);
/// So many calls at once.
const TOGETHER: usize = 8;

/// What to interrupt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// All that a Spark session executes.
    All,
    /// These operations of it, by the client's own ids.
    Operations(Vec<String>),
}

/// A Spark session as an engine finds it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Running {
    /// The `user_id` under which it runs; empty if that is the session's id.
    pub user_id: String,
    /// The client's own id of it.
    pub spark_session: SparkSessionId,
}

/// Interrupts operations of Spark sessions on one server, each as the user
/// under whom it runs, which is how Apache Spark finds it, called `user_name`.
/// Returns the ids that the server says it interrupted; some, if it answered
/// for some. No call waits longer than 5 s: Apache Spark 4.1 never answers
/// about an operation that it does not know.
///
/// Only for Spark sessions that exist: asked about another one, an engine may
/// make it.
///
/// # Errors
/// If the server refused everything or cannot be asked.
pub async fn interrupt(
    target: &Target,
    key: &SessionKey,
    user_name: &str,
    wanted: &BTreeMap<Running, Wanted>,
) -> Result<Vec<String>, Cause> {
    let work = async {
        let asker = Asker::connect(target, user_id(key), String::new())
            .await
            .map_err(NotReady::into_cause)?;
        let calls = wanted.iter().flat_map(|(running, wanted)| {
            let asker = if running.user_id.is_empty() {
                asker.clone()
            } else {
                asker.clone().for_user(&running.user_id)
            };
            let asker = asker.named(user_name).of(running.spark_session.to_string());
            let operations: Vec<Option<String>> = match wanted {
                Wanted::All => vec![None],
                Wanted::Operations(ids) => ids.iter().cloned().map(Some).collect(),
            };
            operations
                .into_iter()
                .map(move |operation| (asker.clone(), operation))
        });
        let calls: Vec<_> = calls.collect();
        let mut answers = stream::iter(calls)
            .map(|(asker, operation)| async move {
                timeout(CALL_LIMIT, asker.interrupt(operation, CALL_LIMIT)).await
            })
            .buffer_unordered(TOGETHER);
        let (mut interrupted, mut failed) = (Vec::new(), None);
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(Ok(ids)) => interrupted.extend(ids),
                // It ended after its operation was reported: nothing runs there.
                Ok(Err(status)) if has_ended(&status) => {}
                Ok(Err(status)) => failed = Some(NotReady::from_status(&status).into_cause()),
                Err(_) => failed = Some(too_late(CALL_LIMIT)),
            }
        }
        match failed {
            Some(cause) if interrupted.is_empty() => Err(cause),
            Some(_) | None => Ok(interrupted),
        }
    };
    let outcome = timeout(LIMIT, work)
        .await
        .unwrap_or_else(|_| Err(too_late(LIMIT)));
    let mut interrupted =
        outcome.map_err(|cause| user_message::masked(&cause, target.credential.as_slice()))?;
    interrupted.sort_unstable();
    interrupted.dedup();
    Ok(interrupted)
}

fn too_late(limit: Duration) -> Cause {
    format!("it did not answer within {} s", limit.as_secs()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use session_core::{SessionId, Timestamp};

    /// A server that takes calls and never answers, as Apache Spark 4.1 does
    /// about an operation that it does not know.
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
        let running = Running {
            user_id: String::new(),
            spark_session: "01234567-89ab-cdef-0123-456789abcdef".parse().unwrap(),
        };
        let unknown = (0..40).map(|id| id.to_string()).collect();
        let wanted = [(running, Wanted::Operations(unknown))].into();
        let began = tokio::time::Instant::now();
        let cause = interrupt(&target, &key, "ada", &wanted).await.unwrap_err();
        assert!(began.elapsed() <= LIMIT + CALL_LIMIT, "{:?}", began.elapsed());
        assert!(cause.text.contains("did not answer within"), "{cause:?}");
    }
}
