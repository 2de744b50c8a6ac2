//! Pages of the audit trail, newest first, of one organization or of all partitions.
//!
//! A filter can match nothing, so a call is bounded by the records that it reads: a
//! page may be short and still have a next one.

use super::session_page;
use prost::Message as _;
use session_core::{
    Actor, AuditAction, AuditRecord, OrgId, Principal, PrincipalId, Role, SessionId, Timestamp, access,
};
use session_proto::convert::{self, non_empty, parse};
use session_proto::error::Refused;
use session_proto::v1;
use session_store::{AuditPlace, AuditSource, Error, SessionStore};
use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::time::Duration;

/// Maximum number of records that one call reads.
const MAX_READ: usize = 4096;
/// Records that one request to the store returns, of one source or of each.
const PART_OF_ONE: usize = 256;
const PART_OF_EACH: usize = 64;
/// Size from which a page ends early; clients of gRPC accept 4 MiB.
const PAGE_BYTES: usize = 1 << 20;
/// Actions that one request may name.
const MAX_ACTIONS: usize = 32;
/// By how much the time that a record states can be later than its write: the clocks are those of
/// several machines. It is often earlier, because reports arrive late.
const MAX_DISORDER: Duration = Duration::from_secs(3600);

/// Records to return, and the place where the page starts.
#[derive(Debug)]
pub(super) struct Query {
    org: Option<OrgId>,
    actor: Option<Actor>,
    actions: BTreeSet<AuditAction>,
    session: Option<SessionId>,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    page_size: usize,
    before: Option<AuditPlace>,
    for_platform: bool,
}

/// The query of a request.
///
/// # Errors
/// The first wrong field, or an organization whose trail the caller may not read.
pub(super) fn query(who: &Principal, request: v1::ListAuditRecordsRequest) -> Result<Query, Refused> {
    let for_platform = who.has(Role::PlatformAdmin);
    let org = match non_empty(request.org) {
        Some(org) => Some(parse("org", &org)?),
        None if for_platform => None,
        None => Some(who.org.clone()),
    };
    if !access::read_audit(who, org.as_ref()) {
        return Err(Refused::not_authorized());
    }
    let since = request.since.as_ref().map(convert::from_timestamp);
    let until = request.until.as_ref().map(convert::from_timestamp);
    if since.is_some_and(|since| until.is_some_and(|until| until <= since)) {
        return Err(Refused::field("until", "must be later than since"));
    }
    let before = non_empty(request.page_token).map(|token| token.parse::<AuditPlace>());
    Ok(Query {
        org,
        actor: non_empty(request.principal).map(actor).transpose()?,
        actions: actions(&request.actions)?,
        session: non_empty(request.session_id)
            .map(|id| parse("session_id", &id))
            .transpose()?,
        since,
        until,
        page_size: session_page::size(request.page_size)?,
        before: before.transpose().map_err(crate::error::store)?,
        for_platform,
    })
}

fn actor(text: String) -> Result<Actor, Refused> {
    if text == Actor::System.to_string() {
        return Ok(Actor::System);
    }
    parse::<PrincipalId>("principal", &text).map(Actor::Principal)
}

fn actions(names: &[String]) -> Result<BTreeSet<AuditAction>, Refused> {
    if names.len() > MAX_ACTIONS {
        return Err(Refused::field(
            "actions",
            format!("must be at most {MAX_ACTIONS}"),
        ));
    }
    let known = |name: &String| {
        let action = AuditAction::ALL.iter().find(|action| action.as_str() == name);
        action.copied().ok_or_else(|| {
            let all: Vec<_> = AuditAction::ALL.iter().map(|action| action.as_str()).collect();
            Refused::field("actions", format!("each must be one of {}", all.join(", ")))
        })
    };
    names.iter().map(known).collect()
}

impl Query {
    fn sources(&self) -> Vec<AuditSource> {
        match &self.org {
            Some(org) => vec![AuditSource::Org(org.clone())],
            None => (0..OrgId::PARTITIONS).map(AuditSource::Partition).collect(),
        }
    }

    fn matches(&self, record: &AuditRecord) -> bool {
        (self.actor.is_none() || record.actor == self.actor)
            && (self.actions.is_empty() || self.actions.contains(&record.action))
            && (self.session.is_none() || record.session == self.session)
            && self.since.is_none_or(|since| record.at >= since)
            && self.until.is_none_or(|until| record.at < until)
    }

    /// Whether neither the record at `place` nor an older one can match.
    fn ends_at(&self, place: AuditPlace) -> bool {
        self.since
            .is_some_and(|since| place.written_at().after(MAX_DISORDER) < since)
    }

    fn shown(&self, record: &AuditRecord) -> v1::AuditRecord {
        let mut shown = convert::audit_record(record);
        if !self.for_platform && record.is_of_platform_admin() {
            shown.address.clear();
        }
        shown
    }
}

/// Reads a page.
///
/// # Errors
/// Those of the store.
pub(super) async fn read(
    store: &dyn SessionStore,
    mut query: Query,
) -> Result<v1::ListAuditRecordsResponse, Refused> {
    let sources = query.sources();
    let mut page = v1::ListAuditRecordsResponse::default();
    let (mut read, mut bytes) = (0, 0);
    loop {
        let round = newest(store, &sources, query.before)
            .await
            .map_err(crate::error::store)?;
        read += round.read;
        for (place, record) in &round.records {
            if query.ends_at(*place) {
                return Ok(page);
            }
            query.before = Some(*place);
            if query.matches(record) {
                let shown = query.shown(record);
                bytes += shown.encoded_len();
                page.records.push(shown);
            }
            if page.records.len() >= query.page_size || bytes >= PAGE_BYTES {
                page.next_page_token = place.to_string();
                return Ok(page);
            }
        }
        match query.before {
            Some(_) if round.is_last => return Ok(page),
            Some(place) if read + part_of(&sources) * sources.len() > MAX_READ => {
                page.next_page_token = place.to_string();
                return Ok(page);
            }
            Some(_) => {}
            None => return Ok(page),
        }
    }
}

/// The newest records before a place, in order.
struct Round {
    records: Vec<(AuditPlace, AuditRecord)>,
    read: usize,
    is_last: bool,
}

/// Records that one round reads of each source.
fn part_of(sources: &[AuditSource]) -> usize {
    match sources {
        [_] => PART_OF_ONE,
        _ => PART_OF_EACH,
    }
}

async fn newest(
    store: &dyn SessionStore,
    sources: &[AuditSource],
    before: Option<AuditPlace>,
) -> Result<Round, Error> {
    let part = part_of(sources);
    let reads = sources
        .iter()
        .map(|source| store.read_audit_before(source.clone(), before, part));
    let parts = futures::future::try_join_all(reads).await?;
    let read = parts.iter().map(Vec::len).sum();
    // Below the last record of a full part there may be more of its source.
    let full = parts.iter().filter(|records| records.len() == part);
    let horizon = full
        .filter_map(|records| records.last())
        .map(|(place, _)| *place)
        .max();
    let mut records: Vec<_> = parts
        .into_iter()
        .flatten()
        .filter(|(place, _)| horizon.is_none_or(|horizon| *place >= horizon))
        .collect();
    records.sort_unstable_by_key(|(place, _)| Reverse(*place));
    Ok(Round {
        records,
        read,
        is_last: horizon.is_none(),
    })
}
