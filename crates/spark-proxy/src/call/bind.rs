//! Spark sessions on shared compute belong to one Berth session: the first
//! use of a Spark session id binds it, and session-manager says to whom.
//!
//! On dedicated compute that replaced another, session-manager applies the
//! settings of an older Spark session again before its first call, or has its
//! client told that it is gone. The settings come from here: what a client
//! changed by `Config` is kept once the engine has taken it.

use crate::call::local_reply;
use crate::grpc::identity::SparkSessionId;
use crate::grpc::method::Method;
use crate::routes::{Backend, Route};
use crate::stop::Stop;
use crate::worker::Worker;
use crate::worker::session::OpenCall;
use crate::worker::settings::SettingsChange;
use prost::Message as _;
use service_kit::child_span;
use session_core::{Engine, Reason};
use session_proto::error::Refused;
use session_proto::internal::{BindSparkSessionRequest, BindSparkSessionResponse};

use session_proto::spark::{CloneSessionRequest, CloneSessionResponse};

use std::time::Duration;
use tracing::Instrument as _;

/// Session-manager takes 25 s at most, ten of them to choose the catalog.
const ANSWER_TIME: Duration = Duration::from_secs(27);
/// How long the answer to a change of settings is held back until it is kept.
const KEEP_TIMEOUT: Duration = Duration::from_secs(2);

/// Whose a Spark session is, as far as this proxy can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bound {
    Ours,
    /// The route does not say that it is ours, and the call is no work, which
    /// would bind it.
    Unknown,
    /// It is ours, older than the compute, and its client is to be told so.
    Replaced,
    /// The session changed while it was bound, so the binding may have been
    /// given back already.
    Outdated,
}

/// Makes sure that a call is about a Spark session of this session on shared
/// compute, and about a prepared one on compute that replaced another.
pub(crate) async fn check(
    worker: &Worker,
    open: &OpenCall,
    route: &Route,
    backend: &Backend,
    spark_session: SparkSessionId,
) -> Result<Bound, Refused> {
    let session = open.session();
    let needs_nothing = if backend.dedicated {
        !open.is_work() || !route.must_prepare(&spark_session)
    } else {
        route.binds(&spark_session)
    };
    if needs_nothing || session.is_bound(route.order, &spark_session) {
        return Ok(Bound::Ours);
    }
    if !open.is_work() {
        return Ok(Bound::Unknown);
    }
    Box::pin(async {
        let _gate = session.binding.lock().await;
        if session.is_bound(route.order, &spark_session) {
            return Ok(Bound::Ours);
        }
        let bound = bind(worker, open, route, backend, spark_session, false).await?;
        if bound.replaced && route.signals_replacement {
            return Ok(Bound::Replaced);
        }
        if session.is_outdated(route.order) {
            return Ok(Bound::Outdated);
        }
        Ok(Bound::Ours)
    })
    .await
}

/// Keeps a change of settings that the engine took, for the compute that
/// replaces it. The client has them either way, so a failure is not its error.
pub(crate) async fn keep_settings(
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
    let kept = async {
        let _gate = session.binding.lock().await;
        let change = (backend.generation, spark_session, change.clone());
        if session.has_just_kept(&change) {
            return Ok(true);
        }
        let answer = ask(worker, open, request, KEEP_TIMEOUT).await?;
        if !answer.not_kept {
            session.note_kept(change);
        }
        Ok(!answer.not_kept)
    };
    let kept: Result<Result<bool, Unasked>, _> = tokio::time::timeout(KEEP_TIMEOUT, kept).await;
    let outcome = match kept {
        Ok(Ok(true)) => return,
        Ok(Ok(false)) => "beyond the bounds",
        Ok(Err(_)) => "session-manager did not take them",
        Err(_) => "other changes of the session were not kept in time",
    };
    worker.shared.metrics.settings_not_kept.inc();
    tracing::debug!(%outcome, "settings of a Spark session were not kept");
}

/// Binds the session that a `CloneSession` names, before it comes to be.
pub(crate) async fn check_clone(
    worker: &Worker,
    open: &OpenCall,
    route: &Route,
    backend: &Backend,
    request: &[u8],
) -> Result<(), Stop> {
    let request = CloneSessionRequest::decode(request.get(5..).unwrap_or_default()).map_err(|_| {
        Refused::new(
            Reason::MalformedMessage,
            "The CloneSession request cannot be decoded.",
        )
    })?;
    match request.new_session_id {
        Some(id) => {
            let _gate = open.session().binding.lock().await;
            bind(worker, open, route, backend, parse(&id)?, true).await?;
            Ok(())
        }
        None => Ok(()),
    }
}

/// Binds the session that the server made up for a `CloneSession`.
pub(crate) async fn check_cloned(
    worker: &Worker,
    open: &OpenCall,
    route: &Route,
    backend: &Backend,
    response: &[u8],
) -> Result<(), Refused> {
    let Ok(response) = CloneSessionResponse::decode(response.get(5..).unwrap_or_default()) else {
        return Err(Refused::new(
            Reason::BackendLost,
            "The compute's answer to CloneSession is not one.",
        ));
    };
    let cloned = parse(&response.new_session_id)?;
    let _gate = open.session().binding.lock().await;
    bind(worker, open, route, backend, cloned, true).await?;
    Ok(())
}

fn parse(id: &str) -> Result<SparkSessionId, Refused> {
    id.parse().map_err(|_| {
        Refused::new(Reason::MalformedMessage, "new_session_id is not a UUID.")
            .with("field", "new_session_id")
    })
}

async fn bind(
    worker: &Worker,
    open: &OpenCall,
    route: &Route,
    backend: &Backend,
    spark_session: SparkSessionId,
    cloned: bool,
) -> Result<BindSparkSessionResponse, Refused> {
    worker.shared.metrics.bindings.inc();
    let request = BindSparkSessionRequest {
        cloned,
        ..request(open, backend, spark_session)
    };
    match ask(worker, open, request, ANSWER_TIME).await {
        Ok(answer) if answer.bound => {
            open.session().bind(route.order, spark_session);
            Ok(answer)
        }
        Ok(_) => Err(Refused::new(
            Reason::SparkSessionTaken,
            "This Spark session id is used by somebody else on this server. Leave session_id out of the connection string, or choose another one.",
        )),
        Err(Unasked::Refused(refused)) => Err(refused),
        Err(Unasked::Failed(status)) => match crate::routes::refusal(&status) {
            Some(refused) => Err(refused),
            // What is to be prepared on dedicated compute is not there yet.
            None if backend.dedicated => Err(unchecked()),
            None => nobody_can_tell(backend.engine).map(|()| BindSparkSessionResponse::default()),
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

/// Why there is no answer.
enum Unasked {
    /// Too many questions are under way.
    Refused(Refused),
    /// Session-manager refused, or could not be asked.
    Failed(tonic::Status),
}

async fn ask(
    worker: &Worker,
    open: &OpenCall,
    request: BindSparkSessionRequest,
    within: Duration,
) -> Result<BindSparkSessionResponse, Unasked> {
    let shared = &worker.shared;
    let claims = &open.caller().claims;
    let share = shared.questions.bind(claims).map_err(Unasked::Refused)?;
    let mut request = tonic::Request::new(request);
    request.set_timeout(within);
    let mut client = shared.routes.control_client();
    // On the control runtime, where the channel lives; it goes on if the call is given up.
    let ask = async move {
        let answer = client.bind_spark_session(request).await;
        drop(share);
        answer
    };
    let asked = shared.control.spawn(ask.instrument(child_span!("bind")));
    match tokio::time::timeout(within, asked).await {
        Ok(Ok(answer)) => answer.map(tonic::Response::into_inner).map_err(Unasked::Failed),
        Ok(Err(_)) | Err(_) => Err(Unasked::Failed(tonic::Status::unavailable("no answer"))),
    }
}

fn unchecked() -> Refused {
    Refused::new(
        Reason::ControlPlaneUnavailable,
        "Berth cannot check at the moment whose Spark session this is. Try again in a little while.",
    )
}

/// May a call go on about a Spark session of which session-manager cannot say
/// at the moment whose it is?
pub(crate) fn nobody_can_tell(engine: Engine) -> Result<(), Refused> {
    match engine {
        // JVM Spark keeps the sessions of two users apart even under one id; ours is in every message.
        Engine::Spark => Ok(()),
        Engine::Sail => Err(unchecked()),
    }
}

/// The answer to a call that is no work, about a Spark session that was never
/// used: to forward it would make the session.
pub(crate) fn unused(method: Method, request: &[u8]) -> Result<bytes::Bytes, Stop> {
    local_reply::without_compute(method, request, false)
}
