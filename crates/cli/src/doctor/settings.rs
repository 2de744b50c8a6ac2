//! First steps of `berth doctor`: the settings and the credential.

use super::fault::{Checked, Fault};
use super::report::{Part, Report};
use crate::login::provider::{ProviderUnreachable, claims_of};
use crate::settings::{Credential, Target};
use crate::{Given, GlobalArgs, config_file, settings};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use service_kit::tls::{ClientTls, ClientTlsFiles, H2};
use session_core::{Clock as _, SystemClock};
use session_token::{MAX_EXTERNAL_TOKEN_BYTES, TOKEN_TYPE};
use std::path::PathBuf;

/// Difference of clocks that is a fault, in seconds.
pub(super) const MAX_CLOCK_DIFFERENCE: u64 = 30;

/// Checked settings.
pub(super) struct Settings {
    pub(super) manager: String,
    pub(super) issuer: String,
    pub(super) console: Option<String>,
    pub(super) ca: Option<PathBuf>,
    /// The secret that the APIs accept.
    pub(super) secret: String,
}

/// What the settings allow to check.
#[derive(Default)]
pub(super) struct Usable {
    /// For the APIs, if they can be called.
    pub(super) apis: Option<Settings>,
    /// Trusted authorities in place of the system's.
    pub(super) ca: Option<PathBuf>,
}

/// Checks settings and credential. `optional`: a connection string can be
/// checked without a credential.
pub(super) async fn check(global: &GlobalArgs, given: &Given, report: &mut Report, optional: bool) -> Usable {
    let Some(target) = report.take(Part::Settings, "read", read(global, given)) else {
        return Usable::default();
    };
    let ca = target.ca.as_ref().map(|ca| ca.value.clone());
    if target.credential.is_none() && optional {
        let why = "no credential for the APIs; only the connection string is checked";
        report.skipped(Part::Credential, "read", why);
        return Usable { apis: None, ca };
    }
    let apis = for_apis(target, report).await;
    Usable { apis, ca }
}

async fn for_apis(target: Target, report: &mut Report) -> Option<Settings> {
    report.take(Part::Settings, "addresses", addresses(&target))?;
    let secret = report.take(Part::Credential, "read", secret(&target).await)?;
    let shown = target
        .credential
        .as_ref()
        .map(|source| format!("{} ({})", source.value.describe(), source.origin));
    report.ok(Part::Credential, "read", shown.unwrap_or_default());
    Some(Settings {
        manager: target.manager.value,
        issuer: target.issuer.value,
        console: target.console.map(|console| console.value),
        ca: target.ca.map(|ca| ca.value),
        secret,
    })
}

fn read(global: &GlobalArgs, given: &Given) -> Checked<Target> {
    let text = |error: anyhow::Error| format!("{error:#}");
    let file = config_file::load_in_use().map_err(|error| Fault::ConfigFileInvalid.seen(text(error)))?;
    let chosen = global
        .context
        .clone()
        .filter(|name| !name.is_empty())
        .or(file.current.clone());
    if let Some(name) = chosen {
        file.context(&name)
            .map_err(|error| Fault::ContextUnknown.seen(text(error)))?;
    }
    settings::resolve(global, given).map_err(|error| Fault::CredentialAmbiguous.seen(text(error)))
}

fn addresses(target: &Target) -> Checked<()> {
    for (name, address) in [
        ("session-manager", &target.manager),
        ("token-issuer", &target.issuer),
    ] {
        let value = &address.value;
        let uri: Option<http::Uri> = value.parse().ok();
        let good = uri.is_some_and(|uri| {
            uri.host().is_some_and(|host| !host.is_empty())
                && matches!(uri.scheme_str(), Some("https" | "http"))
        });
        if !good {
            return Err(Fault::AddressInvalid.seen(format!("{name}: {value:?} ({})", address.origin)));
        }
        if !target.insecure && !service_kit::grpc::is_secure(value) {
            return Err(Fault::PlaintextRefused
                .seen(format!("{name}: {value} would send the credential in plaintext")));
        }
    }
    let files = ClientTlsFiles {
        ca: target.ca.as_ref().map(|ca| ca.value.clone()),
        ..ClientTlsFiles::default()
    };
    ClientTls::load(&files, H2).map_err(|error| Fault::AuthorityFileInvalid.seen(error.to_string()))?;
    Ok(())
}

async fn secret(target: &Target) -> Checked<String> {
    let Some(source) = &target.credential else {
        return Err(Fault::CredentialMissing.seen("no key, token or sign-in is configured"));
    };
    let secret = source.value.secret().await.map_err(|error| {
        let text = format!("{error:#}");
        match &source.value {
            Credential::Login { .. } if error.downcast_ref::<ProviderUnreachable>().is_some() => {
                Fault::IdentityProviderUnreachable.seen(text)
            }
            Credential::Login { .. } => Fault::LoginNeeded.seen(text),
            Credential::Key(_) | Credential::Token(_) | Credential::KeyFile(_) | Credential::TokenFile(_) => {
                Fault::CredentialMissing.seen(text)
            }
        }
    })?;
    check_secret(&secret)?;
    Ok(secret)
}

/// What can be seen of a credential without a server.
fn check_secret(secret: &str) -> Checked<()> {
    if secret.bytes().any(|byte| !byte.is_ascii_graphic()) {
        return Err(Fault::CredentialRejected.seen("the credential contains a space or a line break"));
    }
    if secret.len() > MAX_EXTERNAL_TOKEN_BYTES {
        return Err(Fault::HeadersTooLarge.seen(format!(
            "the token has {} bytes, and Berth accepts at most {MAX_EXTERNAL_TOKEN_BYTES}",
            secret.len()
        )));
    }
    if is_session_token(secret) {
        return Err(Fault::CredentialIsSessionToken.seen("the credential is a session token"));
    }
    let Some(claims) = claims_of(secret) else {
        return Ok(());
    };
    let now = SystemClock.now().as_secs();
    if let Some(iat) = claims.iat.map(|iat| iat as u64)
        && iat > now + MAX_CLOCK_DIFFERENCE
    {
        return Err(Fault::ClockOff.seen(format!("the token was issued {} s in the future", iat - now)));
    }
    if let Some(exp) = claims.exp.map(|exp| exp as u64)
        && exp <= now
    {
        return Err(Fault::CredentialExpired.seen(format!("the token expired {} s ago", now - exp)));
    }
    Ok(())
}

fn is_session_token(secret: &str) -> bool {
    let header = secret.split('.').next().unwrap_or_default();
    let header = URL_SAFE_NO_PAD.decode(header).unwrap_or_default();
    let header: serde_json::Value = serde_json::from_slice(&header).unwrap_or_default();
    header["typ"] == TOKEN_TYPE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jwt(header: &str, claims: &str) -> String {
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        format!("{}.{}.sig", part(header), part(claims))
    }

    #[test]
    fn a_credential_is_judged_before_it_is_sent() {
        let now = SystemClock.now().as_secs();
        let fault = |secret: &str| check_secret(secret).map_err(|finding| finding.fault);
        assert_eq!(fault("berth_sa_abc"), Ok(()));
        let claims = |exp: u64, iat: u64| format!("{{\"exp\":{exp},\"iat\":{iat}}}");
        assert_eq!(fault(&jwt("{}", &claims(now + 60, now))), Ok(()));
        assert_eq!(
            fault(&jwt("{}", &claims(now - 1, now - 9))),
            Err(Fault::CredentialExpired)
        );
        assert_eq!(
            fault(&jwt("{}", &claims(now + 900, now + 600))),
            Err(Fault::ClockOff)
        );
        let session = format!("{{\"typ\":{TOKEN_TYPE:?}}}");
        assert_eq!(fault(&jwt(&session, "{}")), Err(Fault::CredentialIsSessionToken));
        assert_eq!(fault("two words"), Err(Fault::CredentialRejected));
        assert_eq!(
            fault(&"x".repeat(MAX_EXTERNAL_TOKEN_BYTES + 1)),
            Err(Fault::HeadersTooLarge)
        );
    }
}
