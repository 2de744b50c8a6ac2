//! Spark sessions on shared compute belong to one Berth session: the first
//! use of a Spark session id binds it, and session-manager says to whom.

use crate::call::Stop;
use crate::identity::SparkSessionId;
use crate::local;
use crate::method::Method;
use crate::routes::{Backend, Route};
use crate::session::OpenCall;
use crate::worker::Worker;
use prost::Message as _;
use session_core::{Engine, Reason};
use session_proto::error::Refused;
use session_proto::internal::BindSparkSessionRequest;
use session_proto::spark::{CloneSessionRequest, CloneSessionResponse};
use std::time::Duration;

/// Session-manager takes 25 s at most, ten of them to choose the catalog.
const ANSWER_TIME: Duration = Duration::from_secs(27);

/// Whose a Spark session is, as far as this proxy can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bound {
    Ours,
    /// The route does not say that it is ours, and the call is no work, which
    /// would bind it.
    Unknown,
}

/// Makes sure that a call on shared compute is about a Spark session of ours.
pub(crate) async fn check(
    worker: &Worker,
    open: &OpenCall,
    route: &Route,
    backend: &Backend,
    spark_session: SparkSessionId,
) -> Result<Bound, Refused> {
    let session = open.session();
    if backend.dedicated
        || session.is_bound(backend.generation, &spark_session)
        || route.binds(&spark_session)
    {
        return Ok(Bound::Ours);
    }
    if !open.is_work() {
        return Ok(Bound::Unknown);
    }
    Box::pin(async {
        let _gate = session.binding.lock().await;
        if !session.is_bound(backend.generation, &spark_session) {
            bind(worker, open, backend, spark_session, false).await?;
        }
        Ok(Bound::Ours)
    })
    .await
}

/// Binds the session that a `CloneSession` names, before it comes to be.
pub(crate) async fn check_clone(
    worker: &Worker,
    open: &OpenCall,
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
        Some(id) => Ok(bind(worker, open, backend, parse(&id)?, true).await?),
        None => Ok(()),
    }
}

/// Binds the session that the server made up for a `CloneSession`.
pub(crate) async fn check_cloned(
    worker: &Worker,
    open: &OpenCall,
    backend: &Backend,
    response: &[u8],
) -> Result<(), Refused> {
    let Ok(response) = CloneSessionResponse::decode(response.get(5..).unwrap_or_default()) else {
        return Err(Refused::new(
            Reason::BackendLost,
            "The compute's answer to CloneSession is not one.",
        ));
    };
    bind(worker, open, backend, parse(&response.new_session_id)?, true).await
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
    backend: &Backend,
    spark_session: SparkSessionId,
    cloned: bool,
) -> Result<(), Refused> {
    let shared = &worker.shared;
    shared.metrics.bindings.inc();
    let mut request = tonic::Request::new(BindSparkSessionRequest {
        session_token: open.caller().token.to_string(),
        spark_session_id: spark_session.as_str().to_owned(),
        generation: backend.generation,
        cloned,
    });
    request.set_timeout(ANSWER_TIME);
    let mut client = shared.routes.client();
    // On the control runtime, where the channel lives; it goes on if the call is given up.
    let asked = shared
        .control
        .spawn(async move { client.bind_spark_session(request).await });
    let answer = match tokio::time::timeout(ANSWER_TIME, asked).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) | Err(_) => Err(tonic::Status::unavailable("no answer")),
    };
    match answer {
        Ok(answer) if answer.get_ref().bound => {
            open.session().bind(backend.generation, spark_session);
            Ok(())
        }
        Ok(_) => Err(Refused::new(
            Reason::SparkSessionTaken,
            "This Spark session id is used by somebody else on this server. Call spark.stop(), then connect without session_id, or with another one.",
        )),
        Err(status) => match crate::routes::refusal(&status) {
            Some(refused) => Err(refused),
            None => nobody_can_tell(backend.engine),
        },
    }
}

/// May a call go on about a Spark session of which session-manager cannot say
/// at the moment whose it is?
pub(crate) fn nobody_can_tell(engine: Engine) -> Result<(), Refused> {
    match engine {
        // JVM Spark keeps the sessions of two users apart even under one id; ours is in every message.
        Engine::Spark => Ok(()),
        Engine::Sail => Err(Refused::new(
            Reason::ControlPlaneUnavailable,
            "Berth cannot check at the moment whose Spark session this is. Try again in a little while.",
        )),
    }
}

/// The answer to a call that is no work, about a Spark session that was never
/// used: to forward it would make the session.
pub(crate) fn unused(method: Method, request: &[u8]) -> Result<bytes::Bytes, Stop> {
    local::without_compute(method, request, false)
}
