//! Sessions: create, read, change, close; their events and operations.

use super::body::{Json, NoBody, Reply, RequestBody};
use super::caller::{Caller, required};
use super::headers::{IdempotencyKey, IfMatch, precondition};
use super::query::Query;
use super::schema;
use crate::metrics::StreamKind;
use crate::problem::Problem;
use axum::extract::Path;
use session_proto::v1;

/// Where the id of a session is, if not in the body.
const ID_IN_PATH: (&str, &str) = ("session_id", "the session is named in the path");
/// Longest wait of a read.
const MAX_WAIT: i64 = 60;
/// Allowed sizes of a page.
pub(super) const PAGE_SIZES: std::ops::RangeInclusive<i32> = 1..=1000;

impl RequestBody for v1::CreateSessionRequest {
    const ELSEWHERE: &'static [(&'static str, &'static str)] =
        &[("request_id", "send it as the header Idempotency-Key")];
}
impl RequestBody for v1::UpdateSessionRequest {
    const ELSEWHERE: &'static [(&'static str, &'static str)] =
        &[ID_IN_PATH, ("version", "send it as the header If-Match")];
}
impl RequestBody for v1::ExtendSessionRequest {
    const ELSEWHERE: &'static [(&'static str, &'static str)] = &[ID_IN_PATH];
}
impl RequestBody for v1::KeepSessionAliveRequest {
    const ELSEWHERE: &'static [(&'static str, &'static str)] = &[ID_IN_PATH];
}
impl RequestBody for v1::InterruptOperationsRequest {
    const ELSEWHERE: &'static [(&'static str, &'static str)] = &[ID_IN_PATH];
}

fn reply(session: Option<v1::Session>) -> Result<Reply, Problem> {
    let session = required(session)?;
    Ok(Reply::ok(&session).version(session.version))
}

/// Creates a session; its compute starts at once. Repeat a request that failed
/// with the same `Idempotency-Key`: within 24 h it returns the session of the
/// first. The same key with another body is a conflict.
#[utoipa::path(post, path = "/sessions", tag = "sessions",
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 128 visible ASCII characters, unique for each intended session.")),
    request_body = schema::CreateSessionBody,
    responses((status = 201, description = "The new session.", body = schema::Session,
        headers(("Location" = String, description = "Path of the session."), ("ETag" = String, description = "Version of the session.")))))]
pub(super) async fn create_session(
    caller: Caller,
    key: IdempotencyKey,
    query: Query,
    Json(mut request): Json<v1::CreateSessionRequest>,
) -> Result<Reply, Problem> {
    query.only(&[])?;
    request.request_id = key.0;
    let created = caller.answer(caller.sessions().create_session(request)).await?;
    let session = required(created.session)?;
    let location = format!("{}/api/v1/sessions/{}", caller.app().prefix, session.id);
    Ok(Reply::ok(&session).version(session.version).created(&location))
}

/// Lists sessions, newest first. A page may be short or empty and still have a
/// next page.
#[utoipa::path(get, path = "/sessions", tag = "sessions",
    params(
        ("statuses" = Option<Vec<schema::SessionStatus>>, Query, description = "Only these; repeated, or separated by commas."),
        ("owner" = Option<String>, Query, description = "Only those of this principal: `issuer-alias|subject`."),
        ("cluster" = Option<String>, Query, description = "Only those on this cluster."),
        ("team" = Option<String>, Query, description = "Only those of this team."),
        ("labels" = Option<Vec<String>>, Query, description = "Only those with this label: `key=value`; repeated."),
        ("page_size" = Option<i32>, Query, minimum = 1, maximum = 1000, description = "Most sessions of a page; 100 by default."),
        ("page_token" = Option<String>, Query, description = "`next_page_token` of the page before.")),
    responses((status = 200, description = "A page of sessions.", body = schema::ListSessionsResponse)))]
pub(super) async fn list_sessions(caller: Caller, query: Query) -> Result<Reply, Problem> {
    let query = query.only(&[
        "statuses",
        "owner",
        "cluster",
        "team",
        "labels",
        "page_size",
        "page_token",
    ])?;
    let request = v1::ListSessionsRequest {
        statuses: query.enums::<v1::SessionStatus>("statuses")?,
        owner: query.text("owner")?,
        cluster: query.text("cluster")?,
        team: query.text("team")?,
        labels: query.pairs("labels")?,
        page_size: query.number("page_size", PAGE_SIZES)?,
        page_token: query.text("page_token")?,
    };
    let page = caller.answer(caller.sessions().list_sessions(request)).await?;
    Ok(Reply::ok(&page))
}

/// Reads a session, which is no activity. With `wait=active` the answer comes
/// when the session is no longer `pending`, at the latest after `timeout`.
#[utoipa::path(get, path = "/sessions/{session_id}", tag = "sessions",
    params(("session_id" = String, Path, description = "Id of the session."),
        ("wait" = Option<schema::Wait>, Query, description = "Wait while the session is `pending`."),
        ("timeout" = Option<schema::Seconds>, Query, description = "Longest wait, at most 60s, which is the default. Only with `wait`.")),
    responses((status = 200, description = "The session.", body = schema::Session,
        headers(("ETag" = String, description = "Version of the session.")))))]
pub(super) async fn describe_session(
    caller: Caller,
    Path(session_id): Path<String>,
    query: Query,
) -> Result<Reply, Problem> {
    let query = query.only(&["wait", "timeout"])?;
    let wait_ready = wait(&query)?;
    let mut stream = None;
    if wait_ready.is_some() {
        let limits = &caller.app().limits;
        stream = Some(limits.enter_stream(
            caller.front.client,
            caller.credential().id(),
            StreamKind::LongPoll,
        )?);
        caller.release();
    }
    let request = v1::DescribeSessionRequest {
        session_id,
        wait_ready,
    };
    let stopping = caller.app().stopping.clone();
    let mut sessions = caller.sessions();
    let call = caller.answer(sessions.describe_session(request.clone()));
    // At the shutdown a wait ends with the present session.
    let described = match stopping.run_until_cancelled(call).await {
        Some(described) => described?,
        None => {
            let now = v1::DescribeSessionRequest {
                wait_ready: None,
                ..request
            };
            caller.answer(caller.sessions().describe_session(now)).await?
        }
    };
    drop(stream);
    reply(described.session)
}

/// The requested wait, if any.
fn wait(query: &Query) -> Result<Option<prost_types::Duration>, Problem> {
    let timeout = query.duration("timeout")?;
    match (query.text("wait")?.as_str(), timeout) {
        ("", None) => Ok(None),
        ("", Some(_)) => Err(Problem::field("timeout", "needs wait=active")),
        ("active", None) => Ok(Some(prost_types::Duration {
            seconds: MAX_WAIT,
            nanos: 0,
        })),
        ("active", Some(timeout))
            if timeout.seconds < MAX_WAIT || (timeout.seconds == MAX_WAIT && timeout.nanos == 0) =>
        {
            Ok(Some(timeout))
        }
        ("active", Some(_)) => Err(Problem::field("timeout", "must be at most 60s")),
        _ => Err(Problem::field("wait", "must be active")),
    }
}

/// Changes the name or the labels of a session.
#[utoipa::path(patch, path = "/sessions/{session_id}", tag = "sessions",
    params(("session_id" = String, Path, description = "Id of the session."),
        ("If-Match" = Option<String>, Header, description = "ETag of the session: the change fails with 412 if it changed since.")),
    request_body = schema::UpdateSessionBody,
    responses((status = 200, description = "The changed session.", body = schema::Session,
        headers(("ETag" = String, description = "Version of the session.")))))]
pub(super) async fn update_session(
    caller: Caller,
    Path(session_id): Path<String>,
    condition: IfMatch,
    query: Query,
    Json(mut request): Json<v1::UpdateSessionRequest>,
) -> Result<Reply, Problem> {
    query.only(&[])?;
    request.session_id = session_id;
    request.version = condition.0.unwrap_or(0);
    let updated = caller.answer(caller.sessions().update_session(request)).await;
    reply(
        updated
            .map_err(|problem| precondition(problem, condition))?
            .session,
    )
}

/// Moves the end of a session, within 7 days of its creation.
#[utoipa::path(post, path = "/sessions/{session_id}:extend", tag = "sessions",
    params(("session_id" = String, Path, description = "Id of the session.")),
    request_body = schema::ExtendSessionBody,
    responses((status = 200, description = "The changed session.", body = schema::Session)))]
pub(super) async fn extend_session(
    caller: Caller,
    Path(session_id): Path<String>,
    query: Query,
    Json(mut request): Json<v1::ExtendSessionRequest>,
) -> Result<Reply, Problem> {
    query.only(&[])?;
    request.session_id = session_id;
    reply(
        caller
            .answer(caller.sessions().extend_session(request))
            .await?
            .session,
    )
}

/// Pauses the idle timeouts of a session, for work without an open call.
#[utoipa::path(post, path = "/sessions/{session_id}:keepAlive", tag = "sessions",
    params(("session_id" = String, Path, description = "Id of the session.")),
    request_body = schema::KeepSessionAliveBody,
    responses((status = 200, description = "The changed session.", body = schema::Session)))]
pub(super) async fn keep_session_alive(
    caller: Caller,
    Path(session_id): Path<String>,
    query: Query,
    Json(mut request): Json<v1::KeepSessionAliveRequest>,
) -> Result<Reply, Problem> {
    query.only(&[])?;
    request.session_id = session_id;
    reply(
        caller
            .answer(caller.sessions().keep_session_alive(request))
            .await?
            .session,
    )
}

/// Wakes an idle session ahead of its next query.
#[utoipa::path(post, path = "/sessions/{session_id}:warm", tag = "sessions",
    params(("session_id" = String, Path, description = "Id of the session.")),
    responses((status = 200, description = "The session.", body = schema::Session)))]
pub(super) async fn warm_session(
    caller: Caller,
    Path(session_id): Path<String>,
    query: Query,
    _: NoBody,
) -> Result<Reply, Problem> {
    query.only(&[])?;
    let request = v1::WarmSessionRequest { session_id };
    reply(
        caller
            .answer(caller.sessions().warm_session(request))
            .await?
            .session,
    )
}

/// Ends a session. Closing a closed session succeeds.
#[utoipa::path(post, path = "/sessions/{session_id}:close", tag = "sessions",
    params(("session_id" = String, Path, description = "Id of the session.")),
    responses((status = 200, description = "The closed session.", body = schema::Session)))]
pub(super) async fn close_session(
    caller: Caller,
    Path(session_id): Path<String>,
    query: Query,
    _: NoBody,
) -> Result<Reply, Problem> {
    query.only(&[])?;
    let request = v1::CloseSessionRequest { session_id };
    reply(
        caller
            .answer(caller.sessions().close_session(request))
            .await?
            .session,
    )
}

/// The last 50 changes of a session, oldest first.
#[utoipa::path(get, path = "/sessions/{session_id}/events", tag = "sessions",
    params(("session_id" = String, Path, description = "Id of the session.")),
    responses((status = 200, description = "The changes.", body = schema::ListSessionEventsResponse)))]
pub(super) async fn list_session_events(
    caller: Caller,
    Path(session_id): Path<String>,
    query: Query,
) -> Result<Reply, Problem> {
    query.only(&[])?;
    let request = v1::ListSessionEventsRequest { session_id };
    let events = caller
        .answer(caller.sessions().list_session_events(request))
        .await?;
    Ok(Reply::ok(&events))
}

/// The running operations of a session.
#[utoipa::path(get, path = "/sessions/{session_id}/operations", tag = "operations",
    params(("session_id" = String, Path, description = "Id of the session.")),
    responses((status = 200, description = "The operations.", body = schema::ListOperationsResponse)))]
pub(super) async fn list_operations(
    caller: Caller,
    Path(session_id): Path<String>,
    query: Query,
) -> Result<Reply, Problem> {
    query.only(&[])?;
    let request = v1::ListOperationsRequest { session_id };
    let operations = caller.answer(caller.sessions().list_operations(request)).await?;
    Ok(Reply::ok(&operations))
}

/// Interrupts operations of a session: those with these ids, or all without
/// ids. Never wakes a session.
#[utoipa::path(post, path = "/sessions/{session_id}/operations:interrupt", tag = "operations",
    params(("session_id" = String, Path, description = "Id of the session.")),
    request_body = schema::InterruptOperationsBody,
    responses((status = 200, description = "The operations that the engine reports as interrupted.",
        body = schema::InterruptOperationsResponse)))]
pub(super) async fn interrupt_operations(
    caller: Caller,
    Path(session_id): Path<String>,
    query: Query,
    Json(mut request): Json<v1::InterruptOperationsRequest>,
) -> Result<Reply, Problem> {
    query.only(&[])?;
    request.session_id = session_id;
    let interrupted = caller
        .answer(caller.sessions().interrupt_operations(request))
        .await?;
    Ok(Reply::ok(&interrupted))
}
