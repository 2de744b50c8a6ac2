//! Route cache, shared by all workers.
//!
//! Three rules keep it correct: every change of every session is announced on the watch stream; an
//! answer older than the newest announced change (the *minimum version* of the session) is never
//! stored; and an answer is fresh only during the watch stream in which it was requested.

use super::single_flight::{self, Flight, Waiter};
use super::{Gone, Route, RouteState, RouteVersion};
use crate::config::RouteConfig;
use crate::metrics::Metrics;
use parking_lot::{Mutex, MutexGuard};
use service_kit::service_account_token::ServiceChannel;
use session_core::SessionId;
use session_proto::error::Refused;
use session_proto::internal::route_service_client::RouteServiceClient;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::Instrument as _;

/// Time for which the end of a session is recorded after its other data is removed, so that a late
/// answer cannot restore its route.
pub(crate) const ENDED_MARKER_TTL: Duration = Duration::from_secs(15 * 60);
/// Lifetime of an answer without a watch stream.
const UNWATCHED_TTL: Duration = Duration::from_secs(5);

/// Event for the workers.
#[derive(Debug, Clone)]
pub(crate) enum RouteEvent {
    /// Routes older than `version` are invalid.
    Changed {
        session: SessionId,
        version: RouteVersion,
        token_epoch: u64,
    },
    /// The session ended.
    Gone { session: SessionId, gone: Arc<Gone> },
    /// Changes may have been missed: request the routes of all sessions in use again.
    Recheck,
}

/// Time of a route request, and the watch stream at that time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stamp {
    pub(crate) at: Instant,
    watch: u64,
}

/// Route request of a call.
pub(crate) struct RouteRequest {
    pub(crate) session: SessionId,
    pub(crate) token: Arc<str>,
    /// Start compute if it was released, and wait for it.
    pub(crate) wake: bool,
    pub(crate) until: Instant,
    /// Answers requested before this time are not used, even if fresh.
    pub(crate) not_before: Option<Instant>,
}

/// Reason for a missing route.
#[derive(Debug, Clone)]
pub(crate) enum ResolveError {
    /// Session-manager rejected the request.
    Refused(Refused),
    /// Session-manager could not be reached.
    Unreachable,
    /// The time limit passed before compute was ready.
    TimedOut,
}

/// Result of a single flight for each of its waiters.
pub(crate) type ResolveResult = Result<(Arc<Route>, Stamp), ResolveError>;

/// Result of storing an answer.
pub(super) enum StoreOutcome {
    Stored,
    /// A newer version was announced first: request again.
    Outdated,
    /// The session ended, by this answer or earlier.
    Gone(Arc<Gone>),
}

/// Routes, shared by all workers.
pub(crate) struct Routes {
    /// Client for route requests.
    pub(super) client: RouteServiceClient<ServiceChannel>,
    /// Client for the watch and for bindings, on its own connection.
    control_client: RouteServiceClient<ServiceChannel>,
    pub(super) config: RouteConfig,
    state: Mutex<CacheState>,
    workers: Vec<mpsc::UnboundedSender<RouteEvent>>,
    /// Number of the current watch stream; 0 while there is none.
    watch: AtomicU64,
    /// Number of the last watch stream, and the time of its end.
    ended_watch: Mutex<(u64, Option<Instant>)>,
    pub(super) control: tokio::runtime::Handle,
    pub(super) metrics: Arc<Metrics>,
    /// The last request was answered, or there was none yet.
    reachable: AtomicBool,
}

#[derive(Default)]
pub(super) struct CacheState {
    known: HashMap<SessionId, (Arc<Route>, Stamp)>,
    min_versions: HashMap<SessionId, MinVersion>,
    pub(super) flights: HashMap<SessionId, Flight>,
}

/// The newest announced change of a session.
struct MinVersion {
    version: RouteVersion,
    gone: Option<Arc<Gone>>,
    at: Instant,
}

impl Routes {
    /// Must be called on the control runtime, where single flights run.
    pub(crate) fn new(
        client: RouteServiceClient<ServiceChannel>,
        control_client: RouteServiceClient<ServiceChannel>,
        config: RouteConfig,
        workers: Vec<mpsc::UnboundedSender<RouteEvent>>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Self {
            client,
            control_client,
            config,
            state: Mutex::default(),
            workers,
            watch: AtomicU64::new(0),
            ended_watch: Mutex::new((0, None)),
            control: tokio::runtime::Handle::current(),
            metrics,
            reachable: AtomicBool::new(true),
        })
    }

    /// Client for session-manager requests other than routes.
    pub(crate) fn control_client(&self) -> RouteServiceClient<ServiceChannel> {
        self.control_client.clone()
    }

    /// Whether an answer may be used without a new request.
    pub(crate) fn is_fresh(&self, stamp: Stamp) -> bool {
        let watch = self.watch.load(Ordering::Acquire);
        if watch != 0 {
            return stamp.watch == watch;
        }
        self.current_at(stamp).elapsed() < UNWATCHED_TTL
    }

    /// Whether an answer may be used while session-manager is unreachable.
    pub(crate) fn is_usable_stale(&self, stamp: Stamp) -> bool {
        self.current_at(stamp).elapsed() < self.config.stale_if_unreachable
    }

    /// Last time at which an answer was known to be current, without a watch stream.
    fn current_at(&self, stamp: Stamp) -> Instant {
        let (last, lost_at) = *self.ended_watch.lock();
        if stamp.watch == last {
            lost_at.unwrap_or(stamp.at)
        } else {
            stamp.at
        }
    }

    /// Stamp for a request that is about to be sent.
    pub(super) fn stamp(&self) -> Stamp {
        Stamp {
            at: Instant::now(),
            watch: self.watch.load(Ordering::Acquire),
        }
    }

    pub(crate) fn is_watching(&self) -> bool {
        self.watch.load(Ordering::Acquire) != 0
    }

    /// Returns the route of a session: from the cache if fresh, else from a single flight.
    pub(crate) async fn resolve(self: &Arc<Self>, request: RouteRequest) -> ResolveResult {
        let until = request.until;
        let answer = {
            let mut state = self.state();
            if let Some(gone) = state
                .min_versions
                .get(&request.session)
                .and_then(|min_version| min_version.gone.as_ref())
            {
                return Err(ResolveError::Refused(gone.refused()));
            }
            if let Some((route, stamp)) = state.known.get(&request.session) {
                let recent = request.not_before.is_none_or(|moment| stamp.at >= moment);
                if recent && self.is_fresh(*stamp) && single_flight::is_settled(route, request.wake) {
                    return Ok((Arc::clone(route), *stamp));
                }
            }
            let (reply, answer) = oneshot::channel();
            let waiter = Waiter {
                token: request.token,
                wake: request.wake,
                not_before: request.not_before,
                reply,
            };
            match state.flights.entry(request.session.clone()) {
                Entry::Occupied(mut flight) => {
                    let flight = flight.get_mut();
                    // A caller that only waits for compute is served by the request that woke the
                    // session, and by the announcements after it.
                    if !(waiter.wake && flight.wakes && waiter.not_before.is_none()) {
                        flight.changed.notify_one();
                    }
                    flight.waiters.push(waiter);
                }
                Entry::Vacant(vacant) => {
                    let flight = vacant.insert(Flight::default());
                    flight.waiters.push(waiter);
                    let changed = Arc::clone(&flight.changed);
                    self.control.spawn(
                        single_flight::run(Arc::clone(self), request.session, changed).in_current_span(),
                    );
                }
            }
            answer
        };
        match tokio::time::timeout_at(until, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(ResolveError::Unreachable),
            Err(_) => Err(ResolveError::TimedOut),
        }
    }

    /// The last known route of a session, of any age.
    pub(crate) fn last_known(&self, session: &SessionId) -> Option<Arc<Route>> {
        self.state()
            .known
            .get(session)
            .map(|(route, _)| Arc::clone(route))
    }

    /// Stores an answer unless a newer version was announced meanwhile.
    pub(super) fn store(&self, state: &mut CacheState, route: &Arc<Route>, stamp: Stamp) -> StoreOutcome {
        let min_version = state.min_versions.get(&route.session);
        if let Some(gone) = min_version.and_then(|min_version| min_version.gone.as_ref()) {
            return StoreOutcome::Gone(Arc::clone(gone));
        }
        // An end is final at any version; an unknown session has none.
        if let RouteState::Gone(gone) = &route.state {
            self.mark_ended(state, route.session.clone(), route.version, gone.clone());
            return StoreOutcome::Gone(Arc::new(gone.clone()));
        }
        let known = state.known.get(&route.session).map(|(known, _)| known.version);
        if Some(route.version) < min_version.map(|min_version| min_version.version)
            || Some(route.version) < known
        {
            return StoreOutcome::Outdated;
        }
        state
            .known
            .insert(route.session.clone(), (Arc::clone(route), stamp));
        StoreOutcome::Stored
    }

    /// Handles an announced change.
    pub(super) fn changed(&self, session: SessionId, version: RouteVersion, token_epoch: u64) {
        let mut state = self.state();
        let now = Instant::now();
        let min_version = state.min_versions.entry(session.clone()).or_insert(MinVersion {
            version,
            gone: None,
            at: now,
        });
        if min_version.gone.is_some() {
            return;
        }
        min_version.version = min_version.version.max(version);
        min_version.at = now;
        if state
            .known
            .get(&session)
            .is_some_and(|(route, _)| route.version < version)
        {
            state.known.remove(&session);
        }
        if let Some(flight) = state.flights.get(&session) {
            flight.changed.notify_one();
        }
        self.broadcast(&RouteEvent::Changed {
            session,
            version,
            token_epoch,
        });
    }

    /// Handles an announced end.
    pub(super) fn ended(&self, session: SessionId, version: RouteVersion, gone: Gone) {
        let mut state = self.state();
        self.mark_ended(&mut state, session, version, gone);
    }

    fn mark_ended(&self, state: &mut CacheState, session: SessionId, version: RouteVersion, gone: Gone) {
        state.known.remove(&session);
        if let Some(flight) = state.flights.get(&session) {
            flight.changed.notify_one();
        }
        let gone = Arc::new(gone);
        let min_version = MinVersion {
            version,
            gone: Some(Arc::clone(&gone)),
            at: Instant::now(),
        };
        state.min_versions.insert(session.clone(), min_version);
        self.broadcast(&RouteEvent::Gone { session, gone });
    }

    /// Handles the begin of a watch stream: all routes must be requested again.
    pub(super) fn watch_began(&self) {
        let number = self.ended_watch.lock().0 + 1;
        *self.ended_watch.lock() = (number, None);
        self.watch.store(number, Ordering::Release);
        self.metrics.control.watching.set(1);
        self.broadcast(&RouteEvent::Recheck);
    }

    /// Handles an announcement that changes may have been missed.
    pub(super) fn watch_reset(&self) {
        self.watch_lost(Instant::now());
        self.watch_began();
    }

    /// Handles the end of the watch stream. Changes after `last_message` are unknown.
    pub(super) fn watch_lost(&self, last_message: Instant) {
        if self.watch.swap(0, Ordering::AcqRel) != 0 {
            self.metrics.control.watching.set(0);
            self.ended_watch.lock().1 = Some(last_message);
        }
    }

    /// Records whether a request was answered; logs changes.
    pub(super) fn record_reachability(&self, problem: Option<&tonic::Status>) {
        let was = self.reachable.swap(problem.is_none(), Ordering::Relaxed);
        match problem {
            Some(status) if was => {
                tracing::warn!(code = ?status.code(), "route request failed");
            }
            None if !was => tracing::info!("route requests recovered"),
            Some(_) | None => {}
        }
    }

    /// Makes every worker request the routes of its sessions again.
    pub(super) fn recheck(&self) {
        self.broadcast(&RouteEvent::Recheck);
    }

    /// Removes unused entries.
    pub(super) fn sweep(&self) {
        let mut state = self.state();
        let flights: Vec<SessionId> = state.flights.keys().cloned().collect();
        state.min_versions.retain(|session, min_version| {
            min_version.at.elapsed() < ENDED_MARKER_TTL || flights.contains(session)
        });
        state
            .known
            .retain(|_, (_, stamp)| stamp.at.elapsed() < self.config.forget_after);
    }

    pub(super) fn state(&self) -> MutexGuard<'_, CacheState> {
        self.state.lock()
    }

    /// Called under the lock of the state, so that all workers receive events in order.
    fn broadcast(&self, event: &RouteEvent) {
        for worker in &self.workers {
            // A stopped worker has no calls.
            let _ = worker.send(event.clone());
        }
    }
}
