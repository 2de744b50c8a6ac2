//! Use of an organization's sessions, summed by owner and cluster.
//!
//! The sums are over records that are kept. One call is bounded in sessions and in
//! time; the rows of several pages with the same owner and cluster add up.

use super::session_page;
use session_core::{ClusterName, OrgId, Principal, PrincipalId, Role, Session, Totals, Use};
use session_proto::convert::{non_empty, parse};
use session_proto::error::Refused;
use session_proto::v1;
use session_store::{ListQuery, Scope, SessionStore};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// Sessions that one page sums.
const MAX_SESSIONS: usize = 5000;
/// Sessions that are read at a time; with a filter a part reads at most 1000 records.
const PART: usize = 250;
/// Reads of one page.
const MAX_PARTS: usize = MAX_SESSIONS / PART;
/// Time after which a page ends.
const MAX_TIME: Duration = Duration::from_secs(10);

/// The query of a request for `org`.
///
/// # Errors
/// The first wrong field.
pub(super) fn query(
    who: &Principal,
    org: OrgId,
    request: v1::ListUsageRequest,
) -> Result<ListQuery, Refused> {
    let scope = if who.has(Role::PlatformAdmin) {
        Scope::Org
    } else {
        session_page::visible(who)
    };
    Ok(ListQuery {
        scope,
        owner: non_empty(request.owner)
            .map(|owner| parse("owner", &owner))
            .transpose()?,
        cluster: non_empty(request.cluster)
            .map(|cluster| parse("cluster", &cluster))
            .transpose()?,
        page_token: non_empty(request.page_token),
        ..ListQuery::of_org(org, PART)
    })
}

/// What the sessions of one owner on one cluster used.
#[derive(Debug, Default)]
struct Sum {
    sessions: u32,
    live: u32,
    totals: Totals,
    warm: Duration,
}

impl Sum {
    fn add(&mut self, session: &Session, used: &Use) {
        self.sessions += 1;
        self.live += u32::from(!session.status().is_terminal());
        self.totals = self.totals.plus(used.totals);
        self.warm = self.warm.saturating_add(session.warm(used.at));
    }
}

/// Reads and sums a page.
///
/// # Errors
/// Those of the store.
pub(super) async fn read(
    store: &dyn SessionStore,
    mut query: ListQuery,
) -> Result<v1::ListUsageResponse, Refused> {
    let begun = Instant::now();
    let mut sums: BTreeMap<(PrincipalId, ClusterName), Sum> = BTreeMap::new();
    for _ in 0..MAX_PARTS {
        let part = store.list(&query).await.map_err(crate::error::store)?;
        let uses = store.usage(&part.sessions).await.map_err(crate::error::store)?;
        for (session, used) in part.sessions.iter().zip(&uses) {
            let key = (session.owner.clone(), session.cluster.clone());
            sums.entry(key).or_default().add(session, used);
        }
        query.page_token = part.next;
        if query.page_token.is_none() || begun.elapsed() >= MAX_TIME {
            break;
        }
    }
    Ok(v1::ListUsageResponse {
        rows: sums.iter().map(row).collect(),
        next_page_token: query.page_token.unwrap_or_default(),
    })
}

fn row(((owner, cluster), sum): (&(PrincipalId, ClusterName), &Sum)) -> v1::UsageRow {
    v1::UsageRow {
        owner: owner.to_string(),
        cluster: cluster.to_string(),
        sessions: sum.sessions,
        live_sessions: sum.live,
        usage: Some(v1::SessionUsage {
            rpcs: sum.totals.rpcs,
            bytes_in: sum.totals.bytes_in,
            bytes_out: sum.totals.bytes_out,
            open_stream_seconds: sum.totals.open_stream_millis / 1000,
            warm_seconds: sum.warm.as_secs(),
        }),
    }
}
