//! The identity provider over HTTP: discovery, and the token endpoint.

use crate::config_file::{Oidc, TokenKind};
use crate::login::store::StoredLogin;
use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use service_kit::http_client;
use service_kit::tls::{ClientTls, ClientTlsFiles, HTTP1};
use session_core::{Clock as _, SystemClock};
use session_token::MAX_EXTERNAL_TOKEN_BYTES;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Timeout of one request to the provider.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// Maximum size of a response of the provider, in bytes.
const MAX_RESPONSE_BYTES: usize = 512 * 1024;
/// Lifetime of a token whose response names none, in seconds.
const DEFAULT_LIFETIME_SECONDS: u64 = 300;

/// A provider whose discovery document was read.
pub(crate) struct Provider {
    oidc: Oidc,
    tls: Option<Arc<ClientTls>>,
    pub(crate) endpoints: Endpoints,
}

/// The part of the discovery document that a sign-in needs.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Endpoints {
    issuer: String,
    pub(crate) token_endpoint: String,
    pub(crate) authorization_endpoint: Option<String>,
    pub(crate) device_authorization_endpoint: Option<String>,
    #[serde(default)]
    revocation_endpoint: Option<String>,
    #[serde(default)]
    pub(crate) authorization_response_iss_parameter_supported: bool,
}

/// Tokens as the provider returns them.
#[derive(Deserialize)]
pub(crate) struct Tokens {
    access_token: Option<String>,
    id_token: Option<String>,
    refresh_token: Option<String>,
    expires_in: Option<f64>,
}

/// A refusal of the token endpoint (RFC 6749, section 5.2).
#[derive(Debug, Deserialize)]
pub(crate) struct Refusal {
    pub(crate) error: String,
    #[serde(default)]
    error_description: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.error)?;
        if !self.error_description.is_empty() {
            write!(f, ": {}", self.error_description)?;
        }
        Ok(())
    }
}

impl std::error::Error for Refusal {}

impl Provider {
    /// Reads the discovery document.
    ///
    /// # Errors
    /// If it cannot be read, names another issuer, or has an endpoint that is
    /// plaintext beyond loopback.
    pub(crate) async fn discover(oidc: &Oidc) -> Result<Self> {
        super::check_issuer(&oidc.issuer)?;
        let files = ClientTlsFiles {
            ca: oidc.ca.clone(),
            ..ClientTlsFiles::default()
        };
        let tls =
            ClientTls::load(&files, HTTP1).context("reading the certificate authority of the provider")?;
        let base = oidc.issuer.trim_end_matches('/');
        let address = format!("{base}/.well-known/openid-configuration");
        let request = Request::get(&address).header(header::ACCEPT, "application/json");
        let (status, body) = exchange(request.body(Bytes::new())?, Some(&tls)).await?;
        if status != StatusCode::OK {
            bail!("{address} answers with HTTP status {status}: check the issuer's address");
        }
        let endpoints: Endpoints =
            parse(&body).with_context(|| format!("{address} is not a discovery document"))?;
        if endpoints.issuer != oidc.issuer {
            bail!(
                "{address} names the issuer {:?}: set --oidc-issuer to exactly that, if it is yours",
                endpoints.issuer
            );
        }
        let optional = [
            &endpoints.authorization_endpoint,
            &endpoints.device_authorization_endpoint,
            &endpoints.revocation_endpoint,
        ];
        for endpoint in optional.into_iter().flatten().chain([&endpoints.token_endpoint]) {
            if !service_kit::grpc::is_secure(endpoint) {
                bail!("the provider's endpoint {endpoint} is not https");
            }
        }
        Ok(Self {
            oidc: oidc.clone(),
            tls: Some(tls),
            endpoints,
        })
    }

    /// The issuer's exact name.
    pub(crate) fn issuer(&self) -> &str {
        &self.oidc.issuer
    }

    /// Parameters of every authorization request.
    pub(crate) fn request_parameters(&self) -> Vec<(&'static str, String)> {
        let mut parameters = vec![
            ("client_id", self.oidc.client_id.clone()),
            ("scope", self.oidc.scopes.join(" ")),
        ];
        parameters.extend(self.oidc.audience.clone().map(|audience| ("audience", audience)));
        parameters.extend(self.oidc.resource.clone().map(|resource| ("resource", resource)));
        parameters
    }

    /// Sends a form and returns the parsed response, or the provider's refusal.
    pub(crate) async fn form<T: DeserializeOwned>(
        &self,
        endpoint: &str,
        parameters: &[(&str, String)],
    ) -> Result<Result<T, Refusal>> {
        let request = Request::post(endpoint)
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Bytes::from(encode_form(parameters)))?;
        let (status, body) = exchange(request, self.tls.as_ref()).await?;
        if status.is_success() {
            return parse(&body)
                .map(Ok)
                .context("the provider's response is not what OAuth 2 describes");
        }
        match parse::<Refusal>(&body) {
            Ok(refusal) => Ok(Err(refusal)),
            Err(_) => bail!("{endpoint} answers with HTTP status {status}"),
        }
    }

    /// Exchanges a grant for tokens.
    pub(crate) async fn tokens(&self, grant: &[(&str, String)]) -> Result<Result<StoredLogin, Refusal>> {
        let mut parameters = vec![("client_id", self.oidc.client_id.clone())];
        parameters.extend_from_slice(grant);
        parameters.extend(self.oidc.resource.clone().map(|resource| ("resource", resource)));
        let tokens = self
            .form::<Tokens>(&self.endpoints.token_endpoint, &parameters)
            .await?;
        match tokens {
            Ok(tokens) => self.stored(tokens).map(Ok),
            Err(refusal) => Ok(Err(refusal)),
        }
    }

    fn stored(&self, tokens: Tokens) -> Result<StoredLogin> {
        let token = match self.oidc.token {
            TokenKind::AccessToken => tokens.access_token,
            TokenKind::IdToken => tokens.id_token,
        };
        let token =
            token.context("the provider returned no such token: check --oidc-token and the scopes")?;
        if token.len() > MAX_EXTERNAL_TOKEN_BYTES {
            bail!(
                "the provider's token has {} bytes, and Berth accepts at most {MAX_EXTERNAL_TOKEN_BYTES}: ask for a token with fewer groups or claims",
                token.len()
            );
        }
        let now = SystemClock.now().as_secs();
        let claimed = claims_of(&token).and_then(|claims| claims.exp);
        let lifetime = tokens
            .expires_in
            .map_or(DEFAULT_LIFETIME_SECONDS, |seconds| seconds.max(0.0) as u64);
        // The clock of this machine decides when to renew; the token's own
        // expiry counts for an ID token, which `expires_in` does not describe.
        let expires_at = match (self.oidc.token, claimed) {
            (TokenKind::IdToken, Some(claimed)) => claimed as u64,
            (TokenKind::IdToken, None) | (TokenKind::AccessToken, _) => now.saturating_add(lifetime),
        };
        Ok(StoredLogin {
            issuer: self.oidc.issuer.clone(),
            client_id: self.oidc.client_id.clone(),
            token,
            refresh_token: tokens.refresh_token,
            obtained_at: now,
            expires_at,
        })
    }

    /// Revokes a refresh token, if the provider offers that.
    pub(crate) async fn revoke(&self, refresh_token: &str) -> Result<bool> {
        let Some(endpoint) = &self.endpoints.revocation_endpoint else {
            return Ok(false);
        };
        let form = encode_form(&[
            ("client_id", self.oidc.client_id.clone()),
            ("token", refresh_token.to_owned()),
            ("token_type_hint", "refresh_token".to_owned()),
        ]);
        let request = Request::post(endpoint)
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Bytes::from(form))?;
        let (status, _) = exchange(request, self.tls.as_ref()).await?;
        Ok(status.is_success())
    }
}

/// Claims of a token that are shown to its user; not verified.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct ShownClaims {
    pub(crate) iss: Option<String>,
    pub(crate) sub: Option<String>,
    pub(crate) exp: Option<f64>,
    pub(crate) iat: Option<f64>,
}

/// The claims of a JWT without verification; `None` if it is not one.
pub(crate) fn claims_of(token: &str) -> Option<ShownClaims> {
    let mut parts = token.split('.');
    let payload = parts.nth(1)?;
    parts.next()?;
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
}

/// The provider does not answer; its sign-in may be as good as before.
#[derive(Debug)]
pub(crate) struct ProviderUnreachable(String);

impl fmt::Display for ProviderUnreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the identity provider at {} cannot be reached", self.0)
    }
}

impl std::error::Error for ProviderUnreachable {}

async fn exchange(request: Request<Bytes>, tls: Option<&Arc<ClientTls>>) -> Result<(StatusCode, Bytes)> {
    let uri: Uri = request.uri().clone();
    let host = uri.authority().map(ToString::to_string).unwrap_or_default();
    let tls = tls.filter(|_| uri.scheme_str() == Some("https")).cloned();
    let sent = tokio::time::timeout(
        REQUEST_TIMEOUT,
        http_client::send(request, tls, MAX_RESPONSE_BYTES),
    );
    let response = match sent.await {
        Ok(response) => response,
        Err(_) => Err(anyhow::anyhow!("no answer within {REQUEST_TIMEOUT:?}")),
    };
    let response = response.context(ProviderUnreachable(host))?;
    Ok((response.status(), response.into_body()))
}

/// Parses JSON without quoting it in the error: it may contain tokens.
fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    serde_json::from_slice(body).map_err(|error| {
        anyhow::anyhow!(
            "invalid JSON, or a field is missing (line {}, column {})",
            error.line(),
            error.column()
        )
    })
}

/// `application/x-www-form-urlencoded`.
pub(crate) fn encode_form(parameters: &[(&str, String)]) -> String {
    let pairs: Vec<String> = parameters
        .iter()
        .map(|(name, value)| format!("{name}={}", percent_encode(value)))
        .collect();
    pairs.join("&")
}

fn percent_encode(text: &str) -> String {
    text.bytes()
        .fold(String::with_capacity(text.len()), |mut encoded, byte| {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
                encoded.push(char::from(byte));
            } else {
                encoded.push_str(&format!("%{byte:02X}"));
            }
            encoded
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_encoded() {
        let form = encode_form(&[("scope", "openid a/b".to_owned()), ("x", "ä&=".to_owned())]);
        assert_eq!(form, "scope=openid%20a%2Fb&x=%C3%A4%26%3D");
    }

    #[test]
    fn claims_are_read_from_tokens_only() {
        let payload = URL_SAFE_NO_PAD.encode(br#"{"iss":"i","sub":"ada","exp":12.5,"other":[1]}"#);
        let claims = claims_of(&format!("e30.{payload}.sig")).unwrap();
        assert_eq!((claims.sub.as_deref(), claims.exp), (Some("ada"), Some(12.5)));
        for other in ["", "a.b", "a.b.c", "berth_sa_key"] {
            assert!(claims_of(other).is_none(), "{other}");
        }
    }
}
