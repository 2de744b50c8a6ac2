//! The table: every RPC of every service, and who may call it.
//!
//! A call that has no row is refused. A test of session-proto compares the
//! rows with the services' descriptors, so that none is missing or left over.

use super::{SessionAction, create_sessions, on_session, write_catalogs, write_platform};
use crate::principal::{Principal, Role};
use crate::session::Session;

/// Who may call an RPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rule {
    /// Any caller. A list has only what the caller may see.
    AnyCaller,
    /// Those who may create sessions, on a cluster and a catalog that they may use.
    CreateSessions,
    /// Those who may do this with the session.
    OnSession(SessionAction),
    /// Those who may see the cluster.
    UseCluster,
    /// Those who may see the catalog.
    UseCatalog,
    /// Those of the organization, and platform admins.
    SeeOrg,
    /// Org admins, in their own organization.
    WriteCatalogs,
    /// Platform admins.
    WritePlatform,
    /// Platform admins, and org admins in their own organization.
    DisablePrincipals,
    /// One of Berth's own services; it shows a session token where a session is
    /// concerned.
    Service,
    /// One of Berth's own services with the credential of a caller who may do
    /// this with the session.
    ServiceForCaller(SessionAction),
}

impl Rule {
    /// What can be told of the caller alone: false is a no, true may become one.
    pub fn may_be(self, who: &Principal) -> bool {
        match self {
            Self::CreateSessions => create_sessions(who),
            Self::WriteCatalogs => write_catalogs(who, &who.org),
            Self::WritePlatform => write_platform(who),
            Self::DisablePrincipals => who.has(Role::OrgAdmin) || who.has(Role::PlatformAdmin),
            Self::AnyCaller
            | Self::OnSession(_)
            | Self::UseCluster
            | Self::UseCatalog
            | Self::SeeOrg
            | Self::Service
            | Self::ServiceForCaller(_) => true,
        }
    }

    /// Is it served on the internal port only?
    pub const fn is_internal(self) -> bool {
        matches!(self, Self::Service | Self::ServiceForCaller(_))
    }

    /// Does a caller prove who they are?
    pub const fn needs_caller(self) -> bool {
        !matches!(self, Self::Service)
    }
}

macro_rules! table {
    ($($service:literal { $($rpc:ident => $rule:expr),+ $(,)? })+) => {
        /// An RPC, by its name: no two services share one.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[expect(missing_docs, reason = "the protos describe them")]
        pub enum Rpc { $($($rpc),+),+ }

        impl Rpc {
            /// Every one.
            pub const ALL: &'static [Self] = &[$($(Self::$rpc),+),+];

            /// As gRPC calls it: `/package.Service/Method`.
            pub const fn path(self) -> &'static str {
                match self { $($(Self::$rpc => concat!("/", $service, "/", stringify!($rpc))),+),+ }
            }

            /// Who may call it.
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
        SetLimits => WritePlatform,
        EnableOrg => WritePlatform,
        DisableOrg => WritePlatform,
        DisablePrincipal => DisablePrincipals,
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
    /// The RPC that gRPC calls so.
    pub fn of_path(path: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|rpc| rpc.path() == path)
    }

    /// Its service's name, without the package.
    pub fn service(self) -> &'static str {
        let path = self.path().trim_start_matches('/');
        let service = path.split('/').next().unwrap_or_default();
        service.rsplit('.').next().unwrap_or_default()
    }

    /// Its own name.
    pub fn method(self) -> &'static str {
        self.path().rsplit('/').next().unwrap_or_default()
    }
}

/// May `who` call `rpc` about `session`? The same for every RPC whose row
/// speaks of a session; no for all others.
pub fn call_on_session(who: &Principal, rpc: Rpc, session: &Session) -> bool {
    match rpc.rule() {
        Rule::OnSession(action) | Rule::ServiceForCaller(action) => on_session(who, action, session),
        // Of those sessions that a list or a watch would have.
        Rule::AnyCaller => on_session(who, SessionAction::Read, session),
        Rule::CreateSessions
        | Rule::UseCluster
        | Rule::UseCatalog
        | Rule::SeeOrg
        | Rule::WriteCatalogs
        | Rule::WritePlatform
        | Rule::DisablePrincipals
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
