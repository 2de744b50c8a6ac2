//! One HTTP/1.1 request on a connection of its own, with limits.
//!
//! For key sets, discovery documents and token endpoints of identity providers:
//! few requests, small bodies. Redirects are not followed, because a redirect
//! would move a credential to another server.

use crate::tls::ClientTls;
use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body_util::{BodyExt as _, Full, Limited};
use std::sync::Arc;

/// Sends `request`, whose URI is absolute, and reads a body of at most
/// `max_body` bytes. `tls` must be given exactly for `https`. The caller sets a
/// timeout.
///
/// # Errors
/// If the URI names no host, the connection fails, or the body is too large.
pub async fn send(
    request: Request<Bytes>,
    tls: Option<Arc<ClientTls>>,
    max_body: usize,
) -> anyhow::Result<Response<Bytes>> {
    let uri = request.uri().clone();
    let Some(authority) = uri.authority().cloned() else {
        bail!("the address names no host");
    };
    let port = uri.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
    let io = crate::grpc::connect(uri.clone(), port, tls)
        .await
        .context("connecting")?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    let connection = tokio::spawn(connection);
    let (mut parts, body) = request.into_parts();
    parts
        .headers
        .insert(header::HOST, HeaderValue::from_str(authority.as_str())?);
    parts.uri = uri
        .path_and_query()
        .map_or("/", http::uri::PathAndQuery::as_str)
        .parse()?;
    let response = sender
        .send_request(Request::from_parts(parts, Full::new(body)))
        .await?;
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, max_body).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("reading the response: {error}"))?;
    drop(sender);
    connection.abort();
    Ok(Response::from_parts(parts, body.to_bytes()))
}
