//! Numbers of sessions, read from the sizes of indexes.

use super::RedisStore;
use super::keys::partitions;
use crate::Error;
use futures::future::try_join_all;
use session_core::{OrgId, Status, Timestamp};
use std::collections::BTreeMap;

impl RedisStore {
    pub(super) async fn count_by_status(&self, org: &OrgId) -> Result<BTreeMap<Status, u64>, Error> {
        let mut pipeline = redis::pipe();
        for status in Status::ALL {
            pipeline.cmd("ZCARD").arg(self.keys.status(org, status));
        }
        let sizes: Vec<u64> = self.connections.pipeline(&pipeline).await?;
        Ok(Status::ALL.into_iter().zip(sizes).collect())
    }

    pub(super) async fn first_due(&self) -> Result<Option<Timestamp>, Error> {
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
