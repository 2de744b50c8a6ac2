//! The due-queue: one sorted set per partition, read as one queue.

use super::{RedisStore, score, sessions};
use crate::redis::schema::keys::{member, parse_members, partitions};
use crate::{DueQueue, Error};
use async_trait::async_trait;
use futures::future::{join_all, try_join_all};
use session_core::{OrgId, SessionKey, Timestamp};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

impl RedisStore {}

/// What the partitions that answered said; an error only if none did.
fn reachable<T>(answers: Vec<Result<Vec<T>, Error>>) -> Result<Vec<T>, Error> {
    let (mut all, mut answered, mut failure) = (Vec::new(), answers.is_empty(), None);
    for answer in answers {
        match answer {
            Ok(items) => {
                answered = true;
                all.extend(items);
            }
            Err(error) => failure = Some(error),
        }
    }
    match failure {
        Some(error) if !answered => Err(error),
        Some(error) => {
            tracing::warn!(%error, "a partition of the due-queue was passed over");
            Ok(all)
        }
        None => Ok(all),
    }
}

#[async_trait]
impl DueQueue for RedisStore {
    async fn set_due(&self, key: &SessionKey, version: u64, due: Option<Timestamp>) -> Result<(), Error> {
        let mut script = self.scripts.set_due.prepare_invoke();
        script
            .key(self.keys.record(key))
            .key(self.keys.due(key.org.partition()));
        script
            .arg(member(key))
            .arg(version)
            .arg(sessions::optional(due.map(score)));
        self.run(&script).await?.done().map(drop)
    }

    /// Looks at every partition first and takes only from those that hold the
    /// longest due. A partition that cannot be reached does not keep the others
    /// waiting.
    async fn claim_due(&self, limit: usize, lease: Duration) -> Result<Vec<SessionKey>, Error> {
        // Where moments are equal, the partitions take turns at being first.
        let first = self.next_partition.fetch_add(1, Ordering::Relaxed);
        let turns = partitions().map(|partition| first.wrapping_add(partition) % OrgId::PARTITIONS);
        let waiting = join_all(turns.map(async |partition| {
            let mut script = self.scripts.due_times.key(self.keys.due(partition));
            let moments: Vec<f64> = self.connections.run(script.arg(limit)).await?;
            Ok(moments.into_iter().map(|at| (at, partition)).collect())
        }));
        let mut waiting: Vec<(f64, u8)> = reachable(waiting.await)?;
        waiting.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut shares: BTreeMap<u8, usize> = BTreeMap::new();
        for (_, partition) in waiting.iter().take(limit) {
            *shares.entry(*partition).or_default() += 1;
        }

        let lease = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX).min(1 << 52);
        let taken = join_all(shares.into_iter().map(async |(partition, share)| {
            let queue = self.keys.due(partition);
            let mut script = self.scripts.claim_due.key(&queue);
            let taken: Vec<(String, f64)> = self.connections.run(script.arg(share).arg(lease)).await?;
            let (taken, strays) = parse_members(taken);
            // What was taken is leased already: nothing may keep it from its taker.
            if !strays.is_empty()
                && let Err(error) = self.drop_strays(&queue, &strays).await
            {
                tracing::warn!(%error, "entries that name no session stay in the due-queue");
            }
            Ok(taken)
        }));
        let mut taken = reachable(taken.await)?;
        taken.sort_by(|a, b| a.1.total_cmp(&b.1));
        Ok(taken.into_iter().map(|(key, _)| key).collect())
    }

    async fn oldest_due(&self) -> Result<Option<Timestamp>, Error> {
        let firsts = try_join_all(partitions().map(async |partition| {
            let mut first = redis::cmd("ZRANGE");
            first
                .arg(self.keys.due(partition))
                .arg(0)
                .arg(0)
                .arg("WITHSCORES");
            let found: Vec<(String, f64)> = self.connections.query(&first).await?;
            Ok::<_, Error>(found.into_iter().map(|(_, at)| at).next())
        }))
        .await?;
        let first = firsts.into_iter().flatten().min_by(f64::total_cmp);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "scores are whole milliseconds, far below 2^53"
        )]
        Ok(first.map(|at| Timestamp::from_millis(at.max(0.0) as u64)))
    }
}
