//! The session of a forwarder: an existing one, or one that is created here and closed at the end.

use super::signals::Signals;
use crate::args::{NewSession, SessionOptions};
use crate::client::{self, explain};
use crate::commands::sessions;
use crate::output;
use crate::progress::Progress;
use crate::settings::Target;
use anyhow::{Result, bail};
use session_proto::v1;
use std::time::Duration;

/// Time limit for closing the session at the end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(30);

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
        // Not ended by a signal: the session would exist, and nobody would know its id.
        let created = sessions::create_from(target, cluster, new.options, None).await?;
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

async fn close(target: &Target, id: &str) -> Result<()> {
    let request = v1::CloseSessionRequest {
        session_id: id.to_owned(),
    };
    let mut client = client::sessions(target).await?;
    client.close_session(request).await.map(drop).map_err(explain)
}
