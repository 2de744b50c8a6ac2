//! Bytes both ways, frame by frame: nothing is read that the other side cannot
//! take, so a slow reader stops its own writer and nobody else.
//!
//! Both directions of a call run in the call's own task. When [`forward`]
//! returns for whatever reason, the upstream stream is dropped, which resets
//! it if it was not over; only then does the caller tell the client.

use crate::backend::{Body, Upstream};
use crate::call::Stop;
use crate::headers;
use crate::messages::{Broken, Messages, Next, Outgoing};
use crate::metrics::{Metrics, Outcome, Stage, Way};
use crate::respond::{Client, capacity};
use crate::translate::Sail;
use bytes::{Buf as _, Bytes};
use h2::SendStream;
use h2::client::ResponseFuture;
use http::{HeaderMap, StatusCode};
use session_core::Reason;
use session_proto::error::Refused;
use std::future::poll_fn;
use std::pin::pin;
use tokio::time::Instant;

/// Carries one call to its end.
pub(crate) async fn forward(
    metrics: &Metrics,
    upstream: Upstream,
    request: Messages,
    sail: Option<&Sail>,
    client: &mut Client,
) -> Result<Outcome, Stop> {
    let Upstream { response, sender } = upstream;
    let mut upload = pin!(upload(metrics, request, sender));
    let mut download = pin!(download(metrics, response, sail, client));
    let mut uploading = true;
    loop {
        tokio::select! {
            biased;
            sent = &mut upload, if uploading => match sent {
                Ok(_) => uploading = false,
                Err(broken) => return Err(broken.into()),
            },
            done = &mut download => return done,
        }
    }
}

/// The request to the backend. Both ends come back, because dropping one early
/// would look like the end of the call.
async fn upload(
    metrics: &Metrics,
    mut request: Messages,
    mut backend: SendStream<Outgoing>,
) -> Result<(Messages, SendStream<Outgoing>), Broken> {
    while let Some(next) = request.next().await? {
        let sent = match next {
            Next::Data(data, end) => {
                let len = data.remaining();
                if capacity(&mut backend, len).await.is_err() {
                    break;
                }
                metrics.bytes.at(Way::ToBackend).add(len as u64);
                backend.send_data(data, end)
            }
            Next::End(Some(trailers)) => backend.send_trailers(trailers),
            Next::End(None) => backend.send_data(Bytes::new().chain(Bytes::new()), true),
        };
        if sent.is_err() {
            break;
        }
        request.passed();
    }
    // If the backend wanted no more, its response says why.
    Ok((request, backend))
}

/// The response to the client.
async fn download(
    metrics: &Metrics,
    response: ResponseFuture,
    sail: Option<&Sail>,
    client: &mut Client,
) -> Result<Outcome, Stop> {
    let sent = Instant::now();
    let response = client
        .unless_gone(response)
        .await?
        .map_err(|error| lost(&error))?;
    metrics.waited.at(Stage::FirstByte).observe(sent.elapsed());
    let (mut head, body) = response.into_parts();
    if head.status != StatusCode::OK {
        tracing::info!(
            status = head.status.as_u16(),
            "compute answered with a bare HTTP status"
        );
        return Err(Stop::Refused(backend_lost("The compute's answer is not gRPC.")));
    }
    headers::toward_client(&mut head.headers);
    let status = outcome(&head.headers);
    if body.is_end_stream() {
        translated(sail, &head.headers)?;
        client.begin(http::Response::from_parts(head, ()), true)?;
        return Ok(status.unwrap_or(Outcome::BackendError));
    }
    client.begin(http::Response::from_parts(head, ()), false)?;
    let trailers = stream(metrics, body, client).await?;
    let Some(mut trailers) = trailers else {
        return Err(Stop::Refused(backend_lost(
            "The compute ended its answer without a status.",
        )));
    };
    translated(sail, &trailers)?;
    headers::toward_client(&mut trailers);
    let outcome = outcome(&trailers).unwrap_or(Outcome::BackendError);
    client.trailers(trailers)?;
    Ok(outcome)
}

async fn stream(metrics: &Metrics, mut body: Body, client: &mut Client) -> Result<Option<HeaderMap>, Stop> {
    loop {
        let data = client.unless_gone(poll_fn(|cx| body.poll_data(cx))).await?;
        let Some(data) = data else { break };
        let data = data.map_err(|error| lost(&error))?;
        let len = data.len();
        client.capacity(len).await?;
        client.data(data, false)?;
        metrics.bytes.at(Way::ToClient).add(len as u64);
        let _ = body.flow_control().release_capacity(len);
    }
    client
        .unless_gone(poll_fn(|cx| body.poll_trailers(cx)))
        .await?
        .map_err(|error| lost(&error))
}

/// Ends the call with another status where Sail's would not be understood.
fn translated(sail: Option<&Sail>, trailers: &HeaderMap) -> Result<(), Stop> {
    match sail.and_then(|sail| sail.translate(trailers)) {
        Some(status) => Err(Stop::Engine(status)),
        None => Ok(()),
    }
}

fn outcome(headers: &HeaderMap) -> Option<Outcome> {
    let status = headers.get("grpc-status")?;
    Some(if status.as_bytes() == b"0" {
        Outcome::Ok
    } else {
        Outcome::BackendError
    })
}

/// What the loss of an upstream stream means. Only a refusal, or a GOAWAY that
/// names the stream as not processed, proves that nothing was done.
fn lost(error: &h2::Error) -> Stop {
    let refused = error.is_remote()
        && match error.reason() {
            Some(h2::Reason::REFUSED_STREAM) => error.is_reset(),
            Some(h2::Reason::NO_ERROR) => error.is_go_away(),
            _ => false,
        };
    tracing::debug!(%error, refused, "the stream to compute was lost");
    Stop::Refused(if refused {
        backend_unavailable()
    } else {
        backend_lost("The connection to the compute was lost while the call ran.")
    })
}

pub(crate) fn backend_unavailable() -> Refused {
    Refused::new(
        Reason::BackendUnavailable,
        "The session's compute does not accept calls at the moment; nothing was done. Try again in a little while.",
    )
}

fn backend_lost(what: &str) -> Refused {
    Refused::new(
        Reason::BackendLost,
        format!("{what} Whether the operation took effect is not known. Check before you run it again."),
    )
}
