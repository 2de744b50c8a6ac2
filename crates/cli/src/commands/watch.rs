//! Watch command: one line for each change, until the end.

use crate::Output;
use crate::client::{self, explain};
use crate::output::{self, moment};
use crate::settings::Target;
use anyhow::Result;
use serde_json::json;
use service_kit::backoff::Backoff;
use session_proto::json;
use session_proto::v1::watch_sessions_response::Update;
use session_proto::v1::{self, SessionStatus};
use std::time::Duration;
use tonic::{Code, Status};

/// Delays before a lost connection is tried again.
const MIN_RETRY_INTERVAL: Duration = Duration::from_secs(1);
const MAX_RETRY_INTERVAL: Duration = Duration::from_secs(30);

pub(super) async fn watch(target: &Target, output: Output, session: Option<String>) -> Result<()> {
    let session_id = session.unwrap_or_default();
    let mut backoff = Backoff::new(MIN_RETRY_INTERVAL, MAX_RETRY_INTERVAL);
    let mut connected = false;
    loop {
        let request = v1::WatchSessionsRequest {
            session_id: session_id.clone(),
        };
        // A new client for each stream: its credential may have been renewed.
        let mut client = client::sessions(target).await?;
        let problem = match client.watch_sessions(request).await {
            Ok(answer) => {
                backoff.reset();
                connected = true;
                match follow(answer.into_inner(), output).await {
                    // The reader closed the pipe.
                    Ok(_) if output::failure().is_some() => return Ok(()),
                    Ok(true) if !session_id.is_empty() => return Ok(()),
                    // This session-manager stops; another one continues.
                    Ok(_) => Status::unavailable("the stream ended"),
                    Err(status) => status,
                }
            }
            Err(status) => status,
        };
        // What was never reached is more likely a wrong address.
        if problem.code() != Code::Unavailable || !connected {
            return Err(explain(problem));
        }
        let delay = backoff.next_delay();
        output::note(&format!(
            "berth: {}; trying again in {:.1} s",
            problem.message(),
            delay.as_secs_f64()
        ));
        tokio::time::sleep(delay).await;
    }
}

/// Prints updates; returns whether the last updated session has ended.
async fn follow(
    mut stream: tonic::Streaming<v1::WatchSessionsResponse>,
    output: Output,
) -> Result<bool, Status> {
    let mut ended = false;
    while let Some(told) = stream.message().await? {
        match told.update {
            Some(Update::Session(session)) => {
                ended = matches!(session.status(), SessionStatus::Closed | SessionStatus::Failed);
                print(output, &session, told.event.as_ref());
            }
            Some(Update::Reset(_)) if output == Output::Json => {
                output::json_text(&json!({"reset": true}).to_string());
            }
            // The table output does not show resets.
            Some(Update::Reset(_)) => {}
            None => {}
        }
        if output::failure().is_some() {
            break;
        }
    }
    Ok(ended)
}

fn print(output: Output, session: &v1::Session, event: Option<&v1::SessionEvent>) {
    match output {
        // One object per line, so that programs can parse each update immediately.
        Output::Json => {
            let line = json!({"session": json::value(session), "event": json::value(&event)});
            output::json_text(&line.to_string());
        }
        Output::Table => {
            let (at, reason, actor, message) = match event {
                Some(event) => (
                    moment(event.at.as_ref()),
                    event.reason.as_str(),
                    event.actor.as_str(),
                    event.message.as_str(),
                ),
                None => (
                    moment(session.created_at.as_ref()),
                    session.reason.as_str(),
                    session.owner.as_str(),
                    session.status_message.as_str(),
                ),
            };
            let line = format!(
                "{at}  {}  {:<7}  {:<12}  {reason:<20}  {actor}  {message}",
                session.id,
                output::status(session),
                session.phase,
            );
            output::line(line.trim_end());
        }
    }
}
