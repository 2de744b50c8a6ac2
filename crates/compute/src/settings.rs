//! Settings of a Spark session, applied again on compute that replaced what
//! they were set on.

use crate::connector::Target;
use crate::probe::{Asker, NotReady};
use crate::user_message;
use session_core::SparkSessionId;
use session_core::machine::Cause;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::timeout;

/// All of it takes no longer, connecting included.
const LIMIT: Duration = Duration::from_secs(10);

/// Sets the settings in the Spark session of `user_id`. What the engine refuses
/// is left out: it took each before, but may be another release now. Returns
/// the names of those.
///
/// # Errors
/// If the engine cannot be asked.
pub async fn apply(
    target: &Target,
    user_id: &str,
    spark_session: &SparkSessionId,
    settings: &BTreeMap<String, String>,
) -> Result<Vec<String>, Cause> {
    let work = async {
        let asker = Asker::connect(target, user_id.to_owned(), spark_session.to_string())
            .await
            .map_err(NotReady::into_cause)?;
        if asker.set(settings).await.is_ok() {
            return Ok(Vec::new());
        }
        let mut refused = Vec::new();
        for (name, value) in settings {
            let one = BTreeMap::from([(name.clone(), value.clone())]);
            match asker.set(&one).await {
                Ok(()) => {}
                Err(status) if is_away(&status) => return Err(NotReady::from_status(&status).into_cause()),
                Err(_) => refused.push(name.clone()),
            }
        }
        Ok(refused)
    };
    let outcome = timeout(LIMIT, work).await.unwrap_or_else(|_| {
        let seconds = LIMIT.as_secs();
        Err(format!("it did not answer within {seconds} s").into())
    });
    outcome.map_err(|cause| user_message::masked(&cause, target.credential.as_slice()))
}

fn is_away(status: &tonic::Status) -> bool {
    matches!(
        status.code(),
        tonic::Code::Unavailable | tonic::Code::DeadlineExceeded | tonic::Code::Cancelled
    )
}
