//! Who may do what: the one table.

use crate::cluster::{Cluster, ClusterStatus};
use crate::principal::{Principal, Role};
use crate::session::Session;
use crate::{Catalog, OrgId};

/// What a caller wants to do with one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SessionAction {
    /// Describe, list, watch, read its events.
    Read,
    /// Connection details, tokens, log tails: what lets one act as the session.
    Connect,
    /// Close, update, extend, keep alive, warm, interrupt.
    Manage,
}

impl SessionAction {
    /// Every action.
    pub const ALL: [Self; 3] = [Self::Read, Self::Connect, Self::Manage];
}

/// May `who` do `action` with `session`?
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

/// May `who` create sessions at all?
pub fn create_sessions(who: &Principal) -> bool {
    who.has(Role::Member) || who.has(Role::OrgAdmin)
}

/// May `who` see and name `cluster`?
pub fn use_cluster(who: &Principal, cluster: &Cluster) -> bool {
    who.has(Role::PlatformAdmin)
        || (cluster.is_granted_to(&who.org) && cluster.status != ClusterStatus::Destroyed)
}

/// May `who` see and name `catalog`?
pub fn use_catalog(who: &Principal, catalog: &Catalog) -> bool {
    who.org == catalog.org
        && (who.has(Role::OrgAdmin)
            || catalog.allowed_teams.is_empty()
            || catalog.allowed_teams.iter().any(|team| who.teams.contains(team)))
}

/// May `who` write the catalogs of `org`?
pub fn write_catalogs(who: &Principal, org: &OrgId) -> bool {
    who.org == *org && who.has(Role::OrgAdmin)
}

/// May `who` write clusters and organizations? A cluster's definition can
/// start processes and reach addresses.
pub fn write_platform(who: &Principal) -> bool {
    who.has(Role::PlatformAdmin)
}
