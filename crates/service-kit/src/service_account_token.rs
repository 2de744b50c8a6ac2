//! Service-account token: the token of a service from its platform, such as a
//! projected Kubernetes token, in place of a client certificate.
//!
//! It is sent over TLS only, in metadata of its own, because `authorization`
//! contains the credential of the original caller. The client reads its file
//! again every few seconds, because platforms replace it; the server verifies
//! it like any external token and identifies the service by the token's `sub`.

use crate::caller::oidc::IssuerConfig;
use crate::caller::{Authenticator, CallerError, TokenFormat};
use crate::config::{Problems, Validate};
use crate::grpc::{self, ClientConfig};
use crate::host;
use crate::polled_document::DocumentConfig;
use crate::telemetry;
use http::HeaderMap;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tracing::Span;

/// The metadata key of the token.
pub const SERVICE_TOKEN: &str = "x-berth-service-token";
/// Interval of file reads, and lifetime of a verification result.
const REFRESH_INTERVAL: Duration = Duration::from_secs(5);
const MAX_TOKEN_BYTES: usize = 12 * 1024;
/// Maximum number of cached verification results; an installation has few
/// services.
const MAX_CACHED_TOKENS: usize = 64;
/// Placeholder organization: these tokens have none.
const NO_ORG: &str = "services";

/// Issuer of the service-account tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProjectedConfig {
    /// Required `iss` of the platform, also the base of discovery.
    pub issuer: String,
    /// Required and only `aud`, used for these calls alone.
    pub audience: String,
    /// The platform's key set. Without a location, discovery finds it.
    #[serde(default = "discovered")]
    pub keys: DocumentConfig,
}

fn discovered() -> DocumentConfig {
    DocumentConfig::new("")
}

impl ProjectedConfig {
    fn issuer(&self) -> IssuerConfig {
        IssuerConfig {
            keys: self.keys.clone(),
            orgs: [NO_ORG.to_owned()].into(),
            org: Some(NO_ORG.to_owned()),
            ..IssuerConfig::new("services", &self.issuer, [self.audience.clone()])
        }
    }
}

impl Validate for ProjectedConfig {
    fn validate(&self, problems: &mut Problems) {
        let mut found = Problems::default();
        self.issuer().validate(&mut found);
        for problem in found.found() {
            let key = match problem.key.as_str() {
                "audiences" => "audience",
                other => other,
            };
            problems.add(key, problem.what.clone());
        }
    }
}

/// Verifier of service-account tokens.
pub struct ServiceTokens {
    authenticator: Authenticator,
    /// Verified subject and time of verification, by token.
    checked: Mutex<HashMap<String, (String, Instant)>>,
}

impl ServiceTokens {
    /// Creates the verifier for this platform.
    ///
    /// # Errors
    /// When the configuration is invalid; not when the platform is unavailable.
    pub fn new(config: &ProjectedConfig, format: Arc<dyn TokenFormat>) -> anyhow::Result<Self> {
        Ok(Self {
            authenticator: Authenticator::new(&[]).with_issuers(&[config.issuer()], &[], format)?,
            checked: Mutex::default(),
        })
    }

    /// The `sub` of the single service-account token in the headers.
    ///
    /// # Errors
    /// [`CallerError`]; [`CallerError::NotACredential`] without one.
    pub async fn subject(&self, headers: &HeaderMap, now: SystemTime) -> Result<String, CallerError> {
        let mut shown = headers.get_all(SERVICE_TOKEN).iter();
        let token = shown.next().and_then(|token| token.to_str().ok());
        let token = token.filter(|_| shown.next().is_none());
        let token = token.ok_or(CallerError::NotACredential)?;
        if let Some((subject, at)) = self.checked().get(token)
            && at.elapsed() < REFRESH_INTERVAL
        {
            return Ok(subject.clone());
        }
        let caller = self.authenticator.authenticate(token, now).await?;
        let mut checked = self.checked();
        checked.retain(|_, (_, at)| at.elapsed() < REFRESH_INTERVAL);
        if checked.len() < MAX_CACHED_TOKENS {
            checked.insert(token.to_owned(), (caller.subject.clone(), Instant::now()));
        }
        Ok(caller.subject)
    }

    /// Keeps the platform's keys fresh until `stop`.
    pub async fn keep_fresh(&self, stop: CancellationToken) {
        self.authenticator.keep_fresh(stop).await;
    }

    fn checked(&self) -> parking_lot::MutexGuard<'_, HashMap<String, (String, Instant)>> {
        self.checked.lock()
    }
}

/// Hand-written, because the struct contains tokens.
impl fmt::Debug for ServiceTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceTokens").finish_non_exhaustive()
    }
}

/// A channel to another service with this service's identity.
pub type ServiceChannel = InterceptedService<Channel, OwnToken>;

/// A channel that sends the trace of each call, and the token of `token_file`
/// if configured. Must be called inside a tokio runtime.
///
/// # Errors
/// When the configuration is invalid.
pub fn service_channel(config: &ClientConfig) -> anyhow::Result<ServiceChannel> {
    let file = config.token_file.as_ref().map(|path| {
        Arc::new(TokenFile {
            path: path.clone(),
            held: Mutex::default(),
        })
    });
    Ok(InterceptedService::new(grpc::channel(config)?, OwnToken(file)))
}

/// Adds the host id, the token and the trace context to each call.
#[derive(Debug, Clone)]
pub struct OwnToken(Option<Arc<TokenFile>>);

struct TokenFile {
    path: PathBuf,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    token: Option<MetadataValue<Ascii>>,
    read: Option<Instant>,
    /// Whether the current read error was logged.
    told: bool,
}

impl TokenFile {
    /// The current token, or the last one that could be read.
    fn token(&self) -> Option<MetadataValue<Ascii>> {
        let mut held = self.held.lock();
        if held.read.is_some_and(|at| at.elapsed() < REFRESH_INTERVAL) {
            return held.token.clone();
        }
        held.read = Some(Instant::now());
        match self.read() {
            Ok(token) => {
                held.token = Some(token);
                held.told = false;
            }
            Err(error) => {
                if !std::mem::replace(&mut held.told, true) {
                    let path = self.path.display();
                    tracing::error!(%path, error, "reading service-account token failed; the last one stays in use");
                }
            }
        }
        held.token.clone()
    }

    fn read(&self) -> Result<MetadataValue<Ascii>, String> {
        let text = std::fs::read_to_string(&self.path).map_err(|error| error.kind().to_string())?;
        let token = text.trim_ascii();
        let plain = !token.is_empty()
            && token.len() <= MAX_TOKEN_BYTES
            && token.bytes().all(|b| b.is_ascii_graphic());
        if !plain {
            return Err("the file does not contain exactly one token".to_owned());
        }
        let mut value: MetadataValue<Ascii> = token
            .parse()
            .map_err(|_| "the file does not contain exactly one token".to_owned())?;
        value.set_sensitive(true);
        Ok(value)
    }
}

impl fmt::Debug for TokenFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenFile")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Interceptor for OwnToken {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, Status> {
        let host = MetadataValue::from_static(host::id());
        request.metadata_mut().insert(host::HOST_ID, host);
        if let Some(file) = &self.0 {
            let token = file.token().ok_or_else(|| {
                Status::unavailable("This service could not read its service-account token. See token_file.")
            })?;
            request.metadata_mut().insert(SERVICE_TOKEN, token);
        }
        telemetry::inject(&Span::current(), request.metadata_mut().as_mut());
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(own: &mut OwnToken) -> Option<String> {
        let request = own.call(tonic::Request::new(())).ok()?;
        let token = request.metadata().get(SERVICE_TOKEN)?;
        assert!(token.is_sensitive());
        Some(token.to_str().unwrap().to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn the_file_is_followed_and_the_last_good_token_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let file = TokenFile {
            path: path.clone(),
            held: Mutex::default(),
        };
        let mut own = OwnToken(Some(Arc::new(file)));
        assert_eq!(shown(&mut own), None, "nothing to show, so nothing is called");
        tokio::time::advance(REFRESH_INTERVAL).await;
        std::fs::write(&path, "first.token.x\n").unwrap();
        assert_eq!(shown(&mut own).as_deref(), Some("first.token.x"));
        std::fs::write(&path, "second.token.x").unwrap();
        assert_eq!(shown(&mut own).as_deref(), Some("first.token.x"));
        tokio::time::advance(REFRESH_INTERVAL).await;
        assert_eq!(shown(&mut own).as_deref(), Some("second.token.x"));
        for broken in ["", "two tokens", "a\u{e9}", &"x".repeat(MAX_TOKEN_BYTES + 1)] {
            std::fs::write(&path, broken).unwrap();
            tokio::time::advance(REFRESH_INTERVAL).await;
            assert_eq!(shown(&mut own).as_deref(), Some("second.token.x"));
        }
        std::fs::remove_file(&path).unwrap();
        tokio::time::advance(REFRESH_INTERVAL).await;
        assert_eq!(shown(&mut own).as_deref(), Some("second.token.x"));
        assert!(!format!("{own:?}").contains("second"));
        assert_eq!(shown(&mut OwnToken(None)), None);
    }
}
