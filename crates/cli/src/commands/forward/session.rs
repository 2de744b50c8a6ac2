//! The session of a forwarder: an existing one, or one that is created here and closed at the end.

use super::signals::Signals;
use crate::args::{NewSession, SessionOptions};
use crate::client::{self, explain};
use crate::commands::sessions;
use crate::output;
use crate::progress::Progress;
use crate::settings::Target;
use anyhow::{Result, bail};
use service_kit::backoff::Backoff;
use session_proto::v1;
use std::time::Duration;
use tokio::time::Instant;
use tonic::Status;

/// Number of tries to create the session.
const CREATE_TRIES: u32 = 3;
/// Time limit for closing the session at the end, and time after which no further try begins.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(30);
const CLOSE_RETRY_TIME: Duration = Duration::from_secs(20);
/// Time limit of one try, and delays between tries.
const TRY_TIMEOUT: Duration = Duration::from_secs(10);
const MIN_RETRY_DELAY: Duration = Duration::from_millis(500);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(3);

#[derive(Debug)]
pub(super) struct Session {
    id: String,
    is_created: bool,
}

impl Session {
    /// The given session, or a new one once it has started. A signal ends the waiting and closes the
    /// new session.
    pub(super) async fn open(
        target: &Target,
        session: Option<String>,
        new: NewSession,
        signals: &mut Signals,
    ) -> Result<Self> {
        let Some(cluster) = new.cluster.filter(|_| new.create) else {
            if new.options != SessionOptions::default() {
                bail!("the options of a new session need --create --cluster NAME");
            }
            return Ok(Self {
                id: session.unwrap_or_default(),
                is_created: false,
            });
        };
        // A signal takes effect afterwards: earlier, the session could exist without its id being known.
        let created = create(target, cluster, new.options).await?;
        let this = Self {
            id: created.id.clone(),
            is_created: true,
        };
        let mut progress = Progress::new(&this.id);
        let starting = sessions::wait_for_end(target, created, &mut progress);
        let started = signals.unless_stopped(Box::pin(starting)).await;
        if let Err(error) = started {
            progress.clear();
            this.close(target).await;
            return Err(error);
        }
        Ok(this)
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn is_created(&self) -> bool {
        self.is_created
    }

    /// Closes the session if it was created here.
    pub(super) async fn close(self, target: &Target) {
        if !self.is_created {
            return;
        }
        let id = &self.id;
        let closed = tokio::time::timeout(CLOSE_TIMEOUT, close(target, id)).await;
        match closed {
            Ok(Ok(())) => output::note(&format!("Session {id} is closed.")),
            Ok(Err(error)) => output::error(&format!(
                "berth: closing session {id} failed: {error:#}. Close it: `berth session close {id}`."
            )),
            Err(_) => output::error(&format!(
                "berth: closing session {id} took longer than {CLOSE_TIMEOUT:?}. Close it: `berth session close {id}`."
            )),
        }
    }
}

/// Creates a session. With a request id, a repeated call returns the session of the first.
async fn create(target: &Target, cluster: String, options: SessionOptions) -> Result<v1::Session> {
    let request_id = uuid::Uuid::new_v4().to_string();
    let request = sessions::create_request(cluster, options, Some(request_id));
    let client = client::sessions(target).await?;
    let created = retried(
        |tries| tries < CREATE_TRIES,
        async || client.clone().create_session(request.clone()).await,
    )
    .await?;
    Ok(created.into_inner().session.unwrap_or_default())
}

async fn close(target: &Target, id: &str) -> Result<()> {
    let request = v1::CloseSessionRequest {
        session_id: id.to_owned(),
    };
    let begun = Instant::now();
    let client = client::sessions(target).await?;
    retried(
        |_| begun.elapsed() < CLOSE_RETRY_TIME,
        async || client.clone().close_session(request.clone()).await,
    )
    .await
    .map(drop)
}

/// Makes an idempotent call, again after a temporary error if `may_repeat` allows it for the number
/// of tries so far.
async fn retried<T>(
    may_repeat: impl Fn(u32) -> bool,
    call: impl AsyncFn() -> Result<T, Status>,
) -> Result<T> {
    let mut backoff = Backoff::new(MIN_RETRY_DELAY, MAX_RETRY_DELAY);
    loop {
        let done = tokio::time::timeout(TRY_TIMEOUT, call()).await;
        let done = done.unwrap_or_else(|_| {
            Err(Status::deadline_exceeded(format!(
                "no answer within {TRY_TIMEOUT:?}"
            )))
        });
        match done {
            Ok(done) => return Ok(done),
            Err(status) if client::is_temporary(&status) && may_repeat(backoff.failures() + 1) => {
                backoff.wait().await;
            }
            Err(status) => return Err(explain(status)),
        }
    }
}
