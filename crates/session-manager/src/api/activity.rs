//! ReportActivity: validates and converts a proxy's report.

use super::{Api, client_advice};
use crate::lifecycle::activity_reports::SessionReport;
use futures::{StreamExt, stream};
use session_core::{Operation, ProxyId, SessionKey, Timestamp, TokenUse, Totals};
use session_proto::convert::{from_timestamp, parse};
use session_proto::error::Refused;
use session_proto::internal as wire;

/// Sessions of one report.
const MAX_SESSIONS: usize = 10_000;
/// Operations of one session.
const MAX_OPERATIONS: usize = 64;
/// Used tokens of one session.
const MAX_TOKENS: usize = 1000;
/// Names chosen by clients are truncated to this many bytes, so that they do not
/// invalidate a report.
const MAX_NAME: usize = 128;
/// The longest `user_id` that a proxy sends: a token's subject.
const MAX_USER_ID: usize = 512;
/// Limit of a reported amount: more than a call can transfer, and small enough that
/// sums do not overflow.
const MAX_AMOUNT: u64 = 1 << 50;

/// Sessions of one report whose events are written at the same time.
const MAX_CONCURRENT_EVENTS: usize = 64;

/// Accepts a report.
pub(super) async fn report(api: &Api, request: wire::ReportActivityRequest) -> Result<(), Refused> {
    let proxy: ProxyId = parse("proxy_id", &request.proxy_id)?;
    at_most("sessions", request.sessions.len(), MAX_SESSIONS)?;
    let (mut sessions, mut newer_clients) = (Vec::new(), Vec::new());
    for mut session in request.sessions {
        let newer = std::mem::take(&mut session.newer_clients);
        let session = session_report(session)?;
        if !newer.is_empty() {
            newer_clients.push((session.key.clone(), newer));
        }
        sessions.push(session);
    }
    api.reports
        .accept(&proxy, request.sequence, sessions)
        .await
        .map_err(crate::error::store)?;
    // After the activity, which is more important. Repeated with a repeated report.
    let mut events = stream::iter(newer_clients)
        .map(async |(key, newer)| client_advice::record(api, &key, &newer).await)
        .buffer_unordered(MAX_CONCURRENT_EVENTS);
    let mut outcome = Ok(());
    while let Some(recorded) = events.next().await {
        outcome = outcome.and(recorded);
    }
    outcome
}

fn at_most(field: &'static str, count: usize, most: usize) -> Result<(), Refused> {
    if count > most {
        return Err(Refused::field(
            field,
            format!("must be at most {most}, not {count}; split the report"),
        ));
    }
    Ok(())
}

fn session_report(session: wire::SessionActivity) -> Result<SessionReport, Refused> {
    at_most("sessions.operations", session.operations.len(), MAX_OPERATIONS)?;
    at_most("sessions.token_uses", session.token_uses.len(), MAX_TOKENS)?;
    let usage = session.usage.unwrap_or_default();
    Ok(SessionReport {
        key: SessionKey {
            org: parse("sessions.org", &session.org)?,
            id: parse("sessions.session_id", &session.session_id)?,
        },
        generation: session.generation,
        open_calls: session.open_calls,
        last_activity_at: session.last_activity_at.as_ref().map(from_timestamp),
        operations: session.operations.into_iter().map(operation).collect(),
        totals: Totals {
            rpcs: usage.rpcs.min(MAX_AMOUNT),
            bytes_in: usage.bytes_in.min(MAX_AMOUNT),
            bytes_out: usage.bytes_out.min(MAX_AMOUNT),
            open_stream_millis: usage.open_stream_millis.min(MAX_AMOUNT),
        },
        token_uses: session
            .token_uses
            .iter()
            .map(token_use)
            .collect::<Result<_, _>>()?,
    })
}

fn operation(operation: wire::OpenOperation) -> Operation {
    Operation {
        spark_session_id: cut(operation.spark_session_id),
        operation_id: cut(operation.operation_id),
        method: cut(operation.method),
        started_at: moment(operation.started_at.as_ref()),
        // A truncated id would be that of another user.
        user_id: Some(operation.user_id)
            .filter(|user| user.len() <= MAX_USER_ID)
            .unwrap_or_default(),
    }
}

fn token_use(used: &wire::TokenUse) -> Result<TokenUse, Refused> {
    let first = moment(used.first_used_at.as_ref());
    let last = moment(used.last_used_at.as_ref());
    let first = if used.first_used_at.is_some() { first } else { last };
    Ok(TokenUse {
        id: parse("sessions.token_uses.token_id", &used.token_id)?,
        first,
        last: last.max(first),
    })
}

fn moment(at: Option<&prost_types::Timestamp>) -> Timestamp {
    at.map(from_timestamp).unwrap_or_default()
}

fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_NAME));
    text
}
