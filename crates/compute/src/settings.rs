//! Applies the settings of a Spark session again on replaced compute.

use crate::connector::Target;
use crate::probe::{NotReady, SparkClient};
use crate::user_message;
use session_core::SparkSessionId;
use session_core::machine::Cause;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::timeout;

/// Time limit of the operation, including the connection.
const APPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// Sets the settings in the Spark session of `user_id`. Settings that the engine
/// rejects are skipped: it accepted them before, but can be another release now.
/// Returns the names of the rejected ones.
///
/// # Errors
/// If the engine is unavailable.
pub async fn apply(
    target: &Target,
    user_id: &str,
    spark_session: &SparkSessionId,
    settings: &BTreeMap<String, String>,
) -> Result<Vec<String>, Cause> {
    let apply = async {
        let client = SparkClient::connect(target, user_id.to_owned(), spark_session.to_string())
            .await
            .map_err(NotReady::into_cause)?;
        if client.set(settings).await.is_ok() {
            return Ok(Vec::new());
        }
        let mut rejected = Vec::new();
        for (name, value) in settings {
            let one = BTreeMap::from([(name.clone(), value.clone())]);
            match client.set(&one).await {
                Ok(()) => {}
                Err(status) if is_unavailable(&status) => {
                    return Err(NotReady::from_status(&status).into_cause());
                }
                Err(_) => rejected.push(name.clone()),
            }
        }
        Ok(rejected)
    };
    let outcome = timeout(APPLY_TIMEOUT, apply).await.unwrap_or_else(|_| {
        let seconds = APPLY_TIMEOUT.as_secs();
        Err(format!("it did not answer within {seconds} s").into())
    });
    outcome.map_err(|cause| user_message::masked(&cause, target.credential.as_slice()))
}

fn is_unavailable(status: &tonic::Status) -> bool {
    matches!(
        status.code(),
        tonic::Code::Unavailable | tonic::Code::DeadlineExceeded | tonic::Code::Cancelled
    )
}
