//! What a signed-in browser is made of: keys, cookies and identity providers.
//! [`crate::auth`] has the routes that use them.
//!
//! The cookie of a signed-in browser contains the credential itself, sealed;
//! nothing is stored here, so any replica answers any request.
//!
//! - `keys`, `cookie`, `session`: the sealed cookie
//! - `csrf`, `return_path`: what other sites must not be able to do
//! - `oidc`, `renewal`: identity providers

mod config;
pub(crate) mod cookie;
pub(crate) mod csrf;
mod keys;
pub(crate) mod oidc;
mod renewal;
pub(crate) mod return_path;
pub(crate) mod session;

pub use config::{CredentialToken, ProviderConfig, SignInConfig};

use anyhow::{Context as _, Result};
use cookie::CookieJar;
use http::header::SET_COOKIE;
use http::request::Parts;
use http::{HeaderMap, Uri};
use keys::CookieKeys;
use oidc::{LoginError, Provider};
use renewal::Renewals;
use session::SignedIn;
use session_core::Timestamp;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// What the sign-in keeps between requests: keys and what is known of
/// providers.
#[derive(Debug)]
pub(crate) struct SignIn {
    pub(crate) config: SignInConfig,
    pub(crate) jar: CookieJar,
    pub(crate) keys: CookieKeys,
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

    /// Whether a page of the console sent the request.
    pub(crate) fn is_own_page(&self, parts: &Parts) -> bool {
        csrf::is_same_origin(parts, self.origin.as_deref())
    }

    /// The provider with this id.
    pub(crate) fn provider(&self, id: &str) -> Option<&Arc<Provider>> {
        self.providers.iter().find(|provider| provider.config().id == id)
    }
}

/// What becomes of the cookie.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It stays.
    Keep,
    /// The new one is stored.
    Store,
    /// It is removed.
    Remove,
}

impl SignIn {
    /// The usable sign-in of a browser.
    pub(crate) async fn current(
        &self,
        cookies: &HeaderMap,
        now: Timestamp,
    ) -> (Option<Arc<SignedIn>>, Change) {
        let sealed = cookie::load(cookies, &self.jar.session());
        let Some(signed_in) = sealed.and_then(|sealed| SignedIn::open(&sealed, &self.keys)) else {
            return (None, Change::Remove);
        };
        let usable = signed_in.is_usable(now);
        let provider = self.provider(&signed_in.method);
        let Some(provider) = provider.filter(|_| signed_in.needs_renewal(now)) else {
            return match usable {
                true => (Some(Arc::new(signed_in)), Change::Keep),
                false => (None, Change::Remove),
            };
        };
        match (self.renewals.renew(provider, &signed_in, now).await, usable) {
            (Ok(renewed), _) => (Some(renewed), Change::Store),
            (Err(_), true) => (Some(Arc::new(signed_in)), Change::Keep),
            // It can be renewed when the provider is back.
            (Err(LoginError::Unavailable), false) => (None, Change::Keep),
            (Err(LoginError::Rejected | LoginError::InvalidToken | LoginError::TooLarge), false) => {
                (None, Change::Remove)
            }
        }
    }

    /// Adds the headers that keep a sign-in. False if it is too long for
    /// cookies.
    pub(crate) fn store(
        &self,
        answer: &mut HeaderMap,
        cookies: &HeaderMap,
        signed_in: &SignedIn,
        now: Timestamp,
    ) -> bool {
        let age = signed_in.expires_at().since(now);
        match signed_in.seal(&self.keys) {
            Ok(sealed) if age > Duration::ZERO => {
                self.jar.store(answer, cookies, &self.jar.session(), &sealed, age)
            }
            Ok(_) => true,
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(error, "sealing a cookie failed");
                false
            }
        }
    }

    /// Adds the headers that end a sign-in.
    pub(crate) fn remove(&self, answer: &mut HeaderMap, cookies: &HeaderMap) {
        self.jar.remove(answer, cookies, &self.jar.session());
    }

    /// Whether the answer already decides about the cookie.
    pub(crate) fn is_set_by(&self, answer: &HeaderMap) -> bool {
        let name = self.jar.session();
        let mut lines = answer.get_all(SET_COOKIE).iter();
        lines.any(|line| line.as_bytes().starts_with(name.as_bytes()))
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
