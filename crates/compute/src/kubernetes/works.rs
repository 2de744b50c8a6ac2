//! What this manager did and found out about the generations it started: data
//! without calls.

use super::reasons::PodEvent;
use crate::released::Released;
use session_core::machine::{Cause, Observation};
use session_core::{Route, SessionId, SessionKey};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A session generation. Session ids are unique among organizations.
pub(super) type WorkId = (SessionId, u64);

/// Of a pod so many events are kept, the newest.
const MAX_EVENTS: usize = 16;
/// Above so many entries those that failed long ago are removed.
const MANY_WORKS: usize = 10_000;
const KEEP_FAILED: Duration = Duration::from_secs(3600);
/// A generation in the queue that was not asked for during this time has left
/// it; the reconciler asks every 2 s.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(10);
/// A start that failed is tried again after so long, then after twice as long
/// each time: its failure is reported at once, and the reconciler asks at once.
const MIN_RETRY_INTERVAL: Duration = Duration::from_secs(1);
const MAX_RETRY_INTERVAL: Duration = Duration::from_secs(16);

/// How far a generation is.
#[derive(Debug, Clone)]
pub(super) enum Stage {
    /// Other pods start first.
    Queued,
    /// A starter is at work.
    Starting {
        cause: Cause,
    },
    /// The engine in the pod with this uid answered.
    Ready {
        route: Route,
        uid: String,
    },
    Failed {
        cause: Cause,
        permanent: bool,
    },
}

#[derive(Debug)]
pub(super) struct Work {
    pub(super) key: SessionKey,
    /// Which starter may write here.
    pub(super) run: u64,
    pub(super) stage: Stage,
    /// Whether it counts as one that starts.
    takes_turn: bool,
    /// When it was first queued or started.
    pub(super) since: Instant,
    /// When it was last asked for.
    pub(super) asked: Instant,
    /// How many starts in a row have failed.
    failures: u32,
    /// When it may be started again.
    retry_at: Instant,
    pub(super) stop: CancellationToken,
    /// Its pod or its events changed.
    pub(super) changed: Arc<Notify>,
    pub(super) events: Vec<PodEvent>,
}

/// What [`Works::admit`] decided.
#[derive(Debug)]
pub(super) enum Admission {
    /// A starter must run, with these.
    Start {
        run: u64,
        stop: CancellationToken,
        changed: Arc<Notify>,
    },
    /// Other pods start first.
    Queued,
    /// There is nothing to do: it starts, is ready, failed for good or was released.
    Settled,
}

#[derive(Debug, Default)]
pub(super) struct Works {
    pub(super) map: HashMap<WorkId, Work>,
    pub(super) released: Released,
    runs: u64,
}

impl Works {
    /// Decides whether a generation is to be started now. With `max_starting` it
    /// takes a turn among so many, or waits in the queue. `is_up` tells whether
    /// the pod of a generation that was ready still runs.
    pub(super) fn admit(
        &mut self,
        key: &SessionKey,
        generation: u64,
        max_starting: Option<usize>,
        is_up: impl FnOnce(&str) -> bool,
    ) -> Admission {
        if self.released.contains(key, generation) {
            return Admission::Settled;
        }
        let now = Instant::now();
        let id = (key.id.clone(), generation);
        let (since, failures) = match self.map.get(&id).map(|work| (&work.stage, work)) {
            Some((Stage::Starting { .. } | Stage::Failed { permanent: true, .. }, _)) => {
                return Admission::Settled;
            }
            Some((Stage::Ready { uid, .. }, _)) if is_up(uid) => return Admission::Settled,
            Some((Stage::Failed { .. }, work)) if now < work.retry_at => return Admission::Settled,
            Some((Stage::Queued, work)) => (work.since, work.failures),
            Some((Stage::Failed { .. }, work)) => (now, work.failures),
            Some((Stage::Ready { .. }, _)) | None => (now, 0),
        };
        let ahead = self.ahead_of(&id, since, now);
        let stage = if max_starting.is_none_or(|max| ahead < max) {
            Stage::Starting {
                cause: "its pod is being created".into(),
            }
        } else {
            Stage::Queued
        };
        let is_queued = matches!(stage, Stage::Queued);
        let work = Work {
            takes_turn: max_starting.is_some(),
            since,
            failures,
            ..self.new_work(key, stage, now)
        };
        let (stop, changed) = (work.stop.clone(), Arc::clone(&work.changed));
        self.map.insert(id, work);
        if is_queued {
            return Admission::Queued;
        }
        Admission::Start {
            run: self.runs,
            stop,
            changed,
        }
    }

    /// Records that a generation cannot be started now.
    pub(super) fn fail(&mut self, key: &SessionKey, generation: u64, cause: Cause, permanent: bool) {
        let work = self.new_work(key, Stage::Failed { cause, permanent }, Instant::now());
        self.map.insert((key.id.clone(), generation), work);
    }

    fn new_work(&mut self, key: &SessionKey, stage: Stage, now: Instant) -> Work {
        self.forget_old(now);
        self.runs += 1;
        Work {
            key: key.clone(),
            run: self.runs,
            stage,
            takes_turn: false,
            since: now,
            asked: now,
            failures: 0,
            retry_at: now,
            stop: CancellationToken::new(),
            changed: Arc::new(Notify::new()),
            events: Vec::new(),
        }
    }

    /// Records how the starter `run` ended, unless another has taken over.
    /// Without a stage the generation is forgotten.
    pub(super) fn end(&mut self, id: &WorkId, run: u64, stage: Option<Stage>) {
        let Some(work) = self.of_run(id, run) else {
            return;
        };
        match stage {
            None => drop(self.map.remove(id)),
            Some(stage) => {
                if matches!(stage, Stage::Failed { .. }) {
                    let wait = MIN_RETRY_INTERVAL.saturating_mul(1 << work.failures.min(16));
                    work.retry_at = Instant::now() + wait.min(MAX_RETRY_INTERVAL);
                    work.failures += 1;
                }
                work.stage = stage;
            }
        }
    }

    /// The same for one that may be tried again, unless it is under way.
    pub(super) fn fail_new(&mut self, key: &SessionKey, generation: u64, cause: Cause) {
        let settled = self.map.get(&(key.id.clone(), generation)).is_some_and(|work| {
            matches!(
                work.stage,
                Stage::Starting { .. } | Stage::Failed { permanent: true, .. }
            )
        });
        if !settled {
            self.fail(key, generation, cause, false);
        }
    }

    /// Removes one whose pod is gone.
    pub(super) fn forget_ready(&mut self, id: &WorkId) {
        if matches!(
            self.map.get(id).map(|work| &work.stage),
            Some(Stage::Ready { .. })
        ) {
            self.map.remove(id);
        }
    }

    /// Removes one that was ready in the pod with this uid, which is gone.
    pub(super) fn forget_pod(&mut self, id: &WorkId, gone: Option<&str>) {
        if let Some(Stage::Ready { uid, .. }) = self.map.get(id).map(|work| &work.stage)
            && Some(uid.as_str()) == gone
        {
            self.map.remove(id);
        }
    }

    /// How many start now, or wait in the queue since before `since`.
    fn ahead_of(&self, id: &WorkId, since: Instant, now: Instant) -> usize {
        let is_ahead = |work: &Work| match work.stage {
            Stage::Starting { .. } => work.takes_turn,
            Stage::Queued => work.since < since && now.duration_since(work.asked) < QUEUE_TIMEOUT,
            Stage::Ready { .. } | Stage::Failed { .. } => false,
        };
        self.map
            .iter()
            .filter(|(other, work)| *other != id && is_ahead(work))
            .count()
    }

    fn forget_old(&mut self, now: Instant) {
        if self.map.len() < MANY_WORKS {
            return;
        }
        self.map.retain(|_, work| match work.stage {
            Stage::Starting { .. } | Stage::Ready { .. } => true,
            Stage::Queued | Stage::Failed { .. } => now.duration_since(work.asked) < KEEP_FAILED,
        });
    }

    /// Those that start now, in turn or not.
    pub(super) fn starting(&self) -> impl Iterator<Item = &WorkId> {
        let all = self.map.iter();
        all.filter(|(_, work)| matches!(work.stage, Stage::Starting { .. }))
            .map(|(id, _)| id)
    }

    /// Those that create a pod now.
    pub(super) fn creating(&self) -> impl Iterator<Item = &WorkId> {
        let all = self.map.iter();
        all.filter(|(_, work)| work.takes_turn && matches!(work.stage, Stage::Starting { .. }))
            .map(|(id, _)| id)
    }

    /// The one that has been in the queue for longest.
    pub(super) fn next_in_queue(&self) -> Option<(SessionKey, u64)> {
        self.map
            .iter()
            .filter(|(_, work)| matches!(work.stage, Stage::Queued))
            .min_by_key(|(_, work)| work.since)
            .map(|((_, generation), work)| (work.key.clone(), *generation))
    }

    /// Removes this generation and all before it, and stops their starters.
    pub(super) fn release(&mut self, key: &SessionKey, up_to: u64) {
        self.released.add(key, up_to);
        self.map.retain(|(id, generation), work| {
            let goes = *id == key.id && *generation <= up_to;
            if goes {
                work.stop.cancel();
            }
            !goes
        });
    }

    pub(super) fn add_event(&mut self, id: &WorkId, event: PodEvent) -> Option<SessionKey> {
        let work = self.map.get_mut(id)?;
        if work.events.len() >= MAX_EVENTS {
            work.events.remove(0);
        }
        work.events.push(event);
        work.changed.notify_one();
        Some(work.key.clone())
    }

    /// The work of a starter, unless another has taken over.
    pub(super) fn of_run(&mut self, id: &WorkId, run: u64) -> Option<&mut Work> {
        self.map.get_mut(id).filter(|work| work.run == run)
    }
}

impl Stage {
    /// What there is while no pod is known; `None` if only the API server can tell.
    pub(super) fn without_pod(&self) -> Option<Observation> {
        match self {
            Self::Queued => Some(Observation::Failed {
                // A number here would change with every other pod.
                cause: "it waits for its turn: other pods are starting".into(),
                permanent: false,
            }),
            Self::Starting { cause } => Some(Observation::Starting { cause: cause.clone() }),
            Self::Failed { cause, permanent } => Some(Observation::Failed {
                cause: cause.clone(),
                permanent: *permanent,
            }),
            Self::Ready { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::key;

    fn admit(works: &mut Works, n: u64) -> Admission {
        works.admit(&key(n), 1, Some(2), |_| true)
    }

    #[tokio::test(start_paused = true)]
    async fn the_queue_is_served_in_order_and_forgets_who_left() {
        let mut works = Works::default();
        for n in [1, 2] {
            assert!(matches!(admit(&mut works, n), Admission::Start { .. }), "{n}");
        }
        for n in [3, 4] {
            assert!(matches!(admit(&mut works, n), Admission::Queued), "{n}");
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(works.next_in_queue(), Some((key(3), 1)));
        works.release(&key(1), 1);
        assert!(matches!(admit(&mut works, 4), Admission::Queued), "3 is first");
        // 3 was closed by another manager and is never asked for again.
        tokio::time::advance(QUEUE_TIMEOUT).await;
        assert!(matches!(admit(&mut works, 4), Admission::Start { .. }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_released_generation_is_not_started_again() {
        let mut works = Works::default();
        let Admission::Start { stop, .. } = admit(&mut works, 1) else {
            panic!("not started");
        };
        works.release(&key(1), 1);
        assert!(stop.is_cancelled());
        assert!(matches!(admit(&mut works, 1), Admission::Settled));
        assert!(matches!(
            works.admit(&key(1), 2, Some(2), |_| true),
            Admission::Start { .. }
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_taken_over_holds_nobody_up() {
        let mut works = Works::default();
        for n in [1, 2, 3] {
            let admission = works.admit(&key(n), 1, None, |_| true);
            assert!(matches!(admission, Admission::Start { .. }), "{n}");
        }
        assert_eq!(works.starting().count(), 3);
        assert!(matches!(admit(&mut works, 4), Admission::Start { .. }));
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_another_pod_changes_nothing() {
        let mut works = Works::default();
        let Admission::Start { run, .. } = admit(&mut works, 1) else {
            panic!("not started");
        };
        let id = (key(1).id, 1);
        let route = Route {
            endpoint: "10.0.0.1:15002".into(),
            tls_server_name: None,
            credential: None,
            engine: session_core::Engine::Sail,
            engine_version: "1".into(),
            dedicated: true,
            host: None,
        };
        let uid = "uid-1".to_owned();
        works.end(&id, run, Some(Stage::Ready { route, uid }));
        works.forget_pod(&id, Some("uid-2"));
        assert!(works.map.contains_key(&id));
        works.forget_pod(&id, Some("uid-1"));
        assert!(!works.map.contains_key(&id));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_tried_again_unless_it_is_permanent() {
        let mut works = Works::default();
        works.fail(&key(1), 1, "no room".into(), false);
        assert!(matches!(admit(&mut works, 1), Admission::Start { .. }));
        assert!(matches!(admit(&mut works, 1), Admission::Settled), "it starts");
        works.fail(&key(1), 1, "never".into(), true);
        assert!(matches!(admit(&mut works, 1), Admission::Settled));
    }

    #[tokio::test(start_paused = true)]
    async fn starts_that_fail_are_tried_again_less_and_less_often() {
        let mut works = Works::default();
        let id = (key(1).id, 1);
        for seconds in [1, 2, 4, 8, 16, 16] {
            let Admission::Start { run, .. } = admit(&mut works, 1) else {
                panic!("not started");
            };
            let failed = Stage::Failed {
                cause: "no room".into(),
                permanent: false,
            };
            works.end(&id, run, Some(failed));
            tokio::time::advance(Duration::from_millis(seconds * 1000 - 1)).await;
            assert!(matches!(admit(&mut works, 1), Admission::Settled), "{seconds}");
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert!(matches!(admit(&mut works, 1), Admission::Start { .. }));
    }

    #[tokio::test(start_paused = true)]
    async fn events_are_bounded() {
        let mut works = Works::default();
        works.fail(&key(1), 1, "x".into(), false);
        let id = (key(1).id, 1);
        for n in 0..MAX_EVENTS + 3 {
            let event = PodEvent {
                reason: n.to_string(),
                message: String::new(),
            };
            assert_eq!(works.add_event(&id, event), Some(key(1)));
        }
        let events = &works.map[&id].events;
        assert_eq!((events.len(), events[0].reason.as_str()), (MAX_EVENTS, "3"));
    }
}
