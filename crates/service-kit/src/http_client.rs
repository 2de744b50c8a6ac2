//! A small HTTP/1.1 client for documents and identity providers: one connection
//! per request, no redirects, a bounded response.
//!
//! It has no timeout of its own: callers bound the whole request.

use crate::tls::{ClientTls, ClientTlsFiles, HTTP1};
use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use http::{Response, Uri, header, request};
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

    /// Sends a request to the address and returns the response with its body of
    /// at most `max_body` bytes. The builder's own address is replaced.
    ///
    /// # Errors
    /// When the peer cannot be reached, does not speak HTTP, or its body is too
    /// large. The status is not checked.
    pub async fn send(
        &self,
        request: request::Builder,
        body: Bytes,
        max_body: usize,
    ) -> anyhow::Result<Response<Bytes>> {
        let default_port = if self.tls.is_some() { 443 } else { 80 };
        let port = self.uri.port_u16().unwrap_or(default_port);
        let io = crate::grpc::connect(self.uri.clone(), port, self.tls.clone())
            .await
            .context("connecting")?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
        let connection = tokio::spawn(connection);
        let path = self
            .uri
            .path_and_query()
            .map_or("/", http::uri::PathAndQuery::as_str);
        let host = self.uri.authority().map_or("", |authority| authority.as_str());
        let request = request
            .uri(path)
            .header(header::HOST, host)
            .body(Full::new(body))?;
        let answer = async {
            let (parts, body) = sender.send_request(request).await?.into_parts();
            let body = Limited::new(body, max_body).collect().await;
            let body = body.map_err(|error| anyhow!("reading the response: {error}"))?;
            anyhow::Ok(Response::from_parts(parts, body.to_bytes()))
        }
        .await;
        connection.abort();
        answer
    }
}

impl fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpClient")
            .field("host", &self.uri.host())
            .finish_non_exhaustive()
    }
}
