//! `GET /sessions:watch`: changes of sessions as server-sent events.
//!
//! A task reads the gRPC stream into a queue of limited length; a client that
//! does not read for a while loses its stream, not others theirs. A stream
//! starts with a reset and the present sessions, so a client that connects
//! again with `Last-Event-ID` misses no change, at any replica.

use super::caller::Caller;
use super::query::Query;
use super::schema;
use crate::front::IsStream;
use crate::limits::StreamPermit;
use crate::metrics::{Metrics, StreamKind};
use crate::problem::Problem;
use crate::state::AppState;
use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use serde_json::json;
use service_kit::connection::OpenCall;
use session_proto::json::value;
use session_proto::v1::watch_sessions_response::Update;
use session_proto::v1::{self, WatchSessionsResponse};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

/// Events that wait for a client.
const MAX_QUEUE: usize = 64;
/// Time in which a client must read an event when the queue is full.
const READ_TIMEOUT: Duration = Duration::from_secs(20);
/// Interval of comments, which show that the stream is alive.
const COMMENT_INTERVAL: Duration = Duration::from_secs(15);
/// Delay before a client connects again.
const RECONNECT_DELAY: Duration = Duration::from_secs(2);
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
const MAX_EVENT_ID: usize = 128;

/// Streams the sessions that the caller may read, as server-sent events.
///
/// `reset`: all earlier events are void and the present sessions follow, each
/// as `snapshot`. `session`: a session changed. The data of both is
/// `{"session": …, "event": …}`; the event is the change, or `null`. `error`:
/// the stream ends with this problem. `end`: the watched session has ended.
/// Send the last `id` as `Last-Event-ID` when connecting again.
#[utoipa::path(get, path = "/sessions:watch", tag = "sessions",
    params(("session_id" = Option<String>, Query, description = "Only this session; the stream ends after its end."),
        ("Last-Event-ID" = Option<String>, Header, description = "Id of the last event that the client has.")),
    responses((status = 200, description = "The stream.", content_type = "text/event-stream", body = schema::Events)))]
pub(super) async fn watch_sessions(
    State(app): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    query: Query,
) -> Result<Response, Problem> {
    let session_id = query.only(&["session_id"])?.text("session_id")?;
    let after = last_event_id(&headers);
    let permit = app
        .limits
        .enter_stream(caller.front.client, caller.credential().id(), StreamKind::Watch)?;
    let only_one = !session_id.is_empty();
    let request = v1::WatchSessionsRequest { session_id };
    let updates = caller.answer(caller.sessions().watch_sessions(request)).await?;
    caller.release();
    let (events, queue) = mpsc::channel(MAX_QUEUE);
    let watcher = Watcher {
        events,
        metrics: Arc::clone(&app.metrics),
        stopping: app.stopping.clone(),
        prefix: app.prefix.clone(),
        only_one,
        after,
        _call: caller.front.usage.begin(),
    };
    tokio::spawn(watcher.run(updates));
    // The permit is held until the client has the rest or is gone: a client that reads nothing keeps
    // the events in memory after its watcher ended.
    let open = (queue, permit);
    let stream = stream::unfold(
        open,
        async |(mut queue, permit): (mpsc::Receiver<Event>, StreamPermit)| {
            let event = queue.recv().await?;
            Some((Ok::<_, Infallible>(event), (queue, permit)))
        },
    );
    let comments = KeepAlive::new().interval(COMMENT_INTERVAL);
    let mut response = Sse::new(stream).keep_alive(comments).into_response();
    response.extensions_mut().insert(IsStream);
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // nginx collects a response before it sends it, unless told otherwise.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

/// The client's position if it has the form of one; others are ignored.
fn last_event_id(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(LAST_EVENT_ID)?.to_str().ok()?;
    let is_id = (1..=MAX_EVENT_ID).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    is_id.then(|| text.to_owned())
}

/// The task of one stream.
struct Watcher {
    events: mpsc::Sender<Event>,
    metrics: Arc<Metrics>,
    stopping: CancellationToken,
    prefix: String,
    /// Whether one session is watched.
    only_one: bool,
    /// Position of the client at an earlier stream.
    after: Option<String>,
    _call: OpenCall,
}

impl Watcher {
    async fn run(self, mut updates: Streaming<WatchSessionsResponse>) {
        loop {
            let next = tokio::select! {
                next = updates.message() => next,
                () = self.stopping.cancelled() => return,
                () = self.events.closed() => return,
            };
            let (event, is_last) = match next {
                Ok(Some(update)) => (self.event(update), false),
                Ok(None) if self.only_one => (Event::default().event("end").data("{}"), true),
                Ok(None) => return,
                Err(status) => {
                    let problem = Problem::from(status).to_json(&self.prefix);
                    (Event::default().event("error").data(problem.to_string()), true)
                }
            };
            if !self.send(event).await || is_last {
                return;
            }
        }
    }

    fn event(&self, update: WatchSessionsResponse) -> Event {
        match update.update {
            Some(Update::Session(session)) => {
                let name = if update.event.is_some() {
                    "session"
                } else {
                    "snapshot"
                };
                let id = format!("{}@{}", session.id, session.version);
                let data = json!({"session": value(&session), "event": value(&update.event)});
                Event::default().event(name).id(id).data(data.to_string())
            }
            Some(Update::Reset(_)) | None => {
                let data = json!({"reset": {"after": self.after}});
                Event::default()
                    .event("reset")
                    .retry(RECONNECT_DELAY)
                    .data(data.to_string())
            }
        }
    }

    /// Whether the client can receive more.
    async fn send(&self, event: Event) -> bool {
        match self.events.send_timeout(event, READ_TIMEOUT).await {
            Ok(()) => true,
            Err(SendTimeoutError::Closed(_)) => false,
            Err(SendTimeoutError::Timeout(_)) => {
                self.metrics.slow_watchers.inc();
                false
            }
        }
    }
}
