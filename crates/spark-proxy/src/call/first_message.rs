//! The first message of a request: its Spark session and operation. Later messages are not decoded.

use crate::call_error::CallError;
use crate::grpc::identity::{Identity, Rewriter, SparkSessionId};
use crate::grpc::method::Method;
use crate::grpc::payload;
use crate::grpc::request_body::{MAX_REWIND_BYTES, RequestBody};
use crate::routes::Backend;
use crate::worker::session::OpenCall;
use crate::worker::settings::SettingsChange;
use prost::Message as _;
use session_core::{Engine, Reason};
use session_proto::error::Refused;
use session_proto::spark::{ReattachExecuteRequest, ReleaseExecuteRequest};

/// Contents of the first message.
pub(crate) struct FirstMessage {
    pub(crate) spark_session: SparkSessionId,
    /// The whole request, if it must be decoded here.
    pub(crate) peeked: Vec<u8>,
    pub(crate) reattach: Option<ReattachExecuteRequest>,
    /// On Sail: what the client no longer needs.
    pub(crate) release: Option<ReleaseExecuteRequest>,
    /// Settings change to be stored.
    pub(crate) settings: Option<SettingsChange>,
}

impl FirstMessage {
    pub(crate) async fn read(
        open: &OpenCall,
        backend: &Backend,
        request: &mut RequestBody,
    ) -> Result<Self, CallError> {
        let method = open.method();
        let understood = match method {
            Method::ReattachExecute => true,
            Method::ReleaseExecute if backend.engine == Engine::Sail => true,
            Method::CloneSession => !backend.dedicated,
            _ => !method.is_work() && !backend.dedicated,
        };
        let settings = if method == Method::Config && backend.dedicated {
            // Longer requests exceed the limit of stored settings.
            let whole = request.peek(MAX_REWIND_BYTES).await?;
            whole.and_then(|whole| SettingsChange::of(&whole, &open.caller().token))
        } else {
            None
        };
        let peeked = if understood {
            request.peek(MAX_REWIND_BYTES).await?.ok_or_else(|| {
                Refused::new(
                    Reason::MalformedMessage,
                    "The request is too long for its method.",
                )
            })?
        } else {
            Vec::new()
        };
        let reattach = (method == Method::ReattachExecute)
            .then(|| ReattachExecuteRequest::decode(payload(&peeked).unwrap_or_default()).ok())
            .flatten();
        let release = (method == Method::ReleaseExecute && backend.engine == Engine::Sail)
            .then(|| ReleaseExecuteRequest::decode(payload(&peeked).unwrap_or_default()).ok())
            .flatten();
        request.identify(rewriter(backend, open))?;
        Ok(Self {
            spark_session: request.open().await?,
            peeked,
            reattach,
            release,
            settings,
        })
    }
}

/// What rewrites the request, and collects what is needed of it.
fn rewriter(backend: &Backend, open: &OpenCall) -> Rewriter {
    let mut rewriter = Rewriter::new(identity(backend, open));
    if open.method() == Method::ExecutePlan {
        rewriter = rewriter.with_operation();
    }
    match open.method().client_type_field() {
        Some(field) => rewriter.with_client_type(field, open.session().known_clients.get()),
        None => rewriter,
    }
}

/// The user identity for the backend.
fn identity(backend: &Backend, open: &OpenCall) -> Identity {
    Identity::new(
        open.user_id(backend),
        open.caller().claims.sub.as_str(),
        backend.dedicated,
    )
}
