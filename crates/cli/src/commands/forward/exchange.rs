//! Forwards both directions of one attempt of a call, frame by frame. Data is read only when the
//! other side can take it, so a slow reader delays its own call only.

use super::reply::{ClientGone, Reply};
use super::request_body::RequestBody;
use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Response, StatusCode};
use service_kit::http2::{is_hop_by_hop, is_not_processed, remove_matching, request_capacity};
use session_core::Reason;
use session_proto::error::REASON_TRAILER;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;
use tonic::Status;

/// How an attempt ended.
pub(super) enum End {
    /// The client has the whole response; the reason is that of its trailers.
    Done(Option<Reason>),
    ClientGone,
    /// spark-proxy provably processed nothing; the client has nothing.
    NotProcessed(String),
    /// The response is trailers only; the client has nothing. The engine may have processed the call.
    Rejected(Response<()>),
    /// The response was lost.
    Lost(Status),
}

impl From<ClientGone> for End {
    fn from(ClientGone: ClientGone) -> Self {
        Self::ClientGone
    }
}

/// The reason of Berth in trailers, or in a response of trailers only.
pub(super) fn reason_in(trailers: &HeaderMap) -> Option<Reason> {
    let sent = trailers.get(REASON_TRAILER)?.as_bytes();
    let is_sent = |reason: &Reason| reason.as_str().as_bytes() == sent;
    Reason::ALL.iter().copied().find(is_sent)
}

/// Runs one attempt until it ends.
pub(super) async fn exchange(
    response: ResponseFuture,
    request: SendStream<Bytes>,
    body: &mut RequestBody,
    reply: &mut Reply,
) -> End {
    let mut upload = pin!(upload(body, request));
    let mut download = pin!(download(response, reply));
    let mut sent = None;
    loop {
        tokio::select! {
            biased;
            done = &mut upload, if sent.is_none() => match done {
                // Kept, because dropping it early would end the call.
                Ok(stream) => sent = Some(stream),
                Err(gone) => return gone.into(),
            },
            end = &mut download => return end.unwrap_or_else(|end| end),
        }
    }
}

/// Sends the request to spark-proxy.
async fn upload(
    body: &mut RequestBody,
    mut proxy: SendStream<Bytes>,
) -> Result<SendStream<Bytes>, ClientGone> {
    let mut sent = 0;
    while let Some(part) = body.next().await? {
        let mut data = part.data.clone();
        loop {
            let Ok(room) = request_capacity(&mut proxy, sent, data.len()).await else {
                // The response explains why spark-proxy stopped reading.
                return Ok(proxy);
            };
            let piece = data.split_to(room.min(data.len()));
            sent += piece.len();
            let is_last = part.is_last && data.is_empty();
            if proxy.send_data(piece, is_last).is_err() {
                return Ok(proxy);
            }
            if data.is_empty() {
                break;
            }
        }
        body.release(&part);
    }
    Ok(proxy)
}

/// Sends the response to the client.
async fn download(mut response: ResponseFuture, reply: &mut Reply) -> Result<End, End> {
    let response = poll_fn(|cx| {
        if let Poll::Ready(response) = Pin::new(&mut response).poll(cx) {
            return Poll::Ready(Ok(response));
        }
        reply.poll_gone(cx).map(|()| Err(ClientGone))
    })
    .await?;
    let (mut head, mut body) = response.map_err(|error| lost(&error))?.into_parts();
    if head.status != StatusCode::OK {
        return Err(End::Lost(Status::unavailable(format!(
            "Something on the way to Berth answered in place of it, with HTTP status {}: `berth doctor` finds the cause.",
            head.status.as_u16()
        ))));
    }
    remove_matching(&mut head.headers, is_hop_by_hop);
    let head = Response::from_parts(head, ());
    if body.is_end_stream() {
        return Ok(End::Rejected(head));
    }
    reply.begin(head, false)?;
    while let Some(data) = next_data(&mut body, reply).await? {
        send(data, &mut body, reply).await?;
    }
    let trailers = trailers(&mut body, reply).await?;
    let Some(trailers) = trailers else {
        return Err(End::Lost(Status::unavailable(
            "The response of Berth ended without a status.",
        )));
    };
    let reason = reason_in(&trailers);
    reply.trailers(trailers)?;
    Ok(End::Done(reason))
}

async fn next_data(body: &mut RecvStream, reply: &mut Reply) -> Result<Option<Bytes>, End> {
    poll_fn(|cx| {
        if let Poll::Ready(data) = body.poll_data(cx) {
            let data = data.transpose();
            return Poll::Ready(data.map_err(|error| broken(&error)));
        }
        reply.poll_gone(cx).map(|()| Err(ClientGone.into()))
    })
    .await
}

/// Sends bytes as the client takes them, and lets spark-proxy send as many again.
async fn send(mut data: Bytes, body: &mut RecvStream, reply: &mut Reply) -> Result<(), ClientGone> {
    let taken = data.len();
    while !data.is_empty() {
        let room = poll_fn(|cx| reply.poll_room(data.len(), cx)).await?;
        reply.data(data.split_to(room.min(data.len())))?;
    }
    // Fails only if the stream has ended.
    let _ = body.flow_control().release_capacity(taken);
    Ok(())
}

async fn trailers(body: &mut RecvStream, reply: &mut Reply) -> Result<Option<HeaderMap>, End> {
    poll_fn(|cx| {
        if let Poll::Ready(trailers) = body.poll_trailers(cx) {
            return Poll::Ready(trailers.map_err(|error| broken(&error)));
        }
        reply.poll_gone(cx).map(|()| Err(ClientGone.into()))
    })
    .await
}

/// The end of an attempt that was lost before its response began.
fn lost(error: &h2::Error) -> End {
    if is_not_processed(error) {
        return End::NotProcessed(error.to_string());
    }
    broken(error)
}

/// The end of an attempt that was lost. Clients that can reattach do so after UNAVAILABLE, as if
/// they had lost their own connection.
fn broken(error: &h2::Error) -> End {
    End::Lost(Status::unavailable(format!(
        "The connection to Berth was lost while the call ran: {error}."
    )))
}
