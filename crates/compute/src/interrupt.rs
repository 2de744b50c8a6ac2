//! Interrupting what Spark sessions execute, in the name of their session.

use crate::dial::Target;
use crate::probe::{Asker, NotReady};
use crate::shared::user_id;
use crate::words;
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

/// Interrupts operations of Spark sessions on one server, as `user_name` of the
/// session's own user, which is how engines find them. Returns the ids that the
/// server says it interrupted; some, if it answered for some.
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
    wanted: &BTreeMap<SparkSessionId, Wanted>,
) -> Result<Vec<String>, Cause> {
    let work = async {
        let asker = Asker::connect(target, user_id(key), String::new())
            .await
            .map_err(NotReady::into_cause)?
            .named(user_name);
        let calls = wanted.iter().flat_map(|(id, wanted)| {
            let asker = asker.of(id.to_string());
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
            .map(|(asker, operation)| async move { timeout(CALL_LIMIT, asker.interrupt(operation)).await })
            .buffer_unordered(TOGETHER);
        let (mut interrupted, mut failed) = (Vec::new(), None);
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(Ok(ids)) => interrupted.extend(ids),
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
    let mut interrupted = outcome.map_err(|cause| words::masked(&cause, target.credential.as_slice()))?;
    interrupted.sort_unstable();
    interrupted.dedup();
    Ok(interrupted)
}

fn too_late(limit: Duration) -> Cause {
    format!("it did not answer within {} s", limit.as_secs()).into()
}
