//! Callers: principals from configuration and credentials, and the authenticated
//! caller that admission attaches to a request. Configuration, admission, audit
//! and the services share these types.

use service_kit::caller::{Caller, ServiceAccountConfig};
use session_core::{Principal, PrincipalId, Role};
use std::ops::Deref;

/// The roles that a token of an identity provider may claim. Only the configuration
/// grants the role of a platform admin.
pub(crate) const CLAIMABLE_ROLES: [&str; 2] = ["member", "org-admin"];

/// The authenticated caller of a request, with the client IP.
#[derive(Debug, Clone)]
pub(crate) struct AuthenticatedCaller {
    /// The principal whose credential the request carries.
    pub(crate) who: Principal,
    /// The client's IP address; empty if unknown.
    pub(crate) address: String,
}

impl AuthenticatedCaller {
    /// The principal without the address.
    pub(crate) fn into_principal(self) -> Principal {
        self.who
    }
}

impl Deref for AuthenticatedCaller {
    type Target = Principal;

    fn deref(&self) -> &Principal {
        &self.who
    }
}

/// The principal that a credential names.
///
/// # Errors
/// Names the part that is invalid.
pub(crate) fn principal(caller: &Caller) -> Result<Principal, String> {
    let roles = caller
        .roles
        .iter()
        .map(|role| role_of(role))
        .collect::<Result<_, _>>()?;
    Ok(Principal {
        id: PrincipalId::new(&caller.issuer_alias, &caller.subject).map_err(|error| error.to_string())?,
        org: caller
            .org
            .parse()
            .map_err(|error: session_core::id::InvalidId| error.to_string())?,
        roles,
        teams: caller.teams.iter().cloned().collect(),
        team_admin_of: caller.team_admin_of.iter().cloned().collect(),
    })
}

/// The principal of a configured account.
///
/// # Errors
/// Names the part that is invalid.
pub(crate) fn account_principal(account: &ServiceAccountConfig) -> Result<Principal, String> {
    principal(&account.caller())
}

fn role_of(text: &str) -> Result<Role, String> {
    match text {
        "member" => Ok(Role::Member),
        "org-admin" => Ok(Role::OrgAdmin),
        "platform-admin" => Ok(Role::PlatformAdmin),
        other => Err(format!(
            "{other:?} is not a role: use member, org-admin or platform-admin"
        )),
    }
}
