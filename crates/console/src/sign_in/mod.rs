//! Sign-in and the credential of a request.
//!
//! ```text
//! auth/key ───────┐                          ┌─▶ Credential of a request
//! auth/callback ──┴─▶ SignedIn (sealed cookie) ─▶ attach (renews it) ─┘
//! ```
//!
//! The cookie of a signed-in browser contains the credential itself, sealed;
//! nothing is stored here, so any replica answers any request.
//!
//! - `keys`, `cookie`, `session`: the sealed cookie
//! - `browser`: finds, renews and removes it around every request
//! - `csrf`, `return_path`: what other sites must not be able to do
//! - `oidc`, `login`: identity providers
//! - `account`: who is signed in, service-account keys, sign-out

mod account;
mod browser;
mod caller;
mod config;
mod cookie;
pub(crate) mod credential;
mod csrf;
mod keys;
mod login;
mod oidc;
mod renewal;
mod return_path;
mod session;

pub use config::{CredentialToken, ProviderConfig, SignInConfig};

pub(crate) use browser::attach;

use crate::service::AppState;
use anyhow::{Context as _, Result};
use axum::Router;
use axum::routing::{get, post};
use cookie::CookieJar;
use http::Uri;
use keys::CookieKeys;
use oidc::Provider;
use renewal::Renewals;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// What the sign-in keeps between requests: keys and what is known of
/// providers.
#[derive(Debug)]
pub(crate) struct SignIn {
    config: SignInConfig,
    jar: CookieJar,
    keys: CookieKeys,
    providers: Vec<Arc<Provider>>,
    renewals: Renewals,
    /// Scheme and host of the console, if configured.
    origin: Option<String>,
}

impl SignIn {
    /// `public` is the configured address of the console, `prefix` its path,
    /// `tls` whether the port itself speaks TLS.
    ///
    /// # Errors
    /// When keys or the configuration of a provider are unusable.
    pub(crate) fn new(config: &SignInConfig, public: Option<&str>, prefix: &str, tls: bool) -> Result<Self> {
        let public = public.map(str::parse::<Uri>).transpose().context("public.url")?;
        let origin = public.as_ref().and_then(origin);
        let is_secure = match &public {
            Some(uri) => uri.scheme_str() == Some("https"),
            None => tls,
        };
        let callback = format!("{}{prefix}/auth/callback", origin.as_deref().unwrap_or_default());
        let providers = config.providers.iter();
        let providers = providers.map(|provider| Provider::new(provider, &callback).map(Arc::new));
        if config.keys_dir.is_none() {
            tracing::info!("no sign_in.keys_dir: sign-ins end with this process");
        }
        Ok(Self {
            keys: CookieKeys::open(config.keys_dir.as_deref()).context("sign_in.keys_dir")?,
            jar: CookieJar::new(is_secure, prefix),
            providers: providers.collect::<Result<_>>()?,
            renewals: Renewals::default(),
            config: config.clone(),
            origin,
        })
    }

    /// Whether browsers reach the console over HTTPS.
    pub(crate) fn is_secure(&self) -> bool {
        self.jar.is_secure()
    }

    /// Follows the folder of keys until `stop`.
    pub(crate) async fn follow_keys(&self, stop: CancellationToken) {
        self.keys.follow(stop).await;
    }

    fn provider(&self, id: &str) -> Option<&Arc<Provider>> {
        self.providers.iter().find(|provider| provider.config().id == id)
    }
}

/// Scheme and authority as browsers write them, without the default port.
fn origin(uri: &Uri) -> Option<String> {
    let (scheme, authority) = (uri.scheme_str()?, uri.authority()?);
    let port = match (scheme, authority.port_u16()) {
        (_, None) | ("https", Some(443)) | ("http", Some(80)) => String::new(),
        (_, Some(port)) => format!(":{port}"),
    };
    let host = authority.host().to_ascii_lowercase();
    Some(format!("{scheme}://{host}{port}"))
}

/// The routes below `/auth`.
pub(crate) fn router(app: &AppState) -> Router {
    Router::new()
        .route("/auth/session", get(account::session))
        .route("/auth/key", post(account::sign_in_with_key))
        .route("/auth/logout", post(account::sign_out))
        .route("/auth/login/{provider}", get(login::start))
        .route("/auth/callback", get(login::finish))
        .layer(axum::middleware::map_response(no_store))
        .with_state(app.clone())
}

/// Answers of the sign-in are never cached.
async fn no_store(mut response: axum::response::Response) -> axum::response::Response {
    let no_store = http::HeaderValue::from_static("no-store");
    response
        .headers_mut()
        .insert(http::header::CACHE_CONTROL, no_store);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_origin_is_written_as_browsers_do() {
        for (url, expected) in [
            ("https://berth.example.org/console", "https://berth.example.org"),
            ("https://Berth.example.org:443", "https://berth.example.org"),
            (
                "https://berth.example.org:8443/",
                "https://berth.example.org:8443",
            ),
            ("http://localhost:8080", "http://localhost:8080"),
            ("http://[::1]:80/", "http://[::1]"),
        ] {
            assert_eq!(origin(&url.parse().unwrap()).unwrap(), expected, "{url}");
        }
    }
}
