//! The endpoints and keys of a provider, read when they are needed and at most
//! every few seconds.

use crate::sign_in::config::ProviderConfig;
use anyhow::{Context as _, Result, ensure};
use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use serde::Deserialize;
use service_kit::config::{Problems, Validate as _};
use service_kit::polled_document::{Document, DocumentConfig, Fetched};
use session_token::{ExternalKeys, ExternalVerifier};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Age at which the endpoints are read again.
const REFRESH: Duration = Duration::from_secs(600);
/// Minimum time between reads.
const AGAIN_AFTER: Duration = Duration::from_secs(2);

/// The used fields of the discovery document.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Endpoints {
    issuer: String,
    /// Where the browser goes.
    pub(super) authorization_endpoint: String,
    /// Where codes are exchanged.
    pub(super) token_endpoint: String,
    jwks_uri: String,
    /// How clients authenticate; `client_secret_basic` if empty.
    #[serde(default)]
    pub(super) token_endpoint_auth_methods_supported: Vec<String>,
    /// Whether callbacks have the parameter `iss`.
    #[serde(rename = "authorization_response_iss_parameter_supported", default)]
    pub(super) names_issuer: bool,
}

type Found = Arc<Mutex<Option<(Instant, Arc<Endpoints>)>>>;

/// What is known of a provider.
pub(super) struct Discovery {
    config: ProviderConfig,
    document: Arc<Document>,
    found: Found,
    verifier: Arc<ExternalVerifier>,
    keys: ArcSwapOption<KeySet>,
}

/// The key set at its current location.
struct KeySet {
    location: String,
    document: Arc<Document>,
}

impl Discovery {
    pub(super) fn new(config: &ProviderConfig, verifier: Arc<ExternalVerifier>) -> Result<Self> {
        let found = Found::default();
        let document = {
            let (config, found) = (config.clone(), Arc::clone(&found));
            Document::new(&on_demand(&config, config.discovery_url()), move |fetched| {
                let mut found = found.lock();
                let endpoints = match (fetched, found.as_ref()) {
                    (Fetched::New(text), _) => Arc::new(described(&config, text)?),
                    (Fetched::Same, Some((_, endpoints))) => Arc::clone(endpoints),
                    (Fetched::Same, None) => anyhow::bail!("the document was not read yet"),
                };
                *found = Some((Instant::now(), endpoints));
                Ok(())
            })?
        };
        Ok(Self {
            config: config.clone(),
            document,
            found,
            verifier,
            keys: ArcSwapOption::empty(),
        })
    }

    /// The endpoints; the last ones if the provider cannot be read now.
    pub(super) async fn endpoints(&self) -> Result<Arc<Endpoints>> {
        let known = self.found.lock().clone();
        if let Some((at, endpoints)) = known
            && at.elapsed() < REFRESH
        {
            return Ok(endpoints);
        }
        let read = self.document.fetch_again().await;
        let known = self.found.lock().clone();
        match (known, read) {
            (Some((_, endpoints)), _) => Ok(endpoints),
            (None, Err(error)) => Err(error.context("discovery")),
            (None, Ok(_)) => anyhow::bail!("discovery failed a moment ago"),
        }
    }

    /// Reads the keys again, because one was missing.
    pub(super) async fn fetch_keys(&self) -> Result<()> {
        let endpoints = self.endpoints().await?;
        let location = &endpoints.jwks_uri;
        let keys = match self.keys.load_full().filter(|keys| keys.location == *location) {
            Some(keys) => keys,
            None => {
                let verifier = Arc::clone(&self.verifier);
                let document = Document::new(&on_demand(&self.config, location.clone()), move |fetched| {
                    if let Fetched::New(text) = fetched {
                        let keys = ExternalKeys::from_json(text)?;
                        ensure!(!keys.is_empty(), "it has no key that checks signatures");
                        verifier.replace(keys);
                    }
                    Ok(())
                })?;
                let keys = Arc::new(KeySet {
                    location: location.clone(),
                    document,
                });
                self.keys.store(Some(Arc::clone(&keys)));
                keys
            }
        };
        keys.document.fetch_again().await.context("key set").map(drop)
    }
}

fn on_demand(config: &ProviderConfig, location: String) -> DocumentConfig {
    DocumentConfig {
        again_after: AGAIN_AFTER,
        ..config.document(location)
    }
}

/// The endpoints in a discovery document of this provider.
fn described(config: &ProviderConfig, text: &str) -> Result<Endpoints> {
    let endpoints: Endpoints = serde_json::from_str(text).context("the discovery document is invalid")?;
    ensure!(
        endpoints.issuer == config.issuer,
        "the discovery document is not of issuer {}",
        config.issuer
    );
    for (name, address) in [
        ("authorization_endpoint", &endpoints.authorization_endpoint),
        ("token_endpoint", &endpoints.token_endpoint),
        ("jwks_uri", &endpoints.jwks_uri),
    ] {
        // Never a file, and never plaintext that was not allowed.
        let is_url = address.starts_with("https://") || address.starts_with("http://");
        let mut found = Problems::default();
        config.document(address.clone()).validate(&mut found);
        let problem = found.found().iter().find(|problem| problem.key == "location");
        let is_plain = address
            .bytes()
            .all(|b| b.is_ascii_graphic() && b != b'"' && b != b'#');
        ensure!(
            is_url && is_plain && problem.is_none(),
            "its {name} is not an https address"
        );
    }
    Ok(endpoints)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(changes: serde_json::Value) -> Result<Endpoints> {
        let mut document = json!({
            "issuer": "https://login.example.org",
            "authorization_endpoint": "https://login.example.org/auth?x=1",
            "token_endpoint": "https://login.example.org/token",
            "jwks_uri": "https://login.example.org/keys",
        });
        for (name, value) in changes.as_object().unwrap() {
            document[name] = value.clone();
        }
        let config = ProviderConfig::new("corp", "https://login.example.org", "console");
        described(&config, &document.to_string())
    }

    #[test]
    fn addresses_of_another_kind_are_rejected() {
        assert!(read(json!({})).is_ok());
        for changes in [
            json!({"issuer": "https://login.example.org/"}),
            json!({"authorization_endpoint": "javascript:alert(1)"}),
            json!({"authorization_endpoint": "https://login.example.org/\r\nx: y"}),
            json!({"authorization_endpoint": "http://login.example.org/auth"}),
            json!({"token_endpoint": "http://login.example.org/token"}),
            json!({"token_endpoint": "/etc/passwd"}),
            json!({"jwks_uri": "file:///etc/passwd"}),
            json!({"jwks_uri": null}),
        ] {
            assert!(read(changes.clone()).is_err(), "{changes}");
        }
    }
}
