//! How long a removal takes until it is effective: nine removals, and for each a new call, an open
//! stream, the return to a stream, and a proxy that gets no changes.
//!
//! `make test` measures a few of each. `make revocation` measures many (ROUNDS=50 CUT_ROUNDS=10
//! choose) and writes the table in docs/security.md.

mod api;
mod credentials;
mod manager_relay;
mod rig;
mod spark;
mod table;

use anyhow::{Context as _, Result, ensure};
use rig::Rig;
use session_core::Reason;
use table::Times;
use tokio::task::LocalSet;

/// What is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Removal {
    Principal,
    ServiceKey,
    ProviderKey,
    Role,
    Org,
    OneToken,
    AllTokens,
    Close,
    SigningKey,
}

const REMOVALS: [Removal; 9] = [
    Removal::Principal,
    Removal::ServiceKey,
    Removal::ProviderKey,
    Removal::Role,
    Removal::Org,
    Removal::OneToken,
    Removal::AllTokens,
    Removal::Close,
    Removal::SigningKey,
];

impl Removal {
    /// For the table.
    fn title(self) -> &'static str {
        match self {
            Self::Principal => "principal (`DisablePrincipal`)",
            Self::ServiceKey => "service-account key (`service_accounts_file`)",
            Self::ProviderKey => "provider's key (its key set)",
            Self::Role => "role (`service_accounts_file`)",
            Self::Org => "organization (`DisableOrg`)",
            Self::OneToken => "one token (`RevokeSessionToken`)",
            Self::AllTokens => "all tokens (`RevokeAllSessionTokens`)",
            Self::Close => "session (`CloseSession`)",
            Self::SigningKey => "signing key (`keys.dir`)",
        }
    }

    /// Whether it takes a credential of the APIs; the others end session tokens.
    fn is_of_credential(self) -> bool {
        match self {
            Self::ServiceKey | Self::ProviderKey | Self::Role => true,
            Self::Principal
            | Self::Org
            | Self::OneToken
            | Self::AllTokens
            | Self::Close
            | Self::SigningKey => false,
        }
    }

    /// Why the proxy refuses a session token afterwards.
    fn reasons(self) -> &'static [Reason] {
        match self {
            Self::Close => &[Reason::SessionClosed],
            // Its sessions are closed, and its tokens revoked.
            Self::Principal => &[Reason::SessionClosed, Reason::TokenRevoked],
            Self::Org => &[Reason::OrgDisabled, Reason::SessionClosed],
            Self::OneToken | Self::AllTokens => &[Reason::TokenRevoked],
            Self::SigningKey => &[Reason::TokenInvalid],
            Self::ServiceKey | Self::ProviderKey | Self::Role => &[],
        }
    }
}

/// A number from the environment.
fn number(variable: &str, default: usize) -> Result<usize> {
    match std::env::var(variable) {
        Ok(text) => text
            .parse()
            .with_context(|| format!("{variable} must be a number")),
        Err(_) => Ok(default),
    }
}

/// Measures the rounds; what is tried runs on this thread.
async fn measure(rounds: usize, cut_rounds: usize) -> Result<Times> {
    LocalSet::new().run_until(measure_here(rounds, cut_rounds)).await
}

async fn measure_here(rounds: usize, cut_rounds: usize) -> Result<Times> {
    let rig = Rig::start().await?;
    let mut times = Times::default();
    for round in 0..rounds {
        for removal in REMOVALS {
            let measured = rig.round(removal, &mut times).await;
            measured.with_context(|| format!("{removal:?}, round {round}"))?;
        }
    }
    for round in 0..cut_rounds {
        let measured = rig.cut_round(&mut times).await;
        measured.with_context(|| format!("watch cut, round {round}"))?;
    }
    println!("{}", times.lines().join("\n"));
    Ok(times)
}

/// A few of each; the machine may be busy with other tests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_removal_is_effective_soon() -> Result<()> {
    let missed = measure(1, 1).await?.missed(2);
    ensure!(missed.is_empty(), "{missed:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make revocation runs it: a quarter of an hour"]
async fn matrix() -> Result<()> {
    let times = measure(number("ROUNDS", 50)?, number("CUT_ROUNDS", 10)?).await?;
    let missed = times.missed(1);
    ensure!(missed.is_empty(), "{missed:?}");
    table::write(&times.lines())
}
