//! Signing keys in Redis.

use super::RedisStore;
use crate::signing_keys::{KEY_GAP, KEY_RETENTION, KnownKey, KnownKeys, MAX_SIGNING_KEYS};
use crate::{Error, SigningKeys};
use async_trait::async_trait;
use session_core::Timestamp;

#[async_trait]
impl SigningKeys for RedisStore {
    async fn report_signing_keys(
        &self,
        published: &[String],
        signing: Option<&str>,
    ) -> Result<KnownKeys, Error> {
        let millis = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let mut script = self.scripts.report_signing_keys.prepare_invoke();
        script.key(self.keys.signing_keys());
        script
            .arg(signing.unwrap_or_default())
            .arg(millis(KEY_GAP))
            .arg(millis(KEY_RETENTION))
            .arg(MAX_SIGNING_KEYS)
            .arg(published);
        let fields = self.run(&script).await?.0;
        let parse_time = |text: &String| {
            let millis = text.parse().map(Timestamp::from_millis);
            millis.map_err(|_| Error::Corrupt(format!("{text:?} is not a time")))
        };
        let (now, known) = fields
            .split_first()
            .ok_or_else(|| Error::Corrupt("a script answered nothing".to_owned()))?;
        let keys = known.chunks_exact(3).map(|known| {
            let signed = parse_time(&known[2])?;
            Ok(KnownKey {
                id: known[0].clone(),
                published_since: parse_time(&known[1])?,
                signed_at: (signed > Timestamp::ZERO).then_some(signed),
            })
        });
        Ok(KnownKeys {
            now: parse_time(now)?,
            keys: keys.collect::<Result<_, Error>>()?,
        })
    }
}
