//! Route cache, shared by all workers.
//!
//! Three rules keep it correct: every change of every session is announced on the watch stream; an
//! answer older than the newest announced change (the *floor* of the session) is never stored; and
//! an answer is fresh only during the watch stream in which it was requested.

use super::single_flight::{self, Flight, Waiter};
use super::{Gone, Order, Route, RouteState};
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
pub(crate) const MARKER_LIFE: Duration = Duration::from_secs(15 * 60);
/// Lifetime of an answer without a watch stream.
const UNWATCHED_LIFE: Duration = Duration::from_secs(5);

/// Event for the workers.
#[derive(Debug, Clone)]
pub(crate) enum RouteEvent {
    /// Routes older than `order` are invalid.
    Changed {
        session: SessionId,
        order: Order,
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
pub(crate) struct Ask {
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
pub(crate) enum Miss {
    /// Session-manager rejected the request.
    Refused(Refused),
    /// Session-manager could not be reached.
    Unreachable,
    /// The time limit passed before compute was ready.
    Waited,
}

/// Result of a single flight for each of its waiters.
pub(crate) type Answer = Result<(Arc<Route>, Stamp), Miss>;

/// Result of storing an answer.
pub(super) enum Learned {
    Kept,
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
    state: Mutex<State>,
    workers: Vec<mpsc::UnboundedSender<RouteEvent>>,
    /// Number of the current watch stream; 0 while there is none.
    watch: AtomicU64,
    /// Number of the last watch stream, and when it ended.
    lost: Mutex<(u64, Option<Instant>)>,
    pub(super) control: tokio::runtime::Handle,
    pub(super) metrics: Arc<Metrics>,
    /// The last request was answered, or there was none yet.
    reachable: AtomicBool,
}

#[derive(Default)]
pub(super) struct State {
    known: HashMap<SessionId, (Arc<Route>, Stamp)>,
    floors: HashMap<SessionId, Floor>,
    pub(super) flights: HashMap<SessionId, Flight>,
}

/// The newest announced change of a session.
struct Floor {
    order: Order,
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
            lost: Mutex::new((0, None)),
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
        let (last, lost_at) = *self.lost.lock();
        let good_at = if stamp.watch == last {
            lost_at.unwrap_or(stamp.at)
        } else {
            stamp.at
        };
        good_at.elapsed() < UNWATCHED_LIFE
    }

    /// Whether an answer may be used while session-manager is unreachable.
    pub(crate) fn is_bearable(&self, stamp: Stamp) -> bool {
        let (last, lost_at) = *self.lost.lock();
        let good_at = if stamp.watch == last {
            lost_at.unwrap_or(stamp.at)
        } else {
            stamp.at
        };
        good_at.elapsed() < self.config.stale_if_unreachable
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
    pub(crate) async fn resolve(self: &Arc<Self>, ask: Ask) -> Answer {
        let until = ask.until;
        let answer = {
            let mut state = self.state();
            if let Some(gone) = state
                .floors
                .get(&ask.session)
                .and_then(|floor| floor.gone.as_ref())
            {
                return Err(Miss::Refused(gone.refused()));
            }
            if let Some((route, stamp)) = state.known.get(&ask.session) {
                let recent = ask.not_before.is_none_or(|moment| stamp.at >= moment);
                if recent && self.is_fresh(*stamp) && single_flight::is_settled(route, ask.wake) {
                    return Ok((Arc::clone(route), *stamp));
                }
            }
            let (reply, answer) = oneshot::channel();
            let waiter = Waiter {
                token: ask.token,
                wake: ask.wake,
                not_before: ask.not_before,
                reply,
            };
            match state.flights.entry(ask.session.clone()) {
                Entry::Occupied(mut flight) => {
                    let flight = flight.get_mut();
                    // A caller that only waits for compute is served by the request that woke the
                    // session, and by the announcements after it.
                    if !(waiter.wake && flight.wakes && waiter.not_before.is_none()) {
                        flight.news.notify_one();
                    }
                    flight.waiters.push(waiter);
                }
                Entry::Vacant(nobody) => {
                    let flight = nobody.insert(Flight::default());
                    flight.waiters.push(waiter);
                    let news = Arc::clone(&flight.news);
                    self.control
                        .spawn(single_flight::fly(Arc::clone(self), ask.session, news).in_current_span());
                }
            }
            answer
        };
        match tokio::time::timeout_at(until, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Miss::Unreachable),
            Err(_) => Err(Miss::Waited),
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
    pub(super) fn learn(&self, state: &mut State, route: &Arc<Route>, stamp: Stamp) -> Learned {
        let floor = state.floors.get(&route.session);
        if let Some(gone) = floor.and_then(|floor| floor.gone.as_ref()) {
            return Learned::Gone(Arc::clone(gone));
        }
        // An end is final in any order; an unknown session has no order.
        if let RouteState::Gone(gone) = &route.state {
            self.bury(state, route.session.clone(), route.order, gone.clone());
            return Learned::Gone(Arc::new(gone.clone()));
        }
        let known = state.known.get(&route.session).map(|(known, _)| known.order);
        if Some(route.order) < floor.map(|floor| floor.order) || Some(route.order) < known {
            return Learned::Outdated;
        }
        state
            .known
            .insert(route.session.clone(), (Arc::clone(route), stamp));
        Learned::Kept
    }

    /// Handles an announced change.
    pub(super) fn changed(&self, session: SessionId, order: Order, token_epoch: u64) {
        let mut state = self.state();
        let now = Instant::now();
        let floor = state.floors.entry(session.clone()).or_insert(Floor {
            order,
            gone: None,
            at: now,
        });
        if floor.gone.is_some() {
            return;
        }
        floor.order = floor.order.max(order);
        floor.at = now;
        if state
            .known
            .get(&session)
            .is_some_and(|(route, _)| route.order < order)
        {
            state.known.remove(&session);
        }
        if let Some(flight) = state.flights.get(&session) {
            flight.news.notify_one();
        }
        self.tell(&RouteEvent::Changed {
            session,
            order,
            token_epoch,
        });
    }

    /// Handles an announced end.
    pub(super) fn ended(&self, session: SessionId, order: Order, gone: Gone) {
        let mut state = self.state();
        self.bury(&mut state, session, order, gone);
    }

    fn bury(&self, state: &mut State, session: SessionId, order: Order, gone: Gone) {
        state.known.remove(&session);
        if let Some(flight) = state.flights.get(&session) {
            flight.news.notify_one();
        }
        let gone = Arc::new(gone);
        let floor = Floor {
            order,
            gone: Some(Arc::clone(&gone)),
            at: Instant::now(),
        };
        state.floors.insert(session.clone(), floor);
        self.tell(&RouteEvent::Gone { session, gone });
    }

    /// Handles the begin of a watch stream: all routes must be requested again.
    pub(super) fn watch_began(&self) {
        let number = self.lost.lock().0 + 1;
        *self.lost.lock() = (number, None);
        self.watch.store(number, Ordering::Release);
        self.metrics.watching.set(1);
        self.tell(&RouteEvent::Recheck);
    }

    /// Handles an announcement that changes may have been missed.
    pub(super) fn watch_reset(&self) {
        self.watch_lost(Instant::now());
        self.watch_began();
    }

    /// Handles the end of the watch stream. Changes after `last_message` are unknown.
    pub(super) fn watch_lost(&self, last_message: Instant) {
        if self.watch.swap(0, Ordering::AcqRel) != 0 {
            self.metrics.watching.set(0);
            self.lost.lock().1 = Some(last_message);
        }
    }

    /// Records whether a request was answered; logs changes.
    pub(super) fn answered(&self, problem: Option<&tonic::Status>) {
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
        self.tell(&RouteEvent::Recheck);
    }

    /// Removes unused entries.
    pub(super) fn sweep(&self) {
        let mut state = self.state();
        let flights: Vec<SessionId> = state.flights.keys().cloned().collect();
        state
            .floors
            .retain(|session, floor| floor.at.elapsed() < MARKER_LIFE || flights.contains(session));
        state
            .known
            .retain(|_, (_, stamp)| stamp.at.elapsed() < self.config.forget_after);
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Called under the lock of the state, so that all workers receive events in order.
    fn tell(&self, event: &RouteEvent) {
        for worker in &self.workers {
            // A stopped worker has no calls.
            let _ = worker.send(event.clone());
        }
    }
}
