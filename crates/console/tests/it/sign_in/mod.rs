//! Sign-in with keys and at identity providers, on a real session-manager.

mod browser;
mod hostile;
mod installation;
mod key;
mod oidc;
mod pages;
mod provider;
mod replicas;

use browser::Browser;
use installation::{Console, Installation};
use provider::Provider;

/// The whole sign-in of a browser that starts at `login`; returns the answer of
/// the callback.
async fn through(browser: &Browser, login: &str) -> browser::Answer {
    let to_provider = browser.get(login).await;
    assert_eq!(to_provider.status, 303, "{to_provider:?}");
    let back = Browser::at_url(to_provider.header("location")).get_url().await;
    browser.get(path_of(back.header("location"))).await
}

/// Path and query of an address.
fn path_of(url: &str) -> &str {
    let after_scheme = url.split_once("://").map_or(url, |(_, rest)| rest);
    after_scheme.find('/').map_or("/", |slash| &after_scheme[slash..])
}
