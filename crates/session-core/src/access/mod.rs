//! Access rules, in one place. [`Rpc`] is the table of all RPCs.

mod table;

pub use table::{Rpc, Rule, call_on_session};

use crate::cluster::{Cluster, ClusterStatus};
use crate::principal::{Principal, Role};
use crate::session::Session;
use crate::{Catalog, OrgId};

/// An action on one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SessionAction {
    /// Describe, list, watch, read its events.
    Read,
    /// Connection details, tokens, log tails: everything that allows acting as
    /// the session.
    Connect,
    /// Close, update, extend, keep alive, warm, interrupt.
    Manage,
}

impl SessionAction {
    /// Every action.
    pub const ALL: [Self; 3] = [Self::Read, Self::Connect, Self::Manage];
}

/// Whether `who` may do `action` with `session`.
pub fn on_session(who: &Principal, action: SessionAction, session: &Session) -> bool {
    if who.org != session.org {
        return false;
    }
    let owner = who.id == session.owner;
    let org_admin = who.has(Role::OrgAdmin);
    let team_admin = session
        .team
        .as_ref()
        .is_some_and(|team| who.team_admin_of.contains(team));
    match action {
        SessionAction::Read | SessionAction::Manage => owner || team_admin || org_admin,
        SessionAction::Connect => owner || org_admin,
    }
}

/// Whether `who` may create sessions.
pub fn create_sessions(who: &Principal) -> bool {
    who.has(Role::Member) || who.has(Role::OrgAdmin)
}

/// Whether `who` may see and use `cluster`.
pub fn use_cluster(who: &Principal, cluster: &Cluster) -> bool {
    who.has(Role::PlatformAdmin)
        || (cluster.is_granted_to(&who.org) && cluster.status != ClusterStatus::Destroyed)
}

/// Whether `who` may see and use `catalog`.
pub fn use_catalog(who: &Principal, catalog: &Catalog) -> bool {
    who.org == catalog.org
        && (who.has(Role::OrgAdmin)
            || catalog.allowed_teams.is_empty()
            || catalog.allowed_teams.iter().any(|team| who.teams.contains(team)))
}

/// Whether `who` may write the catalogs of `org`.
pub fn write_catalogs(who: &Principal, org: &OrgId) -> bool {
    who.org == *org && who.has(Role::OrgAdmin)
}

/// Whether `who` may write clusters and organizations. A cluster's definition
/// can start processes and reach addresses.
pub fn write_platform(who: &Principal) -> bool {
    who.has(Role::PlatformAdmin)
}

/// Whether `who` may disable and enable principals of `org`.
pub fn disable_principals(who: &Principal, org: &OrgId) -> bool {
    who.has(Role::PlatformAdmin) || (who.org == *org && who.has(Role::OrgAdmin))
}

/// Whether `who` may read the audit trail of `org`; that of all organizations, and
/// the records without one, if `None`.
pub fn read_audit(who: &Principal, org: Option<&OrgId>) -> bool {
    who.has(Role::PlatformAdmin) || (org == Some(&who.org) && who.has(Role::OrgAdmin))
}

/// Whether `who` may see the sums of the use of `org`: of the sessions that `who`
/// may see there, or of all for a platform admin.
pub fn read_usage(who: &Principal, org: &OrgId) -> bool {
    who.org == *org || who.has(Role::PlatformAdmin)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{NewSession, create};
    use crate::policy::{IdlePolicy, SessionPolicy};
    use crate::principal::PrincipalId;
    use crate::{SessionId, Timestamp};
    use std::collections::BTreeSet;
    use std::time::Duration;

    fn who(id: &str, org: &str, roles: &[Role], admin_of: &[&str]) -> Principal {
        Principal {
            id: id.parse::<PrincipalId>().unwrap(),
            org: org.parse().unwrap(),
            roles: roles.iter().copied().collect(),
            teams: BTreeSet::new(),
            team_admin_of: admin_of.iter().map(ToString::to_string).collect(),
        }
    }

    fn session_of(owner: &str, team: Option<&str>) -> Session {
        let policy = SessionPolicy {
            idle_timeout: Duration::from_secs(900),
            close_after_idle: Duration::from_secs(3600),
            max_lifetime: Duration::from_secs(86_400),
            provisioning_deadline: Duration::from_secs(120),
            on_idle: IdlePolicy::Release,
            wake: Default::default(),
            dedicated: true,
        };
        let new = NewSession {
            id: SessionId::generate(Timestamp::ZERO, 1),
            org: "acme".parse().unwrap(),
            owner: owner.parse().unwrap(),
            name: None,
            team: team.map(str::to_owned),
            labels: std::collections::BTreeMap::default(),
            cluster: "c".parse().unwrap(),
            catalog: None,
            profile: None,
            policy,
        };
        create(new, Timestamp::ZERO).session
    }

    /// Every row of the table: a principal and whether it may read, connect and
    /// manage.
    #[test]
    fn the_table_of_sessions() {
        use Role::{Member, OrgAdmin, PlatformAdmin};
        let session = session_of("sa|ada", Some("data"));
        for (name, principal, expected) in [
            ("owner", who("sa|ada", "acme", &[Member], &[]), [true, true, true]),
            (
                "org admin",
                who("sa|olga", "acme", &[OrgAdmin], &[]),
                [true, true, true],
            ),
            (
                "team admin",
                who("sa|tom", "acme", &[Member], &["data"]),
                [true, false, true],
            ),
            (
                "admin of another team",
                who("sa|tim", "acme", &[Member], &["ops"]),
                [false; 3],
            ),
            ("colleague", who("sa|bob", "acme", &[Member], &[]), [false; 3]),
            (
                "platform admin",
                who("sa|pat", "acme", &[PlatformAdmin], &[]),
                [false; 3],
            ),
            (
                "same name elsewhere",
                who("sa|ada", "umbrella", &[Member], &[]),
                [false; 3],
            ),
            (
                "admin elsewhere",
                who("sa|eve", "umbrella", &[OrgAdmin], &["data"]),
                [false; 3],
            ),
        ] {
            let may = SessionAction::ALL.map(|action| on_session(&principal, action, &session));
            assert_eq!(may, expected, "{name}");
        }
        let without_team = session_of("sa|ada", None);
        let team_admin = who("sa|tom", "acme", &[Member], &["data"]);
        assert!(!on_session(&team_admin, SessionAction::Read, &without_team));
    }
}
