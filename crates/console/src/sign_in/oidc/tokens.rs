//! The token endpoint: exchange of a code, and renewal.

use super::LoginError;
use super::discovery::Endpoints;
use crate::sign_in::config::ProviderConfig;
use anyhow::{Context as _, Result, anyhow};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use form_urlencoded::{Serializer, byte_serialize};
use http::{Request, StatusCode, header};
use serde::Deserialize;
use service_kit::http_client::HttpClient;
use std::time::Duration;

/// Time limit of a request.
const TIMEOUT: Duration = Duration::from_secs(10);
const MAX_RESPONSE_BYTES: usize = 256 * 1024;
/// Maximum size of an error code in logs.
const MAX_CODE_CHARS: usize = 64;

/// What a new token is asked with.
pub(super) enum Grant<'g> {
    /// The code of a callback.
    Code {
        code: &'g str,
        /// The secret of PKCE.
        verifier: &'g str,
        redirect_uri: &'g str,
    },
    /// A refresh token.
    Refresh(&'g str),
}

/// The used fields of the response.
#[derive(Deserialize)]
pub(super) struct TokenResponse {
    pub(super) id_token: Option<String>,
    pub(super) access_token: Option<String>,
    pub(super) refresh_token: Option<String>,
    /// Lifetime of the access token in seconds.
    pub(super) expires_in: Option<u64>,
}

#[derive(Deserialize)]
struct ErrorResponse {
    error: String,
}

/// A failure, with the reason for the log.
pub(super) struct Failure {
    pub(super) error: LoginError,
    pub(super) why: anyhow::Error,
}

/// Asks for tokens.
///
/// # Errors
/// [`LoginError::Rejected`] if the provider rejects the grant, and
/// [`LoginError::Unavailable`] for everything else.
pub(super) async fn request(
    config: &ProviderConfig,
    endpoints: &Endpoints,
    grant: &Grant<'_>,
) -> Result<TokenResponse, Failure> {
    let sent = tokio::time::timeout(TIMEOUT, send(config, endpoints, grant)).await;
    let sent = sent.map_err(|_| anyhow!("no response within {TIMEOUT:?}"));
    let (status, body) = sent.and_then(|sent| sent).map_err(|why| Failure {
        error: LoginError::Unavailable,
        why,
    })?;
    if status == StatusCode::OK {
        return serde_json::from_slice(&body).map_err(|_| Failure {
            error: LoginError::InvalidToken,
            why: anyhow!("the response is not a token response"),
        });
    }
    let code = serde_json::from_slice::<ErrorResponse>(&body).map(|response| response.error);
    let code: String = code
        .unwrap_or_default()
        .chars()
        .filter(char::is_ascii_graphic)
        .take(MAX_CODE_CHARS)
        .collect();
    let error = match code.as_str() {
        "invalid_grant" => LoginError::Rejected,
        _ if status.is_server_error() => LoginError::Unavailable,
        _ => LoginError::InvalidToken,
    };
    Err(Failure {
        error,
        why: anyhow!("the provider answered {status} {code}"),
    })
}

async fn send(
    config: &ProviderConfig,
    endpoints: &Endpoints,
    grant: &Grant<'_>,
) -> Result<(StatusCode, Bytes)> {
    let uri = endpoints.token_endpoint.parse().context("token_endpoint")?;
    let client = HttpClient::new(uri, &config.discovery.tls)?;
    let secret = client_secret(config).await?;
    let mut request = Request::post("/")
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .header(header::ACCEPT, "application/json");
    let basic_secret = secret.as_ref().filter(|_| uses_basic(endpoints));
    if let Some(secret) = basic_secret {
        request = request.header(header::AUTHORIZATION, basic(&config.client_id, secret));
    }
    let posted_secret = secret.as_deref().filter(|_| basic_secret.is_none());
    let names_client = basic_secret.is_none();
    let body = form(config, grant, names_client, posted_secret);
    let response = client.send(request, body, MAX_RESPONSE_BYTES).await?;
    Ok((response.status(), response.into_body()))
}

/// The parameters of the request.
fn form(config: &ProviderConfig, grant: &Grant<'_>, names_client: bool, secret: Option<&str>) -> Bytes {
    let mut form = Serializer::new(String::new());
    match grant {
        Grant::Code {
            code,
            verifier,
            redirect_uri,
        } => form
            .append_pair("grant_type", "authorization_code")
            .append_pair("code", code)
            .append_pair("code_verifier", verifier)
            .append_pair("redirect_uri", redirect_uri),
        Grant::Refresh(token) => form
            .append_pair("grant_type", "refresh_token")
            .append_pair("refresh_token", token),
    };
    if let Some(resource) = &config.resource {
        form.append_pair("resource", resource);
    }
    if names_client {
        form.append_pair("client_id", &config.client_id);
    }
    if let Some(secret) = secret {
        form.append_pair("client_secret", secret);
    }
    Bytes::from(form.finish())
}

/// Read at every use, so that it can be replaced without a restart.
async fn client_secret(config: &ProviderConfig) -> Result<Option<String>> {
    let Some(file) = &config.client_secret_file else {
        return Ok(None);
    };
    let text = tokio::fs::read_to_string(file)
        .await
        .with_context(|| format!("reading {}", file.display()))?;
    Ok(Some(text.trim().to_owned()))
}

/// `client_secret_basic` unless the provider accepts `client_secret_post` only.
fn uses_basic(endpoints: &Endpoints) -> bool {
    let methods = &endpoints.token_endpoint_auth_methods_supported;
    methods.is_empty() || methods.iter().any(|method| method == "client_secret_basic")
}

/// RFC 6749 section 2.3.1: both parts are form-encoded first.
fn basic(client_id: &str, secret: &str) -> String {
    let encoded = |text: &str| byte_serialize(text.as_bytes()).collect::<String>();
    let pair = format!("{}:{}", encoded(client_id), encoded(secret));
    format!("Basic {}", STANDARD.encode(pair))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_parts_of_the_client_are_encoded() {
        let header = basic("berth console", "p:q%r");
        let pair = STANDARD.decode(header.strip_prefix("Basic ").unwrap()).unwrap();
        assert_eq!(pair, b"berth+console:p%3Aq%25r");
    }
}
