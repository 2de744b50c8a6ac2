//! A peer that forwards calls to a service, and does something before some of them.

use super::tcp_peer::peer;
use bytes::{Bytes, BytesMut};
use h2::SendStream;
use h2::client::{ResponseFuture, SendRequest};
use h2::server::SendResponse;
use http::{Request, Response};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::net::TcpStream;

/// What happens before a call.
type Before = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// Starts a peer before `target` that loses the answers to the first `count` calls of `method`: the
/// service has processed them.
pub(crate) async fn losing(target: SocketAddr, method: &'static str, count: usize) -> SocketAddr {
    let left = Arc::new(AtomicUsize::new(count));
    between(target, move |service, request, mut respond| {
        let left = Arc::clone(&left);
        async move {
            let one_less = |left: usize| left.checked_sub(1);
            let is_lost = request.uri().path().ends_with(method)
                && left
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less)
                    .is_ok();
            if !is_lost {
                return forward(service, request, respond).await;
            }
            let (response, _body) = call(service, request).await;
            response.await.unwrap();
            respond.send_reset(h2::Reason::INTERNAL_ERROR);
        }
    })
    .await
}

/// Starts a peer before `target`; each call of `method` waits for `before`.
pub(crate) async fn forwarding<F>(
    target: SocketAddr,
    method: &'static str,
    before: impl Fn() -> F + Send + Sync + 'static,
) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let before: Before = Arc::new(move || Box::pin(before()));
    between(target, move |service, request, respond| {
        let before = Arc::clone(&before);
        async move {
            if request.uri().path().ends_with(method) {
                before().await;
            }
            forward(service, request, respond).await;
        }
    })
    .await
}

/// Starts a peer before `target` that handles each call with `handle`.
async fn between<F>(
    target: SocketAddr,
    handle: impl Fn(SendRequest<Bytes>, Request<Bytes>, SendResponse<Bytes>) -> F + Send + Sync + 'static,
) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let handle = Arc::new(handle);
    peer(move |stream: TcpStream| {
        let handle = Arc::clone(&handle);
        async move {
            let mut clients = h2::server::handshake(stream).await.unwrap();
            let (service, connection) = h2::client::handshake(TcpStream::connect(target).await.unwrap())
                .await
                .unwrap();
            tokio::spawn(connection);
            while let Some(Ok((request, respond))) = clients.accept().await {
                let (service, handle) = (service.clone(), Arc::clone(&handle));
                tokio::spawn(async move {
                    handle(service, whole(request).await, respond).await;
                });
            }
        }
    })
    .await
}

async fn whole(request: Request<h2::RecvStream>) -> Request<Bytes> {
    let (head, mut body) = request.into_parts();
    let mut bytes = BytesMut::new();
    while let Some(part) = body.data().await {
        let part = part.unwrap();
        body.flow_control().release_capacity(part.len()).unwrap();
        bytes.extend_from_slice(&part);
    }
    Request::from_parts(head, bytes.freeze())
}

async fn call(service: SendRequest<Bytes>, request: Request<Bytes>) -> (ResponseFuture, SendStream<Bytes>) {
    let (head, bytes) = request.into_parts();
    let mut service = service.ready().await.unwrap();
    let (response, mut body) = service
        .send_request(Request::from_parts(head, ()), false)
        .unwrap();
    body.send_data(bytes, true).unwrap();
    (response, body)
}

async fn forward(service: SendRequest<Bytes>, request: Request<Bytes>, mut respond: SendResponse<Bytes>) {
    let (response, _body) = call(service, request).await;
    let (head, mut body) = response.await.unwrap().into_parts();
    let ended = body.is_end_stream();
    let mut answer = respond
        .send_response(Response::from_parts(head, ()), ended)
        .unwrap();
    if ended {
        return;
    }
    while let Some(part) = body.data().await {
        let part = part.unwrap();
        body.flow_control().release_capacity(part.len()).unwrap();
        answer.send_data(part, false).unwrap();
    }
    let trailers = body.trailers().await.unwrap().unwrap_or_default();
    answer.send_trailers(trailers).unwrap();
}
