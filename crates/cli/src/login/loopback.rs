//! Browser flow: authorization code with PKCE (RFC 7636) and a redirect to a
//! port of this machine (RFC 8252).

use super::provider::{Provider, encode_form};
use super::store::StoredLogin;
use crate::{browser, output};
use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Path of the redirect.
const PATH: &str = "/callback";
/// Maximum size of the redirect's request, in bytes.
const MAX_REQUEST_BYTES: usize = 16 * 1024;
/// Time in which a connection must send its request.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens the browser and waits for the redirect.
pub(super) async fn sign_in(provider: &Provider, timeout: Duration) -> Result<StoredLogin> {
    let endpoint = provider
        .endpoints
        .authorization_endpoint
        .as_deref()
        .context("the provider has no sign-in by browser: use `berth login --device`")?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .context("no port for the redirect of the browser: use `berth login --device`")?;
    let redirect = format!("http://{}{PATH}", listener.local_addr()?);
    let (state, verifier) = (random_text(), random_text());
    let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(verifier.as_bytes()));
    let mut parameters = provider.request_parameters();
    parameters.extend([
        ("response_type", "code".to_owned()),
        ("redirect_uri", redirect.clone()),
        ("state", state.clone()),
        ("code_challenge", challenge),
        ("code_challenge_method", "S256".to_owned()),
    ]);
    // OpenID Connect ties a refresh token to the consent of the user.
    if parameters
        .iter()
        .any(|(name, value)| *name == "scope" && value.contains("offline_access"))
    {
        parameters.push(("prompt", "consent".to_owned()));
    }
    let join = if endpoint.contains('?') { '&' } else { '?' };
    let address = format!("{endpoint}{join}{}", encode_form(&parameters));
    output::error(&format!("To sign in, open {address}"));
    if !browser::open(&address).await {
        output::note("No browser could be opened here; on a machine without one use `berth login --device`.");
    }
    let code = tokio::time::timeout(timeout, wait_for_code(&listener, provider, &state))
        .await
        .context("there was no sign-in in time: run `berth login` again")??;
    let grant = [
        ("grant_type", "authorization_code".to_owned()),
        ("code", code),
        ("redirect_uri", redirect),
        ("code_verifier", verifier),
    ];
    provider
        .tokens(&grant)
        .await?
        .context("the provider refuses the sign-in")
}

/// 256 random bits.
fn random_text() -> String {
    URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>())
}

/// Accepts connections until one brings the redirect of this sign-in. Others,
/// such as a browser's request for an icon, get an error and change nothing.
async fn wait_for_code(listener: &TcpListener, provider: &Provider, state: &str) -> Result<String> {
    loop {
        let (mut stream, _): (TcpStream, SocketAddr) = listener.accept().await?;
        let read = tokio::time::timeout(READ_TIMEOUT, read_target(&mut stream)).await;
        let Ok(Some(target)) = read else { continue };
        let Some(outcome) = redirect(&target, provider, state) else {
            answer(
                &mut stream,
                "404 Not Found",
                "This address only receives a sign-in of the berth command.",
            )
            .await;
            continue;
        };
        let text = match &outcome {
            Ok(_) => "You are signed in. Close this window and return to the terminal.",
            Err(_) => "The sign-in failed. The terminal shows the reason.",
        };
        answer(&mut stream, "200 OK", text).await;
        return outcome;
    }
}

/// The target of the request, if it is a GET.
async fn read_target(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut buffer = [0; 2048];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let read = stream.read(&mut buffer).await.ok()?;
        if read == 0 || head.len() + read > MAX_REQUEST_BYTES {
            return None;
        }
        head.extend_from_slice(&buffer[..read]);
    }
    let head = String::from_utf8(head).ok()?;
    let mut words = head.lines().next()?.split(' ');
    (words.next()? == "GET").then(|| words.next().map(str::to_owned))?
}

/// The code of the redirect, or the provider's error; `None` if the request is
/// not the redirect of this sign-in.
fn redirect(target: &str, provider: &Provider, state: &str) -> Option<Result<String>> {
    let required_issuer = provider
        .endpoints
        .authorization_response_iss_parameter_supported
        .then(|| provider.issuer());
    parse_redirect(target, required_issuer, state)
}

fn parse_redirect(target: &str, required_issuer: Option<&str>, state: &str) -> Option<Result<String>> {
    let query = target.strip_prefix(PATH)?.strip_prefix('?')?;
    let value = |wanted: &str| {
        query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .find(|(name, _)| *name == wanted)
            .and_then(|(_, value)| percent_decode(value))
    };
    if value("state").as_deref() != Some(state) {
        return None;
    }
    if let Some(required) = required_issuer
        && value("iss").as_deref() != Some(required)
    {
        return Some(Err(anyhow::anyhow!(
            "the redirect is not from {required}: run `berth login` again, and tell your platform team if this repeats"
        )));
    }
    Some(match (value("code"), value("error")) {
        (Some(code), None) => Ok(code),
        (_, Some(error)) => {
            let description = value("error_description").unwrap_or_default();
            Err(anyhow::anyhow!(
                "the provider refuses the sign-in: {error} {description}"
            ))
        }
        (None, None) => Err(anyhow::anyhow!(
            "the provider returned no code: run `berth login` again"
        )),
    })
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let value = digit(bytes.next())? * 16 + digit(bytes.next())?;
                u8::try_from(value).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(decoded).ok()
}

async fn answer(stream: &mut TcpStream, status: &str, text: &str) {
    let body = format!("<!doctype html><meta charset=utf-8><title>Berth</title><p>{text}</p>\n");
    let response = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/html; charset=utf-8\r\ncontent-length: {}\r\n\
         cache-control: no-store\r\nreferrer-policy: no-referrer\r\n\
         content-security-policy: default-src 'none'\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    // The browser may have gone; the sign-in is complete all the same.
    let _ = stream.write_all(response.as_bytes()).await;
    let _ = stream.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_redirect_of_this_sign_in_counts() {
        let parse = |target: &str| parse_redirect(target, None, "s1");
        assert_eq!(
            parse("/callback?state=s1&code=a%2Fb+c").unwrap().unwrap(),
            "a/b c"
        );
        for other in [
            "/favicon.ico",
            "/callback",
            "/callback?code=x",
            "/callback?state=s2&code=x",
            "/callbackx?state=s1&code=x",
        ] {
            assert!(parse(other).is_none(), "{other}");
        }
        let denied = parse("/callback?state=s1&error=access_denied&error_description=no%20way");
        let denied = denied.unwrap().unwrap_err().to_string();
        assert!(denied.contains("access_denied no way"), "{denied}");
        assert!(parse("/callback?state=s1").unwrap().is_err());
        // Mix-up of issuers, RFC 9207.
        let from = |iss: &str| {
            let target = format!("/callback?state=s1&code=x{iss}");
            parse_redirect(&target, Some("https://idp"), "s1").unwrap()
        };
        assert!(from("&iss=https%3A%2F%2Fidp").is_ok());
        assert!(from("&iss=https%3A%2F%2Fother").is_err());
        assert!(from("").is_err());
        assert_eq!(percent_decode("%zz"), None);
        assert_eq!(percent_decode("%2"), None);
    }

    #[test]
    fn secrets_of_a_sign_in_are_long_and_new() {
        assert_eq!(random_text().len(), 43);
        assert_ne!(random_text(), random_text());
    }
}
