//! Device flow (RFC 8628): sign in on another device, with a code.

use super::provider::{Provider, ProviderUnreachable};
use super::store::StoredLogin;
use crate::{browser, output};
use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use std::time::{Duration, Instant};

const GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";
/// Interval between polls unless the provider names one.
const DEFAULT_INTERVAL: u64 = 5;
/// Increase of the interval when the provider asks for it.
const SLOW_DOWN: Duration = Duration::from_secs(5);
/// Bounds of the interval, in seconds.
const INTERVALS: (u64, u64) = (1, 60);

#[derive(Deserialize)]
struct Authorization {
    device_code: String,
    user_code: String,
    #[serde(alias = "verification_url")]
    verification_uri: String,
    verification_uri_complete: Option<String>,
    expires_in: u64,
    interval: Option<u64>,
}

/// Asks for a code, shows it, and waits for the sign-in.
pub(super) async fn sign_in(provider: &Provider, timeout: Duration) -> Result<StoredLogin> {
    let endpoint = provider
        .endpoints
        .device_authorization_endpoint
        .as_deref()
        .context("the provider has no device sign-in: use `berth login --browser`")?;
    let parameters = provider.request_parameters();
    let authorization: Authorization = provider
        .form(endpoint, &parameters)
        .await?
        .context("the provider refuses the sign-in")?;
    show(&authorization).await;
    let life = Duration::from_secs(authorization.expires_in).min(timeout);
    poll(provider, &authorization, life).await
}

async fn show(authorization: &Authorization) {
    output::error(&format!(
        "To sign in, open {} and enter the code {}.",
        authorization.verification_uri, authorization.user_code
    ));
    let Some(complete) = &authorization.verification_uri_complete else {
        return;
    };
    // Only an address that a browser, and no other program, opens.
    if browser::has_display() && service_kit::grpc::is_secure(complete) {
        browser::open(complete).await;
    }
}

async fn poll(provider: &Provider, authorization: &Authorization, life: Duration) -> Result<StoredLogin> {
    let begun = Instant::now();
    let (least, most) = INTERVALS;
    let interval = authorization.interval.unwrap_or(DEFAULT_INTERVAL);
    let mut interval = Duration::from_secs(interval.clamp(least, most));
    let grant = [
        ("grant_type", GRANT.to_owned()),
        ("device_code", authorization.device_code.clone()),
    ];
    while begun.elapsed() + interval < life {
        tokio::time::sleep(interval).await;
        let refusal = match provider.tokens(&grant).await {
            Ok(Ok(login)) => return Ok(login),
            Ok(Err(refusal)) => refusal,
            // The network can fail while the person signs in; RFC 8628 §3.5 asks to slow down.
            Err(error) if error.downcast_ref::<ProviderUnreachable>().is_some() => {
                interval += SLOW_DOWN;
                continue;
            }
            Err(error) => return Err(error),
        };
        match refusal.error.as_str() {
            "authorization_pending" => {}
            "slow_down" => interval += SLOW_DOWN,
            "access_denied" => bail!("the sign-in was denied"),
            "expired_token" => bail!("the code has expired: run `berth login` again"),
            _ => bail!("the provider refuses the sign-in: {refusal}"),
        }
    }
    bail!("there was no sign-in in time: run `berth login` again")
}
