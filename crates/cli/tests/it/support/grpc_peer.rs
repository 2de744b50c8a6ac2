//! A peer that speaks HTTP/2 and answers every call in one scripted way.

use super::tcp_peer::peer;
use bytes::{BufMut as _, Bytes, BytesMut};
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Response};
use session_core::Reason;
use session_proto::error::Refused;
use std::net::SocketAddr;
use tokio::net::TcpStream;
use tonic::{Code, Status};

/// How every call is answered.
#[derive(Debug, Clone)]
pub(crate) enum Script {
    /// A bare HTTP status with one header.
    Http(u16, &'static str, &'static str),
    /// HTTP 200 and text, as a web server.
    Web,
    /// gRPC without trailers.
    NoTrailers,
    /// The stream is reset.
    Reset,
    /// A gRPC status.
    Status(Code, &'static str),
    /// A status of Berth.
    Reason(Reason),
    /// A message.
    Message(Vec<u8>),
}

/// Starts the peer.
pub(crate) async fn scripted(script: Script) -> SocketAddr {
    peer(move |stream: TcpStream| {
        let script = script.clone();
        async move {
            let Ok(mut connection) = h2::server::handshake(stream).await else {
                return;
            };
            while let Some(Ok((_, respond))) = connection.accept().await {
                answer(respond, &script);
            }
        }
    })
    .await
}

fn answer(mut respond: SendResponse<Bytes>, script: &Script) {
    let grpc = || Response::builder().header("content-type", "application/grpc");
    match script {
        Script::Http(status, name, value) => {
            let response = Response::builder().status(*status).header(*name, *value);
            respond.send_response(response.body(()).unwrap(), true).unwrap();
        }
        Script::Web => {
            let response = Response::builder()
                .header("content-type", "text/html")
                .body(())
                .unwrap();
            let mut body = respond.send_response(response, false).unwrap();
            body.send_data(Bytes::from_static(b"<html>"), true).unwrap();
        }
        Script::NoTrailers => {
            let mut body = respond.send_response(grpc().body(()).unwrap(), false).unwrap();
            body.send_data(framed(&[]), true).unwrap();
        }
        Script::Reset => respond.send_reset(h2::Reason::INTERNAL_ERROR),
        Script::Status(code, text) => refuse(&mut respond, &Status::new(*code, *text)),
        Script::Reason(reason) => refuse(&mut respond, &Refused::new(*reason, "scripted").into_status()),
        Script::Message(message) => {
            let mut body = respond.send_response(grpc().body(()).unwrap(), false).unwrap();
            body.send_data(framed(message), false).unwrap();
            let trailers =
                HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))]);
            body.send_trailers(trailers).unwrap();
        }
    }
}

fn refuse(respond: &mut SendResponse<Bytes>, status: &Status) {
    let mut response = Response::new(());
    response
        .headers_mut()
        .insert("content-type", HeaderValue::from_static("application/grpc"));
    status.add_header(response.headers_mut()).unwrap();
    respond.send_response(response, true).unwrap();
}

fn framed(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap());
    framed.extend_from_slice(message);
    framed.freeze()
}
