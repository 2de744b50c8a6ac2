//! The audit trail and the signing keys in Redis: in each partition a stream and
//! a list for each of its organizations, and one hash.

use super::scripts::Call;
use super::{RedisStore, decode, encode};
use crate::Error;
use crate::audit_trail::{AuditTrail, Audited};
use crate::signing_keys::{KEY_GAP, KEY_MEMORY, KnownKey, KnownKeys, MOST_KEYS, SigningKeys};
use async_trait::async_trait;
use redis::streams::StreamRangeReply;
use session_core::{AuditRecord, Timestamp};

/// The field of a stream entry that holds the record.
const RECORD: &str = "audit";

impl RedisStore {
    /// The last two arguments of a script that writes a record with what it does.
    pub(super) fn audit_last(&self, script: &mut Call<'_>, record: &AuditRecord) -> Result<(), Error> {
        script.arg(encode(record)?).arg(self.audit_length);
        Ok(())
    }
}

#[async_trait]
impl AuditTrail for RedisStore {
    async fn audit(&self, record: &AuditRecord) -> Result<(), Error> {
        let mut script = self.scripts.append_audit.key(self.keys.audit(record.partition()));
        self.audit_last(&mut script, record)?;
        self.run(&script).await?.done().map(drop)
    }

    async fn audited(&self, partition: u8, after: &str, limit: usize) -> Result<Vec<Audited>, Error> {
        let from = if after.is_empty() {
            "-".to_owned()
        } else {
            format!("({after}")
        };
        let mut cmd = redis::cmd("XRANGE");
        cmd.arg(self.keys.audit(partition))
            .arg(from)
            .arg("+")
            .arg("COUNT")
            .arg(limit);
        let found: StreamRangeReply = self.connections.query(&cmd).await?;
        found
            .ids
            .into_iter()
            .map(|entry| {
                let json: String = entry
                    .get(RECORD)
                    .ok_or_else(|| Error::Corrupt(format!("the audit entry {} holds no record", entry.id)))?;
                Ok(Audited {
                    record: decode(&json)?,
                    place: entry.id,
                })
            })
            .collect()
    }

    async fn exported(&self, partition: u8) -> Result<String, Error> {
        let mut cmd = redis::cmd("HGET");
        cmd.arg(self.keys.audit_exported()).arg(partition);
        let place: Option<String> = self.connections.query(&cmd).await?;
        Ok(place.unwrap_or_default())
    }

    async fn set_exported(&self, partition: u8, place: &str) -> Result<(), Error> {
        let mut cmd = redis::cmd("HSET");
        cmd.arg(self.keys.audit_exported()).arg(partition).arg(place);
        self.connections.query::<i64>(&cmd).await.map(drop)
    }
}

#[async_trait]
impl SigningKeys for RedisStore {
    async fn report_keys(&self, published: &[String], signing: Option<&str>) -> Result<KnownKeys, Error> {
        let millis = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let mut script = self.scripts.report_keys.prepare_invoke();
        script.key(self.keys.signing_keys());
        script
            .arg(signing.unwrap_or_default())
            .arg(millis(KEY_GAP))
            .arg(millis(KEY_MEMORY))
            .arg(MOST_KEYS)
            .arg(published);
        let words = self.run(&script).await?.0;
        let moment = |text: &String| {
            let millis = text.parse().map(Timestamp::from_millis);
            millis.map_err(|_| Error::Corrupt(format!("{text:?} is no moment")))
        };
        let (now, known) = words
            .split_first()
            .ok_or_else(|| Error::Corrupt("a script answered nothing".to_owned()))?;
        let keys = known.chunks_exact(3).map(|known| {
            let signed = moment(&known[2])?;
            Ok(KnownKey {
                id: known[0].clone(),
                published_since: moment(&known[1])?,
                signed_at: (signed > Timestamp::ZERO).then_some(signed),
            })
        });
        Ok(KnownKeys {
            now: moment(now)?,
            keys: keys.collect::<Result<_, Error>>()?,
        })
    }
}
