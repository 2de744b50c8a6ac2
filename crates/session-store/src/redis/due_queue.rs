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

/// Merges the results of the partitions; an error only if all failed.
fn merge_reachable<T>(answers: Vec<Result<Vec<T>, Error>>) -> Result<Vec<T>, Error> {
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
            tracing::warn!(%error, "claiming due sessions of a partition failed");
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

    /// Reads the due times of all partitions first, then claims from those with the
    /// longest due sessions. An unreachable partition does not block the others.
    async fn claim_due(&self, limit: usize, lease: Duration) -> Result<Vec<SessionKey>, Error> {
        // The partitions rotate, so that equal due times are served fairly.
        let first = self.next_partition.fetch_add(1, Ordering::Relaxed);
        let rotated = partitions().map(|partition| first.wrapping_add(partition) % OrgId::PARTITIONS);
        let due = join_all(rotated.map(async |partition| {
            let mut script = self.scripts.due_times.key(self.keys.due(partition));
            let times: Vec<f64> = self.connections.run(script.arg(limit)).await?;
            Ok(times.into_iter().map(|at| (at, partition)).collect())
        }));
        let mut due: Vec<(f64, u8)> = merge_reachable(due.await)?;
        due.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut shares: BTreeMap<u8, usize> = BTreeMap::new();
        for (_, partition) in due.iter().take(limit) {
            *shares.entry(*partition).or_default() += 1;
        }

        let lease = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX).min(1 << 52);
        let claimed = join_all(shares.into_iter().map(async |(partition, share)| {
            let queue = self.keys.due(partition);
            let mut script = self.scripts.claim_due.key(&queue);
            let claimed: Vec<(String, f64)> = self.connections.run(script.arg(share).arg(lease)).await?;
            let (claimed, dangling) = parse_members(claimed);
            // Claimed sessions are leased already, so a failure here must not fail the
            // claim.
            if !dangling.is_empty()
                && let Err(error) = self.remove_dangling(&queue, &dangling).await
            {
                tracing::warn!(%error, "deleting dangling entries of the due-queue failed");
            }
            Ok(claimed)
        }));
        let mut claimed = merge_reachable(claimed.await)?;
        claimed.sort_by(|a, b| a.1.total_cmp(&b.1));
        Ok(claimed.into_iter().map(|(key, _)| key).collect())
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
