//! A service's own token from its platform, as a Kubernetes projected
//! service-account token, in place of a client certificate.
//!
//! It travels over TLS only, in metadata of its own, because `authorization`
//! holds the credential of whoever the service calls for. The caller reads its
//! file again every few seconds, as platforms replace it; the server checks it
//! as any foreign token, and knows a service by the token's `sub`.

use crate::caller::oidc::IssuerConfig;
use crate::caller::{Authenticator, CallerError, TokenFormat};
use crate::config::{Problems, Validate};
use crate::grpc::{self, ClientConfig};
use crate::host;
use crate::telemetry;
use crate::tls::ClientTlsFiles;
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

/// The metadata that carries it.
pub const SERVICE_TOKEN: &str = "x-berth-service-token";
/// The file is read again this often, and what was checked is checked again.
const AGAIN: Duration = Duration::from_secs(5);
const LARGEST: usize = 12 * 1024;
/// Checked tokens that are remembered; services are few.
const MOST: usize = 64;
/// Its tokens speak of no organization of ours.
const NO_ORG: &str = "services";

/// Whose tokens tell services apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProjectedConfig {
    /// The exact `iss` of the platform, under which it is discovered too.
    pub issuer: String,
    /// The exact and only `aud`: of these calls alone, and of no others.
    pub audience: String,
    /// Its key set, a URL or a file, instead of discovery.
    #[serde(default)]
    pub jwks: Option<String>,
    /// Certificates for `https`.
    #[serde(default)]
    pub tls: ClientTlsFiles,
    /// Says in so many words that plaintext beyond loopback is meant.
    #[serde(default)]
    pub insecure: bool,
}

impl ProjectedConfig {
    fn issuer(&self) -> IssuerConfig {
        IssuerConfig {
            jwks: self.jwks.clone(),
            tls: self.tls.clone(),
            insecure: self.insecure,
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

/// Checks what services show.
pub struct ServiceTokens {
    authenticator: Authenticator,
    /// By the exact token: whose it is, and when that was checked.
    checked: Mutex<HashMap<String, (String, Instant)>>,
}

impl ServiceTokens {
    /// Those of this platform.
    ///
    /// # Errors
    /// When it cannot be set up; not when it cannot be reached.
    pub fn new(config: &ProjectedConfig, format: Arc<dyn TokenFormat>) -> anyhow::Result<Self> {
        Ok(Self {
            authenticator: Authenticator::new(&[]).with_issuers(&[config.issuer()], &[], format)?,
            checked: Mutex::default(),
        })
    }

    /// The `sub` of the one token in these headers.
    ///
    /// # Errors
    /// [`CallerError`]; [`CallerError::NotACredential`] without one.
    pub async fn subject(&self, headers: &HeaderMap, now: SystemTime) -> Result<String, CallerError> {
        let mut shown = headers.get_all(SERVICE_TOKEN).iter();
        let token = shown.next().and_then(|token| token.to_str().ok());
        let token = token.filter(|_| shown.next().is_none());
        let token = token.ok_or(CallerError::NotACredential)?;
        if let Some((subject, at)) = self.checked().get(token)
            && at.elapsed() < AGAIN
        {
            return Ok(subject.clone());
        }
        let caller = self.authenticator.authenticate(token, now).await?;
        let mut checked = self.checked();
        checked.retain(|_, (_, at)| at.elapsed() < AGAIN);
        if checked.len() < MOST {
            checked.insert(token.to_owned(), (caller.subject.clone(), Instant::now()));
        }
        Ok(caller.subject)
    }

    /// Follows the platform's keys until told to stop.
    pub async fn keep_fresh(&self, stop: CancellationToken) {
        self.authenticator.keep_fresh(stop).await;
    }

    fn checked(&self) -> parking_lot::MutexGuard<'_, HashMap<String, (String, Instant)>> {
        self.checked.lock()
    }
}

/// Not written by derive: tokens live here.
impl fmt::Debug for ServiceTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceTokens").finish_non_exhaustive()
    }
}

/// A channel to another service, on which we show who we are.
pub type ServiceChannel = InterceptedService<Channel, OwnToken>;

/// A channel that carries the trace of each call, and shows the token of `token_file` if there is
/// one. Must be called inside a tokio runtime.
///
/// # Errors
/// When the configuration cannot be used.
pub fn service_channel(config: &ClientConfig) -> anyhow::Result<ServiceChannel> {
    let file = config.token_file.as_ref().map(|path| {
        Arc::new(TokenFile {
            path: path.clone(),
            held: Mutex::default(),
        })
    });
    Ok(InterceptedService::new(grpc::channel(config)?, OwnToken(file)))
}

/// Puts our host, our token, and the trace that the call belongs to, into each call.
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
    /// That it cannot be read has been said.
    told: bool,
}

impl TokenFile {
    /// The token as it is now, or was last.
    fn token(&self) -> Option<MetadataValue<Ascii>> {
        let mut held = self.held.lock();
        if held.read.is_some_and(|at| at.elapsed() < AGAIN) {
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
                    tracing::error!(%path, error, "our own token cannot be read; the last one is used");
                }
            }
        }
        held.token.clone()
    }

    fn read(&self) -> Result<MetadataValue<Ascii>, String> {
        let text = std::fs::read_to_string(&self.path).map_err(|error| error.kind().to_string())?;
        let token = text.trim_ascii();
        let plain =
            !token.is_empty() && token.len() <= LARGEST && token.bytes().all(|b| b.is_ascii_graphic());
        if !plain {
            return Err("it is not one token".to_owned());
        }
        let mut value: MetadataValue<Ascii> = token.parse().map_err(|_| "it is not one token".to_owned())?;
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
                Status::unavailable("This service has no token of its own to show. See token_file.")
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
        tokio::time::advance(AGAIN).await;
        std::fs::write(&path, "first.token.x\n").unwrap();
        assert_eq!(shown(&mut own).as_deref(), Some("first.token.x"));
        std::fs::write(&path, "second.token.x").unwrap();
        assert_eq!(shown(&mut own).as_deref(), Some("first.token.x"));
        tokio::time::advance(AGAIN).await;
        assert_eq!(shown(&mut own).as_deref(), Some("second.token.x"));
        for broken in ["", "two tokens", "a\u{e9}", &"x".repeat(LARGEST + 1)] {
            std::fs::write(&path, broken).unwrap();
            tokio::time::advance(AGAIN).await;
            assert_eq!(shown(&mut own).as_deref(), Some("second.token.x"));
        }
        std::fs::remove_file(&path).unwrap();
        tokio::time::advance(AGAIN).await;
        assert_eq!(shown(&mut own).as_deref(), Some("second.token.x"));
        assert!(!format!("{own:?}").contains("second"));
        assert_eq!(shown(&mut OwnToken(None)), None);
    }
}
