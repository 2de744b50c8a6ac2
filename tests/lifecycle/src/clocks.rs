//! How late sessions are closed by a clock, among many that are not due.

use crate::calls::Times;
use crate::rows::Rows;
use crate::seed::{self, Depth};
use crate::stage::Stage;
use anyhow::{Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use session_core::machine::Event;
use session_core::{Clock as _, Status, SystemClock, Timestamp};
use session_store::Feed;
use std::collections::HashMap;
use std::time::Duration;

/// Sessions that fall due, and within which time.
const DUE: usize = 10_000;
const WITHIN: Duration = Duration::from_secs(30);
/// Long enough for the managers to announce the ends first.
const LEAD: Duration = Duration::from_secs(40);
const LIMIT: Duration = Duration::from_secs(180);

/// Ends of sessions, each at its own moment.
pub(crate) async fn measure(stage: &Stage, live: usize, rows: &mut Rows) -> Result<()> {
    let sessions = seed::sessions(stage, live, Depth::Plain).await?;
    let managers = [stage.manager().await?, stage.manager().await?];
    let mut changes = stage.store.changes();
    // The feed begins with a reset: from there on nothing is missed.
    ensure!(
        matches!(changes.next().await, Some(Feed::Reset)),
        "the feed begins otherwise"
    );
    let first = stage.store.now().await?.after(LEAD);
    let due = DUE.min(live / 2);
    let ends: HashMap<_, Timestamp> = (0..due)
        .map(|n| {
            let at = first.after(WITHIN.mul_f64(n as f64 / due as f64));
            (sessions[n].key(), at)
        })
        .collect();
    futures::stream::iter(&sessions[..due])
        .map(|session| async {
            let extend = Event::Extend {
                expires_at: ends[&session.key()],
            };
            seed::ask(&*stage.store, session, &extend).await
        })
        .buffer_unordered(64)
        .try_collect::<Vec<_>>()
        .await?;
    let cpu = [managers[0].cpu()?, managers[1].cpu()?];
    let mut late = Times::new()?;
    let mut left = due;
    let wait = async {
        while left > 0 {
            let Some(Feed::Change(change)) = changes.next().await else {
                anyhow::bail!("the feed was interrupted")
            };
            if change.record.to == Status::Closed
                && let Some(end) = ends.get(&change.key)
            {
                late.note(SystemClock.now().since(*end));
                left -= 1;
            }
        }
        Ok(())
    };
    tokio::time::timeout(LIMIT, wait).await??;
    rows.at_most(
        "due -> committed, 2 managers: p99",
        "s",
        late.millis(0.99) / 1e3,
        2.0,
    );
    rows.at_most(
        "due -> committed, 2 managers: max",
        "s",
        late.millis(1.0) / 1e3,
        5.0,
    );
    let used = managers[0].cpu()? + managers[1].cpu()? - cpu[0] - cpu[1];
    rows.tell(
        "CPU of both managers per ended session",
        "ms",
        used * 1e3 / due as f64,
    );
    Ok(())
}
