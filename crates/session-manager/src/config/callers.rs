//! Configuration of the callers of both ports.

use super::Config;
use crate::caller::{CLAIMABLE_ROLES, account_principal};
use serde::{Deserialize, Serialize};
use service_kit::caller::oidc::validate_issuers;
use service_kit::caller::{ServiceAccountConfig, validate_accounts};
use service_kit::config::Problems;
use service_kit::service_account_token::ProjectedConfig;
use session_core::access::Rpc;
use session_core::{OrgId, PrincipalId};
use session_token::ExternalAlgorithm;
use std::collections::{BTreeMap, BTreeSet};

/// Callers of the internal port.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InternalConfig {
    /// The names (DNS or URI) in client certificates that may call a service
    /// (`RouteService`) or one method of it (`RouteService/WatchRoutes`); the list of
    /// a method replaces that of its service. `*` means every certificate of the
    /// authority. With `tokens` the names are the `sub`s of services' tokens.
    pub allow: BTreeMap<String, BTreeSet<String>>,
    /// Services authenticate by tokens of their platform instead of client
    /// certificates.
    pub tokens: Option<ProjectedConfig>,
}

impl InternalConfig {
    /// The names that may call this method; none if services need no name.
    pub(crate) fn names_for(&self, rpc: Rpc) -> Option<&BTreeSet<String>> {
        if self.allow.is_empty() {
            return None;
        }
        static NO_NAMES: BTreeSet<String> = BTreeSet::new();
        let own = self.allow.get(&format!("{}/{}", rpc.service(), rpc.method()));
        Some(own.or_else(|| self.allow.get(rpc.service())).unwrap_or(&NO_NAMES))
    }

    /// Whether the text is a valid key of `allow`.
    fn is_key(key: &str) -> bool {
        internal().any(|rpc| key == rpc.service() || key == format!("{}/{}", rpc.service(), rpc.method()))
    }
}

fn internal() -> impl Iterator<Item = Rpc> {
    Rpc::ALL.iter().copied().filter(|rpc| rpc.rule().is_internal())
}

impl Config {
    pub(super) fn validate_callers(&self, problems: &mut Problems) {
        validate_accounts("service_accounts", &self.service_accounts, problems);
        for (index, account) in self.service_accounts.iter().enumerate() {
            if let Err(problem) = account_principal(account) {
                problems.add(&format!("service_accounts[{index}]"), problem);
            }
        }
        if let Some(file) = &self.service_accounts_file
            && !file.is_file()
        {
            problems.add(
                "service_accounts_file",
                format!("{} is not a readable file", file.display()),
            );
        }
        validate_issuers("oidc", &self.oidc, &CLAIMABLE_ROLES, problems);
        for (index, issuer) in self.oidc.iter().enumerate() {
            if let Err(problem) = algorithms(&issuer.algorithms) {
                problems.add(&format!("oidc[{index}].algorithms"), problem);
            }
            for org in &issuer.orgs {
                if let Err(problem) = org.parse::<OrgId>() {
                    problems.add(&format!("oidc[{index}].orgs"), problem.to_string());
                }
            }
        }
        for principal in &self.platform_admins {
            if let Err(problem) = principal.parse::<PrincipalId>() {
                problems.add("platform_admins", problem.to_string());
            }
        }
        self.validate_allow(problems);
        self.validate_service_credentials(problems);
    }

    fn validate_allow(&self, problems: &mut Problems) {
        for key in self
            .internal
            .allow
            .keys()
            .filter(|key| !InternalConfig::is_key(key))
        {
            problems.add(
                &format!("internal.allow.{key}"),
                "is not a service of the internal port, or a method of one like RouteService/WatchRoutes",
            );
        }
        let Some(tokens) = &self.internal.tokens else {
            return;
        };
        problems.check("internal.tokens", tokens);
        let any_name = self
            .internal
            .allow
            .iter()
            .filter(|(_, names)| names.contains("*"));
        for (key, _) in any_name {
            problems.add(
                &format!("internal.allow.{key}"),
                "must name each `sub`: with internal.tokens \"*\" would be everybody on the platform",
            );
        }
    }

    /// Requires the names of callers for every service of the internal port.
    fn require_names(&self, problems: &mut Problems) {
        let open: BTreeSet<_> = internal()
            .filter(|rpc| self.internal.names_for(*rpc).is_none_or(BTreeSet::is_empty))
            .map(Rpc::service)
            .collect();
        for service in open {
            problems.add(
                &format!("internal.allow.{service}"),
                "must list the certificate names that may call it (or \"*\" for all of listen.internal.tls.client_ca)",
            );
        }
    }

    /// Validates how services authenticate: client certificates or tokens, over TLS.
    fn validate_service_credentials(&self, problems: &mut Problems) {
        let listener = &self.listen.internal;
        match &listener.tls {
            Some(tls) if tls.client_ca.is_some() => {
                problems.require(
                    self.internal.tokens.is_none(),
                    "internal.tokens",
                    "contradicts listen.internal.tls.client_ca; services show one or the other",
                );
                self.require_names(problems);
            }
            Some(_) if self.internal.tokens.is_some() => self.require_names(problems),
            None if self.internal.tokens.is_some() => problems.add(
                "internal.tokens",
                "needs listen.internal.tls: services show their tokens over TLS only",
            ),
            Some(_) if !listener.address.ip().is_loopback() => problems.add(
                "listen.internal.tls.client_ca",
                "is required beyond loopback (or internal.tokens): only certificates or tokens tell Berth's own services apart",
            ),
            Some(_) | None => problems.require(
                self.internal.allow.is_empty(),
                "internal.allow",
                "needs listen.internal.tls.client_ca: without it no caller has a name",
            ),
        }
    }

    /// Checks that all these accounts can be used here together.
    ///
    /// # Errors
    /// The first problem, as text.
    pub(crate) fn check_accounts(&self, accounts: &[ServiceAccountConfig]) -> Result<(), String> {
        for account in accounts {
            account_principal(account).map_err(|problem| format!("{}: {problem}", account.name))?;
        }
        match &self.compute.process {
            Some(process) if !process.trust_all_users => self.check_trust(accounts),
            Some(_) | None => Ok(()),
        }
    }

    /// Checks that all callers belong to one organization, because child processes
    /// run as one user.
    pub(super) fn check_trust(&self, accounts: &[ServiceAccountConfig]) -> Result<(), String> {
        let accounts = accounts.iter().map(|account| account.org.as_str());
        let issuers = self
            .oidc
            .iter()
            .flat_map(|issuer| issuer.orgs.iter().map(String::as_str));
        let orgs: BTreeSet<&str> = accounts.chain(issuers).collect();
        if orgs.len() <= 1 {
            return Ok(());
        }
        Err(
            "runs every child as one user, and several organizations have accounts here; \
             set compute.process.trust_all_users = true if they may see each other's data"
                .to_owned(),
        )
    }
}

/// The signature algorithms of these names; `none` and HMAC are not accepted.
///
/// # Errors
/// Names the unknown algorithm, and the accepted ones.
pub(crate) fn algorithms(names: &[String]) -> Result<Vec<ExternalAlgorithm>, String> {
    let known = || {
        ExternalAlgorithm::ALL
            .iter()
            .map(|one| one.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    };
    names
        .iter()
        .map(|name| {
            name.parse()
                .map_err(|()| format!("{name:?} is not accepted: use {}", known()))
        })
        .collect()
}
