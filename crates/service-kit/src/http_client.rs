//! One HTTP/1.1 request on a connection of its own, with limits.
//!
//! For key sets, discovery documents and token endpoints of identity providers:
//! few requests, small bodies. Redirects are not followed, because a redirect
//! would move a credential to another server.

use crate::tls::{ClientTls, ClientTlsFiles, HTTP1};
use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri, header, request};
use http_body_util::{BodyExt as _, Full, Limited};
use std::fmt;
use std::sync::Arc;

/// A client for one address.
pub struct HttpClient {
    uri: Uri,
    tls: Option<Arc<ClientTls>>,
}

impl HttpClient {
    /// A client for `uri`. The files are read only for `https`.
    ///
    /// # Errors
    /// When the files are unusable.
    pub fn new(uri: Uri, files: &ClientTlsFiles) -> anyhow::Result<Self> {
        let tls = if uri.scheme_str() == Some("https") {
            Some(ClientTls::load(files, HTTP1)?)
        } else {
            None
        };
        Ok(Self { uri, tls })
    }

    /// Its address.
    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Sends a request to the address, in place of the builder's own, as [`send`] does.
    ///
    /// # Errors
    /// Those of [`send`]. The status is not checked.
    pub async fn send(
        &self,
        request: request::Builder,
        body: Bytes,
        max_body: usize,
    ) -> anyhow::Result<Response<Bytes>> {
        let request = request.uri(self.uri.clone()).body(body)?;
        send(request, self.tls.clone(), max_body).await
    }
}

impl fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpClient")
            .field("host", &self.uri.host())
            .finish_non_exhaustive()
    }
}

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
    let request = Request::from_parts(parts, Full::new(body));
    let response = async {
        let (parts, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, max_body).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("reading the response: {error}"))?;
        anyhow::Ok(Response::from_parts(parts, body.to_bytes()))
    }
    .await;
    connection.abort();
    response
}
