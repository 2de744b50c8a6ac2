//! Names of quotas, as errors contain them.

use crate::org::Limits;
use crate::string_enum::string_enum;

string_enum! {
    /// A quota that a call can exceed.
    Quota {
        /// Live sessions of one owner.
        LiveSessionsPerOwner => "live_sessions_per_owner",
        /// Live sessions of an organization.
        LiveSessions => "live_sessions",
        /// Sessions that one owner creates per minute.
        CreatesPerMinute => "creates_per_minute",
        /// Live tokens of one session.
        TokensPerSession => "tokens_per_session",
        /// Catalogs of an organization.
        Catalogs => "catalogs",
        /// Bytes of all catalogs of an organization.
        CatalogBytes => "catalog_bytes",
        /// Disabled principals of an organization.
        DisabledPrincipals => "disabled_principals",
        /// Bytes of all entries of disabled principals of an organization.
        DisabledBytes => "disabled_bytes",
        /// Concurrent watches of a principal, of an organization or in all.
        Watches => "watches",
        /// Memory of the state store.
        StoreMemory => "store_memory",
    }
}

impl Quota {
    /// The quota with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|quota| quota.as_str() == name)
    }
}

impl Limits {
    /// The limit of a quota; `None` if organizations do not configure it.
    pub fn of(&self, quota: Quota) -> Option<u32> {
        match quota {
            Quota::LiveSessionsPerOwner => Some(self.live_sessions_per_owner),
            Quota::LiveSessions => Some(self.live_sessions),
            Quota::CreatesPerMinute => Some(self.creates_per_minute),
            Quota::TokensPerSession => Some(self.tokens_per_session),
            Quota::Catalogs
            | Quota::CatalogBytes
            | Quota::DisabledPrincipals
            | Quota::DisabledBytes
            | Quota::Watches
            | Quota::StoreMemory => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_of_an_organization_have_the_names_of_its_limits() {
        let limits = serde_json::to_value(Limits::default()).unwrap();
        for quota in Quota::ALL.iter().copied() {
            assert_eq!(Quota::named(quota.as_str()), Some(quota));
            let field = limits.get(quota.as_str()).and_then(serde_json::Value::as_u64);
            assert_eq!(field, Limits::default().of(quota).map(u64::from), "{quota}");
        }
        assert_eq!(Quota::named("labels"), None);
    }
}
