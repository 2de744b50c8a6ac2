//! ReportActivity: a proxy's batch, checked, and in the domain's words.

use super::Api;
use crate::lifecycle::activity_reports::Said;
use session_core::{Operation, ProxyId, SessionKey, Timestamp, TokenUse, Totals};
use session_proto::convert::{from_timestamp, parse};
use session_proto::error::Refused;
use session_proto::internal as wire;

/// Sessions of one report.
const MOST_SESSIONS: usize = 10_000;
/// Operations of one session.
const MOST_OPERATIONS: usize = 64;
/// Tokens of one session whose use is told.
const MOST_TOKENS: usize = 1000;
/// Names that clients choose are cut here: they must not make a report bad.
const TEXT: usize = 128;
/// The longest `user_id` that a proxy sends: a token's subject.
const MAX_USER_ID: usize = 512;
/// More than any call can move, and far from what a sum could overflow at.
const LARGEST_AMOUNT: u64 = 1 << 50;

/// Takes a report.
pub(super) async fn report(api: &Api, request: wire::ReportActivityRequest) -> Result<(), Refused> {
    let proxy: ProxyId = parse("proxy_id", &request.proxy_id)?;
    at_most("sessions", request.sessions.len(), MOST_SESSIONS)?;
    let said = request
        .sessions
        .into_iter()
        .map(said)
        .collect::<Result<Vec<_>, _>>()?;
    api.reports
        .take(&proxy, request.sequence, said)
        .await
        .map_err(crate::error::store)
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

fn said(session: wire::SessionActivity) -> Result<Said, Refused> {
    at_most("sessions.operations", session.operations.len(), MOST_OPERATIONS)?;
    at_most("sessions.token_uses", session.token_uses.len(), MOST_TOKENS)?;
    let usage = session.usage.unwrap_or_default();
    Ok(Said {
        key: SessionKey {
            org: parse("sessions.org", &session.org)?,
            id: parse("sessions.session_id", &session.session_id)?,
        },
        generation: session.generation,
        open_calls: session.open_calls,
        last_activity_at: session.last_activity_at.as_ref().map(from_timestamp),
        operations: session.operations.into_iter().map(operation).collect(),
        totals: Totals {
            rpcs: usage.rpcs.min(LARGEST_AMOUNT),
            bytes_in: usage.bytes_in.min(LARGEST_AMOUNT),
            bytes_out: usage.bytes_out.min(LARGEST_AMOUNT),
            open_stream_millis: usage.open_stream_millis.min(LARGEST_AMOUNT),
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
        // A name that was cut would be somebody else's.
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
    text.truncate(text.floor_char_boundary(TEXT));
    text
}
