//! Admission: limits of the session and its organization.

use crate::call::ConnectionState;
use crate::grpc::method::Method;
use crate::worker::Worker;
use crate::worker::session::OpenCall;
use crate::worker::tokens::Caller;
use session_core::Reason;
use session_proto::error::Refused;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::Instant;

/// Retry delay for a session whose calls are rejected too often.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Opens a call within the limits of its session. Calls that are already known to be rejected do
/// not count against the limits of the organization.
pub(crate) fn admit(
    worker: &Rc<Worker>,
    connection: &ConnectionState,
    caller: &Rc<Caller>,
    method: Method,
    now: Instant,
) -> Result<OpenCall, Refused> {
    let session = worker.session(&caller.claims);
    let usage = &session.usage;
    let routes = &worker.shared.routes;
    let refused = session.known_error(routes, &caller.claims);
    // The rate of rejections also limits route requests caused by rejected calls.
    let doubtful = !session.has_fresh_route(routes) && usage.was_rejected_recently();
    if (refused.is_some() || doubtful) && !usage.try_take_rejection() {
        return Err(Refused::new(
            Reason::RateLimited,
            "Calls of this session were refused too often. See why, and try again in a little while.",
        )
        .retry_after(RETRY_DELAY));
    }
    if let Some(refused) = refused {
        return Err(refused);
    }
    let max = worker.shared.config.limits.calls_per_session;
    let open = session.open(caller, method, max, &connection.last_admitted, now)?;
    if caller.take_report_due(now) {
        usage.token_used(&caller.claims.jti);
    }
    Ok(open)
}
