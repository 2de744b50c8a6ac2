//! The access rules, written independently of the code that enforces them: one line
//! per RPC, and the classes in those lines.
//!
//! > create – any member, on granted clusters and allowed catalogs;
//! > describe/list – own sessions, team admin: the team's, org admin: all of the
//! > org; connection details, tokens – only session owner or org admin;
//! > close/update/extend/keep-alive/warm/interrupt – owner, team admin, org
//! > admin; write catalogs – org admin; write clusters, orgs – platform admin;
//! > audit trail – org admin: own organization, platform admin: all.

use session_core::access::Rpc;
use session_core::{Principal, Role, Session};

/// The classes of principals in the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Is {
    /// A principal with a valid credential.
    Anybody,
    /// A member or an admin of an organization.
    Member,
    /// The session's owner.
    Owner,
    /// Admin of the session's team, in the session's organization.
    TeamAdmin,
    /// Org admin of the session's organization.
    SessionsOrgAdmin,
    /// Org admin of their own organization.
    OrgAdmin,
    /// Org admin of the organization that the call names.
    NamedOrgsAdmin,
    /// A principal of the organization that the call names.
    OfNamedOrg,
    /// A principal of the organization `one`, to which the test's cluster is granted.
    OfOne,
    /// A principal who may use the test's catalog `lake` of their organization.
    LakeUser,
    PlatformAdmin,
}
use Is::*;

const READ: &[Is] = &[Owner, TeamAdmin, SessionsOrgAdmin];
const MANAGE: &[Is] = &[Owner, TeamAdmin, SessionsOrgAdmin];
const ACT_AS: &[Is] = &[Owner, SessionsOrgAdmin];

/// Principals of one of these classes may call; methods without a line are for services.
const TABLE: &[(&str, &[Is])] = &[
    ("CreateSession", &[Member]),
    ("DescribeSession", READ),
    ("ListSessions", &[Anybody]),
    ("UpdateSession", MANAGE),
    ("ExtendSession", MANAGE),
    ("KeepSessionAlive", MANAGE),
    ("WarmSession", MANAGE),
    ("CloseSession", MANAGE),
    ("WatchSessions", READ),
    ("ListSessionEvents", READ),
    ("ListOperations", READ),
    ("InterruptOperations", MANAGE),
    ("CreateCluster", &[PlatformAdmin]),
    ("DescribeCluster", &[OfOne, PlatformAdmin]),
    ("ListClusters", &[Anybody]),
    ("UpdateCluster", &[PlatformAdmin]),
    ("DrainCluster", &[PlatformAdmin]),
    ("DeleteCluster", &[PlatformAdmin]),
    ("CreateCatalog", &[OrgAdmin]),
    ("DescribeCatalog", &[LakeUser]),
    ("ListCatalogs", &[Anybody]),
    ("UpdateCatalog", &[OrgAdmin]),
    ("DeleteCatalog", &[OrgAdmin]),
    ("TestCatalog", &[OrgAdmin]),
    ("CreateOrg", &[PlatformAdmin]),
    ("DescribeOrg", &[OfNamedOrg, PlatformAdmin]),
    ("ListOrgs", &[Anybody]),
    ("DescribeCaller", &[Anybody]),
    ("SetLimits", &[PlatformAdmin]),
    ("EnableOrg", &[PlatformAdmin]),
    ("DisableOrg", &[PlatformAdmin]),
    ("DisablePrincipal", &[NamedOrgsAdmin, PlatformAdmin]),
    ("ListAuditRecords", &[NamedOrgsAdmin, PlatformAdmin]),
    ("ListUsage", &[OfNamedOrg, PlatformAdmin]),
    ("IssueSessionToken", ACT_AS),
    ("ListSessionTokens", ACT_AS),
    ("RevokeSessionToken", ACT_AS),
    ("RevokeAllSessionTokens", ACT_AS),
    ("RecordToken", ACT_AS),
    ("ListTokens", ACT_AS),
    ("Revoke", ACT_AS),
    ("RevokeAll", ACT_AS),
];

fn is(who: &Principal, class: Is, session: Option<&Session>, org: &str) -> bool {
    let role = |role| who.roles.contains(&role);
    let org_admin = role(Role::OrgAdmin);
    let own = who.org.as_str();
    // Roles do not apply to sessions of another organization.
    let session = session.filter(|session| session.org.as_str() == own);
    match class {
        Anybody => true,
        Member => role(Role::Member) || org_admin,
        Owner => session.is_some_and(|session| session.owner == who.id),
        TeamAdmin => {
            let team = session.and_then(|session| session.team.as_deref());
            team.is_some_and(|team| who.team_admin_of.iter().any(|of| of == team))
        }
        SessionsOrgAdmin => session.is_some() && org_admin,
        OrgAdmin => org_admin,
        NamedOrgsAdmin => own == org && org_admin,
        OfNamedOrg => own == org,
        OfOne => own == "one",
        LakeUser => {
            // As the test declares it: all of `two`; some teams of the others.
            let teams: &[&str] = match own {
                "one" => &["data"],
                "three" => &["ops", "web"],
                _ => return true,
            };
            org_admin || teams.iter().any(|team| who.teams.contains(*team))
        }
        PlatformAdmin => role(Role::PlatformAdmin),
    }
}

/// Whether the principal may call.
pub(crate) fn may(who: &Principal, rpc: Rpc, session: Option<&Session>, org: &str) -> bool {
    let line = TABLE.iter().find(|(name, _)| *name == rpc.method());
    line.is_some_and(|(_, classes)| classes.iter().any(|class| is(who, *class, session, org)))
}

#[test]
fn no_line_is_missing_or_left_over() {
    let services_only = [
        "ResolveRoute",
        "WatchRoutes",
        "ReportActivity",
        "BindSparkSession",
        "ReportKeys",
    ];
    for rpc in Rpc::ALL {
        let lines = TABLE.iter().filter(|(name, _)| *name == rpc.method()).count();
        let expected = usize::from(!services_only.contains(&rpc.method()));
        assert_eq!(lines, expected, "{rpc:?}");
    }
    assert_eq!(TABLE.len() + services_only.len(), Rpc::ALL.len());
}
