//! Pages of sessions.
//!
//! A page is limited in bytes too: clients of gRPC accept messages of 4 MiB by default, and 1000
//! sessions with the longest labels are twice as large.

use super::sessions::shown;
use prost::Message as _;
use session_core::{Principal, Role};
use session_proto::convert::{self, non_empty, parse};
use session_proto::error::Refused;
use session_proto::v1;
use session_store::{ListQuery, Scope, SessionStore};
use std::collections::BTreeSet;

const DEFAULT_PAGE: usize = 100;
const MAX_PAGE: usize = 1000;
/// Size from which a page ends early.
const PAGE_BYTES: usize = 1 << 20;
/// Sessions that are read at a time, hence the most by which a page exceeds [`PAGE_BYTES`].
const PART: usize = 100;

/// The sessions of its organization that a caller may see.
pub(crate) fn visible(who: &Principal) -> Scope {
    if who.has(Role::OrgAdmin) {
        Scope::Org
    } else {
        Scope::OwnAndTeams {
            owner: who.id.clone(),
            teams: who.team_admin_of.clone(),
        }
    }
}

/// The query of a list request.
///
/// # Errors
/// The first wrong field.
pub(super) fn query(who: &Principal, request: v1::ListSessionsRequest) -> Result<ListQuery, Refused> {
    let statuses: BTreeSet<_> = request
        .statuses
        .iter()
        .map(|status| convert::from_status("statuses", *status))
        .collect::<Result<_, _>>()?;
    let page_size = size(request.page_size)?;
    Ok(ListQuery {
        org: who.org.clone(),
        scope: visible(who),
        statuses,
        owner: non_empty(request.owner)
            .map(|owner| parse("owner", &owner))
            .transpose()?,
        cluster: non_empty(request.cluster)
            .map(|cluster| parse("cluster", &cluster))
            .transpose()?,
        team: non_empty(request.team),
        labels: request.labels.into_iter().collect(),
        page_size,
        page_token: non_empty(request.page_token),
    })
}

/// The page size of a list request; 0 is the default.
///
/// # Errors
/// If it is out of range.
pub(super) fn size(asked: i32) -> Result<usize, Refused> {
    match usize::try_from(asked) {
        Ok(0) => Ok(DEFAULT_PAGE),
        Ok(size) if size <= MAX_PAGE => Ok(size),
        Ok(_) | Err(_) => Err(Refused::field("page_size", format!("must be 1 to {MAX_PAGE}"))),
    }
}

/// Reads a page, which is short if its sessions are large.
///
/// # Errors
/// Those of the store.
pub(super) async fn read(
    store: &dyn SessionStore,
    who: &Principal,
    mut query: ListQuery,
) -> Result<v1::ListSessionsResponse, Refused> {
    let asked = query.page_size;
    let (mut sessions, mut bytes) = (Vec::new(), 0);
    loop {
        query.page_size = PART.min(asked - sessions.len());
        let part = store.list(&query).await.map_err(crate::error::store)?;
        let uses = store.usage(&part.sessions).await.map_err(crate::error::store)?;
        for (session, used) in part.sessions.iter().zip(&uses) {
            let session = shown(who, session, used);
            bytes += session.encoded_len();
            sessions.push(session);
        }
        // The store ends a part early at its limit of examined sessions.
        let at_read_limit = part.sessions.len() < query.page_size;
        if part.next.is_none() || at_read_limit || sessions.len() >= asked || bytes >= PAGE_BYTES {
            return Ok(v1::ListSessionsResponse {
                sessions,
                next_page_token: part.next.unwrap_or_default(),
            });
        }
        query.page_token = part.next;
    }
}
