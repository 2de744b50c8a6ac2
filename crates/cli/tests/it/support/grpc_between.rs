//! A peer that forwards calls to a service, and does something before some of them.

use super::tcp_peer::peer;
use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use h2::server::SendResponse;
use http::{Request, Response};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use tokio::net::TcpStream;

/// What happens before a call.
type Before = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

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
    peer(move |stream: TcpStream| {
        let before = Arc::clone(&before);
        async move {
            let mut clients = h2::server::handshake(stream).await.unwrap();
            let (service, connection) = h2::client::handshake(TcpStream::connect(target).await.unwrap())
                .await
                .unwrap();
            tokio::spawn(connection);
            while let Some(Ok((request, respond))) = clients.accept().await {
                let (service, before) = (service.clone(), Arc::clone(&before));
                tokio::spawn(async move {
                    let request = whole(request).await;
                    if request.uri().path().ends_with(method) {
                        before().await;
                    }
                    forward(service, request, respond).await;
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

async fn forward(service: SendRequest<Bytes>, request: Request<Bytes>, mut respond: SendResponse<Bytes>) {
    let (head, bytes) = request.into_parts();
    let mut service = service.ready().await.unwrap();
    let (response, mut body) = service
        .send_request(Request::from_parts(head, ()), false)
        .unwrap();
    body.send_data(bytes, true).unwrap();
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
