//! The stream of changes that keeps the book right.

use super::book::Routes;
use super::{Gone, Order};
use session_core::{Reason, SessionId};
use session_proto::internal::watch_routes_response::Update;
use session_proto::internal::{RouteChange, RouteStatus, WatchRoutesRequest};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const RETRY: Duration = Duration::from_secs(1);
/// While there is no stream, running calls are checked this often.
const RECHECK: Duration = Duration::from_secs(5);
const SWEEP: Duration = Duration::from_secs(60);

/// Watches until `stop`.
pub(crate) async fn run(routes: Arc<Routes>, proxy_id: String, stop: CancellationToken) {
    let housekeeping = async {
        let mut recheck = tokio::time::interval(RECHECK);
        let mut sweep = tokio::time::interval(SWEEP);
        loop {
            tokio::select! {
                _ = recheck.tick() => if !routes.is_watching() { routes.recheck() },
                _ = sweep.tick() => routes.sweep(),
            }
        }
    };
    let watching = async {
        loop {
            let problem = watch(&routes, &proxy_id).await;
            if routes.is_watching() {
                tracing::warn!(code = ?problem.code(), "the watch on routes ended; trying again");
                routes.watch_lost();
            }
            tokio::time::sleep(RETRY).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = housekeeping => {}
        () = watching => {}
    }
}

/// One stream, to its end.
async fn watch(routes: &Routes, proxy_id: &str) -> tonic::Status {
    let mut client = routes.client.clone();
    let request = WatchRoutesRequest {
        proxy_id: proxy_id.to_owned(),
    };
    let mut stream = match client.watch_routes(request).await {
        Ok(stream) => stream.into_inner(),
        Err(status) => return status,
    };
    loop {
        match stream.message().await {
            Ok(Some(message)) => match message.update {
                Some(Update::Reset(_)) if routes.is_watching() => {
                    tracing::info!("changes of routes may have been missed; asking again for all");
                    routes.watch_reset();
                }
                Some(Update::Reset(_)) => {
                    tracing::info!("watching routes");
                    routes.watch_began();
                }
                Some(Update::Change(change)) => apply(routes, change),
                None => {}
            },
            Ok(None) => return tonic::Status::unavailable("the stream ended"),
            Err(status) => return status,
        }
    }
}

fn apply(routes: &Routes, change: RouteChange) {
    let Ok(session) = change.session_id.parse::<SessionId>() else {
        tracing::error!("session-manager announced a change of no session");
        return;
    };
    let order = Order {
        store_epoch: change.store_epoch,
        version: change.version,
    };
    match change.status() {
        RouteStatus::Closed => {
            routes.ended(
                session,
                order,
                Gone {
                    reason: Reason::SessionClosed,
                    why: String::new(),
                },
            );
        }
        // Why a session failed is in its route, which is asked for by whoever needs it.
        RouteStatus::Failed
        | RouteStatus::Unspecified
        | RouteStatus::Pending
        | RouteStatus::Active
        | RouteStatus::Idle => routes.changed(session, order, change.token_epoch),
    }
}
