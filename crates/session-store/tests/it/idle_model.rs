//! Random calls on two proxies with the status machine and the store: no idle timeout
//! idles, releases or closes a session while a call is in flight, and every unused
//! session is closed in the end.

use crate::common::{Draft, report};
use proptest::prelude::*;
use session_core::machine::{self, Observation, Transition};
use session_core::time::ManualClock;
use session_core::{Activity, Phase, Session, SessionKey, Status, Timestamp};
use session_store::memory::MemoryStore;
use session_store::prelude::*;
use session_store::{Commit, Error, Report};
use std::sync::Arc;
use std::time::Duration;
use test_support::fixtures;

const SECOND: Duration = Duration::from_secs(1);
const PROXIES: [&str; 2] = ["p1", "p2"];
/// Times of [`Draft`]'s sessions until idle, until the release of compute, and until
/// closed.
const UNUSED: u64 = 900 + 10 + 3600 + 10;

/// An event at a proxy, after a number of seconds.
#[derive(Debug, Clone, Copy)]
enum Happens {
    Begins,
    Ends,
    /// A call so short that only its end is reported, with the next report.
    Flashes,
}

struct World {
    clock: Arc<ManualClock>,
    store: MemoryStore,
    key: SessionKey,
    /// Calls in flight of each proxy, and whether a call ended since its last report.
    open: [u32; 2],
    ended_at: [Option<Timestamp>; 2],
    wakes: u64,
}

fn ready() -> Observation {
    Observation::Ready {
        route: fixtures::route(),
    }
}

impl World {
    async fn new() -> Self {
        let clock = Arc::new(ManualClock::at(Timestamp::from_millis(1_800_000_100_000)));
        let store = MemoryStore::new(Arc::clone(&clock) as _);
        let key = store
            .create(Draft::default().create())
            .await
            .unwrap()
            .session
            .key();
        let mut world = Self {
            clock,
            store,
            key,
            open: [0; 2],
            ended_at: [None; 2],
            wakes: 0,
        };
        world.look().await;
        assert_eq!(world.session().await.status(), Status::Active);
        world
    }

    async fn session(&self) -> Session {
        self.store.get(&self.key).await.unwrap().unwrap()
    }

    /// One reconciliation. `meanwhile` runs between decision and commit: a proxy can
    /// report.
    async fn look_while(&mut self, meanwhile: Option<usize>) {
        let loaded = self.store.get_with_activity(&self.key).await.unwrap().unwrap();
        let now = self.store.now().await.unwrap();
        let seen = match loaded.session.status() {
            Status::Closed | Status::Failed => Observation::Missing,
            Status::Pending | Status::Active => ready(),
            Status::Idle if loaded.session.state.phase() == Phase::Released => Observation::Missing,
            Status::Idle => ready(),
        };
        let step = machine::step(&loaded.session, Some(&seen), loaded.activity, now);
        let Some(change) = step.transition else { return };
        if let Some(proxy) = meanwhile {
            self.call(proxy).await;
        }
        let by_idle_timeout = change.by_idle_timeout();
        let Transition { session, record, .. } = change;
        let commit = Commit {
            session,
            record,
            due: step.due,
        };
        let outcome = match loaded.activity {
            Activity::Quiet { last_activity_at } if by_idle_timeout => {
                self.store.commit_if_idle(commit, last_activity_at).await
            }
            Activity::Quiet { .. } | Activity::Busy | Activity::Unknown => self.store.commit(commit).await,
        };
        assert!(matches!(outcome, Ok(()) | Err(Error::Conflict)), "{outcome:?}");
        if outcome.is_ok() && by_idle_timeout {
            assert_eq!(self.open, [0, 0], "an idle clock fired with a call in flight");
        }
    }

    async fn look(&mut self) {
        self.look_while(None).await;
        self.look_while(None).await;
    }

    /// A call of a client: the proxy resolves the route, which wakes the session, and
    /// reports at once if it is the session's first call there.
    async fn call(&mut self, proxy: usize) {
        let session = self.session().await;
        if session.status().is_terminal() {
            return;
        }
        let now = self.store.now().await.unwrap();
        let woken = machine::apply(&session, &machine::Event::Wake, &session_core::Actor::System, now);
        if let Some(Transition { session, record, .. }) = woken.unwrap() {
            let due = Some(now);
            self.store.commit(Commit { session, record, due }).await.unwrap();
            self.wakes += 1;
        }
        if self.session().await.status() == Status::Pending {
            let session = self.session().await;
            let step = machine::step(&session, Some(&ready()), Activity::Unknown, now);
            let Transition { session, record, .. } = step.transition.unwrap();
            let due = step.due;
            self.store.commit(Commit { session, record, due }).await.unwrap();
        }
        self.open[proxy] += 1;
        if self.open[proxy] == 1 {
            self.say(proxy).await;
        }
    }

    async fn say(&mut self, proxy: usize) {
        let ended_at = self.ended_at[proxy].take();
        if self.open[proxy] == 0 && ended_at.is_none() {
            return;
        }
        let said = Report {
            generation: self.session().await.generation,
            last_activity_at: ended_at,
            ..report(PROXIES[proxy], self.open[proxy])
        };
        self.store.apply_report(&self.key, &said).await.unwrap();
    }

    async fn pass(&mut self, seconds: u64, raced_by: Option<usize>) {
        for second in 0..seconds {
            self.clock.advance(SECOND);
            for proxy in 0..PROXIES.len() {
                if second % 5 == proxy as u64 {
                    self.say(proxy).await;
                }
            }
            self.look_while(raced_by).await;
            let session = self.session().await;
            if self.open != [0, 0] && !session.status().is_terminal() {
                assert_eq!(session.status(), Status::Active, "idle with a call in flight");
            }
        }
    }

    async fn happens(&mut self, proxy: usize, what: Happens) {
        match what {
            Happens::Begins => self.call(proxy).await,
            Happens::Ends if self.open[proxy] > 0 => {
                self.open[proxy] -= 1;
                self.ended_at[proxy] = Some(self.clock_now().await);
            }
            Happens::Flashes if self.session().await.status() == Status::Active => {
                self.ended_at[proxy] = Some(self.clock_now().await);
            }
            Happens::Ends | Happens::Flashes => {}
        }
    }

    async fn clock_now(&self) -> Timestamp {
        self.store.now().await.unwrap()
    }
}

fn happenings() -> impl Strategy<Value = Vec<(u64, usize, Happens, bool)>> {
    let span = prop_oneof![3 => 0..12_u64, 2 => 880..930_u64, 1 => 1..2000_u64];
    let what = prop_oneof![
        3 => Just(Happens::Begins),
        3 => Just(Happens::Ends),
        1 => Just(Happens::Flashes),
    ];
    let one = (span, 0..2_usize, what, prop::bool::weighted(0.2));
    prop::collection::vec(one, 1..30)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(150) })]

    #[test]
    fn no_idle_clock_fires_while_anything_is_in_flight(happenings in happenings()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new().await;
            for (span, proxy, what, raced) in happenings {
                world.pass(span, raced.then_some(proxy)).await;
                world.happens(proxy, what).await;
            }
            // All calls end, and no new one starts.
            for proxy in 0..PROXIES.len() {
                while world.open[proxy] > 0 {
                    world.happens(proxy, Happens::Ends).await;
                }
            }
            world.pass(UNUSED, None).await;
            let session = world.session().await;
            assert_eq!(session.status(), Status::Closed, "unused sessions end");
            assert!(session.generation <= world.wakes + 1);
        });
    }
}
