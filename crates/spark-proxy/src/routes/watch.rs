//! The watch stream of changes, which keeps the route cache correct.

use super::cache::Routes;
use super::{Gone, RouteVersion};
use session_core::{Reason, SessionId};
use session_proto::internal::watch_routes_response::Update;
use session_proto::internal::{RouteChange, RouteStatus, WatchRoutesRequest};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

const RETRY_DELAY: Duration = Duration::from_secs(1);
/// Interval at which running calls are checked without a watch stream.
const RECHECK_INTERVAL: Duration = Duration::from_secs(5);
/// Session-manager sends a heartbeat every second while it reads the changes: a stream without any
/// message for this long is lost.
const WATCH_TIMEOUT: Duration = Duration::from_secs(4);
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// Watches changes until `stop`.
pub(crate) async fn run(routes: Arc<Routes>, proxy_id: String, stop: CancellationToken) {
    let housekeeping = async {
        let mut recheck = tokio::time::interval(RECHECK_INTERVAL);
        let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
        loop {
            tokio::select! {
                _ = recheck.tick() => if !routes.is_watching() { routes.recheck() },
                _ = sweep.tick() => routes.sweep(),
            }
        }
    };
    let watching = async {
        loop {
            let (problem, last_message) = watch(&routes, &proxy_id).await;
            if routes.is_watching() {
                tracing::warn!(code = ?problem.code(), "route watch lost; reconnecting");
                routes.watch_lost(last_message);
            }
            tokio::time::sleep(RETRY_DELAY).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = housekeeping => {}
        () = watching => {}
    }
}

/// Reads one watch stream until its end; returns the status and the time of the last message.
async fn watch(routes: &Routes, proxy_id: &str) -> (tonic::Status, Instant) {
    let mut last_message = Instant::now();
    let problem = follow(routes, proxy_id, &mut last_message).await;
    (problem, last_message)
}

async fn follow(routes: &Routes, proxy_id: &str, last_message: &mut Instant) -> tonic::Status {
    let mut client = routes.control_client();
    let request = WatchRoutesRequest {
        proxy_id: proxy_id.to_owned(),
    };
    let timed_out = |_| tonic::Status::deadline_exceeded("no message in time");
    let mut stream = match timeout(WATCH_TIMEOUT, client.watch_routes(request)).await {
        Ok(Ok(stream)) => stream.into_inner(),
        Ok(Err(status)) => return status,
        Err(late) => return timed_out(late),
    };
    loop {
        let message = match timeout(WATCH_TIMEOUT, stream.message()).await {
            Ok(message) => message,
            Err(late) => return timed_out(late),
        };
        match message {
            Ok(Some(message)) => {
                *last_message = Instant::now();
                match message.update {
                    Some(Update::Reset(_)) if routes.is_watching() => {
                        tracing::info!("route watch reset; requesting all routes again");
                        routes.watch_reset();
                    }
                    Some(Update::Reset(_)) => {
                        tracing::info!("route watch started");
                        routes.watch_began();
                    }
                    Some(Update::Change(change)) => apply(routes, change),
                    Some(Update::Heartbeat(_)) | None => {}
                }
            }
            Ok(None) => return tonic::Status::unavailable("the stream ended"),
            Err(status) => return status,
        }
    }
}

fn apply(routes: &Routes, change: RouteChange) {
    let Ok(session) = change.session_id.parse::<SessionId>() else {
        tracing::error!("route change received without a session id");
        return;
    };
    let version = RouteVersion {
        store_epoch: change.store_epoch,
        version: change.version,
    };
    match change.status() {
        RouteStatus::Closed => {
            routes.ended(
                session,
                version,
                Gone {
                    reason: Reason::SessionClosed,
                    why: String::new(),
                },
            );
        }
        // The cause of a failure is in the route, which callers request when needed.
        RouteStatus::Failed
        | RouteStatus::Unspecified
        | RouteStatus::Pending
        | RouteStatus::Active
        | RouteStatus::Idle => routes.changed(session, version, change.token_epoch),
    }
}
