//! Is silence known, or was only nothing heard?
//!
//! An idle clock may fire only when every proxy that lives has had its say. So
//! none fires for a while after this manager lost sight of the store, nor while
//! a proxy that should report does not, nor while there is no proxy at all:
//! clients that no proxy reports may be at work. All times are the store's.

use parking_lot::{Mutex, MutexGuard};
use session_core::Timestamp;
use session_core::machine::{OUTAGE_FREEZE, PROXY_GONE, PROXY_SILENT};
use session_store::{Error, SessionStore};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The store's clock may be so far from where this machine's says that it must
/// be; more is a jump.
const JUMP: Duration = Duration::from_secs(5);

/// What this manager knows of outages.
#[derive(Debug)]
pub(crate) struct ReportFreshness {
    store: Arc<dyn SessionStore>,
    /// Since when the store has been there; none while it is away.
    since: Mutex<Option<Timestamp>>,
    /// Whether a jump of the store's clock is an outage: proxies seem silent or
    /// gone that are not. False where a test sets the clock.
    detects_clock_jumps: bool,
    /// When the store's clock was last read, by both clocks.
    last: Mutex<Option<(Timestamp, Instant)>>,
}

impl ReportFreshness {
    /// A manager that starts begins with an outage: what was before it is unknown.
    pub(crate) fn new(store: Arc<dyn SessionStore>) -> Self {
        Self {
            store,
            since: Mutex::new(None),
            detects_clock_jumps: true,
            last: Mutex::new(None),
        }
    }

    /// The same on a store whose clock is set by its user, so that jumps are
    /// intended.
    pub(crate) fn with_settable_clock(self) -> Self {
        Self {
            detects_clock_jumps: false,
            ..self
        }
    }

    /// The store is away.
    pub(crate) fn lost(&self) {
        *self.since() = None;
    }

    /// The store is there.
    pub(crate) async fn found(&self) {
        if let Ok(now) = self.present().await {
            self.since().get_or_insert(now);
        }
    }

    /// The store's present. If it is not where it must be by this machine's
    /// own clock, that is an outage.
    async fn present(&self) -> Result<Timestamp, Error> {
        let asked = Instant::now();
        let now = self.store.now().await?;
        let before = self.last.lock().replace((now, asked));
        if let Some((last, at)) = before.filter(|_| self.detects_clock_jumps) {
            let earliest = last.after(asked.duration_since(at)).before(JUMP);
            let latest = last.after(at.elapsed()).after(JUMP);
            if now < earliest || now > latest {
                tracing::warn!(from = %last, to = %now, "the clock of the state store jumped; idle clocks stand still");
                *self.since() = Some(now);
            }
        }
        Ok(now)
    }

    /// How long the store has been there without a break.
    pub(crate) fn calm(&self, now: Timestamp) -> Duration {
        self.since().map_or(Duration::ZERO, |since| now.since(since))
    }

    /// May an idle clock fire?
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub(crate) async fn is_known(&self) -> Result<bool, Error> {
        let now = self.present().await?;
        let calm = now.since(*self.since().get_or_insert(now));
        if calm < OUTAGE_FREEZE {
            return Ok(false);
        }
        // Who lived before the outage gets time to find its way back.
        let gone_after = (calm >= PROXY_GONE).then_some(PROXY_GONE);
        let proxies = self.store.count_proxies(PROXY_SILENT, gone_after).await?;
        Ok(proxies.known > 0 && proxies.silent == 0)
    }

    fn since(&self) -> MutexGuard<'_, Option<Timestamp>> {
        self.since.lock()
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
            freshness.found().await;
            Self {
                clock,
                store,
                freshness,
            }
        }

        /// Time passes while these proxies report.
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

        async fn known(&self) -> bool {
            self.freshness.is_known().await.unwrap()
        }
    }

    #[tokio::test]
    async fn it_is_known_a_minute_after_an_outage_when_every_proxy_reports() {
        let world = World::new().await;
        world.pass(59, &["a", "b"]).await;
        assert!(!world.known().await, "the manager has just begun");
        world.pass(1, &["a", "b"]).await;
        assert!(world.known().await);
        world.freshness.lost();
        world.freshness.found().await;
        world.pass(59, &["a", "b"]).await;
        assert!(!world.known().await, "the store was away");
        world.pass(1, &["a", "b"]).await;
        assert!(world.known().await);
    }

    #[tokio::test]
    async fn a_proxy_that_fell_silent_is_waited_for_until_it_must_be_gone() {
        let world = World::new().await;
        world.pass(100, &["a", "b"]).await;
        // b reported 5 s ago, for the last time.
        world.pass(4, &["a"]).await;
        assert!(world.known().await);
        world.pass(1, &["a"]).await;
        assert!(!world.known().await);
        world.pass(79, &["a"]).await;
        assert!(!world.known().await);
        world.pass(1, &["a"]).await;
        assert!(world.known().await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_jumps_is_an_outage() {
        for jump in [JUMP + 2 * SECOND, 3600 * SECOND] {
            let mut world = World::new().await;
            world.freshness.detects_clock_jumps = true;
            let pass = async |seconds: u64| {
                for _ in 0..seconds {
                    world.pass(1, &["a"]).await;
                    tokio::time::advance(SECOND).await;
                    world.freshness.found().await;
                }
            };
            pass(61).await;
            assert!(world.known().await);
            world.clock.advance(jump);
            // It is noticed a second later.
            pass(60).await;
            assert!(!world.known().await);
            pass(1).await;
            assert!(world.known().await);
        }
    }

    #[tokio::test]
    async fn without_any_proxy_nothing_is_known() {
        let world = World::new().await;
        world.pass(1000, &[]).await;
        assert!(!world.known().await);
        world.pass(1, &["a"]).await;
        assert!(world.known().await);
        world.pass(1000, &[]).await;
        assert!(!world.known().await);
    }

    #[tokio::test]
    async fn proxies_of_before_the_outage_get_time_to_come_back() {
        let world = World::new().await;
        world.pass(100, &["a", "b"]).await;
        // The manager is away for ten minutes; then a is back at once.
        world.pass(600, &[]).await;
        let freshness = ReportFreshness::new(Arc::clone(&world.store) as _).with_settable_clock();
        freshness.found().await;
        let world = World { freshness, ..world };
        world.pass(89, &["a"]).await;
        assert!(!world.known().await, "b may come back");
        world.pass(1, &["a"]).await;
        assert!(world.known().await);
    }
}
