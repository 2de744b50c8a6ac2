//! Session commands.

use crate::args::{Create, SessionOptions, Until, Update};
use crate::client::{self, explain};
use crate::output::{self, distance, moment};
use crate::progress::Progress;
use crate::settings::Target;
use crate::{Exit, Output};
use anyhow::{Result, bail};
use session_core::{Clock, SystemClock};
use session_proto::convert;
use session_proto::v1;
use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

/// Total timeout of `create --wait`; longer than any provisioning deadline.
const CREATE_WAIT_TIMEOUT: Duration = Duration::from_secs(16 * 60);
/// Timeout of one `DescribeSession` that waits, and the maximum delay with which a new
/// cause of waiting is shown.
const DESCRIBE_WAIT_TIMEOUT: Duration = Duration::from_secs(2);
/// Exit code of a command that Ctrl-C ended, as shells have it.
const INTERRUPTED: u8 = 130;
/// Maximum number of sessions in one page.
const MAX_PAGE: usize = 1000;

pub(super) async fn create_session(target: &Target, output: Output, create: Create) -> Result<()> {
    let Create {
        cluster,
        options,
        request_id,
        wait,
    } = create;
    let mut session = create_from(target, cluster, options, request_id).await?;
    if wait {
        session = wait_ready(target, session).await?;
    }
    show_session(output, &session);
    Ok(())
}

/// Creates a session; its start continues.
async fn create_from(
    target: &Target,
    cluster: String,
    options: SessionOptions,
    request_id: Option<String>,
) -> Result<v1::Session> {
    let created = client::sessions(target)
        .await?
        .create_session(create_request(cluster, options, request_id))
        .await
        .map_err(explain)?
        .into_inner();
    Ok(created.session.unwrap_or_default())
}

pub(crate) fn create_request(
    cluster: String,
    options: SessionOptions,
    request_id: Option<String>,
) -> v1::CreateSessionRequest {
    let labels = options.labels().into_iter().collect();
    v1::CreateSessionRequest {
        request_id: request_id.unwrap_or_default(),
        cluster,
        catalog: options.catalog.unwrap_or_default(),
        name: options.name.unwrap_or_default(),
        team: options.team.unwrap_or_default(),
        labels,
        idle_timeout: options.idle_timeout.map(convert::duration),
        close_after_idle: options.close_after_idle.map(convert::duration),
        max_lifetime: options.max_lifetime.map(convert::duration),
        profile: options.profile.unwrap_or_default(),
    }
}

/// Waits until the start of a session has ended, and shows its phases. Ctrl-C
/// ends the waiting, not the start.
pub(super) async fn wait_ready(target: &Target, session: v1::Session) -> Result<v1::Session> {
    let id = session.id.clone();
    let mut shown = Progress::new(&id);
    tokio::select! {
        ended = wait_for_end(target, session, &mut shown) => ended,
        _ = tokio::signal::ctrl_c() => {
            shown.clear();
            let text = format!(
                "Stopped waiting; the session still starts. Wait again: `berth session describe {id} --wait`. Close it: `berth session close {id}`."
            );
            bail!(Exit { code: INTERRUPTED, text })
        }
    }
}

/// [`wait_ready`] without an end by Ctrl-C.
pub(crate) async fn wait_for_end(
    target: &Target,
    mut session: v1::Session,
    shown: &mut Progress,
) -> Result<v1::Session> {
    let begun = Instant::now();
    while session.status() == v1::SessionStatus::Pending {
        if begun.elapsed() > CREATE_WAIT_TIMEOUT {
            bail!(
                "session {} is still pending; see `berth session describe {0}`",
                session.id
            );
        }
        shown.phase(&progress(&session));
        session = {
            let described = describe(target, session.id, Some(DESCRIBE_WAIT_TIMEOUT));
            shown.animate(described).await?
        };
    }
    shown.end(output::status(&session));
    if session.status() == v1::SessionStatus::Failed {
        bail!("session {} failed: {}", session.id, session.status_message);
    }
    Ok(session)
}

/// The phase, and what the session waits for if that is known.
fn progress(session: &v1::Session) -> String {
    if session.status_message.is_empty() {
        session.phase.clone()
    } else {
        format!("{}: {}", session.phase, session.status_message)
    }
}

pub(super) async fn describe(
    target: &Target,
    session_id: String,
    wait: Option<Duration>,
) -> Result<v1::Session> {
    let request = v1::DescribeSessionRequest {
        session_id,
        wait_ready: wait.map(convert::duration),
    };
    let answer = client::sessions(target)
        .await?
        .describe_session(request)
        .await
        .map_err(explain)?
        .into_inner();
    Ok(answer.session.unwrap_or_default())
}

fn show_session(output: Output, session: &v1::Session) {
    output::fields(output, &output::session_fields(session), session);
}

/// Reads pages until there are `limit` sessions.
async fn pages(target: &Target, statuses: Vec<i32>, limit: usize) -> Result<Vec<v1::Session>> {
    let mut client = client::sessions(target).await?;
    let mut sessions = Vec::new();
    let mut page_token = String::new();
    loop {
        let wanted = i32::try_from((limit - sessions.len()).min(MAX_PAGE)).unwrap_or(i32::MAX);
        let request = v1::ListSessionsRequest {
            statuses: statuses.clone(),
            page_size: wanted,
            page_token,
            ..v1::ListSessionsRequest::default()
        };
        let page = client.list_sessions(request).await.map_err(explain)?.into_inner();
        sessions.extend(page.sessions);
        page_token = page.next_page_token;
        if page_token.is_empty() || sessions.len() >= limit {
            return Ok(sessions);
        }
    }
}

pub(super) async fn list(target: &Target, output: Output, all: bool, limit: u32) -> Result<()> {
    let live = [
        v1::SessionStatus::Pending,
        v1::SessionStatus::Active,
        v1::SessionStatus::Idle,
    ];
    let statuses = if all {
        Vec::new()
    } else {
        live.into_iter().map(i32::from).collect()
    };
    let sessions = pages(target, statuses, usize::try_from(limit)?).await?;
    let now = SystemClock.now();
    let rows = sessions
        .iter()
        .map(|session| {
            vec![
                session.id.clone(),
                session.name.clone(),
                output::status(session).to_owned(),
                session.cluster.clone(),
                session.catalog.clone(),
                session.owner.clone(),
                distance(session.created_at.as_ref(), now),
                distance(session.closes_at.as_ref(), now),
            ]
        })
        .collect();
    output::rows(
        output,
        &[
            "SESSION",
            "NAME",
            "STATUS",
            "CLUSTER",
            "CATALOG",
            "OWNER",
            "AGE",
            "CLOSES IN",
        ],
        rows,
        &sessions,
    );
    Ok(())
}

pub(super) async fn events(target: &Target, output: Output, session_id: String) -> Result<()> {
    let request = v1::ListSessionEventsRequest { session_id };
    let events = client::sessions(target)
        .await?
        .list_session_events(request)
        .await
        .map_err(explain)?
        .into_inner()
        .events;
    let rows = events
        .iter()
        .map(|event| {
            vec![
                moment(event.at.as_ref()),
                event.version.to_string(),
                event.phase.clone(),
                event.reason.clone(),
                event.actor.clone(),
                event.message.clone(),
            ]
        })
        .collect();
    output::rows(
        output,
        &["AT", "VERSION", "PHASE", "REASON", "ACTOR", "MESSAGE"],
        rows,
        &events,
    );
    Ok(())
}

pub(super) async fn close(target: &Target, output: Output, sessions: Vec<String>) -> Result<()> {
    let mut client = client::sessions(target).await?;
    for session_id in sessions {
        let closed = client
            .close_session(v1::CloseSessionRequest { session_id })
            .await
            .map_err(explain)?
            .into_inner();
        show_session(output, &closed.session.unwrap_or_default());
    }
    Ok(())
}

pub(super) async fn show(target: &Target, output: Output, session: String, wait: bool) -> Result<()> {
    let mut session = describe(target, session, None).await?;
    if wait {
        session = wait_ready(target, session).await?;
    }
    show_session(output, &session);
    Ok(())
}

pub(super) async fn warm(target: &Target, output: Output, session_id: String) -> Result<()> {
    let request = v1::WarmSessionRequest { session_id };
    let warmed = client::sessions(target)
        .await?
        .warm_session(request)
        .await
        .map_err(explain)?
        .into_inner();
    show_session(output, &warmed.session.unwrap_or_default());
    Ok(())
}

pub(super) async fn extend(target: &Target, output: Output, session_id: String, until: Until) -> Result<()> {
    let request = v1::ExtendSessionRequest {
        session_id,
        expires_at: Some(moment_of(&until)?),
    };
    let extended = client::sessions(target)
        .await?
        .extend_session(request)
        .await
        .map_err(explain)?
        .into_inner();
    show_session(output, &extended.session.unwrap_or_default());
    Ok(())
}

pub(super) async fn keep_alive(
    target: &Target,
    output: Output,
    session_id: String,
    until: Until,
) -> Result<()> {
    let request = v1::KeepSessionAliveRequest {
        session_id,
        until: Some(moment_of(&until)?),
    };
    let kept = client::sessions(target)
        .await?
        .keep_session_alive(request)
        .await
        .map_err(explain)?
        .into_inner();
    show_session(output, &kept.session.unwrap_or_default());
    Ok(())
}

/// The time from the given option.
fn moment_of(until: &Until) -> Result<prost_types::Timestamp> {
    let now = SystemClock.now();
    let at = match (until.duration, until.until) {
        (Some(duration), None) => now.after(duration),
        (None, Some(at)) => {
            let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            session_core::Timestamp::ZERO.after(since)
        }
        (Some(_), Some(_)) | (None, None) => bail!("use either --for or --until"),
    };
    Ok(convert::timestamp(at))
}

/// Attempts to change labels while others change the session.
const MAX_UPDATES: u32 = 5;

pub(super) async fn update(target: &Target, output: Output, update: Update) -> Result<()> {
    let name = if update.no_name {
        Some(String::new())
    } else {
        update.name
    };
    let sets_labels = !update.labels.is_empty() || !update.removed.is_empty();
    let mut client = client::sessions(target).await?;
    for attempt in 1.. {
        let (mut labels, mut version) = (None, 0);
        if sets_labels {
            // The labels are replaced only if the session did not change meanwhile.
            let session = describe(target, update.session.clone(), None).await?;
            version = session.version;
            labels = Some(v1::Labels {
                labels: relabelled(session.labels, update.labels.clone(), &update.removed),
            });
        }
        let request = v1::UpdateSessionRequest {
            session_id: update.session.clone(),
            name: name.clone(),
            labels,
            version,
        };
        match client.update_session(request).await {
            Ok(updated) => {
                show_session(output, &updated.into_inner().session.unwrap_or_default());
                break;
            }
            Err(status) if is_conflict(&status) && attempt < MAX_UPDATES => {}
            Err(status) => return Err(explain(status)),
        }
    }
    Ok(())
}

fn is_conflict(status: &tonic::Status) -> bool {
    session_proto::error::reason_of(status) == Some(session_core::Reason::Conflict)
}

/// The API replaces all labels together.
fn relabelled(
    mut labels: HashMap<String, String>,
    set: Vec<(String, String)>,
    removed: &[String],
) -> HashMap<String, String> {
    labels.retain(|key, _| !removed.contains(key));
    labels.extend(set);
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_names_what_a_session_waits_for() {
        let mut session = v1::Session {
            phase: "provisioning".to_owned(),
            ..v1::Session::default()
        };
        assert_eq!(progress(&session), "provisioning");
        session.status_message = "no node has room: insufficient cpu".to_owned();
        assert_eq!(
            progress(&session),
            "provisioning: no node has room: insufficient cpu"
        );
    }

    #[test]
    fn other_labels_stay() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let before = HashMap::from([pair("a", "1"), pair("b", "2"), pair("c", "3")]);
        let after = relabelled(before, vec![pair("b", "9")], &["a".to_owned()]);
        assert_eq!(after, HashMap::from([pair("b", "9"), pair("c", "3")]));
    }
}
