//! `berth audit` and `berth usage`: who did what, and who used how much.

use crate::args::{Audit, Moment, Usage};
use crate::client::{self, explain};
use crate::settings::Target;
use crate::{Output, output};
use anyhow::{Context as _, Result};
use session_core::{Clock, SystemClock, Timestamp};
use session_proto::convert;
use session_proto::v1;
use std::collections::BTreeMap;
use std::time::UNIX_EPOCH;

const MAX_PAGE: usize = 1000;

pub(super) async fn audit(target: &Target, output: Output, args: Audit) -> Result<()> {
    let limit = usize::try_from(args.limit)?;
    let mut request = v1::ListAuditRecordsRequest {
        org: args.org.unwrap_or_default(),
        principal: args.principal.unwrap_or_default(),
        actions: args.actions,
        session_id: args.session.unwrap_or_default(),
        since: args.since.map(time).transpose()?,
        until: args.until.map(time).transpose()?,
        ..v1::ListAuditRecordsRequest::default()
    };
    let mut client = client::audit(target).await?;
    let mut records = Vec::new();
    loop {
        let wanted = (limit - records.len()).min(MAX_PAGE);
        request.page_size = i32::try_from(wanted).unwrap_or(i32::MAX);
        let page = client.list_audit_records(request.clone()).await;
        let page = page.map_err(explain)?.into_inner();
        records.extend(page.records);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() || records.len() >= limit {
            break;
        }
    }
    if !request.page_token.is_empty() && output == Output::Table {
        output::note("There may be older records: raise --limit, or narrow the filters.");
    }
    let headings = [
        "TIME", "ACTION", "OUTCOME", "ACTOR", "OBJECT", "REASON", "ADDRESS",
    ];
    output::rows(output, &headings, records.iter().map(row).collect(), &records);
    Ok(())
}

fn time(moment: Moment) -> Result<prost_types::Timestamp> {
    let at = match moment {
        Moment::Ago(age) => {
            let now = SystemClock.now().as_millis();
            Timestamp::from_millis(now.saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX)))
        }
        Moment::At(time) => {
            let since_epoch = time.duration_since(UNIX_EPOCH).context("a time before 1970")?;
            Timestamp::ZERO.after(since_epoch)
        }
    };
    Ok(convert::timestamp(at))
}

fn row(record: &v1::AuditRecord) -> Vec<String> {
    let named = [&record.session_id, &record.token_id, &record.object];
    let object: Vec<_> = named
        .into_iter()
        .filter(|name| !name.is_empty())
        .cloned()
        .collect();
    vec![
        output::moment(record.at.as_ref()),
        record.action.clone(),
        record.outcome.clone(),
        record.actor.clone(),
        object.join(" "),
        record.reason.clone(),
        record.address.clone(),
    ]
}

pub(super) async fn usage(target: &Target, output: Output, args: Usage) -> Result<()> {
    let mut request = v1::ListUsageRequest {
        org: args.org.unwrap_or_default(),
        owner: args.owner.unwrap_or_default(),
        cluster: args.cluster.unwrap_or_default(),
        page_token: String::new(),
    };
    let mut client = client::audit(target).await?;
    let mut sums = BTreeMap::new();
    loop {
        let page = client
            .list_usage(request.clone())
            .await
            .map_err(explain)?
            .into_inner();
        page.rows.into_iter().for_each(|row| add(&mut sums, row));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    let rows: Vec<v1::UsageRow> = sums.into_values().collect();
    let headings = [
        "OWNER",
        "CLUSTER",
        "SESSIONS",
        "LIVE",
        "CALLS",
        "BYTES IN",
        "BYTES OUT",
        "OPEN (S)",
        "READY (S)",
    ];
    output::rows(output, &headings, rows.iter().map(usage_row).collect(), &rows);
    Ok(())
}

/// Adds a row to that of the same owner and cluster on another page.
fn add(sums: &mut BTreeMap<(String, String), v1::UsageRow>, row: v1::UsageRow) {
    let key = (row.owner.clone(), row.cluster.clone());
    let Some(sum) = sums.get_mut(&key) else {
        sums.insert(key, row);
        return;
    };
    sum.sessions += row.sessions;
    sum.live_sessions += row.live_sessions;
    let (had, more) = (sum.usage.unwrap_or_default(), row.usage.unwrap_or_default());
    sum.usage = Some(v1::SessionUsage {
        rpcs: had.rpcs.saturating_add(more.rpcs),
        bytes_in: had.bytes_in.saturating_add(more.bytes_in),
        bytes_out: had.bytes_out.saturating_add(more.bytes_out),
        open_stream_seconds: had.open_stream_seconds.saturating_add(more.open_stream_seconds),
        warm_seconds: had.warm_seconds.saturating_add(more.warm_seconds),
    });
}

fn usage_row(row: &v1::UsageRow) -> Vec<String> {
    let used = row.usage.unwrap_or_default();
    let mut cells = vec![
        row.owner.clone(),
        row.cluster.clone(),
        row.sessions.to_string(),
        row.live_sessions.to_string(),
    ];
    let numbers = [
        used.rpcs,
        used.bytes_in,
        used.bytes_out,
        used.open_stream_seconds,
        used.warm_seconds,
    ];
    cells.extend(numbers.map(|number| number.to_string()));
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_several_pages_add_up() {
        let row = |owner: &str, rpcs| v1::UsageRow {
            owner: owner.to_owned(),
            cluster: "c".to_owned(),
            sessions: 2,
            live_sessions: 1,
            usage: Some(v1::SessionUsage {
                rpcs,
                warm_seconds: 7,
                ..v1::SessionUsage::default()
            }),
        };
        let mut sums = BTreeMap::new();
        for page in [row("sa|ada", 3), row("sa|bob", 1), row("sa|ada", u64::MAX)] {
            add(&mut sums, page);
        }
        let ada = &sums[&("sa|ada".to_owned(), "c".to_owned())];
        let used = ada.usage.unwrap();
        assert_eq!((ada.sessions, ada.live_sessions), (4, 2));
        assert_eq!((used.rpcs, used.warm_seconds), (u64::MAX, 14));
        assert_eq!(sums.len(), 2);
    }
}
