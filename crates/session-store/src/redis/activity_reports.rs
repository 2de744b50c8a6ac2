//! Usage of sessions and the registered proxies in Redis. The usage of a session is in
//! the same string as its record, so that one step compares a decision of an idle
//! timeout with the activity.

use super::{RedisStore, decode, encode, sessions};
use crate::activity_reports::{
    MAX_DELTA_NAMES, Proxies, Report, ReportOutcome, ReportStart, UsageDelta, sort_oldest_first,
};
use crate::redis::schema::record::Stored;
use crate::{ActivityReports, Error, Loaded, PROXY_RETENTION};
use async_trait::async_trait;
use futures::future::try_join_all;
use session_core::machine::BUSY_LEASE;
use session_core::{Operation, ProxyId, Session, SessionKey, Status, Timestamp, Totals, Use};
use std::time::Duration;

/// Sessions whose usage one script reads; limits the time for which a page blocks
/// Redis.
const BATCH: usize = 100;
/// Texts per session in the reply of `usage.lua`.
const TEXTS: usize = 7;

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis())
        .unwrap_or(u64::MAX)
        .min(1 << 52)
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, Error> {
    text.parse()
        .map_err(|_| Error::Corrupt(format!("{text:?} is not a number")))
}

/// A number of calls.
fn calls_in(text: &str) -> Result<u32, Error> {
    Ok(u32::try_from(number::<u64>(text)?).unwrap_or(u32::MAX))
}

/// A time, or '' for none.
fn optional_time(text: &str) -> Result<Option<Timestamp>, Error> {
    let millis = (!text.is_empty()).then(|| number(text)).transpose()?;
    Ok(millis.map(Timestamp::from_millis))
}

fn parse_use(texts: &[String]) -> Result<Use, Error> {
    let [last, calls, rpcs, bytes_in, bytes_out, open_stream_millis, at] = texts else {
        return Err(Error::Corrupt(format!("a script answered {texts:?}")));
    };
    Ok(Use {
        at: Timestamp::from_millis(number(at)?),
        last_activity_at: optional_time(last)?,
        open_calls: calls_in(calls)?,
        totals: Totals {
            rpcs: number(rpcs)?,
            bytes_in: number(bytes_in)?,
            bytes_out: number(bytes_out)?,
            open_stream_millis: number(open_stream_millis)?,
        },
    })
}

#[async_trait]
impl ActivityReports for RedisStore {
    async fn apply_report(&self, key: &SessionKey, report: &Report) -> Result<ReportOutcome, Error> {
        let name = report.usage_delta.as_ref().map(UsageDelta::tag);
        let totals = report.usage_delta.map(|delta| delta.totals).unwrap_or_default();
        let mut script = self.scripts.apply_report.prepare_invoke();
        script
            .key(self.keys.record(key))
            .key(self.keys.leases(key))
            .key(self.keys.tokens(key))
            .key(self.keys.audit(key.org.partition()));
        script
            .arg(report.proxy.as_str())
            .arg(report.generation)
            .arg(sessions::optional(report.open_calls))
            .arg(sessions::optional(report.last_activity_at.map(super::score)))
            .arg(encode(&report.operations)?)
            .arg(millis(BUSY_LEASE))
            .arg(name.as_deref().unwrap_or_default())
            .arg(MAX_DELTA_NAMES * (name.as_ref().map_or(0, String::len) + 1))
            .arg(totals.rpcs)
            .arg(totals.bytes_in)
            .arg(totals.bytes_out)
            .arg(totals.open_stream_millis)
            .arg(self.audit_length);
        for one in &report.token_uses {
            script
                .arg(one.id.as_str())
                .arg(super::score(one.first))
                .arg(super::score(one.last))
                .arg(encode(&crate::first_use(key, &one.id, one.first))?);
        }
        let reply = self.run(&script).await?.0;
        match reply.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["unknown"] => Ok(ReportOutcome::Unknown),
            ["ended"] => Ok(ReportOutcome::Ended),
            ["live", status] => {
                let known = Status::ALL.into_iter().find(|known| known.as_str() == *status);
                let status = known.ok_or_else(|| Error::Corrupt(format!("{status:?} is no status")))?;
                Ok(ReportOutcome::Live(status))
            }
            other => Err(Error::Corrupt(format!("a script answered {other:?}"))),
        }
    }

    /// Reads record and activity in one step.
    async fn get_with_activity(&self, key: &SessionKey) -> Result<Option<Loaded>, Error> {
        let mut script = self.scripts.get_with_activity.key(self.keys.record(key));
        script.key(self.keys.leases(key));
        let parts: Vec<Vec<u8>> = self.connections.run(&script).await?;
        let [stored, last, calls, at] = parts.as_slice() else {
            return Ok(None);
        };
        let text = |bytes| std::str::from_utf8(bytes).map_err(|error| Error::Corrupt(error.to_string()));
        let used = Use {
            at: Timestamp::from_millis(number(text(at)?)?),
            last_activity_at: optional_time(text(last)?)?,
            open_calls: calls_in(text(calls)?)?,
            ..Use::default()
        };
        Ok(Some(Loaded {
            session: Stored::parse(stored)?.session()?,
            activity: used.activity(),
            at: used.at,
        }))
    }

    async fn usage(&self, sessions: &[Session]) -> Result<Vec<Use>, Error> {
        let batches = sessions.chunks(BATCH).map(async |batch| {
            let mut script = self.scripts.usage.prepare_invoke();
            for session in batch {
                let key = session.key();
                script.key(self.keys.record(&key)).key(self.keys.leases(&key));
                script.arg(session.generation);
            }
            let texts = self.run(&script).await?.0;
            texts
                .chunks_exact(TEXTS)
                .map(parse_use)
                .collect::<Result<Vec<_>, _>>()
        });
        Ok(try_join_all(batches).await?.into_iter().flatten().collect())
    }

    async fn operations(&self, key: &SessionKey) -> Result<Vec<Operation>, Error> {
        let mut script = self.scripts.operations.prepare_invoke();
        script.key(self.keys.record(key)).key(self.keys.leases(key));
        let by_proxy = self.run(&script).await?.0;
        let lists = by_proxy.iter().map(|json| decode::<Vec<Operation>>(json));
        let mut operations = lists.collect::<Result<Vec<_>, _>>()?.concat();
        sort_oldest_first(&mut operations);
        Ok(operations)
    }

    async fn begin_proxy_report(&self, proxy: &ProxyId, sequence: u64) -> Result<ReportStart, Error> {
        let mut script = self.scripts.begin_proxy_report.prepare_invoke();
        script.key(self.keys.proxies()).key(self.keys.proxy_sequences());
        script
            .arg(proxy.as_str())
            .arg(sequence)
            .arg(millis(PROXY_RETENTION));
        let reply = self.run(&script).await?.0;
        match reply.as_slice() {
            [at, fresh] => Ok(ReportStart {
                at: Timestamp::from_millis(number(at)?),
                fresh: fresh == "1",
            }),
            other => Err(Error::Corrupt(format!("a script answered {other:?}"))),
        }
    }

    async fn mark_proxy_alive(&self, proxy: &ProxyId, at: Timestamp) -> Result<(), Error> {
        let mut raise = redis::cmd("ZADD");
        raise.arg(self.keys.proxies()).arg("GT");
        raise.arg(super::score(at)).arg(proxy.as_str());
        self.connections.query::<u64>(&raise).await.map(drop)
    }

    async fn count_proxies(
        &self,
        silent_after: Duration,
        gone_after: Option<Duration>,
    ) -> Result<Proxies, Error> {
        let mut script = self.scripts.count_proxies.prepare_invoke();
        script.key(self.keys.proxies()).key(self.keys.proxy_sequences());
        script
            .arg(millis(silent_after))
            .arg(sessions::optional(gone_after.map(millis)));
        let (known, silent) = self.connections.run(&script).await?;
        Ok(Proxies { known, silent })
    }
}
