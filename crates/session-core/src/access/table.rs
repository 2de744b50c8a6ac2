//! The table: every RPC of every service, and who may call it.
//!
//! A call without a row is rejected. A test of session-proto compares the rows
//! with the service descriptors, so that none is missing or obsolete.

use super::{SessionAction, create_sessions, on_session, write_catalogs, write_platform};
use crate::principal::{Principal, Role};
use crate::session::Session;

/// Rule for the callers of an RPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rule {
    /// Any caller. A list contains only what the caller may see.
    AnyCaller,
    /// Callers who may create sessions, on a cluster and a catalog that they
    /// may use.
    CreateSessions,
    /// Callers who may do this action with the session.
    OnSession(SessionAction),
    /// Callers who may see the cluster.
    UseCluster,
    /// Callers who may see the catalog.
    UseCatalog,
    /// Members of the organization, and platform admins.
    SeeOrg,
    /// Org admins, in their own organization.
    WriteCatalogs,
    /// Platform admins.
    WritePlatform,
    /// Platform admins, and org admins in their own organization.
    DisablePrincipals,
    /// Platform admins, and org admins for their own organization.
    ReadAudit,
    /// One of Berth's own services, with a session token where the call
    /// concerns a session.
    Service,
    /// One of Berth's own services with the credential of a caller who may do
    /// this action with the session.
    ServiceForCaller(SessionAction),
}

impl Rule {
    /// Decides by the caller alone: `false` is final; `true` may still become a
    /// rejection.
    pub fn may_be(self, who: &Principal) -> bool {
        match self {
            Self::CreateSessions => create_sessions(who),
            Self::WriteCatalogs => write_catalogs(who, &who.org),
            Self::WritePlatform => write_platform(who),
            Self::DisablePrincipals | Self::ReadAudit => {
                who.has(Role::OrgAdmin) || who.has(Role::PlatformAdmin)
            }
            Self::AnyCaller
            | Self::OnSession(_)
            | Self::UseCluster
            | Self::UseCatalog
            | Self::SeeOrg
            | Self::Service
            | Self::ServiceForCaller(_) => true,
        }
    }

    /// Whether the RPC is served on the internal port only.
    pub const fn is_internal(self) -> bool {
        matches!(self, Self::Service | Self::ServiceForCaller(_))
    }

    /// Whether the RPC requires an authenticated caller.
    pub const fn needs_caller(self) -> bool {
        !matches!(self, Self::Service)
    }
}

macro_rules! table {
    ($($service:literal { $($rpc:ident => $rule:expr),+ $(,)? })+) => {
        /// An RPC, identified by its method name, which is unique across
        /// services.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[expect(missing_docs, reason = "the protos describe them")]
        pub enum Rpc { $($($rpc),+),+ }

        impl Rpc {
            /// Every RPC.
            pub const ALL: &'static [Self] = &[$($(Self::$rpc),+),+];

            /// The gRPC path: `/package.Service/Method`.
            pub const fn path(self) -> &'static str {
                match self { $($(Self::$rpc => concat!("/", $service, "/", stringify!($rpc))),+),+ }
            }

            /// The rule for its callers.
            pub const fn rule(self) -> Rule {
                use Rule::*;
                use SessionAction::*;
                match self { $($(Self::$rpc => $rule),+),+ }
            }
        }
    };
}

table! {
    "berth.v1.SessionService" {
        CreateSession => CreateSessions,
        DescribeSession => OnSession(Read),
        ListSessions => AnyCaller,
        UpdateSession => OnSession(Manage),
        ExtendSession => OnSession(Manage),
        KeepSessionAlive => OnSession(Manage),
        WarmSession => OnSession(Manage),
        CloseSession => OnSession(Manage),
        WatchSessions => AnyCaller,
        ListSessionEvents => OnSession(Read),
        ListOperations => OnSession(Read),
        InterruptOperations => OnSession(Manage),
    }
    "berth.v1.ClusterService" {
        CreateCluster => WritePlatform,
        DescribeCluster => UseCluster,
        ListClusters => AnyCaller,
        UpdateCluster => WritePlatform,
        DrainCluster => WritePlatform,
        DeleteCluster => WritePlatform,
    }
    "berth.v1.CatalogService" {
        CreateCatalog => WriteCatalogs,
        DescribeCatalog => UseCatalog,
        ListCatalogs => AnyCaller,
        UpdateCatalog => WriteCatalogs,
        DeleteCatalog => WriteCatalogs,
        TestCatalog => WriteCatalogs,
    }
    "berth.v1.OrgService" {
        CreateOrg => WritePlatform,
        DescribeOrg => SeeOrg,
        ListOrgs => AnyCaller,
        DescribeCaller => AnyCaller,
        SetLimits => WritePlatform,
        EnableOrg => WritePlatform,
        DisableOrg => WritePlatform,
        DisablePrincipal => DisablePrincipals,
    }
    "berth.v1.AuditService" {
        ListAuditRecords => ReadAudit,
        ListUsage => SeeOrg,
    }
    "berth.v1.TokenService" {
        IssueSessionToken => OnSession(Connect),
        ListSessionTokens => OnSession(Connect),
        RevokeSessionToken => OnSession(Connect),
        RevokeAllSessionTokens => OnSession(Connect),
    }
    "berth.internal.v1.RouteService" {
        ResolveRoute => Service,
        WatchRoutes => Service,
        ReportActivity => Service,
        BindSparkSession => Service,
    }
    "berth.internal.v1.TokenLedger" {
        RecordToken => ServiceForCaller(Connect),
        ListTokens => ServiceForCaller(Connect),
        Revoke => ServiceForCaller(Connect),
        RevokeAll => ServiceForCaller(Connect),
        ReportKeys => Service,
    }
}

impl Rpc {
    /// Finds the RPC of a gRPC path.
    pub fn of_path(path: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|rpc| rpc.path() == path)
    }

    /// The service's name, without the package.
    pub fn service(self) -> &'static str {
        let path = self.path().trim_start_matches('/');
        let service = path.split('/').next().unwrap_or_default();
        service.rsplit('.').next().unwrap_or_default()
    }

    /// The method's name.
    pub fn method(self) -> &'static str {
        self.path().rsplit('/').next().unwrap_or_default()
    }
}

/// Whether `who` may call `rpc` for `session`: by the rule of every RPC that
/// concerns a session; `false` for all others.
pub fn call_on_session(who: &Principal, rpc: Rpc, session: &Session) -> bool {
    match rpc.rule() {
        Rule::OnSession(action) | Rule::ServiceForCaller(action) => on_session(who, action, session),
        // Applies to each session in a list or a watch.
        Rule::AnyCaller => on_session(who, SessionAction::Read, session),
        Rule::CreateSessions
        | Rule::UseCluster
        | Rule::UseCatalog
        | Rule::SeeOrg
        | Rule::WriteCatalogs
        | Rule::WritePlatform
        | Rule::DisablePrincipals
        | Rule::ReadAudit
        | Rule::Service => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn paths_are_unique_and_lead_back() {
        let paths: BTreeSet<_> = Rpc::ALL.iter().map(|rpc| rpc.path()).collect();
        assert_eq!(paths.len(), Rpc::ALL.len());
        for rpc in Rpc::ALL {
            assert_eq!(Rpc::of_path(rpc.path()), Some(*rpc));
            let internal = rpc.path().starts_with("/berth.internal.v1.");
            assert_eq!(rpc.rule().is_internal(), internal, "{rpc:?}");
        }
        let resolve = Rpc::ResolveRoute;
        assert_eq!(
            (resolve.service(), resolve.method()),
            ("RouteService", "ResolveRoute")
        );
        for other in [
            "",
            "/",
            "/berth.v1.SessionService/",
            "/berth.v1.SessionService/createSession",
            "/x/CreateSession",
        ] {
            assert_eq!(Rpc::of_path(other), None, "{other}");
        }
    }

    #[test]
    fn what_writes_the_platform_is_for_platform_admins_alone() {
        let who = |roles: &[Role]| Principal {
            id: "sa|x".parse().unwrap(),
            org: "acme".parse().unwrap(),
            roles: roles.iter().copied().collect(),
            teams: BTreeSet::new(),
            team_admin_of: BTreeSet::new(),
        };
        let (nobody, member, org_admin, platform) = (
            who(&[]),
            who(&[Role::Member]),
            who(&[Role::OrgAdmin]),
            who(&[Role::PlatformAdmin]),
        );
        for rpc in [
            Rpc::CreateCluster,
            Rpc::UpdateCluster,
            Rpc::CreateOrg,
            Rpc::SetLimits,
            Rpc::DisableOrg,
        ] {
            let may = [&nobody, &member, &org_admin, &platform].map(|who| rpc.rule().may_be(who));
            assert_eq!(may, [false, false, false, true], "{rpc:?}");
        }
        let may = [&nobody, &member, &org_admin, &platform].map(|who| Rpc::CreateCatalog.rule().may_be(who));
        assert_eq!(may, [false, false, true, false]);
        let may = [&nobody, &member, &org_admin, &platform].map(|who| Rpc::CreateSession.rule().may_be(who));
        assert_eq!(may, [false, true, true, false]);
    }
}
