//! Decides whether missing reports mean idleness or an outage.
//!
//! An idle timeout may fire only if the reports of all live proxies are recent. So
//! none fires for a while after an outage of the store, while a proxy's reports are
//! overdue, or while there is no proxy at all: clients whose calls no proxy reports
//! may be active. All times are the store's.

use parking_lot::{Mutex, MutexGuard};
use session_core::Timestamp;
use session_core::machine::{OUTAGE_FREEZE, PROXY_GONE, PROXY_SILENT};
use session_store::{Error, SessionStore};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Deviation of the store's clock from this machine's monotonic clock above which
/// it counts as a jump.
const MAX_CLOCK_DEVIATION: Duration = Duration::from_secs(5);

/// Tracks the availability of the store and the reports of proxies.
#[derive(Debug)]
pub(crate) struct ReportFreshness {
    store: Arc<dyn SessionStore>,
    /// Since when the store has been available; none while it is not.
    available_since: Mutex<Option<Timestamp>>,
    /// Whether a jump of the store's clock counts as an outage, because reports
    /// then seem older than they are. False if a test sets the clock.
    detects_clock_jumps: bool,
    /// The last reading of the store's clock, by both clocks.
    last_reading: Mutex<Option<(Timestamp, Instant)>>,
}

impl ReportFreshness {
    /// The state of a starting manager: the same as after an outage.
    pub(crate) fn new(store: Arc<dyn SessionStore>) -> Self {
        Self {
            store,
            available_since: Mutex::new(None),
            detects_clock_jumps: true,
            last_reading: Mutex::new(None),
        }
    }

    /// The same without detection of clock jumps, for tests that set the clock.
    pub(crate) fn with_settable_clock(self) -> Self {
        Self {
            detects_clock_jumps: false,
            ..self
        }
    }

    /// Records that the store is unavailable.
    pub(crate) fn store_unavailable(&self) {
        *self.available_since() = None;
    }

    /// Records that the store is available.
    pub(crate) async fn store_available(&self) {
        if let Ok(now) = self.store_time().await {
            self.available_since().get_or_insert(now);
        }
    }

    /// The store's time. A deviation from this machine's monotonic clock counts as
    /// an outage.
    async fn store_time(&self) -> Result<Timestamp, Error> {
        let asked = Instant::now();
        let now = self.store.now().await?;
        let before = self.last_reading.lock().replace((now, asked));
        if let Some((last, at)) = before.filter(|_| self.detects_clock_jumps) {
            let earliest = last.after(asked.duration_since(at)).before(MAX_CLOCK_DEVIATION);
            let latest = last.after(at.elapsed()).after(MAX_CLOCK_DEVIATION);
            if now < earliest || now > latest {
                tracing::warn!(from = %last, to = %now, "state store clock jumped; idle timeouts paused");
                *self.available_since() = Some(now);
            }
        }
        Ok(now)
    }

    /// How long the store has been available without interruption.
    pub(crate) fn available_for(&self, now: Timestamp) -> Duration {
        self.available_since()
            .map_or(Duration::ZERO, |since| now.since(since))
    }

    /// Whether the reports of all live proxies are recent enough for idle timeouts.
    ///
    /// # Errors
    /// If reading the store fails.
    pub(crate) async fn is_fresh(&self) -> Result<bool, Error> {
        let now = self.store_time().await?;
        let available = now.since(*self.available_since().get_or_insert(now));
        if available < OUTAGE_FREEZE {
            return Ok(false);
        }
        // Proxies from before the outage get time to report again.
        let gone_after = (available >= PROXY_GONE).then_some(PROXY_GONE);
        let proxies = self.store.count_proxies(PROXY_SILENT, gone_after).await?;
        Ok(proxies.known > 0 && proxies.silent == 0)
    }

    fn available_since(&self) -> MutexGuard<'_, Option<Timestamp>> {
        self.available_since.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use session_core::Clock;
    use session_core::time::ManualClock;
    use session_store::memory::MemoryStore;
    use session_store::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    struct World {
        clock: Arc<ManualClock>,
        store: Arc<MemoryStore>,
        freshness: ReportFreshness,
    }

    impl World {
        async fn new() -> Self {
            let clock = Arc::new(ManualClock::at(Timestamp::from_millis(1_800_000_000_000)));
            let store = Arc::new(MemoryStore::new(Arc::clone(&clock) as _));
            let freshness = ReportFreshness::new(Arc::clone(&store) as _).with_settable_clock();
            freshness.store_available().await;
            Self {
                clock,
                store,
                freshness,
            }
        }

        /// Advances the clock while these proxies report.
        async fn pass(&self, seconds: u64, proxies: &[&str]) {
            for second in 0..seconds {
                if second % 5 == 0 {
                    let now = self.clock.now();
                    for proxy in proxies {
                        let proxy = proxy.parse().unwrap();
                        self.store.mark_proxy_alive(&proxy, now).await.unwrap();
                    }
                }
                self.clock.advance(SECOND);
            }
        }

        async fn fresh(&self) -> bool {
            self.freshness.is_fresh().await.unwrap()
        }
    }

    #[tokio::test]
    async fn reports_are_fresh_a_minute_after_an_outage_if_every_proxy_reports() {
        let world = World::new().await;
        world.pass(59, &["a", "b"]).await;
        assert!(!world.fresh().await, "the manager has just started");
        world.pass(1, &["a", "b"]).await;
        assert!(world.fresh().await);
        world.freshness.store_unavailable();
        world.freshness.store_available().await;
        world.pass(59, &["a", "b"]).await;
        assert!(!world.fresh().await, "the store was unavailable");
        world.pass(1, &["a", "b"]).await;
        assert!(world.fresh().await);
    }

    #[tokio::test]
    async fn overdue_reports_of_a_proxy_are_awaited_until_it_counts_as_gone() {
        let world = World::new().await;
        world.pass(100, &["a", "b"]).await;
        // b reported 5 s ago, for the last time.
        world.pass(4, &["a"]).await;
        assert!(world.fresh().await);
        world.pass(1, &["a"]).await;
        assert!(!world.fresh().await);
        world.pass(79, &["a"]).await;
        assert!(!world.fresh().await);
        world.pass(1, &["a"]).await;
        assert!(world.fresh().await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_jump_is_an_outage() {
        for jump in [MAX_CLOCK_DEVIATION + 2 * SECOND, 3600 * SECOND] {
            let mut world = World::new().await;
            world.freshness.detects_clock_jumps = true;
            let pass = async |seconds: u64| {
                for _ in 0..seconds {
                    world.pass(1, &["a"]).await;
                    tokio::time::advance(SECOND).await;
                    world.freshness.store_available().await;
                }
            };
            pass(61).await;
            assert!(world.fresh().await);
            world.clock.advance(jump);
            // It is detected a second later.
            pass(60).await;
            assert!(!world.fresh().await);
            pass(1).await;
            assert!(world.fresh().await);
        }
    }

    #[tokio::test]
    async fn without_any_proxy_reports_are_not_fresh() {
        let world = World::new().await;
        world.pass(1000, &[]).await;
        assert!(!world.fresh().await);
        world.pass(1, &["a"]).await;
        assert!(world.fresh().await);
        world.pass(1000, &[]).await;
        assert!(!world.fresh().await);
    }

    #[tokio::test]
    async fn proxies_from_before_an_outage_get_time_to_report_again() {
        let world = World::new().await;
        world.pass(100, &["a", "b"]).await;
        // The manager is down for ten minutes; then a reports at once.
        world.pass(600, &[]).await;
        let freshness = ReportFreshness::new(Arc::clone(&world.store) as _).with_settable_clock();
        freshness.store_available().await;
        let world = World { freshness, ..world };
        world.pass(89, &["a"]).await;
        assert!(!world.fresh().await, "b may report again");
        world.pass(1, &["a"]).await;
        assert!(world.fresh().await);
    }
}
