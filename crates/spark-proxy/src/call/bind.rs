//! Bindings of Spark sessions: on shared compute, the first use of a Spark session id binds it to
//! one Berth session in session-manager.
//!
//! On dedicated compute that replaced another, session-manager restores the settings of an older
//! Spark session before its first call, or the client gets an error about the replacement. This
//! module reports the settings: changes by `Config` are stored once the engine has accepted them.

use crate::call::local_reply;
use crate::call_error::CallError;
use crate::grpc::identity::SparkSessionId;
use crate::grpc::method::Method;
use crate::grpc::payload;
use crate::grpc::spark_error::invalid_handle;
use crate::routes::{Backend, Route};
use crate::worker::Worker;
use crate::worker::session::OpenCall;
use crate::worker::settings::SettingsChange;
use prost::Message as _;
use service_kit::child_span;
use session_core::{Engine, Reason};
use session_proto::error::{Refused, reason_of};
use session_proto::internal::{BindSparkSessionRequest, BindSparkSessionResponse};
use session_proto::spark::{CloneSessionRequest, CloneSessionResponse};
use std::time::Duration;
use tracing::Instrument as _;

/// Session-manager's limit is 25 s, of which 10 s are for the catalog.
const BIND_TIMEOUT: Duration = Duration::from_secs(27);
/// Maximum delay of a response to `Config` until the settings are stored.
const STORE_SETTINGS_TIMEOUT: Duration = Duration::from_secs(2);

/// Binding of a Spark session, as known to this proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BindingStatus {
    Bound,
    /// The route has no such binding, and the call is not work, which would create it.
    Unknown,
    /// Bound, but older than the compute; the client gets an error.
    Replaced,
    /// The session changed during the bind request, so the binding may have been released.
    Outdated,
}

/// Ensures that the Spark session is bound to this session on shared compute, or prepared on
/// replaced dedicated compute.
pub(crate) async fn check(
    worker: &Worker,
    open: &OpenCall,
    route: &Route,
    backend: &Backend,
    spark_session: SparkSessionId,
) -> Result<BindingStatus, Refused> {
    let session = open.session();
    let needs_nothing = if backend.dedicated {
        !open.is_work() || !route.must_prepare(&spark_session)
    } else {
        route.binds(&spark_session)
    };
    if needs_nothing || session.is_bound(route.version, &spark_session) {
        return Ok(BindingStatus::Bound);
    }
    if !open.is_work() {
        return Ok(BindingStatus::Unknown);
    }
    Box::pin(async {
        let _binding = session.binding.lock().await;
        if session.is_bound(route.version, &spark_session) {
            return Ok(BindingStatus::Bound);
        }
        let bound = bind(worker, open, route, backend, spark_session, false).await?;
        if bound.replaced && route.signals_replacement {
            return Ok(BindingStatus::Replaced);
        }
        if session.is_outdated(route.version) {
            return Ok(BindingStatus::Outdated);
        }
        Ok(BindingStatus::Bound)
    })
    .await
}

/// Stores a settings change that the engine accepted, for later compute. A failure does not fail
/// the call: the current engine has the settings.
pub(crate) async fn store_settings(
    worker: &Worker,
    open: &OpenCall,
    backend: &Backend,
    spark_session: SparkSessionId,
    change: &SettingsChange,
) {
    let request = BindSparkSessionRequest {
        set: change.set.clone(),
        unset: change.unset.clone(),
        ..request(open, backend, spark_session)
    };
    let session = open.session();
    let stored = async {
        let _binding = session.binding.lock().await;
        let change = (backend.generation, spark_session, change.clone());
        if session.was_just_stored(&change) {
            return Ok(true);
        }
        let answer = send_bind(worker, open, request, STORE_SETTINGS_TIMEOUT).await?;
        if !answer.not_kept {
            session.record_stored(change);
        }
        Ok(!answer.not_kept)
    };
    let stored: Result<Result<bool, BindError>, _> =
        tokio::time::timeout(STORE_SETTINGS_TIMEOUT, stored).await;
    let outcome = match stored {
        Ok(Ok(true)) => return,
        Ok(Ok(false)) => "over the limits",
        Ok(Err(_)) => "request to session-manager failed",
        Err(_) => "timeout",
    };
    worker.shared.metrics.control.settings_not_stored.inc();
    tracing::debug!(%outcome, "storing Spark session settings failed");
}

/// Binds the Spark session that a `CloneSession` names, before it is created.
pub(crate) async fn check_clone(
    worker: &Worker,
    open: &OpenCall,
    route: &Route,
    backend: &Backend,
    request: &[u8],
) -> Result<(), CallError> {
    let request = CloneSessionRequest::decode(payload(request).unwrap_or_default()).map_err(|_| {
        Refused::new(
            Reason::MalformedMessage,
            "The CloneSession request cannot be decoded.",
        )
    })?;
    match request.new_session_id {
        Some(id) => {
            let clone = id
                .parse()
                .map_err(|_| CallError::Engine(Box::new(invalid_handle("new_session_id"))))?;
            let _binding = open.session().binding.lock().await;
            bind(worker, open, route, backend, clone, true).await?;
            Ok(())
        }
        None => Ok(()),
    }
}

/// Binds the Spark session that the server chose for a `CloneSession`.
pub(crate) async fn check_cloned(
    worker: &Worker,
    open: &OpenCall,
    route: &Route,
    backend: &Backend,
    response: &[u8],
) -> Result<(), Refused> {
    let Ok(response) = CloneSessionResponse::decode(payload(response).unwrap_or_default()) else {
        return Err(Refused::new(
            Reason::BackendLost,
            "The compute's answer to CloneSession cannot be decoded.",
        ));
    };
    let cloned = response.new_session_id.parse().map_err(|_| {
        Refused::new(
            Reason::BackendLost,
            "The compute's answer to CloneSession has no UUID of a Spark session.",
        )
    })?;
    let _binding = open.session().binding.lock().await;
    bind(worker, open, route, backend, cloned, true).await?;
    Ok(())
}

async fn bind(
    worker: &Worker,
    open: &OpenCall,
    route: &Route,
    backend: &Backend,
    spark_session: SparkSessionId,
    cloned: bool,
) -> Result<BindSparkSessionResponse, Refused> {
    worker.shared.metrics.control.bindings.inc();
    let request = BindSparkSessionRequest {
        cloned,
        ..request(open, backend, spark_session)
    };
    match send_bind(worker, open, request, BIND_TIMEOUT).await {
        Ok(answer) if answer.bound => {
            open.session().bind(route.version, spark_session);
            Ok(answer)
        }
        Ok(_) => Err(Refused::new(
            Reason::SparkSessionTaken,
            "This Spark session id is used by somebody else on this server. Leave session_id out of the connection string, or choose another one.",
        )),
        Err(BindError::Refused(refused)) => Err(refused),
        Err(BindError::Failed(status)) => match crate::routes::rejection(&status) {
            Some(refused) => Err(refused),
            // Settings that must be restored on dedicated compute are not there yet.
            None if backend.dedicated => Err(binding_unconfirmed(Some(&status))),
            None => {
                allow_unconfirmed(backend.engine, Some(&status)).map(|()| BindSparkSessionResponse::default())
            }
        },
    }
}

fn request(open: &OpenCall, backend: &Backend, spark_session: SparkSessionId) -> BindSparkSessionRequest {
    BindSparkSessionRequest {
        session_token: open.caller().token.to_string(),
        spark_session_id: spark_session.as_str().to_owned(),
        generation: backend.generation,
        ..BindSparkSessionRequest::default()
    }
}

/// Reason for a missing bind response.
enum BindError {
    /// Too many bind requests are open.
    Refused(Refused),
    /// Session-manager rejected the request or could not be reached.
    Failed(tonic::Status),
}

async fn send_bind(
    worker: &Worker,
    open: &OpenCall,
    request: BindSparkSessionRequest,
    within: Duration,
) -> Result<BindSparkSessionResponse, BindError> {
    let shared = &worker.shared;
    let claims = &open.caller().claims;
    let permit = shared.manager_requests.bind(claims).map_err(BindError::Refused)?;
    let mut request = tonic::Request::new(request);
    request.set_timeout(within);
    let mut client = shared.routes.control_client();
    // Runs on the control runtime, which owns the channel; continues if the call is cancelled.
    let ask = async move {
        let answer = client.bind_spark_session(request).await;
        drop(permit);
        answer
    };
    let asked = shared.control.spawn(ask.instrument(child_span!("bind")));
    match tokio::time::timeout(within, asked).await {
        Ok(Ok(answer)) => answer.map(tonic::Response::into_inner).map_err(BindError::Failed),
        Ok(Err(_)) | Err(_) => Err(BindError::Failed(tonic::Status::unavailable("no answer"))),
    }
}

/// The error while a binding cannot be confirmed. If session-manager answered, its text has the
/// cause.
fn binding_unconfirmed(answer: Option<&tonic::Status>) -> Refused {
    let explains = |answer: &&tonic::Status| reason_of(answer) == Some(Reason::ControlPlaneUnavailable);
    let text = answer.filter(explains).map_or(
        "Berth cannot check at the moment whose Spark session this is. Try again in a little while.",
        tonic::Status::message,
    );
    Refused::new(Reason::ControlPlaneUnavailable, text)
}

/// Decides whether a call may continue while session-manager cannot confirm the binding.
pub(crate) fn allow_unconfirmed(engine: Engine, answer: Option<&tonic::Status>) -> Result<(), Refused> {
    match engine {
        // Spark keys its sessions by user id and session id; every message carries Berth's user id.
        Engine::Spark => Ok(()),
        Engine::Sail => Err(binding_unconfirmed(answer)),
    }
}

/// Local reply to a call that is not work, about an unused Spark session: forwarding it would
/// create the Spark session.
pub(crate) fn unused(method: Method, request: &[u8]) -> Result<bytes::Bytes, CallError> {
    local_reply::without_compute(method, request, false)
}
