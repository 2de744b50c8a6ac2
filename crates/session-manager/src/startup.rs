//! Start while the state store is unavailable, slow or short of memory. The
//! manager waits: an exit would prolong the outage by the time of a restart.

use anyhow::Result;
use session_store::Error;
use session_store::redis::ConnectError;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Time between two attempts.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// Repeats a step of the start while the state store is unavailable or full. None
/// if the service stops first.
///
/// # Errors
/// Errors that waiting cannot resolve.
pub(crate) async fn until_available<T, F>(
    step: &'static str,
    stop: &CancellationToken,
    attempt: impl Fn() -> F,
) -> Result<Option<T>>
where
    F: Future<Output = Result<T>>,
{
    loop {
        let Some(outcome) = stop.run_until_cancelled(attempt()).await else {
            return Ok(None);
        };
        match outcome {
            Err(error) if is_temporary(&error) => {
                tracing::warn!(
                    step,
                    error = format!("{error:#}"),
                    retry_after_s = RETRY_INTERVAL.as_secs(),
                    "start delayed: the state store is unavailable"
                );
            }
            outcome => return outcome.map(Some),
        }
        let wait = tokio::time::sleep(RETRY_INTERVAL);
        if stop.run_until_cancelled(wait).await.is_none() {
            return Ok(None);
        }
    }
}

fn is_temporary(error: &anyhow::Error) -> bool {
    let of_store = |error: &Error| matches!(error, Error::Unavailable(_) | Error::Full);
    error.chain().any(|cause| {
        cause.downcast_ref::<Error>().is_some_and(of_store)
            || matches!(
                cause.downcast_ref::<ConnectError>(),
                Some(ConnectError::Unavailable(error)) if of_store(error)
            )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test(start_paused = true)]
    async fn what_the_store_may_mend_is_tried_again_and_nothing_else() {
        let stop = CancellationToken::new();
        let attempts = AtomicUsize::new(0);
        let attempt = || async {
            match attempts.fetch_add(1, Ordering::Relaxed) {
                0 => Err(ConnectError::Unavailable(Error::unreachable("refused"))).context("store.url"),
                1 => Err(Error::Full).context("writing cluster c"),
                n => Ok(n),
            }
        };
        let began = tokio::time::Instant::now();
        assert_eq!(until_available("test", &stop, attempt).await.unwrap(), Some(2));
        assert_eq!(began.elapsed(), 2 * RETRY_INTERVAL);

        let wrong = || async { Err::<(), _>(ConnectError::Prefix).context("store.url") };
        assert!(until_available("test", &stop, wrong).await.is_err());

        let away = || async { Err::<(), _>(Error::unreachable("").into()) };
        let waiting = until_available("test", &stop, away);
        let (outcome, ()) = tokio::join!(waiting, async {
            tokio::time::sleep(10 * RETRY_INTERVAL).await;
            stop.cancel();
        });
        assert_eq!(outcome.unwrap(), None);
    }
}
