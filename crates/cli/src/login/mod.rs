//! Sign-in with an OpenID provider: device flow, or browser with PKCE; the
//! tokens are stored per context and renewed under a lock.

mod device;
mod loopback;
pub(crate) mod provider;
pub(crate) mod store;

use crate::config_file::Oidc;
use crate::private_file::Lock;
use crate::{browser, output, private_file};
use anyhow::{Context as _, Result, bail};
use provider::Provider;
use session_core::{Clock as _, SystemClock};
use std::io::IsTerminal as _;
use std::time::Duration;
use store::StoredLogin;

/// How to sign in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    Device,
    Browser,
}

impl Flow {
    /// The browser where one can be shown, else the device flow.
    pub(crate) fn best_here() -> Self {
        let remote = std::env::var_os("SSH_CONNECTION").is_some();
        if browser::has_display() && !remote && std::io::stderr().is_terminal() {
            Self::Browser
        } else {
            Self::Device
        }
    }
}

/// Checks the address of an issuer: https, except on loopback.
pub(crate) fn check_issuer(issuer: &str) -> Result<()> {
    let uri: Option<http::Uri> = issuer.parse().ok();
    if uri.is_none_or(|uri| uri.host().is_none()) {
        bail!("{issuer:?} is not an issuer like https://login.example.org/realms/main");
    }
    if !service_kit::grpc::is_secure(issuer) {
        bail!("{issuer} is plaintext, and your tokens could be read on the network: use https://");
    }
    Ok(())
}

/// Signs in and stores the tokens.
pub(crate) async fn sign_in(
    context: &str,
    oidc: &Oidc,
    flow: Flow,
    timeout: Duration,
) -> Result<StoredLogin> {
    let provider = Provider::discover(oidc).await?;
    let login = match flow {
        Flow::Device => device::sign_in(&provider, timeout).await?,
        Flow::Browser => loopback::sign_in(&provider, timeout).await?,
    };
    let _lock = Lock::of(&store::path(context)?).await?;
    store::save(context, &login)?;
    Ok(login)
}

/// The token of a context, renewed if it is about to expire.
pub(crate) async fn current_token(context: &str, oidc: &Oidc) -> Result<String> {
    let login = usable(context, oidc).await?;
    if !login.is_due(SystemClock.now()) {
        return Ok(login.token);
    }
    let _lock = Lock::of(&store::path(context)?).await?;
    // Another command may have renewed it during the wait for the lock.
    let login = usable(context, oidc).await?;
    if !login.is_due(SystemClock.now()) {
        return Ok(login.token);
    }
    match renew(context, oidc, &login).await {
        Ok(renewed) => Ok(renewed.token),
        // The provider is away for a moment, and the token still serves.
        Err(error) if login.is_valid(SystemClock.now()) => {
            output::note(&format!("berth: renewing the sign-in failed: {error:#}"));
            Ok(login.token)
        }
        Err(error) => Err(error),
    }
}

/// The stored sign-in, if it is one of this provider and client.
async fn usable(context: &str, oidc: &Oidc) -> Result<StoredLogin> {
    let context = context.to_owned();
    // A network file system can take long.
    let login = tokio::task::spawn_blocking(move || store::load(&context)).await??;
    login
        .filter(|login| login.is_of(oidc))
        .with_context(|| format!("you are not signed in at {}: run `berth login`", oidc.issuer))
}

async fn renew(context: &str, oidc: &Oidc, login: &StoredLogin) -> Result<StoredLogin> {
    let Some(refresh_token) = login.refresh_token.clone() else {
        bail!("the sign-in has expired, and the provider gave no refresh token: run `berth login`");
    };
    let provider = Provider::discover(oidc).await?;
    let grant = [
        ("grant_type", "refresh_token".to_owned()),
        ("refresh_token", refresh_token.clone()),
    ];
    let mut renewed = match provider.tokens(&grant).await? {
        Ok(renewed) => renewed,
        Err(refusal) if refusal.error == "invalid_grant" => {
            bail!("the sign-in has ended ({refusal}): run `berth login`")
        }
        Err(refusal) => bail!("the provider refuses to renew the sign-in ({refusal}): run `berth login`"),
    };
    // A provider without rotation keeps the old one valid.
    renewed.refresh_token = renewed.refresh_token.or(Some(refresh_token));
    store::save(context, &renewed)?;
    Ok(renewed)
}

/// Deletes the stored sign-in; returns it if there was a readable one.
pub(crate) async fn forget(context: &str) -> Result<Option<StoredLogin>> {
    let path = store::path(context)?;
    let _lock = Lock::of(&path).await?;
    let login = store::load(context).ok().flatten();
    private_file::remove(&path)?;
    Ok(login)
}

/// Revokes the refresh token of a deleted sign-in at the provider that gave it. A context that names
/// another provider or client by now must not send it there.
pub(crate) async fn revoke(oidc: &Oidc, login: &StoredLogin) -> Result<bool> {
    match &login.refresh_token {
        Some(refresh_token) if login.is_of(oidc) => {
            Provider::discover(oidc).await?.revoke(refresh_token).await
        }
        Some(_) | None => Ok(false),
    }
}
